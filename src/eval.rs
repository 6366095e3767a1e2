//! `kvant eval`: what each cache preset costs in quality on a text of the user's, against a 16-bit
//! cache.

use std::fs;
use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use kvant_bench::{Candidate, QualityLoad, QualityRow, markdown, quality};
use kvant_engine::Window;
use kvant_kv_cache::{Preset, Wish};
use serde_json::json;

use crate::cli::EvalArgs;
use crate::words::Words;
use crate::{facts, load, progress};

/// Largest text, bytes.
const TEXT_BYTES: u64 = 64 << 20;

pub(crate) fn run(args: &EvalArgs) -> Result<()> {
    let config = args.settings.config()?;
    load::prepare(&config, true)?;
    let opened = load::open(&config)?;
    let spec = opened.files.spec()?;
    let context = args.context as usize;
    if context > spec.context {
        bail!("--context is {context}, the model was made for {} tokens", spec.context);
    }
    let tokens = tokens(args, &Words::load(&opened.files)?)?;
    let windows = windows(args, &tokens);
    let candidates = args.presets.iter().map(|name| {
        let preset: Preset = name.parse()?;
        let wish = Wish { preset, protect: config.cache.protect, ..Wish::default() };
        Ok(Candidate { name: name.clone(), shape: facts::cache_shape(&spec, &wish)? })
    });
    let candidates: Vec<Candidate> = candidates.collect::<Result<_>>()?;
    let decoder = Arc::new(opened.decoder()?);
    let load = QualityLoad { windows, batch: args.batch as usize, seed: config.cache.seed };
    let bar = progress::tokens("reading");
    let rows = quality(&decoder, &candidates, &load, &mut |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    report(args, &opened.facts.name, &rows)
}

/// The beginning of the text, as long as the windows need it.
fn tokens(args: &EvalArgs, words: &Words) -> Result<Vec<u32>> {
    let path = &args.text;
    let size = fs::metadata(path).with_context(|| format!("{}", path.display()))?.len();
    if size > TEXT_BYTES {
        bail!("{}: has more than {TEXT_BYTES} bytes", path.display());
    }
    let text = fs::read_to_string(path);
    let text = text.with_context(|| format!("{}: cannot be read as UTF-8", path.display()))?;
    let tokens = words.tokenizer.encode(&text, false)?;
    let needed = (args.context * args.windows) as usize;
    if tokens.len() < needed {
        bail!(
            "{}: has {} tokens, {} windows of {} need {needed}; lower --windows or --context",
            path.display(),
            tokens.len(),
            args.windows,
            args.context
        );
    }
    Ok(tokens)
}

/// One after the other; of each the first half is the prompt. In a batch prompts differ in length,
/// so that the batch is ragged.
fn windows(args: &EvalArgs, tokens: &[u32]) -> Vec<Window> {
    let chunks = tokens.chunks_exact(args.context as usize).take(args.windows as usize);
    let window = |(index, tokens): (usize, &[u32])| {
        let shorter = if args.batch > 1 { index * 37 % (tokens.len() / 4).max(1) } else { 0 };
        Window { tokens: tokens.to_vec(), prompt: (tokens.len() / 2 - shorter).max(1) }
    };
    chunks.enumerate().map(window).collect()
}

fn report(args: &EvalArgs, model: &str, rows: &[QualityRow]) -> Result<()> {
    let mut out = std::io::stdout();
    if args.json {
        let value = json!({
            "model": model,
            "text": args.text.file_name().map(|name| name.to_string_lossy()),
            "context": args.context,
            "windows": args.windows,
            "batch": args.batch,
            "rows": rows,
        });
        writeln!(out, "{value:#}")?;
        return Ok(());
    }
    let name = args.text.file_name().unwrap_or_default().to_string_lossy();
    writeln!(
        out,
        "{model}, {name}, {} windows of {} tokens, the second half of each scored, batch {}\n\n{}",
        args.windows,
        args.context,
        args.batch,
        markdown(rows)
    )?;
    Ok(())
}

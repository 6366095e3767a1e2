//! `kvant eval`: what each cache preset costs in quality on a text of the user's, against a 16-bit
//! cache, and what it takes in memory.

mod hidden;
mod peak;
mod report;

use std::fs;
use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use kvant_bench::{Candidate, Needle, QualityLoad, needles, occupancy, quality, with_dense};
use kvant_engine::Window;
use kvant_kv_cache::{Wish, scale_rule};
use kvant_models::{Decoder, DecoderSpec};
use kvant_text::Tokenizer;

use crate::cli::EvalArgs;
use crate::config::CacheConfig;
use crate::words::Words;
use crate::{facts, load, machine, progress, text};
use report::{NeedleTable, QualityTable, Report};

pub(crate) fn run(args: &EvalArgs) -> Result<()> {
    let mut config = args.settings.config()?;
    if args.peak_of.is_some() {
        // What a process takes is a figure of the CPU's road.
        "cpu".clone_into(&mut config.model.device);
    }
    load::prepare(&config, true)?;
    let opened = load::open(&config)?;
    let spec = opened.files.spec()?;
    check(args, &config.cache, &spec)?;
    let candidates = candidates(args, &config.cache, &spec)?;
    let caches = with_dense(&candidates)?;
    if let Some(index) = args.peak_of {
        let cache = caches.get(index).context("--peak-of names no cache")?;
        let grown = peak::grown(&Arc::new(opened.decoder()?), cache, longest(args))?;
        return Ok(writeln!(std::io::stdout(), "{grown}")?);
    }
    let words = Words::load(&opened.files)?;
    let text = tokens(args, &words.tokenizer)?;
    let hidden = hidden(args, &words.tokenizer, &text)?;
    let occupancy = occupancy(&candidates)?;
    // Before the weights are here too.
    let converting =
        watched("memory", |progress| peak::converting(&caches, longest(args), progress))?;
    let (decoder, seed) = (Arc::new(opened.decoder()?), config.cache.seed);
    let bench = Bench { decoder, candidates, begin: words.tokenizer.begins_with(), seed };
    let report = Report {
        model: opened.facts.name.clone(),
        text: args.text.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        version: env!("CARGO_PKG_VERSION"),
        processor: machine::processor(),
        threads: load::threads(&config),
        command: command(),
        windows: args.windows,
        quality: bench.quality(args, &text)?,
        needles: bench.needles(hidden)?,
        occupancy,
        converting,
    };
    if let Some(folder) = &args.report {
        report.write(folder)?;
    }
    let text = if args.json { report.json()? + "\n" } else { report.to_string() };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// What can be refused before anything is read.
fn check(args: &EvalArgs, cache: &CacheConfig, spec: &DecoderSpec) -> Result<()> {
    let context = longest(args);
    if context > spec.context {
        bail!("--context is {context}, the model was made for {} tokens", spec.context);
    }
    if let Some(batch) = args.batch.iter().find(|batch| **batch > args.windows) {
        bail!("--batch is {batch}, but --windows is {}; raise --windows", args.windows);
    }
    let CacheConfig { key_bits, value_bits, bits, layers, .. } = cache;
    if *key_bits != 0 || *value_bits != 0 || !bits.is_empty() || !layers.is_empty() {
        bail!(
            "kvant eval compares presets; write --presets k3v8 for 3 and 8 bits, without {}",
            "--k-bits, --v-bits, --kv-bits and cache.layers"
        );
    }
    if let Some(folder) = &args.report {
        fs::create_dir_all(folder).with_context(|| format!("--report {}", folder.display()))?;
    }
    Ok(())
}

fn longest(args: &EvalArgs) -> usize {
    args.context.iter().copied().max().unwrap_or_default() as usize
}

/// As it was typed, the program by its name.
fn command() -> String {
    let shown = |arg: String| if arg.contains(' ') { format!("{arg:?}") } else { arg };
    let rest = std::env::args_os().skip(1).map(|arg| shown(arg.to_string_lossy().into_owned()));
    std::iter::once("kvant".to_owned()).chain(rest).collect::<Vec<_>>().join(" ")
}

/// Every preset with every scale rule.
fn candidates(args: &EvalArgs, cache: &CacheConfig, spec: &DecoderSpec) -> Result<Vec<Candidate>> {
    let configured = [cache.scale_rule.clone()];
    let rules = if args.scale_rule.is_empty() { &configured[..] } else { &args.scale_rule };
    let mut candidates = Vec::new();
    for preset in &args.presets {
        for rule in rules {
            let wish = Wish {
                preset: preset.parse()?,
                protect: cache.protect,
                scale_rule: scale_rule(rule)?,
                ..Wish::default()
            };
            let name = if rule == "default" { preset.clone() } else { format!("{preset} {rule}") };
            candidates.push(Candidate { name, shape: facts::cache_shape(spec, &wish)? });
        }
    }
    Ok(candidates)
}

/// The text with the token that begins one, if the model wants it; it must be as long as the
/// windows need it.
fn tokens(args: &EvalArgs, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let path = &args.text;
    let text = tokenizer.encode(&text::read(path)?, false)?;
    let tokens: Vec<u32> = tokenizer.begins_with().into_iter().chain(text).collect();
    let needed = longest(args) * args.windows as usize;
    if tokens.len() < needed {
        bail!(
            "{}: has {} tokens, {} windows of {} need {needed}; lower --windows or --context",
            path.display(),
            tokens.len(),
            args.windows,
            longest(args)
        );
    }
    Ok(tokens)
}

/// One after the other; of each the first half is the prompt. In a batch prompts differ in length,
/// so that the batch is ragged. The token that begins a text takes the place of a window's first,
/// as in llama.cpp's measurement: a model trained with it reads nothing well without it.
fn windows(tokens: &[u32], begin: Option<u32>, context: u32, batch: u32) -> Vec<Window> {
    let window = |(index, tokens): (usize, &[u32])| {
        let shorter = if batch > 1 { index * 37 % (tokens.len() / 4).max(1) } else { 0 };
        let first = begin.unwrap_or(tokens[0]);
        let tokens: Vec<u32> = std::iter::once(first).chain(tokens[1..].iter().copied()).collect();
        Window { prompt: (tokens.len() / 2 - shorter).max(1), tokens }
    };
    tokens.chunks_exact(context as usize).enumerate().map(window).collect()
}

/// The needles of every context.
fn hidden(args: &EvalArgs, tokenizer: &Tokenizer, text: &[u32]) -> Result<Vec<(u32, Vec<Needle>)>> {
    let contexts = args.context.iter().filter(|_| args.needles > 0);
    let needles =
        |context: &u32| Ok((*context, hidden::needles(args, tokenizer, text, *context as usize)?));
    contexts.map(needles).collect()
}

/// A decoder and the caches to be judged by it.
struct Bench {
    decoder: Arc<Decoder>,
    candidates: Vec<Candidate>,
    /// The token that begins a text.
    begin: Option<u32>,
    /// Of the rotations.
    seed: u64,
}

impl Bench {
    fn quality(&self, args: &EvalArgs, text: &[u32]) -> Result<Vec<QualityTable>> {
        let mut tables = Vec::new();
        for context in &args.context {
            for batch in &args.batch {
                let text = &text[..*context as usize * args.windows as usize];
                let windows = windows(text, self.begin, *context, *batch);
                let load = QualityLoad { windows, batch: *batch as usize, seed: self.seed };
                let rows = watched(&format!("{context} tokens, batch {batch}"), |progress| {
                    quality(&self.decoder, &self.candidates, &load, progress)
                })?;
                tables.push(QualityTable { context: *context, batch: *batch, rows });
            }
        }
        Ok(tables)
    }

    fn needles(&self, hidden: Vec<(u32, Vec<Needle>)>) -> Result<Vec<NeedleTable>> {
        let table = |(context, hidden): (u32, Vec<Needle>)| {
            let rows = watched(&format!("{context} tokens, needles"), |progress| {
                needles(&self.decoder, &self.candidates, &hidden, self.seed, progress)
            })?;
            Ok(NeedleTable { context, rows })
        };
        hidden.into_iter().map(table).collect()
    }
}

/// Runs with a bar of its own.
fn watched<T>(message: &str, run: impl FnOnce(&mut dyn FnMut(u64, u64)) -> Result<T>) -> Result<T> {
    let bar = progress::tokens(message);
    let result = run(&mut |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_window_begins_as_a_text_of_the_model_does() {
        let read = |begin, batch| {
            let windows = windows(&[9, 1, 2, 3, 4, 5, 6, 7, 8], begin, 4, batch);
            windows.into_iter().map(|window| (window.tokens, window.prompt)).collect::<Vec<_>>()
        };
        assert_eq!(read(None, 1), [(vec![9, 1, 2, 3], 2), (vec![4, 5, 6, 7], 2)]);
        assert_eq!(read(Some(9), 1), [(vec![9, 1, 2, 3], 2), (vec![9, 5, 6, 7], 2)]);
    }
}

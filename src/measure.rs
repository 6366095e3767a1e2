//! `kvant bench`: offline throughput of the engine, without HTTP and without text.

use std::io::Write;

use anyhow::Result;
use kvant_bench::{Load, Table, offline};

use crate::cli::BenchArgs;
use crate::load;

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let mut config = args.settings.config()?;
    let most = args.concurrency.iter().copied().max().unwrap_or(1) as usize;
    // The measurement is of so many streams at once, not of the queue.
    config.scheduler.sequences = config.scheduler.sequences.max(most);
    config.scheduler.waiting_requests = config.scheduler.waiting_requests.max(most);
    let (opened, handle) = load::engine(&config)?;
    let threads = load::threads(&config);
    let mut table = Table { model: opened.facts.name.clone(), threads, rows: Vec::new() };
    for concurrency in &args.concurrency {
        table.rows.push(offline(
            &handle,
            &Load {
                prompt_tokens: args.prompt_tokens,
                output_tokens: args.output_tokens,
                concurrency: *concurrency,
                seed: args.seed,
            },
        )?);
    }
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{:#}", serde_json::to_value(&table)?)?;
    } else {
        write!(out, "{table}")?;
    }
    Ok(())
}

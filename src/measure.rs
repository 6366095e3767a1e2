//! `kvant bench`: offline throughput of the engine, without HTTP and without text; the kernels of
//! the packed cache, without a model; or a running server, by `client`.

use std::fmt::Display;
use std::io::Write;

use anyhow::Result;
use kvant_bench::{HeadShape, KernelLoad, Load, Table, kernels, offline};
use serde::Serialize;

use crate::cli::{BenchArgs, BenchPart, KernelArgs};
use crate::{client, load, machine};

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    match &args.part {
        Some(BenchPart::Kernels(args)) => return run_kernels(args),
        Some(BenchPart::Serve(args)) => return client::run(args),
        None => {}
    }
    let mut config = args.settings.config()?;
    let most = args.concurrency.iter().copied().max().unwrap_or(1) as usize;
    // The measurement is of so many streams at once, not of the queue.
    config.scheduler.sequences = config.scheduler.sequences.max(most);
    config.scheduler.waiting_requests = config.scheduler.waiting_requests.max(most);
    // Streams are read one after the other.
    let most = args.output_tokens as usize;
    config.scheduler.unread_tokens = config.scheduler.unread_tokens.max(most);
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
    print(&table, args.json)
}

fn run_kernels(args: &KernelArgs) -> Result<()> {
    let threads = args.threads.map_or_else(machine::physical_cores, |threads| threads as usize);
    let shape = HeadShape {
        kv_heads: args.kv_heads as usize,
        group: args.group as usize,
        dim: args.dim as usize,
    };
    let table = kernels(&KernelLoad {
        shape,
        widths: args.widths.clone(),
        batches: args.batch.clone(),
        contexts: args.context.clone(),
        rounds: args.rounds,
        threads,
        seed: args.seed,
        free_bytes: machine::available_bytes()?,
    })?;
    print(&table, args.json)
}

fn print<T: Display + Serialize>(table: &T, json: bool) -> Result<()> {
    let mut out = std::io::stdout();
    if json {
        writeln!(out, "{:#}", serde_json::to_value(table)?)?;
    } else {
        write!(out, "{table}")?;
    }
    Ok(())
}

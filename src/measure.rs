//! `kvant bench`: offline throughput of the engine, without HTTP and without text; the kernels of
//! the packed cache, without a model; or a running server, by `client`.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use kvant_bench::{Case, HeadShape, KernelLoad, Table, kernels, offline};
use kvant_engine::Handle;
use kvant_kv_cache::PAGE_TOKENS;
use serde_json::json;

use crate::cli::{BenchArgs, BenchPart, KernelArgs};
use crate::config::Config;
use crate::load::Opened;
use crate::{client, load, machine, plan};

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    match &args.part {
        Some(BenchPart::Kernels(args)) => return run_kernels(args),
        Some(BenchPart::Serve(args)) => return client::run(args),
        None => {}
    }
    let cases = cases(args);
    let config = config(args, &cases)?;
    load::prepare(&config, true)?;
    let begin = Instant::now();
    let opened = load::open(&config)?;
    for case in &cases {
        fits(*case, &opened)?;
    }
    let handle = opened.start(&config)?;
    let start_s = begin.elapsed().as_secs_f64();
    warm_up(&handle, &config, &opened, args.seed)?;
    let mut table = Table {
        model: opened.facts.name.clone(),
        device: opened.device.to_string(),
        threads: load::threads(&config),
        cache: config.cache.preset.clone(),
        rows: Vec::new(),
    };
    for case in cases {
        let row = offline(&handle, &case.load(args.seed));
        table.rows.push(row.with_context(|| format!("case {case}"))?);
    }
    report(&table, &opened, start_s, args.json)
}

/// The loads that are asked for either way.
fn cases(args: &BenchArgs) -> Vec<Case> {
    if !args.cases.is_empty() {
        return args.cases.clone();
    }
    let BenchArgs { prompt_tokens, output_tokens, .. } = *args;
    let case = |concurrency: &u32| Case { concurrency: *concurrency, prompt_tokens, output_tokens };
    args.concurrency.iter().map(case).collect()
}

/// The configuration with room for every case: what is measured is so many streams at once, not
/// the queue.
fn config(args: &BenchArgs, cases: &[Case]) -> Result<Config> {
    let mut config = args.settings.config()?;
    let most = |of: &dyn Fn(&Case) -> u64| cases.iter().map(of).max().unwrap_or(1) as usize;
    let streams = most(&|case| u64::from(case.concurrency));
    let prompts = most(&|case| u64::from(case.concurrency) * u64::from(case.prompt_tokens));
    let scheduler = &mut config.scheduler;
    scheduler.sequences = scheduler.sequences.max(streams);
    scheduler.waiting_requests = scheduler.waiting_requests.max(streams);
    scheduler.waiting_tokens = scheduler.waiting_tokens.max(prompts);
    // Streams are read one after the other.
    let outputs = most(&|case| u64::from(case.output_tokens));
    scheduler.unread_tokens = scheduler.unread_tokens.max(outputs);
    if scheduler.context_tokens == 0 && !args.cases.is_empty() {
        // Staging for a longer context would take memory from the cache.
        scheduler.context_tokens = most(&|case| tokens(*case));
    }
    Ok(config)
}

/// Tokens of one sequence at its end.
fn tokens(case: Case) -> u64 {
    u64::from(case.prompt_tokens) + u64::from(case.output_tokens)
}

/// Refuses a case whose streams would wait for each other's pages.
fn fits(case: Case, opened: &Opened) -> Result<()> {
    let one = tokens(case).div_ceil(PAGE_TOKENS as u64);
    let (pages, needed) = (opened.plan.cache_pages as u64, one * u64::from(case.concurrency));
    if needed > pages {
        let size = PAGE_TOKENS as u64;
        bail!(
            "case {case} needs a cache of {} tokens, there is room for {}; take fewer streams or \
             tokens, a smaller --kv-cache, or raise --memory-fraction",
            needed * size,
            pages * size
        );
    }
    Ok(())
}

/// Lets the engine of a GPU find out how many tokens a step may have; it begins with few.
fn warm_up(handle: &Handle, config: &Config, opened: &Opened, seed: u64) -> Result<()> {
    if opened.device.gpu().is_none() {
        return Ok(());
    }
    let Config { scheduler, .. } = config;
    let tokens = 2 * scheduler.step_tokens_on(opened.device.name());
    let prompt = tokens.min(opened.plan.context_tokens.saturating_sub(2)).max(1);
    let most = scheduler.sequences.min(scheduler.waiting_requests);
    let streams = tokens.div_ceil(prompt).min(most);
    let case = Case { concurrency: streams as u32, prompt_tokens: prompt as u32, output_tokens: 2 };
    offline(handle, &case.load(seed.wrapping_add(2))).context("warm-up").map(drop)
}

fn report(table: &Table, opened: &Opened, start_s: f64, json: bool) -> Result<()> {
    let mut out = std::io::stdout();
    if json {
        let mut value = serde_json::to_value(table)?;
        value["memory_plan"] = plan::json(&opened.plan);
        value["context_tokens"] = json!(opened.plan.context_tokens);
        value["start_s"] = json!(start_s);
        writeln!(out, "{value:#}")?;
    } else {
        writeln!(out, "started in {start_s:.1} s; {}", opened.plan)?;
        writeln!(out, "{} tokens would fit", plan::fit_tokens(&opened.plan))?;
        write!(out, "{table}")?;
    }
    Ok(())
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
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{:#}", serde_json::to_value(&table)?)?;
    } else {
        write!(out, "{table}")?;
    }
    Ok(())
}

//! `kvant bench serve`: load on a running server of the OpenAI dialect, measured from outside.
//!
//! A thread a stream, blocking reads: the time of a token is that of the read that brought it.

mod chunk;
mod plan;
mod request;
mod sse;

#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kvant_bench::{Answer, Failure, Served, random};
use serde_json::json;

use crate::cli::ClientArgs;
use crate::{progress, text};
use plan::{Plan, Source};
use request::Server;

pub(crate) use plan::{Endpoint, Prompts, Span};

/// Most requests under way at once, whatever the rate: each has a thread and a connection.
pub(crate) const STREAMS: u32 = 1024;

/// What became of a request.
type Outcome = Result<Answer, Failure>;

pub(crate) fn run(args: &ClientArgs) -> Result<()> {
    let source = source(args)?;
    let timeout = Duration::from_secs(u64::from(args.timeout));
    let server = Server::find(&args.url, args.model.as_deref(), args.api_key.as_deref(), timeout)?;
    let plan = Plan {
        model: server.model.clone(),
        endpoint: args.endpoint,
        source,
        input_tokens: args.input_tokens,
        output_tokens: args.output_tokens,
        seed: args.seed,
    };
    server.probe(&plan)?;
    let start = Instant::now();
    let outcomes = send_all(args, &plan, &server, start)?;
    let served = Served::of(&outcomes, start.elapsed(), args.goodput);
    report(args, &server, &served)?;
    match served.error_kinds.values().next() {
        Some(first) if served.completed == 0 => {
            bail!("none of {} requests went well: {}", served.requests, first.example)
        }
        _ => Ok(()),
    }
}

fn source(args: &ClientArgs) -> Result<Source> {
    if let Some(path) = &args.text {
        return Ok(Source::Text(words_of(path)?));
    }
    let usual = if args.endpoint == Endpoint::Chat { Prompts::Words } else { Prompts::Ids };
    match args.prompts.unwrap_or(usual) {
        Prompts::Words => Ok(Source::Words),
        Prompts::Ids if args.endpoint == Endpoint::Chat => {
            bail!("a chat is of text, not of token ids; give --prompts words or --text FILE")
        }
        Prompts::Ids => Ok(Source::Ids { vocab: args.vocab }),
    }
}

fn words_of(path: &Path) -> Result<Vec<String>> {
    let words: Vec<String> = text::read(path)?.split_whitespace().map(str::to_owned).collect();
    if words.is_empty() {
        bail!("{}: has no words", path.display());
    }
    Ok(words)
}

/// Sends every request when it is due and waits for the last answer.
fn send_all(
    args: &ClientArgs,
    plan: &Plan,
    server: &Server,
    start: Instant,
) -> Result<Vec<Outcome>> {
    let arrivals = args.rate.map(|rate| random::arrivals(rate, args.requests, args.seed));
    let streams = if arrivals.is_some() { STREAMS } else { args.concurrency };
    let bar = progress::requests("sending", args.requests);
    let next = AtomicU32::new(0);
    let worker = || {
        let mut outcomes = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= args.requests {
                return outcomes;
            }
            let order = plan.order(u64::from(number));
            // In an open loop, time in line for a free stream counts as the server's.
            let due = arrivals.as_ref().map_or_else(Instant::now, |arrivals| {
                start + Duration::from_secs_f64(arrivals[number as usize])
            });
            thread::sleep(due.saturating_duration_since(Instant::now()));
            outcomes.push(server.complete(&order, due));
            bar.inc(1);
        }
    };
    let outcomes = thread::scope(|scope| -> Result<Vec<Outcome>> {
        let spawn = |_| thread::Builder::new().spawn_scoped(scope, worker);
        let workers = (0..streams.min(args.requests)).map(spawn);
        let workers = workers.collect::<Result<Vec<_>, _>>().inspect_err(|_| {
            // Those that did start have nothing left to take.
            next.store(args.requests, Ordering::Relaxed);
        });
        let workers = workers.context("cannot start a thread a stream; lower --concurrency")?;
        let joined = workers.into_iter().map(|w| w.join().expect("workers do not panic"));
        Ok(joined.flatten().collect())
    })?;
    bar.finish_and_clear();
    Ok(outcomes)
}

fn report(args: &ClientArgs, server: &Server, served: &Served) -> Result<()> {
    let mut out = std::io::stdout();
    if args.json {
        let mut value = serde_json::to_value(served)?;
        value["model"] = json!(server.model);
        value["url"] = json!(server.url);
        value["endpoint"] = json!(args.endpoint.path());
        value["concurrency"] = json!(args.rate.is_none().then_some(args.concurrency));
        value["rate"] = json!(args.rate);
        value["seed"] = json!(args.seed);
        writeln!(out, "{value:#}")?;
    } else {
        let pace = match args.rate {
            Some(rate) => format!("{rate} requests/s, Poisson"),
            None => format!("{} at once", args.concurrency),
        };
        let (model, url, path) = (&server.model, &server.url, args.endpoint.path());
        writeln!(out, "{model} at {url}{path}, {pace}")?;
        write!(out, "{served}")?;
    }
    Ok(())
}

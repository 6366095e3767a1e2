//! Flags of `bench serve`.

use std::path::PathBuf;

use clap::Args;
use kvant_bench::Bounds;

use super::count;
use crate::client::{Endpoint, Prompts, STREAMS, Span};

/// Requests of a load, at most.
const REQUESTS: u32 = 100_000;
/// Requests a second, at most.
const RATE: f64 = 10_000.0;

#[derive(Debug, Args)]
pub(crate) struct ClientArgs {
    /// Where the server listens, http or https
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub(crate) url: String,
    /// Model to ask for [default: the first that the server lists]
    #[arg(long, short)]
    pub(crate) model: Option<String>,
    /// Sent as a bearer token
    #[arg(long, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
    /// completions or chat
    #[arg(long, default_value = "completions")]
    pub(crate) endpoint: Endpoint,
    /// Requests under way at every moment: the next is sent when one has ended
    #[arg(long, short, default_value_t = 8, value_parser = count::<STREAMS>)]
    pub(crate) concurrency: u32,
    /// Send so many requests a second instead, at random moments (Poisson), whatever is under way,
    /// up to 1024; times count from the moment that a request was due
    #[arg(long, conflicts_with = "concurrency", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// Requests to send
    #[arg(long, short = 'n', default_value_t = 64, value_parser = count::<REQUESTS>)]
    pub(crate) requests: u32,
    /// Tokens of a prompt: a number, or a range with its ends as likely as all between
    #[arg(long, value_name = "N|A..B", default_value = "128")]
    pub(crate) input_tokens: Span,
    /// Tokens of an answer, likewise; end tokens are ignored
    #[arg(long, value_name = "N|A..B", default_value = "64")]
    pub(crate) output_tokens: Span,
    /// ids: random token ids, exact in length; words: random words, about one token each
    /// [default: ids, words for chat]
    #[arg(long, conflicts_with = "text", value_name = "ids|words")]
    pub(crate) prompts: Option<Prompts>,
    /// Take prompts from this UTF-8 text, a word for a token
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// Token ids of prompts are below it
    #[arg(long, value_name = "IDS", default_value_t = 2000, value_parser = vocab)]
    pub(crate) vocab: u32,
    /// Seed of lengths, prompts and moments; take another one for every load on a server that keeps
    /// prompts
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Seconds that a request may take
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = count::<86_400>)]
    pub(crate) timeout: u32,
    /// Count requests within all of these milliseconds, such as ttft:500,itl:100; also tpot and
    /// latency. For itl every gap of a request must be within
    #[arg(long, value_name = "BOUNDS")]
    pub(crate) goodput: Option<Bounds>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Requests a second.
fn rate(text: &str) -> Result<f64, String> {
    let read = text.parse().ok().filter(|rate: &f64| *rate >= 0.001 && *rate <= RATE);
    read.ok_or_else(|| format!("it must be a number within 0.001..={RATE}"))
}

/// Above the ids that prompts never have.
fn vocab(text: &str) -> Result<u32, String> {
    let read = text.parse().ok().filter(|ids| (512..=10_000_000).contains(ids));
    read.ok_or_else(|| "it must be a whole number within 512..=10000000".to_owned())
}

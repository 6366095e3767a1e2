//! Flags of `kvant eval`; lists are read item by item, so that a wrong one is named.

use std::path::PathBuf;

use clap::Args;
use kvant_kv_cache::{Preset, scale_rule};

use super::{Settings, count};

/// Contexts from here on have a prompt and something to predict.
const LEAST_CONTEXT: u32 = 4;

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// The text to read, UTF-8
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Tokens of a window, of which the second half is scored; one table each
    #[arg(long, value_delimiter = ',', default_value = "512", value_parser = context)]
    pub(crate) context: Vec<u32>,
    /// Windows to read, from the start of the text on
    #[arg(long, default_value_t = 8, value_parser = count::<10_000>)]
    pub(crate) windows: u32,
    /// Windows at the same time, one table each; above 1 with prompts of different lengths
    #[arg(long, value_delimiter = ',', default_value = "1,8", value_parser = count::<64>)]
    pub(crate) batch: Vec<u32>,
    /// Presets to compare with the 16-bit cache, or widths of keys and values such as k3v8
    #[arg(long, value_delimiter = ',', default_value = "auto,tq8,k8v4,tq4,k4v3,tq3,tq2",
          value_parser = preset)]
    pub(crate) presets: Vec<String>,
    /// Scale rules for each preset: default, plain, matched, least_squares, unbiased
    /// [default: cache.scale_rule]
    #[arg(long, value_delimiter = ',', value_parser = rule)]
    pub(crate) scale_rule: Vec<String>,
    /// Sentences to hide and ask for, at each depth; 0 for none
    #[arg(long, default_value_t = 4, value_parser = needles)]
    pub(crate) needles: u32,
    /// Parts of the text before a hidden sentence
    #[arg(long, value_delimiter = ',', default_value = "0.1,0.3,0.5,0.7,0.9",
          value_parser = depth)]
    pub(crate) depths: Vec<f64>,
    /// Seed of the hidden sentences
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Write report.md and report.json to this folder too
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Print the memory that one cache takes, by its row: what the command asks of its own kind
    #[arg(long, hide = true)]
    pub(crate) peak_of: Option<usize>,
}

fn context(text: &str) -> Result<u32, String> {
    let read = count::<1_000_000>(text).ok().filter(|tokens| *tokens >= LEAST_CONTEXT);
    read.ok_or_else(|| format!("it must be a whole number within {LEAST_CONTEXT}..=1000000"))
}

fn needles(text: &str) -> Result<u32, String> {
    let read = text.parse().ok().filter(|number| (0..=1000).contains(number));
    read.ok_or_else(|| "it must be a whole number within 0..=1000".to_owned())
}

fn preset(text: &str) -> Result<String, String> {
    text.parse::<Preset>().map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn rule(text: &str) -> Result<String, String> {
    scale_rule(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn depth(text: &str) -> Result<f64, String> {
    let read = text.parse().ok().filter(|depth| (0.0..=1.0).contains(depth));
    read.ok_or_else(|| "it must be a number within 0..=1".to_owned())
}

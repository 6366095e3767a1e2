//! Flags of every subcommand, and how they become a `Config`.

mod bench;
mod client;
mod eval;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Sources};
pub(crate) use bench::{BenchArgs, BenchPart, KernelArgs};
pub(crate) use client::ClientArgs;
pub(crate) use eval::EvalArgs;

/// Continuous-batching LLM inference server with an OpenAI-compatible API.
#[derive(Debug, Parser)]
#[command(name = "kvant", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a model over HTTP
    Serve(ServeArgs),
    /// Talk to a model in the terminal
    Chat(ChatArgs),
    /// Continue one prompt and print the text
    Generate(GenerateArgs),
    /// Download a model and print its path
    Fetch(FetchArgs),
    /// Show what would be loaded and what fits into memory
    Inspect(InspectArgs),
    /// Measure offline throughput, the kernels alone, or a running server
    Bench(BenchArgs),
    /// Measure what each cache preset costs in quality on a text
    Eval(EvalArgs),
    /// Show what this machine has, and check every GPU kernel against the CPU
    Doctor(DoctorArgs),
    /// Make a key for clients and the line that goes into the server's file of keys
    Key(KeyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// TCP port, 0 for any free one [default: 8000]
    #[arg(long, short)]
    pub(crate) port: Option<String>,
    /// Refuse requests with unknown fields
    #[arg(long)]
    pub(crate) strict: bool,
    /// How calls of tools are spelled [default: auto]
    #[arg(long, alias = "tool-call-parser")]
    pub(crate) tool_parser: Option<String>,
    /// How thoughts are marked [default: auto]
    #[arg(long)]
    pub(crate) reasoning_parser: Option<String>,
    /// Path of a unix socket to listen on in place of the port
    #[arg(long)]
    pub(crate) uds: Option<String>,
    /// File of keys, lines of `kvant key`
    #[arg(long)]
    pub(crate) keys: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    /// What the log and the metrics call it
    #[arg(long)]
    pub(crate) name: String,
    /// It may ask what is under /admin too
    #[arg(long)]
    pub(crate) admin: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) settings: Settings,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// Text of the system message
    #[arg(long)]
    pub(crate) system: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) settings: Settings,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// The prompt; read from stdin if not given
    #[arg(long)]
    pub(crate) prompt: Option<String>,
    /// Continue the prompt as it is, without the chat template
    #[arg(long)]
    pub(crate) raw: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FetchArgs {
    /// Model name, org/name on the hub, or a path
    #[arg(default_value = crate::fetch::DEFAULT_MODEL)]
    pub(crate) model: String,
    /// Branch, tag or commit on the hub
    #[arg(long, default_value = "main")]
    pub(crate) revision: String,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// auto, cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
}

/// How tokens are chosen; the same meaning as in the HTTP API.
#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// Tokens to generate at most [default: what the context has left]
    #[arg(long, value_parser = count::<{ u32::MAX }>)]
    pub(crate) max_tokens: Option<u32>,
    /// 0 takes the likeliest token always
    #[arg(long, default_value_t = 0.7, value_parser = number::<0, 2>)]
    pub(crate) temperature: f32,
    /// Smallest set of tokens whose probability reaches it
    #[arg(long, default_value_t = 1.0, value_parser = number::<0, 1>)]
    pub(crate) top_p: f32,
    /// Drop tokens less likely than this part of the likeliest
    #[arg(long, default_value_t = 0.0, value_parser = number::<0, 1>)]
    pub(crate) min_p: f32,
    /// Keep the k likeliest tokens
    #[arg(long, value_parser = count::<{ u32::MAX }>)]
    pub(crate) top_k: Option<u32>,
    /// Divides the logits of tokens seen before; 1 is off
    #[arg(long, default_value_t = 1.0, value_parser = number::<0, 2>)]
    pub(crate) repetition_penalty: f32,
    /// Same seed, same text
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Text that ends the answer; may be repeated
    #[arg(long)]
    pub(crate) stop: Vec<String>,
}

/// Which model, and everything of the configuration that has a flag.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// Model name, org/name on the hub, a folder or a .gguf file [default: smollm2-135m-instruct]
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub(crate) positional: Option<String>,
    /// The same, as a flag
    #[arg(long, short)]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) values: ValueArgs,
    /// Built-in profile: low-memory
    #[arg(long)]
    pub(crate) profile: Option<String>,
    /// TOML file of settings; config/default.toml documents every key
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Set any key, for example --set limits.body_bytes=1000000
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = assignment)]
    pub(crate) set: Vec<(String, String)>,
}

/// Keys with a flag of their own.
#[derive(Debug, Args)]
pub(crate) struct ValueArgs {
    /// Branch, tag or commit on the hub
    #[arg(long)]
    pub(crate) revision: Option<String>,
    /// `dummy`: random weights from a config.json alone
    #[arg(long)]
    pub(crate) load_format: Option<String>,
    /// auto, cpu, cuda, cuda:N or metal [default: auto]
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Threads that compute [default: physical cores]
    #[arg(long)]
    pub(crate) threads: Option<String>,
    /// Longest prompt and answer together [default: the model's]
    #[arg(long)]
    pub(crate) context_tokens: Option<String>,
    /// How keys and values are kept: auto, f16, tq8, k8v4, tq4, k4v3, tq3 or tq2
    #[arg(long, value_name = "PRESET")]
    pub(crate) kv_cache: Option<String>,
    /// Bits of keys and values in place of the preset's: 4, or 3.5 for keys of 3 and values of 4
    #[arg(long)]
    pub(crate) kv_bits: Option<String>,
    /// Bits of keys in place of the preset's
    #[arg(long)]
    pub(crate) k_bits: Option<String>,
    /// Bits of values in place of the preset's
    #[arg(long)]
    pub(crate) v_bits: Option<String>,
    /// Tokens of the key/value cache [default: what fits]
    #[arg(long)]
    pub(crate) cache_tokens: Option<String>,
    /// fused, or reference: slow, what the kernels are tested against
    #[arg(long)]
    pub(crate) attention: Option<String>,
    /// Part of the free memory that may be taken
    #[arg(long)]
    pub(crate) memory_fraction: Option<String>,
    /// Sequences that compute at the same time
    #[arg(long)]
    pub(crate) sequences: Option<String>,
    /// Prompt tokens of one engine step
    #[arg(long)]
    pub(crate) step_tokens: Option<String>,
    /// off, error, warn, info, debug or trace
    #[arg(long)]
    pub(crate) log_level: Option<String>,
}

impl Settings {
    /// The configuration of a command that serves no HTTP.
    pub(crate) fn config(&self) -> Result<Config> {
        self.config_with(&[])
    }

    /// The configuration, with further flags of the subcommand: flag, key, value.
    pub(crate) fn config_with(&self, more: &[(&str, &str, &Option<String>)]) -> Result<Config> {
        let model = self.positional.clone().or_else(|| self.model.clone());
        let values = &self.values;
        let own = [
            ("--model", "model.name", &model),
            ("--revision", "model.revision", &values.revision),
            ("--load-format", "model.load_format", &values.load_format),
            ("--device", "model.device", &values.device),
            ("--threads", "model.threads", &values.threads),
            ("--context-tokens", "scheduler.context_tokens", &values.context_tokens),
            ("--kv-cache", "cache.preset", &values.kv_cache),
            ("--kv-bits", "cache.bits", &values.kv_bits),
            ("--k-bits", "cache.key_bits", &values.k_bits),
            ("--v-bits", "cache.value_bits", &values.v_bits),
            ("--cache-tokens", "cache.tokens", &values.cache_tokens),
            ("--attention", "cache.attention", &values.attention),
            ("--memory-fraction", "cache.memory_fraction", &values.memory_fraction),
            ("--sequences", "scheduler.sequences", &values.sequences),
            ("--step-tokens", "scheduler.step_tokens", &values.step_tokens),
            ("--log-level", "log.level", &values.log_level),
        ];
        let given = own.iter().chain(more).filter_map(|(flag, key, value)| {
            value.as_ref().map(|value| ((*flag).to_owned(), (*key).to_owned(), value.clone()))
        });
        let set = self.set.iter();
        let set = set.map(|(key, value)| (format!("--set {key}"), key.clone(), value.clone()));
        Ok(Config::load(&Sources {
            profile: self.profile.clone(),
            file: self.config.clone(),
            environment: environment(),
            flags: given.chain(set).collect(),
        })?)
    }
}

/// Variables whose name and value are text.
fn environment() -> Vec<(String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it must be SECTION.KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

/// A whole number from 1 on.
fn count<const MOST: u32>(text: &str) -> Result<u32, String> {
    let read = text.parse().ok().filter(|number| (1..=MOST).contains(number));
    read.ok_or_else(|| format!("it must be a whole number within 1..={MOST}"))
}

/// A finite number within two bounds.
fn number<const LEAST: i32, const MOST: i32>(text: &str) -> Result<f32, String> {
    let good = |number: &f32| (LEAST as f32..=MOST as f32).contains(number);
    let read = text.parse().ok().filter(good);
    read.ok_or_else(|| format!("it must be a number within {LEAST}..={MOST}"))
}

#[cfg(test)]
mod tests;

//! Flags of `bench` and `bench kernels`.

use clap::{Args, Subcommand};
use kvant_bench::{Case, NamedWidths};

use super::{ClientArgs, Settings, count};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) part: Option<BenchPart>,
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// Loads one after the other, in place of the three below: streams, tokens of a prompt, tokens
    /// of an answer, such as 1x1024/256,64x1024/256
    #[arg(long, value_delimiter = ',',
          conflicts_with_all = ["prompt_tokens", "output_tokens", "concurrency"])]
    pub(crate) cases: Vec<Case>,
    /// Tokens of every prompt
    #[arg(long, default_value_t = 128, value_parser = count::<1_000_000>)]
    pub(crate) prompt_tokens: u32,
    /// Tokens generated for every prompt
    #[arg(long, default_value_t = 64, value_parser = count::<1_000_000>)]
    pub(crate) output_tokens: u32,
    /// Sequences at the same time, one row of the table each
    #[arg(long, value_delimiter = ',', default_value = "1,8", value_parser = count::<4096>)]
    pub(crate) concurrency: Vec<u32>,
    /// Seed of the prompts' token ids
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchPart {
    /// Measure attention over the packed cache and encoding, without a model
    Kernels(KernelArgs),
    /// Send load to a running server of the OpenAI dialect and measure its answers
    Serve(ClientArgs),
}

#[derive(Debug, Args)]
pub(crate) struct KernelArgs {
    /// Size of a head
    #[arg(long, default_value_t = 128, value_parser = count::<1024>)]
    pub(crate) dim: u32,
    /// Key heads
    #[arg(long, default_value_t = 8, value_parser = count::<1024>)]
    pub(crate) kv_heads: u32,
    /// Query heads of a key head
    #[arg(long, default_value_t = 4, value_parser = count::<1024>)]
    pub(crate) group: u32,
    /// Tokens of each sequence, multiples of 64
    #[arg(long, value_delimiter = ',', default_value = "1024,16384",
          value_parser = count::<10_000_000>)]
    pub(crate) context: Vec<u32>,
    /// Sequences of a call
    #[arg(long, value_delimiter = ',', default_value = "1,8", value_parser = count::<4096>)]
    pub(crate) batch: Vec<u32>,
    /// Bits of keys and values, such as tq4, tq3.5 or k8v4
    #[arg(long, value_delimiter = ',', default_value = "tq8,k8v4,tq4,tq3")]
    pub(crate) widths: Vec<NamedWidths>,
    /// Times that everything is timed
    #[arg(long, default_value_t = 11, value_parser = count::<10_000>)]
    pub(crate) rounds: u32,
    /// Threads that compute [default: physical cores]
    #[arg(long, value_parser = count::<1024>)]
    pub(crate) threads: Option<u32>,
    /// Seed of the numbers and of the order of pages
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

//! What the process takes at most while a prompt is converted. Each cache is measured in a process
//! of its own: memory that one has freed stays with the process, and the next would take it
//! unseen.

use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kvant_bench::{Candidate, converting_bytes};
use kvant_engine::prefill_alone;
use kvant_models::Decoder;

use super::report::{Converting, ConvertingRow};
use crate::machine;

/// From so many bytes on glibc is to give freed memory back at once. On its own it keeps some, more
/// or less as threads happen to run, and the peak is not of what is in use.
const GIVEN_BACK: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "131072");

/// One row a cache, each by this program with the same flags and `--peak-of` behind them.
pub(super) fn converting(
    caches: &[Candidate],
    prompt: usize,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Converting> {
    let counted = machine::watch_peak().is_some();
    let row = |(index, cache): (usize, &Candidate)| {
        let peak_bytes = if counted { Some(ask(index)?) } else { None };
        progress(((index + 1) * prompt) as u64, (caches.len() * prompt) as u64);
        let formula_bytes = converting_bytes(&cache.shape, prompt);
        Ok(ConvertingRow { name: cache.name.clone(), peak_bytes, formula_bytes })
    };
    let rows = caches.iter().enumerate().map(row).collect::<Result<_>>()?;
    Ok(Converting { prompt_tokens: prompt, rows })
}

fn ask(index: usize) -> Result<u64> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).args(["--peak-of", &index.to_string()]);
    let output = command.env(GIVEN_BACK.0, GIVEN_BACK.1).stdin(Stdio::null()).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the process that measures memory failed: {error}");
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| format!("{text:?} is no number of bytes"))
}

/// Bytes that this process grows by at most while it computes a prompt of so many tokens, which
/// ones does not matter.
pub(super) fn grown(decoder: &Arc<Decoder>, cache: &Candidate, prompt: usize) -> Result<u64> {
    let prompt: Vec<u32> = (0..prompt).map(|at| (at % decoder.spec().vocab) as u32).collect();
    // Weights are mapped and threads have their stacks before memory is watched.
    prefill_alone(decoder, &cache.shape, &prompt[..1])?;
    let before = machine::watch_peak().context("this system does not count memory")?;
    prefill_alone(decoder, &cache.shape, &prompt)?;
    let peak = machine::peak_bytes().context("this system does not count memory")?;
    Ok(peak.saturating_sub(before))
}

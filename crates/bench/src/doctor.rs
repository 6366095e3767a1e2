//! Checks of a GPU: every kernel against the CPU on the GPU at hand, one [`Check`] each, and two
//! runners computing the same steps.

mod agreement;
mod cache;
mod codec;
mod model;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use kvant_kernels::cpu::Path;
use kvant_kernels::device::{Gpu, Spec};
use kvant_kv_cache::{DeviceStore, Format, average_bits, bits};
use kvant_models::Decoder;

pub use agreement::{Agreement, agreement, sample_requests};
use cache::{Heads, LONG_PROMPTS, PROMPTS, Prompts, cache_error, strange_pages};
pub use model::{PairLoad, ahead_agreement, model_agreement, replay_agreement};

/// The largest relative error of attention: what queries of 15 bits and weights of 16 leave, on the
/// CPU as on a GPU.
const ATTEND_ERROR: f64 = 2e-3;

/// Part of the tokens that a model must choose as on the CPU, percent.
const SAME_PERCENT: f64 = 99.0;

/// Caches that a model is checked over.
const MODEL_PRESETS: [&str; 4] = ["f16", "auto", "tq8", "tq4"];

/// What came of one check.
#[derive(Clone, Debug)]
pub struct Check {
    /// Kernels and sizes.
    pub name: String,
    /// What was found, or why it is wrong.
    pub outcome: Result<String, String>,
}

impl Check {
    /// Runs a check.
    pub fn run(name: impl Into<String>, run: impl FnOnce() -> Result<String>) -> Self {
        Self { name: name.into(), outcome: run().map_err(|error| format!("{error:#}")) }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Ok(found) => write!(f, "ok      {}: {found}", self.name),
            Err(why) => write!(f, "FAILED  {}: {why}", self.name),
        }
    }
}

/// Heads and formats that are checked: all widths, the sizes that GPUs have kernels of their own
/// for, and one that they have not.
fn cases() -> Result<Vec<(Heads, &'static str, Format)>> {
    let heads = |dim, kv, group| Heads { q: kv * group, kv, dim };
    Ok(vec![
        (heads(64, 2, 1), "f16", Format::Dense),
        (heads(128, 2, 4), "f16", Format::Dense),
        (heads(80, 1, 3), "f16", Format::Dense),
        (heads(64, 1, 2), "tq4", packed(4, 4)?),
        (heads(128, 2, 4), "tq4", packed(4, 4)?),
        (heads(128, 2, 4), "k8v4", packed(8, 4)?),
        (heads(128, 1, 8), "tq8", packed(8, 8)?),
        (heads(80, 2, 3), "k4v3", packed(4, 3)?),
        (heads(96, 2, 1), "tq2", packed(2, 2)?),
        (heads(256, 1, 2), "k6v8", packed(6, 8)?),
    ])
}

fn packed(keys: usize, values: usize) -> Result<Format> {
    let mut widths = average_bits("4")?;
    widths.keys = bits(keys)?.unwrap_or(widths.keys);
    widths.values = bits(values)?.unwrap_or(widths.values);
    Ok(Format::TurboQuant(widths))
}

/// All checks of the cache's kernels; `each` gets them as they are done.
pub fn check_cache(gpu: &Gpu, each: &mut dyn FnMut(Check)) -> Result<()> {
    let cases = cases()?;
    let kernels = cases
        .iter()
        .map(|(heads, _, format)| Ok(DeviceStore::kernels(&heads.shape(*format), heads.q)?));
    let kernels: Vec<_> = kernels.collect::<Result<_>>()?;
    each(compiled(gpu, kernels.concat()));
    for (heads, name, format) in cases {
        let Heads { q, kv, dim } = heads;
        if let Format::TurboQuant(widths) = format {
            let name = format!("kv_rotate, kv_restore, kv_encode, kv_gather: {name}, {dim} wide");
            each(Check::run(name, || codec::bits_are_equal(gpu, (dim, q / kv), widths)));
        }
        let kernels = match format {
            Format::Dense => "kv_append, kv_attend_dense, kv_merge",
            Format::TurboQuant(_) => "kv_append, kv_encode, kv_attend, kv_combine",
        };
        let name = format!("{kernels}: {name}, heads {q}/{kv} of {dim}");
        each(attention(gpu, name, (heads, format), PROMPTS));
    }
    let (heads, name, format) = (Heads { q: 2, kv: 1, dim: 64 }, "tq4", packed(4, 4)?);
    let chunk = format!("kv_attend_dense in parts: {name}, a short chunk of a long prompt");
    each(attention(gpu, chunk, (heads, format), LONG_PROMPTS));
    each(Check::run(format!("kv_encode: {name}, numbers that are not finite"), || {
        let pages = strange_pages(gpu, heads, format)?;
        anyhow::ensure!(pages == 1, "{pages} pages were found to hold some, not 1");
        Ok("the page that holds some is counted when it is packed".to_owned())
    }));
    Ok(())
}

/// Attention of prompts, and of rows that follow them, beside the CPU's.
fn attention(gpu: &Gpu, name: String, (heads, format): (Heads, Format), prompts: Prompts) -> Check {
    Check::run(name, || {
        let error = cache_error(gpu, heads, format, prompts)?;
        anyhow::ensure!(
            error <= ATTEND_ERROR,
            "attention is off by {error:.1e}, {ATTEND_ERROR:.0e} at most"
        );
        Ok(format!("within {error:.1e} of the CPU"))
    })
}

/// Kernels of several caches, compiled together.
fn compiled(gpu: &Gpu, specs: Vec<Spec>) -> Check {
    Check::run("kernels are compiled, or taken from disk", || {
        let start = Instant::now();
        gpu.prepare(specs)?;
        Ok(format!("in {:.1} s", start.elapsed().as_secs_f64()))
    })
}

/// Checks of a whole model over several caches: the model's own kernels, products, sampling.
pub fn check_model(cpu: &Arc<Decoder>, on_gpu: (&Arc<Decoder>, &Gpu), each: &mut dyn FnMut(Check)) {
    let kernels = MODEL_PRESETS.map(|preset| model::kernels(cpu.spec(), preset));
    let kernels = kernels.into_iter().flat_map(Result::unwrap_or_default).collect();
    each(compiled(on_gpu.1, kernels));
    for preset in MODEL_PRESETS {
        each(Check::run(format!("model, {preset} cache"), || {
            let found = model_agreement(cpu, on_gpu, preset, &PairLoad::default())?;
            let Agreement { tokens, same, logprob, .. } = found;
            anyhow::ensure!(
                found.percent() >= SAME_PERCENT,
                "{same} of {tokens} tokens are the CPU's, at least {SAME_PERCENT} % should be"
            );
            Ok(format!(
                "{same} of {tokens} tokens are the CPU's, log-probabilities to {logprob:.4}"
            ))
        }));
    }
}

/// The instructions that the CPU's kernels use on this machine.
pub fn processor_path() -> String {
    format!("{:?}", Path::best()).to_lowercase()
}

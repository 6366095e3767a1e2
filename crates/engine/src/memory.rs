//! `MemoryPlan`: what the engine will take, laid out before anything is loaded; refuses what cannot
//! fit.

use std::fmt;

use kvant_kv_cache::{CacheShape, DeviceStore, PAGE_TOKENS, pages_for};
use kvant_models::{DecoderSpec, Workspace};

use crate::runner::LOGIT_ROWS;

/// What a driver takes beside what it is asked for, from above: code, queues, rounding.
const GPU_BYTES: u64 = 512 << 20;

/// The most that recorded steps take of a driver.
pub const RECORDING_BYTES: u64 = 256 << 20;

/// What a plan is made from. `None` stands for "choose".
#[derive(Clone, Debug)]
pub struct MemoryInputs<'a> {
    /// Bytes that may be taken together.
    pub available_bytes: u64,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Layers of the cache.
    pub shape: CacheShape,
    /// The decoder.
    pub spec: &'a DecoderSpec,
    /// Longest prompt and output together.
    pub context_tokens: Option<usize>,
    /// Tokens of the cache.
    pub cache_tokens: Option<usize>,
    /// Prompt tokens in staging.
    pub staging_tokens: Option<usize>,
    /// Sequences that compute at the same time.
    pub sequences: usize,
    /// Prompt tokens of a step; a token of each sequence comes beside them.
    pub step_tokens: usize,
    /// Whether it is a GPU's memory: 16-bit layers need no staging there, and attention has room of
    /// its own.
    pub on_gpu: bool,
    /// Whether steps are recorded there.
    pub records: bool,
}

/// Where the memory goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Bytes that may be taken together.
    pub available_bytes: u64,
    /// The weights.
    pub weight_bytes: u64,
    /// Activations, logits and buffers of a step.
    pub workspace_bytes: u64,
    /// Recorded steps, at most.
    pub recording_bytes: u64,
    /// 16-bit keys and values of each sequence's newest tokens, where pages are packed.
    pub tail_bytes: u64,
    /// 16-bit keys and values of prompts in prefill.
    pub staging_bytes: u64,
    /// The same in tokens, whole pages.
    pub staging_tokens: usize,
    /// One page in all layers.
    pub page_bytes: u64,
    /// Pages of the cache.
    pub cache_pages: usize,
    /// Longest prompt and output together.
    pub context_tokens: usize,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Not even one page and its staging.
    #[error(
        "the model does not fit: weights {weights}, workspace {workspace} and a context of one \
         page take more than the {available} that may be taken; free memory, raise \
         cache.memory_fraction, or choose a smaller model",
        weights = Bytes(*weight_bytes), workspace = Bytes(*workspace_bytes),
        available = Bytes(*available_bytes)
    )]
    Model {
        /// The weights.
        weight_bytes: u64,
        /// Activations, logits and buffers.
        workspace_bytes: u64,
        /// What may be taken.
        available_bytes: u64,
    },
    /// What was asked for is more than there is.
    #[error(
        "the cache does not fit: weights {weights}, workspace {workspace}, staging of \
         {staging_tokens} tokens and a cache of {cache_tokens} tokens take {needed}, and \
         {available} may be taken; lower cache.tokens, scheduler.staging_tokens or \
         scheduler.context_tokens, or raise cache.memory_fraction",
        weights = Bytes(*weight_bytes), workspace = Bytes(*workspace_bytes),
        needed = Bytes(*needed_bytes), available = Bytes(*available_bytes)
    )]
    Cache {
        /// The weights.
        weight_bytes: u64,
        /// Activations, logits and buffers.
        workspace_bytes: u64,
        /// Tokens of staging.
        staging_tokens: usize,
        /// Tokens of the cache.
        cache_tokens: usize,
        /// All together.
        needed_bytes: u64,
        /// What may be taken.
        available_bytes: u64,
    },
    /// A context longer than the model was made for.
    #[error(
        "scheduler.context_tokens is {asked}, but the model was made for {model} tokens; lower \
         it or leave it out"
    )]
    Context {
        /// Asked for.
        asked: usize,
        /// What the model was made for.
        model: usize,
    },
    /// A cache smaller than one context.
    #[error(
        "cache.tokens is {tokens}, less than a context of {context} tokens; raise it, or lower \
         scheduler.context_tokens"
    )]
    SmallerThanContext {
        /// The cache in whole pages.
        tokens: usize,
        /// One context.
        context: usize,
    },
}

impl MemoryPlan {
    /// Lays the memory out: weights and workspace first, then staging for one whole context, then
    /// pages: as many as are left, or as the sequences can use. Beside the pages of a context that
    /// was asked for, staging may be smaller: longer prompts then convert early.
    pub fn new(inputs: &MemoryInputs<'_>) -> Result<Self, MemoryError> {
        let MemoryInputs { available_bytes, weight_bytes, .. } = *inputs;
        let mut workspace_bytes = workspace_bytes(inputs);
        let page_bytes = inputs.shape.page_bytes().max(1);
        let mut tile_bytes = inputs.shape.dense_page_bytes().max(1);
        if inputs.on_gpu {
            tile_bytes = inputs.shape.tail_bytes();
            let scratch = DeviceStore::scratch_bytes(&inputs.shape, inputs.spec.heads.q);
            workspace_bytes = workspace_bytes.saturating_add(GPU_BYTES + scratch);
        }
        let tail_bytes = inputs.shape.tail_bytes().saturating_mul(inputs.sequences as u64);
        let recording_bytes = if inputs.records { RECORDING_BYTES } else { 0 };
        let fixed_bytes = [workspace_bytes, recording_bytes, tail_bytes]
            .into_iter()
            .fold(weight_bytes, u64::saturating_add);
        let left = available_bytes.saturating_sub(fixed_bytes);
        let asked_tiles = inputs.staging_tokens.map(pages_for);
        let most = match asked_tiles {
            None => left / (page_bytes + tile_bytes),
            Some(tiles) => {
                left.saturating_sub((tiles as u64).saturating_mul(tile_bytes)) / page_bytes
            }
        };
        if most == 0 && asked_tiles.is_none() {
            return Err(MemoryError::Model { weight_bytes, workspace_bytes, available_bytes });
        }
        let context_tokens = context(inputs, (most as usize).saturating_mul(PAGE_TOKENS))?;
        let one = pages_for(context_tokens);
        let beside =
            left.saturating_sub((one as u64).saturating_mul(page_bytes)) / tile_bytes.max(1);
        // More than all sequences can fill is never used.
        let usable = one.saturating_mul(inputs.sequences);
        // Prompts that fill a step together are worth a little more than one context.
        let little = (left / 8 / tile_bytes.max(1)) as usize;
        let step = pages_for(inputs.step_tokens).min(usable).min(little);
        let tiles = asked_tiles.unwrap_or(one.max(step).min(beside.max(1) as usize));
        let staging_tokens = tiles.saturating_mul(PAGE_TOKENS);
        let staging_bytes = (tiles as u64).saturating_mul(tile_bytes);
        let fit = (left.saturating_sub(staging_bytes) / page_bytes) as usize;
        let cache_pages = inputs.cache_tokens.map_or(fit.min(usable), |t| t / PAGE_TOKENS);
        let tokens = cache_pages * PAGE_TOKENS;
        if inputs.cache_tokens.is_some() && tokens < context_tokens {
            return Err(MemoryError::SmallerThanContext { tokens, context: context_tokens });
        }
        let cache_pages = cache_pages.max(one);
        let plan = Self {
            available_bytes,
            weight_bytes,
            workspace_bytes,
            recording_bytes,
            tail_bytes,
            staging_bytes,
            staging_tokens,
            page_bytes,
            cache_pages,
            context_tokens,
        };
        if plan.total_bytes() > available_bytes {
            return Err(MemoryError::Cache {
                weight_bytes,
                workspace_bytes,
                staging_tokens,
                cache_tokens: cache_pages * PAGE_TOKENS,
                needed_bytes: plan.total_bytes(),
                available_bytes,
            });
        }
        Ok(plan)
    }

    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        let cache = self.page_bytes.saturating_mul(self.cache_pages as u64);
        let Self { weight_bytes, workspace_bytes, recording_bytes, .. } = *self;
        [weight_bytes, workspace_bytes, recording_bytes, self.tail_bytes, self.staging_bytes]
            .into_iter()
            .fold(cache, u64::saturating_add)
    }
}

/// The context asked for, or the model's as far as it fits into `most` tokens (and into the cache
/// asked for).
fn context(inputs: &MemoryInputs<'_>, most: usize) -> Result<usize, MemoryError> {
    let model = inputs.spec.context;
    if let Some(asked) = inputs.context_tokens {
        return if asked > model { Err(MemoryError::Context { asked, model }) } else { Ok(asked) };
    }
    // A cache that was asked for is checked as a whole later.
    let asked = inputs.cache_tokens.map(|tokens| tokens / PAGE_TOKENS * PAGE_TOKENS);
    Ok(model.min(asked.unwrap_or(most)).max(1))
}

/// Bytes of a step's activations, its logits and the kernels' buffers, from above.
fn workspace_bytes(inputs: &MemoryInputs<'_>) -> u64 {
    let MemoryInputs { spec, step_tokens, sequences, .. } = *inputs;
    let (tokens, heads) = (Workspace::room(step_tokens.saturating_add(sequences)), spec.heads);
    let (q, qkv) = (heads.q * heads.dim, (heads.q + 2 * heads.kv) * heads.dim);
    let (wide, inner) = (qkv.max(2 * spec.intermediate), q.max(spec.intermediate));
    // The residual stream, a normed copy, what is added; q, k, v joined (or gate and up), and
    // apart; what attention gives (or gate times up).
    let views = 3 * spec.hidden + wide + qkv + inner;
    // Both roundings of a product's activations and both results; running sums of attention.
    let kernels = 2 * inner.max(spec.hidden) + 2 * wide + 2 * q;
    let activations = tokens.saturating_mul((views + kernels) * size_of::<f32>());
    // Logits and a copy of them while they are cut.
    let logits = 2 * LOGIT_ROWS * spec.vocab * size_of::<f32>();
    // Fixed: threads, buffers of the kernels, the binary itself.
    activations.saturating_add(logits + (32 << 20)) as u64
}

/// Bytes as people read them.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MiB", self.0 as f64 / f64::from(1 << 20))
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "weights {}, workspace {}, recordings {}, tails {}, staging {} ({} tokens), cache {} \
             ({} tokens in {} pages); {} of {}; context {} tokens",
            Bytes(self.weight_bytes),
            Bytes(self.workspace_bytes),
            Bytes(self.recording_bytes),
            Bytes(self.tail_bytes),
            Bytes(self.staging_bytes),
            self.staging_tokens,
            Bytes(self.page_bytes * self.cache_pages as u64),
            self.cache_pages * PAGE_TOKENS,
            self.cache_pages,
            Bytes(self.total_bytes()),
            Bytes(self.available_bytes),
            self.context_tokens,
        )
    }
}

#[cfg(test)]
mod tests;

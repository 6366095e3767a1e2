//! `Attend`: what a decoder layer asks of the cache.

use candle_core::{Result, Tensor};

/// Keeps the keys and values of a step's tokens and attends over everything that each token may
/// see.
///
/// Activations are ragged: `tokens` is all tokens of the step, of several sequences, one after the
/// other; the implementor knows which is whose.
pub trait Attend {
    /// RoPE is already applied. q: `[tokens, heads.q, dim]`, k and v: `[tokens, heads.kv, dim]`,
    /// f32 and contiguous. What attention gives is written into out, `[tokens, heads.q, dim]`.
    fn attend(&mut self, layer: usize, qkv: [&Tensor; 3], out: &Tensor) -> Result<()>;
}

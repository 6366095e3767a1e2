//! `Attend`: what a decoder layer asks of the cache.

use candle_core::{Result, Tensor};

/// Keeps the keys and values of a step's tokens and attends over everything that each token may
/// see.
///
/// Activations are ragged: `tokens` is all tokens of the step, of several sequences, one after the
/// other; the implementor knows which is whose.
pub trait Attend {
    /// The step's tokens whose hidden states are asked for, ascending; `None`: all. The last layer
    /// computes nothing else but keys and values.
    fn asked(&self) -> Option<&[u32]> {
        None
    }

    /// RoPE is already applied. q: `[tokens, heads.q, dim]`, k and v: `[tokens, heads.kv, dim]`,
    /// f32 and contiguous. What attention gives is written into out, `[tokens, heads.q, dim]`.
    /// In the last layer q and out are of the tokens alone that are [`Self::asked`] for, in that
    /// order; of none if there are none.
    fn attend(&mut self, layer: usize, qkv: [&Tensor; 3], out: &Tensor) -> Result<()>;
}

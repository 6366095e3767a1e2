//! `Split`: q, k and v of a step out of their joined product, normed and turned on the way.

use candle_core::{CpuStorage, InplaceOp3, Layout, Result, bail};
use rayon::prelude::*;

use crate::floats::{floats, floats_mut};
use crate::norm::ALONE;
use crate::{Heads, RmsNorm, Rotary};

/// One pass from `[tokens, (heads.q + 2 * heads.kv) * dim]`, q, k and v of a token side by side,
/// and the angles of [`Rotary::angles`], to all of q, all of k, all of v.
pub(crate) struct Split<'a> {
    pub(crate) heads: Heads,
    /// Of every head of q and of k, before they are turned.
    pub(crate) norms: Option<&'a [RmsNorm; 2]>,
    pub(crate) rotary: &'a Rotary,
}

impl InplaceOp3 for Split<'_> {
    fn name(&self) -> &'static str {
        "split"
    }

    fn cpu_fwd(
        &self,
        out: &mut CpuStorage,
        out_layout: &Layout,
        qkv: &CpuStorage,
        layout: &Layout,
        angles: &CpuStorage,
        angles_layout: &Layout,
    ) -> Result<()> {
        let out = floats_mut(out, out_layout)?;
        self.split(out, floats(qkv, layout)?, floats(angles, angles_layout)?)
    }
}

impl Split<'_> {
    fn split(&self, out: &mut [f32], qkv: &[f32], angles: &[f32]) -> Result<()> {
        let Heads { q: q_heads, kv, dim } = self.heads;
        let (q_width, kv_width) = (q_heads * dim, kv * dim);
        let width = q_width + 2 * kv_width;
        let (tokens, rotated) = (qkv.len() / width, self.rotary.rotated());
        if out.len() != qkv.len() || qkv.len() != tokens * width || angles.len() != tokens * rotated
        {
            bail!("{} heads and {} angles for {} numbers", out.len(), angles.len(), qkv.len())
        }
        let (q, kv) = out.split_at_mut(tokens * q_width);
        let (k, v) = kv.split_at_mut(tokens * kv_width);
        let outs = q.par_chunks_exact_mut(q_width).zip(k.par_chunks_exact_mut(kv_width));
        let outs = outs.zip(v.par_chunks_exact_mut(kv_width));
        let tokens = outs.zip(qkv.par_chunks_exact(width)).enumerate();
        tokens.with_min_len(ALONE.div_ceil(width)).for_each(|(token, (((q, k), v), from))| {
            let angles = &angles[token * rotated..][..rotated];
            let (from_q, from_kv) = from.split_at(q_width);
            let (from_k, from_v) = from_kv.split_at(kv_width);
            self.turn(q, from_q, self.norms.map(|[norm, _]| norm), angles);
            self.turn(k, from_k, self.norms.map(|[_, norm]| norm), angles);
            v.copy_from_slice(from_v);
        });
        Ok(())
    }

    /// The heads of one token, `[heads, dim]`.
    fn turn(&self, out: &mut [f32], x: &[f32], norm: Option<&RmsNorm>, angles: &[f32]) {
        let dim = self.heads.dim;
        for (out, x) in out.chunks_exact_mut(dim).zip(x.chunks_exact(dim)) {
            match norm {
                Some(norm) => norm.row(out, x),
                None => out.copy_from_slice(x),
            }
            Rotary::turn(out, angles);
        }
    }
}

#[cfg(test)]
mod tests;

//! `Rotary`: rotary position embedding, half-split pairing.

use std::f64::consts::TAU;

use candle_core::{Device, Result, Tensor, bail};

use crate::{Rope, RopeScaling};

/// Frequencies of one kind of layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Radians a position, `rotated / 2` of them.
    frequencies: Vec<f64>,
    /// Factor of cosines and sines.
    magnitude: f64,
}

/// Cosines and sines of a step's tokens, each `[tokens, rotated / 2]` f32.
#[derive(Debug)]
pub struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// Frequencies for heads of `dim`.
    pub fn new(rope: &Rope, dim: usize) -> Result<Self> {
        let rotated = rope.rotated;
        if rotated > dim || !rotated.is_multiple_of(2) {
            bail!("rope cannot turn {rotated} elements of heads of {dim}")
        }
        let plain = |pair: usize| rope.theta.powf(-2.0 * pair as f64 / rotated as f64);
        let mut frequencies: Vec<_> = (0..rotated / 2).map(plain).collect();
        match &rope.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear(factor) => frequencies.iter_mut().for_each(|f| *f /= factor),
            &RopeScaling::Llama3 { factor, low, high, original_context } => {
                for frequency in &mut frequencies {
                    // Turns over the original context: `high` and more stay, `low` and fewer are
                    // divided.
                    let turns = original_context * *frequency / TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    *frequency = (1.0 - kept) * *frequency / factor + kept * *frequency;
                }
            }
            &RopeScaling::Yarn { factor, fast, slow, original_context } => {
                let last = rotated as f64 - 1.0;
                // Index of the pair that makes so many turns over the original context.
                let pair = |turns: f64| {
                    rotated as f64 * (original_context / (turns * TAU)).ln()
                        / (2.0 * rope.theta.ln())
                };
                let (first, end) = (pair(fast).floor().max(0.0), pair(slow).ceil().min(last));
                let width = if first == end { 0.001 } else { end - first };
                for (pair, frequency) in frequencies.iter_mut().enumerate() {
                    let divided = ((pair as f64 - first) / width).clamp(0.0, 1.0);
                    *frequency = divided * *frequency / factor + (1.0 - divided) * *frequency;
                }
            }
            RopeScaling::Factors(factors) => {
                if factors.len() != rotated / 2 {
                    bail!("{} rope factors for {rotated} elements of a head", factors.len())
                }
                let pairs = frequencies.iter_mut().zip(factors);
                pairs.for_each(|(frequency, factor)| *frequency /= f64::from(*factor));
            }
        }
        Ok(Self { frequencies, magnitude: rope.magnitude.into() })
    }

    /// Angles of tokens at any positions, in any order. They are computed anew every step, in f64:
    /// for a token that is a fraction of a percent of a layer, and a table of a long context would
    /// take many megabytes.
    pub fn angles(&self, positions: &[u32], device: &Device) -> Result<Angles> {
        let count = positions.len() * self.frequencies.len();
        let (mut cos, mut sin) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for &position in positions {
            for frequency in &self.frequencies {
                let (s, c) = (f64::from(position) * frequency).sin_cos();
                cos.push((c * self.magnitude) as f32);
                sin.push((s * self.magnitude) as f32);
            }
        }
        let shape = (positions.len(), self.frequencies.len());
        Ok(Angles {
            cos: Tensor::from_vec(cos, shape, device)?,
            sin: Tensor::from_vec(sin, shape, device)?,
        })
    }
}

impl Angles {
    /// x: `[tokens, heads, dim]`, contiguous; returns the same shape, every head turned by its
    /// token's angles; what is behind the turned elements stays.
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let (rotated, dim) = (2 * self.cos.dim(1)?, x.dim(2)?);
        if rotated == 0 {
            return Ok(x.clone());
        }
        let turn = |x: &Tensor| {
            candle_nn::rotary_emb::rope_thd(&x.unsqueeze(0)?, &self.cos, &self.sin)?.squeeze(0)
        };
        if rotated == dim {
            return turn(x);
        }
        let turned = turn(&x.narrow(2, 0, rotated)?.contiguous()?)?;
        Tensor::cat(&[turned, x.narrow(2, rotated, dim - rotated)?.contiguous()?], 2)
    }
}

#[cfg(test)]
mod tests;

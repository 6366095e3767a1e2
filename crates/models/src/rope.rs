//! `Rotary`: rotary position embedding, half-split pairing.

use std::f64::consts::TAU;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, bail};

use crate::floats::floats_mut;
use crate::{Rope, RopeScaling};

/// Frequencies of one kind of layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Radians a position, `rotated / 2` of them.
    frequencies: Vec<f64>,
    /// Factor of cosines and sines.
    magnitude: f64,
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

    /// Elements of a head that turn; the rest stays.
    pub(crate) fn rotated(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Angles of a step's tokens at any positions, in any order, into out, `[tokens, rotated]`:
    /// cosines, then sines.
    pub(crate) fn angles(&self, out: &Tensor, positions: &[u32]) -> Result<()> {
        if self.frequencies.is_empty() {
            // candle writes into no tensor without elements.
            return Ok(());
        }
        out.inplace_op1(&Turns { rotary: self, positions })
    }

    /// The table of a GPU, in bytes: rows of cosines, then sines, of the positions 0 to `fine`, and
    /// of `rows` multiples of it.
    pub(crate) fn table(&self, fine: usize, rows: usize) -> Vec<u8> {
        let fine_rows = (0..fine).map(|position| (position, self.magnitude));
        let positions = fine_rows.chain((0..rows).map(|row| (row * fine, 1.0)));
        let turns = positions.flat_map(|(position, magnitude)| {
            let angles = self.frequencies.iter().map(move |f| position as f64 * f);
            let cosines = angles.clone().map(f64::cos);
            cosines.chain(angles.map(f64::sin)).map(move |turn| (turn * magnitude) as f32)
        });
        turns.flat_map(f32::to_ne_bytes).collect()
    }

    /// Turns a head by its token's angles, `[rotated]`.
    pub(crate) fn turn(head: &mut [f32], angles: &[f32]) {
        let half = angles.len() / 2;
        let (cosines, sines) = angles.split_at(half);
        let (first, second) = head[..2 * half].split_at_mut(half);
        let pairs = first.iter_mut().zip(second).zip(cosines.iter().zip(sines));
        for ((a, b), (cos, sin)) in pairs {
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        }
    }
}

/// The operation of [`Rotary::angles`]. They are computed anew every step, in f64: for a token that
/// is a fraction of a percent of a layer, and a table of a long context would take many megabytes.
struct Turns<'a> {
    rotary: &'a Rotary,
    positions: &'a [u32],
}

impl InplaceOp1 for Turns<'_> {
    fn name(&self) -> &'static str {
        "turns"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Rotary { frequencies, magnitude } = self.rotary;
        let out = floats_mut(out, layout)?;
        let rotated = self.rotary.rotated();
        if out.len() != self.positions.len() * rotated {
            bail!("{} angles of {} tokens", out.len(), self.positions.len())
        }
        for (out, position) in out.chunks_exact_mut(rotated).zip(self.positions) {
            let (cosines, sines) = out.split_at_mut(rotated / 2);
            for ((cos, sin), frequency) in cosines.iter_mut().zip(sines).zip(frequencies) {
                let (s, c) = (f64::from(*position) * frequency).sin_cos();
                *cos = (c * magnitude) as f32;
                *sin = (s * magnitude) as f32;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! Activations in eight bits: blocks of 32 with a scale, as in Q8_0, rounded once a product.

use half::f16;
use rayon::prelude::*;

use super::format::BLOCK;
use super::layout::STEPS;

/// Added to an f32 within ±2^22, rounds it to the nearest integer, ties to even, whose low bits are
/// then the low bits of the sum.
const ROUND: f32 = 12_582_912.0;
/// Bits of infinity; a number that is none has more.
const INFINITY_BITS: u32 = 0x7f80_0000;
/// Below, the scale's inverse would overflow. Such activations count as zeros.
const SMALLEST: f32 = 1e-36;
/// Activations that are rounded by one thread.
const ALONE: usize = 16 * 1024;

/// Every row of x followed by what its rounding leaves out. x: `[rows, input]`, pairs:
/// `[rows, 2, input]`.
pub(super) fn with_residuals(pairs: &mut [f32], x: &[f32], input: usize) {
    for (pair, row) in pairs.chunks_exact_mut(2 * input).zip(x.chunks_exact(input)) {
        let (whole, residuals) = pair.split_at_mut(input);
        whole.copy_from_slice(row);
        for (residuals, block) in residuals.as_chunks_mut().0.iter_mut().zip(row.as_chunks().0) {
            *residuals = residual(block);
        }
    }
}

fn residual(x: &[f32; BLOCK]) -> [f32; BLOCK] {
    let peak = x.iter().fold(0.0, |peak: f32, value| peak.max(value.abs()));
    if !peak.is_finite() || peak < SMALLEST {
        return [0.0; BLOCK];
    }
    let (scale, inverse) = (kept(peak / 127.0), 127.0 / peak);
    // The same rounding as that of the codes.
    x.map(|value| value - ((value * inverse + ROUND) - ROUND) * scale)
}

/// One block of one row.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(16))]
pub(super) struct Cell {
    /// Four i8 a word, the first in the lowest byte, within ±127.
    pub words: [i32; STEPS],
    /// An activation is its code times this; not a number if one activation was none or infinite.
    pub scale: f32,
    /// Sum of the codes, times the scale.
    pub sum: f32,
    /// Sum of the codes times minus the weights' code that stands for zero; for each half, if they
    /// have scales of their own, else of the block, and nothing.
    pub starts: [i32; 2],
}

/// What activations must know about the weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Codebook {
    /// The code that stands for zero.
    pub zero: i32,
    /// Whether each 16 elements have a scale of their own.
    pub halves: bool,
}

/// cells: `[chunk][block][row]`, where a chunk is `chunk` rows of x, the last one the rest.
///
/// x: `[rows, input]`.
pub(super) fn cells(
    cells: &mut [Cell],
    x: &[f32],
    (input, chunk): (usize, usize),
    codebook: Codebook,
) {
    if x.len() <= ALONE {
        let chunks = cells.chunks_mut(chunk * (input / BLOCK)).zip(x.chunks(chunk * input));
        for (cells, x) in chunks {
            let blocks = cells.chunks_mut(x.len() / input).enumerate();
            blocks.for_each(|(block, cells)| column(cells, x, input, (block, codebook)));
        }
    } else {
        let chunks = cells.par_chunks_mut(chunk * (input / BLOCK)).zip(x.par_chunks(chunk * input));
        chunks.for_each(|(cells, x)| {
            let blocks = cells.par_chunks_mut(x.len() / input).enumerate();
            blocks.for_each(|(block, cells)| column(cells, x, input, (block, codebook)));
        });
    }
}

fn column(cells: &mut [Cell], x: &[f32], input: usize, (block, codebook): (usize, Codebook)) {
    for (cell, row) in cells.iter_mut().zip(x.chunks_exact(input)) {
        let x = row[block * BLOCK..].first_chunk().expect("a row is whole blocks");
        *cell = Cell::new(x, codebook);
    }
}

impl Cell {
    fn new(x: &[f32; BLOCK], Codebook { zero, halves: split }: Codebook) -> Self {
        let bits = |value: f32| value.to_bits() & 0x7fff_ffff;
        let peak = x.iter().fold(0, |peak: u32, value| peak.max(bits(*value)));
        if peak >= INFINITY_BITS {
            return Self { scale: f32::NAN, sum: f32::NAN, ..Self::default() };
        }
        let peak = f32::from_bits(peak);
        if peak < SMALLEST {
            return Self::default();
        }
        let (scale, inverse) = (kept(peak / 127.0), 127.0 / peak);
        let codes = x.map(|value| (value * inverse + ROUND).to_bits() as i8);
        let half = |codes: &[i8]| codes.iter().map(|code| *code as i32).sum::<i32>();
        let halves = [half(&codes[..BLOCK / 2]), half(&codes[BLOCK / 2..])];
        let bytes = codes.map(i8::cast_unsigned);
        let mut words = [0; STEPS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = i32::from_le_bytes(*bytes);
        }
        let sum = halves[0] + halves[1];
        let starts = if split { halves.map(|sum| -zero * sum) } else { [-zero * sum, 0] };
        Self { words, scale, sum: scale * sum as f32, starts }
    }

    /// The rounded activations.
    #[cfg(test)]
    pub(super) fn values(&self) -> [f64; BLOCK] {
        std::array::from_fn(|i| {
            let code = self.words[i / 4].to_le_bytes()[i % 4] as i8;
            f64::from(code) * f64::from(self.scale)
        })
    }
}

/// The scale as Q8_0 keeps it, so that results are those of other servers and of the reference to
/// the last digits; where an f16 has fewer bits than usual, or none, as it is.
fn kept(scale: f32) -> f32 {
    let half = f16::from_f32(scale);
    if half.is_normal() { half.to_f32() } else { scale }
}

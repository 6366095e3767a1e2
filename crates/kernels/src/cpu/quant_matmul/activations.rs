//! Activations in sixteen bits: blocks of 32 with a scale, rounded once a product.

use rayon::prelude::*;

use super::format::BLOCK;
use super::layout::STEPS;

/// Added to an f32 within ±2^22, rounds it to the nearest integer, ties to even, whose low bits are
/// then the low bits of the sum.
const ROUND: f32 = 12_582_912.0;
/// The code of the largest activation of a block: 127 times a high code's step.
const PEAK: f32 = 127.0 * 256.0;
/// Bits of infinity; a number that is none has more.
const INFINITY_BITS: u32 = 0x7f80_0000;
/// Below, the scale's inverse would overflow. Such activations count as zeros.
const SMALLEST: f32 = 1e-33;
/// Activations that are rounded by one thread.
const ALONE: usize = 16 * 1024;

/// One block of one row. An activation is `scale * (256 * high + low)`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(16))]
pub(super) struct Cell {
    /// High codes, then low ones: four i8 a word, the first in the lowest byte, within ±127.
    pub words: [[i32; STEPS]; 2],
    /// Not a number if one activation was none or infinite.
    pub scale: f32,
    /// Sum of the activations.
    pub sum: f32,
    /// Sum of `256 * high + low` times minus the weights' code that stands for zero; for each half,
    /// if they have scales of their own, else of the block, and nothing.
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
        let (scale, inverse) = (peak / PEAK, PEAK / peak);
        let codes = x.map(|value| (value * inverse + ROUND).to_bits() as i16);
        // The byte -128 has no negative: instructions that multiply by a sign want one.
        let low = codes.map(|code| (code as i8).max(-127));
        let high = codes.map(|code| ((code + 128) >> 8) as i8);
        let mut whole = [0; BLOCK];
        for (whole, (high, low)) in whole.iter_mut().zip(high.iter().zip(low)) {
            *whole = 256 * i32::from(*high) + i32::from(low);
        }
        let (first, second) = whole.split_at(BLOCK / 2);
        let halves = [first, second].map(|half| half.iter().sum::<i32>());
        let sum = halves[0] + halves[1];
        let starts = if split { halves.map(|sum| -zero * sum) } else { [-zero * sum, 0] };
        Self { words: [words(high), words(low)], scale, sum: scale * sum as f32, starts }
    }

    /// The rounded activations.
    #[cfg(test)]
    pub(super) fn values(&self) -> [f64; BLOCK] {
        std::array::from_fn(|i| {
            let code = |words: &[i32; STEPS]| f64::from(words[i / 4].to_le_bytes()[i % 4] as i8);
            (256.0 * code(&self.words[0]) + code(&self.words[1])) * f64::from(self.scale)
        })
    }
}

/// Four codes a word.
fn words(codes: [i8; BLOCK]) -> [i32; STEPS] {
    let bytes = codes.map(i8::cast_unsigned);
    let mut words = [0; STEPS];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = i32::from_le_bytes(*bytes);
    }
    words
}

//! `matmul`: rows of activations times a weight matrix kept in f32, f16 or bf16.
//!
//! Every element of the result is one chain of fused multiply-adds in eight lanes over the inputs,
//! folded in one fixed tree, whatever tile it was computed in: a row's result depends neither on
//! the other rows nor on the threads.

use std::cell::RefCell;
use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use wide::f32x8;

use crate::{Stash, of_length};

/// Lanes of an accumulator: one AVX2 register of f32.
const LANES: usize = 8;
/// Rows of a register block; with four columns it fills the sixteen AVX2 registers.
const BLOCK_ROWS: usize = 3;
/// Columns of a task, widened to f32 once for all rows: a tile stays in the second-level cache.
const TILE_COLUMNS: usize = 32;

/// Results by tiles of columns.
static TILED: Stash<Vec<f32>> = Stash::new();

thread_local! {
    /// One tile of weights, widened.
    static WIDE: RefCell<Vec<f32>> = RefCell::default();
}

/// A weight matrix, row-major `[out, in]`.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// 32-bit.
    F32(&'a [f32]),
    /// IEEE half.
    F16(&'a [f16]),
    /// Upper half of an f32.
    BF16(&'a [bf16]),
}

/// Sizes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatmulShape {
    /// Rows of `x` and of the result.
    pub rows: usize,
    /// Columns of `x` and of the weights.
    pub input: usize,
    /// Rows of the weights, columns of the result.
    pub output: usize,
}

/// `out[rows, output] = x[rows, input] · weights[output, input]ᵀ`, summed in f32.
///
/// # Panics
/// If a slice is not as long as `shape` says.
pub fn matmul(out: &mut [f32], x: &[f32], weights: Weights<'_>, shape: MatmulShape) {
    match weights {
        Weights::F32(w) => product(out, x, w, shape),
        Weights::F16(w) => product(out, x, w, shape),
        Weights::BF16(w) => product(out, x, w, shape),
    }
}

/// A stored weight that widens to f32 without loss.
trait Element: Copy + Sync {
    fn lanes(stored: &[Self; LANES]) -> f32x8;

    fn widen(stored: &[Self], wide: &mut [f32]);

    /// The same elements, where they are f32 already.
    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
}

impl Element for f32 {
    #[inline]
    fn lanes(stored: &[Self; LANES]) -> f32x8 {
        f32x8::new(*stored)
    }

    fn widen(stored: &[Self], wide: &mut [f32]) {
        wide.copy_from_slice(stored);
    }

    fn as_f32(stored: &[Self]) -> Option<&[f32]> {
        Some(stored)
    }
}

impl Element for f16 {
    #[inline]
    fn lanes(stored: &[Self; LANES]) -> f32x8 {
        let mut wide = [0.0; LANES];
        stored.convert_to_f32_slice(&mut wide);
        f32x8::new(wide)
    }

    fn widen(stored: &[Self], wide: &mut [f32]) {
        stored.convert_to_f32_slice(wide);
    }
}

impl Element for bf16 {
    #[inline]
    fn lanes(stored: &[Self; LANES]) -> f32x8 {
        f32x8::new(stored.map(|value| f32::from_bits(u32::from(value.to_bits()) << 16)))
    }

    fn widen(stored: &[Self], wide: &mut [f32]) {
        for (wide, value) in wide.iter_mut().zip(stored) {
            *wide = f32::from_bits(u32::from(value.to_bits()) << 16);
        }
    }
}

fn product<T: Element>(out: &mut [f32], x: &[f32], weights: &[T], shape: MatmulShape) {
    let MatmulShape { rows, input, output } = shape;
    assert_eq!(x.len(), rows * input, "x is not [rows, input]");
    assert_eq!(weights.len(), output * input, "weights are not [output, input]");
    assert_eq!(out.len(), rows * output, "out is not [rows, output]");
    if out.is_empty() || input == 0 {
        out.fill(0.0);
        return;
    }
    let columns = weights.par_chunks(TILE_COLUMNS * input);
    if rows == 1 {
        let tiles = out.par_chunks_mut(TILE_COLUMNS).zip(columns);
        return tiles.for_each(|(out, weights)| few_rows(out, x, weights, input));
    }
    // Tasks own columns, memory is by rows: tiles are made one after the other and then put in
    // place.
    TILED.with(|tiled| {
        let tiled = of_length(tiled, out.len());
        let tiles = tiled.par_chunks_mut(TILE_COLUMNS * rows).zip(columns);
        if rows <= BLOCK_ROWS {
            tiles.for_each(|(tile, weights)| few_rows(tile, x, weights, input));
        } else {
            tiles.for_each(|(tile, weights)| widened_rows(tile, x, weights, input));
        }
        place(out, tiled, shape);
    });
}

/// `out[rows, output] = x[rows, input] · weights[output, input]ᵀ` for weights in any other format:
/// `widen(rows, wide)` puts those rows of the weights into `wide`, `[rows, input]`.
///
/// # Panics
/// If a slice is not as long as `shape` says.
pub fn matmul_widened(
    out: &mut [f32],
    x: &[f32],
    widen: impl Fn(Range<usize>, &mut [f32]) + Sync,
    shape: MatmulShape,
) {
    let MatmulShape { rows, input, output } = shape;
    assert_eq!(x.len(), rows * input, "x is not [rows, input]");
    assert_eq!(out.len(), rows * output, "out is not [rows, output]");
    if out.is_empty() || input == 0 {
        out.fill(0.0);
        return;
    }
    let task = |(index, tile): (usize, &mut [f32])| {
        let first = index * TILE_COLUMNS;
        let columns = first..first + tile.len() / rows;
        WIDE.with_borrow_mut(|wide| {
            let wide = of_length(wide, columns.len() * input);
            widen(columns, wide);
            all_rows(tile, x, wide, input);
        });
    };
    if rows == 1 {
        return out.par_chunks_mut(TILE_COLUMNS).enumerate().for_each(task);
    }
    TILED.with(|tiled| {
        let tiled = of_length(tiled, out.len());
        tiled.par_chunks_mut(TILE_COLUMNS * rows).enumerate().for_each(task);
        place(out, tiled, shape);
    });
}

/// From tiles of columns, each `[rows, width]`, one after the other, to `[rows, output]`.
fn place(out: &mut [f32], tiled: &[f32], shape: MatmulShape) {
    out.par_chunks_mut(shape.output).enumerate().for_each(|(row, out)| {
        let tiles = tiled.chunks(TILE_COLUMNS * shape.rows);
        for (out, tile) in out.chunks_mut(TILE_COLUMNS).zip(tiles) {
            out.copy_from_slice(&tile[row * out.len()..][..out.len()]);
        }
    });
}

/// [`all_rows`] with weights that are widened once for all of them.
fn widened_rows<T: Element>(tile: &mut [f32], x: &[f32], weights: &[T], input: usize) {
    if let Some(weights) = T::as_f32(weights) {
        return all_rows(tile, x, weights, input);
    }
    WIDE.with_borrow_mut(|wide| {
        let wide = of_length(wide, weights.len());
        T::widen(weights, wide);
        all_rows(tile, x, wide, input);
    });
}

/// tile: `[rows, width]`, x: `[rows, input]`, weights: `[width, input]`.
fn all_rows(tile: &mut [f32], x: &[f32], weights: &[f32], input: usize) {
    let width = weights.len() / input;
    let blocks = tile.chunks_mut(BLOCK_ROWS * width).zip(x.chunks(BLOCK_ROWS * input));
    blocks.for_each(|(tile, x)| few_rows(tile, x, weights, input));
}

/// tile: `[rows, width]`, x: `[rows, input]` with at most `BLOCK_ROWS` rows, weights: `[width,
/// input]`.
fn few_rows<T: Element>(tile: &mut [f32], x: &[f32], weights: &[T], input: usize) {
    match x.len() / input {
        1 => columns::<1, 8, T>(tile, x, weights, input),
        2 => columns::<2, 4, T>(tile, x, weights, input),
        _ => columns::<BLOCK_ROWS, 4, T>(tile, x, weights, input),
    }
}

fn columns<const ROWS: usize, const WIDE: usize, T: Element>(
    tile: &mut [f32],
    x: &[f32],
    weights: &[T],
    input: usize,
) {
    let width = weights.len() / input;
    let whole = width - width % WIDE;
    for first in (0..whole).step_by(WIDE) {
        let sums = block::<ROWS, WIDE, T>(x, &weights[first * input..], input);
        for (row, sums) in sums.iter().enumerate() {
            tile[row * width + first..][..WIDE].copy_from_slice(sums);
        }
    }
    for column in whole..width {
        let sums = block::<ROWS, 1, T>(x, &weights[column * input..], input);
        for (row, [sum]) in sums.into_iter().enumerate() {
            tile[row * width + column] = sum;
        }
    }
}

/// Sums of `ROWS` rows of x with the first `WIDE` rows of the weights, kept in registers.
#[inline]
fn block<const ROWS: usize, const WIDE: usize, T: Element>(
    x: &[f32],
    weights: &[T],
    input: usize,
) -> [[f32; WIDE]; ROWS] {
    let x: [_; ROWS] = std::array::from_fn(|row| x[row * input..][..input].as_chunks::<LANES>());
    let weights: [_; WIDE] =
        std::array::from_fn(|column| weights[column * input..][..input].as_chunks::<LANES>());
    let mut sums = [[f32x8::ZERO; WIDE]; ROWS];
    for step in 0..input / LANES {
        let x: [_; ROWS] = std::array::from_fn(|row| f32x8::new(x[row].0[step]));
        for column in 0..WIDE {
            let weights = T::lanes(&weights[column].0[step]);
            for row in 0..ROWS {
                sums[row][column] = x[row].mul_add(weights, sums[row][column]);
            }
        }
    }
    if !input.is_multiple_of(LANES) {
        let x: [_; ROWS] = std::array::from_fn(|row| rest(x[row].1));
        for column in 0..WIDE {
            let weights = rest(weights[column].1);
            for row in 0..ROWS {
                sums[row][column] = x[row].mul_add(weights, sums[row][column]);
            }
        }
    }
    sums.map(|columns| columns.map(fold))
}

/// The last elements of a row, filled up with zeros.
fn rest<T: Element>(stored: &[T]) -> f32x8 {
    let mut wide = [0.0; LANES];
    T::widen(stored, &mut wide[..stored.len()]);
    f32x8::new(wide)
}

/// Sum of the lanes.
#[inline]
fn fold(lanes: f32x8) -> f32 {
    let l = lanes.to_array();
    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}

#[cfg(test)]
mod tests;

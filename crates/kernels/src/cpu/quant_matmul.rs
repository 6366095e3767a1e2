//! `quant_matmul`: rows of activations times weights that stay in the blocks of a GGUF file.
//!
//! Activations are rounded to sixteen bits, in blocks of 32, which are two codes of eight to
//! multiply with. Sums of codes are exact integers, and blocks are added up in their order: a row's
//! result depends neither on the other rows nor on the threads nor on the instructions of the
//! processor.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod format;
mod kernel;
mod lanes;
mod layout;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
mod tile;

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use activations::Cell;
use format::BLOCK;
use kernel::Kernel;
use lanes::{LANES, Sums};
use tile::Tile;

use crate::cpu::Path;
use crate::{Stash, of_length};

pub use format::BlockFormat;
pub use pack::PackedWeights;

/// Rows of a chunk at most: their sums stay in the first-level cache.
const CHUNK_ROWS: usize = 64;
/// Bytes of a chunk of rounded activations at most: they stay in the second-level cache.
const CHUNK_BYTES: usize = 512 * 1024;
/// Bytes of weights that a task should at least read, to be worth a thread.
const TASK_BYTES: usize = 64 * 1024;

/// Rounded activations.
static CELLS: Stash<Vec<Cell>> = Stash::new();

/// `out[rows, output] = x[rows, input] · weights[output, input]ᵀ`.
///
/// # Panics
/// If a slice is not as long as the weights say.
pub fn quant_matmul(out: &mut [f32], x: &[f32], weights: &PackedWeights) {
    quant_matmul_on(Path::best(), out, x, weights);
}

/// [`quant_matmul`] with chosen instructions, for tests and measurements.
///
/// # Panics
/// If a slice is not as long as the weights say.
pub fn quant_matmul_on(path: Path, out: &mut [f32], x: &[f32], weights: &PackedWeights) {
    CELLS.with(|cells| multiply(path, out, (x, cells), weights));
}

fn multiply(
    path: Path,
    out: &mut [f32],
    (x, cells): (&[f32], &mut Vec<Cell>),
    weights: &PackedWeights,
) {
    let PackedWeights { input, output, format, .. } = *weights;
    assert!(x.len().is_multiple_of(input), "x is not [rows, input]");
    let rows = x.len() / input;
    assert_eq!(out.len(), rows * output, "out is not [rows, output]");
    if out.is_empty() {
        return;
    }
    let fitting = CHUNK_BYTES / (input / BLOCK * size_of::<Cell>());
    let chunks = rows.div_ceil(fitting.clamp(8, CHUNK_ROWS));
    let chunk = rows.div_ceil(chunks);
    let cells = of_length(cells, x.len() / BLOCK);
    activations::cells(cells, x, (input, chunk), format.codebook());
    let cells = &*cells;
    let (lines, scales) = (format.tile_lines(input), format.tile_scale_bytes(input));
    let (tiles, chunks) = (output.div_ceil(LANES), rows.div_ceil(chunk));
    let kernel = Kernel::new(path);
    let columns = Columns::new(out, output);
    let least = TASK_BYTES / (lines * 64 + scales) / chunk;
    (0..chunks * tiles).into_par_iter().with_min_len(least.max(1)).for_each(|task| {
        let (first, index) = (task / tiles * chunk, task % tiles);
        let rows = first..rows.min(first + chunk);
        let tile = Tile {
            lines: &weights.lines[index * lines..][..lines],
            scales: &weights.scales[index * scales..][..scales],
        };
        let cells = &cells[first * (input / BLOCK)..][..rows.len() * (input / BLOCK)];
        let rectangle = Rectangle { kernel, format, tile, cells, first: index * LANES };
        match rows.len() {
            1 => rectangle.compute::<1>(rows, &columns),
            2..=8 => rectangle.compute::<8>(rows, &columns),
            _ => rectangle.compute::<CHUNK_ROWS>(rows, &columns),
        }
    });
}

/// What a task computes.
struct Rectangle<'a> {
    kernel: Kernel,
    format: BlockFormat,
    tile: Tile<'a>,
    /// `[block][row]`.
    cells: &'a [Cell],
    first: usize,
}

impl Rectangle<'_> {
    /// `MOST` rows at most: to fill zeros for more takes longer than the product with one.
    fn compute<const MOST: usize>(&self, rows: Range<usize>, columns: &Columns<'_>) {
        let mut sums = [[0.0; LANES]; MOST];
        let sums = &mut sums[..rows.len()];
        self.kernel.multiply(self.format, self.tile, self.cells, sums);
        columns.put(rows, self.first, sums);
    }
}

/// A result `[rows, output]` that tasks write, each a rectangle of its own.
struct Columns<'a> {
    start: *mut f32,
    length: usize,
    output: usize,
    out: PhantomData<&'a mut [f32]>,
}

#[expect(unsafe_code, reason = "rectangles of one matrix are no slices")]
// SAFETY: `put` is the only use, and no two tasks put the same rectangle.
unsafe impl Sync for Columns<'_> {}

impl<'a> Columns<'a> {
    fn new(out: &'a mut [f32], output: usize) -> Self {
        Self { start: out.as_mut_ptr(), length: out.len(), output, out: PhantomData }
    }

    /// Writes the columns from `first` on, sixteen or as many as there are.
    #[expect(unsafe_code, reason = "rectangles of one matrix are no slices")]
    fn put(&self, rows: Range<usize>, first: usize, sums: &[Sums]) {
        let width = LANES.min(self.output - first);
        for (row, sums) in rows.zip(sums) {
            let at = row * self.output + first;
            assert!(at + width <= self.length, "a row past the end");
            // SAFETY: within the slice, which is borrowed mutably for as long as self lives; tasks
            // are pairs of a chunk of rows and a tile of columns, none twice.
            let out = unsafe { std::slice::from_raw_parts_mut(self.start.add(at), width) };
            out.copy_from_slice(&sums[..width]);
        }
    }
}

#[cfg(test)]
mod tests;

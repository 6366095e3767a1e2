//! The product of sixteen rows of weights with a chunk of rows of activations.
//!
//! An element of the result is one chain over the blocks in their order, whatever the number of
//! rows.

#![expect(clippy::inline_always, reason = "instructions must land where they are enabled")]

use std::array;

use super::activations::Cell;
use super::lanes::{Lanes, Sums};
use super::layout::{Layout, Line, STEPS, Scales, unpack};

/// Sixteen rows of weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile<'a> {
    /// `[block][line]`.
    pub lines: &'a [Line],
    /// `[group of blocks]` of records.
    pub scales: &'a [u8],
}

/// Lines that are asked for before they are read: four kilobytes take longer to compute than one
/// line takes to come from memory.
const AHEAD: usize = 64;

/// Adds to sums: `[rows][16]`; cells: `[block][row]`.
#[inline(always)]
pub(super) fn multiply<I: Lanes, L: Layout>(
    lanes: I,
    tile: Tile<'_>,
    cells: &[Cell],
    sums: &mut [Sums],
) {
    match sums {
        [one] => few::<I, L, 1>(lanes, tile, cells, [one]),
        [one, two] => few::<I, L, 2>(lanes, tile, cells, [one, two]),
        _ => many::<I, L>(lanes, tile, cells, sums),
    }
}

/// So few rows that their sums stay in registers and the weights' way from memory takes the time.
#[inline(always)]
fn few<I: Lanes, L: Layout, const N: usize>(
    lanes: I,
    tile: Tile<'_>,
    cells: &[Cell],
    out: [&mut Sums; N],
) {
    let mut sums: [I::Floats; N] = array::from_fn(|row| lanes.load_sums(out[row]));
    let blocks = tile.lines.chunks_exact(lines::<L>()).enumerate();
    for ((block, lines), cells) in blocks.zip(cells.as_chunks::<N>().0) {
        for line in lines {
            lanes.prefetch(std::ptr::from_ref(line).wrapping_add(AHEAD));
        }
        let block = read::<I, L>(lanes, (block, lines), tile.scales);
        for (sum, cell) in sums.iter_mut().zip(cells) {
            *sum = add::<I, L>(lanes, &block, cell, *sum);
        }
    }
    for (sum, out) in sums.into_iter().zip(out) {
        lanes.store_sums(sum, out);
    }
}

#[inline(always)]
fn many<I: Lanes, L: Layout>(lanes: I, tile: Tile<'_>, cells: &[Cell], sums: &mut [Sums]) {
    let blocks = tile.lines.chunks_exact(lines::<L>()).enumerate();
    for ((block, lines), cells) in blocks.zip(cells.chunks_exact(sums.len())) {
        let block = read::<I, L>(lanes, (block, lines), tile.scales);
        for (cell, sums) in cells.iter().zip(&mut *sums) {
            let sum = add::<I, L>(lanes, &block, cell, lanes.load_sums(sums));
            lanes.store_sums(sum, sums);
        }
    }
}

/// Lines of a block.
const fn lines<L: Layout>() -> usize {
    if L::BITS == 8 { 8 } else { L::BITS as usize }
}

/// Codes and scales of a block of sixteen rows.
struct Block<I: Lanes> {
    codes: [I::Codes; STEPS],
    scales: Scales<I::Floats>,
}

#[inline(always)]
fn read<I: Lanes, L: Layout>(
    lanes: I,
    (block, lines): (usize, &[Line]),
    scales: &[u8],
) -> Block<I> {
    let record = &scales[block / L::GROUP * L::RECORD..][..L::RECORD];
    let codes = unpack::<I, L>(lanes, lines);
    Block { codes, scales: L::scales(lanes, record, block % L::GROUP) }
}

/// `sum` and one block more.
#[inline(always)]
fn add<I: Lanes, L: Layout>(
    lanes: I,
    &Block { codes, ref scales }: &Block<I>,
    cell: &Cell,
    sum: I::Floats,
) -> I::Floats {
    let x = lanes.splat(cell.scale);
    let sum = if L::HALVES {
        let [a, b, c, d, e, f, g, h] = codes;
        let ([first_x, second_x], [start, second_start]) = (halves(&cell.words), cell.starts);
        let first = dot::<I, L, 4>(lanes, start, [a, b, c, d], first_x);
        let second = dot::<I, L, 4>(lanes, second_start, [e, f, g, h], second_x);
        let sum = lanes.times_plus(first, lanes.times(scales.first, x), sum);
        lanes.times_plus(second, lanes.times(scales.second, x), sum)
    } else {
        let dot = dot::<I, L, STEPS>(lanes, cell.starts[0], codes, cell.words);
        lanes.times_plus(dot, lanes.times(scales.first, x), sum)
    };
    if L::OFFSET { lanes.times_plus(scales.offset, lanes.splat(cell.sum), sum) } else { sum }
}

/// Words of the first half of a block and of the second.
#[inline(always)]
fn halves(
    [[a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]]: &[[i32; STEPS]; 2],
) -> [[[i32; STEPS / 2]; 2]; 2] {
    [[[*a, *b, *c, *d], [*i, *j, *k, *l]], [[*e, *f, *g, *h], [*m, *n, *o, *p]]]
}

/// The integer sum as floats, rounded once.
#[inline(always)]
fn dot<I: Lanes, L: Layout, const N: usize>(
    lanes: I,
    start: i32,
    codes: [I::Codes; N],
    x: [[i32; N]; 2],
) -> I::Floats {
    let ints = match L::BITS {
        4 => lanes.dot::<4, N>(start, codes, x),
        5 => lanes.dot::<5, N>(start, codes, x),
        6 => lanes.dot::<6, N>(start, codes, x),
        _ => lanes.dot::<8, N>(start, codes, x),
    };
    lanes.to_floats(ints)
}

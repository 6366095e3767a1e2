//! The integer kernels in plain Rust: the definition of the others.

use kvant_turboquant::PAGE_TOKENS;

use super::shape::{BLOCK_LINES, Half, Levels, Line, Shape};
use super::{Query, Weights};

/// Signed levels of the keys.
pub(super) fn unpack_keys(lines: &mut [Line], tile: &[u8], shape: &Shape) {
    for (piece, lines) in shape.keys.iter().zip(lines.chunks_exact_mut(PAGE_TOKENS)) {
        for (token, line) in lines.iter_mut().enumerate() {
            for (at, byte) in line.0.iter_mut().enumerate() {
                let (index, odd) = match piece.half {
                    Half::Whole | Half::Even => (at, 0),
                    Half::Odd => (at, 1),
                    Half::Both => (at % 32, at / 32),
                };
                let code = piece.planes.iter().fold(0, |code, plane| {
                    let row = &tile[plane.offset + token * plane.row_bytes..];
                    code | element(row, plane.bits, (index, odd), 4) << plane.low
                });
                *byte = level(&shape.key_levels, code);
            }
        }
    }
}

/// Signed levels of the values.
pub(super) fn unpack_values(lines: &mut [Line], tile: &[u8], shape: &Shape) {
    let lines = lines.chunks_exact_mut(BLOCK_LINES).take(shape.blocks);
    for (block, lines) in lines.enumerate() {
        for (step, line) in lines.iter_mut().enumerate() {
            for (at, byte) in line.0.iter_mut().enumerate() {
                let code = shape.values.iter().fold(0, |code, plane| {
                    let rows = &tile[plane.offset + block * plane.block_bytes..];
                    let index = if plane.bits == 8 {
                        (step * 64 + at, 0)
                    } else {
                        (step / 2 * 64 + at, step % 2)
                    };
                    code | element(rows, plane.bits, index, 32) << plane.low
                });
                *byte = level(&shape.value_levels, code);
            }
        }
    }
}

/// Bits of an element: byte `index` of a row of nibble pairs, the even or the odd one; in memory
/// that row's words are spread over the fields of a plane in units of `unit` bytes.
fn element(row: &[u8], bits: usize, (index, odd): (usize, usize), unit: usize) -> u8 {
    if bits == 8 {
        return row[index];
    }
    let fields = 4 / bits;
    let word = index / unit;
    let byte = row[word / fields * unit + index % unit];
    byte >> (bits * (word % fields) + 4 * odd) & ((1 << bits) - 1)
}

fn level(levels: &Levels, code: u8) -> u8 {
    if levels.bits == 8 { code } else { levels.table.0[usize::from(code)] }
}

/// Products of a query with the keys of a page.
pub(super) fn score(scores: &mut [i32; PAGE_TOKENS], keys: &[Line], query: &Query) {
    for (token, score) in scores.iter_mut().enumerate() {
        let rows = keys.iter().skip(token).step_by(PAGE_TOKENS);
        *score = rows
            .zip(&query.lines)
            .map(|(key, [high, low])| (dot(key, high) << 7) + dot(key, low))
            .sum();
    }
}

fn dot(a: &Line, b: &Line) -> i32 {
    a.0.iter().zip(b.0).map(|(a, b)| i32::from(*a as i8) * i32::from(b as i8)).sum()
}

/// Adds weighted sums of values to the state of a query, 8 dimensions a block.
pub(super) fn accumulate(state: &mut [f32], values: &[Line], weights: &Weights) {
    let [high, low] = &weights.lines;
    for (state, lines) in state.chunks_exact_mut(8).zip(values.chunks_exact(BLOCK_LINES)) {
        for (d, state) in state.iter_mut().enumerate() {
            let mut sum = 0;
            for (step, line) in lines.iter().enumerate() {
                for (at, weight) in (8 * step..8 * step + 8).enumerate() {
                    let level = i32::from(line.0[at / 4 * 32 + 4 * d + at % 4] as i8);
                    sum += level * (i32::from(high.0[weight]) << 7 | i32::from(low.0[weight]));
                }
            }
            *state = (sum as f32).mul_add(weights.factor, *state);
        }
    }
}

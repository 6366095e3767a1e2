//! The integer kernels with AVX-512: 64 levels a register, four products a lane (VNNI).
//!
//! VNNI multiplies unsigned with signed bytes, so levels are kept with 128 added; 128 times the
//! sum of the other factor is taken off again, in integers.

#![expect(unsafe_code, reason = "instructions that the compiler does not choose by itself")]
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics are prefixed"))]

use std::arch::x86_64::*;

use kvant_turboquant::PAGE_TOKENS;

use super::shape::{BLOCK_LINES, Levels, Line, Shape, Spread};
use super::{Query, Weights};

/// What is added to a level to make it unsigned.
const BIAS: i32 = 128;
/// Queries whose sums of values are formed together.
const QUERIES: usize = 4;

/// Unsigned levels of the keys.
pub(super) fn unpack_keys(lines: &mut [Line], tile: &[u8], shape: &Shape) {
    // SAFETY: `Path::Avx512` is only taken where `Path::is_here` found these instructions.
    unsafe { keys(lines, tile, shape) }
}

/// Unsigned levels of the values.
pub(super) fn unpack_values(lines: &mut [Line], tile: &[u8], shape: &Shape) {
    // SAFETY: `Path::Avx512` is only taken where `Path::is_here` found these instructions.
    unsafe { values(lines, tile, shape) }
}

/// Products of a query with the keys of a page.
pub(super) fn score(scores: &mut [i32; PAGE_TOKENS], keys: &[Line], query: &Query) {
    // SAFETY: `Path::Avx512` is only taken where `Path::is_here` found these instructions.
    unsafe {
        match query.lines.len() {
            1 => products::<1>(scores, keys, query),
            2 => products::<2>(scores, keys, query),
            3 => products::<3>(scores, keys, query),
            4 => products::<4>(scores, keys, query),
            _ => products::<0>(scores, keys, query),
        }
    }
}

/// Adds weighted sums of values to the states of queries.
pub(super) fn accumulate(states: &mut [&mut [f32]], values: &[Line], weights: &[Weights]) {
    let chunks = states.chunks_mut(QUERIES).zip(weights.chunks(QUERIES));
    for (states, weights) in chunks {
        // SAFETY: `Path::Avx512` is only taken where `Path::is_here` found these instructions.
        unsafe {
            match weights.len() {
                4 => sums::<4>(states, values, weights),
                3 => sums::<3>(states, values, weights),
                2 => sums::<2>(states, values, weights),
                _ => sums::<1>(states, values, weights),
            }
        }
    }
}

/// `Spread` in registers.
#[derive(Clone, Copy)]
struct Loaded {
    from: __m512i,
    shift: __m512i,
    mask: __m512i,
    low: __m128i,
}

impl Loaded {
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(spread: &Spread) -> Self {
        // SAFETY: both arrays are 64 bytes.
        let (from, shift) = unsafe {
            (
                _mm512_loadu_si512(spread.from.as_ptr().cast()),
                _mm512_loadu_si512(spread.shift.as_ptr().cast()),
            )
        };
        let mask = _mm512_set1_epi8((1 << spread.bits) - 1);
        Self { from, shift, mask, low: _mm_cvtsi32_si128(spread.low as i32) }
    }

    /// Codes in the source's own words, each shifted.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn codes_in_place(self, words: __m512i) -> __m512i {
        _mm512_and_si512(_mm512_srlv_epi32(words, self.shift), self.mask)
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn codes(self, words: __m512i) -> __m512i {
        let codes = self.codes_in_place(_mm512_permutexvar_epi32(self.from, words));
        _mm512_sll_epi32(codes, self.low)
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn load(bytes: &[u8]) -> __m512i {
    let bytes: &[u8; 64] = bytes.first_chunk().expect("64 bytes");
    // SAFETY: the array has 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn store(line: &mut Line, bytes: __m512i) {
    // SAFETY: a line is 64 bytes, aligned to 64.
    unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), bytes) }
}

/// Tables with the bias added.
#[target_feature(enable = "avx512f,avx512bw")]
fn table(levels: &Levels) -> __m512i {
    _mm512_add_epi8(load(&levels.table.0), _mm512_set1_epi8(BIAS as i8))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn keys(lines: &mut [Line], tile: &[u8], shape: &Shape) {
    let table = table(&shape.key_levels);
    for (piece, lines) in shape.keys.iter().zip(lines.chunks_exact_mut(PAGE_TOKENS)) {
        gather(lines, tile, &piece.spreads, table);
    }
}

/// Levels of lines whose sources follow each other. Rows may be shorter than a register; what
/// follows them in the tile meets zeros of the query.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn gather(lines: &mut [Line], tile: &[u8], spreads: &[Spread], table: __m512i) {
    match spreads {
        [spread] if spread.bits == 8 => {
            let bias = _mm512_set1_epi8(BIAS as i8);
            for (at, line) in lines.iter_mut().enumerate() {
                let levels = load(&tile[spread.begin + at * spread.stride..]);
                store(line, _mm512_add_epi8(levels, bias));
            }
        }
        [spread] => {
            let loaded = Loaded::new(spread);
            for (at, line) in lines.iter_mut().enumerate() {
                let codes = loaded.codes(load(&tile[spread.begin + at * spread.stride..]));
                store(line, _mm512_shuffle_epi8(table, codes));
            }
        }
        spreads => {
            let wide = spreads.iter().any(|spread| spread.bits == 4);
            for (at, line) in lines.iter_mut().enumerate() {
                let mut codes = _mm512_setzero_si512();
                for spread in spreads {
                    let words = load(&tile[spread.begin + at * spread.stride..]);
                    codes = _mm512_or_si512(codes, Loaded::new(spread).codes(words));
                }
                store(line, look_up(table, codes, wide));
            }
        }
    }
}

/// Levels of codes: from all 64 entries, or from 16 that are the same in every quarter.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn look_up(table: __m512i, codes: __m512i, wide: bool) -> __m512i {
    if wide { _mm512_permutexvar_epi8(codes, table) } else { _mm512_shuffle_epi8(table, codes) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn values(lines: &mut [Line], tile: &[u8], shape: &Shape) {
    let table = table(&shape.value_levels);
    let wide = shape.value_levels.bits > 4;
    for (step, spreads) in shape.value_spreads.iter().enumerate() {
        let lines = lines[step..].iter_mut().step_by(BLOCK_LINES).take(shape.blocks);
        match spreads.as_slice() {
            [spread] if spread.bits == 8 => {
                let bias = _mm512_set1_epi8(BIAS as i8);
                for (block, line) in lines.enumerate() {
                    let levels = load(&tile[spread.begin + block * spread.stride..]);
                    store(line, _mm512_add_epi8(levels, bias));
                }
            }
            [spread] if spread.bits == 4 => {
                let loaded = Loaded::new(spread);
                for (block, line) in lines.enumerate() {
                    let words = load(&tile[spread.begin + block * spread.stride..]);
                    store(line, _mm512_shuffle_epi8(table, loaded.codes_in_place(words)));
                }
            }
            spreads => {
                for (block, line) in lines.enumerate() {
                    let mut codes = _mm512_setzero_si512();
                    for spread in spreads {
                        let words = load(&tile[spread.begin + block * spread.stride..]);
                        codes = _mm512_or_si512(codes, Loaded::new(spread).codes(words));
                    }
                    store(line, look_up(table, codes, wide));
                }
            }
        }
    }
}

/// `N` lines a token, any number if `N` is 0.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn products<const N: usize>(scores: &mut [i32; PAGE_TOKENS], keys: &[Line], query: &Query) {
    let count = if N == 0 { query.lines.len() } else { N };
    let mut own = [[_mm512_setzero_si512(); 2]; N];
    for (own, lines) in own.iter_mut().zip(&query.lines) {
        *own = [load(&lines[0].0), load(&lines[1].0)];
    }
    let bias = _mm512_set1_epi32(BIAS * query.sum);
    for (first, scores) in (0..PAGE_TOKENS).step_by(16).zip(scores.chunks_exact_mut(16)) {
        let mut sums = [_mm512_setzero_si512(); 16];
        for (token, sum) in sums.iter_mut().enumerate() {
            let mut high = _mm512_setzero_si512();
            let mut low = _mm512_setzero_si512();
            for n in 0..count {
                let key = load(&keys[n * PAGE_TOKENS + first + token].0);
                let [q_high, q_low] = if N == 0 {
                    [load(&query.lines[n][0].0), load(&query.lines[n][1].0)]
                } else {
                    own[n]
                };
                high = _mm512_dpbusd_epi32(high, key, q_high);
                low = _mm512_dpbusd_epi32(low, key, q_low);
            }
            *sum = _mm512_add_epi32(_mm512_slli_epi32::<7>(high), low);
        }
        let sums = _mm512_sub_epi32(sums_of_lanes(&sums), bias);
        // SAFETY: the chunk has 16 numbers.
        unsafe { _mm512_storeu_si512(scores.as_mut_ptr().cast(), sums) }
    }
}

/// Lane i of the result is the sum of the lanes of register i.
#[target_feature(enable = "avx512f")]
fn sums_of_lanes(v: &[__m512i; 16]) -> __m512i {
    // Loops, not closures: those would be calls out of the instruction set.
    let mut pairs = [_mm512_setzero_si512(); 8];
    for (i, pair) in pairs.iter_mut().enumerate() {
        let (a, b) = (v[i], v[i + 8]);
        *pair = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    }
    // Lanes of 128 bits now hold a b a b.
    let mut fours = [_mm512_setzero_si512(); 4];
    for (i, four) in fours.iter_mut().enumerate() {
        let (a, b) = (pairs[i], pairs[i + 4]);
        *four = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    // Four vectors of (i, i + 8, i + 4, i + 12) in each 128 bits.
    let mut halves = [_mm512_setzero_si512(); 2];
    for (i, half) in halves.iter_mut().enumerate() {
        let (a, b) = (fours[i], fours[i + 2]);
        let low = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
        *half = _mm512_add_epi32(low, _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b));
    }
    let (a, b) = (halves[0], halves[1]);
    let low = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
    let sums = _mm512_add_epi32(low, _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b));
    // 128-bit lanes hold i = 0, 2, 1, 3; within them i, i + 8, i + 4, i + 12.
    let order = _mm512_setr_epi32(0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15);
    _mm512_permutexvar_epi32(order, sums)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn sums<const N: usize>(states: &mut [&mut [f32]], values: &[Line], weights: &[Weights]) {
    let mut wide = [[[_mm512_setzero_si512(); 2]; N]; BLOCK_LINES];
    for (step, wide) in wide.iter_mut().enumerate() {
        let two = 2 * step as i32;
        let (a, b) = (_mm256_set1_epi32(two), _mm256_set1_epi32(two + 1));
        let at = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
        for (wide, weights) in wide.iter_mut().zip(weights) {
            for (wide, line) in wide.iter_mut().zip(&weights.lines) {
                *wide = _mm512_permutexvar_epi32(at, load(&line.0));
            }
        }
    }
    for (block, lines) in values.chunks_exact(2 * BLOCK_LINES).enumerate() {
        let mut totals = [[[_mm512_setzero_si512(); 2]; 2]; N];
        for (step, wide) in wide.iter().enumerate() {
            let both = [load(&lines[step].0), load(&lines[BLOCK_LINES + step].0)];
            for (totals, wide) in totals.iter_mut().zip(wide) {
                for (total, levels) in totals.iter_mut().zip(both) {
                    total[0] = _mm512_dpbusd_epi32(total[0], levels, wide[0]);
                    total[1] = _mm512_dpbusd_epi32(total[1], levels, wide[1]);
                }
            }
        }
        for ((totals, state), weights) in totals.iter().zip(states.iter_mut()).zip(weights) {
            let [[a, a_low], [b, b_low]] = *totals;
            let a = _mm512_add_epi32(_mm512_slli_epi32::<7>(a), a_low);
            let b = _mm512_add_epi32(_mm512_slli_epi32::<7>(b), b_low);
            // The two 256-bit halves are different tokens of the same dimensions.
            let low = _mm512_shuffle_i64x2::<0b01_00_01_00>(a, b);
            let sum = _mm512_add_epi32(low, _mm512_shuffle_i64x2::<0b11_10_11_10>(a, b));
            let sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(BIAS * weights.sum));
            let state: &mut [f32; 16] =
                state[16 * block..].first_chunk_mut().expect("a state has whole pairs of blocks");
            // SAFETY: the array has 16 numbers.
            unsafe {
                let old = _mm512_loadu_ps(state.as_ptr());
                let factor = _mm512_set1_ps(weights.factor);
                let new = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, old);
                _mm512_storeu_ps(state.as_mut_ptr(), new);
            }
        }
    }
}

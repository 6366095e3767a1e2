//! The integer kernels with AVX2: products of unsigned with signed bytes, added in pairs to 16
//! bits.
//!
//! No pair overflows: levels and parts of a query are at most 127 in magnitude, weights at most
//! 127.

#![expect(unsafe_code, reason = "instructions that the compiler does not choose by itself")]
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics are prefixed"))]

use std::arch::x86_64::*;

use kvant_turboquant::PAGE_TOKENS;

use super::shape::{BLOCK_LINES, Levels, Line, Shape, Spread};
use super::{Query, Weights};

/// Signed levels of the keys.
pub(super) fn unpack_keys(lines: &mut [Line], tile: &[u8], shape: &Shape) {
    // SAFETY: `Path::Avx2` is only taken where `Path::is_here` found these instructions.
    unsafe { keys(lines, tile, shape) }
}

/// Signed levels of the values.
pub(super) fn unpack_values(lines: &mut [Line], tile: &[u8], shape: &Shape) {
    // SAFETY: `Path::Avx2` is only taken where `Path::is_here` found these instructions.
    unsafe { values(lines, tile, shape) }
}

/// Products of a query with the keys of a page.
pub(super) fn score(scores: &mut [i32; PAGE_TOKENS], keys: &[Line], query: &Query) {
    // SAFETY: `Path::Avx2` is only taken where `Path::is_here` found these instructions.
    unsafe { products(scores, keys, query) }
}

/// Adds weighted sums of values to the state of a query.
pub(super) fn accumulate(state: &mut [f32], values: &[Line], weights: &Weights) {
    // SAFETY: `Path::Avx2` is only taken where `Path::is_here` found these instructions.
    unsafe { sums(state, values, weights) }
}

/// Asks for the lines of a tile.
pub(super) fn prefetch(tile: &[u8]) {
    for line in tile.chunks(64) {
        // SAFETY: a prefetch reads nothing that the program sees; every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) }
    }
}

#[target_feature(enable = "avx2")]
fn load(bytes: &[u8]) -> __m256i {
    let bytes: &[u8; 32] = bytes.first_chunk().expect("32 bytes");
    // SAFETY: the array has 32 bytes.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn store(line: &mut Line, half: usize, bytes: __m256i) {
    let bytes_of = &mut line.0[32 * half..][..32];
    // SAFETY: the slice has 32 bytes.
    unsafe { _mm256_storeu_si256(bytes_of.as_mut_ptr().cast(), bytes) }
}

/// Half of a `Spread` in registers.
#[derive(Clone, Copy)]
struct Loaded {
    /// Where the source begins.
    begin: usize,
    from: __m256i,
    shift: __m256i,
    mask: __m256i,
    low: __m128i,
}

impl Loaded {
    #[target_feature(enable = "avx2")]
    fn new(spread: &Spread, half: usize) -> Self {
        let (from, shift) = (&spread.from[8 * half..][..8], &spread.shift[8 * half..][..8]);
        let first = from[0];
        // SAFETY: both slices are 32 bytes.
        let (from, shift) = unsafe {
            (_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(shift.as_ptr().cast()))
        };
        Self {
            begin: spread.begin + 4 * first as usize,
            from: _mm256_sub_epi32(from, _mm256_set1_epi32(first as i32)),
            shift,
            mask: _mm256_set1_epi8(((1_u32 << spread.bits) - 1) as i8),
            low: _mm_cvtsi32_si128(spread.low as i32),
        }
    }

    #[target_feature(enable = "avx2")]
    fn codes(self, words: __m256i) -> __m256i {
        let moved = _mm256_permutevar8x32_epi32(words, self.from);
        let codes = _mm256_and_si256(_mm256_srlv_epi32(moved, self.shift), self.mask);
        _mm256_sll_epi32(codes, self.low)
    }
}

/// A table of up to 64 levels as four registers of 16, each twice.
#[target_feature(enable = "avx2")]
fn tables(levels: &Levels) -> [__m256i; 4] {
    std::array::from_fn(|quarter| {
        let entries = &levels.table.0[16 * quarter..][..16];
        // SAFETY: the slice has 16 bytes.
        _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(entries.as_ptr().cast()) })
    })
}

#[target_feature(enable = "avx2")]
fn look_up(tables: &[__m256i; 4], codes: __m256i, wide: bool) -> __m256i {
    if !wide {
        return _mm256_shuffle_epi8(tables[0], codes);
    }
    let low = _mm256_and_si256(codes, _mm256_set1_epi8(15));
    let [a, b, c, d] = tables.map(|table| _mm256_shuffle_epi8(table, low));
    // Bit 4, then bit 5 of the code at the top of its byte.
    let (four, five) = (_mm256_slli_epi32::<3>(codes), _mm256_slli_epi32::<2>(codes));
    let (low, high) = (_mm256_blendv_epi8(a, b, four), _mm256_blendv_epi8(c, d, four));
    _mm256_blendv_epi8(low, high, five)
}

#[target_feature(enable = "avx2")]
fn keys(lines: &mut [Line], tile: &[u8], shape: &Shape) {
    let tables = tables(&shape.key_levels);
    for (piece, lines) in shape.keys.iter().zip(lines.chunks_exact_mut(PAGE_TOKENS)) {
        for half in 0..2 {
            gather(lines.iter_mut(), half, (tile, &piece.spreads), &tables);
        }
    }
}

#[target_feature(enable = "avx2")]
fn values(lines: &mut [Line], tile: &[u8], shape: &Shape) {
    let tables = tables(&shape.value_levels);
    for (step, spreads) in shape.value_spreads.iter().enumerate() {
        for half in 0..2 {
            let lines = lines[step..].iter_mut().step_by(BLOCK_LINES).take(shape.blocks);
            gather(lines, half, (tile, spreads), &tables);
        }
    }
}

/// One half of the levels of lines whose sources follow each other. Rows may be shorter than a
/// register; what follows them in the tile meets zeros of the query.
#[target_feature(enable = "avx2")]
fn gather<'a>(
    lines: impl Iterator<Item = &'a mut Line>,
    half: usize,
    (tile, spreads): (&[u8], &[Spread]),
    tables: &[__m256i; 4],
) {
    let Some(first) = spreads.first() else { return };
    let loaded = Loaded::new(first, half);
    if let [spread] = spreads {
        for (at, line) in lines.enumerate() {
            let words = load(&tile[loaded.begin + at * spread.stride..]);
            let whole = spread.bits == 8;
            let levels =
                if whole { words } else { _mm256_shuffle_epi8(tables[0], loaded.codes(words)) };
            store(line, half, levels);
        }
        return;
    }
    let wide = first.bits == 4;
    for (at, line) in lines.enumerate() {
        let mut codes = _mm256_setzero_si256();
        for spread in spreads {
            let loaded = Loaded::new(spread, half);
            let words = load(&tile[loaded.begin + at * spread.stride..]);
            codes = _mm256_or_si256(codes, loaded.codes(words));
        }
        store(line, half, look_up(tables, codes, wide));
    }
}

#[target_feature(enable = "avx2")]
fn products(scores: &mut [i32; PAGE_TOKENS], keys: &[Line], query: &Query) {
    let ones = _mm256_set1_epi16(1);
    for (first, scores) in (0..PAGE_TOKENS).step_by(8).zip(scores.chunks_exact_mut(8)) {
        let mut sums = [_mm256_setzero_si256(); 8];
        for (piece, [high, low]) in query.lines.iter().enumerate() {
            for half in [0, 32] {
                let (high, low) = (load(&high.0[half..]), load(&low.0[half..]));
                for (token, sum) in sums.iter_mut().enumerate() {
                    let key = load(&keys[piece * PAGE_TOKENS + first + token].0[half..]);
                    let size = _mm256_abs_epi8(key);
                    let high = _mm256_maddubs_epi16(size, _mm256_sign_epi8(high, key));
                    let low = _mm256_maddubs_epi16(size, _mm256_sign_epi8(low, key));
                    let high = _mm256_madd_epi16(high, ones);
                    let low = _mm256_madd_epi16(low, ones);
                    let both = _mm256_add_epi32(_mm256_slli_epi32::<7>(high), low);
                    *sum = _mm256_add_epi32(*sum, both);
                }
            }
        }
        let [a, b, c, d, e, f, g, h] = sums;
        let add = |a, b| _mm256_hadd_epi32(a, b);
        let (low, high) = (add(add(a, b), add(c, d)), add(add(e, f), add(g, h)));
        let sums = _mm256_add_epi32(
            _mm256_permute2x128_si256::<0x20>(low, high),
            _mm256_permute2x128_si256::<0x31>(low, high),
        );
        // SAFETY: the chunk has 8 numbers.
        unsafe { _mm256_storeu_si256(scores.as_mut_ptr().cast(), sums) }
    }
}

#[target_feature(enable = "avx2,fma")]
fn sums(state: &mut [f32], values: &[Line], weights: &Weights) {
    let ones = _mm256_set1_epi16(1);
    let mut wide = [[_mm256_setzero_si256(); 2]; 2 * BLOCK_LINES];
    for (at, wide) in wide.iter_mut().enumerate() {
        for (wide, line) in wide.iter_mut().zip(&weights.lines) {
            let four = line.0[4 * at..].first_chunk().expect("sixteen times four bytes");
            *wide = _mm256_set1_epi32(i32::from_le_bytes(*four));
        }
    }
    let factor = _mm256_set1_ps(weights.factor);
    for (state, lines) in state.chunks_exact_mut(8).zip(values.chunks_exact(BLOCK_LINES)) {
        let mut totals = [_mm256_setzero_si256(); 2];
        for (at, wide) in wide.iter().enumerate() {
            let levels = load(&lines[at / 2].0[at % 2 * 32..]);
            for (total, wide) in totals.iter_mut().zip(wide) {
                let pairs = _mm256_maddubs_epi16(*wide, levels);
                *total = _mm256_add_epi32(*total, _mm256_madd_epi16(pairs, ones));
            }
        }
        let sum = _mm256_add_epi32(_mm256_slli_epi32::<7>(totals[0]), totals[1]);
        // SAFETY: the chunk has 8 numbers.
        unsafe {
            let old = _mm256_loadu_ps(state.as_ptr());
            let new = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), factor, old);
            _mm256_storeu_ps(state.as_mut_ptr(), new);
        }
    }
}

//! The integer kernels with NEON: sixteen products of bytes an instruction pair, added to 32 bits.
//!
//! Unpacking is plain Rust; products are what costs.

#![expect(unsafe_code, reason = "instructions that the compiler does not choose by itself")]
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics are prefixed"))]

use std::arch::aarch64::*;

use kvant_turboquant::PAGE_TOKENS;

use super::shape::{BLOCK_LINES, Line};
use super::{Query, Weights};

/// Products of a query with the keys of a page.
pub(super) fn score(scores: &mut [i32; PAGE_TOKENS], keys: &[Line], query: &Query) {
    for (token, score) in scores.iter_mut().enumerate() {
        let rows = keys.iter().skip(token).step_by(PAGE_TOKENS);
        // SAFETY: every 64-bit ARM has NEON.
        let products = rows
            .zip(&query.lines)
            .map(|(key, [high, low])| unsafe { (dot(key, high) << 7) + dot(key, low) });
        *score = products.sum();
    }
}

#[target_feature(enable = "neon")]
fn load(bytes: &[u8]) -> int8x16_t {
    let bytes: &[u8; 16] = bytes.first_chunk().expect("16 bytes");
    // SAFETY: the array has 16 bytes.
    unsafe { vld1q_s8(bytes.as_ptr().cast()) }
}

/// Products of bytes, added in pairs and to `sums`.
#[target_feature(enable = "neon")]
fn add_products(sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
    vpadalq_s16(vpadalq_s16(sums, low), vmull_high_s8(a, b))
}

#[target_feature(enable = "neon")]
fn dot(a: &Line, b: &Line) -> i32 {
    let sums = (0..64)
        .step_by(16)
        .fold(vdupq_n_s32(0), |sums, at| add_products(sums, load(&a.0[at..]), load(&b.0[at..])));
    vaddvq_s32(sums)
}

/// Adds weighted sums of values to the state of a query.
pub(super) fn accumulate(state: &mut [f32], values: &[Line], weights: &Weights) {
    for (state, lines) in state.chunks_exact_mut(8).zip(values.chunks_exact(BLOCK_LINES)) {
        // SAFETY: every 64-bit ARM has NEON.
        let sums = unsafe { block(lines, weights) };
        for (state, sum) in state.iter_mut().zip(sums) {
            *state = (sum as f32).mul_add(weights.factor, *state);
        }
    }
}

#[target_feature(enable = "neon")]
fn block(lines: &[Line], weights: &Weights) -> [i32; 8] {
    // Pairs of tokens of a dimension are added by `vpaddlq`: two of each dimension remain.
    let mut totals = [[vdupq_n_s32(0); 2]; 2];
    for (at, four) in (0..64).step_by(4).enumerate() {
        let line = &lines[at / 2].0[at % 2 * 32..];
        for (totals, weights) in totals.iter_mut().zip(&weights.lines) {
            let four = weights.0[four..].first_chunk().expect("sixteen times four bytes");
            let four = vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(*four)));
            for (total, levels) in totals.iter_mut().zip([load(line), load(&line[16..])]) {
                let low = vpaddlq_s16(vmull_s8(vget_low_s8(levels), vget_low_s8(four)));
                let high = vpaddlq_s16(vmull_high_s8(levels, four));
                *total = vaddq_s32(*total, vpaddq_s32(low, high));
            }
        }
    }
    let mut sums = [0; 8];
    for half in 0..2 {
        let sum = vaddq_s32(vshlq_n_s32::<7>(totals[0][half]), totals[1][half]);
        // SAFETY: four of the eight numbers remain from 4 · half on.
        unsafe { vst1q_s32(sums[4 * half..].as_mut_ptr(), sum) }
    }
    sums
}

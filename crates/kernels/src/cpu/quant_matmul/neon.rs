//! `Lanes` for ARM's NEON with the dot product instructions.

#![expect(clippy::inline_always, reason = "instructions must land where they are enabled")]
#![expect(unsafe_code, reason = "instructions that not every processor has")]
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics are prefixed"))]

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use half::f16;

use super::activations::Cell;
use super::lanes::{LANES, Lanes, Sums};
use super::layout::{Layout, Line};
use super::tile::{Tile, multiply};

/// A processor with `sdot`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neon(());

impl Neon {
    pub(super) fn detect() -> Option<Self> {
        let found = is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("dotprod");
        found.then_some(Self(()))
    }
}

/// An expression of instructions.
macro_rules! simd {
    ($expression:expr) => {
        // SAFETY: a value of `Neon` exists, so the processor has the instructions; pointers come
        // from references to as many bytes as are read or written.
        unsafe { $expression }
    };
}

impl Lanes for Neon {
    type Codes = [uint8x16_t; 4];
    type Ints = [int32x4_t; 4];
    type Floats = [float32x4_t; 4];

    #[inline(always)]
    fn load(self, line: &Line) -> [uint8x16_t; 4] {
        let (quarters, _) = line.0.as_chunks::<16>();
        simd!([
            vld1q_u8(quarters[0].as_ptr()),
            vld1q_u8(quarters[1].as_ptr()),
            vld1q_u8(quarters[2].as_ptr()),
            vld1q_u8(quarters[3].as_ptr())
        ])
    }

    #[inline(always)]
    fn low(self, codes: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        simd!({
            let mask = vdupq_n_u8(15);
            [
                vandq_u8(codes[0], mask),
                vandq_u8(codes[1], mask),
                vandq_u8(codes[2], mask),
                vandq_u8(codes[3], mask),
            ]
        })
    }

    #[inline(always)]
    fn high(self, codes: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        simd!([
            vshrq_n_u8::<4>(codes[0]),
            vshrq_n_u8::<4>(codes[1]),
            vshrq_n_u8::<4>(codes[2]),
            vshrq_n_u8::<4>(codes[3])
        ])
    }

    #[inline(always)]
    fn merge<const LEFT: i32, const RIGHT: i32, const MASK: u8>(
        self,
        codes: [uint8x16_t; 4],
        more: [uint8x16_t; 4],
    ) -> [uint8x16_t; 4] {
        simd!({
            let (mut merged, mask) = (codes, vdupq_n_u8(MASK));
            let shift = vdupq_n_s8(LEFT as i8 - RIGHT as i8);
            for (merged, more) in merged.iter_mut().zip(more) {
                *merged = vorrq_u8(*merged, vandq_u8(vshlq_u8(more, shift), mask));
            }
            merged
        })
    }

    #[inline(always)]
    fn dot<const BITS: u32, const N: usize>(
        self,
        start: i32,
        codes: [[uint8x16_t; 4]; N],
        [high, low]: [[i32; N]; 2],
    ) -> [int32x4_t; 4] {
        // Codes of eight bits are multiplied with their sign, so that nothing is left to subtract.
        let (start, zero) = if BITS == 8 { (0, 0x80) } else { (start, 0) };
        simd!({
            let mut whole = [vdupq_n_s32(0); 4];
            let mut sums = [vdupq_n_s32(start); 4];
            for step in 0..N {
                let high = vreinterpretq_s8_s32(vdupq_n_s32(high[step]));
                let low = vreinterpretq_s8_s32(vdupq_n_s32(low[step]));
                for (quarter, codes) in codes[step].into_iter().enumerate() {
                    let codes = vreinterpretq_s8_u8(veorq_u8(codes, vdupq_n_u8(zero)));
                    // The intrinsic of this instruction is not stable.
                    asm!(
                        ".arch_extension dotprod",
                        "sdot {whole:v}.4s, {codes:v}.16b, {high:v}.16b",
                        "sdot {sum:v}.4s, {codes:v}.16b, {low:v}.16b",
                        whole = inout(vreg) whole[quarter],
                        sum = inout(vreg) sums[quarter],
                        codes = in(vreg) codes,
                        high = in(vreg) high,
                        low = in(vreg) low,
                        options(pure, nomem, nostack, preserves_flags),
                    );
                }
            }
            for (sum, whole) in sums.iter_mut().zip(whole) {
                *sum = vaddq_s32(*sum, vshlq_n_s32::<8>(whole));
            }
            sums
        })
    }

    #[inline(always)]
    fn to_floats(self, ints: [int32x4_t; 4]) -> [float32x4_t; 4] {
        simd!([
            vcvtq_f32_s32(ints[0]),
            vcvtq_f32_s32(ints[1]),
            vcvtq_f32_s32(ints[2]),
            vcvtq_f32_s32(ints[3])
        ])
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [float32x4_t; 4] {
        simd!([vdupq_n_f32(value); 4])
    }

    #[inline(always)]
    fn times(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        simd!([
            vmulq_f32(a[0], b[0]),
            vmulq_f32(a[1], b[1]),
            vmulq_f32(a[2], b[2]),
            vmulq_f32(a[3], b[3])
        ])
    }

    #[inline(always)]
    fn times_plus(
        self,
        a: [float32x4_t; 4],
        b: [float32x4_t; 4],
        c: [float32x4_t; 4],
    ) -> [float32x4_t; 4] {
        simd!([
            vfmaq_f32(c[0], a[0], b[0]),
            vfmaq_f32(c[1], a[1], b[1]),
            vfmaq_f32(c[2], a[2], b[2]),
            vfmaq_f32(c[3], a[3], b[3])
        ])
    }

    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 2 * LANES]) -> [float32x4_t; 4] {
        let (pairs, _) = bytes.as_chunks::<2>();
        self.load_sums(&std::array::from_fn(|i| f16::from_le_bytes(pairs[i]).to_f32()))
    }

    #[inline(always)]
    fn load_u8(self, bytes: &[u8; LANES]) -> [float32x4_t; 4] {
        self.load_sums(&bytes.map(f32::from))
    }

    #[inline(always)]
    fn load_i8(self, bytes: &[u8; LANES]) -> [float32x4_t; 4] {
        self.load_sums(&bytes.map(|byte| f32::from(byte as i8)))
    }

    #[inline(always)]
    fn load_sums(self, sums: &Sums) -> [float32x4_t; 4] {
        let (quarters, _) = sums.as_chunks::<4>();
        simd!([
            vld1q_f32(quarters[0].as_ptr()),
            vld1q_f32(quarters[1].as_ptr()),
            vld1q_f32(quarters[2].as_ptr()),
            vld1q_f32(quarters[3].as_ptr())
        ])
    }

    #[inline(always)]
    fn store_sums(self, floats: [float32x4_t; 4], sums: &mut Sums) {
        let (quarters, _) = sums.as_chunks_mut::<4>();
        for (quarter, floats) in quarters.iter_mut().zip(floats) {
            simd!(vst1q_f32(quarter.as_mut_ptr(), floats));
        }
    }

    fn tile<L: Layout>(self, tile: Tile<'_>, cells: &[Cell], sums: &mut [Sums]) {
        #[target_feature(enable = "neon,dotprod")]
        fn enabled<L: Layout>(lanes: Neon, tile: Tile<'_>, cells: &[Cell], sums: &mut [Sums]) {
            multiply::<Neon, L>(lanes, tile, cells, sums);
        }
        simd!(enabled::<L>(self, tile, cells, sums));
    }
}

//! `Lanes` for AVX2: products of bytes are summed in 16 bits as long as they fit.

#![expect(clippy::inline_always, reason = "instructions must land where they are enabled")]
#![expect(unsafe_code, reason = "instructions that not every processor has")]
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics are prefixed"))]

use std::arch::x86_64::*;

use super::activations::Cell;
use super::lanes::{LANES, Lanes, Sums};
use super::layout::{Layout, Line};
use super::tile::{Tile, multiply};

/// A processor with AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

/// An expression of instructions.
macro_rules! simd {
    ($expression:expr) => {
        // SAFETY: a value of `Avx2` exists, so the processor has the instructions; pointers come
        // from references to as many bytes as are read or written.
        unsafe { $expression }
    };
}

/// Steps whose products of `bits` times seven bits, two in a sum, stay within 16 bits.
const fn steps_in_16_bits(bits: u32) -> usize {
    let largest = if bits == 8 { 128 } else { (1 << bits) - 1 };
    let steps = i16::MAX as usize / (2 * 127 * largest);
    if steps > 8 { 8 } else { steps }
}

/// `start + Σ codes * x` over `N` steps.
#[inline(always)]
fn sum<const BITS: u32, const N: usize>(
    _: Avx2,
    start: i32,
    codes: [[__m256i; 2]; N],
    x: [i32; N],
) -> [__m256i; 2] {
    let apart = const { steps_in_16_bits(BITS) };
    // Codes of eight bits are multiplied with their sign, so that nothing is left to subtract.
    let start = if BITS == 8 { 0 } else { start };
    simd!({
        let mut sums = [_mm256_set1_epi32(start); 2];
        for first in (0..N).step_by(apart) {
            let mut narrow = [_mm256_setzero_si256(); 2];
            for step in first..N.min(first + apart) {
                let x = _mm256_set1_epi32(x[step]);
                for half in 0..2 {
                    let products = if BITS == 8 {
                        let zero = _mm256_set1_epi8(i8::MIN);
                        let codes = _mm256_xor_si256(codes[step][half], zero);
                        let x = _mm256_sign_epi8(x, codes);
                        _mm256_maddubs_epi16(_mm256_abs_epi8(codes), x)
                    } else {
                        _mm256_maddubs_epi16(codes[step][half], x)
                    };
                    narrow[half] = _mm256_add_epi16(narrow[half], products);
                }
            }
            for half in 0..2 {
                let wide = _mm256_madd_epi16(narrow[half], _mm256_set1_epi16(1));
                sums[half] = _mm256_add_epi32(sums[half], wide);
            }
        }
        sums
    })
}

impl Lanes for Avx2 {
    type Codes = [__m256i; 2];
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];

    #[inline(always)]
    fn load(self, line: &Line) -> [__m256i; 2] {
        let (halves, _) = line.0.as_chunks::<32>();
        let [a, b] = [halves[0].as_ptr(), halves[1].as_ptr()];
        simd!([_mm256_load_si256(a.cast()), _mm256_load_si256(b.cast())])
    }

    #[inline(always)]
    fn prefetch(self, line: *const Line) {
        // Any address may be asked for.
        simd!(_mm_prefetch::<_MM_HINT_T0>(line.cast()));
    }

    #[inline(always)]
    fn low(self, [a, b]: [__m256i; 2]) -> [__m256i; 2] {
        simd!({
            let mask = _mm256_set1_epi8(15);
            [_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)]
        })
    }

    #[inline(always)]
    fn high(self, [a, b]: [__m256i; 2]) -> [__m256i; 2] {
        self.low(simd!([_mm256_srli_epi32::<4>(a), _mm256_srli_epi32::<4>(b)]))
    }

    #[inline(always)]
    fn merge<const LEFT: i32, const RIGHT: i32, const MASK: u8>(
        self,
        [a, b]: [__m256i; 2],
        [more, rest]: [__m256i; 2],
    ) -> [__m256i; 2] {
        simd!({
            let mask = _mm256_set1_epi8(MASK as i8);
            let more = _mm256_srli_epi32::<RIGHT>(_mm256_slli_epi32::<LEFT>(more));
            let rest = _mm256_srli_epi32::<RIGHT>(_mm256_slli_epi32::<LEFT>(rest));
            let (more, rest) = (_mm256_and_si256(more, mask), _mm256_and_si256(rest, mask));
            [_mm256_or_si256(a, more), _mm256_or_si256(b, rest)]
        })
    }

    #[inline(always)]
    fn dot<const BITS: u32, const N: usize>(
        self,
        start: i32,
        codes: [[__m256i; 2]; N],
        [high, low]: [[i32; N]; 2],
    ) -> [__m256i; 2] {
        let (whole, sums) =
            (sum::<BITS, N>(self, 0, codes, high), sum::<BITS, N>(self, start, codes, low));
        simd!([
            _mm256_add_epi32(_mm256_slli_epi32::<8>(whole[0]), sums[0]),
            _mm256_add_epi32(_mm256_slli_epi32::<8>(whole[1]), sums[1])
        ])
    }

    #[inline(always)]
    fn to_floats(self, ints: [__m256i; 2]) -> [__m256; 2] {
        simd!([_mm256_cvtepi32_ps(ints[0]), _mm256_cvtepi32_ps(ints[1])])
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [__m256; 2] {
        simd!([_mm256_set1_ps(value); 2])
    }

    #[inline(always)]
    fn times(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        simd!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn times_plus(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        simd!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }

    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 2 * LANES]) -> [__m256; 2] {
        let (halves, _) = bytes.as_chunks::<16>();
        let [a, b] = [halves[0].as_ptr(), halves[1].as_ptr()];
        simd!([
            _mm256_cvtph_ps(_mm_loadu_si128(a.cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(b.cast()))
        ])
    }

    #[inline(always)]
    fn load_u8(self, bytes: &[u8; LANES]) -> [__m256; 2] {
        self.to_floats(simd!({
            let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
            [_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes))]
        }))
    }

    #[inline(always)]
    fn load_i8(self, bytes: &[u8; LANES]) -> [__m256; 2] {
        self.to_floats(simd!({
            let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
            [_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes))]
        }))
    }

    #[inline(always)]
    fn load_sums(self, sums: &Sums) -> [__m256; 2] {
        let (halves, _) = sums.as_chunks::<8>();
        simd!([_mm256_loadu_ps(halves[0].as_ptr()), _mm256_loadu_ps(halves[1].as_ptr())])
    }

    #[inline(always)]
    fn store_sums(self, floats: [__m256; 2], sums: &mut Sums) {
        let (halves, _) = sums.as_chunks_mut::<8>();
        for (half, floats) in halves.iter_mut().zip(floats) {
            simd!(_mm256_storeu_ps(half.as_mut_ptr(), floats));
        }
    }

    fn tile<L: Layout>(self, tile: Tile<'_>, cells: &[Cell], sums: &mut [Sums]) {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn enabled<L: Layout>(lanes: Avx2, tile: Tile<'_>, cells: &[Cell], sums: &mut [Sums]) {
            multiply::<Avx2, L>(lanes, tile, cells, sums);
        }
        simd!(enabled::<L>(self, tile, cells, sums));
    }
}

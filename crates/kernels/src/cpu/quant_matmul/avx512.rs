//! `Lanes` for AVX-512 with VNNI: one instruction multiplies and sums 64 pairs of bytes.

#![expect(clippy::inline_always, reason = "instructions must land where they are enabled")]
#![expect(unsafe_code, reason = "instructions that not every processor has")]
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics are prefixed"))]

use std::arch::x86_64::*;

use super::activations::Cell;
use super::lanes::{LANES, Lanes, Sums};
use super::layout::{Layout, Line};
use super::tile::{Tile, multiply};

/// A processor with AVX-512 F, BW and VNNI.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni");
        found.then_some(Self(()))
    }
}

/// An expression of instructions.
macro_rules! simd {
    ($expression:expr) => {
        // SAFETY: a value of `Avx512` exists, so the processor has the instructions; pointers come
        // from references to as many bytes as are read or written.
        unsafe { $expression }
    };
}

impl Lanes for Avx512 {
    type Codes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;

    #[inline(always)]
    fn load(self, line: &Line) -> __m512i {
        simd!(_mm512_load_si512(line.0.as_ptr().cast()))
    }

    #[inline(always)]
    fn prefetch(self, line: *const Line) {
        // Any address may be asked for.
        simd!(_mm_prefetch::<_MM_HINT_T0>(line.cast()));
    }

    #[inline(always)]
    fn low(self, codes: __m512i) -> __m512i {
        simd!(_mm512_and_si512(codes, _mm512_set1_epi8(15)))
    }

    #[inline(always)]
    fn high(self, codes: __m512i) -> __m512i {
        simd!(_mm512_and_si512(_mm512_srli_epi32::<4>(codes), _mm512_set1_epi8(15)))
    }

    #[inline(always)]
    fn merge<const LEFT: i32, const RIGHT: i32, const MASK: u8>(
        self,
        codes: __m512i,
        more: __m512i,
    ) -> __m512i {
        simd!({
            // A rotation: the bits of the mask are far from the ends.
            let more = _mm512_ror_epi32::<RIGHT>(_mm512_rol_epi32::<LEFT>(more));
            _mm512_or_si512(codes, _mm512_and_si512(more, _mm512_set1_epi8(MASK as i8)))
        })
    }

    #[inline(always)]
    fn dot<const BITS: u32, const N: usize>(
        self,
        start: i32,
        codes: [__m512i; N],
        [high, low]: [[i32; N]; 2],
    ) -> __m512i {
        simd!({
            let (mut whole, mut sum) = (_mm512_setzero_si512(), _mm512_set1_epi32(start));
            for step in 0..N {
                whole = _mm512_dpbusd_epi32(whole, codes[step], _mm512_set1_epi32(high[step]));
                sum = _mm512_dpbusd_epi32(sum, codes[step], _mm512_set1_epi32(low[step]));
            }
            _mm512_add_epi32(_mm512_slli_epi32::<8>(whole), sum)
        })
    }

    #[inline(always)]
    fn to_floats(self, ints: __m512i) -> __m512 {
        simd!(_mm512_cvtepi32_ps(ints))
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        simd!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn times(self, a: __m512, b: __m512) -> __m512 {
        simd!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn times_plus(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        simd!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn load_f16(self, bytes: &[u8; 2 * LANES]) -> __m512 {
        simd!(_mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_u8(self, bytes: &[u8; LANES]) -> __m512 {
        simd!(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()))))
    }

    #[inline(always)]
    fn load_i8(self, bytes: &[u8; LANES]) -> __m512 {
        simd!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()))))
    }

    #[inline(always)]
    fn load_sums(self, sums: &Sums) -> __m512 {
        simd!(_mm512_loadu_ps(sums.as_ptr()))
    }

    #[inline(always)]
    fn store_sums(self, floats: __m512, sums: &mut Sums) {
        simd!(_mm512_storeu_ps(sums.as_mut_ptr(), floats));
    }

    fn tile<L: Layout>(self, tile: Tile<'_>, cells: &[Cell], sums: &mut [Sums]) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        fn enabled<L: Layout>(lanes: Avx512, tile: Tile<'_>, cells: &[Cell], sums: &mut [Sums]) {
            multiply::<Avx512, L>(lanes, tile, cells, sums);
        }
        simd!(enabled::<L>(self, tile, cells, sums));
    }
}

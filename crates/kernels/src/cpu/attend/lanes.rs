//! Eight f32 at a time: what one instruction does, spelled so that the compiler cannot take it
//! apart.

#![expect(clippy::inline_always, reason = "arithmetic of registers; a call would spill them")]

use wide::bytemuck::cast;
pub(in crate::cpu) use wide::f32x8 as Lanes;
use wide::i32x8;

pub(in crate::cpu) const ZERO: Lanes = Lanes::ZERO;

/// Sum of each vector's lanes, in one fixed tree.
#[inline(always)]
pub(in crate::cpu) fn sums(vectors: [Lanes; 8]) -> Lanes {
    let [a, b, c, d, e, f, g, h] = Lanes::transpose(vectors);
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// 2^x for x <= 0, to about 1e-7; exactly 1 at 0, exactly 0 below -126, NaN stays NaN.
#[inline(always)]
pub(in crate::cpu) fn exp2(x: Lanes) -> Lanes {
    /// Adding it leaves the nearest integer in the low bits.
    const ROUND: Lanes = Lanes::splat(12_582_912.0);
    /// Taylor of 2^f on [-0.5, 0.5], ln(2)^k / k!, from k = 6 down to 0.
    const TAYLOR: [f32; 7] = [
        1.540_353e-4,
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        0.240_226_5,
        std::f32::consts::LN_2,
        1.0,
    ];
    let tiny = x.simd_lt(Lanes::splat(-126.0));
    let clamped = tiny.bitselect(Lanes::splat(-126.0), x);
    let rounded = clamped + ROUND;
    let f = clamped - (rounded - ROUND);
    let y = TAYLOR[1..].iter().fold(Lanes::splat(TAYLOR[0]), |y, c| y.mul_add(f, Lanes::splat(*c)));
    let power: Lanes = cast((cast::<_, i32x8>(rounded) << 23_i32) + i32x8::splat(127 << 23));
    tiny.bitselect(ZERO, y * power)
}

/// `exp2` of one number, the same bits.
#[inline(always)]
pub(in crate::cpu) fn exp2_one(x: f32) -> f32 {
    exp2(Lanes::splat(x)).to_array()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_is_near_and_exact_at_the_edges() {
        for step in 0..=126_000 {
            let x = -(step as f32) / 1000.0;
            let (got, want) = (exp2_one(x) as f64, (x as f64).exp2());
            assert!((got / want - 1.0).abs() < 3e-7, "2^{x}: {got}, want {want}");
        }
        for (x, want) in [(0.0, 1.0), (-1.0, 0.5), (-126.0, f32::MIN_POSITIVE)] {
            assert_eq!(exp2_one(x), want, "2^{x}");
        }
        for x in [-126.001, -1e30, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp2_one(x).to_bits(), 0, "2^{x}");
        }
        assert!(exp2_one(f32::NAN).is_nan());
    }

    #[test]
    fn every_vector_is_summed_by_itself() {
        let vectors =
            std::array::from_fn(|i| Lanes::new(std::array::from_fn(|lane| (10 * i + lane) as f32)));
        let want = std::array::from_fn(|i| (80 * i + 28) as f32);
        assert_eq!(sums(vectors).to_array(), want);
    }
}

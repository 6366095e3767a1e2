//! The counter-based generator behind every rotation: no state, the same numbers on every machine
//! and in every language.
//!
//! `key = mix(mix(seed + G) + 2·layer + side)`, `word(i) = mix(key + (i + 1)·G)`, everything modulo
//! 2^64, where G = 0x9E3779B97F4A7C15, side is 0 for keys and 1 for values, and `mix` is
//! SplitMix64's finalizer. Sign of dimension d: bit `d mod 64` of `word(d / 64)`, 1 for minus.
//! Changing any of this makes stored caches unreadable.

/// 2^64 over the golden ratio: the step of SplitMix64.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// Which half of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Keys, after RoPE.
    Keys,
    /// Values.
    Values,
}

/// What a rotation is drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Layer of the model.
    pub layer: u32,
    /// Keys and values are rotated differently.
    pub side: Side,
    /// Chosen once for a cache.
    pub seed: u64,
}

impl Key {
    /// The key as one number.
    pub fn number(self) -> u64 {
        let stream = 2 * u64::from(self.layer) + u64::from(self.side == Side::Values);
        mix(mix(self.seed.wrapping_add(STEP)).wrapping_add(stream))
    }

    /// The `index`th word of 64 random bits.
    pub fn word(self, index: u64) -> u64 {
        word(self.number(), index)
    }

    /// `dim` factors of 1 or -1.
    pub(crate) fn signs(self, dim: usize) -> Vec<f32> {
        let number = self.number();
        let minus = |d: usize| word(number, d as u64 / 64) >> (d % 64) & 1 == 1;
        (0..dim).map(|d| if minus(d) { -1.0 } else { 1.0 }).collect()
    }
}

/// Standard normal numbers from the words of a key, two words for two numbers (Box and Muller).
pub(crate) fn normals(number: u64, count: usize) -> Vec<f64> {
    let unit = |index: u64| (word(number, index) >> 11) as f64 / (1_u64 << 53) as f64;
    let pair = |index: u64| {
        let radius = (-2.0 * (1.0 - unit(2 * index)).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * unit(2 * index + 1)).sin_cos();
        [radius * cos, radius * sin]
    };
    (0..count.div_ceil(2) as u64).flat_map(pair).take(count).collect()
}

fn word(number: u64, index: u64) -> u64 {
    mix(number.wrapping_add(index.wrapping_add(1).wrapping_mul(STEP)))
}

/// The finalizer of SplitMix64 (Stafford's variant 13).
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_splitmix64() {
        // First outputs of the published generator for state 1234567.
        let published = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973_u64];
        assert_eq!([word(1_234_567, 0), word(1_234_567, 1)], published);
    }

    #[test]
    fn normals_have_the_moments_of_a_normal_distribution() {
        let drawn = normals(5, 200_000);
        let moment = |power| drawn.iter().map(|x| x.powi(power)).sum::<f64>() / 200_000.0;
        assert!(moment(1).abs() < 0.01 && moment(3).abs() < 0.05);
        assert!((moment(2) - 1.0).abs() < 0.02 && (moment(4) - 3.0).abs() < 0.1);
    }
}

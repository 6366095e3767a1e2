//! The one-bit sketch is unbiased, and at equal bits more than twice as noisy as the plain codec.

#![cfg(test)]

mod normal;

use kvant_turboquant::{Codec, Key, Qjl, Rotation, ScaleRule, Side, Width};
use normal::Normal;

const DIM: usize = 128;
const COUNT: usize = 150;

/// Slope of estimated over exact products and their error over the products' own size.
fn measure(score: impl Fn(&[f32], &[f32]) -> f32, seed: u64) -> (f64, f64) {
    let mut normal = Normal::new(seed);
    let (mut along, mut squares, mut wrong) = (0.0, 0.0, 0.0);
    for _ in 0..COUNT {
        let (q, x) = (normal.vector(DIM), normal.vector(DIM));
        let exact: f64 = q.iter().zip(&x).map(|(q, x)| f64::from(*q) * f64::from(*x)).sum();
        let got = f64::from(score(&q, &x));
        along += exact * got;
        squares += exact * exact;
        wrong += (got - exact).powi(2);
    }
    (along / squares, (wrong / squares).sqrt())
}

#[test]
fn the_sketch_is_unbiased_and_noisy() {
    // Bits in all: codes and one bit of sketch; published slope and noise of the sketch, noise of
    // the plain codec.
    for (bits, noise, plain_noise) in [(2, 0.742, 0.344), (3, 0.427, 0.185), (4, 0.231, 0.098)] {
        let (mut bias, mut noises, mut plain) = (0.0, 0.0, 0.0);
        for seed in 0..16 {
            let rotation = Rotation::new(DIM, Key { layer: 0, side: Side::Keys, seed });
            let qjl = Qjl::new(rotation.clone(), Width::new(bits - 1).unwrap());
            let score = |q: &[f32], x: &[f32]| qjl.score(&qjl.query(q), &qjl.encode(x).unwrap());
            let (slope, own) = measure(score, 100 + seed);
            let codec = Codec::new(rotation, Width::new(bits).unwrap(), ScaleRule::Plain);
            let score = |q: &[f32], x: &[f32]| {
                codec.score(&codec.rotation().rotate(q.to_vec()), &codec.encode(x).unwrap())
            };
            let (_, other) = measure(score, 100 + seed);
            bias += (slope - 1.0) / 16.0;
            noises += own / 16.0;
            plain += other / 16.0;
        }
        assert!(bias.abs() < 0.03, "{bits} bits: bias {bias}");
        assert!((noises / noise - 1.0).abs() < 0.06, "{bits} bits: noise {noises}");
        assert!((plain / plain_noise - 1.0).abs() < 0.06, "{bits} bits: plain {plain}");
        assert!(noises > 2.0 * plain, "{bits} bits: {noises} against {plain}");
    }
}

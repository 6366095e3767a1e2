//! Sums and scores on the codes against decoded vectors: attention of one query group, unfused and
//! in softmax form.

#![cfg(test)]

mod normal;

use kvant_turboquant::{Codec, Encoded, Key, Rotation, ScaleRule, Side, Width};
use normal::Normal;

const TOKENS: usize = 50;

struct Case {
    keys: Codec,
    values: Codec,
    stored: Vec<(Encoded, Encoded)>,
    queries: Vec<Vec<f32>>,
}

impl Case {
    fn new(dim: usize, bits: usize, group: usize, dense: bool) -> Self {
        let codec = |side| {
            let key = Key { layer: 4, side, seed: 11 };
            let rotation = if dense { Rotation::dense(dim, key) } else { Rotation::new(dim, key) };
            let width = Width::new(bits).unwrap();
            Codec::new(rotation, width, ScaleRule::for_side(side, width))
        };
        let (keys, values) = (codec(Side::Keys), codec(Side::Values));
        let mut normal = Normal::new((dim + 7 * bits + group) as u64);
        let mut token = || {
            let pair = (normal.vector(dim), normal.vector(dim));
            (keys.encode(&pair.0).unwrap(), values.encode(&pair.1).unwrap())
        };
        let stored = (0..TOKENS).map(|_| token()).collect();
        let queries = (0..group).map(|_| normal.vector(dim)).collect();
        Self { keys, values, stored, queries }
    }

    fn scores(&self, query: &[f32]) -> Vec<f32> {
        let factor = 1.0 / (query.len() as f32).sqrt();
        let scaled = query.iter().map(|q| q * factor).collect();
        let rotated = self.keys.rotation().rotate(scaled);
        self.stored.iter().map(|(key, _)| self.keys.score(&rotated, key)).collect()
    }

    /// Softmax first, then the weighted sum.
    fn unfused(&self, query: &[f32]) -> Vec<f32> {
        let scores = self.scores(query);
        let most = scores.iter().copied().fold(f32::MIN, f32::max);
        let weights: Vec<f32> = scores.iter().map(|s| (s - most).exp()).collect();
        let total: f32 = weights.iter().sum();
        let weights: Vec<f32> = weights.iter().map(|w| w / total).collect();
        let values: Vec<Encoded> = self.stored.iter().map(|(_, value)| value.clone()).collect();
        self.values.rotation().restore(self.values.weighted_sum(&weights, &values))
    }

    /// Token by token with a running maximum and sum.
    fn running(&self, query: &[f32]) -> Vec<f32> {
        let (mut most, mut total) = (f32::MIN, 0.0);
        let mut sum = vec![0.0; query.len()];
        for (score, (_, value)) in self.scores(query).into_iter().zip(&self.stored) {
            let next = score.max(most);
            let (old, new) = ((most - next).exp(), (score - next).exp());
            let one = self.values.weighted_sum(&[new], std::slice::from_ref(value));
            sum.iter_mut().zip(one.as_slice()).for_each(|(s, v)| *s = *s * old + v);
            (most, total) = (next, total * old + new);
        }
        let sum = sum.into_iter().map(|s| s / total).collect();
        self.values.rotation().restore(self.values.rotation().adopt(sum))
    }

    /// In f64 on decoded vectors.
    fn truth(&self, query: &[f32]) -> Vec<f64> {
        let decoded = |codec: &Codec, encoded: &Encoded| -> Vec<f64> {
            codec.decode(encoded).into_iter().map(f64::from).collect()
        };
        let scores: Vec<f64> = self
            .stored
            .iter()
            .map(|(key, _)| {
                let key = decoded(&self.keys, key);
                let dot: f64 = query.iter().zip(key).map(|(q, k)| f64::from(*q) * k).sum();
                (dot / (query.len() as f64).sqrt()).exp()
            })
            .collect();
        let total: f64 = scores.iter().sum();
        let mut out = vec![0.0; query.len()];
        for (weight, (_, value)) in scores.iter().zip(&self.stored) {
            let value = decoded(&self.values, value);
            out.iter_mut().zip(value).for_each(|(out, v)| *out += weight / total * v);
        }
        out
    }
}

fn distance(got: &[f32], want: &[f64]) -> f64 {
    let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
    let rest = squares(&mut got.iter().zip(want).map(|(a, b)| f64::from(*a) - b));
    (rest / squares(&mut want.iter().copied())).sqrt()
}

#[test]
fn sums_on_codes_follow_the_decoded_vectors() {
    for dim in [64, 128, 256] {
        for bits in [2, 3, 4, 8] {
            for group in [1, 4] {
                for dense in [false, true] {
                    let case = Case::new(dim, bits, group, dense);
                    for query in &case.queries {
                        let unfused = case.unfused(query);
                        let exact: Vec<f64> = unfused.iter().map(|x| f64::from(*x)).collect();
                        let name = format!("{dim}, {bits} bits, dense {dense}");
                        let running = case.running(query);
                        assert!(distance(&running, &exact) < 1e-4, "{name}: softmax form");
                        let truth = case.truth(query);
                        assert!(distance(&unfused, &truth) < 1e-3, "{name}: unfused");
                        assert!(distance(&running, &truth) < 1e-3, "{name}: running");
                    }
                }
            }
        }
    }
}

//! `Rotary`: rotary position embedding, half-split pairing.

use std::f64::consts::TAU;

use candle_core::{Device, Result, Tensor, bail};

use crate::{Rope, RopeScaling};

/// Frequencies of one kind of layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Radians a position, `dim / 2` of them.
    frequencies: Vec<f64>,
}

/// Cosines and sines of a step's tokens, each `[tokens, dim / 2]` f32.
#[derive(Debug)]
pub struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// Frequencies for heads of `dim`.
    pub fn new(rope: &Rope, dim: usize) -> Result<Self> {
        if dim == 0 || !dim.is_multiple_of(2) {
            bail!("rope needs heads of even size, not {dim}")
        }
        let plain = |pair: usize| rope.theta.powf(-2.0 * pair as f64 / dim as f64);
        let mut frequencies: Vec<_> = (0..dim / 2).map(plain).collect();
        match &rope.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear(factor) => frequencies.iter_mut().for_each(|f| *f /= factor),
            &RopeScaling::Llama3 { factor, low, high, original_context } => {
                for frequency in &mut frequencies {
                    // Turns over the original context: `high` and more stay, `low` and fewer are
                    // divided.
                    let turns = original_context * *frequency / TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    *frequency = (1.0 - kept) * *frequency / factor + kept * *frequency;
                }
            }
            RopeScaling::Factors(factors) => {
                if factors.len() != dim / 2 {
                    bail!("{} rope factors for heads of {dim}", factors.len())
                }
                let pairs = frequencies.iter_mut().zip(factors);
                pairs.for_each(|(frequency, factor)| *frequency /= f64::from(*factor));
            }
        }
        Ok(Self { frequencies })
    }

    /// Angles of tokens at any positions, in any order. They are computed anew every step, in f64:
    /// for a token that is a fraction of a percent of a layer, and a table of a long context would
    /// take many megabytes.
    pub fn angles(&self, positions: &[u32], device: &Device) -> Result<Angles> {
        let count = positions.len() * self.frequencies.len();
        let (mut cos, mut sin) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for &position in positions {
            for frequency in &self.frequencies {
                let (s, c) = (f64::from(position) * frequency).sin_cos();
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        let shape = (positions.len(), self.frequencies.len());
        Ok(Angles {
            cos: Tensor::from_vec(cos, shape, device)?,
            sin: Tensor::from_vec(sin, shape, device)?,
        })
    }
}

impl Angles {
    /// x: `[tokens, heads, dim]`, contiguous; returns the same shape, every head turned by its
    /// token's angles.
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::rotary_emb::rope_thd(&x.unsqueeze(0)?, &self.cos, &self.sin)?.squeeze(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotary(theta: f64, scaling: RopeScaling, dim: usize) -> Vec<f64> {
        Rotary::new(&Rope { theta, scaling }, dim).unwrap().frequencies
    }

    #[test]
    fn frequencies_follow_the_scaling() {
        let plain = rotary(10_000.0, RopeScaling::None, 8);
        for (found, expected) in plain.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((found - expected).abs() < 1e-15);
        }
        let linear = rotary(10_000.0, RopeScaling::Linear(4.0), 8);
        assert!(linear.iter().zip(&plain).all(|(found, plain)| *found == plain / 4.0));
        let factors = rotary(10_000.0, RopeScaling::Factors(vec![1.0, 2.0, 4.0, 8.0]), 8);
        assert_eq!(factors[3], plain[3] / 8.0);
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 8192.0 };
        let llama = rotary(500_000.0, scaling, 128);
        let base = rotary(500_000.0, RopeScaling::None, 128);
        // Wavelengths below 2,048 stay, above 8,192 are stretched by 8, between lies a ramp.
        for (found, plain) in llama.iter().zip(&base) {
            let (wavelength, ratio) = (TAU / plain, plain / found);
            let expected = match wavelength {
                short if short < 2048.0 => 1.0..=1.000_001,
                long if long > 8192.0 => 7.999_999..=8.000_001,
                _ => 1.0..=8.0,
            };
            assert!(expected.contains(&ratio), "wavelength {wavelength} divided by {ratio}");
        }
        assert!(
            llama.iter().zip(&base).any(|(found, plain)| (1.1..7.9).contains(&(plain / found)))
        );
    }

    #[test]
    fn a_head_turns_by_its_own_position() {
        let rotary = Rotary { frequencies: vec![1.0, 0.5] };
        let positions = [7, 0, 3];
        let x: Vec<f32> = (1..=24).map(|i| i as f32).collect();
        let tensor = Tensor::from_vec(x.clone(), (3, 2, 4), &Device::Cpu).unwrap();
        let angles = rotary.angles(&positions, &Device::Cpu).unwrap();
        let out = angles.rotate(&tensor).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (at, (x, out)) in x.chunks(4).zip(out.chunks(4)).enumerate() {
            for pair in 0..2 {
                let angle = f64::from(positions[at / 2]) * [1.0, 0.5][pair];
                let (a, b) = (f64::from(x[pair]), f64::from(x[pair + 2]));
                let expected =
                    [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()];
                assert!((f64::from(out[pair]) - expected[0]).abs() < 1e-5);
                assert!((f64::from(out[pair + 2]) - expected[1]).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn heads_that_cannot_be_turned_are_refused() {
        let rope = |scaling| Rope { theta: 1e4, scaling };
        assert!(Rotary::new(&rope(RopeScaling::None), 7).is_err());
        assert!(Rotary::new(&rope(RopeScaling::None), 0).is_err());
        assert!(Rotary::new(&rope(RopeScaling::Factors(vec![1.0; 3])), 8).is_err());
    }
}

//! Frequencies of every scaling, and heads turned by them.

use candle_core::Device;

use super::*;

fn rotary(theta: f64, scaling: RopeScaling, dim: usize) -> Vec<f64> {
    let rope = Rope { theta, rotated: dim, scaling, magnitude: 1.0 };
    Rotary::new(&rope, dim).unwrap().frequencies
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
    assert!(llama.iter().zip(&base).any(|(found, plain)| (1.1..7.9).contains(&(plain / found))));
}

/// Heads `[tokens, heads, dim]` turned by their tokens' positions.
fn turned(rotary: &Rotary, positions: &[u32], x: &[f32], dim: usize) -> Vec<f32> {
    let shape = (positions.len(), rotary.rotated());
    let angles = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    rotary.angles(&angles, positions).unwrap();
    let angles = angles.to_vec2::<f32>().unwrap();
    let mut out = x.to_vec();
    for (token, angles) in out.chunks_mut(x.len() / positions.len()).zip(&angles) {
        token.chunks_mut(dim).for_each(|head| Rotary::turn(head, angles));
    }
    out
}

#[test]
fn a_head_turns_by_its_own_position() {
    let rotary = Rotary { frequencies: vec![1.0, 0.5], magnitude: 1.0 };
    let positions = [7, 0, 3];
    let x: Vec<f32> = (1..=24).map(|i| i as f32).collect();
    let out = turned(&rotary, &positions, &x, 4);
    for (at, (x, out)) in x.chunks(4).zip(out.chunks(4)).enumerate() {
        for pair in 0..2 {
            let angle = f64::from(positions[at / 2]) * [1.0, 0.5][pair];
            let (a, b) = (f64::from(x[pair]), f64::from(x[pair + 2]));
            let expected = [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()];
            assert!((f64::from(out[pair]) - expected[0]).abs() < 1e-5);
            assert!((f64::from(out[pair + 2]) - expected[1]).abs() < 1e-5);
        }
    }
}

#[test]
fn what_is_behind_the_turned_elements_stays() {
    let x: Vec<f32> = (1..=24).map(|i| i as f32).collect();
    let whole = |frequencies: &[f64], magnitude| {
        let rotary = Rotary { frequencies: frequencies.to_vec(), magnitude };
        turned(&rotary, &[5, 9], &x, 6)
    };
    assert_eq!(whole(&[], 1.0), x);
    let (part, larger) = (whole(&[1.0, 0.5], 1.0), whole(&[1.0, 0.5], 2.0));
    for ((x, part), larger) in x.chunks(6).zip(part.chunks(6)).zip(larger.chunks(6)) {
        assert_eq!(x[4..], part[4..]);
        assert_eq!(x[4..], larger[4..]);
        assert!(
            part[..4].iter().zip(&larger[..4]).all(|(one, two)| (2.0 * one - two).abs() < 1e-4)
        );
        assert_ne!(x[..4], part[..4]);
    }
}

#[test]
fn yarn_keeps_fast_frequencies_and_divides_slow_ones() {
    let scaling =
        RopeScaling::Yarn { factor: 4.0, fast: 32.0, slow: 1.0, original_context: 32_768.0 };
    let found = rotary(1e6, scaling, 128);
    let plain = rotary(1e6, RopeScaling::None, 128);
    let ratios: Vec<f64> = plain.iter().zip(&found).map(|(plain, found)| plain / found).collect();
    assert!(ratios.is_sorted());
    assert_eq!((ratios[0], ratios[63]), (1.0, 4.0));
    // 32,768 / (2π · 32) turns: between pairs 23 and 24; one turn: between 39 and 40.
    assert!(ratios[23] == 1.0 && ratios[24] > 1.0 && ratios[39] < 4.0 && ratios[40] == 4.0);
}

#[test]
fn heads_that_cannot_be_turned_are_refused() {
    let new = |scaling, rotated, dim| {
        Rotary::new(&Rope { theta: 1e4, rotated, scaling, magnitude: 1.0 }, dim)
    };
    assert!(new(RopeScaling::None, 6, 7).is_ok());
    assert!(new(RopeScaling::None, 7, 7).is_err());
    assert!(new(RopeScaling::None, 10, 8).is_err());
    assert!(new(RopeScaling::Factors(vec![1.0; 3]), 8, 8).is_err());
}

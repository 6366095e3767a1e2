//! `silu_gate` and `gelu_gate`: the product of a gated MLP's two halves, eight numbers at a time.

#![expect(clippy::inline_always, reason = "arithmetic of registers; a call would spill them")]

use std::f32::consts::LOG2_E;

use super::attend::lanes::{Lanes, exp2};

const WIDTH: usize = 8;

/// `out = silu(gates) * values`, silu(x) = x / (1 + exp(-x)).
///
/// # Panics
/// If the slices are not of one length.
pub fn silu_gate(out: &mut [f32], gates: &[f32], values: &[f32]) {
    gate(out, (gates, values), |x| x * Lanes::splat(LOG2_E));
}

/// `out = gelu(gates) * values`, gelu(x) = x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
///
/// # Panics
/// If the slices are not of one length.
pub fn gelu_gate(out: &mut [f32], gates: &[f32], values: &[f32]) {
    /// √(2/π)
    const INNER: f32 = 0.797_884_6;
    // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u))
    gate(out, (gates, values), |x| {
        let cubed = (x * x) * (x * Lanes::splat(0.044_715));
        (x + cubed) * Lanes::splat(2.0 * INNER * LOG2_E)
    });
}

/// `out = gates / (1 + 2^-exponent(gates)) * values`
#[inline(always)]
fn gate(out: &mut [f32], (gates, values): (&[f32], &[f32]), exponent: impl Fn(Lanes) -> Lanes) {
    assert!(out.len() == gates.len() && out.len() == values.len(), "halves of different lengths");
    let of = |gates: &[f32; WIDTH], values: &[f32; WIDTH]| {
        let x = Lanes::new(*gates);
        let power = exponent(x);
        // Of the positive side: no power is above 1.
        let small = exp2(-power.abs());
        let numerator = power.simd_lt(Lanes::ZERO).bitselect(small, Lanes::ONE);
        (x * numerator / (Lanes::ONE + small) * Lanes::new(*values)).to_array()
    };
    let (blocks, rest) = out.as_chunks_mut::<WIDTH>();
    let (gates, last_gates) = gates.as_chunks::<WIDTH>();
    let (values, last_values) = values.as_chunks::<WIDTH>();
    for ((out, gates), values) in blocks.iter_mut().zip(gates).zip(values) {
        *out = of(gates, values);
    }
    let padded = |part: &[f32]| {
        let mut block = [0.0; WIDTH];
        block[..part.len()].copy_from_slice(part);
        block
    };
    rest.copy_from_slice(&of(&padded(last_gates), &padded(last_values))[..rest.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1e-6 of the gate.
    fn check(kernel: fn(&mut [f32], &[f32], &[f32]), exact: fn(f64) -> f64) {
        let gates: Vec<f32> = (-20_003..=20_003).map(|i| i as f32 / 500.0).collect();
        let values: Vec<f32> = (0..gates.len()).map(|i| (i % 7) as f32 - 3.0).collect();
        let mut out = vec![f32::NAN; gates.len()];
        kernel(&mut out, &gates, &values);
        for ((x, value), out) in gates.iter().zip(&values).zip(&out) {
            let expected = exact(f64::from(*x)) * f64::from(*value);
            let bound = 1e-6 * f64::from(x.abs().max(0.1));
            assert!((f64::from(*out) - expected).abs() <= bound, "{x}: {out}, not {expected}");
        }
        for length in 0..=17 {
            let mut part = vec![f32::NAN; length];
            kernel(&mut part, &gates[..length], &values[..length]);
            assert_eq!(part, out[..length]);
        }
        let mut ends = [0.0; 4];
        kernel(&mut ends, &[1e30, -1e30, f32::NAN, 0.0], &[2.0; 4]);
        assert_eq!(ends[..2], [2e30, 0.0]);
        assert!(ends[2].is_nan() && ends[3] == 0.0);
    }

    #[test]
    fn silu_follows_its_formula() {
        check(silu_gate, |x| x / (1.0 + (-x).exp()));
    }

    #[test]
    fn gelu_follows_its_formula() {
        check(gelu_gate, |x| {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        });
    }
}

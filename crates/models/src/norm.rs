//! `RmsNorm`: rows divided by their root mean square.

use candle_core::{Device, Result, Tensor};

/// `x / sqrt(mean(x²) + eps) * weight`, row by row.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// weight: `[width]`.
    pub fn new(weight: Vec<f32>, eps: f64) -> Result<Self> {
        let width = weight.len();
        Ok(Self { weight: Tensor::from_vec(weight, width, &Device::Cpu)?, eps: eps as f32 })
    }

    /// x: `[…, width]` f32, contiguous; returns the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::ops::rms_norm(x, &self.weight, self.eps)
    }

    /// Bytes of the weight.
    pub fn bytes(&self) -> u64 {
        4 * self.weight.elem_count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_scaled_alone() {
        let (rows, hidden, eps) = (40, 24, 1e-5);
        let x: Vec<f32> = (0..rows * hidden).map(|i| ((i * 29 % 83) as f32 - 41.0) / 9.0).collect();
        let weight: Vec<f32> = (0..hidden).map(|i| 0.5 + i as f32 / 20.0).collect();
        let norm = RmsNorm::new(weight.clone(), eps).unwrap();
        let run = |x: &[f32]| {
            let x = Tensor::from_slice(x, (x.len() / hidden, hidden), &Device::Cpu).unwrap();
            norm.forward(&x).unwrap().to_vec2::<f32>().unwrap()
        };
        let together = run(&x);
        for (x, out) in x.chunks(hidden).zip(&together) {
            assert_eq!(&run(x)[0], out);
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / hidden as f64;
            for ((x, w), out) in x.iter().zip(&weight).zip(out) {
                let exact = f64::from(*x) / (mean + eps).sqrt() * f64::from(*w);
                assert!((f64::from(*out) - exact).abs() < 1e-6 * exact.abs().max(1.0));
            }
        }
    }
}

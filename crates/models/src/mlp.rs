//! `Mlp`: the gated feed-forward part of a block.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::Linear;

/// `down(silu(gate(x)) * up(x))`.
#[derive(Debug)]
pub struct Mlp {
    gate_up: Linear,
    down: Linear,
}

impl Mlp {
    /// gate_up: `[2 * intermediate, hidden]`, the gate's rows first; down: `[hidden,
    /// intermediate]`.
    pub fn new(gate_up: Linear, down: Linear) -> Self {
        Self { gate_up, down }
    }

    /// x: `[tokens, hidden]`; returns the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&swiglu(&self.gate_up.forward(x)?)?)
    }

    /// Bytes of the matrices.
    pub fn bytes(&self) -> u64 {
        self.gate_up.bytes() + self.down.bytes()
    }
}

/// x: `[tokens, 2 * width]`, gates first; returns `[tokens, width]`.
fn swiglu(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { x.apply_op1_no_bwd(&SwiGlu) } else { candle_nn::ops::swiglu(x) }
}

/// One pass over both halves, by rows in parallel; candle's makes two passes on one thread.
struct SwiGlu;

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, both) = layout.shape().dims2()?;
        let width = both / 2;
        let Some((start, end)) = layout.contiguous_offsets().filter(|_| both == 2 * width) else {
            bail!("gates and values are not contiguous halves")
        };
        let x = &x.as_slice::<f32>()?[start..end];
        let mut out = vec![0.0; rows * width];
        if width > 0 {
            let pairs = out.par_chunks_exact_mut(width).zip(x.par_chunks_exact(both));
            pairs.for_each(|(out, x)| {
                let (gates, values) = x.split_at(width);
                for ((out, gate), value) in out.iter_mut().zip(gates).zip(values) {
                    *out = gate / (1.0 + (-gate).exp()) * value;
                }
            });
        }
        Ok((CpuStorage::F32(out), (rows, width).into()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn gates_come_first_and_extremes_stay_finite() {
        let x = [[0.0f32, 1.0, -1000.0, 3.0, 2.0, 5.0], [1000.0, -2.0, 4.0, 0.5, 3.0, -1.0]];
        let x = Tensor::new(&x, &Device::Cpu).unwrap();
        let out = swiglu(&x).unwrap().to_vec2::<f32>().unwrap();
        let silu = |gate: f64| gate / (1.0 + (-gate).exp());
        let expected = [[0.0, 2.0 * silu(1.0), 0.0], [500.0, 3.0 * silu(-2.0), -silu(4.0)]];
        for (out, expected) in out.iter().flatten().zip(expected.as_flattened()) {
            assert!((f64::from(*out) - expected).abs() < 1e-6, "{out} {expected}");
        }
        let odd = Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu).unwrap();
        assert!(swiglu(&odd).is_err());
    }
}

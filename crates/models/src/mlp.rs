//! `Mlp`: the gated feed-forward part of a block, one or several of which a router picks.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::experts::Experts;
use crate::{Activation, Linear};

/// The feed-forward part of a block.
#[derive(Debug)]
pub(crate) enum Mlp {
    Dense(Gated),
    Experts(Experts),
}

impl Mlp {
    /// x: `[tokens, hidden]`, contiguous; returns the same shape.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(gated) => gated.forward(x),
            Self::Experts(experts) => experts.forward(x),
        }
    }

    /// Bytes of the matrices.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Dense(gated) => gated.bytes(),
            Self::Experts(experts) => experts.bytes(),
        }
    }
}

/// `down(activation(gate(x)) * up(x))`.
#[derive(Debug)]
pub(crate) struct Gated {
    gate_up: Linear,
    down: Linear,
    activation: Activation,
}

impl Gated {
    /// gate_up: `[2 * intermediate, hidden]`, the gate's rows first; down: `[hidden,
    /// intermediate]`.
    pub(crate) fn new(gate_up: Linear, down: Linear, activation: Activation) -> Self {
        Self { gate_up, down, activation }
    }

    /// x: `[tokens, hidden]`; returns the same shape.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&gate(&self.gate_up.forward(x)?, self.activation)?)
    }

    /// Bytes of the matrices.
    pub(crate) fn bytes(&self) -> u64 {
        self.gate_up.bytes() + self.down.bytes()
    }
}

/// x: `[tokens, 2 * width]`, gates first; returns `[tokens, width]`.
fn gate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.apply_op1_no_bwd(&Gate(activation));
    }
    let halves = x.chunk(2, 1)?;
    match activation {
        Activation::Silu => &halves[0].silu()? * &halves[1],
        Activation::GeluTanh => &halves[0].gelu()? * &halves[1],
    }
}

impl Activation {
    fn of(self, x: f32) -> f32 {
        /// √(2/π).
        const INNER: f32 = 0.797_884_6;
        match self {
            Self::Silu => x / (1.0 + (-x).exp()),
            Self::GeluTanh => 0.5 * x * (1.0 + (INNER * (x + 0.044_715 * x * x * x)).tanh()),
        }
    }
}

/// One pass over both halves, by rows in parallel; candle's makes two passes on one thread.
struct Gate(Activation);

impl CustomOp1 for Gate {
    fn name(&self) -> &'static str {
        "gate"
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
                    *out = self.0.of(*gate) * value;
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
        let out = gate(&x, Activation::Silu).unwrap().to_vec2::<f32>().unwrap();
        let silu = |gate: f64| gate / (1.0 + (-gate).exp());
        let expected = [[0.0, 2.0 * silu(1.0), 0.0], [500.0, 3.0 * silu(-2.0), -silu(4.0)]];
        for (out, expected) in out.iter().flatten().zip(expected.as_flattened()) {
            assert!((f64::from(*out) - expected).abs() < 1e-6, "{out} {expected}");
        }
        let odd = Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu).unwrap();
        assert!(gate(&odd, Activation::Silu).is_err());
    }

    #[test]
    fn gelu_follows_its_tanh_formula() {
        let gates: Vec<f32> = (-1000..=1000).map(|i| i as f32 / 50.0).collect();
        let ones = vec![1.0; gates.len()];
        let x = [gates.as_slice(), &ones].concat();
        let x = Tensor::from_vec(x, (1, 2 * gates.len()), &Device::Cpu).unwrap();
        let out = gate(&x, Activation::GeluTanh).unwrap().to_vec2::<f32>().unwrap();
        for (x, out) in gates.iter().map(|x| f64::from(*x)).zip(&out[0]) {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            let expected = 0.5 * x * (1.0 + inner.tanh());
            assert!((f64::from(*out) - expected).abs() < 1e-6 * x.abs().max(1.0), "{x}");
        }
    }
}

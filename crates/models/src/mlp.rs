//! `Mlp`: the gated feed-forward part of a block, one or several of which a router picks.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, bail};
use kvant_kernels::cpu::{gelu_gate, silu_gate};
use kvant_kernels::device::Activations;
use rayon::prelude::*;

use crate::experts::Experts;
use crate::floats::{floats, floats_mut};
use crate::gpu::{GpuStep, activation_code};
use crate::norm::ALONE;
use crate::workspace::Views;
use crate::{Activation, Linear};

/// The feed-forward part of a block.
#[derive(Debug)]
pub(crate) enum Mlp {
    Dense(Gated),
    Experts(Experts),
}

impl Mlp {
    /// From the normed copy of the stream to `delta`; returns the numbers that it is of.
    pub(crate) fn forward(&self, views: &Views) -> Result<Activations> {
        match self {
            Self::Dense(gated) => gated.forward(views),
            Self::Experts(experts) => experts.forward(views).map(|()| Activations::F32),
        }
    }

    /// The two matrices, unless there are experts.
    pub(crate) fn linears(&self) -> Option<[&Linear; 2]> {
        match self {
            Self::Dense(gated) => Some([&gated.gate_up, &gated.down]),
            Self::Experts(_) => None,
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

    fn forward(&self, views: &Views) -> Result<Activations> {
        let Views { gate_up, gated, normed, delta, .. } = views;
        if let Some(step) = &views.gpu {
            self.gate(step, normed, [gate_up, gated])?;
            return self.down.apply_fast(Some(step), [gated, delta]);
        }
        self.gate_up.forward(gate_up, normed)?;
        gated.inplace_op2(gate_up, &Gate(self.activation))?;
        self.down.forward(delta, gated)?;
        Ok(Activations::F32)
    }

    /// The same on a GPU, of rows x to rows of out.
    pub(crate) fn launch(
        &self,
        step: &GpuStep,
        [x, out]: [&Tensor; 2],
        [gate_up, gated]: [&Tensor; 2],
    ) -> Result<()> {
        self.gate(step, x, [gate_up, gated])?;
        self.down.apply(out, gated, Some(step))
    }

    /// The gated product.
    fn gate(&self, step: &GpuStep, x: &Tensor, [gate_up, gated]: [&Tensor; 2]) -> Result<()> {
        let activation = activation_code(self.activation);
        if !self.gate_up.gated(step, (activation, &self.down), [x, gated])? {
            let from = self.gate_up.apply_fast(Some(step), [x, gate_up])?;
            step.gate(gated, (gate_up, from), (activation, self.down.takes_copies()))?;
        }
        Ok(())
    }

    /// The same on slices, with buffers of its own. x: `[tokens, hidden]`; returns the same shape.
    pub(crate) fn compute(&self, x: &[f32]) -> Result<Vec<f32>> {
        let gate_up = self.gate_up.compute(x)?;
        let mut gated = vec![0.0; gate_up.len() / 2];
        let tokens = x.len() / self.gate_up.input();
        Gate(self.activation).compute(&mut gated, &gate_up, tokens)?;
        self.down.compute(&gated)
    }

    /// Bytes of the matrices.
    pub(crate) fn bytes(&self) -> u64 {
        self.gate_up.bytes() + self.down.bytes()
    }
}

/// x: `[tokens, 2 * width]`, gates first; out: `[tokens, width]`. One pass over both halves.
struct Gate(Activation);

impl Gate {
    fn compute(&self, out: &mut [f32], x: &[f32], tokens: usize) -> Result<()> {
        let width = out.len() / tokens.max(1);
        if x.len() != 2 * out.len() || width == 0 || out.len() != tokens * width {
            bail!("{} gates and values for {} results", x.len(), out.len())
        }
        let pairs = out.par_chunks_exact_mut(width).zip(x.par_chunks_exact(2 * width));
        pairs.with_min_len((ALONE / 4).div_ceil(width)).for_each(|(out, x)| {
            let (gates, values) = x.split_at(width);
            match self.0 {
                Activation::Silu => silu_gate(out, gates, values),
                Activation::GeluTanh => gelu_gate(out, gates, values),
            }
        });
        Ok(())
    }
}

impl InplaceOp2 for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(
        &self,
        out: &mut CpuStorage,
        out_layout: &Layout,
        x: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        let (tokens, _) = layout.shape().dims2()?;
        self.compute(floats_mut(out, out_layout)?, floats(x, layout)?, tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(x: &[f32], tokens: usize, activation: Activation) -> Result<Vec<f32>> {
        let mut out = vec![0.0; x.len() / 2];
        Gate(activation).compute(&mut out, x, tokens).map(|()| out)
    }

    #[test]
    fn gates_come_first_and_extremes_stay_finite() {
        let x = [[0.0f32, 1.0, -1000.0, 3.0, 2.0, 5.0], [1000.0, -2.0, 4.0, 0.5, 3.0, -1.0]];
        let out = gate(x.as_flattened(), 2, Activation::Silu).unwrap();
        let silu = |gate: f64| gate / (1.0 + (-gate).exp());
        let expected = [[0.0, 2.0 * silu(1.0), 0.0], [500.0, 3.0 * silu(-2.0), -silu(4.0)]];
        for (out, expected) in out.iter().zip(expected.as_flattened()) {
            assert!((f64::from(*out) - expected).abs() < 1e-6, "{out} {expected}");
        }
        assert!(gate(&[1.0, 2.0, 3.0], 1, Activation::Silu).is_err());
        assert!(gate(&[1.0; 6], 2, Activation::Silu).is_err());
    }

    #[test]
    fn gelu_follows_its_tanh_formula() {
        let gates: Vec<f32> = (-1000..=1000).map(|i| i as f32 / 50.0).collect();
        let ones = vec![1.0; gates.len()];
        let out = gate(&[gates.as_slice(), &ones].concat(), 1, Activation::GeluTanh).unwrap();
        for (x, out) in gates.iter().map(|x| f64::from(*x)).zip(&out) {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            let expected = 0.5 * x * (1.0 + inner.tanh());
            assert!((f64::from(*out) - expected).abs() < 1e-6 * x.abs().max(1.0), "{x}");
        }
    }
}

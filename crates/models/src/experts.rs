//! `Experts`: a mixture of experts. What a token gets depends on that token alone, bit for bit.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, bail};

use crate::floats::{floats, floats_mut};
use crate::gpu::GpuStep;
use crate::mlp::Gated;
use crate::workspace::Views;
use crate::{ExpertSpec, Linear};

/// A router and the MLPs among which it picks.
#[derive(Debug)]
pub(crate) struct Experts {
    spec: ExpertSpec,
    router: Linear,
    /// `spec.count` of them.
    mlps: Vec<Gated>,
}

/// A token that an expert is to compute.
struct Visit {
    token: usize,
    weight: f32,
}

impl Experts {
    /// router: `[count, hidden]`.
    pub(crate) fn new(spec: ExpertSpec, router: Linear, mlps: Vec<Gated>) -> Self {
        Self { spec, router, mlps }
    }

    /// From the normed copy of the stream to `delta`. Unlike a plain MLP it allocates: how many
    /// tokens an expert gets is known only when the router has spoken.
    pub(crate) fn forward(&self, views: &Views) -> Result<()> {
        match &views.gpu {
            None => views.delta.inplace_op2(&views.normed, self),
            Some(step) => self.launch(step, views),
        }
    }

    /// The same on a GPU. The host waits for the scores: it picks as it does on the CPU.
    fn launch(&self, step: &GpuStep, views: &Views) -> Result<()> {
        let Some([scores, taken, given]) = &views.routed else { bail!("no room for experts") };
        self.router.apply(scores, &views.normed, Some(step))?;
        let visits = self.visits(&scores.flatten_all()?.to_vec1()?);
        let all = || visits.iter().flatten();
        let rows: Vec<u32> = all().map(|visit| visit.token as u32).collect();
        let weights: Vec<f32> = all().map(|visit| visit.weight).collect();
        step.visits(&rows, &weights)?;
        views.delta.zero_set()?;
        let mut first = 0;
        for (mlp, visits) in self.mlps.iter().zip(&visits).filter(|(_, v)| !v.is_empty()) {
            let own = |tensor: &Tensor| tensor.narrow(0, 0, visits.len());
            let [taken, given] = [own(taken)?, own(given)?];
            let [gate_up, gated] = [own(&views.gate_up)?, own(&views.gated)?];
            step.visitors(&taken, &views.normed, first)?;
            mlp.launch(step, [&taken, &given], [&gate_up, &gated])?;
            step.weigh(&views.delta, &given, first)?;
            first += visits.len();
        }
        Ok(())
    }

    /// Which tokens each expert is to compute, from the scores `[tokens, count]`.
    fn visits(&self, scores: &[f32]) -> Vec<Vec<Visit>> {
        let mut visits: Vec<Vec<Visit>> = self.mlps.iter().map(|_| Vec::new()).collect();
        for (token, scores) in scores.chunks(self.spec.count).enumerate() {
            for (expert, weight) in picked(scores, &self.spec) {
                visits[expert].push(Visit { token, weight });
            }
        }
        visits
    }

    fn compute(&self, out: &mut [f32], x: &[f32]) -> Result<()> {
        let hidden = self.router.input();
        let visits = self.visits(&self.router.compute(x)?);
        out.fill(0.0);
        // In the order of experts: a token's sum has one order, whoever else is in the step.
        for (mlp, visits) in self.mlps.iter().zip(&visits).filter(|(_, v)| !v.is_empty()) {
            let own = visits.iter().flat_map(|v| &x[v.token * hidden..][..hidden]);
            let results = mlp.compute(&own.copied().collect::<Vec<_>>())?;
            for (visit, result) in visits.iter().zip(results.chunks_exact(hidden)) {
                let out = &mut out[visit.token * hidden..][..hidden];
                out.iter_mut().zip(result).for_each(|(out, r)| *out += visit.weight * r);
            }
        }
        Ok(())
    }

    /// Bytes of all matrices.
    pub(crate) fn bytes(&self) -> u64 {
        self.router.bytes() + self.mlps.iter().map(Gated::bytes).sum::<u64>()
    }
}

impl InplaceOp2 for Experts {
    fn name(&self) -> &'static str {
        "experts"
    }

    fn cpu_fwd(
        &self,
        out: &mut CpuStorage,
        out_layout: &Layout,
        x: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        self.compute(floats_mut(out, out_layout)?, floats(x, layout)?)
    }
}

/// Experts of one token, by their scores, and their weights: the softmax over all scores.
fn picked(scores: &[f32], spec: &ExpertSpec) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // Stable: of equal scores the first wins.
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let highest = order.first().map_or(0.0, |first| scores[*first]);
    let weight = |expert: usize| (scores[expert] - highest).exp();
    let counted = if spec.normed { spec.used.min(order.len()) } else { order.len() };
    let total: f32 = order[..counted].iter().map(|expert| weight(*expert)).sum();
    order.into_iter().take(spec.used).map(|expert| (expert, weight(expert) / total)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, TensorView, WeightDtype};

    const SPEC: ExpertSpec = ExpertSpec { count: 5, used: 2, normed: true, mixtral_names: false };

    #[test]
    fn the_highest_scores_are_picked_and_weighed() {
        let scores = [0.0, 2.0, -1.0, 2.0, 1.0];
        let (tie, far) = (picked(&scores, &SPEC), picked(&[0.0, 300.0, -300.0, 1.0, 2.0], &SPEC));
        assert_eq!(tie, [(1, 0.5), (3, 0.5)]);
        assert_eq!(far, [(1, 1.0), (4, 0.0)]);
        let total: f32 = scores.iter().map(|score: &f32| score.exp()).sum();
        for (expert, weight) in picked(&scores, &ExpertSpec { normed: false, ..SPEC }) {
            assert!((weight - scores[expert].exp() / total).abs() < 1e-6);
        }
    }

    #[test]
    fn a_token_gets_the_same_bits_alone_and_among_others() {
        let (hidden, wide, tokens) = (32, 16, 23);
        let matrix = |rows: usize, columns: usize, seed: usize| {
            let element = |i: usize| (((i + seed) * 7919 % 10_007) as f32 - 5003.0) / 20_000.0;
            let bytes: Vec<u8> =
                (0..rows * columns).flat_map(|i| element(i).to_le_bytes()).collect();
            let shape = vec![rows, columns];
            let view = TensorView { dtype: WeightDtype::F32, shape, bytes: bytes.into() };
            Linear::new(&view, None).unwrap()
        };
        let expert = |seed: usize| {
            let gate_up = matrix(2 * wide, hidden, 31 * seed);
            Gated::new(gate_up, matrix(hidden, wide, 77 * seed), Activation::Silu)
        };
        let experts = Experts::new(SPEC, matrix(5, hidden, 5), (1..=5).map(expert).collect());
        let x: Vec<f32> =
            (0..tokens * hidden).map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0).collect();
        let run = |x: &[f32]| {
            let mut out = vec![f32::NAN; x.len()];
            experts.compute(&mut out, x).unwrap();
            out
        };
        let together = run(&x);
        for (x, together) in x.chunks(hidden).zip(together.chunks(hidden)) {
            assert_eq!(run(x), together);
        }
        let used: std::collections::BTreeSet<_> = x
            .chunks(hidden)
            .flat_map(|x| {
                let scores = experts.router.compute(x).unwrap();
                picked(&scores, &SPEC).into_iter().map(|(expert, _)| expert)
            })
            .collect();
        assert!(used.len() > 2, "{used:?}");
    }
}

//! `RmsNorm`: rows divided by their root mean square, in one pass with what is added before.

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, bail};
use kvant_kernels::device::GpuBuffer;
use rayon::prelude::*;

use crate::Site;
use crate::floats::{floats, floats_mut};
use crate::gpu::{Added, Around};
use crate::workspace::Views;

/// Numbers that one thread takes: waking another for fewer costs more than it gives.
pub(crate) const ALONE: usize = 16 * 1024;
/// Partial sums of a row.
const LANES: usize = 16;

/// `x / sqrt(mean(x²) + eps) * weight`, row by row.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Vec<f32>,
    eps: f32,
    /// The weight on a GPU.
    on_gpu: Option<GpuBuffer>,
}

impl RmsNorm {
    /// weight: `[width]`, at least one number.
    pub fn new(weight: Vec<f32>, eps: f64) -> Result<Self> {
        if weight.is_empty() {
            bail!("a norm of no width")
        }
        Ok(Self { weight, eps: eps as f32, on_gpu: None })
    }

    /// With its weight where a decoder lives.
    pub(crate) fn at(mut self, site: &Site) -> Result<Self> {
        self.on_gpu = site.floats(&self.weight)?;
        Ok(self)
    }

    /// The weight on the GPU, and what is added to the mean square.
    pub(crate) fn on_gpu(&self) -> Result<(&GpuBuffer, f32)> {
        match &self.on_gpu {
            Some(weight) => Ok((weight, self.eps)),
            None => bail!("a norm of {} numbers is not on the GPU", self.weight.len()),
        }
    }

    /// The normed copy of the stream.
    pub(crate) fn norm(&self, views: &Views, around: Around) -> Result<()> {
        match &views.gpu {
            None => self.norm_stream(&views.stream),
            Some(step) => step.norm(views, (self, around), Added::Nothing),
        }
    }

    /// Adds delta, or its `post` norm, to the stream; then the normed copy of that.
    pub(crate) fn add(&self, views: &Views, post: Option<&RmsNorm>, around: Around) -> Result<()> {
        match &views.gpu {
            None => self.add_and_norm(&views.stream, &views.delta, post),
            Some(step) => {
                step.norm(views, (self, around), post.map_or(Added::Delta, Added::Normed))
            }
        }
    }

    /// stream: `[2, tokens, width]`; the second half becomes the norm of the first.
    fn norm_stream(&self, stream: &Tensor) -> Result<()> {
        stream.inplace_op1(&Norm(self))
    }

    /// stream: `[2, tokens, width]`, delta: `[tokens, width]`. The first half becomes its sum with
    /// delta (or with the `post` norm of delta), the second half the norm of that.
    fn add_and_norm(&self, stream: &Tensor, delta: &Tensor, post: Option<&RmsNorm>) -> Result<()> {
        stream.inplace_op2(delta, &AddAndNorm { norm: self, post })
    }

    /// out and x: `[width]`.
    pub(crate) fn row(&self, out: &mut [f32], x: &[f32]) {
        let factor = self.factor(x);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(&self.weight) {
            *out = x * factor * weight;
        }
    }

    /// One over the root mean square of a row.
    fn factor(&self, x: &[f32]) -> f32 {
        // In lanes and in one order, so that the sum is vectors' work and depends on the row alone.
        let mut sums = [0.0_f32; LANES];
        let (blocks, rest) = x.as_chunks::<LANES>();
        for block in blocks {
            for (sum, x) in sums.iter_mut().zip(block) {
                *sum = x.mul_add(*x, *sum);
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *sum = x.mul_add(*x, *sum);
        }
        1.0 / (sums.iter().sum::<f32>() / x.len() as f32 + self.eps).sqrt()
    }

    /// Bytes of the weight.
    pub fn bytes(&self) -> u64 {
        size_of_val(self.weight.as_slice()) as u64
    }

    /// The halves of a stream, row by row, and the index of a thread's rows.
    fn halves<'a>(
        &self,
        stream: &'a mut [f32],
    ) -> Result<impl IndexedParallelIterator<Item = (&'a mut [f32], &'a mut [f32])>> {
        let width = self.weight.len();
        if !stream.len().is_multiple_of(2 * width) {
            bail!("{} numbers are no two halves of rows of {width}", stream.len())
        }
        let (x, normed) = stream.split_at_mut(stream.len() / 2);
        let rows = x.par_chunks_exact_mut(width).zip(normed.par_chunks_exact_mut(width));
        Ok(rows.with_min_len(ALONE.div_ceil(width)))
    }
}

struct Norm<'a>(&'a RmsNorm);

impl InplaceOp1 for Norm<'_> {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, stream: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let rows = self.0.halves(floats_mut(stream, layout)?)?;
        rows.for_each(|(x, normed)| self.0.row(normed, x));
        Ok(())
    }
}

struct AddAndNorm<'a> {
    norm: &'a RmsNorm,
    post: Option<&'a RmsNorm>,
}

impl InplaceOp2 for AddAndNorm<'_> {
    fn name(&self) -> &'static str {
        "add and norm"
    }

    fn cpu_fwd(
        &self,
        stream: &mut CpuStorage,
        stream_layout: &Layout,
        delta: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        let (stream, delta) = (floats_mut(stream, stream_layout)?, floats(delta, layout)?);
        let width = self.norm.weight.len();
        if stream.len() != 2 * delta.len() || self.post.is_some_and(|p| p.weight.len() != width) {
            bail!("{} numbers added to a stream of {}", delta.len(), stream.len())
        }
        let rows = self.norm.halves(stream)?.zip(delta.par_chunks_exact(width));
        rows.for_each(|((x, normed), delta)| {
            match self.post {
                None => x.iter_mut().zip(delta).for_each(|(x, delta)| *x += delta),
                Some(post) => {
                    let factor = post.factor(delta);
                    for ((x, delta), weight) in x.iter_mut().zip(delta).zip(&post.weight) {
                        *x += delta * factor * weight;
                    }
                }
            }
            self.norm.row(normed, x);
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    const EPS: f64 = 1e-5;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| (((i + seed) * 29 % 83) as f32 - 41.0) / 9.0).collect()
    }

    /// In f64.
    fn exact(x: &[f64], weight: &[f32]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        x.iter().zip(weight).map(|(x, w)| x / (mean + EPS).sqrt() * f64::from(*w)).collect()
    }

    fn near(found: &[f32], exact: &[f64]) {
        assert_eq!(found.len(), exact.len());
        for (found, exact) in found.iter().zip(exact) {
            assert!((f64::from(*found) - exact).abs() < 2e-6 * exact.abs().max(1.0), "{found}");
        }
    }

    /// Both halves of the stream after the sum and the norm.
    fn run(norm: &RmsNorm, post: Option<&RmsNorm>, x: &[f32], delta: &[f32]) -> [Vec<f32>; 2] {
        let (width, tokens) = (norm.weight.len(), x.len() / norm.weight.len());
        let both = [x, &vec![f32::NAN; x.len()]].concat();
        let stream = Tensor::from_vec(both, (2, tokens, width), &Device::Cpu).unwrap();
        let delta = Tensor::from_slice(delta, (tokens, width), &Device::Cpu).unwrap();
        norm.add_and_norm(&stream, &delta, post).unwrap();
        let halves = stream.reshape((2, tokens * width)).unwrap().to_vec2::<f32>().unwrap();
        halves.try_into().unwrap()
    }

    #[test]
    fn sums_and_norms_agree_with_f64_and_rows_are_alone() {
        // Enough rows for two threads, and widths around the lanes.
        for width in [1, 15, 16, 40, 576] {
            let tokens = if width == 576 { 60 } else { 7 };
            let weight: Vec<f32> = (0..width).map(|i| 0.5 + (i % 20) as f32 / 20.0).collect();
            let norm = RmsNorm::new(weight.clone(), EPS).unwrap();
            let post = RmsNorm::new(weight.iter().map(|w| 2.0 - w).collect(), EPS).unwrap();
            let (x, delta) = (numbers(tokens * width, 0), numbers(tokens * width, 17));
            for post in [None, Some(&post)] {
                let [sums, normed] = run(&norm, post, &x, &delta);
                let rows = x.chunks(width).zip(delta.chunks(width));
                let outs = sums.chunks(width).zip(normed.chunks(width));
                for ((x, delta), (sum, normed)) in rows.zip(outs) {
                    let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
                    let added = match post {
                        None => wide(delta),
                        Some(post) => exact(&wide(delta), &post.weight),
                    };
                    let total: Vec<f64> = wide(x).iter().zip(&added).map(|(a, b)| a + b).collect();
                    near(sum, &total);
                    near(normed, &exact(&total, &weight));
                    assert_eq!(run(&norm, post, x, delta), [sum.to_vec(), normed.to_vec()]);
                }
            }
        }
    }

    #[test]
    fn a_norm_alone_is_that_of_a_sum_with_zeros() {
        let norm = RmsNorm::new(vec![1.5; 24], EPS).unwrap();
        let x = numbers(72, 3);
        let both = [x.as_slice(), &[f32::NAN; 72]].concat();
        let stream = Tensor::from_vec(both, (2, 3, 24), &Device::Cpu).unwrap();
        norm.norm_stream(&stream).unwrap();
        let found = stream.reshape((2, 72)).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(found, run(&norm, None, &x, &[0.0; 72]));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        assert!(RmsNorm::new(Vec::new(), EPS).is_err());
        let norm = RmsNorm::new(vec![1.0; 4], EPS).unwrap();
        let zeros =
            |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(norm.norm_stream(&zeros(&[2, 1, 3])).is_err());
        let (stream, post) = (zeros(&[2, 2, 4]), RmsNorm::new(vec![1.0; 3], EPS).unwrap());
        assert!(norm.add_and_norm(&stream, &zeros(&[1, 4]), None).is_err());
        assert!(norm.add_and_norm(&stream, &zeros(&[2, 4]), Some(&post)).is_err());
        assert!(norm.add_and_norm(&stream, &zeros(&[2, 4]), None).is_ok());
    }
}

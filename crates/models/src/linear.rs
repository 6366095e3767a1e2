//! `Linear`: activations times a stored matrix, in the format in which the file has it.

mod on_gpu;

use std::fmt;

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, bail};
use half::{bf16, f16};
use kvant_kernels::cpu::{MatmulShape, PackedWeights, Weights, matmul, quant_matmul};
use kvant_kernels::device::Activations;
use kvant_kernels::{Stash, of_length};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::floats::{floats, floats_mut};
use crate::gpu::GpuStep;
use crate::{Bytes, Site, TensorView, WeightDtype};

pub(crate) use on_gpu::GpuMatrix;
use on_gpu::GpuParts;

/// Alignment that every stored number can do with.
const ALIGN: usize = 4;

/// Results of one of several formats, before they are put between the others.
static PART: Stash<Vec<f32>> = Stash::new();

/// `y = x · weightsᵀ + bias` for one matrix, or several that read the same x, their results side by
/// side.
///
/// A row of y does not depend on the other rows of x: it is the same, bit for bit, alone and in a
/// batch.
#[derive(Debug)]
pub struct Linear {
    /// None on a GPU.
    parts: Vec<Part>,
    on_gpu: Option<GpuParts>,
    bias: Option<Vec<f32>>,
    input: usize,
    output: usize,
}

impl Linear {
    /// One matrix `[out, in]`, and a bias of `out` elements.
    pub fn new(weights: &TensorView, bias: Option<Vec<f32>>) -> Result<Self> {
        Self::joined(std::slice::from_ref(weights), bias)
    }

    /// Matrices `[out, in]` of equal `in`, one below the other; neighbours of one format become one
    /// matrix in memory.
    pub fn joined(weights: &[TensorView], bias: Option<Vec<f32>>) -> Result<Self> {
        Self::joined_at(&Site::Cpu, weights, bias)
    }

    /// The same where a decoder lives.
    pub(crate) fn joined_at(
        site: &Site,
        weights: &[TensorView],
        bias: Option<Vec<f32>>,
    ) -> Result<Self> {
        let mut shapes = Vec::new();
        for views in weights.chunk_by(|a, b| a.dtype == b.dtype) {
            shapes.push((views, joined_shape(views)?));
        }
        let Some((_, [_, input])) = shapes.first() else { bail!("no matrix") };
        let input = *input;
        if shapes.iter().any(|(_, shape)| shape[1] != input) {
            bail!("matrices of different input sizes cannot be joined")
        }
        let output = shapes.iter().map(|(_, shape)| shape[0]).sum();
        if let Some(length) = bias.as_ref().map(Vec::len).filter(|length| *length != output) {
            bail!("a bias of {length} elements for a matrix of {output} rows")
        }
        let (mut parts, mut on_gpu) = (Vec::new(), None);
        match site {
            Site::Cpu => parts.extend(shapes.iter().map(|(views, shape)| Part::new(views, *shape))),
            Site::Gpu(..) => on_gpu = Some(GpuParts::new(site, &shapes, bias.as_deref())?),
        }
        Ok(Self { parts, on_gpu, bias, input, output })
    }

    /// The only matrix on the GPU, if it is of floats.
    pub(crate) fn matrix(&self) -> Option<GpuMatrix> {
        self.on_gpu.as_ref()?.matrix()
    }

    /// Whether all of it is on the GPU as floats.
    pub(crate) fn floats(&self) -> bool {
        self.on_gpu.as_ref().is_some_and(GpuParts::floats)
    }

    /// The product where the activations are.
    pub(crate) fn apply(&self, out: &Tensor, x: &Tensor, gpu: Option<&GpuStep>) -> Result<()> {
        match (gpu, &self.on_gpu) {
            (Some(step), Some(parts)) => parts.forward((step, Activations::F32), out, x),
            (None, None) => self.forward(out, x),
            _ => bail!("weights and activations are on different devices"),
        }
    }

    /// The same in the numbers that take least time for so many rows, which it returns: they are in
    /// the memory of out.
    pub(crate) fn apply_fast(
        &self,
        gpu: Option<&GpuStep>,
        [x, out]: [&Tensor; 2],
    ) -> Result<Activations> {
        let (Some(step), Some(parts)) = (gpu, &self.on_gpu) else {
            self.apply(out, x, gpu)?;
            return Ok(Activations::F32);
        };
        let results = parts.results(step, x.dim(0)?);
        parts.forward((step, results), out, x)?;
        Ok(results)
    }

    /// The numbers of the copies that kernels leave for it, if it reads nothing else.
    pub(crate) fn takes_copies(&self) -> Option<Activations> {
        self.matrix().map(|matrix| matrix.parts().1).filter(|of| *of != Activations::F32)
    }

    /// The gated product of the two halves of the columns on a GPU, for `reader`, if one launch
    /// does it; else false, and nothing is done.
    pub(crate) fn gated(
        &self,
        step: &GpuStep,
        (activation, reader): (u32, &Self),
        [x, out]: [&Tensor; 2],
    ) -> Result<bool> {
        let Some(parts) = &self.on_gpu else { return Ok(false) };
        parts.gated((step, activation, reader.takes_copies()), out, x)
    }

    /// x: `[tokens, in]`; the product is written into out, `[tokens, out]`. Both f32, contiguous.
    pub fn forward(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        out.inplace_op2(x, self)
    }

    /// Columns of the matrices.
    pub(crate) fn input(&self) -> usize {
        self.input
    }

    /// Bytes of the matrices and the bias.
    pub fn bytes(&self) -> u64 {
        let bias = self.bias.as_ref().map_or(0, |bias| size_of_val(bias.as_slice()));
        let parts = self.parts.iter().map(Part::bytes).sum::<usize>();
        (parts + self.on_gpu.as_ref().map_or(0, GpuParts::bytes) + bias) as u64
    }

    /// x: `[tokens, in]`; returns `[tokens, out]` in a buffer of its own.
    pub(crate) fn compute(&self, x: &[f32]) -> Result<Vec<f32>> {
        let mut out = vec![0.0; x.len() / self.input * self.output];
        self.multiply(&mut out, x)?;
        Ok(out)
    }

    fn multiply(&self, out: &mut [f32], x: &[f32]) -> Result<()> {
        let rows = x.len() / self.input;
        if x.len() != rows * self.input || out.len() != rows * self.output {
            bail!("{} activations for a matrix of {} inputs", x.len(), self.input)
        }
        let mut first = 0;
        for part in &self.parts {
            let columns = first..first + part.output;
            first = columns.end;
            // A single row's columns are a slice of the result.
            if rows == 1 || part.output == self.output {
                part.multiply(&mut out[columns.start * rows..columns.end * rows], x)?;
                continue;
            }
            PART.with(|own| {
                let own = of_length(own, rows * part.output);
                part.multiply(own, x)?;
                let rows = out.chunks_exact_mut(self.output).zip(own.chunks_exact(part.output));
                rows.for_each(|(out, own)| out[columns.clone()].copy_from_slice(own));
                Ok::<_, candle_core::Error>(())
            })?;
        }
        if let Some(bias) = &self.bias {
            for row in out.chunks_exact_mut(self.output) {
                row.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
            }
        }
        Ok(())
    }
}

impl InplaceOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        out: &mut CpuStorage,
        out_layout: &Layout,
        x: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        let (rows, input) = layout.shape().dims2()?;
        if input != self.input {
            bail!("activations [{rows}, {input}] for a matrix of {} inputs", self.input)
        }
        self.multiply(floats_mut(out, out_layout)?, floats(x, layout)?)
    }
}

/// A matrix of one format.
struct Part {
    weights: Stored,
    input: usize,
    output: usize,
}

enum Stored {
    /// As in the file, usually mapped: `[out, in]`.
    Float(WeightDtype, Bytes),
    /// A copy of the blocks, repacked for the product; the file's own leave memory.
    Blocks(PackedWeights),
}

impl Part {
    /// Matrices of one format, at least one, that [`joined_shape`] has seen.
    fn new(views: &[TensorView], [output, input]: [usize; 2]) -> Self {
        let view = &views[0];
        let bytes = match views {
            [view] => view.bytes.clone(),
            views => views.iter().map(|view| &*view.bytes).collect::<Vec<_>>().concat().into(),
        };
        let weights = if let Some(format) = view.dtype.block_format() {
            let packed = PackedWeights::new(format, &bytes, input, output);
            for view in views {
                view.bytes.release();
            }
            Stored::Blocks(packed)
        } else if bytes.as_ptr().addr().is_multiple_of(ALIGN) {
            Stored::Float(view.dtype, bytes)
        } else {
            Stored::Float(view.dtype, bytes.to_vec().into())
        };
        Self { weights, input, output }
    }

    fn bytes(&self) -> usize {
        match &self.weights {
            Stored::Float(_, bytes) => bytes.len(),
            Stored::Blocks(blocks) => blocks.bytes(),
        }
    }

    /// out: `[rows, output]`, x: `[rows, input]`.
    fn multiply(&self, out: &mut [f32], x: &[f32]) -> Result<()> {
        let shape =
            MatmulShape { rows: x.len() / self.input, input: self.input, output: self.output };
        let (dtype, bytes) = match &self.weights {
            Stored::Blocks(blocks) => {
                quant_matmul(out, x, blocks);
                return Ok(());
            }
            Stored::Float(dtype, bytes) => (*dtype, bytes),
        };
        let weights = match dtype {
            WeightDtype::F16 => Weights::F16(numbers::<f16>(bytes)?),
            WeightDtype::BF16 => Weights::BF16(numbers::<bf16>(bytes)?),
            _ => Weights::F32(numbers::<f32>(bytes)?),
        };
        matmul(out, x, weights, shape);
        Ok(())
    }
}

/// Rows and columns of matrices of one format, at least one, one below the other.
fn joined_shape(views: &[TensorView]) -> Result<[usize; 2]> {
    let view = &views[0];
    let [_, input] = *view.shape.as_slice() else { bail!("{:?} is no matrix", view.shape) };
    let Some(row_bytes) = view.dtype.bytes(input).filter(|bytes| *bytes > 0) else {
        bail!("rows of {input} elements are no whole blocks of {:?}", view.dtype)
    };
    let mut output = 0;
    for view in views {
        let [rows, columns] = *view.shape.as_slice() else {
            bail!("{:?} is no matrix", view.shape)
        };
        if columns != input || Some(view.bytes.len()) != row_bytes.checked_mul(rows) {
            bail!("{:?} {:?} has {} bytes", view.dtype, view.shape, view.bytes.len())
        }
        output += rows;
    }
    Ok([output, input])
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { weights: _, input, output } = self;
        write!(f, "Part [{output}, {input}]")
    }
}

fn numbers<T: FromBytes + Immutable + KnownLayout>(bytes: &[u8]) -> Result<&[T]> {
    let Ok(numbers) = <[T]>::ref_from_bytes(bytes) else { bail!("weights are not aligned") };
    Ok(numbers)
}

#[cfg(test)]
mod tests;

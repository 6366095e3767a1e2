//! A `Linear` on a GPU: plain floats by the library of the device, blocks by candle's product.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{Error, Result, Tensor};
use kvant_kernels::device::{
    Activations, BiasParams, Gpu, GpuBuffer, GpuError, GpuMatmul, Kernel, Place, PlaceParams,
};

use crate::gpu::{GpuStep, kept, read, written};
use crate::site::upload;
use crate::{Site, TensorView};

/// A matrix of plain floats in the memory of a GPU; a clone is the same one.
#[derive(Clone, Debug)]
pub(crate) struct GpuMatrix {
    memory: Arc<GpuBuffer>,
    numbers: Activations,
}

impl GpuMatrix {
    pub(crate) fn new(memory: GpuBuffer, numbers: Activations) -> Self {
        Self { memory: Arc::new(memory), numbers }
    }

    /// Its memory, and what it is of.
    pub(crate) fn parts(&self) -> (&GpuBuffer, Activations) {
        (&self.memory, self.numbers)
    }
}

/// Matrices side by side, and their bias.
#[derive(Debug)]
pub(super) struct GpuParts {
    /// Each with its rows.
    parts: Vec<(Stored, usize)>,
    bias: Option<GpuBuffer>,
    input: usize,
    output: usize,
}

#[derive(Debug)]
enum Stored {
    Float(GpuMatrix),
    Blocks(Box<QTensor>),
}

impl GpuParts {
    /// Matrices of one format each, with their rows and columns.
    pub(super) fn new(
        site: &Site,
        shapes: &[(&[TensorView], [usize; 2])],
        bias: Option<&[f32]>,
    ) -> Result<Self> {
        let Site::Gpu(device, gpu) = site else { candle_core::bail!("no GPU to put weights on") };
        let mut parts = Vec::new();
        for (views, [rows, input]) in shapes {
            let bytes: Vec<&[u8]> = views.iter().map(|view| &*view.bytes).collect();
            let dtype = views[0].dtype;
            let stored = if let Some(numbers) = dtype.numbers() {
                Stored::Float(GpuMatrix::new(upload(gpu, &bytes)?, numbers))
            } else {
                // In memory of its own: candle wants blocks at even addresses.
                let storage = QStorage::from_data(Cow::Owned(bytes.concat()), device, dtype.ggml());
                Stored::Blocks(Box::new(QTensor::new(storage?, (*rows, *input))?))
            };
            for view in *views {
                view.bytes.release();
            }
            parts.push((stored, *rows));
        }
        let bias = bias.map(|bias| site.floats(bias)).transpose()?.flatten();
        let output = parts.iter().map(|(_, rows)| rows).sum();
        let input = shapes.first().map_or(0, |(_, [_, input])| *input);
        Ok(Self { parts, bias, input, output })
    }

    /// The only matrix, if it is of floats.
    pub(super) fn matrix(&self) -> Option<GpuMatrix> {
        match self.parts.as_slice() {
            [(Stored::Float(matrix), _)] => Some(matrix.clone()),
            _ => None,
        }
    }

    pub(super) fn floats(&self) -> bool {
        self.parts.iter().all(|(stored, _)| matches!(stored, Stored::Float(_)))
    }

    pub(super) fn bytes(&self) -> usize {
        let bytes = |(stored, _): &(Stored, usize)| match stored {
            Stored::Float(matrix) => matrix.memory.bytes(),
            Stored::Blocks(blocks) => blocks.storage_size_in_bytes(),
        };
        self.parts.iter().map(bytes).sum()
    }

    /// x: `[rows, input]`, out: `[rows, output]`.
    pub(super) fn forward(&self, step: &GpuStep, out: &Tensor, x: &Tensor) -> Result<()> {
        let (rows, input) = x.dims2()?;
        if input != self.input || out.dims() != [rows, self.output] {
            candle_core::bail!("{:?} for a matrix of {} inputs", x.shape(), self.input)
        }
        let mut narrow: Option<(Activations, Place<'_>)> = None;
        let mut first = 0;
        for (stored, output) in &self.parts {
            match stored {
                Stored::Float(matrix) => {
                    let numbers = matrix.numbers;
                    let x = match &narrow {
                        _ if numbers == Activations::F32 => {
                            Place::tensor(x).map_err(Error::wrap)?
                        }
                        Some((known, place)) if *known == numbers => place.clone(),
                        _ => {
                            let place = step.narrow(x, numbers)?;
                            narrow = Some((numbers, place.clone()));
                            place
                        }
                    };
                    let (output, stride) = (*output, self.output);
                    let shape = GpuMatmul { rows, input, output, stride, numbers };
                    multiply(step.gpu(), (out, first), (&x, matrix), shape).map_err(Error::wrap)?;
                }
                Stored::Blocks(blocks) => {
                    let part = from_start(x)?.apply_op1_no_bwd(blocks.as_ref())?;
                    step.launch(
                        (Kernel::Place, [output.div_ceil(512), rows, 1]),
                        [read(&part), written(out)],
                        &PlaceParams {
                            width: *output as u32,
                            stride: self.output as u32,
                            first: first as u32,
                        },
                    )?;
                }
            }
            first += output;
        }
        let Some(bias) = &self.bias else { return Ok(()) };
        step.launch(
            (Kernel::Bias, [self.output.div_ceil(512), rows, 1]),
            [kept(bias, 0), written(out)],
            &BiasParams { width: self.output as u32 },
        )
    }
}

/// A tensor from the start of its memory on, where candle wants that: on Metal its product of
/// several rows with blocks takes no offset.
fn from_start(x: &Tensor) -> Result<Tensor> {
    if x.device().is_metal() && x.layout().start_offset() > 0 {
        return x.force_contiguous();
    }
    Ok(x.clone())
}

/// The product into columns of out from `first` on.
fn multiply(
    gpu: &Gpu,
    (out, first): (&Tensor, usize),
    (x, matrix): (&Place<'_>, &GpuMatrix),
    shape: GpuMatmul,
) -> std::result::Result<(), GpuError> {
    let out = Place::tensor(out)?.skip(4 * first)?;
    gpu.matmul(&out, x, &Place::buffer(&matrix.memory, 0)?, shape)
}

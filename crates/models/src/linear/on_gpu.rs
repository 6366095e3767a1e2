//! A `Linear` on a GPU: plain floats by the library of the device, blocks by candle's product.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{DType, Error, Result, Tensor};
use kvant_kernels::device::{
    Activations, BiasParams, GpuBuffer, GpuFew, GpuMatmul, Kernel, Place, PlaceParams,
};

use crate::gpu::{GpuStep, kept, read, written};
use crate::site::upload;
use crate::{Site, TensorView};

/// Rows of a step of decoding, whose products are of f32 whatever the weights.
const PRECISE_ROWS: usize = 64;

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

    /// What the results of so many rows may be of: for prompts bf16, as their weights, where that
    /// saves memory's time; f16 would not hold all.
    pub(super) fn results(&self, step: &GpuStep, rows: usize) -> Activations {
        match (self.parts.as_slice(), &self.bias) {
            ([(Stored::Float(matrix), _)], None)
                if rows > PRECISE_ROWS
                    && matrix.numbers == Activations::BF16
                    && step.gpu().narrow_products() =>
            {
                Activations::BF16
            }
            _ => Activations::F32,
        }
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

    /// x: `[rows, input]`, out: `[rows, output]`, of f32 or, in its memory, of the numbers of
    /// [`Self::results`].
    pub(super) fn forward(
        &self,
        (step, results): (&GpuStep, Activations),
        out: &Tensor,
        x: &Tensor,
    ) -> Result<()> {
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
                    let (output, stride) = (*output, self.output);
                    let shape = GpuMatmul { rows, input, output, stride, numbers, results };
                    let known = narrow.as_ref().filter(|(known, _)| *known == numbers);
                    let known = known.map(|(_, place)| place.clone());
                    let out = Place::tensor(out).and_then(|out| out.skip(4 * first));
                    let out = out.map_err(Error::wrap)?;
                    narrow = multiply((step, &out), (x, known), matrix, shape)?
                        .map(|place| (numbers, place))
                        .or(narrow);
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

impl GpuParts {
    /// The gated product of x with a matrix of gates and one of what they gate, in one launch, if
    /// the GPU has a kernel for so few rows; else false, and nothing is done. x: `[rows, input]`,
    /// out: `[rows, output / 2]`, which may be left as the 16-bit numbers that its reader takes.
    pub(super) fn gated(
        &self,
        (step, activation, reader): (&GpuStep, u32, Option<Activations>),
        out: &Tensor,
        x: &Tensor,
    ) -> Result<bool> {
        let ([(Stored::Float(matrix), _)], None) = (self.parts.as_slice(), &self.bias) else {
            return Ok(false);
        };
        let (numbers, output) = (matrix.numbers, self.output / 2);
        if out.dims() != [x.dim(0)?, output] || x.dim(1)? != self.input {
            candle_core::bail!("{:?} for gates of {} inputs", x.shape(), self.input)
        }
        let (rows, results) = (x.dim(0)?, Activations::F32);
        let shape = GpuMatmul { rows, input: self.input, output, stride: output, numbers, results };
        let weights = Place::buffer(&matrix.memory, 0).map_err(Error::wrap)?;
        let [x_place, out_place] = [Place::tensor(x), Place::tensor(out)];
        let (x_place, out_place) = (x_place.map_err(Error::wrap)?, out_place.map_err(Error::wrap)?);
        if step.gpu().takes_skinny([&x_place, &weights], shape) {
            let narrow = step.narrow(x, numbers)?;
            let instead = reader == Some(numbers);
            let shape = if instead { GpuMatmul { results: numbers, ..shape } } else { shape };
            let product = (shape, Some(activation));
            step.gpu()
                .matmul_skinny(&out_place, &narrow, &weights, product)
                .map_err(Error::wrap)?;
            if instead {
                step.narrowed_itself(out, numbers);
            }
            return Ok(true);
        }
        if !step.gpu().takes_few([&x_place, &weights], shape) {
            return Ok(false);
        }
        let copy = step.copy(x, numbers)?;
        let few = GpuFew { shape, wide: copy.is_none(), gate: Some(activation) };
        let x = copy.unwrap_or(x_place);
        step.gpu().matmul_few(&out_place, &x, &weights, few).map_err(Error::wrap)?;
        Ok(true)
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

/// The product; known is x in the weights' numbers, if it is known, and is returned as soon as it
/// is.
fn multiply<'a>(
    (step, out): (&'a GpuStep, &Place<'_>),
    (x, known): (&'a Tensor, Option<Place<'a>>),
    matrix: &GpuMatrix,
    shape: GpuMatmul,
) -> Result<Option<Place<'a>>> {
    let gpu = step.gpu();
    let weights = Place::buffer(&matrix.memory, 0).map_err(Error::wrap)?;
    let wide = Place::tensor(x).map_err(Error::wrap)?;
    if shape.numbers == Activations::F32 {
        gpu.matmul(out, &wide, &weights, shape).map_err(Error::wrap)?;
        return Ok(None);
    }
    let known = match known {
        // It is of 16 bits itself.
        None if x.dtype() != DType::F32 => Some(wide.clone()),
        None => step.copy(x, shape.numbers)?,
        known => known,
    };
    // A kernel for few rows rounds them itself.
    if known.is_none() && gpu.takes_few([&wide, &weights], shape) {
        let few = GpuFew { shape, wide: true, gate: None };
        gpu.matmul_few(out, &wide, &weights, few).map_err(Error::wrap)?;
        return Ok(None);
    }
    let narrow = match known {
        Some(place) => place,
        None => step.narrow(x, shape.numbers)?,
    };
    gpu.matmul(out, &narrow, &weights, shape).map_err(Error::wrap)?;
    Ok(Some(narrow))
}

//! `Embedding`: rows of the embedding matrix by token id.

use std::borrow::Cow;

use candle_core::quantized::QuantizedType;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, bail};
use half::f16;
use kvant_kernels::device::{Activations, GpuBuffer};

use crate::floats::floats_mut;
use crate::linear::GpuMatrix;
use crate::site::upload;
use crate::{Site, TensorView, WeightDtype};

/// Alignment of the blocks that candle widens.
const ALIGN: usize = 4;

/// The embedding matrix as stored, usually mapped; rows are widened when they are asked for.
#[derive(Debug)]
pub struct Embedding {
    weights: TensorView,
    vocab: usize,
    hidden: usize,
    on_gpu: Option<GpuMatrix>,
}

impl Embedding {
    /// weights: `[vocab, hidden]`.
    pub fn new(weights: TensorView) -> Result<Self> {
        let [vocab, hidden] = *weights.shape.as_slice() else {
            bail!("embedding {:?} is no matrix", weights.shape)
        };
        let row_bytes = weights.dtype.bytes(hidden);
        if row_bytes.and_then(|bytes| bytes.checked_mul(vocab)) != Some(weights.bytes.len()) {
            bail!("embedding {:?} has {} bytes", weights.shape, weights.bytes.len())
        }
        Ok(Self { weights, vocab, hidden, on_gpu: None })
    }

    /// With its matrix where a decoder lives: `shared` if the output matrix is the same one; blocks
    /// are widened to f16.
    pub(crate) fn at(mut self, site: &Site, shared: Option<GpuMatrix>) -> Result<Self> {
        let Some(gpu) = site.gpu() else { return Ok(self) };
        let dtype = self.weights.dtype;
        self.on_gpu = match (shared, dtype.numbers()) {
            (Some(shared), Some(_)) => Some(shared),
            (_, Some(numbers)) => {
                Some(GpuMatrix::new(upload(gpu, &[&self.weights.bytes])?, numbers))
            }
            (_, None) => {
                let mut row = vec![0.0; self.hidden];
                let mut bytes = Vec::with_capacity(2 * self.vocab * self.hidden);
                for id in 0..self.vocab as u32 {
                    self.row(&mut row, id)?;
                    bytes.extend(row.iter().flat_map(|x| f16::from_f32(*x).to_ne_bytes()));
                }
                Some(GpuMatrix::new(upload(gpu, &[&bytes])?, Activations::F16))
            }
        };
        self.weights.bytes.release();
        Ok(self)
    }

    /// The matrix on the GPU.
    pub(crate) fn table(&self) -> Option<(&GpuBuffer, Activations)> {
        self.on_gpu.as_ref().map(GpuMatrix::parts)
    }

    /// Rows of the matrix.
    pub(crate) fn vocab(&self) -> usize {
        self.vocab
    }

    /// Bytes of the matrix.
    pub fn bytes(&self) -> u64 {
        self.weights.bytes.len() as u64
    }

    /// out: `[hidden]`
    fn row(&self, out: &mut [f32], id: u32) -> Result<()> {
        let row = id as usize;
        if row >= self.vocab {
            bail!("token {id} is not in the vocabulary of {}", self.vocab)
        }
        let size = self.weights.bytes.len() / self.vocab;
        let bytes = &self.weights.bytes[row * size..(row + 1) * size];
        let dtype = self.weights.dtype;
        if dtype.is_quantized() {
            // candle makes a row of its own of blocks.
            let CpuStorage::F32(row) = blocks(dtype, bytes).dequantize(self.hidden)? else {
                bail!("blocks of {dtype:?} did not become f32")
            };
            out.copy_from_slice(&row);
        } else {
            dtype.widen(out, bytes);
        }
        Ok(())
    }
}

/// Rows by token id, each times `scale`: `[ids, hidden]`.
pub(crate) struct Lookup<'a> {
    pub(crate) embedding: &'a Embedding,
    pub(crate) ids: &'a [u32],
    pub(crate) scale: f32,
}

impl InplaceOp1 for Lookup<'_> {
    fn name(&self) -> &'static str {
        "lookup"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (out, hidden) = (floats_mut(out, layout)?, self.embedding.hidden);
        if out.len() != self.ids.len() * hidden {
            bail!("{} numbers for the embedding of {} tokens", out.len(), self.ids.len())
        }
        for (out, id) in out.chunks_exact_mut(hidden).zip(self.ids) {
            self.embedding.row(out, *id)?;
            if self.scale != 1.0 {
                for x in out {
                    *x *= self.scale;
                }
            }
        }
        Ok(())
    }
}

impl Embedding {
    /// Number format of the matrix.
    pub fn dtype(&self) -> WeightDtype {
        self.weights.dtype
    }
}

/// Blocks in candle's memory; `bytes` may have any alignment.
fn blocks(dtype: WeightDtype, bytes: &[u8]) -> Box<dyn QuantizedType> {
    // candle panics on an odd address.
    if bytes.as_ptr().addr().is_multiple_of(ALIGN) {
        return dtype.ggml().from_data(Cow::Borrowed(bytes));
    }
    let mut padded = vec![0; bytes.len() + ALIGN];
    let start = padded.as_ptr().addr().next_multiple_of(ALIGN) - padded.as_ptr().addr();
    padded[start..][..bytes.len()].copy_from_slice(bytes);
    dtype.ggml().from_data(Cow::Borrowed(&padded[start..][..bytes.len()]))
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::QTensor;
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::Bytes;

    fn rows(embedding: &Embedding, ids: &[u32], scale: f32) -> Result<Vec<Vec<f32>>> {
        let out = Tensor::full(f32::NAN, (ids.len(), embedding.hidden), &Device::Cpu)?;
        out.inplace_op1(&Lookup { embedding, ids, scale })?;
        out.to_vec2()
    }

    #[test]
    fn rows_are_those_of_the_matrix_in_every_format() {
        let (vocab, hidden) = (5, 256);
        let count = vocab * hidden;
        let values: Vec<f32> = (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let matrix = Tensor::from_vec(values, (vocab, hidden), &Device::Cpu).unwrap();
        for dtype in WeightDtype::ALL {
            let stored = QTensor::quantize(&matrix, dtype.ggml()).unwrap();
            let expected = stored.dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
            // One byte in front: rows at odd addresses must do too.
            let mut bytes = vec![0];
            bytes.extend_from_slice(&stored.data().unwrap());
            let end = bytes.len();
            let bytes = Bytes::from(bytes).slice(1..end).unwrap();
            let view = TensorView { dtype, shape: vec![vocab, hidden], bytes };
            let embedding = Embedding::new(view).unwrap();
            let expected = [4, 0, 4].map(|row: usize| expected[row].clone());
            assert_eq!(rows(&embedding, &[4, 0, 4], 1.0).unwrap(), expected, "{dtype:?}");
            let twice = rows(&embedding, &[4], 2.0).unwrap();
            assert!(twice[0].iter().zip(&expected[0]).all(|(a, b)| *a == 2.0 * b), "{dtype:?}");
        }
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_an_error() {
        let view = |count, shape: [usize; 2]| TensorView {
            dtype: WeightDtype::F32,
            shape: shape.to_vec(),
            bytes: vec![0; count].into(),
        };
        let embedding = Embedding::new(view(24, [3, 2])).unwrap();
        assert_eq!(rows(&embedding, &[2], 1.0).unwrap(), [[0.0; 2]]);
        assert!(rows(&embedding, &[3], 1.0).unwrap_err().to_string().contains("token 3"));
        assert!(Embedding::new(view(23, [3, 2])).is_err());
    }
}

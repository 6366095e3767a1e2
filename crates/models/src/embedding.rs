//! `Embedding`: rows of the embedding matrix by token id.

use std::borrow::Cow;

use candle_core::quantized::QuantizedType;
use candle_core::{CpuStorage, Device, Result, Tensor, bail};

use crate::{TensorView, WeightDtype};

/// Alignment of the blocks that candle widens.
const ALIGN: usize = 4;

/// The embedding matrix as stored, usually mapped; rows are widened when they are asked for.
#[derive(Debug)]
pub struct Embedding {
    weights: TensorView,
    vocab: usize,
    hidden: usize,
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
        Ok(Self { weights, vocab, hidden })
    }

    /// Returns `[ids, hidden]` f32.
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        let mut out = Vec::with_capacity(ids.len() * self.hidden);
        for &id in ids {
            self.push_row(&mut out, id)?;
        }
        Tensor::from_vec(out, (ids.len(), self.hidden), &Device::Cpu)
    }

    /// Bytes of the matrix.
    pub fn bytes(&self) -> u64 {
        self.weights.bytes.len() as u64
    }

    fn push_row(&self, out: &mut Vec<f32>, id: u32) -> Result<()> {
        let row = id as usize;
        if row >= self.vocab {
            bail!("token {id} is not in the vocabulary of {}", self.vocab)
        }
        let size = self.weights.bytes.len() / self.vocab;
        let Some(bytes) = self.weights.bytes.slice(row * size..(row + 1) * size) else {
            bail!("embedding has no row {row}")
        };
        let dtype = self.weights.dtype;
        if dtype.is_quantized() {
            let CpuStorage::F32(row) = blocks(dtype, &bytes).dequantize(self.hidden)? else {
                bail!("blocks of {dtype:?} did not become f32")
            };
            out.extend(row);
        } else {
            let view = TensorView { dtype, shape: vec![self.hidden], bytes };
            out.extend(view.f32s().unwrap_or_default());
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

    use super::*;
    use crate::Bytes;

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
            let rows = embedding.forward(&[4, 0, 4]).unwrap().to_vec2::<f32>().unwrap();
            let expected = [4, 0, 4].map(|row: usize| expected[row].clone());
            assert_eq!(rows, expected, "{dtype:?}");
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
        assert_eq!(embedding.forward(&[2]).unwrap().dims(), [1, 2]);
        assert!(embedding.forward(&[3]).unwrap_err().to_string().contains("token 3"));
        assert!(Embedding::new(view(23, [3, 2])).is_err());
    }
}

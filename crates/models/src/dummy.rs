//! `Dummy`: random weights, to measure a model's speed and memory without its files.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::{TensorView, WeightDtype};

/// Elements that one task makes.
const CHUNK: usize = 1 << 16;

/// Weights by a counter: element `i` of a tensor is a function of the seed, the tensor's name and
/// `i` alone.
///
/// Matrices are uniform with variance `1 / in`, so that activations keep their size through any
/// number of layers; norms are 1, biases 0. The format is `torch_dtype` of config.json, bf16 if it
/// does not say.
pub(crate) struct Dummy {
    seed: u64,
    dtype: WeightDtype,
}

impl Dummy {
    pub(crate) fn new(seed: u64, torch_dtype: Option<&str>) -> Self {
        let dtype = match torch_dtype {
            Some("float32") => WeightDtype::F32,
            Some("float16") => WeightDtype::F16,
            _ => WeightDtype::BF16,
        };
        Self { seed, dtype }
    }

    /// Bytes of so many numbers.
    pub(crate) fn bytes_of(&self, numbers: u64) -> u64 {
        numbers.saturating_mul(if self.dtype == WeightDtype::F32 { 4 } else { 2 })
    }

    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> TensorView {
        let count = shape.iter().product();
        let bytes = match self.dtype {
            WeightDtype::F32 => self.bytes(name, shape, count, f32::to_le_bytes),
            WeightDtype::F16 => self.bytes(name, shape, count, |x| f16::from_f32(x).to_le_bytes()),
            _ => self.bytes(name, shape, count, |x| bf16::from_f32(x).to_le_bytes()),
        };
        TensorView { dtype: self.dtype, shape: shape.to_vec(), bytes: bytes.into() }
    }

    fn bytes<const SIZE: usize>(
        &self,
        name: &str,
        shape: &[usize],
        count: usize,
        store: impl Fn(f32) -> [u8; SIZE] + Sync,
    ) -> Vec<u8> {
        let value = self.values(name, shape);
        let mut bytes = vec![0; count * SIZE];
        bytes.par_chunks_mut(CHUNK * SIZE).enumerate().for_each(|(chunk, bytes)| {
            for (at, element) in bytes.chunks_exact_mut(SIZE).enumerate() {
                element.copy_from_slice(&store(value((chunk * CHUNK + at) as u64)));
            }
        });
        bytes
    }

    /// Element of a tensor by its index.
    fn values(&self, name: &str, shape: &[usize]) -> impl Fn(u64) -> f32 + Sync + use<> {
        let stream = name.bytes().fold(mix(self.seed), |state, byte| mix(state ^ u64::from(byte)));
        let constant = match shape {
            [_] if name.ends_with("norm.weight") => Some(1.0),
            [_] => Some(0.0),
            _ => None,
        };
        // Uniform in ±√3 has variance 1.
        let scale = (3.0 / shape.last().copied().unwrap_or(1).max(1) as f32).sqrt();
        move |index| {
            let bits = mix(stream.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15))) >> 40;
            constant.unwrap_or(scale * (bits as f32 / (1 << 23) as f32 - 1.0))
        }
    }
}

/// The finalizer of splitmix64.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_depend_on_seed_name_and_index_only() {
        let make = |seed, name| Dummy::new(seed, Some("float32")).tensor(name, &[300, 400]);
        let first = make(1, "a").bytes.to_vec();
        assert_eq!(first, *make(1, "a").bytes);
        assert_ne!(first, *make(2, "a").bytes);
        assert_ne!(first, *make(1, "b").bytes);
        let short = Dummy::new(1, Some("float32")).tensor("a", &[2, 400]);
        assert_eq!(first[..3200], *short.bytes);
    }

    #[test]
    fn matrices_keep_the_size_of_activations() {
        for dtype in [Some("float32"), Some("float16"), Some("bfloat16"), None] {
            let values = Dummy::new(9, dtype).tensor("m", &[500, 400]).f32s().unwrap();
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let square = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
            assert!(mean.abs() < 5e-4, "{dtype:?} mean {mean}");
            assert!((square * 400.0 - 1.0).abs() < 0.02, "{dtype:?} variance {square}");
        }
    }

    #[test]
    fn norms_are_one_and_biases_zero() {
        let dummy = Dummy::new(0, None);
        assert_eq!(dummy.tensor("model.norm.weight", &[3]).f32s().unwrap(), [1.0; 3]);
        let norm = dummy.tensor("model.layers.0.input_layernorm.weight", &[2]);
        assert_eq!(norm.f32s().unwrap(), [1.0; 2]);
        assert_eq!(dummy.tensor("q_proj.bias", &[3]).f32s().unwrap(), [0.0; 3]);
        assert_eq!(dummy.tensor("q_proj.bias", &[3]).dtype, WeightDtype::BF16);
    }
}

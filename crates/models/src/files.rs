//! `ModelFiles`: a model on disk, opened and validated, its tensors by Hugging Face name.

mod open;
mod weights;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use crate::{Bytes, Error, Gguf, HfConfig, WeightDtype};
use weights::Weights;

/// A tensor as stored.
#[derive(Clone, Debug)]
pub struct TensorView {
    /// Number format.
    pub dtype: WeightDtype,
    /// Row-major, outermost first: a matrix is `[out, in]`.
    pub shape: Vec<usize>,
    /// Rows of whole blocks, nothing between them; little-endian, of any alignment.
    pub bytes: Bytes,
}

impl TensorView {
    /// Elements of a float tensor; `None` if it is quantized.
    pub fn f32s(&self) -> Option<Vec<f32>> {
        if self.dtype.is_quantized() {
            return None;
        }
        let mut floats = vec![0.0; self.bytes.len() / self.dtype.bytes(1)?];
        self.dtype.widen(&mut floats, &self.bytes);
        Some(floats)
    }
}

/// A model on disk. Its weights are mapped, not read: opening a model touches headers only.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    name: String,
    folder: PathBuf,
    config: HfConfig,
    config_file: String,
    eos_tokens: Vec<u32>,
    weights: Weights,
}

impl ModelFiles {
    /// Opens a folder with config.json and safetensors, a folder with one .gguf file, or a .gguf
    /// file. Configuration and headers are validated; weights are not touched.
    pub fn open(path: &Path) -> Result<Self, Error> {
        open::open(path)
    }

    /// Opens the config.json of a folder, or a config.json, alone: for made-up weights. It has no
    /// tensors.
    pub fn open_config_only(path: &Path) -> Result<Self, Error> {
        open::config_only(path)
    }

    /// A tensor by its Hugging Face name, e.g. `model.layers.0.self_attn.q_proj.weight`, in the row
    /// order of half-split rope. Without a copy, except q and k of a GGUF file of architecture
    /// `llama`.
    pub fn tensor(&self, name: &str) -> Result<TensorView, Error> {
        self.weights.tensor(name)
    }

    /// Whether there is a tensor of this Hugging Face name.
    pub fn has(&self, name: &str) -> bool {
        self.weights.has(name)
    }

    /// Names of all tensors, sorted. Those of a GGUF file that have no Hugging Face name keep their
    /// own.
    pub fn names(&self) -> Vec<&str> {
        self.weights.names()
    }

    /// Bytes of all tensors as stored.
    pub fn total_bytes(&self) -> u64 {
        self.weights.total_bytes()
    }

    /// What config.json, or the metadata of the GGUF file, says of the decoder.
    pub fn config(&self) -> &HfConfig {
        &self.config
    }

    /// Name of the file that the configuration is from, for messages.
    pub fn config_file(&self) -> &str {
        &self.config_file
    }

    /// Name of the model: that of its folder, or of its file without .gguf.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Folder of the files, where tokenizer.json is too, if there is one.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The GGUF file, if the model is one.
    pub fn gguf(&self) -> Option<&Gguf> {
        self.weights.gguf()
    }

    /// Tokens that end a sequence, ascending.
    pub fn eos_tokens(&self) -> Vec<u32> {
        self.eos_tokens.clone()
    }
}

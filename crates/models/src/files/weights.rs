//! `Weights`: where tensors come from, all with Hugging Face names and in Hugging Face order.

use std::collections::BTreeMap;

use super::TensorView;
use crate::gguf::{hf_name, unpermute_rows};
use crate::safetensors::Safetensors;
use crate::{Bytes, Error, Gguf, HfConfig};

/// The source of tensors.
#[derive(Clone, Debug)]
pub(super) enum Weights {
    /// No tensors; the file that stands for them in messages.
    None { file: String },
    /// One or more safetensors files.
    Shards(Shards),
    /// A GGUF file.
    Gguf(GgufWeights),
}

/// Tensors of one or more safetensors files.
#[derive(Clone, Debug)]
pub(super) struct Shards {
    /// What to name when a tensor is in none of them.
    file: String,
    parts: Vec<Safetensors>,
    /// Index of the shard.
    by_name: BTreeMap<String, usize>,
}

/// Tensors of a GGUF file.
#[derive(Clone, Debug)]
pub(super) struct GgufWeights {
    gguf: Gguf,
    /// Index of the tensor, by Hugging Face name.
    by_name: BTreeMap<String, usize>,
    /// Query and kv heads where rows of q and k are in the order of interleaved rope.
    interleaved: Option<(usize, usize)>,
}

impl Shards {
    /// All tensors of one file.
    pub(super) fn single(shard: Safetensors) -> Self {
        let by_name = shard.names().map(|name| (name.to_owned(), 0)).collect();
        Self { file: shard.file().to_owned(), parts: vec![shard], by_name }
    }

    /// Tensors of several files; `shard_of` says by tensor in which; `file` is the index's own
    /// name.
    pub(super) fn indexed(
        file: &str,
        shards: BTreeMap<String, Safetensors>,
        shard_of: BTreeMap<String, String>,
    ) -> Result<Self, Error> {
        let order: Vec<&String> = shards.keys().collect();
        let mut by_name = BTreeMap::new();
        for (tensor, shard) in shard_of {
            let index = order.binary_search(&&shard).ok().filter(|_| shards[&shard].has(&tensor));
            let Some(index) = index else {
                let what = format!("is said to be in {shard}, which does not have it");
                return Err(Error::malformed(file, format!("tensor {tensor}"), what));
            };
            by_name.insert(tensor, index);
        }
        Ok(Self { file: file.to_owned(), by_name, parts: shards.into_values().collect() })
    }
}

impl GgufWeights {
    pub(super) fn new(gguf: Gguf, config: &HfConfig) -> Result<Self, Error> {
        let mut by_name = BTreeMap::new();
        for (index, tensor) in gguf.tensors().iter().enumerate() {
            let name =
                hf_name(&tensor.name, gguf.architecture()).unwrap_or_else(|| tensor.name.clone());
            if by_name.insert(name.clone(), index).is_some() {
                let what = format!("there are two tensors that mean {name}");
                return Err(Error::malformed(gguf.file(), format!("tensor {}", tensor.name), what));
            }
        }
        let heads = (config.size.num_attention_heads, config.size.kv_heads());
        let interleaved = matches!(gguf.architecture(), "llama" | "smollm3").then_some(heads);
        Ok(Self { gguf, by_name, interleaved })
    }

    fn tensor(&self, name: &str) -> Result<TensorView, Error> {
        let Some(&index) = self.by_name.get(name) else {
            return self.expert(name).ok_or_else(|| Error::missing(self.gguf.file(), name));
        };
        let tensor = &self.gguf.tensors()[index];
        let mut bytes = self.gguf.tensor_bytes(tensor);
        if let Some(heads) = self.interleaved_heads(name) {
            let rows = unpermute_rows(&bytes, tensor.shape[0], heads);
            bytes = Bytes::from(rows.ok_or_else(|| {
                let what = format!("has {} rows, no {heads} heads of even size", tensor.shape[0]);
                Error::malformed(self.gguf.file(), format!("tensor {}", tensor.name), what)
            })?);
        }
        Ok(TensorView { dtype: tensor.dtype, shape: tensor.shape.clone(), bytes })
    }

    /// `….experts.N.part.weight`: one matrix of `….experts.part.weight`, `[experts, out, in]`.
    fn expert(&self, name: &str) -> Option<TensorView> {
        let (before, rest) = name.split_once(".experts.")?;
        let (number, part) = rest.split_once('.')?;
        let index = *self.by_name.get(&format!("{before}.experts.{part}"))?;
        let (tensor, number) = (&self.gguf.tensors()[index], number.parse::<usize>().ok()?);
        let [count, rows, columns] = *tensor.shape.as_slice() else { return None };
        let length = tensor.length / count;
        let range = number.checked_mul(length)?..number.checked_add(1)?.checked_mul(length)?;
        let bytes = self.gguf.tensor_bytes(tensor).slice(range)?;
        Some(TensorView { dtype: tensor.dtype, shape: vec![rows, columns], bytes })
    }

    /// Heads of a tensor whose rows are to be brought into half-split order.
    fn interleaved_heads(&self, name: &str) -> Option<usize> {
        let (q, kv) = self.interleaved?;
        let (part, _) = name.rsplit_once('.')?;
        if part.ends_with(".self_attn.q_proj") {
            return Some(q);
        }
        part.ends_with(".self_attn.k_proj").then_some(kv)
    }
}

impl Weights {
    pub(super) fn tensor(&self, name: &str) -> Result<TensorView, Error> {
        match self {
            Self::None { file } => Err(Error::missing(file, name)),
            Self::Shards(Shards { file, parts, by_name }) => {
                let shard = by_name.get(name).ok_or_else(|| Error::missing(file, name))?;
                parts[*shard].tensor(name)
            }
            Self::Gguf(weights) => weights.tensor(name),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.by_name().is_some_and(|by_name| by_name.contains_key(name))
    }

    pub(super) fn names(&self) -> Vec<&str> {
        self.by_name().into_iter().flat_map(BTreeMap::keys).map(String::as_str).collect()
    }

    pub(super) fn total_bytes(&self) -> u64 {
        match self {
            Self::None { .. } => 0,
            Self::Shards(Shards { parts, by_name, .. }) => {
                by_name.iter().map(|(name, shard)| parts[*shard].tensor_bytes(name)).sum()
            }
            Self::Gguf(GgufWeights { gguf, .. }) => {
                gguf.tensors().iter().map(|tensor| tensor.length as u64).sum()
            }
        }
    }

    pub(super) fn gguf(&self) -> Option<&Gguf> {
        match self {
            Self::Gguf(weights) => Some(&weights.gguf),
            _ => None,
        }
    }

    fn by_name(&self) -> Option<&BTreeMap<String, usize>> {
        match self {
            Self::None { .. } => None,
            Self::Shards(shards) => Some(&shards.by_name),
            Self::Gguf(weights) => Some(&weights.by_name),
        }
    }
}

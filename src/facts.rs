//! `Facts`: what a model is, for people and for `inspect --json`.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;
use kvant_kv_cache::{CacheShape, LayerShape, bytes_per_token, formats};
use kvant_models::{DecoderSpec, ModelFiles};
use serde::Serialize;

/// A model's shape and size, read from headers alone.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Facts {
    pub(crate) name: String,
    pub(crate) family: String,
    pub(crate) layers: usize,
    pub(crate) heads: HeadFacts,
    pub(crate) hidden: usize,
    pub(crate) vocab: usize,
    /// Positions that the model was made for.
    pub(crate) model_context_tokens: usize,
    pub(crate) weight_bytes: u64,
    /// Tensors of each number format.
    pub(crate) dtypes: BTreeMap<String, usize>,
    /// Keys and values of one token in all layers.
    pub(crate) cache_bytes_per_token: u64,
    /// Layers of each cache format, with the reason.
    pub(crate) cache_formats: BTreeMap<String, usize>,
}

/// Attention heads.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct HeadFacts {
    q: usize,
    kv: usize,
    dim: usize,
}

impl Facts {
    /// Of opened files.
    pub(crate) fn of(files: &ModelFiles, name: &str) -> Result<Self> {
        let spec = files.spec()?;
        let mut dtypes = BTreeMap::new();
        for name in files.names() {
            let dtype = format!("{:?}", files.tensor(name)?.dtype).to_lowercase();
            *dtypes.entry(dtype).or_default() += 1;
        }
        let shape = cache_shape(&spec);
        let mut cache_formats = BTreeMap::new();
        for format in formats(&shape) {
            *cache_formats.entry(format.to_string()).or_default() += 1;
        }
        Ok(Self {
            name: name.to_owned(),
            family: spec.family.to_owned(),
            layers: spec.layers.len(),
            heads: HeadFacts { q: spec.heads.q, kv: spec.heads.kv, dim: spec.heads.dim },
            hidden: spec.hidden,
            vocab: spec.vocab,
            model_context_tokens: spec.context,
            weight_bytes: files.total_bytes(),
            dtypes,
            cache_bytes_per_token: bytes_per_token(&shape),
            cache_formats,
        })
    }
}

/// What the cache must hold for a decoder.
pub(crate) fn cache_shape(spec: &DecoderSpec) -> CacheShape {
    let layer = LayerShape { kv_heads: spec.heads.kv, dim: spec.heads.dim };
    CacheShape { layers: vec![layer; spec.layers.len()] }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = |counts: &BTreeMap<String, usize>| {
            let parts = counts.iter().map(|(name, count)| format!("{count} × {name}"));
            parts.collect::<Vec<_>>().join(", ")
        };
        let HeadFacts { q, kv, dim } = self.heads;
        writeln!(f, "model        {} ({})", self.name, self.family)?;
        writeln!(f, "layers       {}", self.layers)?;
        writeln!(f, "heads        {q} query, {kv} key/value, {dim} wide")?;
        writeln!(f, "hidden       {}, vocabulary {}", self.hidden, self.vocab)?;
        writeln!(f, "context      {} tokens", self.model_context_tokens)?;
        writeln!(f, "weights      {} ({})", mib(self.weight_bytes), counted(&self.dtypes))?;
        writeln!(f, "cache        {} bytes a token", self.cache_bytes_per_token)?;
        write!(f, "cache layers {}", counted(&self.cache_formats))
    }
}

/// Bytes as people read them.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_mebibytes() {
        assert_eq!(mib(0), "0.0 MiB");
        assert_eq!(mib(3 << 19), "1.5 MiB");
    }
}

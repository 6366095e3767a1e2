//! `Facts`: what a model is, for people and for `inspect --json`.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;
use kvant_kv_cache::{
    CacheLayer, CacheShape, LayerShape, LayerTraits, PAGE_TOKENS, Wish, WishError, decide,
};
use kvant_models::{DecoderSpec, LayerSpec, ModelFiles};
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
    /// The same for a 16-bit cache.
    pub(crate) dense_bytes_per_token: u64,
    /// One entry a layer.
    pub(crate) cache_layers: Vec<LayerFacts>,
}

/// How the cache keeps a layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct LayerFacts {
    format: String,
    /// One token of a full page; 16-bit tails are beside it.
    bytes_per_token: u64,
    reason: String,
}

/// Attention heads.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct HeadFacts {
    q: usize,
    kv: usize,
    dim: usize,
}

impl Facts {
    /// Of opened files and the cache decided for them.
    pub(crate) fn of(files: &ModelFiles, name: &str, shape: &CacheShape) -> Result<Self> {
        let spec = files.spec()?;
        let mut dtypes = BTreeMap::new();
        for name in files.names() {
            let dtype = format!("{:?}", files.tensor(name)?.dtype).to_lowercase();
            *dtypes.entry(dtype).or_default() += 1;
        }
        let layer = |layer: &CacheLayer| LayerFacts {
            format: layer.format.to_string(),
            bytes_per_token: layer.page_bytes() / PAGE_TOKENS as u64,
            reason: layer.why(),
        };
        Ok(Self {
            name: name.to_owned(),
            family: spec.family.to_owned(),
            layers: spec.layers.len(),
            heads: HeadFacts { q: spec.heads.q, kv: spec.heads.kv, dim: spec.heads.dim },
            hidden: spec.hidden,
            vocab: spec.vocab,
            model_context_tokens: spec.context,
            weight_bytes: files.weight_bytes()?,
            dtypes,
            cache_bytes_per_token: shape.bytes_per_token(),
            dense_bytes_per_token: shape.dense_page_bytes() / PAGE_TOKENS as u64,
            cache_layers: shape.layers.iter().map(layer).collect(),
        })
    }
}

/// What the cache must hold for a decoder, in the formats that it gets.
pub(crate) fn cache_shape(spec: &DecoderSpec, wish: &Wish) -> Result<CacheShape, WishError> {
    let heads = spec.heads;
    let layer = |layer: &LayerSpec| LayerTraits {
        shape: LayerShape { kv_heads: heads.kv, dim: heads.dim },
        queries_per_key: heads.q / heads.kv,
        key_bias: spec.bias.qkv,
        window: layer.window,
    };
    decide(&spec.layers.iter().map(layer).collect::<Vec<_>>(), wish)
}

impl Facts {
    /// Bits of one number of a full page.
    pub(crate) fn cache_bits_per_element(&self) -> f64 {
        16.0 * self.cache_bytes_per_token as f64 / self.dense_bytes_per_token.max(1) as f64
    }

    /// Neighbours of one kind in one line: layers, format, bytes of a token, reason.
    pub(crate) fn cache_table(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut first = 0;
        for run in self.cache_layers.chunk_by(|a, b| a == b) {
            let last = first + run.len() - 1;
            let layers = if first == last { format!("{first}") } else { format!("{first}-{last}") };
            let LayerFacts { format, bytes_per_token, reason } = &run[0];
            lines.push(format!("{layers:>7}  {format:<14} {bytes_per_token:>7} B/token  {reason}"));
            first = last + 1;
        }
        lines
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = |counts: &BTreeMap<String, usize>| {
            let parts = counts.iter().map(|(name, count)| format!("{count} × {name}"));
            let parts = parts.collect::<Vec<_>>().join(", ");
            if parts.is_empty() { "made up".to_owned() } else { parts }
        };
        let HeadFacts { q, kv, dim } = self.heads;
        writeln!(f, "model        {} ({})", self.name, self.family)?;
        writeln!(f, "layers       {}", self.layers)?;
        writeln!(f, "heads        {q} query, {kv} key/value, {dim} wide")?;
        writeln!(f, "hidden       {}, vocabulary {}", self.hidden, self.vocab)?;
        writeln!(f, "context      {} tokens", self.model_context_tokens)?;
        writeln!(f, "weights      {} ({})", mib(self.weight_bytes), counted(&self.dtypes))?;
        let (bytes, dense) = (self.cache_bytes_per_token, self.dense_bytes_per_token.max(1));
        let ratio = bytes as f64 / dense as f64;
        write!(f, "cache        {bytes} bytes a token, {ratio:.3} of 16 bits; by layer:")?;
        self.cache_table().iter().try_for_each(|line| write!(f, "\n{line}"))
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

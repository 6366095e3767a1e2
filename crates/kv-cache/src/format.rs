//! Shapes of a cache in memory, and in which `Format` each layer keeps its pages, with the reason.

use std::fmt;

use kvant_kernels::PAGE_TOKENS;

/// Keys and values of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerShape {
    /// Key heads, equal to value heads.
    pub kv_heads: usize,
    /// Size of one head.
    pub dim: usize,
}

impl LayerShape {
    /// Numbers that one token adds to the keys (and as many to the values).
    pub fn token_len(&self) -> usize {
        self.kv_heads * self.dim
    }

    /// Numbers of the keys (and of the values) of one page.
    pub fn page_len(&self) -> usize {
        self.token_len() * PAGE_TOKENS
    }
}

/// All layers of a model's cache; layers may differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// One entry a layer.
    pub layers: Vec<LayerShape>,
}

/// How a layer's pages hold keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 16-bit floats.
    Dense {
        /// Why not packed.
        reason: Reason,
    },
}

/// Why a layer is dense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The preset `f16` was asked for.
    Preset,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Preset => f.write_str("16-bit cache"),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense { reason } => write!(f, "dense ({reason})"),
        }
    }
}

impl Format {
    /// Bytes of one page of one layer, keys and values.
    pub fn page_bytes(&self, layer: &LayerShape) -> u64 {
        match self {
            Self::Dense { .. } => 2 * 2 * layer.page_len() as u64,
        }
    }
}

/// The format of each layer: the only place where it is decided.
pub fn formats(shape: &CacheShape) -> Vec<Format> {
    vec![Format::Dense { reason: Reason::Preset }; shape.layers.len()]
}

/// Bytes of one page: keys and values of `PAGE_TOKENS` tokens in all layers.
pub fn page_bytes(shape: &CacheShape) -> u64 {
    formats(shape).iter().zip(&shape.layers).map(|(format, layer)| format.page_bytes(layer)).sum()
}

/// Bytes of one token of a full page: keys and values in all layers.
pub fn bytes_per_token(shape: &CacheShape) -> u64 {
    page_bytes(shape) / PAGE_TOKENS as u64
}

/// Pages that `tokens` tokens of one sequence fill or begin.
pub fn pages_for(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(layers: &[(usize, usize)]) -> CacheShape {
        let layers = layers.iter().map(|l| LayerShape { kv_heads: l.0, dim: l.1 }).collect();
        CacheShape { layers }
    }

    #[test]
    fn bytes_are_those_of_two_16_bit_numbers_a_dimension() {
        // SmolLM2 135M: 30 layers of 3 heads of 64: 30 * 3 * 64 * 2 (K, V) * 2 bytes.
        let smol = shape(&[(3, 64); 30]);
        assert_eq!(bytes_per_token(&smol), 23_040);
        assert_eq!(page_bytes(&smol), 23_040 * 64);
        // Layers that differ: (2 * 8 + 1 * 16) * 4.
        assert_eq!(bytes_per_token(&shape(&[(2, 8), (1, 16)])), 128);
        assert_eq!(bytes_per_token(&shape(&[])), 0);
    }

    #[test]
    fn every_layer_is_dense_and_says_why() {
        let formats = formats(&shape(&[(2, 8), (1, 16)]));
        assert_eq!(formats.len(), 2);
        assert!(formats.iter().all(|format| format.to_string() == "dense (16-bit cache)"));
    }

    #[test]
    fn pages_are_counted_up() {
        for (tokens, pages) in [(0, 0), (1, 1), (64, 1), (65, 2), (128, 2), (129, 3)] {
            assert_eq!(pages_for(tokens), pages, "{tokens} tokens");
        }
    }
}

//! Shapes of a cache in memory, the `Format` in which each layer keeps its pages, and what they
//! take.

use std::fmt;

use kvant_kernels::PAGE_TOKENS;
use kvant_turboquant::{PageLayout, ScaleRule, Side, Widths};

use crate::eligibility::Reason;

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

    /// Bytes of one page of 16-bit keys and values.
    pub fn dense_page_bytes(&self) -> u64 {
        2 * 2 * self.page_len() as u64
    }
}

/// How a layer's full pages hold keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 16-bit floats.
    Dense,
    /// Rotated codes of so many bits.
    TurboQuant(Widths),
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense => f.write_str("16-bit"),
            Self::TurboQuant(Widths { keys, values }) => write!(f, "K {keys} V {values} bits"),
        }
    }
}

/// One layer of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheLayer {
    /// Its heads.
    pub shape: LayerShape,
    /// Its pages.
    pub format: Format,
    /// Why this format; the last reason decided.
    pub reasons: Vec<Reason>,
}

impl CacheLayer {
    /// Bytes of one page.
    pub fn page_bytes(&self) -> u64 {
        match self.format {
            Format::Dense => self.shape.dense_page_bytes(),
            Format::TurboQuant(widths) => {
                let tile = PageLayout::new(self.shape.dim, widths).tile_bytes();
                (self.shape.kv_heads * tile) as u64
            }
        }
    }

    /// Bytes that a sequence takes beside its pages: the 16-bit tail of a packed layer.
    pub fn tail_bytes(&self) -> u64 {
        match self.format {
            Format::Dense => 0,
            Format::TurboQuant(_) => self.shape.dense_page_bytes(),
        }
    }

    /// The reasons, for people.
    pub fn why(&self) -> String {
        self.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }
}

/// All layers of a model's cache; layers may differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// One entry a layer.
    pub layers: Vec<CacheLayer>,
    /// Which scale every packed page gets; `None`: the default of each side and width.
    pub scale_rule: Option<ScaleRule>,
}

impl CacheShape {
    /// A cache of 16-bit layers.
    pub fn dense(layers: impl IntoIterator<Item = LayerShape>) -> Self {
        let dense =
            |shape| CacheLayer { shape, format: Format::Dense, reasons: vec![Reason::Asked] };
        Self { layers: layers.into_iter().map(dense).collect(), scale_rule: None }
    }

    /// The scale rules of keys and of values of these widths.
    pub(crate) fn rules(&self, widths: Widths) -> [ScaleRule; 2] {
        [(Side::Keys, widths.keys), (Side::Values, widths.values)]
            .map(|(side, width)| self.scale_rule.unwrap_or(ScaleRule::for_side(side, width)))
    }

    /// A layer of the packed format that most layers have; `None` where all are 16-bit.
    pub(crate) fn most_packed(&self) -> Option<&CacheLayer> {
        let alike = |of: &CacheLayer| self.layers.iter().filter(|l| l.format == of.format).count();
        let packed = self.layers.iter().filter(|layer| layer.format != Format::Dense);
        packed.max_by_key(|layer| alike(layer))
    }

    /// Bytes of one page: keys and values of `PAGE_TOKENS` tokens in all layers.
    pub fn page_bytes(&self) -> u64 {
        self.layers.iter().map(CacheLayer::page_bytes).sum()
    }

    /// The same if every layer were 16-bit: what a tile of staging takes.
    pub fn dense_page_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.shape.dense_page_bytes()).sum()
    }

    /// Bytes of a sequence's tails in all layers.
    pub fn tail_bytes(&self) -> u64 {
        self.layers.iter().map(CacheLayer::tail_bytes).sum()
    }

    /// Bytes of one token of a full page: keys and values in all layers.
    pub fn bytes_per_token(&self) -> u64 {
        self.page_bytes().div_ceil(PAGE_TOKENS as u64)
    }

    /// Bits of one number of a full page, scales and padding included.
    pub fn bits_per_element(&self) -> f64 {
        16.0 * self.page_bytes() as f64 / self.dense_page_bytes().max(1) as f64
    }

    /// Whether any layer is packed.
    pub fn is_packed(&self) -> bool {
        self.layers.iter().any(|layer| layer.format != Format::Dense)
    }
}

/// Pages that `tokens` tokens of one sequence fill or begin.
pub fn pages_for(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}

#[cfg(test)]
mod tests {
    use kvant_turboquant::Width;

    use super::*;

    fn shape(layers: &[(usize, usize)]) -> CacheShape {
        CacheShape::dense(layers.iter().map(|l| LayerShape { kv_heads: l.0, dim: l.1 }))
    }

    #[test]
    fn bytes_are_those_of_two_16_bit_numbers_a_dimension() {
        // SmolLM2 135M: 30 layers of 3 heads of 64: 30 * 3 * 64 * 2 (K, V) * 2 bytes.
        let smol = shape(&[(3, 64); 30]);
        assert_eq!(smol.bytes_per_token(), 23_040);
        assert_eq!((smol.page_bytes(), smol.tail_bytes()), (23_040 * 64, 0));
        // Layers that differ: (2 * 8 + 1 * 16) * 4.
        assert_eq!(shape(&[(2, 8), (1, 16)]).bytes_per_token(), 128);
        assert_eq!(shape(&[]).bytes_per_token(), 0);
    }

    /// The formula of the format: a tile holds 64 tokens of codes and two 16-bit scales a token.
    #[test]
    fn packed_bytes_are_codes_and_scales() {
        for (dim, keys, values) in [(64, 4, 4), (128, 4, 4), (128, 3, 4), (128, 8, 4), (64, 8, 8)] {
            let widths = [keys, values].map(|bits| Width::new(bits).unwrap());
            let mut packed = shape(&[(2, dim)]);
            let [keys_width, values_width] = widths;
            let format = Format::TurboQuant(Widths { keys: keys_width, values: values_width });
            packed.layers[0].format = format;
            let bits = 64 * dim * (keys + values) + 64 * 2 * 16;
            assert_eq!(packed.page_bytes(), 2 * (bits as u64 / 8), "{dim} {keys} {values}");
            assert_eq!(packed.tail_bytes(), 2 * 64 * 2 * 2 * dim as u64);
        }
    }

    #[test]
    fn most_layers_decide_not_the_first_that_is_protected() {
        let packed = |bits| {
            let width = Width::new(bits).unwrap();
            Format::TurboQuant(Widths { keys: width, values: width })
        };
        let mut smol = shape(&[(3, 64); 30]);
        assert_eq!(smol.most_packed(), None);
        smol.layers.iter_mut().skip(1).take(2).for_each(|layer| layer.format = packed(8));
        assert_eq!(smol.most_packed().unwrap().format, packed(8));
        smol.layers.iter_mut().skip(3).take(9).for_each(|layer| layer.format = packed(4));
        assert_eq!(smol.most_packed().unwrap().format, packed(4));
    }

    #[test]
    fn four_bits_with_the_last_layer_dense_are_as_small_as_they_should_be() {
        let four = Width::new(4).unwrap();
        let mut smol = shape(&[(3, 64); 30]);
        for layer in &mut smol.layers {
            layer.format = Format::TurboQuant(Widths { keys: four, values: four });
        }
        let ratio = |shape: &CacheShape| shape.bits_per_element() / 16.0;
        assert!(ratio(&smol) <= 0.2813, "{}", ratio(&smol));
        smol.layers[29].format = Format::Dense;
        assert!(ratio(&smol) <= 0.3115, "{}", ratio(&smol));
    }

    #[test]
    fn pages_are_counted_up() {
        for (tokens, pages) in [(0, 0), (1, 1), (64, 1), (65, 2), (128, 2), (129, 3)] {
            assert_eq!(pages_for(tokens), pages, "{tokens} tokens");
        }
    }
}

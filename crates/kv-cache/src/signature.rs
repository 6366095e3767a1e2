//! `Signature`: everything that must be equal for the bytes of pages to mean the same.

use std::fmt;

use kvant_kernels::PAGE_TOKENS;
use kvant_turboquant::{LEVELS, ScaleRule};

use crate::format::{CacheShape, Format, LayerShape};

/// Version of the page format: layout, rotation, arithmetic of the scale rules.
const CODEC_VERSION: u32 = 1;

/// Scale rules of keys and values; `None` for a dense layer.
type Rules = Option<[ScaleRule; 2]>;

/// What pages were written with. Codes beside another rule's scales could be read all the same, but
/// a sequence that came by import would not go on with the bits that it has when computed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    version: u32,
    /// FNV-1a over all tables of levels.
    tables: u64,
    seed: u64,
    page_tokens: usize,
    layers: Vec<(LayerShape, Format, Rules)>,
}

impl Signature {
    /// Of a cache.
    pub(crate) fn new(shape: &CacheShape, seed: u64) -> Self {
        let levels = LEVELS.iter().flat_map(|table| table.iter());
        let bytes = levels.flat_map(|level| level.to_le_bytes());
        let rules = |format| match format {
            Format::Dense => None,
            Format::TurboQuant(widths) => Some(shape.rules(widths)),
        };
        let layers =
            shape.layers.iter().map(|layer| (layer.shape, layer.format, rules(layer.format)));
        Self {
            version: CODEC_VERSION,
            tables: hash(bytes),
            seed,
            page_tokens: PAGE_TOKENS,
            layers: layers.collect(),
        }
    }

    /// All of it as one number, for headers of files.
    pub fn number(&self) -> u64 {
        hash(format!("{self:?}").bytes())
    }
}

/// FNV-1a, 64 bits.
fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, tables, seed, page_tokens, layers } = self;
        write!(
            f,
            "codec {version}, tables {tables:016x}, seed {seed}, pages of {page_tokens} tokens, \
             {} layers, {:016x}",
            layers.len(),
            self.number()
        )
    }
}

//! Where everything lies in a tile: the keys and values of 64 tokens and one key head, one format
//! for every device and disk.
//!
//! `[64 f16 key scales][64 f16 value scales][key codes][value codes]`, little endian, rounded up to
//! 128 bytes. Codes lie in planes of 8, 4, 2 or 1 bits, `Width::planes`. In a 32-bit word of a
//! plane of b < 8 bits, element 8f + n is at bit 4n + b·f; of 8 bits, element n is byte n.
//!
//! * Keys: dimensions in chunks of 128 (8 bits: 64), planes within a chunk, then 64 rows of one
//!   token, rounded up to words; the elements of a word are consecutive dimensions.
//! * Values: planes of the whole page, then blocks of 8 dimensions, groups of tokens, 8 dimensions,
//!   one word each; the elements of a word are consecutive tokens.

mod pack;

use half::f16;

use crate::width::{Width, Widths};

/// Tokens of a page.
pub const PAGE_TOKENS: usize = 64;
/// Tiles begin at multiples of it.
const ALIGNMENT: usize = 128;
/// Bytes of one row of scales.
const SCALE_BYTES: usize = 2 * PAGE_TOKENS;
/// Bits of a word.
const WORD: usize = 32;
/// Dimensions of a value block.
const BLOCK: usize = 8;

/// The rows of one plane of one chunk of dimensions, `[PAGE_TOKENS][row_bytes]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyPlane {
    /// Bits of an element: 8, 4, 2 or 1.
    pub bits: usize,
    /// Position of these bits in a code.
    pub low: usize,
    /// First dimension of the chunk.
    pub first_dim: usize,
    /// Dimensions of the chunk.
    pub dims: usize,
    /// Where the plane begins in the tile.
    pub offset: usize,
    /// Bytes of a token.
    pub row_bytes: usize,
}

/// One plane of all values of a page, `[dims / 8][groups][8][word]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValuePlane {
    /// Bits of an element: 8, 4, 2 or 1.
    pub bits: usize,
    /// Position of these bits in a code.
    pub low: usize,
    /// Where the plane begins in the tile.
    pub offset: usize,
    /// Bytes of a block of 8 dimensions.
    pub block_bytes: usize,
}

/// Offsets within a tile of one shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageLayout {
    dim: usize,
    widths: Widths,
    key_planes: Vec<KeyPlane>,
    value_planes: Vec<ValuePlane>,
    values_at: usize,
    tile_bytes: usize,
}

impl PageLayout {
    /// The layout of a head of `dim` numbers.
    pub fn new(dim: usize, widths: Widths) -> Self {
        let mut offset = 2 * SCALE_BYTES;
        let mut key_planes = Vec::new();
        let chunk = if widths.keys.bits() == 8 { 64 } else { 128 };
        for first_dim in (0..dim).step_by(chunk) {
            let dims = chunk.min(dim - first_dim);
            for (bits, low) in widths.keys.planes() {
                let row_bytes = 4 * (dims * bits).div_ceil(WORD);
                key_planes.push(KeyPlane { bits, low, first_dim, dims, offset, row_bytes });
                offset += PAGE_TOKENS * row_bytes;
            }
        }
        let values_at = offset;
        let mut value_planes = Vec::new();
        for (bits, low) in widths.values.planes() {
            let block_bytes = BLOCK * PAGE_TOKENS * bits / 8;
            value_planes.push(ValuePlane { bits, low, offset, block_bytes });
            offset += dim.div_ceil(BLOCK) * block_bytes;
        }
        let tile_bytes = offset.next_multiple_of(ALIGNMENT);
        Self { dim, widths, key_planes, value_planes, values_at, tile_bytes }
    }

    /// Size of a head.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Bits of the codes.
    pub fn widths(&self) -> Widths {
        self.widths
    }

    /// Bytes of a tile, a multiple of 128.
    pub fn tile_bytes(&self) -> usize {
        self.tile_bytes
    }

    /// Where the values' codes begin; the keys' codes begin at 256.
    pub fn values_at(&self) -> usize {
        self.values_at
    }

    /// The keys' planes in the order of memory.
    pub fn key_planes(&self) -> &[KeyPlane] {
        &self.key_planes
    }

    /// The values' planes in the order of memory.
    pub fn value_planes(&self) -> &[ValuePlane] {
        &self.value_planes
    }

    /// Scale of a token's key.
    pub fn key_scale(&self, tile: &[u8], token: usize) -> f16 {
        scale(tile, token)
    }

    /// Scale of a token's value.
    pub fn value_scale(&self, tile: &[u8], token: usize) -> f16 {
        scale(tile, PAGE_TOKENS + token)
    }

    /// Code of a key's coordinate.
    pub fn key_code(&self, tile: &[u8], token: usize, dim: usize) -> u8 {
        let planes = self.key_planes.iter();
        let of_dim = planes.filter(|p| (p.first_dim..p.first_dim + p.dims).contains(&dim));
        let bits = of_dim.map(|plane| {
            let row = &tile[plane.offset + token * plane.row_bytes..][..plane.row_bytes];
            element(row, plane.bits, dim - plane.first_dim) << plane.low
        });
        bits.fold(0, |code, bits| code | bits)
    }

    /// Code of a value's coordinate.
    pub fn value_code(&self, tile: &[u8], token: usize, dim: usize) -> u8 {
        let bits = self.value_planes.iter().map(|plane| {
            let tokens = WORD / plane.bits;
            let block = plane.offset + dim / BLOCK * plane.block_bytes;
            let word = &tile[block + 4 * (token / tokens * BLOCK + dim % BLOCK)..][..4];
            element(word, plane.bits, token % tokens) << plane.low
        });
        bits.fold(0, |code, bits| code | bits)
    }

    /// Writes the scales and codes of all keys of a page; `codes` is `[PAGE_TOKENS, dim]`.
    pub fn pack_keys(&self, tile: &mut [u8], scales: &[f16; PAGE_TOKENS], codes: &[u8]) {
        assert_eq!(codes.len(), PAGE_TOKENS * self.dim, "codes are [PAGE_TOKENS, dim]");
        write_scales(&mut tile[..SCALE_BYTES], scales);
        for plane in &self.key_planes {
            pack::keys(&mut tile[plane.offset..][..PAGE_TOKENS * plane.row_bytes], plane, codes);
        }
    }

    /// Writes the scales and codes of all values of a page; `codes` is `[PAGE_TOKENS, dim]`.
    pub fn pack_values(&self, tile: &mut [u8], scales: &[f16; PAGE_TOKENS], codes: &[u8]) {
        assert_eq!(codes.len(), PAGE_TOKENS * self.dim, "codes are [PAGE_TOKENS, dim]");
        write_scales(&mut tile[SCALE_BYTES..2 * SCALE_BYTES], scales);
        for plane in &self.value_planes {
            let bytes = self.dim.div_ceil(BLOCK) * plane.block_bytes;
            pack::values(&mut tile[plane.offset..][..bytes], plane, codes, self.dim);
        }
        let end = self
            .value_planes
            .last()
            .map_or(0, |plane| plane.offset + self.dim.div_ceil(BLOCK) * plane.block_bytes);
        tile[end..].fill(0);
    }
}

/// The widths of a cache's keys and values, all pairs.
pub fn width_pairs() -> impl Iterator<Item = Widths> {
    let values = |keys| Width::CACHE.into_iter().map(move |values| Widths { keys, values });
    Width::CACHE.into_iter().flat_map(values)
}

fn scale(tile: &[u8], index: usize) -> f16 {
    f16::from_le_bytes([tile[2 * index], tile[2 * index + 1]])
}

fn write_scales(into: &mut [u8], scales: &[f16; PAGE_TOKENS]) {
    for (into, scale) in into.chunks_exact_mut(2).zip(scales) {
        into.copy_from_slice(&scale.to_le_bytes());
    }
}

/// An element of a row of words.
fn element(row: &[u8], bits: usize, index: usize) -> u8 {
    if bits == 8 {
        return row[index];
    }
    let per_word = WORD / bits;
    let word = row[4 * (index / per_word)..].first_chunk().expect("a row is whole words");
    let element = index % per_word;
    let at = 4 * (element % 8) + bits * (element / 8);
    (u32::from_le_bytes(*word) >> at) as u8 & ((1 << bits) - 1)
}

//! `encode`: full pages of keys and values to tiles: rotate, nearest level, pack.
//!
//! A tile is made by one thread from its own 64 tokens, so neither threads nor slices of the work
//! change a byte. One path serves every instruction set: plain Rust whose order of additions is
//! part of the format.

use std::cell::RefCell;
use std::fmt;

use half::f16;
use kvant_turboquant::{Codec, PAGE_TOKENS, PageLayout, Side};
use rayon::prelude::*;

/// Dense keys and values to encode, `[tokens, kv_heads, dim]`, tokens a multiple of 64.
#[derive(Clone, Copy, Debug)]
pub struct PageSource<'a> {
    /// Keys, after RoPE.
    pub keys: &'a [f32],
    /// Values.
    pub values: &'a [f32],
    /// Heads of a token.
    pub kv_heads: usize,
}

/// A vector with NaN or infinity; zeros are stored in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NonFiniteInput {
    /// Keys or values.
    pub side: Side,
    /// Token within the source.
    pub token: usize,
    /// Head within the token.
    pub head: usize,
    /// First coordinate that is not finite.
    pub coordinate: usize,
}

impl fmt::Display for NonFiniteInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { side, token, head, coordinate } = self;
        write!(f, "{side:?} of token {token}, head {head} not finite at coordinate {coordinate}")
    }
}

impl std::error::Error for NonFiniteInput {}

/// Encodes whole pages into `tiles`, `[pages][kv_heads][tile_bytes]`; codecs are (keys, values).
///
/// # Errors
/// The first vector that is not finite, keys before values within a tile; all other vectors are
/// encoded, and zeros stand for those that are not finite.
///
/// # Panics
/// If lengths do not fit together.
pub fn encode(
    tiles: &mut [u8],
    source: PageSource<'_>,
    layout: &PageLayout,
    codecs: (&Codec, &Codec),
) -> Result<(), NonFiniteInput> {
    let PageSource { keys, values, kv_heads } = source;
    let page = PAGE_TOKENS * kv_heads * layout.dim();
    assert!(kv_heads > 0 && keys.len().is_multiple_of(page), "keys must be whole pages");
    assert_eq!(keys.len(), values.len(), "keys and values must have the same length");
    assert_eq!(tiles.len(), keys.len() / page * kv_heads * layout.tile_bytes(), "tiles");
    let widths = (codecs.0.book().width(), codecs.1.book().width());
    assert_eq!(widths, (layout.widths().keys, layout.widths().values), "widths");
    let each = tiles.par_chunks_exact_mut(layout.tile_bytes()).enumerate();
    let errors = each.filter_map(|(index, tile)| {
        let at = (index / kv_heads * PAGE_TOKENS, index % kv_heads);
        encode_tile(tile, source, layout, codecs, at).err()
    });
    errors.min_by_key(|error| (error.token, error.head)).map_or(Ok(()), Err)
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    vector: Vec<f32>,
    codes: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

fn encode_tile(
    tile: &mut [u8],
    source: PageSource<'_>,
    layout: &PageLayout,
    codecs: (&Codec, &Codec),
    (first, head): (usize, usize),
) -> Result<(), NonFiniteInput> {
    let dim = layout.dim();
    let mut result = Ok(());
    SCRATCH.with_borrow_mut(|Scratch { vector, codes }| {
        codes.resize(PAGE_TOKENS * dim, 0);
        let sides = [(Side::Keys, source.keys, codecs.0), (Side::Values, source.values, codecs.1)];
        for (side, numbers, codec) in sides {
            let mut scales = [f16::ZERO; PAGE_TOKENS];
            let each = scales.iter_mut().zip(codes.chunks_exact_mut(dim)).enumerate();
            for (slot, (scale, codes)) in each {
                let at = ((first + slot) * source.kv_heads + head) * dim;
                vector.clear();
                vector.extend_from_slice(&numbers[at..at + dim]);
                match codec.encode_slice(vector, codes) {
                    Ok(found) => *scale = found,
                    Err(error) if result.is_ok() => {
                        let (token, coordinate) = (first + slot, error.coordinate);
                        result = Err(NonFiniteInput { side, token, head, coordinate });
                    }
                    Err(_) => {}
                }
            }
            match side {
                Side::Keys => layout.pack_keys(tile, &scales, codes),
                Side::Values => layout.pack_values(tile, &scales, codes),
            }
        }
    });
    result
}

#[cfg(test)]
mod tests;

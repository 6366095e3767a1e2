//! `Staging`: 16-bit keys and values of prompts still in prefill, so that later chunks never read
//! packed earlier ones.
//!
//! A prompt longer than all of staging gets all of it as a ring: its newest tokens are there, the
//! oldest must have been converted before the ring comes round to them.

use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::cpu::DenseTiles;

use crate::dense::DensePages;
use crate::error::Error;
use crate::format::{CacheShape, pages_for};
use crate::loans::Loans;
use crate::pages::{PageId, PageList};

/// A fixed number of tiles (pages of the same layout as dense ones, out of an own pool), lent to
/// prompts by key.
#[derive(Debug)]
pub struct Staging {
    layers: Vec<DensePages>,
    loans: Loans,
}

impl Staging {
    /// Room for `tokens` tokens, rounded up to whole tiles. Memory is mapped when first written.
    pub fn new(shape: &CacheShape, tokens: usize) -> Self {
        let tiles = pages_for(tokens);
        let layers = shape.layers.iter().map(|layer| DensePages::new(layer.shape, tiles));
        let layers: Vec<_> = layers.collect();
        Self { loans: Loans::new(layers.len(), tiles), layers }
    }

    /// Whether `open` with this many tokens would succeed now.
    pub fn has_room(&self, tokens: usize) -> bool {
        self.loans.has_room(tokens)
    }

    /// Reserves tiles for a prompt of `tokens` tokens.
    pub fn open(&mut self, key: u64, tokens: usize) -> Result<(), Error> {
        self.loans.open(key, tokens)
    }

    /// Gives a prompt's tiles back; false if it was not open.
    pub fn close(&mut self, key: u64) -> bool {
        self.loans.close(key)
    }

    /// Whether the key is in use.
    pub fn is_open(&self, key: u64) -> bool {
        self.loans.is_open(key)
    }

    /// Keeps consecutive tokens, the first at position `start`. k, v: `[tokens, kv_heads, dim]`,
    /// rounded to 16 bits (±65504 at most). A start inside what is present replaces everything from
    /// there on; one behind it is refused.
    ///
    /// # Panics
    /// If k and v are no whole tokens of the same number, or go once round the ring: an error of
    /// ours.
    pub fn append(
        &mut self,
        layer: usize,
        (key, start): (u64, usize),
        k: &[f32],
        v: &[f32],
    ) -> Result<(), Error> {
        let pages = &mut self.layers[layer];
        let len = pages.shape().token_len();
        assert_eq!(k.len() % len, 0, "k must be [tokens, kv_heads, dim]");
        assert_eq!(v.len(), k.len(), "v must have the shape of k");
        let tiles = self.loans.fill(layer, (key, start), k.len() / len)?;
        let tokens = k.chunks_exact(len).zip(v.chunks_exact(len));
        for (position, (k, v)) in (start..).zip(tokens) {
            let tile = tiles[position / PAGE_TOKENS % tiles.len()];
            pages.write(tile, position % PAGE_TOKENS, k, v);
        }
        Ok(())
    }

    /// One layer's tiles and the prompt's list of them, for attention over a whole prompt.
    pub fn view(&self, layer: usize, key: u64) -> Result<(DenseTiles<'_>, &[PageId]), Error> {
        self.layer(layer, key).map(|(pages, tiles)| (pages.tiles(), tiles))
    }

    /// One layer's tiles and, in order, those of some pages of the prompt.
    pub fn part(
        &self,
        layer: usize,
        key: u64,
        pages: std::ops::Range<usize>,
    ) -> Result<(DenseTiles<'_>, PageList), Error> {
        Ok((self.layers[layer].tiles(), self.loans.part(key, pages)?))
    }

    /// Tokens present in a layer of a prompt.
    pub fn length(&self, layer: usize, key: u64) -> Result<usize, Error> {
        self.loans.length(layer, key)
    }

    /// Tokens whose room is lent, in whole tiles.
    pub fn used_tokens(&self) -> usize {
        self.loans.used_tokens()
    }

    /// Tokens there is room for, in whole tiles.
    pub fn capacity_tokens(&self) -> usize {
        self.loans.capacity_tokens()
    }

    /// Bytes of all tiles, as they were allocated.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(DensePages::bytes).sum()
    }

    /// Asserts that every tile is free or lent to exactly one prompt.
    pub fn check(&self) {
        self.loans.check();
    }

    pub(crate) fn layer(&self, layer: usize, key: u64) -> Result<(&DensePages, &[PageId]), Error> {
        Ok((&self.layers[layer], self.loans.tiles(key)?))
    }
}

//! `Staging`: 16-bit keys and values of prompts still in prefill, so that later chunks never read
//! packed earlier ones.
//!
//! A prompt longer than all of staging gets all of it as a ring: its newest tokens are there, the
//! oldest must have been converted before the ring comes round to them.

use std::collections::HashMap;

use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::cpu::DenseTiles;

use crate::dense::DensePages;
use crate::error::Error;
use crate::format::{CacheShape, pages_for};
use crate::pages::{PageId, PageList, PagePool};

/// A fixed number of tiles (pages of the same layout as dense ones, out of an own pool), lent to
/// prompts by key.
#[derive(Debug)]
pub struct Staging {
    layers: Vec<DensePages>,
    pool: PagePool,
    prompts: HashMap<u64, Prompt>,
}

/// What one prompt holds.
#[derive(Debug)]
struct Prompt {
    tiles: PageList,
    /// Tokens asked for.
    tokens: usize,
    /// Tokens present, by layer.
    lengths: Vec<usize>,
}

impl Staging {
    /// Room for `tokens` tokens, rounded up to whole tiles. Memory is mapped when first written.
    pub fn new(shape: &CacheShape, tokens: usize) -> Self {
        let tiles = pages_for(tokens);
        let layers = shape.layers.iter().map(|layer| DensePages::new(layer.shape, tiles)).collect();
        Self { layers, pool: PagePool::new(tiles), prompts: HashMap::new() }
    }

    /// Whether `open` with this many tokens would succeed now.
    pub fn has_room(&self, tokens: usize) -> bool {
        self.needed(tokens) <= self.pool.free()
    }

    /// Tiles of a prompt of `tokens` tokens: all there are if it needs more.
    fn needed(&self, tokens: usize) -> usize {
        pages_for(tokens).min(self.pool.capacity()).max(1)
    }

    /// Reserves tiles for a prompt of `tokens` tokens.
    pub fn open(&mut self, key: u64, tokens: usize) -> Result<(), Error> {
        if self.prompts.contains_key(&key) {
            return Err(Error::Open { key });
        }
        let (needed, free) = (self.needed(tokens), self.pool.free());
        if needed > free {
            let capacity = self.pool.capacity();
            return Err(Error::StagingFull { tokens, needed, free, capacity });
        }
        let tiles = (0..needed).map_while(|_| self.pool.alloc()).collect();
        let lengths = vec![0; self.layers.len()];
        self.prompts.insert(key, Prompt { tiles, tokens, lengths });
        Ok(())
    }

    /// Gives a prompt's tiles back; false if it was not open.
    pub fn close(&mut self, key: u64) -> bool {
        let Some(prompt) = self.prompts.remove(&key) else { return false };
        for tile in prompt.tiles {
            self.pool.release(tile);
        }
        true
    }

    /// Whether the key is in use.
    pub fn is_open(&self, key: u64) -> bool {
        self.prompts.contains_key(&key)
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
        let prompt = self.prompts.get_mut(&key).ok_or(Error::Closed { key })?;
        let (length, end) = (prompt.lengths[layer], start + k.len() / len);
        if start > length {
            return Err(Error::Gap { key, layer, length, start });
        }
        if end > prompt.tokens {
            return Err(Error::PastEnd { key, tokens: prompt.tokens, end });
        }
        let touched = pages_for(end) - start / PAGE_TOKENS;
        let ring = prompt.tiles.len();
        assert!(touched <= ring, "{touched} pages do not go into {ring} tiles");
        let tokens = k.chunks_exact(len).zip(v.chunks_exact(len));
        for (position, (k, v)) in (start..end).zip(tokens) {
            let tile = prompt.tiles[position / PAGE_TOKENS % ring];
            pages.write(tile, position % PAGE_TOKENS, k, v);
        }
        prompt.lengths[layer] = end;
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
        let (layer, tiles) = self.layer(layer, key)?;
        Ok((layer.tiles(), pages.map(|page| tiles[page % tiles.len()]).collect()))
    }

    /// Tokens present in a layer of a prompt.
    pub fn length(&self, layer: usize, key: u64) -> Result<usize, Error> {
        Ok(self.prompt(key)?.lengths[layer])
    }

    /// Tokens whose room is lent, in whole tiles.
    pub fn used_tokens(&self) -> usize {
        self.pool.used() * PAGE_TOKENS
    }

    /// Tokens there is room for, in whole tiles.
    pub fn capacity_tokens(&self) -> usize {
        self.pool.capacity() * PAGE_TOKENS
    }

    /// Bytes of all tiles, as they were allocated.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(DensePages::bytes).sum()
    }

    /// Asserts that every tile is free or lent to exactly one prompt.
    pub fn check(&self) {
        self.pool.check();
        let lent: usize = self.prompts.values().map(|prompt| prompt.tiles.len()).sum();
        assert_eq!(lent, self.pool.used(), "tiles of prompts against tiles lent");
        let owners = |tile: &PageId| self.pool.owners(*tile);
        let mut tiles = self.prompts.values().flat_map(|prompt| &prompt.tiles);
        assert!(tiles.all(|tile| owners(tile) == 1), "a tile of a prompt is free or shared");
    }

    pub(crate) fn layer(&self, layer: usize, key: u64) -> Result<(&DensePages, &[PageId]), Error> {
        Ok((&self.layers[layer], &self.prompt(key)?.tiles))
    }

    fn prompt(&self, key: u64) -> Result<&Prompt, Error> {
        self.prompts.get(&key).ok_or(Error::Closed { key })
    }
}

//! `Loans`: which tiles of staging each prompt holds and how far they are filled. Counts only, no
//! memory, so that every device's staging is accounted for alike.

use std::collections::HashMap;

use kvant_kernels::PAGE_TOKENS;

use crate::error::Error;
use crate::format::pages_for;
use crate::pages::{PageId, PageList, PagePool};

/// A fixed number of tiles, lent to prompts by key.
#[derive(Debug)]
pub(crate) struct Loans {
    layers: usize,
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

impl Loans {
    pub(crate) fn new(layers: usize, tiles: usize) -> Self {
        Self { layers, pool: PagePool::new(tiles), prompts: HashMap::new() }
    }

    /// Whether `open` with this many tokens would succeed now.
    pub(crate) fn has_room(&self, tokens: usize) -> bool {
        self.needed(tokens) <= self.pool.free()
    }

    /// Tiles of a prompt of `tokens` tokens: all there are if it needs more.
    fn needed(&self, tokens: usize) -> usize {
        pages_for(tokens).min(self.pool.capacity()).max(1)
    }

    /// Reserves tiles for a prompt of `tokens` tokens.
    pub(crate) fn open(&mut self, key: u64, tokens: usize) -> Result<(), Error> {
        if self.prompts.contains_key(&key) {
            return Err(Error::Open { key });
        }
        let (needed, free) = (self.needed(tokens), self.pool.free());
        if needed > free {
            let capacity = self.pool.capacity();
            return Err(Error::StagingFull { tokens, needed, free, capacity });
        }
        let tiles = (0..needed).map_while(|_| self.pool.alloc()).collect();
        let lengths = vec![0; self.layers];
        self.prompts.insert(key, Prompt { tiles, tokens, lengths });
        Ok(())
    }

    /// Takes a prompt's tiles back; false if it was not open.
    pub(crate) fn close(&mut self, key: u64) -> bool {
        let Some(prompt) = self.prompts.remove(&key) else { return false };
        for tile in prompt.tiles {
            self.pool.release(tile);
        }
        true
    }

    /// Whether the key is in use.
    pub(crate) fn is_open(&self, key: u64) -> bool {
        self.prompts.contains_key(&key)
    }

    /// Notes consecutive tokens of a layer, the first at position `start`, and gives the tiles of
    /// the prompt's pages, a ring. A start inside what is present replaces everything from there
    /// on; one behind it is refused.
    ///
    /// # Panics
    /// If the tokens go once round the ring: an error of ours.
    pub(crate) fn fill(
        &mut self,
        layer: usize,
        (key, start): (u64, usize),
        tokens: usize,
    ) -> Result<&[PageId], Error> {
        let prompt = self.prompts.get_mut(&key).ok_or(Error::Closed { key })?;
        let (length, end) = (prompt.lengths[layer], start + tokens);
        if start > length {
            return Err(Error::Gap { key, layer, length, start });
        }
        if end > prompt.tokens {
            return Err(Error::PastEnd { key, tokens: prompt.tokens, end });
        }
        let touched = pages_for(end) - start / PAGE_TOKENS;
        let ring = prompt.tiles.len();
        assert!(touched <= ring, "{touched} pages do not go into {ring} tiles");
        prompt.lengths[layer] = end;
        Ok(&prompt.tiles)
    }

    /// The tiles of a prompt: page p is in tile p modulo their number.
    pub(crate) fn tiles(&self, key: u64) -> Result<&[PageId], Error> {
        Ok(&self.prompt(key)?.tiles)
    }

    /// The tiles of some pages of a prompt, in order.
    pub(crate) fn part(&self, key: u64, pages: std::ops::Range<usize>) -> Result<PageList, Error> {
        let tiles = self.tiles(key)?;
        Ok(pages.map(|page| tiles[page % tiles.len()]).collect())
    }

    /// Tokens present in a layer of a prompt.
    pub(crate) fn length(&self, layer: usize, key: u64) -> Result<usize, Error> {
        Ok(self.prompt(key)?.lengths[layer])
    }

    /// Tokens whose room is lent, in whole tiles.
    pub(crate) fn used_tokens(&self) -> usize {
        self.pool.used() * PAGE_TOKENS
    }

    /// Tokens there is room for, in whole tiles.
    pub(crate) fn capacity_tokens(&self) -> usize {
        self.pool.capacity() * PAGE_TOKENS
    }

    /// Asserts that every tile is free or lent to exactly one prompt.
    pub(crate) fn check(&self) {
        self.pool.check();
        let lent: usize = self.prompts.values().map(|prompt| prompt.tiles.len()).sum();
        assert_eq!(lent, self.pool.used(), "tiles of prompts against tiles lent");
        let owners = |tile: &PageId| self.pool.owners(*tile);
        let mut tiles = self.prompts.values().flat_map(|prompt| &prompt.tiles);
        assert!(tiles.all(|tile| owners(tile) == 1), "a tile of a prompt is free or shared");
    }

    fn prompt(&self, key: u64) -> Result<&Prompt, Error> {
        self.prompts.get(&key).ok_or(Error::Closed { key })
    }
}

//! Memory of the measured cache: the same numbers in 16 bits and packed, in many more pages than
//! one call reads, and the order in which calls take the pages.

use half::f16;
use half::slice::HalfFloatSliceExt;
use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::cpu::{DenseTiles, PackedTiles, PageSource, encode};
use kvant_turboquant::{Codec, Key, PageLayout, Rotation, ScaleRule, Side, Width, Widths};
use rayon::prelude::*;

use super::HeadShape;
use crate::random::{normal, permutation};

/// Pages of different numbers; a pool repeats them, in memory of its own each time.
const DRAWN_PAGES: usize = 64;

/// Keys and values as a model gives them, `[tokens, kv_heads, dim]`.
pub(super) struct Drawn {
    shape: HeadShape,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Drawn {
    pub(super) fn new(shape: HeadShape, seed: u64) -> Self {
        let mut state = seed;
        let count = DRAWN_PAGES * PAGE_TOKENS * shape.kv_heads * shape.dim;
        let mut draw = || (0..count).map(|_| normal(&mut state)).collect();
        Self { shape, keys: draw(), values: draw() }
    }

    pub(super) fn source(&self) -> PageSource<'_> {
        PageSource { keys: &self.keys, values: &self.values, kv_heads: self.shape.kv_heads }
    }

    pub(super) fn tokens(&self) -> usize {
        self.keys.len() / (self.shape.kv_heads * self.shape.dim)
    }
}

/// A pool of 16-bit pages, `[page][kv_heads][PAGE_TOKENS][dim]`.
pub(super) struct DensePool {
    shape: HeadShape,
    keys: Vec<f16>,
    values: Vec<f16>,
}

impl DensePool {
    pub(super) fn new(drawn: &Drawn, pages: usize) -> Self {
        let shape = drawn.shape;
        let fill = |numbers| {
            let page = page_len(shape);
            repeat(&tiles_of(numbers, shape), page, vec![f16::ZERO; pages * page])
        };
        Self { shape, keys: fill(&drawn.keys), values: fill(&drawn.values) }
    }

    /// Pages that are written before they are read.
    pub(super) fn empty(shape: HeadShape, pages: usize) -> Self {
        let zeros = || vec![f16::ZERO; pages * page_len(shape)];
        Self { shape, keys: zeros(), values: zeros() }
    }

    pub(super) fn tiles(&self) -> DenseTiles<'_> {
        let HeadShape { kv_heads, dim, .. } = self.shape;
        DenseTiles { keys: &self.keys, values: &self.values, kv_heads, dim }
    }

    /// Keys and values of one head's tile.
    pub(super) fn tile(&self, tile: usize) -> (&[f16], &[f16]) {
        let len = PAGE_TOKENS * self.shape.dim;
        (&self.keys[tile * len..][..len], &self.values[tile * len..][..len])
    }

    /// Keys and values of the first pages, to be written.
    pub(super) fn first_mut(&mut self, pages: usize) -> (&mut [f16], &mut [f16]) {
        let len = pages * page_len(self.shape);
        (&mut self.keys[..len], &mut self.values[..len])
    }
}

/// Numbers of the keys of one page.
fn page_len(shape: HeadShape) -> usize {
    PAGE_TOKENS * shape.kv_heads * shape.dim
}

/// From `[tokens, kv_heads, dim]` to 16 bits, `[page][kv_heads][PAGE_TOKENS][dim]`.
fn tiles_of(numbers: &[f32], shape: HeadShape) -> Vec<f16> {
    let HeadShape { kv_heads, dim, .. } = shape;
    let mut tiles = vec![f16::ZERO; numbers.len()];
    for (index, vector) in tiles.chunks_exact_mut(dim).enumerate() {
        let (tile, slot) = (index / PAGE_TOKENS, index % PAGE_TOKENS);
        let token = tile / kv_heads * PAGE_TOKENS + slot;
        let at = (token * kv_heads + tile % kv_heads) * dim;
        vector.convert_from_f32_slice(&numbers[at..at + dim]);
    }
    tiles
}

/// Fills `into` with the pages of `from`, again and again.
fn repeat<T: Copy + Send + Sync>(from: &[T], page: usize, mut into: Vec<T>) -> Vec<T> {
    let count = from.len() / page;
    into.par_chunks_exact_mut(page).enumerate().for_each(|(index, into)| {
        into.copy_from_slice(&from[index % count * page..][..page]);
    });
    into
}

/// A pool of packed pages, `[page][kv_heads][tile_bytes]`.
pub(super) struct PackedPool {
    pub(super) layout: PageLayout,
    /// Of keys and of values.
    pub(super) codecs: (Codec, Codec),
    pub(super) bytes: Vec<u8>,
}

impl PackedPool {
    pub(super) fn new(drawn: &Drawn, widths: Widths, pages: usize) -> Self {
        let HeadShape { kv_heads, dim, .. } = drawn.shape;
        let layout = PageLayout::new(dim, widths);
        let codecs = (codec(dim, Side::Keys, widths.keys), codec(dim, Side::Values, widths.values));
        let mut pool = Self { layout, codecs, bytes: Vec::new() };
        let page = kv_heads * pool.layout.tile_bytes();
        let mut tiles = vec![0; DRAWN_PAGES * page];
        pool.encode(drawn, &mut tiles);
        pool.bytes = repeat(&tiles, page, vec![0; pages * page]);
        pool
    }

    /// Encodes everything drawn; `tiles` is as long as that.
    pub(super) fn encode(&self, drawn: &Drawn, tiles: &mut [u8]) {
        let codecs = (&self.codecs.0, &self.codecs.1);
        encode(tiles, drawn.source(), &self.layout, codecs).expect("drawn numbers are finite");
    }

    /// Bytes of everything drawn.
    pub(super) fn drawn_bytes(&self, drawn: &Drawn) -> usize {
        DRAWN_PAGES * drawn.shape.kv_heads * self.layout.tile_bytes()
    }

    pub(super) fn tile(&self, tile: usize) -> &[u8] {
        let len = self.layout.tile_bytes();
        &self.bytes[tile * len..][..len]
    }

    pub(super) fn tiles<'a>(&'a self, dense: &'a DensePool) -> PackedTiles<'a> {
        PackedTiles {
            tiles: &self.bytes,
            layout: &self.layout,
            keys: self.codecs.0.rotation(),
            values: self.codecs.1.rotation(),
            dense: dense.tiles(),
        }
    }
}

fn codec(dim: usize, side: Side, width: Width) -> Codec {
    let rotation = Rotation::new(dim, Key { layer: 0, side, seed: 0 });
    Codec::new(rotation, width, ScaleRule::for_side(side, width))
}

/// Which pages a call reads: disjoint sets of random pages, taken one after the other, so that a
/// page comes back only after all others.
pub(super) struct PageSets {
    order: Vec<u32>,
    row_pages: usize,
    set_pages: usize,
    next: usize,
}

impl PageSets {
    /// As many sets of `batch` rows as `pages` pages hold, at least one.
    pub(super) fn new(pages: usize, batch: usize, row_pages: usize, seed: u64) -> Self {
        let set_pages = batch * row_pages;
        assert!(set_pages > 0 && pages >= set_pages, "{pages} pages hold no set");
        let order = permutation(pages as u32, &mut seed.clone());
        Self { order, row_pages, set_pages, next: 0 }
    }

    pub(super) fn count(&self) -> usize {
        self.order.len() / self.set_pages
    }

    pub(super) fn row_pages(&self) -> usize {
        self.row_pages
    }

    /// The next set, rows one after the other.
    pub(super) fn take(&mut self) -> &[u32] {
        let set = self.next;
        self.next = (set + 1) % self.count();
        &self.order[set * self.set_pages..][..self.set_pages]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_disjoint_and_come_back_in_turn() {
        let mut sets = PageSets::new(26, 2, 4, 1);
        assert_eq!((sets.count(), sets.row_pages()), (3, 4));
        let mut seen: Vec<u32> = (0..3).flat_map(|_| sets.take().to_vec()).collect();
        let first = seen[..8].to_vec();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 24);
        assert_eq!(sets.take(), first);
    }

    #[test]
    fn tiles_hold_a_heads_tokens_together() {
        let shape = HeadShape { kv_heads: 3, group: 1, dim: 2 };
        let numbers: Vec<f32> = (0..2 * PAGE_TOKENS * 6).map(|n| n as f32).collect();
        let tiles = tiles_of(&numbers, shape);
        for (page, head, slot, d) in [(0, 0, 0, 0), (0, 2, 5, 1), (1, 1, 63, 0), (1, 2, 0, 1)] {
            let tile = ((page * 3 + head) * PAGE_TOKENS + slot) * 2 + d;
            let number = ((page * PAGE_TOKENS + slot) * 3 + head) * 2 + d;
            assert_eq!(tiles[tile].to_f32(), numbers[number], "{page} {head} {slot} {d}");
        }
    }
}

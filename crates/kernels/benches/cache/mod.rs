//! A cache of one layer for benches: packed, and the same numbers in 16 bits.

use half::f16;
use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::cpu::{DenseTiles, PackedTiles, PageSource, encode};
use kvant_turboquant::{Codec, Encoded, Key, PageLayout, Rotation, ScaleRule, Side, Width, Widths};

/// (kv_heads, group, dim): an 8B model; SmolLM2 135M.
pub(crate) const SHAPES: [(usize, usize, usize); 2] = [(8, 4, 128), (3, 3, 64)];
/// Name, bits of keys, bits of values.
pub(crate) const PRESETS: [(&str, usize, usize); 6] =
    [("tq8", 8, 8), ("k8v4", 8, 4), ("tq4", 4, 4), ("k4v3", 4, 3), ("tq3", 3, 3), ("tq2", 2, 2)];

pub(crate) struct Cache {
    pub(crate) tiles: Vec<u8>,
    pub(crate) layout: PageLayout,
    pub(crate) codecs: (Codec, Codec),
    pub(crate) keys: Vec<f16>,
    pub(crate) shape: (usize, usize, usize),
}

pub(crate) fn codec(dim: usize, side: Side, width: Width) -> Codec {
    let rotation = Rotation::new(dim, Key { layer: 0, side, seed: 0 });
    Codec::new(rotation, width, ScaleRule::for_side(side, width))
}

pub(crate) fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i * 7919 % 1021) as f32 / 510.0 - 1.0).collect()
}

impl Cache {
    pub(crate) fn new(shape: (usize, usize, usize), pages: usize, widths: Widths) -> Self {
        let (kv_heads, _, dim) = shape;
        let layout = PageLayout::new(dim, widths);
        let codecs = (codec(dim, Side::Keys, widths.keys), codec(dim, Side::Values, widths.values));
        let x = numbers(pages * PAGE_TOKENS * kv_heads * dim);
        let mut tiles = vec![0; pages * kv_heads * layout.tile_bytes()];
        let source = PageSource { keys: &x, values: &x, kv_heads };
        encode(&mut tiles, source, &layout, (&codecs.0, &codecs.1)).expect("finite numbers");
        let keys = x.iter().map(|x| f16::from_f32(*x)).collect();
        Self { tiles, layout, codecs, keys, shape }
    }

    pub(crate) fn dense(&self) -> DenseTiles<'_> {
        let (kv_heads, _, dim) = self.shape;
        DenseTiles { keys: &self.keys, values: &self.keys, kv_heads, dim }
    }

    pub(crate) fn packed(&self) -> PackedTiles<'_> {
        PackedTiles {
            tiles: &self.tiles,
            layout: &self.layout,
            keys: self.codecs.0.rotation(),
            values: self.codecs.1.rotation(),
            dense: self.dense(),
        }
    }

    /// All codes of the cache back to vectors, as an engine without packed kernels has to.
    pub(crate) fn decode(&self, into: &mut [f32]) {
        let dim = self.shape.2;
        let tiles = self.tiles.chunks_exact(self.layout.tile_bytes());
        let pages = into.chunks_exact_mut(2 * PAGE_TOKENS * dim);
        for (tile, page) in tiles.zip(pages) {
            let (keys, values) = page.split_at_mut(PAGE_TOKENS * dim);
            for slot in 0..PAGE_TOKENS {
                let codes = (0..dim).map(|d| self.layout.key_code(tile, slot, d)).collect();
                let key = Encoded { scale: self.layout.key_scale(tile, slot), codes };
                keys[slot * dim..][..dim].copy_from_slice(&self.codecs.0.decode(&key));
                let codes = (0..dim).map(|d| self.layout.value_code(tile, slot, d)).collect();
                let value = Encoded { scale: self.layout.value_scale(tile, slot), codes };
                values[slot * dim..][..dim].copy_from_slice(&self.codecs.1.decode(&value));
            }
        }
    }
}

pub(crate) fn widths(keys: usize, values: usize) -> Widths {
    let width = |bits| Width::new(bits).expect("a width");
    Widths { keys: width(keys), values: width(values) }
}

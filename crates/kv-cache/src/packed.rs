//! `PackedPages`: rotated codes of one layer, in pages, and the 16-bit tail of each sequence.
//!
//! The newest tokens of a sequence, 1 to 64, are always in its tail; a full tail is sealed
//! (rotated, quantized, packed) when the next token comes. So no code is ever changed once it is
//! written.

use kvant_kernels::cpu::{NonFiniteInput, PackedTiles, PageSource, encode};
use kvant_turboquant::{Codec, Key, PageLayout, Rotation, ScaleRule, Side, Widths};

use crate::dense::DensePages;
use crate::format::LayerShape;
use crate::pages::PageId;

/// Memory of one packed layer.
#[derive(Debug)]
pub(crate) struct PackedPages {
    shape: LayerShape,
    layout: PageLayout,
    keys: Codec,
    values: Codec,
    /// `[page][kv_heads][tile_bytes]`
    tiles: Vec<u8>,
    /// One page a tail.
    tails: DensePages,
}

/// What is the same for all pages of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedSpec {
    pub(crate) layer: usize,
    pub(crate) shape: LayerShape,
    pub(crate) widths: Widths,
    /// Of keys and of values.
    pub(crate) rules: [ScaleRule; 2],
    pub(crate) seed: u64,
}

impl PackedSpec {
    /// The rotations of keys and of values.
    pub(crate) fn rotations(&self) -> [Rotation; 2] {
        let PackedSpec { layer, seed, .. } = *self;
        [Side::Keys, Side::Values]
            .map(|side| Rotation::new(self.shape.dim, Key { layer: layer as u32, side, seed }))
    }
}

impl PackedPages {
    pub(crate) fn new(spec: PackedSpec, pages: usize, tails: usize) -> Self {
        let PackedSpec { shape, widths, rules, .. } = spec;
        let [keys, values] = spec.rotations();
        let layout = PageLayout::new(shape.dim, widths);
        Self {
            shape,
            tiles: vec![0; pages * shape.kv_heads * layout.tile_bytes()],
            layout,
            keys: Codec::new(keys, widths.keys, rules[0]),
            values: Codec::new(values, widths.values, rules[1]),
            tails: DensePages::new(shape, tails),
        }
    }

    pub(crate) fn shape(&self) -> LayerShape {
        self.shape
    }

    /// Packs a page of 16-bit tokens into `page`. Vectors that are not finite become zeros.
    pub(crate) fn pack(
        &mut self,
        page: PageId,
        source: &DensePages,
        source_page: PageId,
    ) -> Result<(), NonFiniteInput> {
        let (keys, values) = source.read(source_page);
        let source = PageSource { keys: &keys, values: &values, kv_heads: self.shape.kv_heads };
        let bytes = self.page_bytes();
        let tile = &mut self.tiles[page as usize * bytes..][..bytes];
        encode(tile, source, &self.layout, (&self.keys, &self.values))
    }

    /// Packs a full tail into `page`.
    pub(crate) fn seal(&mut self, page: PageId, tail: u32) -> Result<(), NonFiniteInput> {
        let (keys, values) = self.tails.read(tail);
        let source = PageSource { keys: &keys, values: &values, kv_heads: self.shape.kv_heads };
        let bytes = self.page_bytes();
        let tile = &mut self.tiles[page as usize * bytes..][..bytes];
        encode(tile, source, &self.layout, (&self.keys, &self.values))
    }

    pub(crate) fn tails(&self) -> &DensePages {
        &self.tails
    }

    pub(crate) fn tails_mut(&mut self) -> &mut DensePages {
        &mut self.tails
    }

    /// All codes with what is needed to read them; tails are the dense tiles.
    pub(crate) fn tiles(&self) -> PackedTiles<'_> {
        PackedTiles {
            tiles: &self.tiles,
            layout: &self.layout,
            keys: self.keys.rotation(),
            values: self.values.rotation(),
            dense: self.tails.tiles(),
        }
    }

    /// Bytes allocated for all pages and tails.
    pub(crate) fn bytes(&self) -> u64 {
        self.tiles.capacity() as u64 + self.tails.bytes()
    }

    /// Bytes of one page, all heads.
    pub(crate) fn page_bytes(&self) -> usize {
        self.shape.kv_heads * self.layout.tile_bytes()
    }

    /// The bytes of one page.
    pub(crate) fn page(&self, page: PageId) -> &[u8] {
        let bytes = self.page_bytes();
        &self.tiles[page as usize * bytes..][..bytes]
    }

    /// The same, to be written.
    pub(crate) fn page_mut(&mut self, page: PageId) -> &mut [u8] {
        let bytes = self.page_bytes();
        &mut self.tiles[page as usize * bytes..][..bytes]
    }

    pub(crate) fn copy_within(&mut self, page: PageId, source: PageId) {
        let bytes = self.page_bytes();
        let (to, from) = (page as usize * bytes, source as usize * bytes);
        self.tiles.copy_within(from..from + bytes, to);
    }

    /// The vector that the codes of a token stand for: keys and values, each `[kv_heads, dim]`.
    pub(crate) fn decode(&self, page: PageId, slot: usize) -> (Vec<f32>, Vec<f32>) {
        let bytes = self.layout.tile_bytes();
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for head in 0..self.shape.kv_heads {
            let tile = &self.page(page)[head * bytes..][..bytes];
            let codes = |code: &dyn Fn(usize) -> u8| (0..self.shape.dim).map(code).collect();
            let key = kvant_turboquant::Encoded {
                scale: self.layout.key_scale(tile, slot),
                codes: codes(&|dim| self.layout.key_code(tile, slot, dim)),
            };
            let value = kvant_turboquant::Encoded {
                scale: self.layout.value_scale(tile, slot),
                codes: codes(&|dim| self.layout.value_code(tile, slot, dim)),
            };
            keys.extend(self.keys.decode(&key));
            values.extend(self.values.decode(&value));
        }
        (keys, values)
    }
}

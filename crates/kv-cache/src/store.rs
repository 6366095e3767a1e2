//! `PageStore`: the memory of all pages of all layers, and the only way from staging into pages.

use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::cpu::DenseTiles;

use crate::dense::DensePages;
use crate::error::Error;
use crate::format::{CacheShape, Format, formats, pages_for};
use crate::pages::PageId;
use crate::staging::Staging;

/// Where one token of a layer is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowSlot {
    /// The page.
    pub page: PageId,
    /// The token's place in it, below `PAGE_TOKENS`.
    pub slot: usize,
}

impl RowSlot {
    /// The slot of the token at `position` of a sequence.
    ///
    /// # Panics
    /// If the pages end before `position`: an error of ours.
    pub fn at(pages: &[PageId], position: usize) -> Self {
        let page = pages.get(position / PAGE_TOKENS).copied();
        let page = page.unwrap_or_else(|| panic!("{} pages end before {position}", pages.len()));
        Self { page, slot: position % PAGE_TOKENS }
    }
}

/// Owns keys and values of every page. Which page is whose is counted elsewhere, in a `PagePool` of
/// as many pages.
#[derive(Debug)]
pub struct PageStore {
    layers: Vec<LayerPages>,
    formats: Vec<Format>,
    pages: usize,
}

/// Memory of one layer, by format.
#[derive(Debug)]
enum LayerPages {
    Dense(DensePages),
}

impl PageStore {
    /// Memory for `pages` pages. It is mapped when first written, so unused pages cost nothing.
    pub fn new(shape: &CacheShape, pages: usize) -> Self {
        let formats = formats(shape);
        let layers = shape
            .layers
            .iter()
            .zip(&formats)
            .map(|(layer, format)| match format {
                Format::Dense { .. } => LayerPages::Dense(DensePages::new(*layer, pages)),
            })
            .collect();
        Self { layers, formats, pages }
    }

    /// The format of each layer.
    pub fn formats(&self) -> &[Format] {
        &self.formats
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Keeps one token a row. k, v: `[rows, kv_heads, dim]`, rounded to 16 bits (±65504 at most).
    ///
    /// # Panics
    /// If a slot does not exist or lengths do not fit: errors of ours.
    pub fn append(&mut self, layer: usize, rows: &[RowSlot], k: &[f32], v: &[f32]) {
        match &mut self.layers[layer] {
            LayerPages::Dense(pages) => {
                let len = pages.shape().token_len();
                assert_eq!(k.len(), rows.len() * len, "k must be [rows, kv_heads, dim]");
                assert_eq!(v.len(), k.len(), "v must have the shape of k");
                let tokens = k.chunks_exact(len).zip(v.chunks_exact(len));
                for (row, (k, v)) in rows.iter().zip(tokens) {
                    pages.write(row.page, row.slot, k, v);
                }
            }
        }
    }

    /// Keys and values of a dense layer, for attention.
    pub fn tiles(&self, layer: usize) -> DenseTiles<'_> {
        match &self.layers[layer] {
            LayerPages::Dense(pages) => pages.tiles(),
        }
    }

    /// Moves one layer of a prompt of `length` tokens from staging into `pages`: the only function
    /// that completes a prefill. What the last page holds behind the prompt is undefined. Staging
    /// is left as it is.
    ///
    /// # Panics
    /// If `pages` are not as many as `length` tokens need: an error of ours.
    pub fn ingest(
        &mut self,
        layer: usize,
        (staging, key): (&Staging, u64),
        length: usize,
        pages: &[PageId],
    ) -> Result<(), Error> {
        assert_eq!(pages.len(), pages_for(length), "pages for a prompt of {length} tokens");
        let staged = staging.length(layer, key)?;
        if staged < length {
            return Err(Error::Incomplete { key, layer, length: staged, wanted: length });
        }
        let (source, tiles) = staging.layer(layer, key)?;
        match &mut self.layers[layer] {
            LayerPages::Dense(target) => {
                for (page, tile) in pages.iter().zip(tiles) {
                    target.copy_from(*page, source, *tile);
                }
            }
        }
        Ok(())
    }

    /// Copies a page in all layers, so that a sequence can write to its own copy of a shared one.
    pub fn copy_page(&mut self, page: PageId, source: PageId) {
        for layer in &mut self.layers {
            match layer {
                LayerPages::Dense(pages) => pages.copy_within(page, source),
            }
        }
    }
}

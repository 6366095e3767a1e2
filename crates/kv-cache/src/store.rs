//! `PageStore`: the memory of all pages of all layers, and the only way from staging into pages.

use std::ops::Range;
use std::time::{Duration, Instant};

use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::cpu::{DenseTiles, NonFiniteInput, PackedTiles};

use crate::dense::DensePages;
use crate::error::Error;
use crate::format::{CacheShape, Format, LayerShape, pages_for};
use crate::packed::{PackedPages, PackedSpec};
use crate::pages::PageId;
use crate::signature::Signature;
use crate::staging::Staging;

/// Where the next tokens of a sequence go.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The sequence's pages in token order, with room for the tokens.
    pub pages: &'a [PageId],
    /// The sequence's tail, used by packed layers alone.
    pub tail: u32,
    /// Position of the first token.
    pub position: usize,
    /// Number of tokens; all of one page.
    pub tokens: usize,
}

impl Row<'_> {
    /// Index of the page that the tokens go to, and their slots in it.
    ///
    /// # Panics
    /// If the page does not exist or the tokens are of several: errors of ours.
    pub(crate) fn slots(&self) -> (usize, Range<usize>) {
        let (index, first) = (self.position / PAGE_TOKENS, self.position % PAGE_TOKENS);
        assert!(first + self.tokens <= PAGE_TOKENS, "the tokens of a row are of one page");
        assert!(index < self.pages.len(), "{} pages end before a row", self.pages.len());
        (index, first..first + self.tokens)
    }

    /// Where a full tail goes, if these tokens are the first behind it.
    pub(crate) fn sealed(&self) -> Option<PageId> {
        let (index, slots) = self.slots();
        (slots.start == 0 && index > 0).then(|| self.pages[index - 1])
    }
}

/// A part of a prompt that has come to staging.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Position of its first token.
    pub start: usize,
    /// Position after its last token.
    pub end: usize,
    /// Tokens of the whole prompt.
    pub total: usize,
}

impl Span {
    /// Pages whose last token is in it, but for the prompt's last page.
    pub(crate) fn full(&self) -> Range<usize> {
        let first = self.start / PAGE_TOKENS;
        first..self.last_page().min(self.end / PAGE_TOKENS).max(first)
    }

    /// The page of the prompt's last token.
    pub(crate) fn last_page(&self) -> usize {
        (self.total - 1) / PAGE_TOKENS
    }
}

/// Keys and values of a layer, for attention.
#[derive(Clone, Copy, Debug)]
pub enum Tiles<'a> {
    /// All tokens in 16-bit pages.
    Dense(DenseTiles<'a>),
    /// Full pages packed, the newest tokens in tails.
    Packed(PackedTiles<'a>),
}

/// Owns keys and values of every page. Which page is whose is counted elsewhere, in a `PagePool` of
/// as many pages.
#[derive(Debug)]
pub struct PageStore {
    pub(crate) layers: Vec<LayerPages>,
    signature: Signature,
    pages: usize,
    conversions: Conversions,
}

/// Pages rotated, quantized and packed, each layer's for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conversions {
    /// How many.
    pub pages: u64,
    /// How long they took together.
    pub time: Duration,
    /// Those with vectors that were not finite, which became zeros.
    pub not_finite: u64,
}

impl Conversions {
    fn count(&mut self, pack: impl FnOnce() -> Result<(), NonFiniteInput>) {
        let start = Instant::now();
        self.not_finite += u64::from(pack().is_err());
        self.time += start.elapsed();
        self.pages += 1;
    }
}

/// Memory of one layer, by format.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one a layer, made once")]
pub(crate) enum LayerPages {
    Dense(DensePages),
    Packed(PackedPages),
}

impl PageStore {
    /// Memory for `pages` pages and the tails of `tails` sequences. It is mapped when first
    /// written, so unused pages cost nothing. Rotations are drawn from `seed`.
    pub fn new(shape: &CacheShape, (pages, tails): (usize, usize), seed: u64) -> Self {
        let layers = shape.layers.iter().enumerate().map(|(index, layer)| match layer.format {
            Format::Dense => LayerPages::Dense(DensePages::new(layer.shape, pages)),
            Format::TurboQuant(widths) => {
                let rules = shape.rules(widths);
                let spec = PackedSpec { layer: index, shape: layer.shape, widths, rules, seed };
                LayerPages::Packed(PackedPages::new(spec, pages, tails))
            }
        });
        let signature = Signature::new(shape, seed);
        Self { layers: layers.collect(), signature, pages, conversions: Conversions::default() }
    }

    /// What makes pages readable by another store.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Bytes of all pages and tails, as they were allocated.
    pub fn bytes(&self) -> u64 {
        let bytes = self.layers.iter().map(|layer| match layer {
            LayerPages::Dense(pages) => pages.bytes(),
            LayerPages::Packed(pages) => pages.bytes(),
        });
        bytes.sum()
    }

    /// Heads of a layer.
    pub(crate) fn shape(&self, layer: usize) -> LayerShape {
        match &self.layers[layer] {
            LayerPages::Dense(pages) => pages.shape(),
            LayerPages::Packed(pages) => pages.shape(),
        }
    }

    /// What was packed since the store was made.
    pub fn conversions(&self) -> Conversions {
        self.conversions
    }

    /// Keeps the tokens of some rows. k, v: `[sum of tokens, kv_heads, dim]`, rounded to 16 bits
    /// (±65504 at most). A token that begins a page seals the one before it.
    ///
    /// # Panics
    /// If a page does not exist or lengths do not fit: errors of ours.
    pub fn append(&mut self, layer: usize, rows: &[Row<'_>], k: &[f32], v: &[f32]) {
        let len = self.shape(layer).token_len();
        let count: usize = rows.iter().map(|row| row.tokens).sum();
        assert_eq!(k.len(), count * len, "k must be [tokens, kv_heads, dim]");
        assert_eq!(v.len(), k.len(), "v must have the shape of k");
        let mut tokens = k.chunks_exact(len).zip(v.chunks_exact(len));
        for row in rows {
            let (index, slots) = row.slots();
            match &mut self.layers[layer] {
                LayerPages::Dense(pages) => {
                    for (slot, (k, v)) in slots.zip(&mut tokens) {
                        pages.write(row.pages[index], slot, k, v);
                    }
                }
                LayerPages::Packed(pages) => {
                    if let Some(page) = row.sealed() {
                        self.conversions.count(|| pages.seal(page, row.tail));
                    }
                    for (slot, (k, v)) in slots.zip(&mut tokens) {
                        pages.tails_mut().write(row.tail, slot, k, v);
                    }
                }
            }
        }
    }

    /// Keys and values of a layer, for attention.
    pub fn tiles(&self, layer: usize) -> Tiles<'_> {
        match &self.layers[layer] {
            LayerPages::Dense(pages) => Tiles::Dense(pages.tiles()),
            LayerPages::Packed(pages) => Tiles::Packed(pages.tiles()),
        }
    }

    /// Brings one layer of a part of a prompt from staging into pages: the only road there is, for
    /// prompts of one chunk or many, fresh or computed again. Every page is converted when its last
    /// token has come; with the prompt's last token its last page goes to the tail (packed layers)
    /// or to its page as far as it is filled (dense ones). Staging is left as it is.
    ///
    /// # Panics
    /// If `row.pages` are fewer than the prompt needs: an error of ours.
    pub fn convert(
        &mut self,
        layer: usize,
        (staging, key): (&Staging, u64),
        span: Span,
        row: Row<'_>,
    ) -> Result<(), Error> {
        let Span { end, total, .. } = span;
        assert!(row.pages.len() >= pages_for(total), "pages for a prompt of {total} tokens");
        let staged = staging.length(layer, key)?;
        if staged < end {
            return Err(Error::Incomplete { key, layer, length: staged, wanted: end });
        }
        let (source, tiles) = staging.layer(layer, key)?;
        let last = span.last_page();
        let tile = |index: usize| tiles[index % tiles.len()];
        for index in span.full() {
            let page = row.pages[index];
            match &mut self.layers[layer] {
                LayerPages::Dense(pages) => pages.copy_from(page, source, tile(index)),
                LayerPages::Packed(pages) => {
                    self.conversions.count(|| pages.pack(page, source, tile(index)));
                }
            }
        }
        if end == total {
            match &mut self.layers[layer] {
                LayerPages::Dense(pages) => pages.copy_from(row.pages[last], source, tile(last)),
                LayerPages::Packed(pages) => {
                    pages.tails_mut().copy_from(row.tail, source, tile(last));
                }
            }
        }
        Ok(())
    }

    /// Keys and values of a token as attention sees them, each `[kv_heads, dim]`: for tests and the
    /// reference road. `length` is that of the sequence.
    pub fn token(
        &self,
        layer: usize,
        row: Row<'_>,
        position: usize,
        length: usize,
    ) -> (Vec<f32>, Vec<f32>) {
        let (index, slot) = (position / PAGE_TOKENS, position % PAGE_TOKENS);
        match &self.layers[layer] {
            LayerPages::Dense(pages) => pages.token(row.pages[index], slot),
            // The newest page is open.
            LayerPages::Packed(pages) if index == (length - 1) / PAGE_TOKENS => {
                pages.tails().token(row.tail, slot)
            }
            LayerPages::Packed(pages) => pages.decode(row.pages[index], slot),
        }
    }

    /// Copies a page in all layers, so that a sequence can write to its own copy of a shared one.
    pub fn copy_page(&mut self, page: PageId, source: PageId) {
        for layer in &mut self.layers {
            match layer {
                LayerPages::Dense(pages) => pages.copy_within(page, source),
                LayerPages::Packed(pages) => pages.copy_within(page, source),
            }
        }
    }

    /// Copies a tail in all packed layers.
    pub fn copy_tail(&mut self, tail: u32, source: u32) {
        for layer in &mut self.layers {
            if let LayerPages::Packed(pages) = layer {
                pages.tails_mut().copy_within(tail, source);
            }
        }
    }
}

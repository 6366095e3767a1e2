//! `DeviceStore`: the memory of all pages, tails and staging of all layers on a GPU.

use std::sync::Arc;

use kvant_kernels::device::{
    Activations, Gpu, GpuError, GpuProgram, Place, Spec, override_occupancy,
};

use super::lists::{Chunk, DenseRows, List, Lists, Machine, PackedRows, StepRows};
use super::packed::{GpuPacked, Room, dense_spec, queries, specs_of};
use super::pages::{GpuPages, NewTokens};
use super::scratch::Scratch;
use crate::error::Error;
use crate::format::{CacheShape, Format, LayerShape, pages_for};
use crate::loans::Loans;
use crate::packed::PackedSpec;
use crate::pages::PageId;
use crate::signature::Signature;
use crate::store::{Conversions, Row, Span};

/// Parts times query tokens of a launch that there is room for.
pub(super) const PART_TOKENS: usize = 4096;

/// How much a store holds.
#[derive(Clone, Copy, Debug)]
pub struct DeviceRoom {
    /// Pages.
    pub pages: usize,
    /// Sequences at the same time.
    pub tails: usize,
    /// Prompt tokens in staging.
    pub staging_tokens: usize,
    /// Query heads of a layer.
    pub q_heads: usize,
}

/// Options of a layer's attention.
#[derive(Clone, Copy, Debug)]
pub struct DeviceAttention {
    /// Query heads.
    pub q_heads: usize,
    /// Factor of q·k.
    pub scale: f32,
    /// A token sees this many tokens including itself.
    pub window: Option<usize>,
    /// Scores become cap · tanh(score / cap).
    pub soft_cap: Option<f32>,
    /// Of results.
    pub numbers: Activations,
}

/// All that the launches of a step of decode rows are told by the host: equal ones are the same
/// launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepLayout {
    tokens: usize,
    to_pages: List,
    to_tails: List,
    pages_at: usize,
    decode: PackedRows,
    dense_decode: DenseRows,
    /// Sizes of the buffers, which are others when they have grown.
    buffers: [usize; 4],
}

/// What a layer's rows ask: queries and results, `[tokens, q_heads, dim]` of the tokens that it is
/// asked for, and the list of pages that rows point into.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) q: &'a Place<'a>,
    pub(super) out: &'a Place<'a>,
    pub(super) pages: List,
    pub(super) attention: &'a DeviceAttention,
}

/// Keys and values of every page, tail and staged prompt, on a GPU. Which page is whose is counted
/// elsewhere, in a `PagePool` of as many pages.
#[derive(Debug)]
pub struct DeviceStore {
    gpu: Gpu,
    layers: Vec<Layer>,
    loans: Loans,
    lists: Lists,
    scratch: Scratch,
    machine: Machine,
    signature: Signature,
    pages: usize,
    conversions: Conversions,
}

/// Memory of one layer, by format.
#[derive(Debug)]
enum Layer {
    Dense(GpuPages, Arc<GpuProgram>),
    Packed(Box<GpuPacked>),
}

impl DeviceStore {
    /// Memory for so many pages, tails and tiles, all of it taken at once. Rotations are drawn from
    /// `seed`.
    pub fn new(gpu: &Gpu, shape: &CacheShape, room: DeviceRoom, seed: u64) -> Result<Self, Error> {
        let DeviceRoom { pages, tails, staging_tokens, q_heads } = room;
        let tiles = pages_for(staging_tokens);
        gpu.prepare(Self::kernels(shape, q_heads)?)?;
        let mut layers = Vec::new();
        for (index, layer) in shape.layers.iter().enumerate() {
            layers.push(match layer.format {
                Format::Dense => Layer::Dense(
                    GpuPages::new(gpu, layer.shape, pages)?,
                    gpu.program(&dense_spec(shape, layer.shape, q_heads)?)?,
                ),
                Format::TurboQuant(widths) => {
                    let rules = shape.rules(widths);
                    let spec = PackedSpec { layer: index, shape: layer.shape, widths, rules, seed };
                    let room = Room { pages, tails, tiles };
                    Layer::Packed(Box::new(GpuPacked::new(gpu, spec, room, q_heads)?))
                }
            });
        }
        let machine = machine(gpu, shape, q_heads)?;
        Ok(Self {
            gpu: gpu.clone(),
            layers,
            loans: Loans::new(1, tiles),
            lists: Lists::default(),
            scratch: Scratch::new(gpu, shape, q_heads)?,
            machine,
            signature: Signature::new(shape, seed),
            pages,
            conversions: Conversions::default(),
        })
    }

    /// What the kernels of a store are compiled for, so that those of several stores can be
    /// compiled together.
    pub fn kernels(shape: &CacheShape, q_heads: usize) -> Result<Vec<Spec>, Error> {
        let mut specs = Vec::new();
        for layer in &shape.layers {
            match layer.format {
                Format::Dense => specs.push(dense_spec(shape, layer.shape, q_heads)?),
                Format::TurboQuant(widths) => specs.extend(specs_of(layer.shape, widths, q_heads)?),
            }
        }
        Ok(specs)
    }

    /// Bytes beside pages, tails and staging that a store takes for attention.
    pub fn scratch_bytes(shape: &CacheShape, q_heads: usize) -> u64 {
        Scratch::planned_bytes(shape, q_heads)
    }

    /// What makes pages readable by another store.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Bytes of everything, as it was allocated.
    pub fn bytes(&self) -> u64 {
        let bytes = self.layers.iter().map(|layer| match layer {
            Layer::Dense(pages, _) => pages.bytes(),
            Layer::Packed(pages) => pages.bytes(),
        });
        bytes.sum::<u64>() + self.scratch.bytes()
    }

    /// What was packed since the store was made, and how long the GPU took for it; Metal does not
    /// say.
    pub fn conversions(&self) -> Conversions {
        self.conversions
    }

    /// Reserves staging for a prompt of `tokens` tokens.
    pub fn open(&mut self, key: u64, tokens: usize) -> Result<(), Error> {
        self.loans.open(key, tokens)
    }

    /// Gives a prompt's staging back; false if it was not open.
    pub fn close(&mut self, key: u64) -> bool {
        self.loans.close(key)
    }

    /// Lays out a step, decode rows first, and uploads its lists; what follows is of this step.
    ///
    /// # Panics
    /// If a page does not exist: an error of ours.
    pub fn begin(&mut self, rows: &[Row<'_>], chunks: &[Chunk<'_>]) -> Result<(), Error> {
        self.begin_step(StepRows { rows, chunks, filled: 0 })
    }

    /// The same of decode rows of a token each, filled up to so many with idle ones, which are kept
    /// nowhere and whose results mean nothing.
    ///
    /// # Panics
    /// If a page does not exist: an error of ours.
    pub fn begin_filled(&mut self, rows: &[Row<'_>], filled: usize) -> Result<StepLayout, Error> {
        self.begin_step(StepRows { rows, chunks: &[], filled })?;
        let Lists { tokens, to_pages, to_tails, decode, dense_decode, .. } = self.lists;
        let (pages_at, buffers) = (self.lists.pages.at, self.scratch.sizes());
        Ok(StepLayout { tokens, to_pages, to_tails, pages_at, decode, dense_decode, buffers })
    }

    fn begin_step(&mut self, step: StepRows<'_>) -> Result<(), Error> {
        let packed = self.layers.iter().any(|layer| matches!(layer, Layer::Packed(_)));
        self.lists = Lists::new(step, &mut self.loans, packed, self.machine)?;
        let packed = self.lists.seals.count + self.lists.converts.count;
        let heads: usize = self.layers.iter().map(|layer| layer.shape().kv_heads).sum();
        self.scratch.begin(&self.gpu, &self.lists.words, packed * heads)?;
        Ok(self.seal()?)
    }

    /// Packs the tails that are full, in all layers, before a step writes into them.
    fn seal(&mut self) -> Result<(), GpuError> {
        let Self { gpu, layers, lists, scratch, .. } = self;
        if lists.seals.count == 0 {
            return Ok(());
        }
        let packed = layers.iter().filter_map(|layer| match layer {
            Layer::Dense(..) => None,
            Layer::Packed(packed) => Some(&**packed),
        });
        let all: Vec<_> = packed.collect();
        scratch.timed(gpu, |scratch| {
            for (index, packed) in all.iter().enumerate() {
                // The first waits for the last step, the last is waited for by this one.
                let apart = index > 0 && index + 1 < all.len();
                scratch.pack(gpu, packed, (&packed.tails, lists.seals), apart)?;
            }
            Ok(())
        })
    }

    /// Brings a whole prompt out of the pages of a store that keeps 16 bits: what staging would
    /// have given, for a prompt that several caches read.
    ///
    /// # Panics
    /// If `source` packs, or pages do not exist: errors of ours.
    pub fn take(
        &mut self,
        (source, from): (&Self, &[PageId]),
        row: Row<'_>,
        tokens: usize,
    ) -> Result<(), Error> {
        let span = Span { start: 0, end: tokens, total: tokens };
        let last = span.last_page();
        let pairs: Vec<u32> = span.full().flat_map(|page| [from[page], row.pages[page]]).collect();
        let pages = List { at: 0, count: pairs.len() / 2 };
        let heads: usize = self.layers.iter().map(|layer| layer.shape().kv_heads).sum();
        self.scratch.begin(&self.gpu, &pairs, pages.count * heads)?;
        for (layer, source) in self.layers.iter().zip(&source.layers) {
            let Layer::Dense(source, _) = source else { panic!("prompts are kept in 16 bits") };
            match layer {
                Layer::Dense(own, _) => {
                    for (page, from) in row.pages.iter().zip(&from[..=last]) {
                        own.copy_from(&self.gpu, *page, (source, *from))?;
                    }
                }
                Layer::Packed(own) => {
                    let gpu = &self.gpu;
                    self.scratch
                        .timed(gpu, |scratch| scratch.pack(gpu, own, (source, pages), false))?;
                    own.tails.copy_from(gpu, row.tail, (source, from[last]))?;
                }
            }
        }
        self.finish()
    }

    /// Keeps a layer's keys and values of the step and attends. q, out: `[tokens, q_heads, dim]`,
    /// k, v: `[tokens, kv_heads, dim]`, f32 all but results. In the last layer q and out are of the
    /// tokens alone that it is asked for: those of decode rows and [`Chunk::asked`].
    pub fn attend(
        &mut self,
        layer: usize,
        [q, k, v]: [Place<'_>; 3],
        out: &Place<'_>,
        attention: &DeviceAttention,
    ) -> Result<(), Error> {
        let Self { gpu, layers, lists, scratch, .. } = self;
        let tokens = lists.tokens;
        let token_len = layers[layer].shape().token_len();
        let dim = layers[layer].shape().dim;
        k.holds("keys", 4 * tokens * token_len)?;
        v.holds("values", 4 * tokens * token_len)?;
        let chunks = if layer + 1 == layers.len() { lists.last } else { lists.chunks };
        q.holds("queries", 4 * chunks.queries * attention.q_heads * dim)?;
        let size = if attention.numbers == Activations::F32 { 4 } else { 2 };
        out.holds("results", size * chunks.queries * attention.q_heads * dim)?;
        for rows in [lists.decode, chunks.early] {
            scratch.reserve(gpu, rows.parts.count * rows.longest * attention.q_heads, dim)?;
        }
        let new = NewTokens { k, v, tokens };
        let asked = Asked { q: &q, out, pages: lists.pages, attention };
        match &layers[layer] {
            Layer::Dense(pages, program) => {
                let with = (&*gpu, &**program);
                pages.append(with, &new, scratch.place(lists.to_pages)?, None)?;
                for rows in [lists.dense_decode, chunks.dense] {
                    pages.attend(with, &asked, scratch, rows)?;
                }
            }
            Layer::Packed(packed) => {
                let with = (&*gpu, &*packed.attend);
                let prompts = lists.tokens > lists.decoded;
                let staged = scratch.place(lists.to_staging)?;
                let others = prompts.then_some((&packed.staging, staged));
                packed.tails.append(with, &new, scratch.place(lists.to_tails)?, others)?;
                packed.attend(gpu, &asked, scratch, (&packed.tails, lists.decode))?;
                if prompts {
                    let staging = &packed.staging;
                    staging.attend(with, &asked, scratch, chunks.staged)?;
                    packed.attend(gpu, &asked, scratch, (staging, chunks.early))?;
                    if lists.converts.count > 0 {
                        let pages = (staging, lists.converts);
                        scratch.timed(gpu, |scratch| scratch.pack(gpu, packed, pages, false))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends all steps: waits for what they have queued, and counts what they have packed.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.gpu.synchronize()?;
        while self.scratch.count(&mut self.conversions)? {}
        Ok(())
    }

    /// Counts what the oldest step has packed; it is over, and the next one may have begun.
    pub fn count(&mut self) -> Result<(), Error> {
        self.scratch.count(&mut self.conversions).map(drop)
    }

    /// Copies a page in all layers, so that a sequence can write to its own copy of a shared one.
    pub fn copy_page(&mut self, page: PageId, source: PageId) -> Result<(), Error> {
        for layer in &self.layers {
            match layer {
                Layer::Dense(pages, _) => pages.copy_from(&self.gpu, page, (pages, source))?,
                Layer::Packed(pages) => pages.copy_within(&self.gpu, page, source)?,
            }
        }
        Ok(())
    }

    /// Copies a tail in all packed layers.
    pub fn copy_tail(&mut self, tail: u32, source: u32) -> Result<(), Error> {
        for layer in &self.layers {
            if let Layer::Packed(pages) = layer {
                pages.tails.copy_from(&self.gpu, tail, (&pages.tails, source))?;
            }
        }
        Ok(())
    }

    /// A page of a layer as it lies in memory, for tests: its tiles, or keys and then values.
    pub fn page(&self, layer: usize, page: PageId) -> Result<Vec<u8>, Error> {
        Ok(match &self.layers[layer] {
            Layer::Dense(pages, _) => pages.read(&self.gpu, page)?.concat(),
            Layer::Packed(pages) => pages.page(&self.gpu, page)?,
        })
    }
}

impl Layer {
    fn shape(&self) -> LayerShape {
        match self {
            Self::Dense(pages, _) => pages.shape(),
            Self::Packed(pages) => pages.shape(),
        }
    }
}

/// What decides how rows are cut, of all layers alike: the packed format that most layers have, or
/// where there is none, the first layer.
fn machine(gpu: &Gpu, shape: &CacheShape, q_heads: usize) -> Result<Machine, Error> {
    let packed = shape.most_packed();
    let layer = packed.or(shape.layers.first());
    let heads = layer.map_or(LayerShape { kv_heads: 1, dim: 1 }, |layer| layer.shape);
    let each = match packed.map(|layer| layer.format) {
        Some(Format::TurboQuant(widths)) => {
            override_occupancy(&Spec::new(heads.dim, widths, Activations::F32)?)
        }
        _ => 1,
    };
    Ok(Machine {
        groups: (gpu.multiprocessors(), each),
        kv_heads: heads.kv_heads,
        group: q_heads / heads.kv_heads,
        dim: heads.dim,
        queries: queries(q_heads, heads),
        few: gpu.few_groups(heads.dim),
        room: PART_TOKENS,
    })
}

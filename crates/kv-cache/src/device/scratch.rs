//! `Scratch`: what a step leaves on the GPU for its kernels: lists, parts of attention, counts.

use std::collections::VecDeque;

use kvant_kernels::device::{Gpu, GpuBuffer, GpuError, GpuMark, GpuResults, Place};

use super::lists::List;
use super::packed::GpuPacked;
use super::pages::GpuPages;
use super::store::PART_TOKENS;
use crate::error::Error;
use crate::format::CacheShape;
use crate::store::Conversions;

/// Bytes of the first buffer of lists.
const LIST_BYTES: usize = 1 << 18;
/// Words of the first results of packing: a larger one later waits for the queue.
const STRANGE_WORDS: usize = 1 << 12;

/// What one layer's kernels leave for the next ones, and the lists of the step.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) lists: GpuBuffer,
    /// `[parts][tokens][q_heads][dim]` f32.
    pub(super) sums: GpuBuffer,
    /// The same with maximum and sum in place of dim.
    pub(super) ends: GpuBuffer,
    /// Zeros between any two launches.
    pub(super) counters: GpuBuffer,
    /// Of the steps that have not been counted, oldest first; the last one is being queued.
    steps: VecDeque<Packing>,
    /// Of steps that have.
    spare: Vec<Packing>,
}

/// What a step packs. The host reads it when the step is over, and by then the next one may run.
#[derive(Debug)]
struct Packing {
    /// Of every page two words a head: vectors that are not finite.
    strange: GpuResults,
    /// Pages so far, each layer's for itself, with their heads.
    packed: Vec<(usize, usize)>,
    /// Before and behind what packed them.
    marks: Vec<[GpuMark; 2]>,
}

impl Scratch {
    pub(super) fn new(gpu: &Gpu, shape: &CacheShape, q_heads: usize) -> Result<Self, GpuError> {
        let vectors = PART_TOKENS * q_heads;
        let dim = shape.layers.iter().map(|layer| layer.shape.dim).max().unwrap_or_default();
        Ok(Self {
            lists: gpu.alloc(LIST_BYTES)?,
            sums: gpu.alloc(4 * vectors * dim)?,
            ends: gpu.alloc(4 * 2 * vectors)?,
            counters: gpu.alloc(4 * vectors)?,
            steps: VecDeque::new(),
            spare: Vec::new(),
        })
    }

    /// What `new` takes, before anything is taken.
    pub(super) fn planned_bytes(shape: &CacheShape, q_heads: usize) -> u64 {
        let dim = shape.layers.iter().map(|layer| layer.shape.dim).max().unwrap_or_default();
        (4 * PART_TOKENS * q_heads * (dim + 3) + LIST_BYTES) as u64
    }

    /// Of what the kernels of a step use.
    pub(super) fn sizes(&self) -> [usize; 4] {
        [&self.lists, &self.sums, &self.ends, &self.counters].map(GpuBuffer::bytes)
    }

    pub(super) fn bytes(&self) -> u64 {
        let all = [&self.lists, &self.sums, &self.ends, &self.counters];
        all.iter().map(|buffer| buffer.bytes() as u64).sum()
    }

    /// Uploads lists, for a step that packs so many heads of pages.
    pub(super) fn begin(&mut self, gpu: &Gpu, words: &[u32], heads: usize) -> Result<(), GpuError> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        if bytes.len() > self.lists.bytes() {
            self.lists = gpu.alloc(bytes.len().next_power_of_two())?;
        }
        // A third step is none that anybody will count.
        while self.steps.len() > 1 {
            self.spare.extend(self.steps.pop_front());
        }
        let step = self.spare.pop().map_or_else(|| Packing::new(gpu), Ok)?;
        self.steps.push_back(step.emptied(gpu, heads)?);
        gpu.write(&self.lists, 0, &bytes)
    }

    /// Makes room for parts of so many query vectors.
    pub(super) fn reserve(
        &mut self,
        gpu: &Gpu,
        vectors: usize,
        dim: usize,
    ) -> Result<(), GpuError> {
        let needs = [
            (&mut self.counters, 4 * vectors),
            (&mut self.sums, 4 * vectors * dim),
            (&mut self.ends, 8 * vectors),
        ];
        for (buffer, needed) in needs {
            if needed > buffer.bytes() {
                *buffer = gpu.alloc(needed.next_power_of_two())?;
            }
        }
        Ok(())
    }

    pub(super) fn place(&self, list: List) -> Result<Place<'_>, GpuError> {
        Place::buffer(&self.lists, list.byte())
    }

    /// Lets the GPU time what `pack` puts into its queue.
    pub(super) fn timed(
        &mut self,
        gpu: &Gpu,
        pack: impl FnOnce(&mut Self) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        let before = gpu.mark()?;
        pack(self)?;
        let marks = [before, gpu.mark()?];
        if let Some(step) = self.steps.back_mut() {
            step.marks.push(marks);
        }
        Ok(())
    }

    /// Packs a list of pages, and keeps room for what is found strange about them. apart: as of
    /// [`GpuPacked::pack`].
    pub(super) fn pack(
        &mut self,
        gpu: &Gpu,
        packed: &GpuPacked,
        (source, pages): (&GpuPages, List),
        apart: bool,
    ) -> Result<(), GpuError> {
        if pages.count == 0 {
            return Ok(());
        }
        let step = self.steps.back_mut().expect("a step has begun");
        let strange = Place::results(&step.strange, 2 * step.heads())?;
        packed.pack(gpu, source, (&self.lists, pages), (strange, apart))?;
        step.packed.push((pages.count, packed.shape().kv_heads));
        Ok(())
    }

    /// Counts what the oldest step has packed, which the host has waited for; false if there is
    /// none.
    pub(super) fn count(&mut self, sums: &mut Conversions) -> Result<bool, Error> {
        let Some(mut step) = self.steps.pop_front() else { return Ok(false) };
        step.count(sums)?;
        self.spare.push(step);
        Ok(true)
    }
}

impl Packing {
    fn new(gpu: &Gpu) -> Result<Self, GpuError> {
        let strange = gpu.alloc_results(STRANGE_WORDS)?;
        Ok(Self { strange, packed: Vec::new(), marks: Vec::new() })
    }

    /// Nothing yet, and room for so many heads of pages.
    fn emptied(mut self, gpu: &Gpu, heads: usize) -> Result<Self, GpuError> {
        if 2 * heads > self.strange.count() {
            self.strange = gpu.alloc_results((2 * heads).next_power_of_two())?;
        }
        self.packed.clear();
        self.marks.clear();
        Ok(self)
    }

    /// Heads of the pages so far.
    fn heads(&self) -> usize {
        self.packed.iter().map(|(pages, heads)| pages * heads).sum()
    }

    fn count(&mut self, sums: &mut Conversions) -> Result<(), Error> {
        let heads = self.heads();
        let counts = self.strange.read(0..2 * heads)?;
        for [before, behind] in self.marks.drain(..) {
            sums.time += before.until(&behind)?;
        }
        let mut counts = counts.as_slice();
        for (pages, heads) in self.packed.drain(..) {
            sums.pages += pages as u64;
            for _ in 0..pages {
                let (own, rest) = counts.split_at(2 * heads);
                sums.not_finite += u64::from(own.iter().any(|count| *count != 0));
                counts = rest;
            }
        }
        Ok(())
    }
}

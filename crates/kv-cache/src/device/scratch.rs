//! `Scratch`: what a step leaves on the GPU for its kernels: lists, parts of attention, counts.

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

/// What one layer's kernels leave for the next ones, and the lists of the step.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) lists: GpuBuffer,
    /// `[parts][tokens][q_heads][dim]` f32.
    pub(super) sums: GpuBuffer,
    /// The same with maximum and sum in place of dim.
    pub(super) ends: GpuBuffer,
    /// Of every page packed in this step two words a head: vectors that are not finite.
    strange: GpuResults,
    /// Zeros between any two launches.
    pub(super) counters: GpuBuffer,
    /// Pages packed in this step so far, each layer's for itself, with their heads.
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
            strange: gpu.alloc_results(1)?,
            packed: Vec::new(),
            marks: Vec::new(),
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
        if 2 * heads > self.strange.count() {
            self.strange = gpu.alloc_results((2 * heads).next_power_of_two())?;
        }
        self.packed.clear();
        self.marks.clear();
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
        self.marks.push([before, gpu.mark()?]);
        Ok(())
    }

    /// Packs a list of pages, and keeps room for what is found strange about them.
    pub(super) fn pack(
        &mut self,
        gpu: &Gpu,
        packed: &GpuPacked,
        (source, pages): (&GpuPages, List),
    ) -> Result<(), GpuError> {
        if pages.count == 0 {
            return Ok(());
        }
        let heads: usize = self.packed.iter().map(|(pages, heads)| pages * heads).sum();
        let strange = Place::results(&self.strange, 2 * heads)?;
        packed.pack(gpu, source, (&self.lists, pages), strange)?;
        self.packed.push((pages.count, packed.shape().kv_heads));
        Ok(())
    }

    /// Counts what was packed since `begin`, all of which the host has waited for.
    pub(super) fn count(&mut self, sums: &mut Conversions) -> Result<(), Error> {
        let heads: usize = self.packed.iter().map(|(pages, heads)| pages * heads).sum();
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

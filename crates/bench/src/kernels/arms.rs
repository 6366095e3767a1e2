//! What is compared, each on the same shape and the next pages of the pool: attention over 16-bit
//! pages, over packed pages, and over pages that are decoded first; and reading memory, the floor.

use std::hint::black_box;
use std::time::Instant;

use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::cpu::{
    AttendParams, AttendRow, PackedParams, PackedRow, Path, attend_dense, attend_packed,
};
use rayon::prelude::*;

use super::HeadShape;
use super::decoded::decode;
use super::pool::{DensePool, PackedPool, PageSets};
use crate::random::normal;

/// One decode step of one layer: every row has one query token, the last of its context, whose page
/// is the 16-bit tail.
pub(super) struct Step<'a> {
    pub(super) shape: HeadShape,
    pub(super) batch: usize,
    /// Tokens of a row, whole pages.
    pub(super) context: usize,
    pub(super) dense: &'a DensePool,
    pub(super) packed: &'a PackedPool,
    /// Where pages are decoded to.
    pub(super) work: &'a mut DensePool,
    pub(super) sets: PageSets,
}

/// The ways to compute a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arm {
    Dense,
    Packed,
    Decoded,
}

impl Arm {
    pub(super) const ALL: [Self; 3] = [Self::Dense, Self::Packed, Self::Decoded];
}

impl Step<'_> {
    /// Random queries, `[batch, q_heads, dim]`.
    pub(super) fn queries(&self, seed: u64) -> Vec<f32> {
        let HeadShape { kv_heads, group, dim } = self.shape;
        let mut state = seed;
        (0..self.batch * kv_heads * group * dim).map(|_| normal(&mut state)).collect()
    }

    /// Milliseconds a call.
    pub(super) fn sample(&mut self, arm: Arm, calls: usize, q: &[f32], out: &mut [f32]) -> f64 {
        let start = Instant::now();
        for _ in 0..calls {
            self.run(arm, q, out);
        }
        start.elapsed().as_secs_f64() * 1e3 / calls as f64
    }

    /// Attention over the next set of pages.
    pub(super) fn run(&mut self, arm: Arm, q: &[f32], out: &mut [f32]) {
        let row_pages = self.sets.row_pages();
        let params = self.dense_params();
        match arm {
            Arm::Dense => {
                let rows = dense_rows(self.sets.take(), row_pages);
                attend_dense(out, q, self.dense.tiles(), &rows, &params);
            }
            Arm::Packed => {
                let params = self.packed_params();
                let rows = packed_rows(self.sets.take(), row_pages);
                attend_packed(out, q, self.packed.tiles(self.dense), &rows, &params);
            }
            Arm::Decoded => {
                let pages = decode(self.work, self.packed, self.dense, &mut self.sets);
                let table: Vec<u32> = (0..pages as u32).collect();
                let rows = dense_rows(&table, row_pages);
                attend_dense(out, q, self.work.tiles(), &rows, &params);
            }
        }
    }

    fn dense_params(&self) -> AttendParams {
        AttendParams {
            q_heads: self.shape.q_heads(),
            scale: self.scale(),
            window: None,
            softcap: None,
        }
    }

    fn packed_params(&self) -> PackedParams<'static> {
        PackedParams {
            q_heads: self.shape.q_heads(),
            scale: self.scale(),
            window: None,
            soft_cap: None,
            sink_logits: None,
            path: Path::best(),
        }
    }

    fn scale(&self) -> f32 {
        (self.shape.dim as f32).sqrt().recip()
    }

    /// Bytes of packed codes that a call reads.
    pub(super) fn packed_bytes(&self) -> usize {
        let pages = self.batch * (self.sets.row_pages() - 1);
        pages * self.shape.kv_heads * self.packed.layout.tile_bytes()
    }
}

fn dense_rows(pages: &[u32], row_pages: usize) -> Vec<AttendRow<'_>> {
    let position = row_pages * PAGE_TOKENS - 1;
    let rows = pages.chunks_exact(row_pages);
    rows.map(|pages| AttendRow { pages, position, tokens: 1 }).collect()
}

fn packed_rows(pages: &[u32], row_pages: usize) -> Vec<PackedRow<'_>> {
    let position = row_pages * PAGE_TOKENS - 1;
    let rows = pages.chunks_exact(row_pages).map(|pages| {
        let (pages, tail) = pages.split_at(row_pages - 1);
        PackedRow { pages, tail, sinks: None, position, tokens: 1, mask: None }
    });
    rows.collect()
}

/// A buffer that is read window by window, larger than the caches.
pub(super) struct ReadFloor {
    words: Vec<u64>,
    next: usize,
}

/// Windows of the buffer; each is read in one sample.
const WINDOWS: usize = 4;
/// Words that a thread takes at a time.
const PIECE: usize = 1 << 16;

impl ReadFloor {
    pub(super) fn new(bytes: usize) -> Self {
        let mut words = vec![0; (bytes / 8).max(WINDOWS)];
        // Memory that was never written may be one page of zeros.
        words.par_iter_mut().enumerate().for_each(|(index, word)| *word = index as u64);
        Self { words, next: 0 }
    }

    /// Reads the next window on all threads; GB/s.
    pub(super) fn sample(&mut self) -> f64 {
        let len = self.words.len() / WINDOWS;
        let window = &self.words[self.next * len..][..len];
        self.next = (self.next + 1) % WINDOWS;
        let start = Instant::now();
        let sum = |words: &[u64]| words.iter().fold(0_u64, |sum, word| sum.wrapping_add(*word));
        black_box(window.par_chunks(PIECE).map(sum).reduce(|| 0, u64::wrapping_add));
        8.0 * len as f64 / start.elapsed().as_secs_f64() / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::Drawn;
    use super::*;

    fn error(found: &[f32], expected: &[f32]) -> f32 {
        let square = |x: f32| x * x;
        let wrong: f32 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
        (wrong / expected.iter().map(|x| square(*x)).sum::<f32>()).sqrt()
    }

    /// All arms compute the same attention: what is decoded equals what is read packed, and both
    /// are near the 16-bit numbers.
    #[test]
    fn arms_compute_the_same() {
        for (dim, widths) in [(64, "tq8"), (64, "k8v4"), (80, "tq4"), (128, "tq3")] {
            let shape = HeadShape { kv_heads: 2, group: 3, dim };
            let drawn = Drawn::new(shape, 1);
            let widths = widths.parse::<super::super::NamedWidths>().unwrap();
            let (dense, packed) =
                (DensePool::new(&drawn, 20), PackedPool::new(&drawn, widths.widths(), 20));
            let mut work = DensePool::empty(shape, 10);
            let results = Arm::ALL.map(|arm| {
                // Fresh sets, so that all arms read the same pages.
                let sets = PageSets::new(20, 2, 5, 7);
                let (dense, packed, work) = (&dense, &packed, &mut work);
                let mut step =
                    Step { shape, batch: 2, context: 5 * PAGE_TOKENS, dense, packed, work, sets };
                let q = step.queries(3);
                let mut out = vec![0.0; q.len()];
                step.run(arm, &q, &mut out);
                out
            });
            let [dense, packed, decoded] = results;
            let (same, near) = (error(&packed, &decoded), error(&packed, &dense));
            assert!(same < 5e-3, "{dim} {widths}: {same} between packed and decoded");
            assert!(near > 1e-4 && near < 0.4, "{dim} {widths}: {near} from the 16-bit numbers");
        }
    }

    #[test]
    fn every_window_is_read_in_turn() {
        let mut floor = ReadFloor::new(1 << 20);
        for turn in 0..5 {
            assert_eq!(floor.next, turn % WINDOWS);
            assert!(floor.sample() > 0.0);
        }
    }
}

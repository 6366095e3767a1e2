//! The kernels of the packed cache on the CPU, without a model: decode attention of one layer
//! against its 16-bit twin and against decoding first, and encoding.
//!
//! All ways are timed in turns within one run, so that a busy machine is equally unfair to all.

mod arms;
mod decoded;
mod pool;
mod report;
mod widths;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::cpu::Path;
use kvant_turboquant::PageLayout;
use serde::Serialize;

use arms::{Arm, ReadFloor, Step};
use pool::{DensePool, Drawn, PackedPool, PageSets};
use report::{DecodeRow, EncodeRow, Figures};

pub use report::KernelTable;
pub use widths::NamedWidths;

/// Packed bytes that are read before a page comes back: more than any cache holds.
const POOL_BYTES: usize = 256 << 20;
/// Tokens that a sample reads at least: short calls are timed several at a time.
const SAMPLE_TOKENS: usize = 16_384;

/// Heads of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HeadShape {
    /// Key heads.
    pub kv_heads: usize,
    /// Query heads of a key head.
    pub group: usize,
    /// Size of a head.
    pub dim: usize,
}

impl HeadShape {
    fn q_heads(self) -> usize {
        self.kv_heads * self.group
    }

    /// Bytes of a page of 16-bit keys and values.
    fn dense_page_bytes(self) -> usize {
        2 * 2 * PAGE_TOKENS * self.kv_heads * self.dim
    }
}

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelLoad {
    /// Heads of the layer.
    pub shape: HeadShape,
    /// Bits of keys and values.
    pub widths: Vec<NamedWidths>,
    /// Sequences of a call.
    pub batches: Vec<u32>,
    /// Tokens of each sequence; whole pages, at least two.
    pub contexts: Vec<u32>,
    /// Times that everything is timed.
    pub rounds: u32,
    /// Threads that compute.
    pub threads: usize,
    /// Seed of all numbers and of the order of pages.
    pub seed: u64,
    /// Memory that may be taken.
    pub free_bytes: u64,
}

/// Sizes that follow from a load.
struct Plan {
    /// Pages of each pool: whole sets for every batch and context.
    pages: usize,
    /// Pages of the largest call.
    call_pages: usize,
}

impl Plan {
    fn new(load: &KernelLoad, pool_bytes: usize) -> Result<Self> {
        let HeadShape { kv_heads, group, dim } = load.shape;
        ensure!(kv_heads > 0 && group > 0 && dim > 0, "heads, group and dim must be at least 1");
        ensure!(load.rounds > 0 && load.threads > 0, "rounds and threads must be at least 1");
        let tiles = load.widths.iter().map(|named| PageLayout::new(dim, named.widths()));
        let tiles: Vec<_> = tiles.map(|layout| kv_heads * layout.tile_bytes()).collect();
        let smallest = *tiles.iter().min().context("no widths")?;
        let largest = tiles.iter().max().copied().unwrap_or_default();
        let mut plan = Self { pages: 0, call_pages: 0 };
        for (batch, context) in shapes(load) {
            ensure!(
                context.is_multiple_of(PAGE_TOKENS) && context >= 2 * PAGE_TOKENS,
                "context {context} must be a multiple of {PAGE_TOKENS}, at least {}",
                2 * PAGE_TOKENS
            );
            let set = batch * (context / PAGE_TOKENS);
            plan.pages = plan.pages.max(set * (pool_bytes / smallest).div_ceil(set));
            plan.call_pages = plan.call_pages.max(set);
        }
        ensure!(plan.call_pages > 0, "no batch or no context");
        let dense = (plan.pages + plan.call_pages) * load.shape.dense_page_bytes();
        let needed = (dense + plan.pages * largest + pool_bytes) as u64;
        ensure!(
            needed <= load.free_bytes,
            "this takes {:.1} GB and {:.1} GB are free: ask for fewer --batch or --context",
            needed as f64 / 1e9,
            load.free_bytes as f64 / 1e9
        );
        Ok(plan)
    }
}

/// (batch, context) of the calls.
fn shapes(load: &KernelLoad) -> impl Iterator<Item = (usize, usize)> {
    let contexts = |batch: u32| load.contexts.iter().map(move |c| (batch as usize, *c as usize));
    load.batches.iter().flat_map(move |batch| contexts(*batch))
}

/// Runs a load on threads of its own.
pub fn kernels(load: &KernelLoad) -> Result<KernelTable> {
    let plan = Plan::new(load, POOL_BYTES)?;
    let threads = rayon::ThreadPoolBuilder::new().num_threads(load.threads).build();
    let threads = threads.context("cannot start the threads that compute")?;
    Ok(threads.install(|| measure(load, &plan, POOL_BYTES)))
}

fn measure(load: &KernelLoad, plan: &Plan, pool_bytes: usize) -> KernelTable {
    let drawn = Drawn::new(load.shape, load.seed);
    let dense = DensePool::new(&drawn, plan.pages);
    let mut work = DensePool::empty(load.shape, plan.call_pages);
    let mut floor = ReadFloor::new(pool_bytes);
    let (mut decode, mut encode, mut read) = (Vec::new(), Vec::new(), Vec::new());
    for named in &load.widths {
        let packed = PackedPool::new(&drawn, named.widths(), plan.pages);
        let ms = encoding(&packed, &drawn, load.rounds);
        encode.push(EncodeRow::new(*named, ms, drawn.tokens(), load.shape.kv_heads));
        for (batch, context) in shapes(load) {
            let (shape, dense, packed, work) = (load.shape, &dense, &packed, &mut work);
            let sets = PageSets::new(plan.pages, batch, context / PAGE_TOKENS, load.seed);
            let step = Step { shape, batch, context, dense, packed, work, sets };
            let bytes = step.packed_bytes() as u64;
            let times = rounds(step, load, &mut floor, &mut read);
            decode.push(DecodeRow::new((*named, batch as u32, context as u32), bytes, times));
        }
    }
    let best = read.iter().copied().fold(0.0, f64::max);
    for row in &mut decode {
        row.set_floor(best);
    }
    KernelTable {
        shape: load.shape,
        threads: load.threads,
        path: format!("{:?}", Path::best()),
        read_gb_per_s_best: best,
        read_gb_per_s_median: Figures::of(&read).median,
        method: method(load, plan),
        decode,
        encode,
    }
}

/// Times of all arms in turns, after one round that does not count.
fn rounds(
    mut step: Step<'_>,
    load: &KernelLoad,
    floor: &mut ReadFloor,
    read: &mut Vec<f64>,
) -> [Figures; 3] {
    let calls = SAMPLE_TOKENS.div_ceil(step.batch * step.context);
    let q = step.queries(load.seed);
    let mut out = vec![0.0; q.len()];
    let mut samples = Arm::ALL.map(|_| Vec::new());
    for round in 0..=load.rounds {
        for turn in 0..Arm::ALL.len() {
            // Every arm comes first as often as the others.
            let at = (turn + round as usize) % Arm::ALL.len();
            let ms = step.sample(Arm::ALL[at], calls, &q, &mut out);
            if round > 0 {
                samples[at].push(ms);
            }
        }
        read.push(floor.sample());
    }
    samples.map(|samples| Figures::of(&samples))
}

/// Milliseconds to encode everything drawn.
fn encoding(packed: &PackedPool, drawn: &Drawn, rounds: u32) -> Figures {
    let mut tiles = vec![0; packed.drawn_bytes(drawn)];
    let mut samples = Vec::new();
    for round in 0..=rounds {
        let start = Instant::now();
        packed.encode(drawn, &mut tiles);
        if round > 0 {
            samples.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    Figures::of(&samples)
}

/// What was done, for whoever reads the table.
fn method(load: &KernelLoad, plan: &Plan) -> Vec<String> {
    let gb = |pages: usize| (pages * load.shape.dense_page_bytes()) as f64 / 1e9;
    vec![
        format!(
            "Times are the lowest of {} rounds (median in brackets), ratios those of the lowest \
             (of the medians); the three ways take turns in every round. On a busy machine the \
             medians are fairer.",
            load.rounds
        ),
        format!(
            "Every call takes the next of disjoint sets of pages in random order; a page comes \
             back after {} MiB of packed pages at least ({} pages, {:.2} GB in 16 bits), so \
             caches do not help.",
            POOL_BYTES >> 20,
            plan.pages,
            gb(plan.pages)
        ),
        format!("A sample is as many calls as read {SAMPLE_TOKENS} tokens, at least one."),
        "One token a row is decoded; the last page of a row is a 16-bit tail.".to_owned(),
        "Decode first: levels times scale and inverse rotation of all pages on all threads to \
         16-bit pages, then the 16-bit kernel over those."
            .to_owned(),
        "GB/s is of packed bytes; floor is the packed time by that of only reading those bytes; \
         encode is of one token's keys and values of one layer."
            .to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> KernelLoad {
        KernelLoad {
            shape: HeadShape { kv_heads: 2, group: 2, dim: 64 },
            widths: vec!["tq4".parse().unwrap(), "k8v4".parse().unwrap()],
            batches: vec![1, 3],
            contexts: vec![128, 320],
            rounds: 2,
            threads: 2,
            seed: 1,
            free_bytes: 1 << 30,
        }
    }

    #[test]
    fn every_combination_has_a_row_with_figures() {
        let load = load();
        let plan = Plan::new(&load, 1 << 20).unwrap();
        let table = measure(&load, &plan, 1 << 20);
        let found: Vec<_> = table
            .decode
            .iter()
            .map(|row| (row.widths.to_string(), row.batch, row.context))
            .collect();
        let expected = ["tq4", "k8v4"].into_iter().flat_map(|widths| {
            [(1, 128), (1, 320), (3, 128), (3, 320)].map(|(b, c)| (widths.to_owned(), b, c))
        });
        assert_eq!(found, expected.collect::<Vec<_>>());
        for row in &table.decode {
            let figures = [
                row.dense_ms.best,
                row.packed_ms.best,
                row.decoded_ms.best,
                row.dense_ratio.median,
                row.decoded_ratio.median,
                row.packed_gb_per_s,
                row.floor_ratio,
            ];
            assert!(figures.iter().all(|x| x.is_finite() && *x > 0.0), "{row:?}");
        }
        assert_eq!(table.encode.len(), 2);
        // Scales and two times 4 bits a number, of 2 heads and the one packed page of 128 tokens.
        assert_eq!(table.decode[0].packed_bytes, 2 * (256 + 64 * 64));
    }

    #[test]
    fn pools_hold_whole_sets_of_enough_bytes() {
        let load = load();
        let plan = Plan::new(&load, 1 << 20).unwrap();
        let smallest = 2 * PageLayout::new(64, load.widths[0].widths()).tile_bytes();
        for (batch, context) in shapes(&load) {
            let set = batch * context / PAGE_TOKENS;
            assert!(plan.pages / set * set * smallest >= (1 << 20) - set * smallest, "{set}");
        }
        assert_eq!(plan.call_pages, 15);
    }

    #[test]
    fn what_cannot_be_measured_is_said() {
        let refused = |change: fn(&mut KernelLoad)| {
            let mut load = load();
            change(&mut load);
            Plan::new(&load, 1 << 20).err().expect("refused").to_string()
        };
        assert!(refused(|l| l.contexts = vec![100]).contains("multiple of 64"));
        assert!(refused(|l| l.contexts = vec![64]).contains("at least 128"));
        assert!(refused(|l| l.batches.clear()).contains("no batch"));
        assert!(refused(|l| l.widths.clear()).contains("no widths"));
        assert!(refused(|l| l.rounds = 0).contains("rounds"));
        assert!(refused(|l| l.shape.dim = 0).contains("dim"));
        assert!(refused(|l| l.free_bytes = 1 << 20).contains("fewer --batch"));
    }
}

//! The comparison of `packed` in CPU time of one thread, which a busy machine does not change: one
//! line a shape, milliseconds of the 16-bit twin and ratios to it.

#![expect(clippy::print_stdout, reason = "the table is the result")]

mod cache;

use cache::{Cache, PRESETS, SHAPES, codec, numbers, widths};
use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::cpu::{
    AttendParams, AttendRow, PackedParams, PackedRow, PageSource, Path, attend_dense,
    attend_packed, encode,
};
use kvant_turboquant::{PageLayout, Side};

const CALLS: usize = 12;

/// Nanoseconds that the threads of this program have run, as Linux counts them.
fn ran() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|time| time.parse::<f64>().ok()).unwrap_or(0.0)
    };
    tasks.map(of).sum()
}

/// Milliseconds of the lower quartile. Work is on a pool's thread, whose time is up to date when it
/// sleeps again.
fn time(mut work: impl FnMut() + Send) -> f64 {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let mut times: Vec<f64> = (0..CALLS)
        .map(|_| {
            let before = ran();
            pool.install(&mut work);
            ran() - before
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[CALLS / 4] / 1e6
}

fn decode(shape: (usize, usize, usize), batch: usize, context: usize) {
    let (kv_heads, group, dim) = shape;
    let q_heads = kv_heads * group;
    let pages = batch * context / PAGE_TOKENS;
    let table: Vec<u32> = (0..pages as u32).rev().collect();
    let tables = || table.chunks_exact(context / PAGE_TOKENS);
    let q = numbers(batch * q_heads * dim);
    let mut out = q.clone();
    let caches: Vec<_> = PRESETS
        .iter()
        .map(|(_, keys, values)| Cache::new(shape, pages, widths(*keys, *values)))
        .collect();
    let position = context - 1;
    let dense: Vec<_> = tables().map(|pages| AttendRow { pages, position, tokens: 1 }).collect();
    let packed: Vec<_> = tables()
        .map(|pages| {
            let (pages, tail) = pages.split_at(pages.len() - 1);
            PackedRow { pages, tail, sinks: None, position, tokens: 1, mask: None }
        })
        .collect();
    let params = AttendParams { q_heads, scale: 0.125, window: None, softcap: None };
    let twin = time(|| attend_dense(&mut out, &q, caches[0].dense(), &dense, &params));
    print!("{kv_heads}x{group}x{dim} {batch}x{context}: f16 {twin:.3} ms");
    for (cache, (preset, ..)) in caches.iter().zip(PRESETS) {
        print!(" | {preset}");
        for path in Path::available().filter(|path| *path != Path::Scalar) {
            let (window, soft_cap, sink_logits) = (None, None, None);
            let params =
                PackedParams { q_heads, scale: 0.125, window, soft_cap, sink_logits, path };
            let own = time(|| attend_packed(&mut out, &q, cache.packed(), &packed, &params));
            print!(" {path:?} {:.2}", twin / own);
        }
    }
    println!();
    if pages * PAGE_TOKENS == 1024 {
        decoding(&caches[2]);
    }
}

/// What an engine without packed kernels pays before it attends: at least the inverse rotations.
fn decoding(cache: &Cache) {
    let mut decoded = vec![0.0; 2 * cache.keys.len()];
    let reference = time(|| cache.decode(&mut decoded));
    let rotation = cache.codecs.0.rotation();
    let mut vectors = decoded;
    let inverse = time(|| {
        vectors = rotation.restore(rotation.adopt(std::mem::take(&mut vectors)));
    });
    println!("  inverse rotations {inverse:.2} ms, reference decoder {reference:.2} ms");
}

fn encoding(shape: (usize, usize, usize)) {
    let (kv_heads, _, dim) = shape;
    let x = numbers(8192 * kv_heads * dim);
    print!("encode 8192 tokens {kv_heads}x{dim}:");
    for (preset, keys, values) in PRESETS {
        let widths = widths(keys, values);
        let codecs = (codec(dim, Side::Keys, widths.keys), codec(dim, Side::Values, widths.values));
        let layout = PageLayout::new(dim, widths);
        let mut tiles = vec![0; 8192 / PAGE_TOKENS * kv_heads * layout.tile_bytes()];
        let source = PageSource { keys: &x, values: &x, kv_heads };
        let own = time(|| {
            encode(&mut tiles, source, &layout, (&codecs.0, &codecs.1)).expect("finite numbers");
        });
        print!(" {preset} {own:.1} ms");
    }
    println!();
}

fn main() {
    for shape in SHAPES {
        for (batch, context) in [(1, 1024), (8, 1024), (1, 16_384), (8, 16_384)] {
            decode(shape, batch, context);
        }
        encoding(shape);
    }
}

//! Decode attention over packed pages against the 16-bit twin and against decoding the cache first,
//! and encoding; throughput is in bytes of the cache that is read (encoding: bytes of 16-bit keys
//! and values).

mod cache;

use std::hint::black_box;

use cache::{Cache, PRESETS, SHAPES, codec, numbers, widths};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::cpu::{
    AttendParams, AttendRow, PackedParams, PackedRow, PageSource, Path, attend_dense,
    attend_packed, encode,
};
use kvant_turboquant::{PageLayout, Side};

/// One decode step: every row's last token is in the tail, as it is in the engine.
fn decode(c: &mut Criterion) {
    for shape in SHAPES {
        for (batch, context) in [(1, 1024), (1, 16_384), (8, 1024), (8, 16_384)] {
            let (kv_heads, group, dim) = shape;
            let name = format!("decode {kv_heads}x{group}x{dim} {batch}x{context}");
            let mut bench = c.benchmark_group(name);
            bench.sample_size(10);
            let pages = batch * context / PAGE_TOKENS;
            let q = numbers(batch * kv_heads * group * dim);
            let mut out = q.clone();
            let table: Vec<u32> = (0..pages as u32).rev().collect();
            let tables = || table.chunks_exact(context / PAGE_TOKENS);
            let q_heads = kv_heads * group;
            let first = Cache::new(shape, pages, widths(4, 4));
            let rows: Vec<_> = tables()
                .map(|pages| AttendRow { pages, position: context - 1, tokens: 1 })
                .collect();
            let params = AttendParams { q_heads, scale: 0.125, window: None, softcap: None };
            bench.throughput(Throughput::Bytes(4 * first.keys.len() as u64));
            bench.bench_function("f16", |b| {
                b.iter(|| attend_dense(&mut out, &q, first.dense(), &rows, &params));
            });
            drop(first);
            for (preset, keys, values) in PRESETS {
                let cache = Cache::new(shape, pages, widths(keys, values));
                let rows: Vec<_> = tables()
                    .map(|pages| {
                        let (pages, tail) = pages.split_at(pages.len() - 1);
                        let position = context - 1;
                        PackedRow { pages, tail, sinks: None, position, tokens: 1, mask: None }
                    })
                    .collect();
                let params = PackedParams {
                    q_heads,
                    scale: 0.125,
                    window: None,
                    soft_cap: None,
                    sink_logits: None,
                    path: Path::best(),
                };
                bench.throughput(Throughput::Bytes(cache.tiles.len() as u64));
                bench.bench_function(preset, |b| {
                    b.iter(|| attend_packed(&mut out, &q, cache.packed(), &rows, &params));
                });
                if preset == "tq4" && batch == 1 {
                    let avx2 = PackedParams { path: Path::Avx2, ..params };
                    if Path::Avx2.is_here() {
                        bench.bench_function("tq4 AVX2", |b| {
                            b.iter(|| attend_packed(&mut out, &q, cache.packed(), &rows, &avx2));
                        });
                    }
                    let mut decoded = vec![0.0; 2 * cache.keys.len()];
                    bench.bench_function("tq4 decoded first (decoding only)", |b| {
                        b.iter(|| cache.decode(black_box(&mut decoded)));
                    });
                }
            }
            bench.finish();
        }
    }
}

fn encoding(c: &mut Criterion) {
    let mut bench = c.benchmark_group("encode 8192 tokens");
    bench.sample_size(10);
    for shape in SHAPES {
        let (kv_heads, _, dim) = shape;
        let x = numbers(8192 * kv_heads * dim);
        for (preset, keys, values) in PRESETS {
            let widths = widths(keys, values);
            let codecs =
                (codec(dim, Side::Keys, widths.keys), codec(dim, Side::Values, widths.values));
            let layout = PageLayout::new(dim, widths);
            let mut tiles = vec![0; 8192 / PAGE_TOKENS * kv_heads * layout.tile_bytes()];
            let source = PageSource { keys: &x, values: &x, kv_heads };
            bench.throughput(Throughput::Bytes(4 * x.len() as u64));
            bench.bench_function(BenchmarkId::new(preset, format!("{kv_heads}x{dim}")), |b| {
                b.iter(|| encode(&mut tiles, source, &layout, (&codecs.0, &codecs.1)));
            });
        }
    }
    bench.finish();
}

criterion_group!(benches, decode, encoding);
criterion_main!(benches);

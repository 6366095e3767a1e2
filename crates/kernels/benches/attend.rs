//! Dense attention on the CPU: decode by context and batch (throughput: bytes of K and V read),
//! prefill chunks (throughput: one "element" is one floating-point operation of q·k and of weight·v
//! on visible keys).

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::cpu::{AttendParams, AttendRow, DenseTiles, attend_dense};

/// (name, kv_heads, query heads, dim): SmolLM2 135M; an 8B model.
const SHAPES: [(&str, usize, usize, usize); 2] = [("3x3x64", 3, 9, 64), ("8x4x128", 8, 32, 128)];

struct Store {
    keys: Vec<f16>,
    values: Vec<f16>,
    pages: Vec<u32>,
}

fn store(tokens: usize, kv_heads: usize, dim: usize) -> Store {
    let pages = tokens.div_ceil(PAGE_TOKENS);
    let keys: Vec<f16> = (0..pages * PAGE_TOKENS * kv_heads * dim)
        .map(|i| f16::from_f32((i % 255) as f32 / 255.0 - 0.5))
        .collect();
    Store { values: keys.clone(), keys, pages: (0..pages as u32).rev().collect() }
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    group.sample_size(10);
    for (name, kv_heads, q_heads, dim) in SHAPES {
        for (batch, context) in [(1, 1024), (1, 8192), (8, 1024), (8, 8192)] {
            let Store { keys, values, pages } = store(batch * context, kv_heads, dim);
            let rows: Vec<_> = pages
                .chunks_exact(context / PAGE_TOKENS)
                .map(|pages| AttendRow { pages, position: context - 1, tokens: 1 })
                .collect();
            let q = vec![0.3; batch * q_heads * dim];
            let mut out = q.clone();
            let params = AttendParams { q_heads, scale: 0.125, window: None, softcap: None };
            let tiles = DenseTiles { keys: &keys, values: &values, kv_heads, dim };
            group.throughput(Throughput::Bytes(4 * keys.len() as u64));
            let id = BenchmarkId::new(name, format!("{batch}x{context}"));
            group.bench_function(id, |b| {
                b.iter(|| attend_dense(&mut out, &q, tiles, &rows, &params));
            });
        }
    }
}

fn prefill(c: &mut Criterion) {
    let mut group = c.benchmark_group("prefill");
    group.sample_size(10);
    for (name, kv_heads, q_heads, dim) in SHAPES {
        for (position, tokens) in [(0, 512), (4096, 512)] {
            let Store { keys, values, pages } = store(position + tokens, kv_heads, dim);
            let q = vec![0.3; tokens * q_heads * dim];
            let mut out = q.clone();
            let params = AttendParams { q_heads, scale: 0.125, window: None, softcap: None };
            let tiles = DenseTiles { keys: &keys, values: &values, kv_heads, dim };
            let pairs = tokens * position + tokens * (tokens + 1) / 2;
            group.throughput(Throughput::Elements((4 * pairs * q_heads * dim) as u64));
            let row = AttendRow { pages: &pages, position, tokens };
            group.bench_function(BenchmarkId::new(name, format!("{position}+{tokens}")), |b| {
                b.iter(|| attend_dense(&mut out, &q, tiles, &[row], &params));
            });
        }
    }
}

criterion_group!(benches, decode, prefill);
criterion_main!(benches);

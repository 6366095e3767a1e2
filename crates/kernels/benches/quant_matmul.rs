//! Products with quantized weights: one row by bytes of weights, beside a plain read of memory; 8,
//! 128 and 512 rows by operations (a multiplication and an addition are two).
//!
//! `KVANT_BENCH_PATH=avx2` or `scalar` measures other instructions than the best.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kvant_kernels::cpu::{
    BlockFormat, MatmulShape, PackedWeights, Path, Weights, matmul, quant_matmul_on,
};
use rayon::prelude::*;

/// (inputs, outputs): SmolLM2 135M; Qwen2.5 1.5B.
const SHAPES: [(usize, usize); 7] =
    [(576, 576), (576, 3072), (1536, 576), (576, 49152), (1536, 2048), (1536, 17920), (8960, 1536)];

/// More than last-level caches hold.
const COLD_BYTES: usize = 80_000_000;

fn path() -> Path {
    match std::env::var("KVANT_BENCH_PATH").as_deref() {
        Ok("avx2") => Path::Avx2,
        Ok("scalar") => Path::Scalar,
        _ => Path::best(),
    }
}

fn weights(format: BlockFormat, input: usize, output: usize) -> PackedWeights {
    let bytes = input * output / format.block_elements() * format.block_bytes();
    let bytes: Vec<u8> = (0..bytes).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    PackedWeights::new(format, &bytes, input, output)
}

/// Formats whose blocks fit the inputs.
fn formats(input: usize) -> impl Iterator<Item = BlockFormat> {
    BlockFormat::ALL.into_iter().filter(move |format| input.is_multiple_of(format.block_elements()))
}

/// As in decoding, every call reads weights that are in no cache, from a thread of the pool.
fn one_row(c: &mut Criterion) {
    let mut group = c.benchmark_group("one row");
    group.sample_size(10);
    for (input, output) in SHAPES {
        let x = vec![0.3; input];
        let mut out = vec![0.0; output];
        let name = format!("{input}x{output}");
        for format in formats(input) {
            let first = weights(format, input, output);
            let bytes = first.bytes();
            let more = (1..COLD_BYTES.div_ceil(bytes)).map(|_| weights(format, input, output));
            let copies: Vec<_> = std::iter::once(first).chain(more).collect();
            let mut turns = copies.iter().cycle();
            group.throughput(Throughput::Bytes(bytes as u64));
            group.bench_function(BenchmarkId::new(format!("{format:?}"), &name), |b| {
                let mut call = || {
                    let weights = turns.next().expect("there is one");
                    quant_matmul_on(path(), &mut out, &x, weights);
                };
                rayon::scope(|_| b.iter(&mut call));
            });
        }
    }
    let words = vec![1_u64; COLD_BYTES / 8];
    group.throughput(Throughput::Bytes(COLD_BYTES as u64));
    group.bench_function("plain read", |b| {
        let sum = |words: &[u64]| words.iter().fold(0_u64, |a, b| a.wrapping_add(*b));
        b.iter(|| black_box(words.par_chunks(4096).map(sum).sum::<u64>()));
    });
}

fn many_rows(c: &mut Criterion) {
    let mut group = c.benchmark_group("many rows");
    group.sample_size(10);
    for (input, output) in SHAPES {
        for rows in [8, 128, 512] {
            let x = vec![0.3; rows * input];
            let mut out = vec![0.0; rows * output];
            group.throughput(Throughput::Elements((2 * rows * input * output) as u64));
            let name = format!("{input}x{output}x{rows}");
            for format in formats(input) {
                let weights = weights(format, input, output);
                group.bench_function(BenchmarkId::new(format!("{format:?}"), &name), |b| {
                    b.iter(|| quant_matmul_on(path(), &mut out, &x, &weights));
                });
            }
            let weights = vec![half::f16::ONE; input * output];
            let shape = MatmulShape { rows, input, output };
            group.bench_function(BenchmarkId::new("f16", &name), |b| {
                b.iter(|| matmul(&mut out, &x, Weights::F16(&weights), shape));
            });
        }
    }
}

criterion_group!(benches, one_row, many_rows);
criterion_main!(benches);

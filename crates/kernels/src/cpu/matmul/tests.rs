//! `matmul` against sums in f64, and a row alone against the same row among others.

use super::*;

const ROWS: [usize; 8] = [1, 2, 3, 4, 5, 15, 16, 17];
const INPUTS: [usize; 5] = [1, 7, 8, 64, 100];
const OUTPUTS: [usize; 5] = [1, 3, 17, 33, 49];

/// Numbers in -1..1 from a multiplicative congruential generator.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn reference(x: &[f32], weights: &[f32], shape: MatmulShape) -> Vec<f64> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| *x as f64 * *w as f64).sum();
    let rows = x.chunks(shape.input);
    rows.flat_map(|x| weights.chunks(shape.input).map(move |w| dot(x, w))).collect()
}

fn run(x: &[f32], weights: Weights<'_>, shape: MatmulShape) -> Vec<f32> {
    let mut out = vec![f32::NAN; shape.rows * shape.output];
    matmul(&mut out, x, weights, shape);
    out
}

/// Compares with f64 and, bit for bit, every row with the same row alone.
fn check(shape: MatmulShape) {
    let MatmulShape { rows, input, output } = shape;
    let x = numbers(rows * input, 1);
    let f32s = numbers(output * input, 2);
    let f16s: Vec<_> = f32s.iter().map(|&w| f16::from_f32(w)).collect();
    let bf16s: Vec<_> = f32s.iter().map(|&w| bf16::from_f32(w)).collect();
    let from_f16: Vec<_> = f16s.iter().map(|w| w.to_f32()).collect();
    let from_bf16: Vec<_> = bf16s.iter().map(|w| w.to_f32()).collect();
    let cases = [
        (Weights::F32(&f32s), &f32s),
        (Weights::F16(&f16s), &from_f16),
        (Weights::BF16(&bf16s), &from_bf16),
    ];
    for (weights, exact) in cases {
        let out = run(&x, weights, shape);
        // Rounding grows with the number of additions in a lane; products are below 1.
        let bound = f64::from(f32::EPSILON) * (input as f64 + 8.0);
        for (at, (out, exact)) in out.iter().zip(reference(&x, exact, shape)).enumerate() {
            let error = (f64::from(*out) - exact).abs();
            assert!(error <= bound, "{shape:?} element {at}: {out} is {error} off {exact}");
        }
        for (x, together) in x.chunks(input).zip(out.chunks(output)) {
            let alone = run(x, weights, MatmulShape { rows: 1, ..shape });
            assert_eq!(alone, together, "{shape:?}");
        }
    }
}

#[test]
fn agrees_with_f64_and_keeps_rows_apart() {
    for rows in ROWS {
        for input in INPUTS {
            for output in OUTPUTS {
                check(MatmulShape { rows, input, output });
            }
        }
    }
    for rows in ROWS {
        check(MatmulShape { rows, input: 576, output: 49 });
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let shape = MatmulShape { rows: 5, input: 100, output: 200 };
    let (x, w) = (numbers(500, 3), numbers(20_000, 4));
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&x, Weights::F32(&w), shape))
    };
    assert_eq!(with(1), with(4));
}

#[test]
fn nothing_in_gives_zeros() {
    assert_eq!(run(&[], Weights::F32(&[]), MatmulShape { rows: 2, input: 0, output: 2 }), [0.0; 4]);
    assert!(
        run(&[], Weights::F32(&[1.0]), MatmulShape { rows: 0, input: 1, output: 1 }).is_empty()
    );
}

#[test]
fn halves_keep_their_special_values() {
    let smallest = f16::from_bits(1);
    let shape = MatmulShape { rows: 1, input: 1, output: 3 };
    let out = run(&[1.0], Weights::F16(&[smallest, f16::MAX, f16::INFINITY]), shape);
    assert_eq!(out, [5.960_464_5e-8, 65504.0, f32::INFINITY]);
}

//! Products of few rows on a GPU of compute capability 9.0, against f64, and in a queue where
//! launches begin before those in front of them have ended.

#![expect(unsafe_code, reason = "launches of kernels")]

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use half::{bf16, f16};
use kvant_kernels::device::cuda::{CudaBuffer, CudaProgram};
use kvant_kernels::device::{Activations, GpuMatmul, Kernel, NormParams, SKINNY_ROWS};
use rayon::prelude::*;

use crate::cuda::TURN;
use crate::machine::{bytes_of_floats, results};
use crate::ops::activation;
use crate::random::Random;

/// What compute capability 9.0 has.
struct Machine {
    stream: Arc<CudaStream>,
    program: CudaProgram,
}

type Product = (GpuMatmul, Option<u32>);

impl Machine {
    fn new(stream: &Arc<CudaStream>) -> Self {
        let program = CudaProgram::ops(stream, None).unwrap();
        Self { stream: stream.clone(), program }
    }

    fn put(&self, bytes: &[u8]) -> CudaSlice<u8> {
        self.stream.clone_htod(bytes).unwrap()
    }

    /// out, x and weights.
    fn launch(&self, [out, x, weights]: [&CudaSlice<u8>; 3], product: Product) {
        let places = [out, x, weights].map(|slice| slice.device_ptr(&self.stream).0);
        // SAFETY: the checks size their buffers by the shape.
        unsafe { self.program.skinny(places, product).unwrap() };
    }

    fn read(&self, slice: &CudaSlice<u8>) -> Vec<u8> {
        self.stream.clone_dtoh(slice).unwrap()
    }
}

/// Numbers of 16 bits: what they are, and their bytes.
fn stored(count: usize, numbers: Activations, seed: u64) -> (Vec<f64>, Vec<u8>) {
    let floats = Random(seed).floats(count);
    let all = floats.iter().map(|x| match numbers {
        Activations::F16 => (f16::from_f32(*x).to_f64(), f16::from_f32(*x).to_ne_bytes()),
        _ => (bf16::from_f32(*x).to_f64(), bf16::from_f32(*x).to_ne_bytes()),
    });
    let (exact, bytes): (Vec<_>, Vec<_>) = all.unzip();
    (exact, bytes.concat())
}

/// Shapes at the edges of rows, boxes, stages and tiles.
pub(crate) const EDGES: [[usize; 3]; 9] = [
    [1, 8, 1],
    [2, 64, 5],
    [5, 72, 16],
    [8, 128, 17],
    [9, 136, 100],
    [15, 576, 129],
    [16, 896, 130],
    [17, 1032, 64],
    [32, 264, 200],
];
/// Of models, with several tiles one after the other, and stages that come round.
pub(crate) const MODELS: [[usize; 3]; 6] = [
    [1, 4096, 4096],
    [15, 576, 1536],
    [16, 1032, 4097],
    [17, 2048, 8500],
    [31, 4864, 896],
    [32, 4096, 6144],
];

/// Products of so many rows, numbers of the input and columns, each plain and gated.
pub(crate) fn check_shapes(stream: &Arc<CudaStream>, shapes: &[[usize; 3]]) {
    let machine = Machine::new(stream);
    for &[rows, input, output] in shapes {
        for numbers in [Activations::F16, Activations::BF16] {
            for (gate, results) in [
                (None, Activations::F32),
                (None, numbers),
                (Some(0), numbers),
                (Some(1), Activations::F32),
            ] {
                let stride = output + 3;
                let shape = GpuMatmul { rows, input, output, stride, numbers, results };
                check(&machine, (shape, gate));
            }
        }
    }
}

fn check(machine: &Machine, product: Product) {
    let (GpuMatmul { rows, input, output, stride, numbers, results: kind }, gate) = product;
    let columns = if gate.is_some() { 2 * output } else { output };
    let (x, x_bytes) = stored(rows * input, numbers, 21);
    let (weights, weight_bytes) = stored(columns * input, numbers, 22);
    let before = vec![0xFF; 4 * rows * stride];
    let [x_slice, weight_slice] = [x_bytes, weight_bytes].map(|bytes| machine.put(&bytes));
    let run = |product: Product| {
        let _turn = TURN.lock();
        let out = machine.put(&before);
        machine.launch([&out, &x_slice, &weight_slice], product);
        machine.read(&out)
    };
    let bytes = run(product);
    let found = results(&bytes, kind as u32);
    // A product, and what sums of tensor cores may be off.
    let dot = |row: &[f64], column: usize| {
        let w = &weights[column * input..][..input];
        let products = row.iter().zip(w).map(|(x, w)| x * w);
        (products.clone().sum::<f64>(), 1e-6 * products.map(f64::abs).sum::<f64>())
    };
    let rounding = match kind {
        Activations::F32 => 1e-5,
        Activations::F16 => 1e-3,
        Activations::BF16 => 8e-3,
    };
    (0..rows * stride).into_par_iter().for_each(|at| {
        let (row, column) = (&x[at / stride * input..][..input], at % stride);
        if column >= output {
            assert!(found[at].is_nan(), "{product:?}: {} between rows", found[at]);
            return;
        }
        let (mut exact, mut bound) = dot(row, column);
        if let Some(which) = gate {
            let (gated, off) = dot(row, output + column);
            bound = 1.2 * bound * gated.abs() + off * exact.abs();
            exact = activation(which, exact) * gated;
        }
        let gap = (f64::from(found[at]) - exact).abs();
        let near = gap <= bound + rounding * exact.abs();
        assert!(near, "{product:?}: {} for {exact} at {at}", found[at]);
    });
    for _ in 0..5 {
        assert!(run(product) == bytes, "{product:?}: another result");
    }
    // A row does not depend on the others.
    let (shape, gate) = product;
    let alone = run((GpuMatmul { rows: 1, ..shape }, gate));
    let row = output * if kind == Activations::F32 { 4 } else { 2 };
    assert!(alone[..row] == bytes[..row], "{product:?}: another result alone");
}

/// Products behind norms, each of which waits for the one in front: the same with a wait of the
/// host behind each launch.
pub(crate) fn check_queue(stream: &Arc<CudaStream>) {
    const WIDTH: usize = 4096;
    let _turn = TURN.lock();
    let machine = Machine::new(stream);
    let numbers = Activations::BF16;
    let weights: Vec<_> =
        (0..4).map(|w| machine.put(&stored(WIDTH * WIDTH, numbers, w).1)).collect();
    let ones = machine.put(&bytes_of_floats(&[1.0; WIDTH]));
    for rows in [1, 16, SKINNY_ROWS] {
        let shape = GpuMatmul {
            rows,
            input: WIDTH,
            output: WIDTH,
            stride: WIDTH,
            numbers,
            results: Activations::F32,
        };
        let run = |waits: bool| {
            let start = Random(9).floats(rows * WIDTH);
            let mut x = machine.put(&bytes_of_floats(&start));
            let delta = machine.put(&vec![0; 4 * rows * WIDTH]);
            let mut normed = machine.put(&vec![0; 4 * rows * WIDTH]);
            let mut narrow = machine.put(&vec![0; 2 * rows * WIDTH]);
            let params = NormParams {
                width: WIDTH as u32,
                add: 1,
                eps: 1e-5,
                post_eps: 1e-5,
                numbers: numbers as u32,
                only: 1,
                from: 0,
            };
            for layer in 0..64 {
                let mut buffers = [
                    CudaBuffer::Output(&mut x),
                    CudaBuffer::Output(&mut normed),
                    CudaBuffer::Input(&delta),
                    CudaBuffer::Input(&ones),
                    CudaBuffer::Input(&ones),
                    CudaBuffer::Output(&mut narrow),
                ];
                let (program, grid) = (&machine.program, [rows, 1, 1]);
                // SAFETY: the buffers are those of `norm`.
                unsafe { program.launch(Kernel::Norm, grid, &mut buffers, &params).unwrap() };
                if waits {
                    stream.synchronize().unwrap();
                }
                machine.launch([&delta, &narrow, &weights[layer % weights.len()]], (shape, None));
                if waits {
                    stream.synchronize().unwrap();
                }
            }
            machine.read(&delta)
        };
        let apart = run(true);
        for _ in 0..20 {
            assert!(run(false) == apart, "{rows} rows: another result where launches overlap");
        }
    }
}

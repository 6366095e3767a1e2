//! Times of products of few rows with the matrices of a Llama of 8B, one behind another on the
//! queue, beside those of cuBLAS and the bandwidth of a copy.

use std::error::Error;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use kvant_kernels::device::cuda::{CudaLibrary, CudaProgram};
use kvant_kernels::device::{Activations, GpuMatmul};

use crate::gpu::replay;

/// Names, columns and numbers of the input; of gates and up the product is gated.
const MATRICES: [(&str, usize, usize); 5] = [
    ("qkv", 6144, 4096),
    ("output", 4096, 4096),
    ("gates, up", 28_672, 4096),
    ("down", 4096, 14_336),
    ("logits", 128_256, 4096),
];
const ROWS: [usize; 6] = [1, 4, 8, 16, 24, 32];
/// Bytes that all copies of a matrix have at least.
const ENOUGH: usize = 400_000_000;

/// A line for each matrix and number of rows; `copy` is in bytes a second.
pub(crate) fn print(stream: &Arc<CudaStream>, copy: f64) -> Result<(), Box<dyn Error>> {
    if stream.context().compute_capability()? != (9, 0) {
        println!("no kernel for products of few rows: not of compute capability 9.0");
        return Ok(());
    }
    let program = CudaProgram::ops(stream, None)?;
    let library = CudaLibrary::new(stream)?;
    println!("products of bf16, us, share of copy; cuBLAS's, us");
    for (name, columns, input) in MATRICES {
        let bytes = 2 * columns * input;
        let weights = noise(stream, bytes * ENOUGH.div_ceil(bytes))?;
        for rows in ROWS {
            let (x, out) = (noise(stream, 2 * rows * input)?, noise(stream, 4 * rows * columns)?);
            let place = |slice: &CudaSlice<u8>| slice.device_ptr(stream).0;
            let gate = (name == "gates, up").then_some(0);
            let output = if gate.is_some() { columns / 2 } else { columns };
            let numbers = Activations::BF16;
            let results = if gate.is_some() { numbers } else { Activations::F32 };
            let shape = GpuMatmul { rows, input, output, stride: output, numbers, results };
            let count = weights.len() / bytes;
            let each = |launch: &dyn Fn(u64) -> Result<(), Box<dyn Error>>| {
                let all =
                    || (0..count).try_for_each(|n| launch(place(&weights) + (n * bytes) as u64));
                replay(stream, all).map(|seconds| seconds / count as f64)
            };
            let own = each(&|matrix| {
                let places = [place(&out), place(&x), matrix];
                // SAFETY: the buffers have the sizes of the shape.
                Ok(unsafe { program.skinny(places, (shape, gate)) }?)
            })?;
            let others = each(&|matrix| {
                let places = [place(&out), place(&x), matrix];
                let (output, results) = (columns, Activations::F32);
                let plain = GpuMatmul { output, stride: columns, results, ..shape };
                // SAFETY: as above.
                Ok(unsafe { library.matmul(places, plain) }?)
            })?;
            let share = bytes as f64 / own / copy;
            let [own, others] = [own, others].map(|seconds| seconds * 1e6);
            println!("  {name:>9} {rows:>2} rows {own:>6.1} {share:.2}  {others:>6.1}");
        }
    }
    Ok(())
}

/// Finite numbers of either 16-bit kind.
fn noise(stream: &Arc<CudaStream>, bytes: usize) -> Result<CudaSlice<u8>, Box<dyn Error>> {
    let pattern: Vec<u8> = (0..bytes).map(|at| if at % 2 == 0 { at as u8 } else { 0x3C }).collect();
    Ok(stream.clone_htod(&pattern)?)
}

//! Kernels for the CPU, one a file, multi-threaded through rayon.

mod attend;
mod matmul;

pub use attend::{AttendParams, AttendRow, DenseTiles, attend_dense};
pub use matmul::{MatmulShape, Weights, matmul, matmul_widened};

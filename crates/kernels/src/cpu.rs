//! Kernels for the CPU, one a file, multi-threaded through rayon.

mod attend;
mod encode;
mod gate;
mod matmul;
mod packed;
mod path;
mod quant_matmul;

pub use attend::{AttendParams, AttendRow, DenseTiles, attend_dense};
pub use encode::{NonFiniteInput, PageSource, encode};
pub use gate::{gelu_gate, silu_gate};
pub use matmul::{MatmulShape, Weights, matmul, matmul_widened};
pub use packed::{PackedParams, PackedRow, PackedTiles, attend_packed};
pub use path::Path;
pub use quant_matmul::{BlockFormat, PackedWeights, quant_matmul, quant_matmul_on};

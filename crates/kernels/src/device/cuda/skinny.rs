//! The host's side of `skinny`: what its kernel copies, and its launch.

use cudarc::driver::DriverError;

use super::maps::{Matrix, TensorMap, tensor_map};
use super::module::Launch;
use crate::device::{Activations, GpuMatmul, SKINNY_ROWS, SkinnyCut, SkinnyParams};

/// A product, and how it is cut.
pub(super) struct Skinny {
    shape: GpuMatmul,
    gate: Option<u32>,
    cut: SkinnyCut,
}

/// Whether the kernel is for such a product, of activations and weights at multiples of 16 bytes.
pub(super) fn takes(shape: GpuMatmul) -> bool {
    let narrow = shape.numbers != Activations::F32;
    (1..=SKINNY_ROWS).contains(&shape.rows) && narrow && shape.input.is_multiple_of(8)
}

impl Skinny {
    pub(super) fn new(shape: GpuMatmul, gate: Option<u32>, multiprocessors: usize) -> Self {
        let columns = if gate.is_some() { 2 * shape.output } else { shape.output };
        Self { shape, gate, cut: SkinnyCut::of(shape.rows, columns, multiprocessors) }
    }

    /// Tensor maps of activations and weights at these addresses.
    pub(super) fn maps(&self, x: u64, weights: u64) -> Result<[TensorMap; 2], DriverError> {
        let GpuMatmul { rows, input, output, .. } = self.shape;
        let columns = if self.gate.is_some() { 2 * output } else { output };
        let map = |address, rows, box_rows| {
            let matrix = Matrix { address, numbers: self.shape.numbers, rows, columns: input };
            tensor_map(matrix, box_rows)
        };
        Ok([map(x, rows, self.cut.rows)?, map(weights, columns, self.cut.columns())?])
    }

    pub(super) fn params(&self) -> SkinnyParams {
        let GpuMatmul { rows, input, output, stride, numbers, results } = self.shape;
        let [rows, input, output, stride] = [rows, input, output, stride].map(|n| n as u32);
        let [numbers, results] = [numbers, results].map(|numbers| numbers as u32);
        let [tiles, stages] = [self.cut.tiles, self.cut.stages].map(|n| n as u32);
        let gate = self.gate.map_or(0, |activation| activation + 1);
        SkinnyParams { rows, input, output, stride, numbers, results, gate, tiles, stages }
    }

    pub(super) fn launch<'a>(&self, maps: &'a [TensorMap]) -> Launch<'a> {
        let shared = self.cut.shared_bytes() as u32;
        Launch { grid: self.cut.grid(), threads: self.cut.threads(), shared, early: true, maps }
    }
}

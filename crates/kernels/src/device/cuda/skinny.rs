//! The host's side of `skinny`: the tensor maps by which its kernel copies, and its launch.

#![expect(unsafe_code, reason = "calls of the driver")]

use std::ffi::c_void;

use cudarc::driver::DriverError;
use cudarc::driver::sys::{
    self, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave,
    CUtensorMapL2promotion, CUtensorMapSwizzle,
};

use super::module::{Launch, TensorMap};
use crate::device::{Activations, GpuMatmul, SKINNY_BOX, SKINNY_ROWS, SkinnyCut, SkinnyParams};

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
        let GpuMatmul { rows, output, .. } = self.shape;
        let columns = if self.gate.is_some() { 2 * output } else { output };
        Ok([self.map(x, rows, self.cut.rows)?, self.map(weights, columns, self.cut.columns())?])
    }

    /// The map of a matrix of `rows` rows, copied so many at a time; what is outside is zeros.
    fn map(&self, address: u64, rows: usize, box_rows: usize) -> Result<TensorMap, DriverError> {
        let numbers = match self.shape.numbers {
            Activations::BF16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            _ => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        };
        let sizes = [self.shape.input as u64, rows as u64];
        let strides = [2 * self.shape.input as u64];
        let (boxes, steps) = ([SKINNY_BOX as u32, box_rows as u32], [1, 1]);
        let mut map = TensorMap { opaque: [0; 16] };
        // SAFETY: all that the driver reads and writes outlives the call.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                numbers,
                sizes.len() as u32,
                address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()?;
        Ok(map)
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

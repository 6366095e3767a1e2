//! Tensor maps: matrices of 16-bit numbers as the copy engine of compute capability 9.0 knows them.

#![expect(unsafe_code, reason = "calls of the driver")]

use std::ffi::c_void;

use cudarc::driver::DriverError;
use cudarc::driver::sys::{
    self, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave,
    CUtensorMapL2promotion, CUtensorMapSwizzle,
};

use crate::device::{Activations, TENSOR_BOX};

/// A matrix as the copy engine knows it.
pub(super) type TensorMap = sys::CUtensorMap;

/// A matrix in the GPU's memory, rows one after another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    /// A multiple of 16.
    pub(super) address: u64,
    /// f16 or bf16.
    pub(super) numbers: Activations,
    pub(super) rows: usize,
    /// Numbers of a row.
    pub(super) columns: usize,
}

/// The map of a matrix that is copied in boxes of so many rows and [`TENSOR_BOX`] numbers of each,
/// swizzled by their 128 bytes; what is outside of the matrix is zeros.
pub(super) fn tensor_map(matrix: Matrix, box_rows: usize) -> Result<TensorMap, DriverError> {
    let numbers = match matrix.numbers {
        Activations::BF16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        _ => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
    };
    let sizes = [matrix.columns as u64, matrix.rows as u64];
    let strides = [2 * matrix.columns as u64];
    let (boxes, steps) = ([TENSOR_BOX as u32, box_rows as u32], [1, 1]);
    let mut map = TensorMap { opaque: [0; 16] };
    // SAFETY: all that the driver reads and writes outlives the call.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            numbers,
            sizes.len() as u32,
            matrix.address as *mut c_void,
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

//! Products by cuBLAS, with a workspace that is kept, so that they can be recorded.

#![expect(unsafe_code, reason = "calls of cuBLAS")]

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use cudarc::cublas::result::{CublasError, gemm_ex};
use cudarc::cublas::{CudaBlas, sys as blas};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DriverError};

use crate::device::{Activations, GpuMatmul};

/// Workspace: what its maker advises for GPUs of sm_90.
const WORKSPACE_BYTES: usize = 32 << 20;

/// cuBLAS on a stream.
pub struct CudaLibrary {
    blas: CudaBlas,
    _workspace: CudaSlice<u8>,
}

/// Why a product cannot be had.
#[derive(Debug)]
pub enum LibraryError {
    /// The library refused a call.
    Library(CublasError),
    /// There is no memory for it.
    Driver(DriverError),
}

impl fmt::Display for LibraryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library(error) => error.fmt(f),
            Self::Driver(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LibraryError {}

impl From<CublasError> for LibraryError {
    fn from(error: CublasError) -> Self {
        Self::Library(error)
    }
}

impl From<DriverError> for LibraryError {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

impl CudaLibrary {
    /// On a stream, to which all its products go.
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self, LibraryError> {
        let blas = CudaBlas::new(stream.clone())?;
        let workspace = stream.alloc_zeros::<u8>(WORKSPACE_BYTES)?;
        let memory = workspace.device_ptr(stream).0 as *mut c_void;
        // SAFETY: the memory lives as long as the handle.
        unsafe { blas::cublasSetWorkspace_v2(*blas.handle(), memory, WORKSPACE_BYTES) }.result()?;
        Ok(Self { blas, _workspace: workspace })
    }

    /// Puts the product of [`Gpu::matmul`](crate::device::Gpu::matmul) on the stream. places:
    /// addresses of results, activations and weights.
    ///
    /// # Safety
    /// They must hold the matrices of the shape.
    pub unsafe fn matmul(&self, places: [u64; 3], shape: GpuMatmul) -> Result<(), LibraryError> {
        let GpuMatmul { rows, input, output, stride, numbers, results } = shape;
        let [rows, input, output, stride] = [rows, input, output, stride].map(|n| n as i32);
        let [kind, results] = [numbers, results].map(|numbers| match numbers {
            Activations::F32 => blas::cudaDataType::CUDA_R_32F,
            Activations::F16 => blas::cudaDataType::CUDA_R_16F,
            Activations::BF16 => blas::cudaDataType::CUDA_R_16BF,
        });
        let [out, x, weights] = places.map(|place| place as *mut c_void);
        let (one, zero) = (1.0_f32, 0.0_f32);
        // SAFETY: the caller's promise. To cuBLAS they are columns: outᵀ = weights · xᵀ.
        Ok(unsafe {
            gemm_ex(
                *self.blas.handle(),
                blas::cublasOperation_t::CUBLAS_OP_T,
                blas::cublasOperation_t::CUBLAS_OP_N,
                output,
                rows,
                input,
                (&raw const one).cast(),
                weights,
                kind,
                input,
                x,
                kind,
                input,
                (&raw const zero).cast(),
                out,
                results,
                stride,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }?)
    }
}

impl fmt::Debug for CudaLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CudaLibrary")
    }
}

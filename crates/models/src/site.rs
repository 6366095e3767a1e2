//! `Site`: where a decoder's weights and activations are.

use std::panic::catch_unwind;
use std::path::Path;

use candle_core::{Device, Error, Result};
use kvant_kernels::device::{Gpu, GpuBuffer, GpuError};

/// Where a decoder lives.
#[derive(Clone, Debug, Default)]
pub enum Site {
    /// The memory of this process, and its threads.
    #[default]
    Cpu,
    /// A device of candle's, and the kernels' side of it.
    Gpu(Device, Gpu),
}

impl Site {
    /// An NVIDIA GPU by number; `compiled` is a folder for machine code, as of [`Gpu::new`].
    pub fn cuda(number: usize, compiled: Option<&Path>) -> std::result::Result<Self, GpuError> {
        // A queue of its own: candle's other one is a different queue in every thread.
        Self::of(cfg!(feature = "cuda"), compiled, || Device::new_cuda_with_stream(number))
    }

    /// A GPU of Apple by number; `compiled` as above.
    pub fn metal(number: usize, compiled: Option<&Path>) -> std::result::Result<Self, GpuError> {
        Self::of(cfg!(feature = "metal"), compiled, || Device::new_metal(number))
    }

    fn of(
        built: bool,
        compiled: Option<&Path>,
        device: impl FnOnce() -> Result<Device> + std::panic::UnwindSafe,
    ) -> std::result::Result<Self, GpuError> {
        if !built {
            return Err(GpuError::NotBuilt);
        }
        // Loaders of drivers panic where there is none.
        let device = catch_unwind(device).map_err(|_| GpuError::Driver("it is absent".into()))?;
        let device = device.map_err(|error| GpuError::Driver(error.to_string()))?;
        let gpu = Gpu::new(&device, compiled)?;
        Ok(Self::Gpu(device, gpu))
    }

    /// candle's device.
    pub fn device(&self) -> &Device {
        match self {
            Self::Cpu => &Device::Cpu,
            Self::Gpu(device, _) => device,
        }
    }

    /// The kernels' side of it.
    pub fn gpu(&self) -> Option<&Gpu> {
        match self {
            Self::Cpu => None,
            Self::Gpu(_, gpu) => Some(gpu),
        }
    }

    /// Numbers in the memory of the GPU, if it is one.
    pub(crate) fn floats(&self, numbers: &[f32]) -> Result<Option<GpuBuffer>> {
        let Some(gpu) = self.gpu() else { return Ok(None) };
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_ne_bytes()).collect();
        upload(gpu, &[&bytes]).map(Some)
    }
}

/// Bytes one after the other in the memory of a GPU, up to a whole word.
pub(crate) fn upload(gpu: &Gpu, parts: &[&[u8]]) -> Result<GpuBuffer> {
    let total = parts.iter().map(|part| part.len()).sum::<usize>();
    let buffer = gpu.alloc(total.next_multiple_of(4)).map_err(Error::wrap)?;
    let mut at = 0;
    for part in parts {
        gpu.write(&buffer, at, part).map_err(Error::wrap)?;
        at += part.len();
    }
    Ok(buffer)
}

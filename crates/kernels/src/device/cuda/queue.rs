//! What is behind `Gpu` on NVIDIA GPUs: candle's stream, memory of its pool, and cuBLAS.

#![expect(unsafe_code, reason = "calls of the driver and of cuBLAS, launches of kernels")]

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::{Device, Storage, Tensor};
use cudarc::driver::result as driver;
use cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
use cudarc::driver::sys::CUevent_flags_enum::CU_EVENT_DEFAULT;
use cudarc::driver::sys::CUgraphInstantiate_flags;
use cudarc::driver::sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
use cudarc::driver::sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
use cudarc::driver::{CudaEvent, CudaGraph, CudaSlice, CudaStream, DevicePtr};

pub(in crate::device) use super::results::Results;
use super::staging::Staging;
use super::{CudaError, CudaLibrary, CudaProgram, LibraryError, WGMMA, skinny};
use crate::device::{Activations, Arg, GpuError, GpuMatmul, Kernel, MATVEC_ROWS, Place, Spec};

/// A stream, and what runs on it.
pub(in crate::device) struct Queue {
    stream: Arc<CudaStream>,
    library: CudaLibrary,
    staging: Staging,
    name: String,
    multiprocessors: usize,
    /// Compute capability.
    capability: (i32, i32),
    /// Whether the last launch wrote packed pages.
    packed: Arc<AtomicBool>,
}

/// A moment in the queue.
#[derive(Debug)]
pub(in crate::device) struct Mark(CudaEvent);

/// Launches as one.
pub(in crate::device) struct Recording(CudaGraph);

// SAFETY: a graph may be used by any thread, by one at a time; it is not `Sync`.
unsafe impl Send for Recording {}

pub(in crate::device) type Program = CudaProgram;

/// Memory of the device's pool.
#[derive(Debug)]
pub(in crate::device) struct Memory(CudaSlice<u8>);

/// An address on the device.
#[derive(Clone, Debug)]
pub(in crate::device) struct PlaceMemory<'a>(pub(super) u64, pub(super) PhantomData<&'a ()>);

impl Queue {
    pub(in crate::device) fn new(device: &Device) -> Result<Self, GpuError> {
        let Device::Cuda(device) = device else {
            return Err(GpuError::NoKernels(format!("{:?}", device.location())));
        };
        // SAFETY: all work goes to one stream, by the contract of `Gpu`.
        unsafe { device.disable_event_tracking() };
        let stream = device.cuda_stream();
        keep_freed_memory(&stream)?;
        let library = CudaLibrary::new(&stream)?;
        let context = stream.context();
        let name = context.name()?;
        let capability = context.compute_capability()?;
        let multiprocessors = context.attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let (packed, staging) = (Arc::default(), Staging::new(&stream)?);
        Ok(Self { stream, library, staging, name, multiprocessors, capability, packed })
    }

    pub(in crate::device) fn name(&self) -> &str {
        &self.name
    }

    pub(in crate::device) fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Groups of `attend_few` for such heads that are well used on a multiprocessor.
    pub(in crate::device) fn few_groups(&self, dim: usize) -> usize {
        super::few_groups(self.capability, dim)
    }

    pub(in crate::device) fn mark(&self) -> Result<Mark, GpuError> {
        Ok(Mark(self.stream.record_event(Some(CU_EVENT_DEFAULT))?))
    }

    pub(in crate::device) const WAITS_FOR_MARKS: bool = true;

    #[expect(clippy::unused_self, reason = "other GPUs wait for their queue")]
    pub(in crate::device) fn wait(&self, mark: &Mark) -> Result<(), GpuError> {
        Ok(mark.0.synchronize()?)
    }

    pub(in crate::device) const RECORDS: bool = true;
    pub(in crate::device) const NARROW_PRODUCTS: bool = true;

    /// From here on launches are not run but recorded.
    pub(in crate::device) fn begin_record(&self) -> Result<(), GpuError> {
        Ok(self.stream.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?)
    }

    pub(in crate::device) fn end_record(&self) -> Result<Recording, GpuError> {
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream.end_capture(flags)?;
        graph.map(Recording).ok_or_else(|| GpuError::Driver("nothing was recorded".to_owned()))
    }

    #[expect(clippy::unused_self, reason = "as the other calls that put something into the queue")]
    pub(in crate::device) fn replay(&self, recording: &Recording) -> Result<(), GpuError> {
        Ok(recording.0.launch()?)
    }

    pub(in crate::device) fn free_bytes(&self) -> Result<u64, GpuError> {
        Ok(self.stream.context().mem_get_info()?.0 as u64)
    }

    pub(in crate::device) fn alloc(&self, bytes: usize) -> Result<Memory, GpuError> {
        // The driver refuses an allocation of nothing.
        Ok(Memory(self.stream.alloc_zeros(bytes.max(1))?))
    }

    pub(in crate::device) fn alloc_results(&self, count: usize) -> Result<Results, GpuError> {
        Ok(Results::new(&self.stream, count)?)
    }

    pub(in crate::device) fn write(
        &self,
        to: &Memory,
        at: usize,
        bytes: &[u8],
    ) -> Result<(), GpuError> {
        let to = to.place(at).0;
        if self.staging.write(&self.stream, to, bytes)? {
            return Ok(());
        }
        self.stream.context().bind_to_thread()?;
        // SAFETY: `Gpu` checked the range; the driver has taken pageable memory when it is back.
        Ok(unsafe { driver::memcpy_htod_async(to, bytes, self.stream.cu_stream()) }?)
    }

    pub(in crate::device) fn read(
        &self,
        from: &Memory,
        range: Range<usize>,
    ) -> Result<Vec<u8>, GpuError> {
        self.stream.context().bind_to_thread()?;
        let mut bytes = vec![0; range.len()];
        let from = from.place(range.start).0;
        // SAFETY: `Gpu` checked the range, and the stream is waited for.
        unsafe { driver::memcpy_dtoh_async(&mut bytes, from, self.stream.cu_stream()) }?;
        self.stream.synchronize()?;
        Ok(bytes)
    }

    pub(in crate::device) fn copy(
        &self,
        to: (&Memory, usize),
        from: (&Memory, usize),
        bytes: usize,
    ) -> Result<(), GpuError> {
        self.stream.context().bind_to_thread()?;
        let [to, from] = [to, from].map(|(memory, at)| memory.place(at).0);
        // SAFETY: `Gpu` checked the ranges.
        Ok(unsafe { driver::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }?)
    }

    pub(in crate::device) fn ops(&self, compiled: Option<&Path>) -> Result<Program, GpuError> {
        Ok(CudaProgram::ops(&self.stream, compiled)?.beside(&self.packed))
    }

    pub(in crate::device) fn program(
        &self,
        spec: &Spec,
        compiled: Option<&Path>,
    ) -> Result<Program, GpuError> {
        // Attention takes queries of f32; other numbers are those of pages to be packed.
        let portable = spec.activations() != Activations::F32;
        Ok(CudaProgram::new(&self.stream, spec, portable, compiled)?.beside(&self.packed))
    }

    #[expect(clippy::unused_self, reason = "other GPUs launch through their queue")]
    pub(in crate::device) fn launch(
        &self,
        (program, kernel): (&Program, Kernel),
        grid: [usize; 3],
        args: &[Arg<'_>],
        words: &[u32],
    ) -> Result<(), GpuError> {
        let addresses = args.iter().map(|arg| arg.place().memory.0);
        // SAFETY: kernels reach memory of the device alone, where nothing of Rust's lies.
        Ok(unsafe { program.launch_at(kernel, grid, addresses, words) }?)
    }

    /// Whether a product of a few rows is for `matvec`, which reads weights faster than cuBLAS.
    #[expect(clippy::unused_self, reason = "as the other calls")]
    pub(in crate::device) fn takes_matvec(&self, ends: [&Place<'_>; 2], shape: GpuMatmul) -> bool {
        let narrow = shape.numbers != Activations::F32 && shape.input.is_multiple_of(8);
        let wide = shape.results == Activations::F32;
        shape.rows <= MATVEC_ROWS && narrow && wide && aligned(ends)
    }

    /// Whether a product is for `skinny`.
    pub(in crate::device) fn takes_skinny(&self, ends: [&Place<'_>; 2], shape: GpuMatmul) -> bool {
        self.capability == WGMMA && skinny::takes(shape) && aligned(ends)
    }

    #[expect(clippy::unused_self, reason = "other GPUs launch through their queue")]
    pub(in crate::device) fn skinny(
        &self,
        program: &Program,
        places: [&Place<'_>; 3],
        product: (GpuMatmul, Option<u32>),
    ) -> Result<(), GpuError> {
        let addresses = places.map(|place| place.memory.0);
        // SAFETY: `Gpu` checked that the places hold the matrices.
        Ok(unsafe { program.skinny(addresses, product) }?)
    }

    pub(in crate::device) fn matmul(
        &self,
        out: &Place<'_>,
        x: &Place<'_>,
        weights: &Place<'_>,
        shape: GpuMatmul,
    ) -> Result<(), GpuError> {
        self.stream.context().bind_to_thread()?;
        let places = [out, x, weights].map(|place| place.memory.0);
        // SAFETY: `Gpu` checked that the places hold the matrices.
        Ok(unsafe { self.library.matmul(places, shape) }?)
    }

    pub(in crate::device) fn synchronize(&self) -> Result<(), GpuError> {
        Ok(self.stream.synchronize()?)
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Queue").field(&self.name).finish()
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recording")
    }
}

impl Mark {
    pub(in crate::device) fn until(&self, later: &Self) -> Result<Duration, GpuError> {
        // SAFETY: both events exist. The driver refuses them before they have come to pass.
        let milliseconds =
            unsafe { driver::event::elapsed(self.0.cu_event(), later.0.cu_event()) }?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}

impl Memory {
    pub(in crate::device) fn bytes(&self) -> usize {
        self.0.len()
    }

    pub(in crate::device) fn place(&self, at: usize) -> PlaceMemory<'_> {
        let (address, _) = self.0.device_ptr(self.0.stream());
        PlaceMemory(address + at as u64, PhantomData)
    }
}

impl<'a> PlaceMemory<'a> {
    pub(in crate::device) fn skip(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64, PhantomData)
    }

    pub(in crate::device) fn tensor(tensor: &'a Tensor) -> Result<Self, GpuError> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            return Err(GpuError::Tensor(format!("it is on {:?}", tensor.device().location())));
        };
        let stream = storage.device.cuda_stream();
        let address = match &storage.slice {
            CudaStorageSlice::F32(slice) => slice.device_ptr(&stream).0,
            CudaStorageSlice::F16(slice) => slice.device_ptr(&stream).0,
            CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream).0,
            CudaStorageSlice::U32(slice) => slice.device_ptr(&stream).0,
            CudaStorageSlice::U8(slice) => slice.device_ptr(&stream).0,
            _ => return Err(GpuError::Tensor(format!("it is of {:?}", tensor.dtype()))),
        };
        let at = layout.start_offset() * tensor.dtype().size_in_bytes();
        Ok(Self(address + at as u64, PhantomData))
    }
}

/// Whether numbers begin where kernels read 16 bytes at once.
fn aligned(places: [&Place<'_>; 2]) -> bool {
    places.iter().all(|place| place.memory.0.is_multiple_of(16))
}

/// Memory that is freed stays with the pool of the device, also over a wait.
fn keep_freed_memory(stream: &Arc<CudaStream>) -> Result<(), GpuError> {
    let context = stream.context();
    context.bind_to_thread()?;
    let mut all = u64::MAX;
    // SAFETY: the device is that of the context, and the value of the attribute's type.
    unsafe {
        let pool = driver::device::get_default_mem_pool(context.cu_device())?;
        driver::mem_pool::set_attribute(
            pool,
            CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut all).cast(),
        )?;
    }
    Ok(())
}

impl From<LibraryError> for GpuError {
    fn from(error: LibraryError) -> Self {
        Self::Driver(error.to_string())
    }
}

impl From<CudaError> for GpuError {
    fn from(error: CudaError) -> Self {
        match error {
            CudaError::Compile(said) => Self::Compile(said),
            CudaError::Driver(error) => error.into(),
        }
    }
}

impl From<cudarc::driver::DriverError> for GpuError {
    fn from(error: cudarc::driver::DriverError) -> Self {
        Self::Driver(error.to_string())
    }
}

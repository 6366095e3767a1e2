//! Machine code on one GPU and the launch of its kernels. On GPUs that can, the groups of a launch
//! become resident while the one in front of it ends: a kernel waits for that by itself
//! (`kv_await` of the dialect), so only the cost of a launch disappears, never an order.

#![expect(unsafe_code, reason = "calls of the driver")]

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
use cudarc::driver::sys::{
    self, CUfunction, CUlaunchAttribute, CUlaunchAttributeValue, CUlaunchConfig, CUmodule,
};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result as driver};

use super::Kernel;
use super::maps::TensorMap;

/// The most buffers of a kernel.
pub(super) const MAX_BUFFERS: usize = 16;
/// The most tensor maps, which are its first arguments.
const MAX_MAPS: usize = 2;
/// The most words of a struct of arguments; the driver copies as many as the kernel's own has.
const MAX_WORDS: usize = 32;

/// Loaded machine code; unloaded when dropped.
#[derive(Debug)]
pub(super) struct Module {
    context: Arc<CudaContext>,
    module: CUmodule,
}

/// An entry point, valid as long as its module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry(CUfunction);

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Launch<'a> {
    pub(super) grid: [usize; 3],
    /// Of a group.
    pub(super) threads: usize,
    /// Dynamic shared memory, bytes.
    pub(super) shared: u32,
    /// Whether its groups may become resident before the launch in front of it is done.
    pub(super) early: bool,
    /// Its first arguments.
    pub(super) maps: &'a [TensorMap],
}

// SAFETY: handles of the driver, which any thread may use.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}
// SAFETY: as above.
unsafe impl Send for Entry {}
// SAFETY: as above.
unsafe impl Sync for Entry {}

impl Module {
    pub(super) fn new(context: &Arc<CudaContext>, image: &[u8]) -> Result<Self, DriverError> {
        context.bind_to_thread()?;
        // SAFETY: the image is what the compiler made.
        let module = unsafe { driver::module::load_data(image.as_ptr().cast()) }?;
        Ok(Self { context: context.clone(), module })
    }

    pub(super) fn entry(&self, kernel: Kernel) -> Result<Entry, DriverError> {
        let name = CString::new(kernel.name()).expect("names of kernels have no zero bytes");
        // SAFETY: the module is loaded.
        Ok(Entry(unsafe { driver::module::get_function(self.module, name) }?))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // At the end of a process the driver may be gone; then so is the code.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: entries live in the program that owns the module.
            let _ = unsafe { driver::module::unload(self.module) };
        }
    }
}

impl Entry {
    /// Lets launches ask for so much dynamic shared memory.
    pub(super) fn allow_shared(self, bytes: u32) -> Result<(), DriverError> {
        let attribute = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the module is loaded.
        unsafe { driver::function::set_function_attribute(self.0, attribute, bytes as i32) }
    }

    /// Puts the kernel on the stream, with buffers by their addresses on the GPU.
    ///
    /// # Safety
    /// Maps and buffers must be those that the kernel's comment lists, in order and as large as it
    /// says for the words of its arguments, and page numbers within them.
    pub(super) unsafe fn launch(
        self,
        stream: &CudaStream,
        launch: Launch<'_>,
        addresses: &[u64],
        words: &[u32],
    ) -> Result<(), DriverError> {
        let mut params = [0_u32; MAX_WORDS];
        params[..words.len()].copy_from_slice(words);
        let mut arguments = [std::ptr::null_mut::<c_void>(); MAX_MAPS + MAX_BUFFERS + 1];
        let mut next = arguments.iter_mut();
        let mut add = |argument| {
            *next.next().expect("kernels have no more arguments") = argument;
        };
        for map in launch.maps {
            add((&raw const *map).cast_mut().cast());
        }
        for address in addresses {
            add((&raw const *address).cast_mut().cast());
        }
        add((&raw mut params).cast());
        let mut early = CUlaunchAttribute {
            id: CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let [x, y, z] = launch.grid.map(|n| n as u32);
        let config = CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            hStream: stream.cu_stream(),
            attrs: &raw mut early,
            numAttrs: u32::from(launch.early),
        };
        stream.context().bind_to_thread()?;
        // SAFETY: the caller's promise; all that the configuration points to outlives the call.
        unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                self.0,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
    }
}

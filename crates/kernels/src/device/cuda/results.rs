//! Memory of the host that kernels write to.

#![expect(unsafe_code, reason = "memory of the driver's")]

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use cudarc::driver::result as driver;
use cudarc::driver::sys::CU_MEMHOSTALLOC_DEVICEMAP;
use cudarc::driver::{CudaStream, DriverError};

use super::queue::PlaceMemory;

/// Words at one address of the host and of the device.
#[derive(Debug)]
pub(in crate::device) struct Results {
    words: NonNull<AtomicU32>,
    count: usize,
    stream: Arc<CudaStream>,
}

// SAFETY: the words are atomic, and belong to no thread.
unsafe impl Send for Results {}
// SAFETY: as above.
unsafe impl Sync for Results {}

impl Results {
    /// Zeroed.
    pub(super) fn new(stream: &Arc<CudaStream>, count: usize) -> Result<Self, DriverError> {
        stream.context().bind_to_thread()?;
        // The driver refuses an allocation of nothing.
        let bytes = count.max(1) * size_of::<u32>();
        // SAFETY: the driver gives so many bytes, aligned to pages, and nobody else has them.
        let words = unsafe {
            let memory = driver::malloc_host(bytes, CU_MEMHOSTALLOC_DEVICEMAP)?;
            memory.cast::<u8>().write_bytes(0, bytes);
            NonNull::new_unchecked(memory.cast())
        };
        Ok(Self { words, count, stream: stream.clone() })
    }

    pub(in crate::device) fn words(&self) -> &[AtomicU32] {
        // SAFETY: there are so many, as long as this lives.
        unsafe { slice::from_raw_parts(self.words.as_ptr(), self.count) }
    }

    pub(in crate::device) fn place(&self, word: usize) -> PlaceMemory<'_> {
        // On 64-bit systems the device has such memory at the host's address.
        let address = self.words.as_ptr() as u64;
        PlaceMemory(address + (word * size_of::<u32>()) as u64, PhantomData)
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        // A kernel may still write here. After an error nothing runs that could.
        let _ = self.stream.synchronize();
        // SAFETY: it is the driver's, and nothing points there any more.
        let _ = unsafe { driver::free_host(self.words.as_ptr().cast()) };
    }
}

//! Memory that the host shares with a GPU of Apple.

#![expect(unsafe_code, reason = "reads memory that the GPU writes")]

use std::fmt;
use std::marker::PhantomData;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use candle_core::MetalDevice;
use candle_metal_kernels::metal::Buffer;

use super::PlaceMemory;
use crate::device::GpuError;

/// Words of shared memory.
pub(in crate::device) struct Results {
    buffer: Arc<Buffer>,
    count: usize,
}

impl Results {
    /// Zeroed.
    pub(super) fn new(device: &MetalDevice, count: usize) -> Result<Self, GpuError> {
        // Metal refuses an allocation of nothing. Candle takes a new one for given numbers, not
        // one of its pool that a kernel may still write to.
        let buffer = device.new_buffer_with_data(&vec![0_u32; count.max(1)])?;
        Ok(Self { buffer, count })
    }

    #[expect(clippy::cast_ptr_alignment, reason = "Metal's buffers begin at pages")]
    pub(in crate::device) fn words(&self) -> &[AtomicU32] {
        // SAFETY: the buffer has so many words, at their alignment, as long as this lives.
        unsafe { slice::from_raw_parts(self.buffer.contents().cast::<AtomicU32>(), self.count) }
    }

    pub(in crate::device) fn place(&self, word: usize) -> PlaceMemory<'_> {
        let at = word * size_of::<u32>();
        PlaceMemory { buffer: (*self.buffer).clone(), at, owner: PhantomData }
    }
}

impl fmt::Debug for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Results").field(&self.count).finish()
    }
}

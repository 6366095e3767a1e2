//! Memory of a GPU of Apple, and places in it.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use candle_core::{DType, MetalDevice, Storage, Tensor};
use candle_metal_kernels::metal::Buffer;

use crate::device::GpuError;

/// Memory that the GPU alone reaches, outside of candle's pool, which rounds sizes up to powers of
/// two.
pub(in crate::device) struct Memory {
    pub(super) buffer: Arc<Buffer>,
    bytes: usize,
    device: Arc<MetalDevice>,
}

/// A buffer from a byte on.
#[derive(Clone, Debug)]
pub(in crate::device) struct PlaceMemory<'a> {
    pub(super) buffer: Buffer,
    pub(super) at: usize,
    pub(super) owner: PhantomData<&'a ()>,
}

impl Memory {
    /// Zeroed.
    pub(super) fn new(device: &Arc<MetalDevice>, bytes: usize) -> Result<Self, GpuError> {
        // Metal refuses an allocation of nothing, and copies multiples of four bytes.
        let room = bytes.next_multiple_of(4).max(4);
        let buffer = device.new_private_buffer(room, DType::U8, "")?;
        device.blit_command_encoder()?.fill_buffer(&buffer, (0, room), 0);
        Ok(Self { buffer, bytes, device: device.clone() })
    }

    pub(in crate::device) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(in crate::device) fn place(&self, at: usize) -> PlaceMemory<'_> {
        PlaceMemory { buffer: (*self.buffer).clone(), at, owner: PhantomData }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Memory").field(&self.bytes).finish()
    }
}

impl Drop for Memory {
    /// The device's set of resident buffers would keep it.
    fn drop(&mut self) {
        // After an error nothing runs that could still use the buffer.
        let _ = self.device.wait_until_completed();
        self.device.unregister_buffers([&*self.buffer]);
    }
}

impl<'a> PlaceMemory<'a> {
    pub(in crate::device) fn skip(self, bytes: usize) -> Self {
        Self { at: self.at + bytes, ..self }
    }

    pub(in crate::device) fn tensor(tensor: &'a Tensor) -> Result<Self, GpuError> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Metal(storage) = &*storage else {
            return Err(GpuError::Tensor(format!("it is on {:?}", tensor.device().location())));
        };
        let at = layout.start_offset() * tensor.dtype().size_in_bytes();
        Ok(Self { buffer: storage.buffer().clone(), at, owner: PhantomData })
    }
}

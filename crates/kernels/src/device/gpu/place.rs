//! `Place`: where a kernel's argument lies in the memory of a device.

use super::{GpuBuffer, GpuError, GpuResults, backend, fits};

/// Memory of the device from some byte on, alive as long as what it lies in.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    pub(in crate::device) memory: backend::PlaceMemory<'a>,
    /// Bytes from there to the end.
    bytes: usize,
}

/// A buffer of a launch.
#[derive(Clone, Debug)]
pub enum Arg<'a> {
    /// Only read.
    In(Place<'a>),
    /// Written, or read and written.
    Out(Place<'a>),
}

impl<'a> Place<'a> {
    /// A buffer from a byte on; numbers must lie at multiples of their size.
    pub fn buffer(buffer: &'a GpuBuffer, at: usize) -> Result<Self, GpuError> {
        fits("an argument of", buffer, at, 0)?;
        Ok(Self { memory: buffer.0.place(at), bytes: buffer.bytes() - at })
    }

    /// Results from a word on.
    pub fn results(results: &'a GpuResults, word: usize) -> Result<Self, GpuError> {
        let bytes = size_of::<u32>() * results.count().saturating_sub(word);
        Ok(Self { memory: results.0.place(word), bytes })
    }

    /// The numbers of a contiguous tensor.
    #[cfg(any(feature = "cuda", feature = "metal"))]
    pub fn tensor(tensor: &'a candle_core::Tensor) -> Result<Self, GpuError> {
        if !tensor.is_contiguous() {
            return Err(GpuError::Tensor(format!("{:?} is not contiguous", tensor.shape())));
        }
        let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
        Ok(Self { memory: backend::PlaceMemory::tensor(tensor)?, bytes })
    }

    /// The numbers of a tensor; this build has kernels for none.
    #[cfg(not(any(feature = "cuda", feature = "metal")))]
    pub fn tensor<Tensor>(tensor: &'a Tensor) -> Result<Self, GpuError> {
        Err(GpuError::NotBuilt)
    }

    /// The same from some bytes later on.
    pub fn skip(self, bytes: usize) -> Result<Self, GpuError> {
        self.holds("a place", bytes)?;
        Ok(Self { memory: self.memory.skip(bytes), bytes: self.bytes - bytes })
    }

    /// Bytes to the end.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// An error unless so many bytes lie here.
    pub fn holds(&self, what: &str, bytes: usize) -> Result<(), GpuError> {
        if bytes <= self.bytes {
            return Ok(());
        }
        Err(GpuError::Room(format!("{what} of {bytes} bytes in {}", self.bytes)))
    }
}

impl<'a> Arg<'a> {
    /// Where it lies.
    pub fn place(&self) -> &Place<'a> {
        match self {
            Self::In(place) | Self::Out(place) => place,
        }
    }

    /// The numbers of a tensor that is only read.
    #[cfg(any(feature = "cuda", feature = "metal"))]
    pub fn read(tensor: &'a candle_core::Tensor) -> Result<Self, GpuError> {
        Place::tensor(tensor).map(Self::In)
    }

    /// The numbers of a tensor that is written.
    #[cfg(any(feature = "cuda", feature = "metal"))]
    pub fn written(tensor: &'a candle_core::Tensor) -> Result<Self, GpuError> {
        Place::tensor(tensor).map(Self::Out)
    }

    /// The numbers of a tensor; this build has kernels for none.
    #[cfg(not(any(feature = "cuda", feature = "metal")))]
    pub fn read<Tensor>(tensor: &'a Tensor) -> Result<Self, GpuError> {
        Place::tensor(tensor).map(Self::In)
    }

    /// The numbers of a tensor; this build has kernels for none.
    #[cfg(not(any(feature = "cuda", feature = "metal")))]
    pub fn written<Tensor>(tensor: &'a Tensor) -> Result<Self, GpuError> {
        Place::tensor(tensor).map(Self::Out)
    }
}

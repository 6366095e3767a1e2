//! `Staging`: memory of the host that the GPU fetches middling writes from.
//!
//! The driver takes 64 KiB of any memory at once; before it takes more it may wait for the stream,
//! and a step that is queued behind a running one must not.

#![expect(unsafe_code, reason = "memory of the driver's")]

use std::ptr::NonNull;
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::result as driver;
use cudarc::driver::sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING;
use cudarc::driver::{CudaEvent, CudaStream, DriverError};

/// Bytes of a half: many steps of writes, so that what is waited for is long past.
const HALF_BYTES: usize = 1 << 20;
/// What the driver takes at once.
const DIRECT_BYTES: usize = 64 << 10;
/// Writes begin at multiples of it.
const ALIGN_BYTES: usize = 64;

/// Two halves, filled in turn.
#[derive(Debug)]
pub(super) struct Staging(Mutex<Halves>);

#[derive(Debug)]
struct Halves {
    memory: NonNull<u8>,
    turns: Turns,
    /// Behind the last write from each half.
    ends: [Option<CudaEvent>; 2],
    stream: Arc<CudaStream>,
}

// SAFETY: the memory belongs to no thread.
unsafe impl Send for Halves {}

/// Where the next write goes.
#[derive(Debug, Default)]
struct Turns {
    half: usize,
    taken: usize,
}

/// A place for a write.
#[derive(Debug, PartialEq, Eq)]
struct Turn {
    at: usize,
    /// The half before is full, and this one begins anew.
    turned: bool,
}

impl Staging {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self, DriverError> {
        stream.context().bind_to_thread()?;
        // SAFETY: the driver gives so many bytes, and nobody else has them.
        let memory = unsafe {
            let memory = driver::malloc_host(2 * HALF_BYTES, 0)?.cast::<u8>();
            memory.write_bytes(0, 2 * HALF_BYTES);
            NonNull::new_unchecked(memory)
        };
        let (turns, ends, stream) = (Turns::default(), [None, None], stream.clone());
        Ok(Self(Mutex::new(Halves { memory, turns, ends, stream })))
    }

    /// Puts a write to an address of the device into the stream; false if it is none for this
    /// memory, too small or too large. The address has room for it: the caller's promise.
    pub(super) fn write(
        &self,
        stream: &CudaStream,
        to: u64,
        bytes: &[u8],
    ) -> Result<bool, DriverError> {
        let mut halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Turn { at, turned }) = halves.turns.take(bytes.len()) else { return Ok(false) };
        if turned {
            let half = halves.turns.half;
            let end = halves.stream.record_event(Some(CU_EVENT_DISABLE_TIMING))?;
            halves.ends[1 - half] = Some(end);
            if let Some(end) = halves.ends[half].take() {
                end.synchronize()?;
            }
        }
        stream.context().bind_to_thread()?;
        // SAFETY: the place lies within the memory, no other write has it, and the GPU has fetched
        // what lay there before.
        unsafe {
            let place = halves.memory.as_ptr().add(at);
            place.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            let staged = slice::from_raw_parts(place, bytes.len());
            driver::memcpy_htod_async(to, staged, stream.cu_stream())?;
        }
        Ok(true)
    }
}

impl Turns {
    /// A place for so many bytes; none if they are few, or more than a half has.
    fn take(&mut self, bytes: usize) -> Option<Turn> {
        let room = bytes.next_multiple_of(ALIGN_BYTES);
        if bytes <= DIRECT_BYTES || room > HALF_BYTES {
            return None;
        }
        let turned = self.taken + room > HALF_BYTES;
        if turned {
            (self.half, self.taken) = (1 - self.half, 0);
        }
        let at = self.half * HALF_BYTES + self.taken;
        self.taken += room;
        Some(Turn { at, turned })
    }
}

impl Drop for Halves {
    fn drop(&mut self) {
        // The GPU may still fetch. After an error nothing runs that could.
        let _ = self.stream.synchronize();
        // SAFETY: it is the driver's, and nothing points there any more.
        let _ = unsafe { driver::free_host(self.memory.as_ptr().cast()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_lie_apart_and_a_half_begins_anew_when_the_other_is_full() {
        let mut turns = Turns::default();
        let turn = |at, turned| Some(Turn { at, turned });
        let least = DIRECT_BYTES + ALIGN_BYTES;
        assert_eq!(turns.take(DIRECT_BYTES), None);
        assert_eq!(turns.take(DIRECT_BYTES + 1), turn(0, false));
        assert_eq!(turns.take(HALF_BYTES + 1), None);
        assert_eq!(turns.take(HALF_BYTES - least), turn(least, false), "to the last byte");
        assert_eq!(turns.take(least), turn(HALF_BYTES, true));
        assert_eq!(turns.take(HALF_BYTES), turn(0, true));
        assert_eq!(turns.take(least), turn(HALF_BYTES, true));
    }
}

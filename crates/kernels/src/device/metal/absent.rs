//! What Metal, or candle's road to it, does not have: a count of multiprocessors, times of the
//! queue and waits for a moment of it, recorded launches.
#![expect(
    clippy::unnecessary_wraps,
    clippy::unused_self,
    reason = "other GPUs have these, and ask their driver"
)]

use std::time::Duration;

use super::{GpuError, Queue};
use crate::device::FEW_GROUPS;

/// What attention is cut for.
const MULTIPROCESSORS: usize = 132;

/// A moment in the queue.
#[derive(Debug)]
pub(in crate::device) struct Mark;

/// Launches as one; there are none.
#[derive(Debug)]
pub(in crate::device) enum Recording {}

impl Mark {
    pub(in crate::device) fn until(&self, _later: &Self) -> Result<Duration, GpuError> {
        Ok(Duration::ZERO)
    }
}

impl Queue {
    pub(in crate::device) const RECORDS: bool = false;
    pub(in crate::device) const NARROW_PRODUCTS: bool = false;

    /// Candle does not say which of its command buffers something is in.
    pub(in crate::device) const WAITS_FOR_MARKS: bool = false;

    pub(in crate::device) fn wait(&self, _: &Mark) -> Result<(), GpuError> {
        self.synchronize()
    }

    pub(in crate::device) fn multiprocessors(&self) -> usize {
        MULTIPROCESSORS
    }

    pub(in crate::device) fn few_groups(&self, _: usize) -> usize {
        FEW_GROUPS
    }

    pub(in crate::device) fn mark(&self) -> Result<Mark, GpuError> {
        Ok(Mark)
    }

    pub(in crate::device) fn begin_record(&self) -> Result<(), GpuError> {
        Err(GpuError::Driver("Metal does not record launches".to_owned()))
    }

    pub(in crate::device) fn end_record(&self) -> Result<Recording, GpuError> {
        self.begin_record().and(Err(GpuError::Driver("nothing was recorded".to_owned())))
    }

    pub(in crate::device) fn replay(&self, recording: &Recording) -> Result<(), GpuError> {
        match *recording {}
    }
}

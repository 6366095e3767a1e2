//! `GpuResults`: words that kernels leave where the host reads them.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::{Gpu, GpuError, backend};

/// Words of memory that both see: kernels write them, and the host reads them without a copy, and
/// without a wait of its own. Freed when dropped.
#[derive(Debug)]
pub struct GpuResults(pub(super) backend::Results);

impl Gpu {
    /// Zeroed words for results.
    pub fn alloc_results(&self, count: usize) -> Result<GpuResults, GpuError> {
        self.0.queue.alloc_results(count).map(GpuResults)
    }
}

impl GpuResults {
    /// Words that there is room for.
    pub fn count(&self) -> usize {
        self.0.words().len()
    }

    /// Words as kernels left them that the host has waited for, by [`Gpu::wait`] or
    /// otherwise; what others write may be here or not.
    pub fn read(&self, range: Range<usize>) -> Result<Vec<u32>, GpuError> {
        let all = self.0.words();
        let words = all.get(range.clone()).ok_or_else(|| {
            GpuError::Room(format!("words {range:?} of results that have {}", all.len()))
        })?;
        Ok(words.iter().map(|word| word.load(Ordering::Relaxed)).collect())
    }
}

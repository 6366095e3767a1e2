//! What a step's tokens are: ids that the host knows, or such as a kernel has left.

use candle_core::{Error, Result, bail};
use kvant_kernels::device::{ELSEWHERE, Place};

use super::GpuStep;

impl GpuStep {
    /// Ids and positions of the step, in one write.
    pub(crate) fn begin(&self, ids: &[u32], positions: &[u32], vocab: usize) -> Result<()> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            bail!("token {id} is not in the vocabulary of {vocab}")
        }
        self.upload(ids, positions)
    }

    /// The same with rows of [`Self::chosen`] in place of ids.
    pub(crate) fn begin_chosen(&self, rows: &[u32], positions: &[u32]) -> Result<()> {
        if let Some(row) = rows.iter().find(|row| **row as usize >= self.room) {
            bail!("row {row} of tokens that were chosen after {} at most", self.room)
        }
        let at = |row: &u32| ELSEWHERE | (3 * self.room as u32 + row);
        self.upload(&rows.iter().map(at).collect::<Vec<_>>(), positions)
    }

    /// Where a kernel leaves the tokens that it chose, from a row on.
    pub(crate) fn chosen(&self, row: usize) -> Result<Place<'_>> {
        Place::buffer(&self.words, 4 * (3 * self.room + row)).map_err(Error::wrap)
    }

    fn upload(&self, ids: &[u32], positions: &[u32]) -> Result<()> {
        let known = self.positions;
        if let Some(position) = positions.iter().find(|at| **at as usize >= known) {
            bail!("position {position} is beyond the {known} that the GPU has angles for")
        }
        self.put((&self.words, 0), &[ids, positions].concat())
    }
}

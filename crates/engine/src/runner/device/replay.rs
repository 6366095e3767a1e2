//! `Kept`: steps of decoding that were recorded, to be replayed as one launch each.
//!
//! A step is filled up with idle rows to one of a few sizes, so that steps have few different
//! launches. The first step of some launches runs as it is, which makes every buffer as large as it
//! is going to be; the second is recorded, and from then on it is replayed.

use std::collections::{HashMap, HashSet};

use kvant_kernels::device::{Gpu, GpuRecording};
use kvant_kv_cache::StepLayout;

use super::super::{LOGIT_ROWS, RunError};
use crate::memory::RECORDING_BYTES;
use crate::step::Step;

/// Recordings at most.
const MOST: usize = 128;
/// Launches that are remembered at most.
const MOST_SEEN: usize = 4096;

/// How steps of decoding reach a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replay {
    /// As other steps do: launch by launch, no idle rows.
    #[default]
    Off,
    /// Launch by launch, filled up with idle rows: what replays are to be equal to.
    Filled,
    /// Recorded, and replayed.
    On,
}

/// All that the launches of a step depend on beside the memory of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Launches {
    pub(super) layout: StepLayout,
    pub(super) workspace: [usize; 2],
    pub(super) sampler: usize,
}

/// How many recordings are kept, and the memory of the driver that they have taken.
#[derive(Debug)]
struct Room {
    most: usize,
    taken: u64,
    /// By one of them.
    largest: u64,
}

/// Recorded steps.
#[derive(Debug, Default)]
pub(super) struct Kept {
    replay: Replay,
    /// Launches of steps that ran once.
    seen: HashSet<Launches>,
    /// With the number of the step that used it last.
    recordings: HashMap<Launches, (GpuRecording, u64)>,
    room: Room,
    steps: u64,
    replayed: u64,
}

impl Kept {
    pub(super) fn new(replay: Replay) -> Self {
        Self { replay, ..Self::default() }
    }

    /// Steps that were replayed.
    pub(super) fn replayed(&self) -> u64 {
        self.replayed
    }

    /// What recordings have taken of the driver's memory.
    pub(super) fn bytes(&self) -> u64 {
        self.room.taken
    }

    /// Rows to which a step is filled up; `None` if it is not of decoding alone, or is large.
    pub(super) fn filled(&self, step: &Step) -> Option<usize> {
        let plain = step.prefill.is_empty()
            && step.decode.iter().all(|row| row.tokens.len() == 1 && row.sample.is_some());
        let rows = step.decode.len();
        let fits = (1..=LOGIT_ROWS).contains(&rows);
        (self.replay != Replay::Off && plain && fits).then(|| filled(rows))
    }

    /// Puts a step into the queue, which `queue` does launch by launch.
    pub(super) fn run(
        &mut self,
        gpu: &Gpu,
        launches: Launches,
        mut queue: impl FnMut() -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        self.steps += 1;
        if let Some((recording, last)) = self.recordings.get_mut(&launches) {
            *last = self.steps;
            self.replayed += 1;
            return Ok(gpu.replay(recording)?);
        }
        if self.seen.len() > MOST_SEEN {
            self.seen.clear();
        }
        if self.replay != Replay::On || self.seen.insert(launches) {
            return queue();
        }
        let before = gpu.free_bytes()?;
        self.make_room();
        match gpu.record(&mut queue) {
            Ok(recording) => {
                gpu.replay(&recording)?;
                self.replayed += 1;
                self.recordings.insert(launches, (recording, self.steps));
                let taken = before.saturating_sub(gpu.free_bytes()?);
                self.room.take(taken, self.recordings.len());
                Ok(())
            }
            Err(error) => {
                tracing::warn!("steps are not replayed: {error}");
                self.replay = Replay::Filled;
                queue()
            }
        }
    }

    /// For one more: those that were not used for longest go.
    fn make_room(&mut self) {
        while self.recordings.len() >= self.room.most {
            let oldest = self.recordings.iter().min_by_key(|(_, (_, last))| *last);
            let Some(oldest) = oldest.map(|(launches, _)| *launches) else { return };
            self.recordings.remove(&oldest);
            self.seen.remove(&oldest);
        }
    }
}

impl Default for Room {
    fn default() -> Self {
        Self { most: MOST, taken: 0, largest: 0 }
    }
}

impl Room {
    /// Counts a new one of so many. There are no more of them once another as large as any before
    /// would not fit, and fewer if this one did not.
    fn take(&mut self, bytes: u64, recordings: usize) {
        self.taken += bytes;
        self.largest = self.largest.max(bytes);
        if self.taken > RECORDING_BYTES {
            self.most = self.most.min(recordings.saturating_sub(1).max(1));
        } else if self.taken + self.largest > RECORDING_BYTES {
            self.most = self.most.min(recordings);
        }
    }
}

/// 1, 2, 4, then multiples of 8.
fn filled(rows: usize) -> usize {
    if rows <= 4 { rows.next_power_of_two() } else { rows.next_multiple_of(8) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recordings_take_no_more_than_they_may() {
        let mut room = Room::default();
        room.take(RECORDING_BYTES / 2, 1);
        assert_eq!(room.most, MOST, "one more fits");
        room.take(RECORDING_BYTES / 2, 2);
        assert_eq!((room.most, room.taken), (2, RECORDING_BYTES), "all is taken");
        // In the place of another one.
        room.take(0, 2);
        assert_eq!(room.most, 2);
        room.take(1, 2);
        assert_eq!(room.most, 1);
        room.take(1, 1);
        assert_eq!(room.most, 1, "one is kept");
        let mut room = Room::default();
        room.take(RECORDING_BYTES / 2 + 1, 1);
        assert_eq!(room.most, 1, "a second one would be too much");
    }

    #[test]
    fn rows_are_filled_up_to_few_sizes() {
        let sizes: HashSet<usize> = (1..=LOGIT_ROWS).map(filled).collect();
        assert_eq!(sizes.len(), 11);
        assert!((1..=LOGIT_ROWS).all(|rows| filled(rows) >= rows && filled(rows) < rows + 8));
        assert!(sizes.iter().all(|rows| *rows <= LOGIT_ROWS));
    }
}

//! `Heartbeat`: when the engine's thread last showed that it lives. Beaten at every layer of a
//! step, so that a long step is not taken for a stall.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Beaten by one thread, read by others.
#[derive(Debug)]
pub struct Heartbeat {
    start: Instant,
    /// Milliseconds from `start` to the last beat; `IDLE` while there is nothing to do.
    last_ms: AtomicU64,
    stall: Duration,
}

const IDLE: u64 = u64::MAX;

impl Heartbeat {
    /// At rest; silence longer than `stall` while at work is a stall.
    pub fn new(stall: Duration) -> Self {
        Self { start: Instant::now(), last_ms: AtomicU64::new(IDLE), stall }
    }

    /// The thread is at work.
    pub fn beat(&self) {
        let now = self.start.elapsed().as_millis() as u64;
        self.last_ms.store(now, Ordering::Relaxed);
    }

    /// The thread waits for work and may be silent.
    pub(crate) fn rest(&self) {
        self.last_ms.store(IDLE, Ordering::Relaxed);
    }

    /// How long the thread has been silent at work, if that is too long.
    pub(crate) fn stalled(&self) -> Option<Duration> {
        let last_ms = self.last_ms.load(Ordering::Relaxed);
        if last_ms == IDLE {
            return None;
        }
        let silent = self.start.elapsed().saturating_sub(Duration::from_millis(last_ms));
        (silent > self.stall).then_some(silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_a_stall_at_work_only() {
        let never = Heartbeat::new(Duration::from_hours(1));
        never.beat();
        assert_eq!(never.stalled(), None);

        let mut heartbeat = Heartbeat::new(Duration::from_secs(10));
        heartbeat.start = Instant::now().checked_sub(Duration::from_mins(1)).unwrap();
        assert_eq!(heartbeat.stalled(), None, "at rest");
        heartbeat.last_ms.store(1000, Ordering::Relaxed);
        assert!(heartbeat.stalled().unwrap() >= Duration::from_secs(59));
        heartbeat.beat();
        assert_eq!(heartbeat.stalled(), None, "after a beat");
        heartbeat.last_ms.store(1000, Ordering::Relaxed);
        heartbeat.rest();
        assert_eq!(heartbeat.stalled(), None, "at rest again");
    }
}

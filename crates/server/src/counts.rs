//! `Counts`: what happened to requests as HTTP sees them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use axum::http::StatusCode;

/// Statuses with a count of their own; the last is for all others.
const STATUSES: [u16; 15] =
    [200, 204, 400, 401, 403, 404, 405, 408, 413, 415, 429, 431, 500, 503, 0];

/// A number that grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Written from any thread.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Requests whose work panicked.
    pub(crate) panics: Counter,
    /// Requests that waited too long for their turn.
    pub(crate) queue_timeouts: Counter,
    /// Requests whose whole time was over.
    pub(crate) run_timeouts: Counter,
    /// Answers that were read too slowly.
    pub(crate) slow_readers: Counter,
    answers: [Counter; STATUSES.len()],
}

impl Counts {
    /// An answer has begun.
    pub(crate) fn answered(&self, status: StatusCode) {
        let found = STATUSES.iter().position(|known| *known == status.as_u16());
        self.answers[found.unwrap_or(STATUSES.len() - 1)].add();
    }

    /// Answers by status; `other` for those without a count of their own.
    pub(crate) fn answers(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        let name = |status: &u16| {
            if *status == 0 { "other".to_owned() } else { status.to_string() }
        };
        STATUSES.iter().zip(&self.answers).map(move |(status, count)| (name(status), count.get()))
    }

    /// The others: name, meaning, value.
    pub(crate) fn troubles(&self) -> [(&'static str, &'static str, u64); 4] {
        [
            ("kvant:panics_total", "Requests whose work panicked.", self.panics.get()),
            (
                "kvant:queue_timeouts_total",
                "Requests that waited too long for their turn.",
                self.queue_timeouts.get(),
            ),
            (
                "kvant:run_timeouts_total",
                "Requests whose whole time was over.",
                self.run_timeouts.get(),
            ),
            (
                "kvant:slow_readers_total",
                "Answers cut because they were read too slowly.",
                self.slow_readers.get(),
            ),
        ]
    }
}

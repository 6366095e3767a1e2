//! `Usage`: how much of its quota a key has used.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::ApiError;

/// What a key may ask for; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Requests in a minute; a whole minute's may come at once.
    pub per_minute: u32,
    /// Requests at the same time, until their answers are complete.
    pub concurrent: u32,
}

/// Counts of one key.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    running: AtomicU32,
    /// When all of the requests so far would have come if they had come evenly.
    even: Mutex<Option<Instant>>,
}

/// A place among a key's running requests, given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    usage: Arc<Usage>,
}

impl Usage {
    /// A place for one request more, or 429 with the time after which there is one.
    pub(crate) fn enter(usage: &Arc<Self>, quota: Quota) -> Result<Slot, ApiError> {
        let running = usage.running.fetch_add(1, Ordering::Relaxed);
        let slot = Slot { usage: usage.clone() };
        if quota.concurrent > 0 && running >= quota.concurrent {
            let most = quota.concurrent;
            let message = format!("this key has {most} requests under way, which is its limit");
            return Err(ApiError::limited("concurrency_limit", message));
        }
        if quota.per_minute > 0
            && let Err(wait) = usage.count(quota.per_minute, Instant::now())
        {
            let most = quota.per_minute;
            let message = format!("this key has made its {most} requests of a minute");
            return Err(ApiError::limited("rate_limit", message).retry_after(wait));
        }
        Ok(slot)
    }

    /// Counts a request, or says how long until it may come.
    fn count(&self, per_minute: u32, now: Instant) -> Result<(), Duration> {
        let minute = Duration::from_mins(1);
        let mut even = self.even.lock().unwrap_or_else(PoisonError::into_inner);
        let next = even.unwrap_or(now).max(now) + minute / per_minute;
        let wait = next.saturating_duration_since(now + minute);
        if wait > Duration::ZERO {
            return Err(wait);
        }
        *even = Some(next);
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.usage.running.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minutes_requests_may_come_at_once_and_then_evenly() {
        let usage = Usage::default();
        let start = Instant::now();
        for _ in 0..6 {
            assert_eq!(usage.count(6, start), Ok(()));
        }
        assert_eq!(usage.count(6, start), Err(Duration::from_secs(10)));
        let later = start + Duration::from_secs(9);
        assert_eq!(usage.count(6, later), Err(Duration::from_secs(1)), "a refusal costs nothing");
        let later = start + Duration::from_secs(10);
        assert_eq!(usage.count(6, later), Ok(()));
        assert_eq!(usage.count(6, later), Err(Duration::from_secs(10)));
    }

    #[test]
    fn places_are_given_back() {
        let usage = Arc::<Usage>::default();
        let quota = Quota { per_minute: 0, concurrent: 2 };
        let first = Usage::enter(&usage, quota).unwrap();
        let _second = Usage::enter(&usage, quota).unwrap();
        for _ in 0..3 {
            assert_eq!(Usage::enter(&usage, quota).unwrap_err().code, Some("concurrency_limit"));
        }
        drop(first);
        assert!(Usage::enter(&usage, quota).is_ok());
    }
}

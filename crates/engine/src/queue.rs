//! `Queue`: how many requests and prompt tokens wait. Counters only, so that a rejection needs no
//! thread but the caller's.

use std::sync::{Arc, Mutex, PoisonError};

use crate::request::Rejected;

/// Counts of what waits, with their bounds.
#[derive(Debug)]
pub(crate) struct Queue {
    requests: usize,
    tokens: usize,
    waiting: Mutex<Waiting>,
}

/// What waits now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) requests: usize,
    pub(crate) tokens: usize,
}

/// One request's part of the queue, given back when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    queue: Arc<Queue>,
    tokens: usize,
}

impl Queue {
    /// At most so many requests with so many prompt tokens together.
    pub(crate) fn new(requests: usize, tokens: usize) -> Arc<Self> {
        Arc::new(Self { requests, tokens, waiting: Mutex::default() })
    }

    /// Takes a ticket for a prompt, or says how full the queue is.
    pub(crate) fn enter(queue: &Arc<Self>, tokens: usize) -> Result<Ticket, Rejected> {
        let mut waiting = queue.lock();
        if waiting.requests >= queue.requests || waiting.tokens + tokens > queue.tokens {
            return Err(Rejected::QueueFull {
                waiting_requests: waiting.requests,
                waiting_tokens: waiting.tokens,
            });
        }
        waiting.requests += 1;
        waiting.tokens += tokens;
        Ok(Ticket { queue: queue.clone(), tokens })
    }

    /// What waits now.
    pub(crate) fn waiting(&self) -> Waiting {
        *self.lock()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut waiting = self.queue.lock();
        waiting.requests -= 1;
        waiting.tokens -= self.tokens;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_full_at_either_bound_and_not_before() {
        let queue = Queue::new(2, 10);
        let first = Queue::enter(&queue, 9).unwrap();
        let full = Queue::enter(&queue, 2).unwrap_err();
        assert_eq!(full, Rejected::QueueFull { waiting_requests: 1, waiting_tokens: 9 });
        let second = Queue::enter(&queue, 1).unwrap();
        assert!(Queue::enter(&queue, 0).is_err(), "a third request");
        assert_eq!(queue.waiting(), Waiting { requests: 2, tokens: 10 });
        drop(first);
        assert_eq!(queue.waiting(), Waiting { requests: 1, tokens: 1 });
        drop(second);
        assert_eq!(queue.waiting(), Waiting::default());
    }
}

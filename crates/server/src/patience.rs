//! `Deadlines`: until when a request's sequences must have begun and ended.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::time::{Sleep, sleep_until};

use crate::error::ApiError;
use crate::options::Patience;

/// Timers of one request.
#[derive(Debug)]
pub(crate) struct Deadlines {
    queue: Option<Timer>,
    whole: Option<Timer>,
}

#[derive(Debug)]
struct Timer {
    time: Duration,
    sleep: Pin<Box<Sleep>>,
}

/// What has run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Late {
    /// The time to wait.
    Queue(Duration),
    /// The time for all of it.
    Whole(Duration),
}

impl Deadlines {
    pub(crate) fn new(arrived: Instant, patience: Patience) -> Self {
        let timer = |time: Option<Duration>| {
            let time = time?;
            let sleep = Box::pin(sleep_until((arrived + time).into()));
            Some(Timer { time, sleep })
        };
        Self { queue: timer(patience.queue), whole: timer(patience.whole) }
    }

    /// Whether a time is over. `waits` says whether a sequence still waits for its turn.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, waits: impl Fn() -> bool) -> Option<Late> {
        if let Some(time) = fired(&mut self.whole, cx) {
            return Some(Late::Whole(time));
        }
        let time = fired(&mut self.queue, cx)?;
        self.queue = None;
        waits().then_some(Late::Queue(time))
    }
}

fn fired(timer: &mut Option<Timer>, cx: &mut Context<'_>) -> Option<Duration> {
    let timer = timer.as_mut()?;
    match timer.sleep.as_mut().poll(cx) {
        Poll::Ready(()) => Some(timer.time),
        Poll::Pending => None,
    }
}

impl From<Late> for ApiError {
    fn from(late: Late) -> Self {
        match late {
            Late::Queue(time) => {
                let seconds = time.as_secs_f64();
                let message = format!("its turn did not come within {seconds} s; try again later");
                Self::unavailable("queue_timeout", message)
            }
            Late::Whole(time) => {
                let seconds = time.as_secs_f64();
                let message = format!("it was not complete within {seconds} s; ask for less");
                Self::refused(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
            }
        }
    }
}

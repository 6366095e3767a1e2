//! `Trace`: what a request took, for whoever collects traces. Where they go is not known here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use axum::http::HeaderMap;
use tokio::sync::mpsc;

use crate::context::SequenceTimes;

/// Traces that may wait for the collector; more are counted and lost.
const WAITING: usize = 1024;

/// One request that is over.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Whose part it is.
    pub parent: Parent,
    /// As in `x-request-id`.
    pub request_id: String,
    /// The path that was asked.
    pub route: String,
    /// When it came.
    pub started: SystemTime,
    /// Until its last byte.
    pub took: Duration,
    /// `None` if the client left before it had all.
    pub status: Option<u16>,
    /// What its sequences took.
    pub sequences: Vec<SequenceTimes>,
}

/// The trace that a client began, from its `traceparent`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parent {
    /// Of the whole trace; none if the client sent none.
    pub trace: Option<u128>,
    /// Of the client's span.
    pub span: Option<u64>,
}

/// Where traces go.
#[derive(Clone, Debug)]
pub struct TraceSink {
    sender: mpsc::Sender<Trace>,
    lost: Arc<AtomicU64>,
}

impl TraceSink {
    /// A sink, and what comes out of it.
    pub fn new() -> (Self, mpsc::Receiver<Trace>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self { sender, lost: Arc::default() }, receiver)
    }

    /// Never waits: a collector that is slow or away must not slow the server.
    pub(crate) fn send(&self, trace: Trace) {
        if self.sender.try_send(trace).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Traces that found no place.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }
}

impl Parent {
    /// Of `traceparent: 00-TRACE-SPAN-FLAGS`; anything else is none.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let value = headers.get("traceparent").and_then(|value| value.to_str().ok());
        value.and_then(Self::read).unwrap_or_default()
    }

    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
        let lower = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if (version.len(), trace.len(), span.len()) != (2, 32, 16) || version == "ff" {
            return None;
        }
        if !(lower(version) && lower(trace) && lower(span)) || parts.next()?.len() != 2 {
            return None;
        }
        let trace = u128::from_str_radix(trace, 16).ok().filter(|trace| *trace != 0)?;
        let span = u64::from_str_radix(span, 16).ok().filter(|span| *span != 0)?;
        Some(Self { trace: Some(trace), span: Some(span) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_traceparent_is_taken() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parent = Parent::read(good).unwrap();
        assert_eq!(parent.trace, Some(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c));
        assert_eq!(parent.span, Some(0xb7ad_6b71_6920_3331));
        let zeros = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
        for wrong in ["", "00", &good[..54], &good[3..], &good.to_uppercase(), zeros] {
            assert_eq!(Parent::read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_full_sink_loses_and_counts() {
        let (sink, mut receiver) = TraceSink::new();
        let trace = Trace {
            parent: Parent::default(),
            request_id: String::new(),
            route: String::new(),
            started: SystemTime::UNIX_EPOCH,
            took: Duration::ZERO,
            status: None,
            sequences: Vec::new(),
        };
        for _ in 0..WAITING + 2 {
            sink.send(trace.clone());
        }
        assert_eq!(sink.lost(), 2);
        assert!(receiver.try_recv().is_ok());
    }
}

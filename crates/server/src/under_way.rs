//! `UnderWay`: the sequences that wait or compute, for whoever operates the server. It has numbers
//! and names of requests, and nothing of what they say.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use kvant_engine::Turn;
use serde_json::{Value, json};

use crate::context::RequestContext;

/// Sequences that are told of, the oldest; a list has a bound whatever the queue's is.
const TOLD: usize = 100;

/// All of a server.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    next: AtomicU64,
    /// The oldest first.
    list: Mutex<BTreeMap<u64, Arc<Seen>>>,
}

/// One sequence, as is known of it.
#[derive(Debug)]
struct Seen {
    /// `None` in tests of parts of the server.
    context: Option<Arc<RequestContext>>,
    arrived: Instant,
    prompt_tokens: usize,
    output_tokens: AtomicU32,
    turn: Turn,
}

/// A sequence's place in the list, which it leaves when the place is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    of: Arc<UnderWay>,
    key: u64,
    seen: Arc<Seen>,
}

impl UnderWay {
    /// Takes a sequence into the list.
    pub(crate) fn enter(
        of: &Arc<Self>,
        context: Option<Arc<RequestContext>>,
        arrived: Instant,
        prompt_tokens: usize,
        turn: Turn,
    ) -> Place {
        let key = of.next.fetch_add(1, Relaxed);
        let output_tokens = AtomicU32::new(0);
        let seen = Arc::new(Seen { context, arrived, prompt_tokens, output_tokens, turn });
        of.lock().insert(key, seen.clone());
        Place { of: of.clone(), key, seen }
    }

    /// The oldest of them, and how many more there are.
    pub(crate) fn told(&self) -> (Vec<Value>, usize) {
        let (oldest, more): (Vec<_>, usize) = {
            let list = self.lock();
            let oldest = list.values().take(TOLD).cloned().collect();
            (oldest, list.len().saturating_sub(TOLD))
        };
        (oldest.iter().map(|seen| seen.told()).collect(), more)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<Seen>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn told(&self) -> Value {
        let output_tokens = self.output_tokens.load(Relaxed);
        let phase = match output_tokens {
            _ if self.turn.is_waiting() => "waiting",
            0 => "prefill",
            _ => "decode",
        };
        let context = self.context.as_ref();
        json!({
            "request_id": context.map(|context| context.id.to_str().unwrap_or_default()),
            "endpoint": context.map(|context| context.path()),
            "phase": phase,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": output_tokens,
            "age_seconds": self.arrived.elapsed().as_secs_f64(),
        })
    }
}

impl Place {
    /// A token has come.
    pub(crate) fn token(&self) {
        self.seen.output_tokens.fetch_add(1, Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.lock().remove(&self.key);
    }
}

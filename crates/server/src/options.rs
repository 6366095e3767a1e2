//! What the operator may change about HTTP, and the bounds that nobody changes.

use std::time::Duration;

/// Sequences of one request at most: prompts times `n`.
pub(crate) const SEQUENCES_MAX: usize = 1024;

/// Settings of the server.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Largest body of a request, bytes; a larger one is answered 413.
    pub body_bytes: usize,
    /// How long a client may take to send its first request's head; its connection closes after it.
    pub head_time: Duration,
    /// How long a client may take to send the body; 408 after it.
    pub body_time: Duration,
    /// How long a stream may be silent before a comment shows that the server is there.
    pub keep_alive: Duration,
    /// `owned_by` of the model. Gateways that look for a known engine want `vllm` here.
    pub owned_by: String,
    /// Requests that are parsed, rendered and tokenised at the same time; others wait their turn.
    pub text_tasks: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            body_bytes: 4 << 20,
            head_time: Duration::from_secs(30),
            body_time: Duration::from_mins(1),
            keep_alive: Duration::from_secs(15),
            owned_by: "kvant".to_owned(),
            text_tasks: cores,
        }
    }
}

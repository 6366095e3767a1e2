//! What the operator may change about HTTP, and the bounds that nobody changes.

use std::time::Duration;

use crate::guide::{GuideLimits, TURNS};

/// Sequences of one request at most: prompts times `n`.
pub(crate) const SEQUENCES_MAX: usize = 1024;

/// Settings of the server.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Largest body of a request, bytes; a larger one is answered 413.
    pub body_bytes: usize,
    /// How long a client may take to send the body; 408 after it.
    pub body_time: Duration,
    /// How long a stream may be silent before a comment shows that the server is there.
    pub keep_alive: Duration,
    /// `owned_by` of the model. Gateways that look for a known engine want `vllm` here.
    pub owned_by: String,
    /// Requests that are parsed, rendered and tokenised at the same time; others wait their turn.
    pub text_tasks: usize,
    /// Bounds of what an answer can be made to be like.
    pub guide: GuideLimits,
    /// Fields that nobody knows are refused in place of reported.
    pub strict: bool,
    /// Connections, whatever they carry.
    pub connections: ConnectionOptions,
    /// How long a request may take.
    pub patience: Patience,
    /// What one request may ask for.
    pub bounds: Bounds,
}

impl ServerOptions {
    /// Threads for work that may block which a runtime needs at most. What is more waits for its
    /// turn anyway; without a bound each burst would leave threads with stacks and heaps behind.
    pub fn blocking_threads(&self) -> usize {
        self.text_tasks.max(1) + TURNS
    }
}

impl Default for ServerOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            body_bytes: 4 << 20,
            body_time: Duration::from_mins(1),
            keep_alive: Duration::from_secs(15),
            owned_by: "kvant".to_owned(),
            text_tasks: cores,
            guide: GuideLimits::default(),
            strict: false,
            connections: ConnectionOptions::default(),
            patience: Patience::default(),
            bounds: Bounds::default(),
        }
    }
}

/// Bounds of connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionOptions {
    /// Open at the same time; more wait in the system's queue.
    pub most: usize,
    /// How long a client may take to send its first request's head; its connection closes after it.
    pub head_time: Duration,
    /// How long a connection may wait for its next request.
    pub idle_time: Duration,
    /// How long a client may take nothing of an answer that is there.
    pub write_time: Duration,
    /// Largest head of a request, bytes; a larger one is answered 431.
    pub head_bytes: usize,
    /// Lines of a head; more are answered 431.
    pub head_lines: usize,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            most: 4096,
            head_time: Duration::from_secs(30),
            // Longer than the pools of usual clients, so that they close first.
            idle_time: Duration::from_mins(3),
            write_time: Duration::from_secs(30),
            head_bytes: 64 << 10,
            head_lines: 100,
        }
    }
}

/// How long a request may take; `None` is for ever. A client may ask for less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    /// From arrival to the engine's first work on it.
    pub queue: Option<Duration>,
    /// From arrival to the end of the answer.
    pub whole: Option<Duration>,
}

/// What one request may ask for; more is answered 400.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Answers to a prompt: `n` and `best_of`.
    pub choices: usize,
    /// Prompts in a list.
    pub prompts: usize,
    /// Messages of a chat.
    pub messages: usize,
    /// Strings in `stop`.
    pub stops: usize,
    /// Entries of `logit_bias`.
    pub biases: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { choices: 128, prompts: 1024, messages: 4096, stops: 16, biases: 1024 }
    }
}

//! `Handle`: the engine's door for other threads: submit, watch, drain. Nothing here waits for the
//! engine's thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use kvant_kv_cache::PAGE_TOKENS;
use tokio::sync::mpsc;

use crate::figures::{Figures, Gauges};
use crate::heartbeat::Heartbeat;
use crate::queue::{Queue, Ticket};
use crate::request::{GenerateRequest, Rejected, TokenEvent};
use crate::step::early_tokens;

/// Bounds that hold for the life of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest prompt and output together.
    pub context_tokens: usize,
    /// Token ids are below it.
    pub vocab: usize,
    /// Sequences that compute at the same time.
    pub sequences: usize,
    /// Requests that may wait.
    pub waiting_requests: usize,
    /// Prompt tokens that may wait; at least one context.
    pub waiting_tokens: usize,
    /// Prompt tokens that are held in 16 bits while in prefill.
    pub staging_tokens: usize,
    /// Tokens of a sequence that nobody has read yet; with one more it is given up.
    pub unread_tokens: usize,
}

impl Limits {
    /// Tokens of a prompt of this length that its last one reads packed; 0 if staging holds all.
    pub fn early_tokens(&self, prompt: usize) -> usize {
        early_tokens(prompt, self.staging_tokens / PAGE_TOKENS)
    }
}

/// How the engine's thread is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Idle, or at work with a fresh heartbeat.
    Ok,
    /// No new requests are taken; running ones go on.
    Draining,
    /// At work, but without a heartbeat for so long.
    Stalled(Duration),
    /// The thread has ended; the text says why.
    Dead(String),
}

/// What the engine's thread is told. [`Queue`] bounds what waits, so the channel need not be.
#[derive(Debug)]
pub(crate) struct Submission {
    /// Within the limits.
    pub(crate) request: GenerateRequest,
    /// Where its events go; closed when the client has left.
    pub(crate) events: mpsc::Sender<TokenEvent>,
    /// Given back when the sequence is admitted or gone.
    pub(crate) ticket: Arc<Ticket>,
    /// When it came.
    pub(crate) at: Instant,
}

/// The door; clones share it. The engine's thread ends when all are gone and its work is done.
#[derive(Clone, Debug)]
pub struct Handle {
    submissions: mpsc::UnboundedSender<Submission>,
    shared: Arc<Shared>,
}

/// What the handles and the engine's thread both see.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) figures: Figures,
    pub(crate) heartbeat: Arc<Heartbeat>,
    queue: Arc<Queue>,
    draining: AtomicBool,
    /// Why the thread has ended.
    death: Mutex<Option<String>>,
}

impl Shared {
    pub(crate) fn new(limits: Limits, stall: Duration) -> Self {
        Self {
            limits,
            figures: Figures::default(),
            heartbeat: Arc::new(Heartbeat::new(stall)),
            queue: Queue::new(limits.waiting_requests, limits.waiting_tokens),
            draining: AtomicBool::new(false),
            death: Mutex::new(None),
        }
    }

    /// The thread has ended; the first reason stays.
    pub(crate) fn die(&self, why: String) {
        let mut death = self.death.lock().unwrap_or_else(PoisonError::into_inner);
        death.get_or_insert(why);
    }

    fn death(&self) -> Option<String> {
        self.death.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Handle {
    pub(crate) fn new(submissions: mpsc::UnboundedSender<Submission>, shared: Arc<Shared>) -> Self {
        Self { submissions, shared }
    }

    /// Hands a request to the engine, or says at once why not. Dropping the stream cancels the
    /// sequence.
    pub fn submit(&self, request: GenerateRequest) -> Result<TokenStream, Rejected> {
        if self.shared.death().is_some() {
            return Err(Rejected::Dead);
        }
        if self.shared.draining.load(Ordering::Acquire) {
            return Err(Rejected::Closing);
        }
        self.check(&request)?;
        let ticket = Queue::enter(&self.shared.queue, request.prompt.len())?;
        let ticket = Arc::new(ticket);
        let (events, receiver) = mpsc::channel(self.shared.limits.unread_tokens + 1);
        let turn = Turn { ticket: Arc::downgrade(&ticket) };
        let submission = Submission { request, events, ticket, at: Instant::now() };
        self.submissions.send(submission).map_err(|_| Rejected::Dead)?;
        Ok(TokenStream { events: receiver, turn })
    }

    /// Whether a request is within the limits. `submit` checks the same.
    pub fn check(&self, request: &GenerateRequest) -> Result<(), Rejected> {
        let limits = &self.shared.limits;
        let prompt = request.prompt.len();
        if prompt == 0 {
            return Err(Rejected::Invalid("the prompt has no tokens".into()));
        }
        let pooled = request.pooling.is_some();
        let output = if pooled { 0 } else { request.stop.max_tokens as usize };
        if output == 0 && !pooled {
            return Err(Rejected::Invalid("max_tokens is 0, it must be at least 1".into()));
        }
        if prompt + output > limits.context_tokens {
            return Err(Rejected::TooLong { limit: limits.context_tokens, prompt, output });
        }
        let biased = request.sampling.logit_bias.iter().map(|(token, _)| token);
        let named = request.prompt.iter().chain(biased).chain(&request.stop.stop_tokens);
        match named.copied().find(|token| *token as usize >= limits.vocab) {
            Some(token) => Err(Rejected::Invalid(format!(
                "token {token} is outside the vocabulary of {} tokens",
                limits.vocab
            ))),
            None => Ok(()),
        }
    }

    /// The bounds.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// How the engine's thread is. Never waits.
    pub fn health(&self) -> Health {
        if let Some(why) = self.shared.death() {
            return Health::Dead(why);
        }
        if let Some(silent) = self.shared.heartbeat.stalled() {
            return Health::Stalled(silent);
        }
        if self.shared.draining.load(Ordering::Acquire) {
            return Health::Draining;
        }
        Health::Ok
    }

    /// Takes no new requests from now on; running and waiting ones go on.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Release);
    }

    /// Gauges and counters as of now.
    pub fn gauges(&self) -> Gauges {
        self.shared.figures.read(&self.shared.queue)
    }
}

/// The events of one sequence. Dropping it cancels the sequence at the engine's next step.
#[derive(Debug)]
pub struct TokenStream {
    events: mpsc::Receiver<TokenEvent>,
    turn: Turn,
}

/// Whether a sequence's turn has come, for whoever has no part in its events.
#[derive(Clone, Debug)]
pub struct Turn {
    /// There while the sequence waits.
    ticket: Weak<Ticket>,
}

impl Turn {
    /// Whether the sequence waits for its first admission.
    pub fn is_waiting(&self) -> bool {
        self.ticket.strong_count() > 0
    }
}

impl TokenStream {
    /// Whether the sequence waits for its first admission.
    pub fn is_waiting(&self) -> bool {
        self.turn.is_waiting()
    }

    /// The same for another thread, while the stream is read.
    pub fn turn(&self) -> Turn {
        self.turn.clone()
    }

    /// The next event; `None` after `Done` or `Failed`, if the engine's thread is gone, or if so
    /// many events were unread that the engine has given the sequence up.
    pub async fn recv(&mut self) -> Option<TokenEvent> {
        self.events.recv().await
    }

    /// The same for a thread that may wait; not inside a tokio runtime.
    pub fn blocking_recv(&mut self) -> Option<TokenEvent> {
        self.events.blocking_recv()
    }

    /// An event that is there already.
    pub fn try_recv(&mut self) -> Option<TokenEvent> {
        self.events.try_recv().ok()
    }
}

//! `RequestContext`: what belongs to a request from its head to the last byte of its answer: its
//! name, its time, who asks, and what its sequences took. Endpoints need not pass it on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method};

use crate::error::ApiError;
use crate::ids;
use crate::options::Patience;
use crate::traces::{Parent, Trace, TraceSink};

/// A client's name for its request.
pub(crate) const REQUEST_ID: &str = "x-request-id";

/// Longest name of a request that a client may choose.
const REQUEST_ID_MAX: usize = 128;

/// Seconds that a client gives its request.
const TIMEOUT: &str = "x-kvant-timeout";

/// Longest of them.
const TIMEOUT_MAX: f64 = 86_400.0;

tokio::task_local! {
    static CURRENT: Arc<RequestContext>;
}

/// One request.
#[derive(Debug)]
pub(crate) struct RequestContext {
    pub(crate) id: HeaderValue,
    pub(crate) arrived: Instant,
    started: SystemTime,
    method: Method,
    path: String,
    parent: Parent,
    sink: Option<TraceSink>,
    progress: Mutex<Progress>,
}

/// What is known of it so far.
#[derive(Debug, Default)]
struct Progress {
    patience: Patience,
    key: Option<String>,
    status: Option<u16>,
    /// Whether the client has all of the answer.
    complete: bool,
    sequences: Vec<SequenceTimes>,
}

/// What one sequence took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SequenceTimes {
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub output_tokens: u32,
    /// `stop`, `length`, `tool_calls`, `abort` or `error`.
    pub reason: &'static str,
    /// In the queue, if the engine has said.
    pub queued: Option<Duration>,
    /// From admission to the first token, if the engine has said.
    pub prefill: Option<Duration>,
    /// From the first token to the last, if the engine has said.
    pub decode: Option<Duration>,
}

/// The request that this task works on.
pub(crate) fn current() -> Option<Arc<RequestContext>> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Runs a request's work where `current` finds it.
pub(crate) async fn within<F: Future>(context: Arc<RequestContext>, work: F) -> F::Output {
    CURRENT.scope(context, work).await
}

impl RequestContext {
    /// Of a request that has just come. A name that is not usable is replaced.
    pub(crate) fn of(request: &Request, sink: Option<TraceSink>) -> Arc<Self> {
        let given = request.headers().get(REQUEST_ID).filter(|name| usable(name)).cloned();
        let own = || HeaderValue::from_str(&ids::fresh("req-")).expect("letters and digits");
        let path = request.uri().path();
        Arc::new(Self {
            id: given.unwrap_or_else(own),
            arrived: Instant::now(),
            started: SystemTime::now(),
            method: request.method().clone(),
            // A path is the client's; what the log has of it is bounded.
            path: path.chars().take(200).collect(),
            parent: Parent::of(request.headers()),
            sink,
            progress: Mutex::default(),
        })
    }

    /// The server's patience, or less if the client asks for less.
    pub(crate) fn limit(&self, headers: &HeaderMap, server: Patience) -> Result<(), ApiError> {
        let mut patience = server;
        if let Some(value) = headers.get(TIMEOUT) {
            let seconds = value.to_str().ok().and_then(|text| text.trim().parse::<f64>().ok());
            let seconds = seconds.filter(|seconds| *seconds > 0.0 && *seconds <= TIMEOUT_MAX);
            let Some(seconds) = seconds else {
                let message =
                    format!("{TIMEOUT} must be a number of seconds, at most {TIMEOUT_MAX}");
                return Err(ApiError::bad("invalid_header", message).of(TIMEOUT));
            };
            let asked = Duration::from_secs_f64(seconds);
            patience.whole = Some(server.whole.map_or(asked, |whole| whole.min(asked)));
        }
        self.progress().patience = patience;
        Ok(())
    }

    pub(crate) fn patience(&self) -> Patience {
        self.progress().patience
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn came_with_key(&self, name: Option<String>) {
        self.progress().key = name;
    }

    pub(crate) fn answered(&self, status: u16) {
        self.progress().status = Some(status);
    }

    pub(crate) fn completed(&self) {
        self.progress().complete = true;
    }

    pub(crate) fn took(&self, times: SequenceTimes) {
        self.progress().sequences.push(times);
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what became of the request into the log and the trace.
    fn over(&self) {
        let progress = std::mem::take(&mut *self.progress());
        let seconds = self.arrived.elapsed().as_secs_f64();
        let id = self.id.to_str().unwrap_or_default();
        let Self { method, path, .. } = self;
        let key = progress.key.as_deref();
        let status = progress.status;
        let left = !progress.complete;
        let prompt_tokens: usize = progress.sequences.iter().map(|one| one.prompt_tokens).sum();
        let output_tokens: u32 = progress.sequences.iter().map(|one| one.output_tokens).sum();
        if *method == Method::POST {
            tracing::info!(
                id, %method, path, status, key, seconds, prompt_tokens, output_tokens, left,
                "answered"
            );
        } else {
            tracing::debug!(id, %method, path, status, key, seconds, left, "answered");
        }
        if let Some(sink) = self.sink.as_ref().filter(|_| *method == Method::POST) {
            sink.send(Trace {
                parent: self.parent,
                request_id: id.to_owned(),
                route: path.clone(),
                started: self.started,
                took: self.arrived.elapsed(),
                status: if left { None } else { status },
                sequences: progress.sequences,
            });
        }
    }
}

/// Ends a request when dropped, whatever way that comes.
#[derive(Debug)]
pub(crate) struct Over(pub(crate) Arc<RequestContext>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.over();
    }
}

fn usable(name: &HeaderValue) -> bool {
    let bytes = name.as_bytes();
    (1..=REQUEST_ID_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

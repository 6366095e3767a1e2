//! HTTP: the OpenAI dialect over an engine's handle. Knows JSON, text and token ids; never tensors,
//! pages or model families.

mod access;
mod admin;
mod answer;
mod anthropic;
mod blocks;
mod body;
mod bounds;
mod chat;
mod completions;
mod connection;
mod context;
mod converse;
mod counts;
mod deltas;
mod door;
mod embeddings;
mod error;
mod front;
mod generate;
mod guide;
mod histogram;
mod ids;
mod isolate;
mod json;
mod likeliest;
mod messages;
mod metrics;
mod models;
mod openapi;
mod options;
mod order;
mod page;
mod patience;
mod prompt_scores;
mod prompts;
mod refused;
mod render;
mod responses;
mod routes;
mod sampling;
mod sequence;
mod sequences;
mod served;
mod shape;
mod sse;
mod status;
mod stopwatch;
mod style;
mod submit;
mod thinking;
mod tls;
mod tokenize;
mod tools;
mod traces;
mod under_way;
mod unknown;
mod watchdog;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use kvant_engine::Handle;
use kvant_text::{ChatTemplate, Tokenizer};
use tokio::sync::watch;

use door::Door;
use served::Served;

pub use access::{Access, Keys, Quota, hash_line};
pub use context::SequenceTimes;
pub use door::Listening;
pub use embeddings::{EmbeddingCard, Shorter};
pub use guide::GuideLimits;
pub use options::{Bounds, ConnectionOptions, Patience, ServerOptions};
pub use style::ChatOptions;
pub use tls::Tls;
pub use tools::ToolLimits;
pub use traces::{Parent, Trace, TraceSink};
pub use watchdog::{Fault, watch as watch_engine};

/// How often a server that goes down looks whether all is answered.
const IDLE_POLL: Duration = Duration::from_millis(20);

/// How long connections may take, once all is answered, to send what they still have.
const LAST_BYTES: Duration = Duration::from_secs(5);

/// What a server serves.
#[derive(Clone, Debug)]
pub struct App {
    /// The model as clients see it.
    pub model: ModelCard,
    /// The engine.
    pub handle: Handle,
    /// The model's words.
    pub tokenizer: Arc<Tokenizer>,
    /// Without one, chat is refused.
    pub template: Option<Arc<ChatTemplate>>,
    /// Settings.
    pub options: ServerOptions,
    /// Settings of chat.
    pub chat: ChatOptions,
    /// Who may ask.
    pub access: Arc<Access>,
    /// Origins whose pages may ask from a browser; `*` is any.
    pub origins: Vec<String>,
    /// With it, connections over TCP speak TLS.
    pub tls: Option<Arc<Tls>>,
    /// Where traces go, if anywhere.
    pub traces: Option<TraceSink>,
}

/// The model as clients see it.
#[derive(Clone, Debug)]
pub struct ModelCard {
    /// Its name; requests name it or nothing.
    pub id: String,
    /// When it was loaded, seconds since 1970.
    pub created: u64,
    /// Prompt and output together at most, tokens.
    pub max_model_len: usize,
    /// Tokens that end an answer.
    pub eos_tokens: Vec<u32>,
    /// How its keys and values are kept.
    pub cache: CacheCard,
    /// Where it computes.
    pub device: String,
    /// What it takes.
    pub memory: MemoryCard,
    /// How its embeddings are made.
    pub embedding: EmbeddingCard,
}

/// Bytes that are taken beside the pages of the cache.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryCard {
    /// Weights.
    pub weights: u64,
    /// Activations, logits and buffers of a step.
    pub workspace: u64,
    /// 16-bit keys and values of each sequence's newest tokens.
    pub tails: u64,
    /// 16-bit keys and values of prompts in prefill.
    pub staging: u64,
}

/// How keys and values are kept, for whoever wants to know whether they are quantized.
#[derive(Clone, Debug, Default)]
pub struct CacheCard {
    /// One token of a full page, all layers.
    pub bytes_per_token: u64,
    /// One number of a full page, scales included.
    pub bits_per_element: f64,
    /// Runs of layers: which, format, reason.
    pub layers: Vec<String>,
}

/// Serves until `shutdown` is over and the requests under way are answered. In between `/health` is
/// 503 and new requests are refused with 503; the listener closes when all is answered.
pub async fn run(
    listening: impl Into<Listening>,
    app: App,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let served = Arc::new(Served::new(app));
    let door = Door {
        router: routes::router(served.clone()),
        options: served.app.options.connections,
        tls: served.app.tls.clone(),
    };
    let (close, closed) = watch::channel(false);
    let serving = door.serve(listening.into(), closed);
    let stopping = async move {
        shutdown.await;
        served.app.handle.drain();
        until_idle(&served).await;
        let _ = close.send(true);
        tokio::time::sleep(LAST_BYTES).await;
    };
    tokio::select! {
        () = serving => {}
        () = stopping => {}
    }
}

async fn until_idle(served: &Served) {
    // The first look is later too: a request may just have passed the door.
    tokio::time::sleep(IDLE_POLL).await;
    while !served.metrics.is_idle() {
        tokio::time::sleep(IDLE_POLL).await;
    }
}

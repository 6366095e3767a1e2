//! HTTP: the OpenAI dialect over an engine's handle. Knows JSON, text and token ids; never tensors,
//! pages or model families.

mod body;
mod chat;
mod completions;
mod connection;
mod error;
mod generate;
mod histogram;
mod ids;
mod json;
mod messages;
mod metrics;
mod models;
mod options;
mod order;
mod prompts;
mod refused;
mod routes;
mod sampling;
mod sequence;
mod served;
mod sse;
mod status;
mod stopwatch;
mod submit;
mod tokenize;
mod wire;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kvant_engine::Handle;
use kvant_text::{ChatTemplate, Tokenizer};
use tokio::net::TcpListener;

use connection::Connections;
use served::Served;

pub use options::ServerOptions;

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
    listener: TcpListener,
    app: App,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let served = Arc::new(Served::new(app));
    let options = &served.app.options;
    let listener = Connections { listener, head_time: options.head_time };
    let (idle, mut is_idle) = tokio::sync::watch::channel(false);
    let router = routes::router(served.clone());
    let stop = async move {
        shutdown.await;
        served.app.handle.drain();
        until_idle(&served).await;
        let _ = idle.send(true);
    };
    let serving = axum::serve(listener, router).with_graceful_shutdown(stop);
    let last_bytes = async move {
        // An error would mean that the server has ended first.
        let _ = is_idle.wait_for(|idle| *idle).await;
        tokio::time::sleep(LAST_BYTES).await;
    };
    tokio::select! {
        result = serving => result,
        () = last_bytes => Ok(()),
    }
}

async fn until_idle(served: &Served) {
    // The first look is later too: a request may just have passed the door.
    tokio::time::sleep(IDLE_POLL).await;
    while !served.metrics.is_idle() {
        tokio::time::sleep(IDLE_POLL).await;
    }
}

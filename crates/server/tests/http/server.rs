//! `Server`: a started server with a scripted engine on a free port.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use kvant_engine::{Engine, EngineOptions, Gauges, Handle};
use kvant_server::{
    App, CacheCard, ChatOptions, EmbeddingCard, Listening, MemoryCard, ModelCard, ServerOptions,
};
use kvant_text::{ChatTemplate, TemplateTokens, Tokenizer};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::script::{Script, Scripted};

/// The model's name; it has a slash, as many have.
pub(crate) const MODEL: &str = "test/echo";

/// Longest prompt and output together.
pub(crate) const CONTEXT: usize = 256;

/// The tokenizer's `<|im_end|>`.
pub(crate) const EOS: u32 = 2;

/// Requests that may wait.
pub(crate) const WAITING: usize = 8;

const TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'assistant' %}\
    {{ raise_exception('no answers here') }}{% endif %}{{ m.content }}{% endfor %}";

/// A started server; dropping it ends it.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) handle: Handle,
    pub(crate) script: Arc<Script>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    stop: Arc<Notify>,
    pub(crate) serving: JoinHandle<()>,
    /// Ends with the server.
    _runtime: Runtime,
}

impl Server {
    /// With what the tests need not say.
    pub(crate) fn start() -> Self {
        Self::with(|_, _| {})
    }

    /// With changes to the engine's options and the app.
    pub(crate) fn with(change: impl FnOnce(&mut EngineOptions, &mut ServerOptions)) -> Self {
        Self::with_app(change, |_| {})
    }

    /// With a change to the whole app.
    pub(crate) fn with_app(
        change: impl FnOnce(&mut EngineOptions, &mut ServerOptions),
        adapt: impl FnOnce(&mut App),
    ) -> Self {
        let bound = async || {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            (listener.local_addr().unwrap().to_string(), Listening::Tcp(listener))
        };
        Self::listening(bound, change, adapt)
    }

    /// On a unix socket, whose buffers are small and of a fixed size.
    #[cfg(unix)]
    pub(crate) fn on_socket(change: impl FnOnce(&mut EngineOptions, &mut ServerOptions)) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, SeqCst));
        let path = std::env::temp_dir().join(format!("kvant-test-{name}.sock"));
        let bound = async || {
            let listener = tokio::net::UnixListener::bind(&path).unwrap();
            (path.to_str().unwrap().to_owned(), Listening::Unix(listener))
        };
        Self::listening(bound, change, |_| {})
    }

    fn listening(
        bound: impl AsyncFnOnce() -> (String, Listening),
        change: impl FnOnce(&mut EngineOptions, &mut ServerOptions),
        adapt: impl FnOnce(&mut App),
    ) -> Self {
        let mut engine = EngineOptions {
            sequences: 4,
            step_tokens: 64,
            waiting_requests: WAITING,
            waiting_tokens: 4096,
            context_tokens: CONTEXT,
            cache_pages: 64,
            staging_tokens: 1024,
            vocab: 2048,
            unread_tokens: 1024,
            stall: Duration::from_mins(1),
        };
        let mut options = ServerOptions::default();
        change(&mut engine, &mut options);
        let script = Arc::new(Script::default());
        let handle = Engine::start(Scripted(script.clone()), engine);
        let file =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny-llama-1m/tokenizer.json");
        let tokenizer = Arc::new(Tokenizer::from_json_file(Path::new(file)).unwrap());
        let template = ChatTemplate::new(TEMPLATE, TemplateTokens::default()).unwrap();
        let mut app = App {
            model: ModelCard {
                id: MODEL.to_owned(),
                created: 1_700_000_000,
                max_model_len: CONTEXT,
                eos_tokens: vec![EOS],
                device: "cpu".to_owned(),
                memory: MemoryCard::default(),
                embedding: EmbeddingCard { width: 4, ..EmbeddingCard::default() },
                cache: CacheCard { bytes_per_token: 96, bits_per_element: 6.5, layers: Vec::new() },
            },
            handle: handle.clone(),
            tokenizer: tokenizer.clone(),
            template: Some(Arc::new(template)),
            options,
            chat: ChatOptions::default(),
            access: Arc::default(),
            origins: Vec::new(),
            tls: None,
            traces: None,
        };
        adapt(&mut app);
        let runtime = Runtime::new().unwrap();
        let (address, listener) = runtime.block_on(bound());
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        let shutdown = async move { stopped.notified().await };
        let serving = runtime.spawn(kvant_server::run(listener, app, shutdown));
        Self { address, handle, script, tokenizer, stop, serving, _runtime: runtime }
    }

    /// As SIGTERM does.
    pub(crate) fn shut_down(&self) {
        self.stop.notify_one();
    }

    /// Waits until the engine's gauges are as wanted; panics if they are not within the time.
    pub(crate) fn wait_for(&self, what: &str, within: Duration, wanted: impl Fn(&Gauges) -> bool) {
        let start = Instant::now();
        while !wanted(&self.handle.gauges()) {
            let gauges = self.handle.gauges();
            assert!(start.elapsed() < within, "{what}: not within {within:?}: {gauges:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Lets the engine's thread go on, so that it can end.
        self.script.hold.store(false, SeqCst);
        self.serving.abort();
        // Where it listened on a path.
        let _ = std::fs::remove_file(&self.address);
    }
}

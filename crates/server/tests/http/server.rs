//! `Server`: a started server with a scripted engine on a free port.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvant_engine::{Engine, EngineOptions, Gauges, Handle};
use kvant_server::{App, CacheCard, ModelCard, ServerOptions};
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

const TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'tool' %}\
    {{ raise_exception('no tools here') }}{% endif %}{{ m.content }}{% endfor %}";

/// A started server; dropping it ends it.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) handle: Handle,
    pub(crate) script: Arc<Script>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    stop: Arc<Notify>,
    pub(crate) serving: JoinHandle<std::io::Result<()>>,
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
        let mut engine = EngineOptions {
            sequences: 4,
            step_tokens: 64,
            waiting_requests: WAITING,
            waiting_tokens: 4096,
            context_tokens: CONTEXT,
            cache_pages: 64,
            staging_tokens: 1024,
            vocab: 2048,
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
                cache: CacheCard { bytes_per_token: 96, bits_per_element: 6.5, layers: Vec::new() },
            },
            handle: handle.clone(),
            tokenizer: tokenizer.clone(),
            template: Some(Arc::new(template)),
            options,
        };
        adapt(&mut app);
        let runtime = Runtime::new().unwrap();
        let bound = tokio::net::TcpListener::bind("127.0.0.1:0");
        let listener = runtime.block_on(bound).unwrap();
        let address = listener.local_addr().unwrap().to_string();
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
        self.script.hold.store(false, std::sync::atomic::Ordering::SeqCst);
        self.serving.abort();
    }
}

//! `kvant serve`: binds, loads, serves, and goes down in good order.

use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use kvant_engine::{Handle, build_name};
use kvant_server::{App, CacheCard, ModelCard, ServerOptions};

use crate::cli::ServeArgs;
use crate::config::{Config, ServerConfig};
use crate::load::{self, Opened};
use crate::words::Words;

pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    let more = [("--host", "server.host", &args.host), ("--port", "server.port", &args.port)];
    let config = args.settings.config_with(&more)?;
    // Before the model is loaded, so that a busy port costs no time.
    let listener = bind(&config.server)?;
    load::prepare(&config, false)?;
    let opened = load::open(&config)?;
    let (bytes, dense) = (opened.facts.cache_bytes_per_token, opened.facts.dense_bytes_per_token);
    tracing::info!("cache: {bytes} bytes a token, {dense} in 16 bits; by layer:");
    for line in opened.facts.cache_table() {
        tracing::info!("cache: {line}");
    }
    tracing::info!("device: {}; this build has code for {}", opened.device, build_name());
    tracing::info!("memory plan: {}", opened.plan);
    // A large vocabulary takes one thread as long as a small model's weights take all of them.
    let (words, handle) = std::thread::scope(|scope| {
        let words = scope.spawn(|| Words::load(&opened.files));
        let handle = opened.start(&config);
        (words.join().unwrap_or_else(|panic| resume_unwind(panic)), handle)
    });
    let (words, handle) = (words?, handle?);
    let app = app(&config, &opened, words, handle.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("cannot start the threads of the server")?;
    let result = runtime.block_on(serve(listener, app, handle, config.server.drain_seconds));
    // Whatever still runs has had its time.
    runtime.shutdown_background();
    result
}

fn bind(server: &ServerConfig) -> Result<TcpListener> {
    let ServerConfig { host, port, .. } = server;
    TcpListener::bind((host.trim_matches(['[', ']']), *port)).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => {
            anyhow!("port {port} of {host} is in use; choose another with --port")
        }
        ErrorKind::PermissionDenied => {
            anyhow!("port {port} of {host} is not permitted; choose one above 1023 with --port")
        }
        _ => anyhow!("cannot listen on {host} port {port}: {error}; check --host"),
    })
}

fn app(config: &Config, opened: &Opened, words: Words, handle: Handle) -> App {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    App {
        model: ModelCard {
            id: opened.facts.name.clone(),
            created: now.as_secs(),
            max_model_len: handle.limits().context_tokens,
            eos_tokens: opened.files.eos_tokens(),
            cache: CacheCard {
                bytes_per_token: opened.facts.cache_bytes_per_token,
                bits_per_element: opened.facts.cache_bits_per_element(),
                layers: opened.facts.cache_table(),
            },
        },
        handle,
        tokenizer: words.tokenizer,
        template: words.template,
        options: ServerOptions { body_bytes: config.server.body_bytes, ..ServerOptions::default() },
    }
}

async fn serve(listener: TcpListener, app: App, handle: Handle, drain_seconds: u64) -> Result<()> {
    listener.set_nonblocking(true).context("cannot use the listening socket")?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let address = listener.local_addr()?;
    let mut signals = Signals::new()?;
    let stop = Arc::new(tokio::sync::Notify::new());
    let stopped = stop.clone();
    let server = kvant_server::run(listener, app, async move { stopped.notified().await });
    let server = tokio::spawn(server);
    writeln!(std::io::stdout(), "listening on http://{address}")?;
    signals.next().await;
    tracing::info!("going down: running requests may finish within {drain_seconds} s");
    handle.drain();
    stop.notify_one();
    tokio::select! {
        result = server => result?.context("the server has failed"),
        () = tokio::time::sleep(Duration::from_secs(drain_seconds)) => {
            tracing::warn!("requests were still running after {drain_seconds} s");
            Ok(())
        }
        () = signals.next() => Ok(()),
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            #[cfg(unix)]
            terminate: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?,
        })
    }

    /// The next of either.
    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }
}

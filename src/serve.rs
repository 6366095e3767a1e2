//! `kvant serve`: binds, loads, serves, and goes down in good order.

mod guards;
mod listen;
mod signals;
mod telemetry;

use std::io::Write;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use kvant_engine::{Handle, build_name};
use kvant_server::{
    App, Bounds, CacheCard, ChatOptions, ConnectionOptions, GuideLimits, MemoryCard, ModelCard,
    Patience, ServerOptions, ToolLimits, TraceSink,
};
use kvant_text::{GrammarLimits, Tokenizer};

use crate::cli::ServeArgs;
use crate::config::{Config, GuideConfig, LimitsConfig, LoadFormat, ServerConfig};
use crate::load::{self, Opened};
use crate::words::Words;
use crate::{plan, pooling};
use guards::Guards;
use listen::Place;
use signals::Signals;

pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    let begin = Instant::now();
    let strict = args.strict.then(|| "true".to_owned());
    let more = [
        ("--host", "server.host", &args.host),
        ("--port", "server.port", &args.port),
        ("--strict", "server.strict", &strict),
        ("--tool-parser", "chat.tool_parser", &args.tool_parser),
        ("--reasoning-parser", "chat.reasoning_parser", &args.reasoning_parser),
        ("--uds", "server.uds", &args.uds),
        ("--keys", "access.keys_file", &args.keys),
    ];
    let config = args.settings.config_with(&more)?;
    // Before the model is loaded, so that a busy port or a wrong file costs no time.
    let place = Place::take(&config.server)?;
    load::prepare(&config, false)?;
    let guards = Guards::read(&config.access)?;
    if place.is_public() && !guards.wants_keys() {
        tracing::warn!("anybody who reaches this machine may ask; set access.keys_file");
    }
    let traces = telemetry::start(&config.log.otlp_endpoint)?;
    let opened = load::open(&config)?;
    describe(&opened);
    // A large vocabulary takes one thread as long as a small model's weights take all of them.
    let (words, handle) = std::thread::scope(|scope| {
        let words = scope.spawn(|| words(&opened));
        let handle = opened.start(&config);
        (words.join().unwrap_or_else(|panic| resume_unwind(panic)), handle)
    });
    let (words, handle) = (words?, handle?);
    watch(&config.server, handle.clone());
    let app = app(&config, &opened, words, handle, (&guards, traces))?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all().max_blocking_threads(app.options.blocking_threads());
    let runtime = runtime.build();
    let runtime = runtime.context("cannot start the threads of the server")?;
    let drain_seconds = config.server.drain_seconds;
    let result = runtime.block_on(serve(place, app, (guards, drain_seconds), begin));
    // Whatever still runs has had its time.
    runtime.shutdown_background();
    result
}

/// The words of a model. Made-up weights may have none: tokens are then known by their ids.
fn words(opened: &Opened) -> Result<Words> {
    let folder = opened.files.folder();
    if opened.load_format != LoadFormat::Dummy || folder.join("tokenizer.json").is_file() {
        return Words::load(&opened.files);
    }
    tracing::warn!(
        "{}: there is no tokenizer.json; prompts must be token ids, and the text of a token is its \
         id",
        folder.display()
    );
    let tokenizer = Arc::new(Tokenizer::of_ids(opened.facts.vocab)?);
    Ok(Words { tokenizer, template: None })
}

fn describe(opened: &Opened) {
    let (bytes, dense) = (opened.facts.cache_bytes_per_token, opened.facts.dense_bytes_per_token);
    tracing::info!("cache: {bytes} bytes a token, {dense} in 16 bits; by layer:");
    for line in opened.facts.cache_table() {
        tracing::info!("cache: {line}");
    }
    tracing::info!("device: {}; this build has code for {}", opened.device, build_name());
    tracing::info!("memory plan: {}", opened.plan);
    tracing::info!("memory plan: {} tokens would fit", plan::fit_tokens(&opened.plan));
}

/// Ends the server when its engine will not answer any more.
fn watch(server: &ServerConfig, handle: Handle) {
    if server.watchdog_seconds == 0 {
        return;
    }
    let patience = Duration::from_secs(server.watchdog_seconds);
    let code = i32::from(server.watchdog_exit_code);
    std::thread::spawn(move || {
        let fault = kvant_server::watch_engine(&handle, patience);
        tracing::error!("{fault}; the server ends with code {code}");
        std::process::exit(code);
    });
}

fn app(
    config: &Config,
    opened: &Opened,
    words: Words,
    handle: Handle,
    (guards, traces): (&Guards, Option<TraceSink>),
) -> Result<App> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let origins = config.access.cors_origins.split(',').map(str::trim);
    Ok(App {
        model: ModelCard {
            id: opened.facts.name.clone(),
            created: now.as_secs(),
            max_model_len: handle.limits().context_tokens,
            eos_tokens: opened.files.eos_tokens(),
            device: opened.device.to_string(),
            memory: MemoryCard {
                weights: opened.plan.weight_bytes,
                workspace: opened.plan.workspace_bytes + opened.plan.recording_bytes,
                tails: opened.plan.tail_bytes,
                staging: opened.plan.staging_bytes,
            },
            embedding: pooling::card(&opened.files)?,
            cache: CacheCard {
                bytes_per_token: opened.facts.cache_bytes_per_token,
                bits_per_element: opened.facts.cache_bits_per_element(),
                layers: opened.facts.cache_table(),
            },
        },
        handle,
        tokenizer: words.tokenizer,
        template: words.template,
        chat: ChatOptions {
            tool_parser: config.chat.tool_parser.clone(),
            reasoning_parser: config.chat.reasoning_parser.clone(),
            tools: ToolLimits { count: config.chat.tools, bytes: config.chat.tool_bytes },
        },
        options: ServerOptions {
            guide: guide_limits(&config.guide),
            ..options(&config.server, &config.limits)
        },
        access: guards.access.clone(),
        origins: origins.filter(|origin| !origin.is_empty()).map(str::to_owned).collect(),
        tls: guards.tls.clone(),
        traces,
    })
}

fn options(server: &ServerConfig, limits: &LimitsConfig) -> ServerOptions {
    let patience = |seconds: u64| (seconds > 0).then(|| Duration::from_secs(seconds));
    let read_time = Duration::from_secs(limits.read_seconds);
    ServerOptions {
        body_bytes: limits.body_bytes,
        body_time: 2 * read_time,
        owned_by: server.owned_by.clone(),
        strict: server.strict,
        connections: ConnectionOptions {
            most: limits.connections,
            head_time: read_time,
            write_time: Duration::from_secs(limits.write_seconds),
            head_bytes: limits.head_bytes,
            head_lines: limits.head_lines,
            ..ConnectionOptions::default()
        },
        patience: Patience {
            queue: patience(server.queue_seconds),
            whole: patience(server.request_seconds),
        },
        bounds: Bounds {
            choices: limits.choices,
            prompts: limits.prompts,
            messages: limits.messages,
            stops: limits.stops,
            biases: limits.biases,
        },
        ..ServerOptions::default()
    }
}

fn guide_limits(guide: &GuideConfig) -> GuideLimits {
    let GuideConfig { bytes, nesting, states, compile_seconds } = *guide;
    GuideLimits {
        grammar: GrammarLimits { bytes, nesting, states },
        time: Duration::from_secs_f64(compile_seconds),
    }
}

async fn serve(
    place: Place,
    app: App,
    (guards, drain_seconds): (Guards, u64),
    begin: Instant,
) -> Result<()> {
    let mut signals = Signals::new()?;
    let (listening, address, _path) = place.serve(app.tls.is_some())?;
    signals::at_hangup(move || guards.reload())?;
    let handle = app.handle.clone();
    let stop = Arc::new(tokio::sync::Notify::new());
    let stopped = stop.clone();
    let server = kvant_server::run(listening, app, async move { stopped.notified().await });
    let server = tokio::spawn(server);
    tracing::info!("ready in {:.1} s", begin.elapsed().as_secs_f64());
    writeln!(std::io::stdout(), "listening on {address}")?;
    signals.next().await;
    tracing::info!("going down: running requests may finish within {drain_seconds} s");
    handle.drain();
    stop.notify_one();
    tokio::select! {
        result = server => result.context("the server has failed"),
        () = tokio::time::sleep(Duration::from_secs(drain_seconds)) => {
            bail!("requests that still ran after {drain_seconds} s were cut")
        }
        () = signals.next() => bail!("a second signal has cut the requests that still ran"),
    }
}

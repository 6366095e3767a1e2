//! From a configuration to a running engine: resolve, open, plan memory, load weights, start.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kvant_engine::memory::{MemoryInputs, MemoryPlan};
use kvant_engine::{
    AttentionRoad, Device, DeviceName, DeviceRunner, Engine, EngineOptions, Gpu, Handle,
    ModelRunner, Replay, build_name,
};
use kvant_kv_cache::{
    CacheShape, DeviceRoom, DeviceStore, PageStore, Staging, Wish, average_bits, bits,
    layer_presets, scale_rule,
};
use kvant_models::{Decoder, ModelFiles};
use tracing::level_filters::LevelFilter;

use crate::config::{AttentionConfig, CacheConfig, Config, LoadFormat, LogConfig, LogFormat};
use crate::facts::{self, Facts, cache_shape};
use crate::{fetch, machine, progress};

/// Seed of made-up weights.
const DUMMY_SEED: u64 = 1;

/// A model on disk, opened and planned for, its weights not yet read.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) files: ModelFiles,
    pub(crate) facts: Facts,
    pub(crate) plan: MemoryPlan,
    pub(crate) device: Device,
    pub(crate) load_format: LoadFormat,
    shape: CacheShape,
}

/// Finds and opens the model and plans the memory.
pub(crate) fn open(config: &Config) -> Result<Opened> {
    let model = &config.model;
    let fetched = fetch::resolve(&model.name, &model.revision)?;
    let files = match model.load_format {
        LoadFormat::Auto => ModelFiles::open(&fetched.path)?,
        LoadFormat::Dummy => ModelFiles::open_config_only(&fetched.path)?,
    };
    let name = fetched.name.unwrap_or_else(|| files.name().to_owned());
    let shape = cache_shape(&files.spec()?, &wish(&config.cache)?)?;
    let facts = Facts::of(&files, &name, &shape)?;
    let device = device(config)?;
    let plan = plan(config, &files, &shape, &device)?;
    Ok(Opened { files, facts, plan, device, shape, load_format: model.load_format })
}

/// Finds what the model is to compute on.
pub(crate) fn device(config: &Config) -> Result<Device> {
    let name = config.model.device.parse().context("model.device")?;
    let device = open_device(name)?;
    if device.gpu().is_some() && config.cache.attention == AttentionConfig::Reference {
        bail!("cache.attention = reference is a road of the CPU; add --device cpu");
    }
    Ok(device)
}

/// Finds a device by name. Where there is no folder for them, kernels are compiled at every start.
pub(crate) fn open_device(name: DeviceName) -> Result<Device> {
    let built = name != DeviceName::Cpu && build_name() != "cpu";
    let compiled = if built { fetch::kernels_folder().ok() } else { None };
    let open = || Device::open(name, compiled.as_deref());
    Ok(if built { compiling(compiled.as_deref(), open) } else { open() }?)
}

/// Does what may compile kernels, which takes a while at the first start with a build or a model.
fn compiling<T>(folder: Option<&Path>, work: impl FnOnce() -> T) -> T {
    let count = || folder.and_then(|folder| folder.read_dir().ok()).map_or(0, Iterator::count);
    let (before, start) = (count(), Instant::now());
    let result = progress::told(|| "compiling kernels for the GPU".to_owned(), work);
    let fresh = count().saturating_sub(before);
    if fresh > 0 {
        let took = start.elapsed().as_secs_f64();
        tracing::info!("compiled {fresh} kernel programs in {took:.1} s; the next start has them");
    }
    result
}

/// Lays out the memory; the error says what to change if it does not fit.
fn plan(
    config: &Config,
    files: &ModelFiles,
    shape: &CacheShape,
    device: &Device,
) -> Result<MemoryPlan> {
    let spec = files.spec()?;
    let scheduler = &config.scheduler;
    let available = match device.gpu() {
        None => machine::available_bytes()?,
        Some(gpu) => gpu.free_bytes()?,
    };
    Ok(MemoryPlan::new(&MemoryInputs {
        available_bytes: (available as f64 * config.cache.memory_fraction) as u64,
        weight_bytes: files.weight_bytes()?,
        shape: shape.clone(),
        spec: &spec,
        context_tokens: nonzero(scheduler.context_tokens),
        cache_tokens: nonzero(config.cache.tokens),
        staging_tokens: nonzero(scheduler.staging_tokens),
        sequences: scheduler.sequences,
        step_tokens: scheduler.step_tokens_on(device.name()),
        on_gpu: device.gpu().is_some(),
        records: config.model.replay && device.gpu().is_some_and(Gpu::records),
    })?)
}

/// What the user asked of the cache.
fn wish(cache: &CacheConfig) -> Result<Wish> {
    let average = (!cache.bits.is_empty()).then(|| average_bits(&cache.bits)).transpose();
    let average = average.context("cache.bits")?;
    let keys = bits(cache.key_bits).context("cache.key_bits")?;
    let values = bits(cache.value_bits).context("cache.value_bits")?;
    Ok(Wish {
        preset: cache.preset.parse()?,
        key_bits: keys.or(average.map(|widths| widths.keys)),
        value_bits: values.or(average.map(|widths| widths.values)),
        protect: cache.protect,
        layers: layer_presets(&cache.layers).context("cache.layers")?,
        scale_rule: scale_rule(&cache.scale_rule)?,
    })
}

/// In the configuration 0 stands for "choose".
fn nonzero(tokens: usize) -> Option<usize> {
    (tokens > 0).then_some(tokens)
}

impl Opened {
    /// Reads the weights and starts the engine.
    pub(crate) fn start(&self, config: &Config) -> Result<Handle> {
        let start = Instant::now();
        tracing::info!("loading {} of weights", facts::mib(self.plan.weight_bytes));
        let decoder = self.decoder()?;
        tracing::info!("weights loaded in {:.1} s", start.elapsed().as_secs_f64());
        let plan = &self.plan;
        let scheduler = &config.scheduler;
        let options = EngineOptions {
            sequences: scheduler.sequences,
            step_tokens: scheduler.step_tokens_on(self.device.name()),
            waiting_requests: scheduler.waiting_requests,
            waiting_tokens: scheduler.waiting_tokens,
            context_tokens: plan.context_tokens,
            cache_pages: plan.cache_pages,
            staging_tokens: plan.staging_tokens,
            vocab: decoder.spec().vocab,
            unread_tokens: scheduler.unread_tokens,
            stall: Duration::from_secs(scheduler.stall_seconds),
        };
        if let Some(gpu) = self.device.gpu() {
            let room = DeviceRoom {
                pages: plan.cache_pages,
                tails: scheduler.sequences,
                staging_tokens: plan.staging_tokens,
                q_heads: decoder.spec().heads.q,
            };
            let compiled = fetch::kernels_folder().ok();
            let store = || DeviceStore::new(gpu, &self.shape, room, config.cache.seed);
            let store = compiling(compiled.as_deref(), store)?;
            let replay = if config.model.replay { Replay::On } else { Replay::Off };
            let ahead = config.model.run_ahead && gpu.waits_for_marks();
            let runner = DeviceRunner::new(decoder, gpu, store);
            let runner = runner.replaying(replay).running_ahead(ahead);
            return Ok(Engine::start(runner, options));
        }
        let road = match config.cache.attention {
            AttentionConfig::Fused => AttentionRoad::Fused,
            AttentionConfig::Reference => AttentionRoad::Reference,
        };
        let room = (plan.cache_pages, scheduler.sequences);
        let store = PageStore::new(&self.shape, room, config.cache.seed);
        let staging = Staging::new(&self.shape, plan.staging_tokens);
        Ok(Engine::start(ModelRunner::new(decoder, store, staging).on(road), options))
    }

    /// Reads the weights, with a bar.
    pub(crate) fn decoder(&self) -> Result<Decoder> {
        if self.load_format == LoadFormat::Dummy {
            let make = || self.files.load_dummy_at(&self.device.site, DUMMY_SEED);
            return Ok(progress::told(|| "making up weights".to_owned(), make)?);
        }
        let bar = progress::bytes("loading");
        let percent = AtomicU64::new(0);
        let mut advance = |done: u64, total: u64| {
            bar.set_length(total);
            bar.set_position(done);
            percent.store(done.saturating_mul(100) / total.max(1), Ordering::Relaxed);
        };
        let what = || format!("loading weights, {} %", percent.load(Ordering::Relaxed));
        let mut load = || self.files.load_at(&self.device.site, &mut advance);
        let decoder = if progress::shown() { load() } else { progress::told(what, load) }?;
        bar.finish_and_clear();
        Ok(decoder)
    }
}

/// Starts everything for a command that is not a server: quiet unless the log level says otherwise.
pub(crate) fn engine(config: &Config) -> Result<(Opened, Handle)> {
    prepare(config, true)?;
    let opened = open(config)?;
    let handle = opened.start(config)?;
    Ok((opened, handle))
}

/// The log on stderr and the threads that compute; once a process.
pub(crate) fn prepare(config: &Config, quiet: bool) -> Result<()> {
    let LogConfig { level, format, .. } = &config.log;
    let level: LevelFilter = level.parse().context("log.level")?;
    let level = if quiet && level == LevelFilter::INFO { LevelFilter::WARN } else { level };
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
    let threads = threads(config);
    let mut pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    if config.model.pin_threads {
        if let Some(cores) = machine::cores_of(threads) {
            pool = pool.start_handler(move |index| {
                core_affinity::set_for_current(cores[index]);
            });
        } else {
            tracing::warn!(
                "model.pin_threads has no effect: {threads} threads are not one for each core"
            );
        }
    }
    pool.build_global().context("cannot start the threads that compute")
}

/// Threads that compute.
pub(crate) fn threads(config: &Config) -> usize {
    nonzero(config.model.threads).unwrap_or_else(machine::physical_cores)
}

//! A model on a GPU beside the same model on the CPU: all kernels of a step together.

use std::sync::Arc;

use anyhow::{Result, ensure};
use kvant_engine::memory::RECORDING_BYTES;
use kvant_engine::{
    DeviceRunner, GenerateRequest, ModelRunner, Replay, Runner, SamplingParams, SchedulerLimits,
};
use kvant_kernels::device::{Gpu, Spec};
use kvant_kv_cache::{
    CacheShape, DeviceRoom, DeviceStore, LayerShape, LayerTraits, PAGE_TOKENS, PageStore, Staging,
    Wish, decide,
};
use kvant_models::{Decoder, DecoderSpec, LayerSpec};

use super::agreement::{Agreement, agreement, sample_requests};

/// Sizes of the two caches.
#[derive(Clone, Copy, Debug)]
pub struct PairLoad {
    /// Pages of the cache.
    pub pages: usize,
    /// Prompt tokens in staging.
    pub staging_tokens: usize,
    /// Tokens of a step.
    pub step_tokens: usize,
    /// Requests, one every few steps.
    pub requests: usize,
    /// Tokens that each of them asks for.
    pub output_tokens: u32,
}

impl Default for PairLoad {
    fn default() -> Self {
        Self { pages: 64, staging_tokens: 512, step_tokens: 64, requests: 8, output_tokens: 24 }
    }
}

/// The cache of a decoder by the name of a preset.
fn shape_of(spec: &DecoderSpec, preset: &str) -> Result<CacheShape> {
    let heads = spec.heads;
    let layer = |layer: &LayerSpec| LayerTraits {
        shape: LayerShape { kv_heads: heads.kv, dim: heads.dim },
        queries_per_key: heads.q / heads.kv,
        key_bias: spec.bias.qkv,
        window: layer.window,
    };
    let wish = Wish { preset: preset.parse()?, ..Wish::default() };
    Ok(decide(&spec.layers.iter().map(layer).collect::<Vec<_>>(), &wish)?)
}

/// What the kernels of a decoder's cache are compiled for.
pub(super) fn kernels(spec: &DecoderSpec, preset: &str) -> Result<Vec<Spec>> {
    Ok(DeviceStore::kernels(&shape_of(spec, preset)?, spec.heads.q)?)
}

/// One model on both, over the cache of a preset.
pub fn model_agreement(
    cpu: &Arc<Decoder>,
    (on_gpu, gpu): (&Arc<Decoder>, &Gpu),
    preset: &str,
    load: &PairLoad,
) -> Result<Agreement> {
    let spec = cpu.spec();
    let shape = shape_of(spec, preset)?;
    let PairLoad { pages, staging_tokens, requests, .. } = *load;
    let store = PageStore::new(&shape, (pages, requests.max(1)), 1);
    let mut reference = ModelRunner::new(cpu.clone(), store, Staging::new(&shape, staging_tokens));
    let mut other = device_runner((on_gpu, gpu), &shape, load)?.replaying(Replay::On);
    let before = gpu.waits();
    let mut found = compare((&mut reference, &mut other), spec, load)?;
    found.waits = gpu.waits() - before;
    Ok(found)
}

/// One model on a GPU twice: steps of decoding that are replayed, beside the same ones launch by
/// launch.
pub fn replay_agreement(
    on_gpu: (&Arc<Decoder>, &Gpu),
    preset: &str,
    load: &PairLoad,
) -> Result<Agreement> {
    let spec = on_gpu.0.spec();
    let shape = shape_of(spec, preset)?;
    let mut eager = device_runner(on_gpu, &shape, load)?.replaying(Replay::Filled);
    let mut replayed = device_runner(on_gpu, &shape, load)?.replaying(Replay::On);
    let found = compare((&mut eager, &mut replayed), spec, load)?;
    ensure!(replayed.replayed() > 0, "no step was replayed");
    let taken = replayed.recorded_bytes();
    ensure!(taken <= RECORDING_BYTES, "recorded steps take {taken} bytes of {RECORDING_BYTES}");
    Ok(found)
}

/// One model on a GPU twice: steps of decoding that are queued before the tokens of those in front
/// are read, and replayed where that can be, beside the same ones launch by launch and one after
/// the other. Of the requests every second one draws its tokens, and two of three may stop.
pub fn ahead_agreement(
    on_gpu: (&Arc<Decoder>, &Gpu),
    preset: &str,
    load: &PairLoad,
) -> Result<Agreement> {
    let spec = on_gpu.0.spec();
    let shape = shape_of(spec, preset)?;
    let replay = if on_gpu.1.records() { Replay::On } else { Replay::Filled };
    let mut plain = device_runner(on_gpu, &shape, load)?.replaying(Replay::Filled);
    let mut ahead = device_runner(on_gpu, &shape, load)?.replaying(replay).running_ahead(true);
    let mut requests = sample_requests(spec.vocab as u32, load.requests, load.output_tokens);
    for (number, (_, request)) in requests.iter_mut().enumerate() {
        if number % 2 == 1 {
            let drawn = SamplingParams {
                temperature: 0.8,
                seed: number as u64,
                ..(*request.sampling).clone()
            };
            request.sampling = Arc::new(drawn);
        }
        if number % 3 > 0 {
            request.stop.stop_tokens = (0..spec.vocab as u32).step_by(20).collect();
        }
    }
    let found = compare_on((&mut plain, &mut ahead), requests, load)?;
    ensure!(found.ahead > 0, "no step ran ahead");
    Ok(found)
}

fn device_runner(
    (on_gpu, gpu): (&Arc<Decoder>, &Gpu),
    shape: &CacheShape,
    load: &PairLoad,
) -> Result<DeviceRunner> {
    let PairLoad { pages, staging_tokens, requests, .. } = *load;
    let q_heads = on_gpu.spec().heads.q;
    let room = DeviceRoom { pages, tails: requests.max(1), staging_tokens, q_heads };
    let store = DeviceStore::new(gpu, shape, room, 1)?;
    Ok(DeviceRunner::new(on_gpu.clone(), gpu, store))
}

/// The same requests on two runners.
fn compare(
    (reference, other): (&mut impl Runner, &mut impl Runner),
    spec: &DecoderSpec,
    load: &PairLoad,
) -> Result<Agreement> {
    let requests = sample_requests(spec.vocab as u32, load.requests, load.output_tokens);
    compare_on((reference, other), requests, load)
}

fn compare_on(
    (reference, other): (&mut impl Runner, &mut impl Runner),
    requests: Vec<(usize, GenerateRequest)>,
    load: &PairLoad,
) -> Result<Agreement> {
    let PairLoad { pages, staging_tokens, step_tokens, .. } = *load;
    let sequences = load.requests.max(1);
    let limits = SchedulerLimits {
        sequences,
        cache_pages: pages,
        staging_tiles: staging_tokens / PAGE_TOKENS,
    };
    let found = agreement(reference, other, (limits, step_tokens), requests)?;
    ensure!(found.tokens > 0, "nothing was generated");
    Ok(found)
}

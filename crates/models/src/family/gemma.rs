//! Gemma: norm weights count from 1, embeddings are scaled, gelu. Gemma 2: four norms a block, two
//! soft caps, every second layer slides. Gemma 3: norms of q and k, five of six layers slide, with
//! a rope of their own.

use super::{llama, windowed, within};
use crate::{
    Activation, DecoderSpec, Ends, Error, HfConfig, LayerSpec, MlpSpec, NormSpec, Rope, RopeScaling,
};

/// What the reference library takes where config.json is silent.
const DEFAULT_THETA: f64 = 1e6;
const DEFAULT_LOCAL_THETA: f64 = 10_000.0;
const DEFAULT_PATTERN: usize = 6;

pub(super) fn gemma(config: &HfConfig, file: &str) -> Result<DecoderSpec, Error> {
    let plain = llama::spec(config, file)?;
    let offset = if config.output.norm_offset_stored { 0.0 } else { 1.0 };
    Ok(DecoderSpec {
        family: "gemma",
        norm: NormSpec { offset, ..plain.norm },
        mlp: MlpSpec { activation: Activation::GeluTanh, ..plain.mlp },
        ends: Ends {
            embedding_scale: (plain.hidden as f32).sqrt(),
            tied_head: config.output.tie_word_embeddings.unwrap_or(true),
            logit_softcap: None,
        },
        ..plain
    })
}

pub(super) fn gemma2(config: &HfConfig, file: &str) -> Result<DecoderSpec, Error> {
    let spec = four_norms(gemma(config, file)?, config, file)?;
    let spec = DecoderSpec { family: "gemma2", ..spec };
    windowed(spec, config, file, |layer| layer % 2 == 0)
}

pub(super) fn gemma3(config: &HfConfig, file: &str) -> Result<DecoderSpec, Error> {
    let mut config = config.clone();
    if config.rope.theta().is_none() {
        config.rope.rope_theta = Some(DEFAULT_THETA);
    }
    let local = config.rope.local_theta().unwrap_or(DEFAULT_LOCAL_THETA);
    within(file, "rope_local_base_freq", local, 1.0, 1e12)?;
    let pattern = config.attention.sliding_window_pattern.unwrap_or(DEFAULT_PATTERN).max(1);
    let spec = four_norms(gemma(&config, file)?, &config, file)?;
    let norm = NormSpec { qk: true, ..spec.norm };
    let spec = DecoderSpec { family: "gemma3", norm, ..spec };
    let mut spec = windowed(spec, &config, file, |layer| !(layer + 1).is_multiple_of(pattern))?;
    for layer in spec.layers.iter_mut().filter(|layer| layer.window.is_some()) {
        let rotated = layer.rope.rotated;
        layer.rope = Rope { theta: local, rotated, scaling: RopeScaling::None, magnitude: 1.0 };
    }
    Ok(spec)
}

/// Norms before and after, soft caps, and a score scale of its own: what Gemma 2 and 3 share.
fn four_norms(spec: DecoderSpec, config: &HfConfig, file: &str) -> Result<DecoderSpec, Error> {
    let attention = &config.attention;
    let caps = [attention.attn_logit_softcapping, config.output.final_logit_softcapping];
    for cap in caps.into_iter().flatten() {
        within(file, "logit_softcapping", cap, 0.0, 1e6)?;
    }
    let [softcap, logit_softcap] = caps.map(|cap| cap.map(|cap| cap as f32));
    let scalar = attention.query_pre_attn_scalar.unwrap_or(spec.heads.dim as f64);
    within(file, "query_pre_attn_scalar", scalar, 0.0, 1e6)?;
    let scale = scalar.powf(-0.5) as f32;
    let layers = spec.layers.into_iter().map(|layer| LayerSpec { scale, softcap, ..layer });
    Ok(DecoderSpec {
        norm: NormSpec { post: true, ..spec.norm },
        ends: Ends { logit_softcap, ..spec.ends },
        layers: layers.collect(),
        ..spec
    })
}

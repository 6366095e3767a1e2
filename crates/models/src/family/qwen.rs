//! Qwen2 and 2.5: biases on q, k, v. Qwen3: norms of q and k instead. Qwen3-MoE: experts.

use super::{experts, llama, windowed, within};
use crate::{Bias, DecoderSpec, Error, ExpertSpec, HfConfig, MlpSpec, NormSpec};

/// Size of a head where config.json of Qwen3 is silent.
const DEFAULT_HEAD: usize = 128;

pub(super) fn qwen2(config: &HfConfig, file: &str) -> Result<DecoderSpec, Error> {
    let plain = llama::spec(config, file)?;
    let bias = Bias { qkv: true, output: false, mlp: false };
    sliding(DecoderSpec { family: "qwen2", bias, ..plain }, config, file)
}

pub(super) fn qwen3(config: &HfConfig, file: &str) -> Result<DecoderSpec, Error> {
    let mut config = config.clone();
    config.size.head_dim.get_or_insert(DEFAULT_HEAD);
    let plain = llama::spec(&config, file)?;
    let norm = NormSpec { qk: true, ..plain.norm };
    sliding(DecoderSpec { family: "qwen3", norm, ..plain }, &config, file)
}

pub(super) fn qwen3_moe(config: &HfConfig, file: &str) -> Result<DecoderSpec, Error> {
    let written = &config.experts;
    let sparse = written.decoder_sparse_step.is_none_or(|step| step == 1);
    if !sparse || written.mlp_only_layers.as_ref().is_some_and(|layers| !layers.is_empty()) {
        let what = "layers without experts among those with are not served";
        return Err(Error::unsupported(file, "decoder_sparse_step, mlp_only_layers", what));
    }
    let plain = qwen3(config, file)?;
    let experts =
        ExpertSpec { normed: written.norm_topk_prob.unwrap_or(false), ..experts(config, file)? };
    let intermediate = written.moe_intermediate_size.unwrap_or(plain.intermediate);
    within(file, "moe_intermediate_size", intermediate as f64, 0.0, f64::from(1 << 22))?;
    Ok(DecoderSpec {
        family: "qwen3moe",
        intermediate,
        mlp: MlpSpec { experts: Some(experts), ..plain.mlp },
        ..plain
    })
}

/// Layers from `max_window_layers` on slide, where sliding is switched on at all.
fn sliding(spec: DecoderSpec, config: &HfConfig, file: &str) -> Result<DecoderSpec, Error> {
    if config.attention.use_sliding_window != Some(true) {
        return Ok(spec);
    }
    let first = config.attention.max_window_layers.unwrap_or(usize::MAX);
    windowed(spec, config, file, |layer| layer >= first)
}

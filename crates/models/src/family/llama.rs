//! Llama: the decoder that others are told apart from. Also TinyLlama and SmolLM2.

use crate::{
    Bias, DecoderSpec, Error, Heads, HfConfig, LayerSpec, Rope, RopeConfig, RopeScaling,
    RopeScalingConfig,
};

/// What the reference library takes where config.json is silent.
const DEFAULT_THETA: f64 = 10_000.0;
const DEFAULT_NORM_EPS: f64 = 1e-6;

pub(super) fn spec(config: &HfConfig, file: &str) -> Result<DecoderSpec, Error> {
    let size = &config.size;
    let heads = Heads { q: size.num_attention_heads, kv: size.kv_heads(), dim: size.head_size() };
    if !heads.dim.is_multiple_of(2) {
        let what = format!("is {}; rope needs an even size", heads.dim);
        return Err(Error::config(file, "head_dim", what));
    }
    let output = &config.output;
    if let Some(act) = output.hidden_act.as_deref().filter(|act| !matches!(*act, "silu" | "swish"))
    {
        let what = format!("{act} is not served for this architecture; served: silu");
        return Err(Error::unsupported(file, "hidden_act", what));
    }
    let norm_eps = output.rms_norm_eps.unwrap_or(DEFAULT_NORM_EPS);
    within(file, "rms_norm_eps", norm_eps, 0.0, 1.0)?;
    let rope = rope(&config.rope, file)?;
    if let RopeScaling::Factors(factors) = &rope.scaling
        && factors.len() != heads.dim / 2
    {
        let what = format!("{} factors for heads of {}", factors.len(), heads.dim);
        return Err(Error::config(file, "rope_freqs.weight", what));
    }
    let layer = LayerSpec { window: None, scale: (heads.dim as f32).sqrt().recip(), rope };
    let attention_bias = config.attention.attention_bias.unwrap_or(false);
    Ok(DecoderSpec {
        family: "llama",
        hidden: size.hidden_size,
        intermediate: size.intermediate_size,
        vocab: size.vocab_size,
        context: size.max_position_embeddings,
        heads,
        norm_eps,
        bias: Bias {
            qkv: attention_bias,
            output: attention_bias,
            mlp: config.attention.mlp_bias.unwrap_or(false),
        },
        tied_head: output.tie_word_embeddings.unwrap_or(false),
        layers: vec![layer; size.num_hidden_layers],
    })
}

fn rope(config: &RopeConfig, file: &str) -> Result<Rope, Error> {
    if let Some(part) = config.partial_rotary_factor.filter(|part| *part != 1.0) {
        let what = format!("{part} is not served for this architecture; served: 1");
        return Err(Error::unsupported(file, "partial_rotary_factor", what));
    }
    let theta = config.theta().unwrap_or(DEFAULT_THETA);
    within(file, "rope_theta", theta, 1.0, 1e12)?;
    let scaling = match (&config.factors, config.scaling()) {
        (Some(factors), _) => RopeScaling::Factors(factors.clone()),
        (None, None) => RopeScaling::None,
        (None, Some(written)) => scaling(written, file)?,
    };
    Ok(Rope { theta, scaling })
}

fn scaling(written: &RopeScalingConfig, file: &str) -> Result<RopeScaling, Error> {
    let number = |key: &str, value: Option<f64>| {
        let key = format!("rope_scaling.{key}");
        let Some(value) = value else {
            return Err(Error::config(file, key, "is missing"));
        };
        within(file, &key, value, 0.0, 1e9)?;
        Ok(value)
    };
    match written.kind() {
        "linear" => Ok(RopeScaling::Linear(number("factor", written.factor)?)),
        "llama3" => {
            let low = number("low_freq_factor", written.low_freq_factor)?;
            let high = number("high_freq_factor", written.high_freq_factor)?;
            if high <= low {
                let what = format!("{high} is not above low_freq_factor, {low}");
                return Err(Error::config(file, "rope_scaling.high_freq_factor", what));
            }
            let original = written.original_max_position_embeddings;
            Ok(RopeScaling::Llama3 {
                factor: number("factor", written.factor)?,
                low,
                high,
                original_context: number("original_max_position_embeddings", original)?,
            })
        }
        other => {
            let what = format!("{other} is not served; served: default, linear, llama3");
            Err(Error::unsupported(file, "rope_scaling.rope_type", what))
        }
    }
}

/// Refuses what is not above `least` and up to `most`; that includes what is no number.
fn within(file: &str, key: &str, value: f64, least: f64, most: f64) -> Result<(), Error> {
    if value > least && value <= most {
        return Ok(());
    }
    Err(Error::config(file, key, format!("is {value}, not above {least} and up to {most}")))
}

#[cfg(test)]
mod tests;

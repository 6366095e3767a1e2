//! `spec`: from a configuration to the decoder that it describes. A family is a function that
//! returns a `DecoderSpec`.

mod gemma;
mod llama;
mod mistral;
mod phi3;
mod qwen;
mod rope;
mod smollm3;

use crate::{DecoderSpec, Error, ExpertSpec, HfConfig};

/// Architectures served, for messages.
const SERVED: &str = "Llama, Qwen2, Qwen3, Qwen3Moe, Mistral, Mixtral, Gemma, Gemma2, Gemma3, \
    Phi3, SmolLM3 (each as …ForCausalLM; in a GGUF file llama, qwen2, qwen3, qwen3moe, gemma, \
    gemma2, gemma3, phi3, smollm3)";

/// Most experts of a layer.
const EXPERTS: usize = 1 << 12;

/// The decoder that a configuration describes. `file` is the name in messages of the file that it
/// is from.
pub(crate) fn spec(config: &HfConfig, file: &str) -> Result<DecoderSpec, Error> {
    config.size.check(file)?;
    match config.architecture.as_str() {
        "LlamaForCausalLM" => llama::spec(config, file),
        "Qwen2ForCausalLM" => qwen::qwen2(config, file),
        "Qwen3ForCausalLM" => qwen::qwen3(config, file),
        "Qwen3MoeForCausalLM" => qwen::qwen3_moe(config, file),
        "MistralForCausalLM" => mistral::mistral(config, file),
        "MixtralForCausalLM" => mistral::mixtral(config, file),
        "GemmaForCausalLM" => gemma::gemma(config, file),
        "Gemma2ForCausalLM" => gemma::gemma2(config, file),
        "Gemma3ForCausalLM" => gemma::gemma3(config, file),
        "Phi3ForCausalLM" => phi3::spec(config, file),
        "SmolLM3ForCausalLM" => smollm3::spec(config, file),
        other => {
            let what = format!("{other} is not served; served: {SERVED}");
            Err(Error::unsupported(file, "architectures", what))
        }
    }
}

/// The same decoder with the file's window, if it has one, in the layers that `layer_types` names
/// or, where there is no such list, `slides` picks.
fn windowed(
    mut spec: DecoderSpec,
    config: &HfConfig,
    file: &str,
    slides: impl Fn(usize) -> bool,
) -> Result<DecoderSpec, Error> {
    let window = config.attention.sliding_window.filter(|window| *window > 0);
    let types = config.attention.layer_types.as_deref();
    if let Some(types) = types.filter(|types| types.len() != spec.layers.len()) {
        let what = format!("{} entries for {} layers", types.len(), spec.layers.len());
        return Err(Error::config(file, "layer_types", what));
    }
    let known = ["full_attention", "sliding_attention"];
    if let Some(other) = types.into_iter().flatten().find(|kind| !known.contains(&kind.as_str())) {
        let what = format!("{other} is not served; served: {}", known.join(", "));
        return Err(Error::unsupported(file, "layer_types", what));
    }
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let slides = types.map_or_else(|| slides(index), |t| t[index] == "sliding_attention");
        layer.window = window.filter(|_| slides);
    }
    Ok(spec)
}

/// Numbers of experts as written, checked.
fn experts(config: &HfConfig, file: &str) -> Result<ExpertSpec, Error> {
    let written = &config.experts;
    let count = written.num_experts.or(written.num_local_experts).unwrap_or(0);
    let used = written.num_experts_per_tok.unwrap_or(0);
    if count == 0 || count > EXPERTS {
        let what = format!("is {count}, not within 1..={EXPERTS}");
        return Err(Error::config(file, "num_experts", what));
    }
    if used == 0 || used > count {
        let what = format!("is {used}, not within 1..={count}");
        return Err(Error::config(file, "num_experts_per_tok", what));
    }
    Ok(ExpertSpec { count, used, normed: false, mixtral_names: false })
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

//! Llama: the decoder that others are told apart from. Also TinyLlama and SmolLM2.

use super::{rope, within};
use crate::{
    Activation, Bias, DecoderSpec, Ends, Error, Heads, HfConfig, LayerSpec, MlpSpec, NormSpec,
};

/// What the reference library takes where config.json is silent.
const DEFAULT_NORM_EPS: f64 = 1e-6;

pub(super) fn spec(config: &HfConfig, file: &str) -> Result<DecoderSpec, Error> {
    let (size, output) = (&config.size, &config.output);
    let heads = Heads { q: size.num_attention_heads, kv: size.kv_heads(), dim: size.head_size() };
    let eps = output.rms_norm_eps.unwrap_or(DEFAULT_NORM_EPS);
    within(file, "rms_norm_eps", eps, 0.0, 1.0)?;
    let layer = LayerSpec {
        window: None,
        scale: (heads.dim as f32).sqrt().recip(),
        softcap: None,
        rope: rope::rope(config, file)?,
    };
    let attention_bias = config.attention.attention_bias.unwrap_or(false);
    Ok(DecoderSpec {
        family: "llama",
        hidden: size.hidden_size,
        intermediate: size.intermediate_size,
        vocab: size.vocab_size,
        context: size.max_position_embeddings,
        heads,
        norm: NormSpec { eps, offset: 0.0, post: false, qk: false },
        bias: Bias {
            qkv: attention_bias,
            output: attention_bias,
            mlp: config.attention.mlp_bias.unwrap_or(false),
        },
        fused: false,
        mlp: MlpSpec { activation: activation(config, file)?, experts: None },
        ends: Ends {
            embedding_scale: 1.0,
            tied_head: output.tie_word_embeddings.unwrap_or(false),
            logit_softcap: None,
        },
        layers: vec![layer; size.num_hidden_layers],
    })
}

fn activation(config: &HfConfig, file: &str) -> Result<Activation, Error> {
    let output = &config.output;
    match output.hidden_activation.as_deref().or(output.hidden_act.as_deref()) {
        None | Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
        // The first Gemma files say gelu and mean the tanh formula.
        Some("gelu") if config.architecture.starts_with("Gemma") => Ok(Activation::GeluTanh),
        Some(other) => {
            let what = format!("{other} is not served; served: silu, gelu_pytorch_tanh");
            Err(Error::unsupported(file, "hidden_act", what))
        }
    }
}

#[cfg(test)]
mod tests;

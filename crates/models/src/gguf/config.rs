//! `HfConfig` and end tokens out of GGUF metadata.

use std::collections::BTreeSet;

use super::{Gguf, Value};
use crate::files::TensorView;
use crate::{
    AttentionConfig, Error, ExpertConfig, HfConfig, OutputConfig, RopeConfig, RopeScalingConfig,
    SizeConfig,
};

/// Tokens by which models end a turn, whether or not the metadata names them.
const END_TOKENS: [&str; 5] =
    ["<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>"];
/// `token_type` of control tokens.
const CONTROL: i32 = 3;

/// The same configuration that config.json would hold.
pub(crate) fn hf_config(gguf: &Gguf) -> Result<HfConfig, Error> {
    let name = gguf.architecture();
    if name.is_empty() {
        return Err(Error::config(gguf.file(), "general.architecture", "is missing or no text"));
    }
    let keys = Keys { gguf, architecture: name };
    let size = keys.size()?;
    let (attention, experts) = (keys.attention(&size)?, keys.experts()?);
    let architecture = match name {
        // Files of Mistral and Mixtral call themselves llama.
        "llama" if experts.num_experts.is_some() => "MixtralForCausalLM",
        "llama" if attention.sliding_window.is_some() => "MistralForCausalLM",
        "llama" => "LlamaForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        "qwen3moe" => "Qwen3MoeForCausalLM",
        "gemma" => "GemmaForCausalLM",
        "gemma2" => "Gemma2ForCausalLM",
        "gemma3" => "Gemma3ForCausalLM",
        "phi3" => "Phi3ForCausalLM",
        "smollm3" => "SmolLM3ForCausalLM",
        other => other,
    };
    let gemma = name.starts_with("gemma");
    Ok(HfConfig {
        architecture: architecture.to_owned(),
        model_type: Some(name.to_owned()),
        attention,
        rope: keys.rope(&size)?,
        experts,
        output: OutputConfig {
            rms_norm_eps: keys.number("attention.layer_norm_rms_epsilon"),
            norm_offset_stored: gemma,
            hidden_act: Some(if gemma { "gelu_pytorch_tanh" } else { "silu" }.to_owned()),
            tie_word_embeddings: Some(gguf.tensor("output.weight").is_none()),
            final_logit_softcapping: keys.softcap("final_logit_softcapping", 30.0),
            ..OutputConfig::default()
        },
        size,
    })
}

/// Keys below the architecture's name.
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn size_of(&self, key: &str) -> Result<Option<usize>, Error> {
        let key = self.key(key);
        if self.gguf.value(&key).is_none() {
            return Ok(None);
        }
        let size = self.gguf.u64(&key).and_then(|size| size.try_into().ok());
        let wrong = || Error::config(self.gguf.file(), key, "is no whole number");
        size.ok_or_else(wrong).map(Some)
    }

    fn required(&self, key: &str) -> Result<usize, Error> {
        let missing = || Error::config(self.gguf.file(), self.key(key), "is missing");
        self.size_of(key)?.ok_or_else(missing)
    }

    /// A float as people write it: 1e-5, not the nearest f32 widened.
    fn number(&self, key: &str) -> Option<f64> {
        let number = self.gguf.f64(&self.key(key)).filter(|number| number.is_finite())?;
        let short = number as f32;
        if f64::from(short) == number { short.to_string().parse().ok() } else { Some(number) }
    }

    fn size(&self) -> Result<SizeConfig, Error> {
        let file = self.gguf.file();
        let size = SizeConfig {
            hidden_size: self.required("embedding_length")?,
            intermediate_size: self.required("feed_forward_length")?,
            num_hidden_layers: self.required("block_count")?,
            num_attention_heads: self.required("attention.head_count")?,
            num_key_value_heads: self.size_of("attention.head_count_kv")?,
            head_dim: self.size_of("attention.key_length")?,
            vocab_size: self.vocab()?,
            max_position_embeddings: self.required("context_length")?,
        };
        size.check(file)?;
        match self.size_of("attention.value_length")? {
            Some(values) if values != size.head_size() => {
                let what = format!("is {values}; served is the size of keys, {}", size.head_size());
                Err(Error::unsupported(file, self.key("attention.value_length"), what))
            }
            _ => Ok(size),
        }
    }

    /// Rows of the embedding: what logits have, also where the token list is shorter.
    fn vocab(&self) -> Result<usize, Error> {
        if let Some(tensor) = self.gguf.tensor("token_embd.weight") {
            return Ok(tensor.shape[0]);
        }
        let tokens = self.gguf.strings("tokenizer.ggml.tokens");
        let missing = || Error::missing(self.gguf.file(), "model.embed_tokens.weight");
        tokens.map(<[String]>::len).ok_or_else(missing)
    }

    fn attention(&self, size: &SizeConfig) -> Result<AttentionConfig, Error> {
        let window = self.size_of("attention.sliding_window")?.filter(|window| *window > 0);
        let pattern = self.key("attention.sliding_window_pattern");
        let layer_types = match self.gguf.value(&pattern) {
            Some(Value::Array(sliding)) => {
                Some(sliding.values().map(|flag| layer_type(&flag)).collect())
            }
            _ => None,
        };
        // The largest Gemma 2 and 3 scale scores by another size than that of their heads, which
        // the file does not say; llama.cpp tells them by their layers too.
        let largest =
            matches!((self.architecture, size.num_hidden_layers), ("gemma2", 46) | ("gemma3", 62));
        let scalar = largest.then(|| (size.hidden_size / size.num_attention_heads) as f64);
        Ok(AttentionConfig {
            attention_bias: Some(self.gguf.tensor("blk.0.attn_q.bias").is_some()),
            mlp_bias: Some(self.gguf.tensor("blk.0.ffn_up.bias").is_some()),
            sliding_window: window,
            sliding_window_pattern: match layer_types {
                Some(_) => None,
                None => self.size_of("attention.sliding_window_pattern")?,
            },
            layer_types,
            query_pre_attn_scalar: scalar,
            attn_logit_softcapping: self.softcap("attn_logit_softcapping", 50.0),
            ..AttentionConfig::default()
        })
    }

    /// A soft cap; Gemma 2 has them also where its file does not say so.
    fn softcap(&self, key: &str, usual: f64) -> Option<f64> {
        self.number(key).or_else(|| (self.architecture == "gemma2").then_some(usual))
    }

    fn experts(&self) -> Result<ExpertConfig, Error> {
        let count = self.size_of("expert_count")?.filter(|count| *count > 0);
        Ok(ExpertConfig {
            num_experts: count,
            num_experts_per_tok: self.size_of("expert_used_count")?,
            moe_intermediate_size: self.size_of("expert_feed_forward_length")?,
            norm_topk_prob: count.map(|_| true),
            ..ExpertConfig::default()
        })
    }

    fn rope(&self, size: &SizeConfig) -> Result<RopeConfig, Error> {
        let rotated = self.size_of("rope.dimension_count")?.unwrap_or(size.head_size());
        let partial = rotated != size.head_size();
        Ok(RopeConfig {
            rope_theta: self.number("rope.freq_base"),
            rope_scaling: self.scaling(rotated)?,
            rope_local_base_freq: self.number("rope.freq_base_swa"),
            partial_rotary_factor: partial.then(|| rotated as f64 / size.head_size() as f64),
            factors: self.factors("rope_freqs.weight", rotated)?,
            ..RopeConfig::default()
        })
    }

    fn scaling(&self, rotated: usize) -> Result<Option<RopeScalingConfig>, Error> {
        let long_factor = self.factors("rope_factors_long.weight", rotated)?;
        let short_factor = self.factors("rope_factors_short.weight", rotated)?;
        let older = self.number("rope.scale_linear").filter(|&factor| factor != 1.0);
        let kind = match self.gguf.str(&self.key("rope.scaling.type")) {
            // Files of Phi have factors and no type.
            _ if long_factor.is_some() => "longrope",
            Some(kind) if kind != "none" => kind,
            None if older.is_some() => "linear",
            _ => return Ok(None),
        };
        Ok(Some(RopeScalingConfig {
            rope_type: Some(kind.to_owned()),
            factor: self.number("rope.scaling.factor").or(older),
            original_max_position_embeddings: self.number("rope.scaling.original_context_length"),
            attention_factor: self.number("rope.scaling.attn_factor"),
            beta_fast: self.number("rope.scaling.yarn_beta_fast"),
            beta_slow: self.number("rope.scaling.yarn_beta_slow"),
            long_factor,
            short_factor,
            ..RopeScalingConfig::default()
        }))
    }

    /// Divisors of the frequencies: files of Llama 3.1 and later carry them instead of parameters.
    fn factors(&self, name: &str, rotated: usize) -> Result<Option<Vec<f32>>, Error> {
        let Some(tensor) = self.gguf.tensor(name) else { return Ok(None) };
        let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
        let view = TensorView { dtype, shape, bytes: self.gguf.tensor_bytes(tensor) };
        let usable = |factors: &Vec<f32>| {
            let positive = factors.iter().all(|&factor| factor.is_finite() && factor > 0.0);
            factors.len() == rotated / 2 && positive
        };
        view.f32s().filter(usable).map(Some).ok_or_else(|| {
            let what = format!("is not {} positive floats", rotated / 2);
            Error::malformed(self.gguf.file(), format!("tensor {name}"), what)
        })
    }
}

/// A flag of the pattern of windows as config.json would say it.
fn layer_type(sliding: &Value) -> String {
    let slides = matches!(sliding, Value::Bool(true));
    if slides { "sliding_attention" } else { "full_attention" }.to_owned()
}

/// Tokens that end a sequence, ascending: those that the metadata names, and the well-known ones.
pub(crate) fn end_tokens(gguf: &Gguf) -> Vec<u32> {
    let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap_or_default();
    let mut ends = BTreeSet::new();
    for name in ["eos", "eot", "eom"] {
        let id = gguf.u64(&format!("tokenizer.ggml.{name}_token_id"));
        // A file may say "none" with an id beyond the vocabulary.
        ends.extend(id.filter(|&id| id < tokens.len() as u64).map(|id| id as u32));
    }
    let types = gguf.i32s("tokenizer.ggml.token_type").unwrap_or_default();
    for (id, (token, kind)) in tokens.iter().zip(types).enumerate() {
        if kind == CONTROL && END_TOKENS.contains(&token.as_str()) {
            ends.insert(id as u32);
        }
    }
    ends.into_iter().collect()
}

#[cfg(test)]
mod tests;

//! `HfConfig` and end tokens out of GGUF metadata.

use std::collections::BTreeSet;

use super::Gguf;
use crate::files::TensorView;
use crate::{
    AttentionConfig, Error, HfConfig, OutputConfig, RopeConfig, RopeScalingConfig, SizeConfig,
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
    let architecture = match name {
        "llama" => "LlamaForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        other => other,
    };
    let size = keys.size()?;
    let rope = keys.rope(&size)?;
    Ok(HfConfig {
        architecture: architecture.to_owned(),
        model_type: Some(name.to_owned()),
        attention: AttentionConfig {
            attention_bias: Some(gguf.tensor("blk.0.attn_q.bias").is_some()),
            mlp_bias: Some(gguf.tensor("blk.0.ffn_up.bias").is_some()),
            sliding_window: keys.size_of("attention.sliding_window")?,
            ..AttentionConfig::default()
        },
        rope,
        output: OutputConfig {
            rms_norm_eps: keys.number("attention.layer_norm_rms_epsilon"),
            hidden_act: Some("silu".to_owned()),
            tie_word_embeddings: Some(gguf.tensor("output.weight").is_none()),
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

    fn rope(&self, size: &SizeConfig) -> Result<RopeConfig, Error> {
        let rotated = self.size_of("rope.dimension_count")?.unwrap_or(size.head_size());
        let partial = rotated != size.head_size();
        Ok(RopeConfig {
            rope_theta: self.number("rope.freq_base"),
            rope_scaling: self.scaling(),
            partial_rotary_factor: partial.then(|| rotated as f64 / size.head_size() as f64),
            factors: self.factors(rotated)?,
            ..RopeConfig::default()
        })
    }

    fn scaling(&self) -> Option<RopeScalingConfig> {
        let older = self.number("rope.scale_linear").filter(|&factor| factor != 1.0);
        let kind = match self.gguf.str(&self.key("rope.scaling.type")) {
            Some("none") => return None,
            Some(kind) => kind,
            None => older.map(|_| "linear")?,
        };
        Some(RopeScalingConfig {
            rope_type: Some(kind.to_owned()),
            factor: self.number("rope.scaling.factor").or(older),
            original_max_position_embeddings: self.number("rope.scaling.original_context_length"),
            attention_factor: self.number("rope.scaling.attn_factor"),
            ..RopeScalingConfig::default()
        })
    }

    /// Divisors of the frequencies, which files of Llama 3.1 and later carry instead of parameters.
    fn factors(&self, rotated: usize) -> Result<Option<Vec<f32>>, Error> {
        let Some(tensor) = self.gguf.tensor("rope_freqs.weight") else { return Ok(None) };
        let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
        let view = TensorView { dtype, shape, bytes: self.gguf.tensor_bytes(tensor) };
        let usable = |factors: &Vec<f32>| {
            let positive = factors.iter().all(|&factor| factor.is_finite() && factor > 0.0);
            factors.len() == rotated / 2 && positive
        };
        view.f32s().filter(usable).map(Some).ok_or_else(|| {
            let what = format!("is not {} positive floats", rotated / 2);
            Error::malformed(self.gguf.file(), "tensor rope_freqs.weight", what)
        })
    }
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

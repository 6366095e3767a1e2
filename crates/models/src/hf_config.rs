//! `HfConfig`: the keys of config.json that decoders differ in. A GGUF file's metadata is brought
//! to the same form.

use serde::Deserialize;

use crate::Error;

/// A model's configuration. Keys that are not listed here are ignored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HfConfig {
    /// `architectures[0]`, e.g. `LlamaForCausalLM`; for a GGUF file of unknown architecture its own
    /// name.
    pub architecture: String,
    /// `model_type`, e.g. `llama`.
    pub model_type: Option<String>,
    /// Sizes.
    pub size: SizeConfig,
    /// Biases, windows and score scales.
    pub attention: AttentionConfig,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Mixture of experts.
    pub experts: ExpertConfig,
    /// Norms, activation and head.
    pub output: OutputConfig,
}

/// Sizes. Those that are not optional are checked to be positive and below [`SizeConfig::check`]'s
/// limits.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct SizeConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
}

/// Biases, windows and score scales.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct AttentionConfig {
    pub attention_bias: Option<bool>,
    pub mlp_bias: Option<bool>,
    pub sliding_window: Option<usize>,
    pub use_sliding_window: Option<bool>,
    pub max_window_layers: Option<usize>,
    pub sliding_window_pattern: Option<usize>,
    pub layer_types: Option<Vec<String>>,
    pub query_pre_attn_scalar: Option<f64>,
    pub attn_logit_softcapping: Option<f64>,
}

/// Rotary embedding.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct RopeConfig {
    /// Read [`RopeConfig::theta`] instead, and so for the others that have a function: newer files
    /// keep it in `rope_parameters`.
    pub rope_theta: Option<f64>,
    /// Read [`RopeConfig::scaling`] instead.
    pub rope_scaling: Option<RopeScalingConfig>,
    /// Where newer files keep theta and scaling.
    pub rope_parameters: Option<RopeScalingConfig>,
    pub rope_local_base_freq: Option<f64>,
    pub partial_rotary_factor: Option<f64>,
    pub original_max_position_embeddings: Option<usize>,
    /// One a layer: 0 for a layer without rope.
    pub no_rope_layers: Option<Vec<u32>>,
    pub no_rope_layer_interval: Option<usize>,
    /// Divisor of every frequency, one a pair, from a GGUF file's `rope_freqs.weight`.
    #[serde(skip)]
    pub factors: Option<Vec<f32>>,
}

/// How rope frequencies are stretched, as written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct RopeScalingConfig {
    pub rope_type: Option<String>,
    /// Older name of `rope_type`; files may have both.
    #[serde(rename = "type")]
    pub older_type: Option<String>,
    pub rope_theta: Option<f64>,
    pub factor: Option<f64>,
    pub low_freq_factor: Option<f64>,
    pub high_freq_factor: Option<f64>,
    pub original_max_position_embeddings: Option<f64>,
    pub attention_factor: Option<f64>,
    pub beta_fast: Option<f64>,
    pub beta_slow: Option<f64>,
    pub partial_rotary_factor: Option<f64>,
    /// Newer files of models with two ropes: the one of layers that see all.
    pub full_attention: Option<Box<RopeScalingConfig>>,
    /// And the one of layers with a window.
    pub sliding_attention: Option<Box<RopeScalingConfig>>,
    pub short_factor: Option<Vec<f32>>,
    pub long_factor: Option<Vec<f32>>,
}

/// Mixture of experts.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct ExpertConfig {
    pub num_experts: Option<usize>,
    /// Mixtral's name of `num_experts`.
    pub num_local_experts: Option<usize>,
    pub num_experts_per_tok: Option<usize>,
    pub moe_intermediate_size: Option<usize>,
    pub norm_topk_prob: Option<bool>,
    pub decoder_sparse_step: Option<usize>,
    pub mlp_only_layers: Option<Vec<usize>>,
}

/// Norms, activation and head.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct OutputConfig {
    pub rms_norm_eps: Option<f64>,
    /// Norm weights of a GGUF file hold their offset already.
    #[serde(skip)]
    pub norm_offset_stored: bool,
    pub hidden_act: Option<String>,
    pub hidden_activation: Option<String>,
    /// `None` if neither the file nor its weights say.
    pub tie_word_embeddings: Option<bool>,
    pub final_logit_softcapping: Option<f64>,
    pub torch_dtype: Option<String>,
}

#[derive(Deserialize)]
struct KindConfig {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: Option<String>,
}

/// End tokens, as config.json and generation_config.json both may have them.
#[derive(Deserialize)]
struct EndConfig {
    eos_token_id: Option<TokenIds>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "eos_token_id is neither a token id nor a list of them")]
enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

/// `eos_token_id` of config.json or generation_config.json; `file` is its name in messages.
pub(crate) fn end_tokens(text: &str, file: &str) -> Result<Vec<u32>, Error> {
    let end: EndConfig = read(text, file)?;
    Ok(match end.eos_token_id {
        None => Vec::new(),
        Some(TokenIds::One(id)) => vec![id],
        Some(TokenIds::Many(ids)) => ids,
    })
}

impl HfConfig {
    /// Reads config.json; `file` is its name in messages.
    pub fn from_json(text: &str, file: &str) -> Result<Self, Error> {
        // One pass a group: a message then has the line and column, which serde's flatten loses.
        let kind: KindConfig = read(text, file)?;
        let Some(architecture) = kind.architectures.into_iter().next() else {
            return Err(Error::config(file, "architectures", "is missing or empty"));
        };
        let config = Self {
            architecture,
            model_type: kind.model_type,
            size: read(text, file)?,
            attention: read(text, file)?,
            rope: read(text, file)?,
            experts: read(text, file)?,
            output: read(text, file)?,
        };
        config.size.check(file)?;
        Ok(config)
    }
}

fn read<'a, T: Deserialize<'a>>(text: &'a str, file: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| {
        let place = format!("line {} column {}", error.line(), error.column());
        Error::config(file, place, error.to_string())
    })
}

impl SizeConfig {
    /// Key and value heads; as many as query heads where the file does not say.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Size of a head; an equal share of `hidden_size` where the file does not say.
    pub fn head_size(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Refuses sizes of zero, sizes above every known model by far, and heads that do not divide.
    pub fn check(&self, file: &str) -> Result<(), Error> {
        let limits = [
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 10),
            ("num_attention_heads", self.num_attention_heads, 1 << 12),
            ("num_key_value_heads", self.kv_heads(), 1 << 12),
            ("head_dim", self.head_size(), 1 << 12),
            ("vocab_size", self.vocab_size, 1 << 24),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 30),
        ];
        for (key, value, most) in limits {
            if value == 0 || value > most {
                return Err(Error::config(file, key, format!("is {value}, not within 1..={most}")));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.kv_heads()) {
            let what = format!("{} does not divide {}", self.kv_heads(), self.num_attention_heads);
            return Err(Error::config(file, "num_key_value_heads", what));
        }
        if self.head_dim.is_none() && !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let what = format!("{} does not divide hidden_size", self.num_attention_heads);
            return Err(Error::config(file, "num_attention_heads", what));
        }
        Ok(())
    }
}

impl RopeConfig {
    /// Base of the frequencies, wherever the file has it.
    pub fn theta(&self) -> Option<f64> {
        self.rope_theta.or(self.newer().and_then(|newer| newer.rope_theta))
    }

    /// Base of the frequencies in layers with a window, where it is another.
    pub fn local_theta(&self) -> Option<f64> {
        let newer =
            self.rope_parameters.as_ref().and_then(|newer| newer.sliding_attention.as_ref());
        self.rope_local_base_freq.or(newer.and_then(|newer| newer.rope_theta))
    }

    /// Part of a head that is turned.
    pub fn part(&self) -> f64 {
        let newer = self.newer().and_then(|newer| newer.partial_rotary_factor);
        self.partial_rotary_factor.or(newer).unwrap_or(1.0)
    }

    fn newer(&self) -> Option<&RopeScalingConfig> {
        let newer = self.rope_parameters.as_ref()?;
        Some(newer.full_attention.as_deref().unwrap_or(newer))
    }

    /// The stretching, wherever the file has it; `None` also for the type `default`.
    pub fn scaling(&self) -> Option<&RopeScalingConfig> {
        let written = self.rope_scaling.as_ref().or(self.newer())?;
        (written.kind() != "default").then_some(written)
    }
}

impl RopeScalingConfig {
    /// `linear`, `llama3`, `longrope`, …; `default` if not said.
    pub fn kind(&self) -> &str {
        self.rope_type.as_deref().or(self.older_type.as_deref()).unwrap_or("default")
    }
}

#[cfg(test)]
mod tests;

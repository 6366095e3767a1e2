//! `spec` on configurations with one key changed.

use serde_json::{Value, json};

use crate::{Bias, DecoderSpec, Error, Heads, HfConfig, RopeScaling, family};

/// The configuration of a small model with `changes` put in; null takes a key away.
fn spec(changes: &Value) -> Result<DecoderSpec, Error> {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 256, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_theta": 50_000.0, "hidden_act": "silu", "tie_word_embeddings": true
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    let config = HfConfig::from_json(&config.to_string(), "config.json")?;
    family::spec(&config, "config.json")
}

#[test]
fn keys_become_the_fields_of_the_decoder() {
    let plain = spec(&json!({})).unwrap();
    assert_eq!((plain.family, plain.hidden, plain.intermediate), ("llama", 64, 96));
    assert_eq!((plain.vocab, plain.context, plain.ends.tied_head), (256, 512, true));
    assert_eq!(plain.heads, Heads { q: 4, kv: 2, dim: 16 });
    assert_eq!((plain.norm.eps, plain.bias), (1e-5, Bias::default()));
    assert_eq!(plain.layers.len(), 3);
    let layer = &plain.layers[2];
    assert_eq!((layer.window, layer.scale), (None, 0.25));
    assert_eq!((layer.rope.theta, &layer.rope.scaling), (50_000.0, &RopeScaling::None));
}

#[test]
fn missing_keys_take_the_defaults_of_the_reference_library() {
    let gone = json!({"rope_theta": null, "rms_norm_eps": null, "tie_word_embeddings": null,
        "num_key_value_heads": null, "hidden_act": null});
    let sparse = spec(&gone).unwrap();
    assert_eq!((sparse.layers[0].rope.theta, sparse.norm.eps), (10_000.0, 1e-6));
    assert_eq!((sparse.ends.tied_head, sparse.heads.kv), (false, 4));
}

#[test]
fn head_dim_and_biases_are_taken_as_written() {
    let wide = spec(&json!({"head_dim": 64, "attention_bias": true, "mlp_bias": true})).unwrap();
    assert_eq!((wide.heads.dim, wide.layers[0].scale), (64, 0.125));
    assert_eq!(wide.bias, Bias { qkv: true, output: true, mlp: true });
}

#[test]
fn rope_scaling_is_read_in_both_spellings() {
    let linear = spec(&json!({"rope_scaling": {"type": "linear", "factor": 2.0}})).unwrap();
    assert_eq!(linear.layers[0].rope.scaling, RopeScaling::Linear(2.0));
    let llama3 = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    let expected =
        RopeScaling::Llama3 { factor: 32.0, low: 1.0, high: 4.0, original_context: 8192.0 };
    let found = spec(&json!({"rope_scaling": llama3})).unwrap();
    assert_eq!(found.layers[0].rope.scaling, expected);
}

#[test]
fn what_is_wrong_is_named() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    let cases = [
        (json!({"head_dim": 15}), "head_dim"),
        (json!({"head_dim": 0}), "head_dim"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        (json!({"num_hidden_layers": 0}), "num_hidden_layers"),
        (json!({"hidden_size": 1_u64 << 40}), "hidden_size"),
        (json!({"hidden_act": "relu"}), "hidden_act"),
        (json!({"rms_norm_eps": 0.0}), "rms_norm_eps"),
        (json!({"rope_theta": -1.0}), "rope_theta"),
        (json!({"partial_rotary_factor": 1.5}), "partial_rotary_factor"),
        (json!({"partial_rotary_factor": 0.2}), "head_dim"),
        (json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), "rope_scaling.rope_type"),
        (json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.factor"),
        (json!({"rope_scaling": {"type": "linear", "factor": 0.0}}), "rope_scaling.factor"),
        (json!({"rope_scaling": llama3}), "rope_scaling.high_freq_factor"),
    ];
    for (changes, key) in cases {
        let message = spec(&changes).unwrap_err().to_string();
        assert!(message.contains(key), "{changes}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

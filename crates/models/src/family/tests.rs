//! `spec` on the configuration files of published models, shortened, and on broken ones.

use serde_json::{Value, json};

use super::*;
use crate::{Activation, RopeScaling};

/// The configuration with `changes` put in.
fn changed(config: &Value, changes: &Value) -> Result<DecoderSpec, Error> {
    let mut config = config.clone();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    spec(&HfConfig::from_json(&config.to_string(), "config.json")?, "config.json")
}

fn plain(config: &Value) -> DecoderSpec {
    changed(config, &json!({})).unwrap()
}

fn qwen2() -> Value {
    json!({"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 896,
        "intermediate_size": 4864, "max_position_embeddings": 32_768, "max_window_layers": 21,
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_theta": 1_000_000.0, "sliding_window": 32_768,
        "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151_936})
}

fn qwen3_moe() -> Value {
    json!({"architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false,
        "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 6144, "max_position_embeddings": 40_960, "max_window_layers": 48,
        "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": true,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 48, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
        "rope_scaling": null, "rope_theta": 1_000_000.0, "sliding_window": null,
        "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 151_936})
}

fn gemma3() -> Value {
    json!({"architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": null,
        "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32_768,
        "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10_000,
        "rope_scaling": null, "rope_theta": 1_000_000, "sliding_window": 512,
        "sliding_window_pattern": 6, "vocab_size": 262_144})
}

fn phi4_mini() -> Value {
    json!({"architectures": ["Phi3ForCausalLM"], "hidden_act": "silu", "hidden_size": 3072,
        "intermediate_size": 8192, "max_position_embeddings": 131_072, "num_attention_heads": 24,
        "num_hidden_layers": 32, "num_key_value_heads": 8,
        "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
        "rms_norm_eps": 1e-05, "rope_theta": 10_000.0, "sliding_window": 262_144,
        "rope_scaling": {"type": "longrope", "long_factor": vec![2.0; 48],
            "short_factor": vec![1.0; 48]},
        "tie_word_embeddings": true, "vocab_size": 200_064})
}

#[test]
fn qwen2_slides_only_where_asked() {
    let qwen = plain(&qwen2());
    assert_eq!((qwen.family, qwen.heads.dim, qwen.ends.tied_head), ("qwen2", 64, true));
    assert!(qwen.bias.qkv && !qwen.bias.output && !qwen.norm.qk);
    assert!(qwen.layers.iter().all(|layer| layer.window.is_none()));
    let sliding = changed(&qwen2(), &json!({"use_sliding_window": true})).unwrap();
    let windows: Vec<_> = sliding.layers.iter().map(|layer| layer.window).collect();
    assert_eq!((windows[20], windows[21]), (None, Some(32_768)));
}

#[test]
fn qwen3_moe_takes_the_width_of_its_experts() {
    let qwen = plain(&qwen3_moe());
    let experts = qwen.mlp.experts.unwrap();
    assert_eq!((qwen.intermediate, experts.count, experts.used), (768, 128, 8));
    assert!(experts.normed && !experts.mixtral_names && qwen.norm.qk && !qwen.bias.qkv);
}

#[test]
fn gemma3_has_two_ropes_and_five_of_six_layers_slide() {
    let gemma = plain(&gemma3());
    assert_eq!(gemma.mlp.activation, Activation::GeluTanh);
    assert!(gemma.norm.post && gemma.norm.qk && gemma.ends.tied_head);
    assert_eq!((gemma.norm.offset, gemma.ends.embedding_scale), (1.0, 1152_f32.sqrt()));
    for (index, layer) in gemma.layers.iter().enumerate() {
        let expected = if index % 6 == 5 { (None, 1e6) } else { (Some(512), 1e4) };
        assert_eq!((layer.window, layer.rope.theta), expected, "{index}");
        assert_eq!((layer.scale, layer.softcap), (0.0625, None));
    }
    // As the reference library writes it from version 5 on.
    let mut newer = gemma3();
    let keys = newer.as_object_mut().unwrap();
    keys.retain(|key, _| !key.starts_with("rope_"));
    keys.insert(
        "rope_parameters".to_owned(),
        json!({
        "full_attention": {"rope_theta": 5e5, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 2e4, "rope_type": "default"}}),
    );
    let newer = plain(&newer);
    let [local, global] = [0, 5].map(|index: usize| &newer.layers[index].rope);
    assert_eq!((local.theta, &local.scaling), (2e4, &RopeScaling::None));
    assert_eq!((global.theta, &global.scaling), (5e5, &RopeScaling::Linear(8.0)));
}

#[test]
fn phi_turns_a_part_and_picks_factors_by_its_context() {
    let phi = plain(&phi4_mini());
    let rope = &phi.layers[0].rope;
    assert_eq!((phi.fused, phi.heads.dim, rope.rotated), (true, 128, 96));
    assert_eq!(rope.scaling, RopeScaling::Factors(vec![2.0; 48]));
    // √(1 + ln 32 / ln 4096)
    assert!((rope.magnitude - 1.190_238).abs() < 1e-6, "{}", rope.magnitude);
    let short = changed(&phi4_mini(), &json!({"max_position_embeddings": 4096})).unwrap();
    let rope = &short.layers[0].rope;
    assert_eq!((&rope.scaling, rope.magnitude), (&RopeScaling::Factors(vec![1.0; 48]), 1.0));
}

#[test]
fn what_is_wrong_or_not_served_is_named() {
    let short_list = json!({"layer_types": ["full_attention"]});
    let unknown = json!({"layer_types": vec!["chunked_attention"; 26]});
    let few = json!({"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]});
    let cases = [
        (gemma3(), short_list, "layer_types: 1 entries for 26 layers"),
        (gemma3(), unknown, "layer_types: chunked_attention is not served"),
        (gemma3(), json!({"final_logit_softcapping": 0.0}), "logit_softcapping: is 0"),
        (gemma3(), json!({"query_pre_attn_scalar": -1}), "query_pre_attn_scalar: is -1"),
        (gemma3(), json!({"rope_local_base_freq": 0}), "rope_local_base_freq: is 0"),
        (gemma3(), json!({"hidden_activation": "relu"}), "hidden_act: relu is not served"),
        (qwen2(), json!({"hidden_act": "gelu"}), "hidden_act: gelu is not served"),
        (qwen3_moe(), json!({"num_experts": 0}), "num_experts: is 0"),
        (qwen3_moe(), json!({"num_experts": 4097}), "num_experts: is 4097"),
        (qwen3_moe(), json!({"num_experts_per_tok": 129}), "num_experts_per_tok: is 129"),
        (qwen3_moe(), json!({"moe_intermediate_size": 0}), "moe_intermediate_size: is 0"),
        (qwen3_moe(), json!({"mlp_only_layers": [3]}), "layers without experts"),
        (phi4_mini(), json!({"rope_scaling": few}), "long_factor: 1 factors for 96 elements"),
        (phi4_mini(), json!({"partial_rotary_factor": 0.0}), "partial_rotary_factor: is 0"),
    ];
    for (config, changes, expected) in cases {
        let message = changed(&config, &changes).expect_err(expected).to_string();
        assert!(message.contains(expected), "expected {expected:?} in {message:?}");
        assert_eq!(message.lines().count(), 1);
    }
}

#[test]
fn an_unknown_architecture_is_named_beside_those_served() {
    let other = json!({"architectures": ["NoSuchModel"]});
    let message = changed(&qwen2(), &other).unwrap_err().to_string();
    assert!(message.contains("NoSuchModel") && message.ends_with("smollm3)"), "{message}");
    assert_eq!(message.lines().count(), 1);
}

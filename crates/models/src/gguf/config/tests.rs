//! Configuration out of metadata, against what config.json of the same model would say.

use super::super::build::{GgufFile, key_array, key_f32, key_text, key_u32};
use super::*;
use crate::Bytes;

fn parse(file: &GgufFile) -> Gguf {
    Gguf::parse(Bytes::from(file.bytes()), "test.gguf").unwrap()
}

fn embedded() -> GgufFile {
    let mut file = GgufFile::llama();
    file.add("token_embd.weight", &[8, 6], &[0.0; 48]);
    file
}

/// Metadata with one key replaced, or removed if the new one is empty.
fn with(name: &str, value: Vec<u8>) -> Gguf {
    let mut file = embedded();
    let named =
        |key: &Vec<u8>| key[8..].starts_with(name.as_bytes()) && key[0] as usize == name.len();
    file.keys.retain(|key| !named(key));
    if !value.is_empty() {
        file.keys.push(value);
    }
    parse(&file)
}

#[test]
fn metadata_says_what_config_json_would() {
    let written = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 6,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "attention_bias": false, "mlp_bias": false, "hidden_act": "silu",
        "tie_word_embeddings": true}"#;
    let expected = HfConfig::from_json(written, "config.json").unwrap();
    assert_eq!(hf_config(&parse(&embedded())).unwrap(), expected);
}

#[test]
fn tensors_say_whether_head_and_biases_are_there() {
    let mut file = embedded();
    file.add("output.weight", &[8, 6], &[0.0; 48]);
    file.add("blk.0.attn_q.bias", &[8], &[0.0; 8]);
    let config = hf_config(&parse(&file)).unwrap();
    assert_eq!(config.output.tie_word_embeddings, Some(false));
    assert_eq!(config.attention.attention_bias, Some(true));
}

#[test]
fn without_weights_the_tokens_are_counted() {
    assert_eq!(hf_config(&parse(&GgufFile::llama())).unwrap().size.vocab_size, 5);
}

#[test]
fn scaling_is_read_from_both_spellings() {
    let cases = [
        (vec![key_text("llama.rope.scaling.type", "none")], None),
        (vec![key_f32("llama.rope.scale_linear", 4.0)], Some(("linear", 4.0))),
        (vec![key_f32("llama.rope.scale_linear", 1.0)], None),
        (
            vec![
                key_text("llama.rope.scaling.type", "linear"),
                key_f32("llama.rope.scaling.factor", 8.0),
            ],
            Some(("linear", 8.0)),
        ),
    ];
    for (keys, expected) in cases {
        let mut file = embedded();
        file.keys.extend(keys);
        let rope = hf_config(&parse(&file)).unwrap().rope;
        let found = rope.scaling().map(|scaling| (scaling.kind(), scaling.factor.unwrap()));
        assert_eq!(found, expected);
    }
}

#[test]
fn frequency_factors_are_handed_on_or_refused() {
    let factors = |elements: &[f32]| {
        let mut file = embedded();
        file.add("rope_freqs.weight", &[elements.len() as u64], elements);
        hf_config(&parse(&file)).map(|config| config.rope.factors)
    };
    assert_eq!(factors(&[1.0, 8.0]).unwrap(), Some(vec![1.0, 8.0]));
    for broken in [&[1.0][..], &[1.0, 0.0], &[1.0, f32::NAN], &[-1.0, 1.0], &[1.0, 1.0, 1.0]] {
        let error = factors(broken).expect_err("broken factors").to_string();
        assert!(error.contains("rope_freqs.weight: is not 2 positive floats"), "{error}");
    }
}

#[test]
fn missing_and_impossible_keys_are_named() {
    let cases = [
        ("general.architecture", Vec::new(), "general.architecture: is missing"),
        ("llama.block_count", Vec::new(), "llama.block_count: is missing"),
        ("llama.block_count", key_u32("llama.block_count", 0), "num_hidden_layers: is 0"),
        ("llama.block_count", key_u32("llama.block_count", 1025), "num_hidden_layers: is 1025"),
        ("llama.block_count", key_f32("llama.block_count", 1.0), "is no whole number"),
        (
            "llama.attention.head_count_kv",
            key_array("llama.attention.head_count_kv", 4, 1, &[1, 0, 0, 0]),
            "llama.attention.head_count_kv: is no whole number",
        ),
        ("llama.attention.head_count", key_u32("llama.attention.head_count", 0), "is 0"),
        (
            "llama.attention.value_length",
            key_u32("llama.attention.value_length", 5),
            "llama.attention.value_length: is 5; served is the size of keys, 4",
        ),
    ];
    for (name, value, expected) in cases {
        let error = hf_config(&with(name, value)).expect_err(expected).to_string();
        assert!(error.contains(expected), "expected {expected:?} in {error:?}");
        assert!(error.starts_with("test.gguf: "), "{error}");
    }
}

/// Metadata of the small Llama under another architecture's name.
fn of(architecture: &str, keys: Vec<Vec<u8>>) -> HfConfig {
    let mut file = GgufFile::empty();
    file.keys = vec![key_text("general.architecture", architecture)];
    let sizes = ["embedding_length", "feed_forward_length", "context_length"];
    for key in sizes.into_iter().chain(["attention.head_count"]) {
        file.keys.push(key_u32(&format!("{architecture}.{key}"), 8));
    }
    file.keys.extend(keys);
    file.add("token_embd.weight", &[8, 6], &[0.0; 48]);
    hf_config(&parse(&file)).unwrap()
}

#[test]
fn what_gemma_files_leave_out_is_filled_in() {
    let layers = |name: &str, count| key_u32(&format!("{name}.block_count"), count);
    let two = of("gemma2", vec![layers("gemma2", 2)]);
    assert!(two.output.norm_offset_stored && two.output.rms_norm_eps.is_none());
    let caps = (two.attention.attn_logit_softcapping, two.output.final_logit_softcapping);
    assert_eq!((caps, two.attention.query_pre_attn_scalar), ((Some(50.0), Some(30.0)), None));
    // Scores of the largest are scaled by hidden size over heads.
    for (name, count) in [("gemma2", 46), ("gemma3", 62)] {
        let largest = of(name, vec![layers(name, count)]);
        assert_eq!(largest.attention.query_pre_attn_scalar, Some(1.0));
    }
    let pattern = |value| of("gemma3", vec![layers("gemma3", 2), value]).attention;
    let number = pattern(key_u32("gemma3.attention.sliding_window_pattern", 3));
    assert_eq!((number.sliding_window_pattern, number.layer_types), (Some(3), None));
    let flags = key_array("gemma3.attention.sliding_window_pattern", 7, 2, &[0, 1]);
    let types = pattern(flags).layer_types.unwrap();
    assert_eq!(types, ["full_attention", "sliding_attention"]);
}

#[test]
fn files_of_mistral_and_mixtral_are_told_from_llama() {
    let with = |key: &str, value| {
        of("llama", vec![key_u32("llama.block_count", 1), key_u32(key, value)]).architecture
    };
    assert_eq!(with("llama.attention.sliding_window", 4096), "MistralForCausalLM");
    assert_eq!(with("llama.attention.sliding_window", 0), "LlamaForCausalLM");
    assert_eq!(with("llama.expert_count", 8), "MixtralForCausalLM");
    assert_eq!(with("llama.expert_count", 0), "LlamaForCausalLM");
}

#[test]
fn other_architectures_keep_their_name() {
    let mut file = embedded();
    file.keys = vec![key_text("general.architecture", "other")];
    for key in ["context_length", "embedding_length", "feed_forward_length", "block_count"] {
        file.keys.push(key_u32(&format!("other.{key}"), 8));
    }
    file.keys.push(key_u32("other.attention.head_count", 2));
    assert_eq!(hf_config(&parse(&file)).unwrap().architecture, "other");
}

#[test]
fn end_tokens_are_those_named_and_the_well_known_control_tokens() {
    // 1 is named, 2 is a control token, 3 has a known text but is an ordinary token.
    assert_eq!(end_tokens(&parse(&embedded())), [1, 2]);
    let mut file = embedded();
    file.keys.push(key_u32("tokenizer.ggml.eot_token_id", 3));
    file.keys.push(key_u32("tokenizer.ggml.eom_token_id", u32::MAX));
    assert_eq!(end_tokens(&parse(&file)), [1, 2, 3]);
    assert!(end_tokens(&parse(&GgufFile::empty())).is_empty());
}

//! Configuration files of published models, shortened, and broken ones.

use super::*;

const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3", "type": "llama3"},
    "hidden_act": "silu", "tie_word_embeddings": true, "eos_token_id": [128001, 128008, 128009],
    "a_key_of_tomorrow": {"x": [1]}}"#;

fn refused(text: &str) -> String {
    HfConfig::from_json(text, "config.json").expect_err(text).to_string()
}

#[test]
fn a_llama_is_read() {
    let config = HfConfig::from_json(LLAMA, "config.json").unwrap();
    assert_eq!(config.architecture, "LlamaForCausalLM");
    assert_eq!((config.size.head_size(), config.size.kv_heads()), (64, 8));
    assert_eq!(config.rope.theta(), Some(500_000.0));
    let scaling = config.rope.scaling().unwrap();
    assert_eq!((scaling.kind(), scaling.factor), ("llama3", Some(32.0)));
    assert_eq!(scaling.original_max_position_embeddings, Some(8192.0));
    assert_eq!(config.output.tie_word_embeddings, Some(true));
    assert_eq!(config.attention.attention_bias, None);
    assert_eq!(end_tokens(LLAMA, "config.json").unwrap(), [128_001, 128_008, 128_009]);
}

#[test]
fn rope_is_found_in_its_older_and_newer_places() {
    let start = LLAMA.find(r#""rope_theta""#).unwrap();
    let stop = LLAMA.find(r#""hidden_act""#).unwrap();
    let with = |rope: &str| {
        let text = format!("{}{rope}{}", &LLAMA[..start], &LLAMA[stop..]);
        HfConfig::from_json(&text, "config.json").unwrap().rope
    };
    let newer = with(r#""rope_parameters": {"rope_theta": 7.0, "rope_type": "default"},"#);
    assert_eq!((newer.theta(), newer.scaling()), (Some(7.0), None));
    let newer = with(r#""rope_parameters": {"rope_type": "linear", "factor": 4.0},"#);
    assert_eq!((newer.theta(), newer.scaling().unwrap().kind()), (None, "linear"));
    let older = with(r#""rope_theta": 3, "rope_scaling": {"type": "linear", "factor": 2},"#);
    assert_eq!((older.theta(), older.scaling().unwrap().kind()), (Some(3.0), "linear"));
    let none = with(r#""rope_scaling": null,"#);
    assert_eq!((none.theta(), none.scaling()), (None, None));
}

#[test]
fn sizes_hold_at_the_limit_and_not_one_past() {
    let cases = [
        ("\"hidden_size\": 2048", "hidden_size", 1 << 20),
        ("\"intermediate_size\": 8192", "intermediate_size", 1 << 22),
        ("\"num_hidden_layers\": 16", "num_hidden_layers", 1 << 10),
        ("\"vocab_size\": 128256", "vocab_size", 1 << 24),
        ("\"max_position_embeddings\": 131072", "max_position_embeddings", 1 << 30),
    ];
    for (written, key, most) in cases {
        let with = |size: u64| {
            // hidden_size at its limit needs a head_dim that is within its own.
            let text = LLAMA.replace(written, &format!("\"{key}\": {size}, \"head_dim\": 64"));
            HfConfig::from_json(&text, "config.json")
        };
        assert!(with(most).is_ok(), "{key}");
        for size in [0, most + 1, u64::MAX] {
            let error = with(size).expect_err(key).to_string();
            assert!(error.contains(&format!("config.json: {key}: is {size}")), "{error}");
        }
    }
}

#[test]
fn broken_files_are_refused_with_the_place() {
    let cases = [
        ("", "line 1 column 0"),
        ("[]", "line 1 column"),
        ("{}", "architectures: is missing"),
        (r#"{"architectures": []}"#, "architectures: is missing"),
        (r#"{"architectures": ["X"]}"#, "missing field `hidden_size`"),
    ];
    for (text, expected) in cases {
        let error = refused(text);
        assert!(error.contains(expected), "expected {expected:?} in {error:?}");
    }
    let heads = [
        ("\"num_key_value_heads\": 8", "\"num_key_value_heads\": 7", "7 does not divide 32"),
        ("\"num_key_value_heads\": 8", "\"num_key_value_heads\": 0", "num_key_value_heads: is 0"),
        ("\"num_attention_heads\": 32", "\"num_attention_heads\": 0", "num_attention_heads: is 0"),
        ("\"hidden_size\": 2048", "\"hidden_size\": 2050", "32 does not divide hidden_size"),
        ("\"hidden_size\": 2048", "\"hidden_size\": \"2048\"", "line 2 column"),
        ("\"hidden_size\": 2048", "\"hidden_size\": -1", "line 2 column"),
        ("\"hidden_size\": 2048", "\"hidden_size\": 1, \"hidden_size\": 2", "duplicate field"),
    ];
    for (from, to, expected) in heads {
        let error = refused(&LLAMA.replace(from, to));
        assert!(error.contains(expected), "expected {expected:?} in {error:?}");
    }
}

#[test]
fn end_tokens_are_one_or_many() {
    let cases: [(&str, &[u32]); 4] = [
        (r#"{"eos_token_id": 2}"#, &[2]),
        (r#"{"eos_token_id": [2, 3]}"#, &[2, 3]),
        (r#"{"eos_token_id": null}"#, &[]),
        ("{}", &[]),
    ];
    for (text, expected) in cases {
        assert_eq!(end_tokens(text, "generation_config.json").unwrap(), expected);
    }
    for text in
        [r#"{"eos_token_id": -1}"#, r#"{"eos_token_id": "</s>"}"#, r#"{"eos_token_id": [1.5]}"#]
    {
        let error = end_tokens(text, "generation_config.json").expect_err(text).to_string();
        assert!(error.contains("neither a token id nor a list"), "{error}");
    }
}

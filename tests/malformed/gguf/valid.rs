//! Small GGUF models that are valid: a family of each form that files have.

use crate::gguf_file::{GgufFile, key, key_array, key_f32, key_text, key_texts, key_u32, tensor};

const HIDDEN: u64 = 32;
const WIDE: u64 = 64;
const HEAD: u64 = 16;
const LAYERS: u32 = 2;
/// Type ids of tensors, elements of a block and its bytes.
const F32: (u32, u64, u64) = (0, 1, 4);
const F16: (u32, u64, u64) = (1, 1, 2);
const Q4_0: (u32, u64, u64) = (2, 32, 18);
const Q8_0: (u32, u64, u64) = (8, 32, 34);

/// A model of each form that files have.
pub(crate) fn valid() -> Vec<GgufFile> {
    vec![plain("llama"), plain("qwen2"), plain("gemma3"), plain("phi3"), experts()]
}

fn add(file: &mut GgufFile, name: &str, dims: &[u64], (id, block, bytes): (u32, u64, u64)) {
    file.weights.resize(file.weights.len().next_multiple_of(32), 0);
    file.tensors.push(tensor(name, dims, id, file.weights.len() as u64));
    let length = dims.iter().product::<u64>() / block * bytes;
    // Small numbers in every format, none of them zero.
    file.weights.extend((0..length).map(|at| if at % 2 == 0 { 1 + (at % 7) as u8 } else { 0x1c }));
}

fn metadata(family: &str) -> GgufFile {
    let own = |key: &str| format!("{family}.{key}");
    let mut file = GgufFile::empty();
    file.keys = vec![
        key_text("general.architecture", family),
        key_u32(&own("block_count"), LAYERS),
        key_u32(&own("context_length"), 128),
        key_u32(&own("embedding_length"), HIDDEN as u32),
        key_u32(&own("feed_forward_length"), WIDE as u32),
        key_u32(&own("attention.head_count"), 2),
        key_u32(&own("attention.head_count_kv"), 1),
        key_u32(&own("rope.dimension_count"), HEAD as u32),
        key_f32(&own("attention.layer_norm_rms_epsilon"), 1e-5),
        key_f32(&own("rope.freq_base"), 10_000.0),
        key_text("tokenizer.chat_template", "{{ bos_token }}{{ messages[0].content }}"),
        key_u32("tokenizer.ggml.bos_token_id", 1),
        key_u32("tokenizer.ggml.eos_token_id", 2),
        key("tokenizer.ggml.add_bos_token", 7, &[1]),
    ];
    let types = [2_i32, 3, 3, 6, 1, 1, 1, 1].map(i32::to_le_bytes).concat();
    file.keys.push(key_array("tokenizer.ggml.token_type", 5, 8, &types));
    if family == "qwen2" || family == "phi3" {
        let tokens = ["<u>", "<s>", "</s>", "Ġ", "a", "b", "ab", "Ġab"];
        file.keys.push(key_texts("tokenizer.ggml.tokens", &tokens));
        file.keys.push(key_texts("tokenizer.ggml.merges", &["a b", "Ġ ab"]));
        file.keys.push(key_text("tokenizer.ggml.model", "gpt2"));
        file.keys.push(key_text("tokenizer.ggml.pre", "qwen2"));
    } else {
        let tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "▁a"];
        let scores = [0_f32, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -0.5].map(f32::to_le_bytes).concat();
        file.keys.push(key_texts("tokenizer.ggml.tokens", &tokens));
        file.keys.push(key_array("tokenizer.ggml.scores", 6, 8, &scores));
        file.keys.push(key_text("tokenizer.ggml.model", "llama"));
    }
    add(&mut file, "token_embd.weight", &[HIDDEN, 8], Q8_0);
    add(&mut file, "output_norm.weight", &[HIDDEN], F32);
    file
}

fn plain(family: &str) -> GgufFile {
    let mut file = metadata(family);
    if family == "gemma3" {
        file.keys.push(key_u32("gemma3.attention.sliding_window", 8));
        file.keys.push(key_u32("gemma3.attention.key_length", HEAD as u32));
        file.keys.push(key_array("gemma3.attention.sliding_window_pattern", 7, 2, &[1, 0]));
    }
    for layer in 0..LAYERS {
        attention(&mut file, family, layer);
        let own = |part: &str| format!("blk.{layer}.{part}.weight");
        if family != "phi3" {
            add(&mut file, &own("ffn_gate"), &[HIDDEN, WIDE], Q4_0);
        }
        let up = if family == "phi3" { 2 * WIDE } else { WIDE };
        add(&mut file, &own("ffn_up"), &[HIDDEN, up], Q4_0);
        add(&mut file, &own("ffn_down"), &[WIDE, HIDDEN], F16);
    }
    if family == "llama" {
        add(&mut file, "rope_freqs.weight", &[HEAD / 2], F32);
    }
    if family == "phi3" {
        file.keys.push(key_u32("phi3.rope.scaling.original_context_length", 64));
        add(&mut file, "rope_factors_long.weight", &[HEAD / 2], F32);
        add(&mut file, "rope_factors_short.weight", &[HEAD / 2], F32);
    }
    file
}

fn attention(file: &mut GgufFile, family: &str, layer: u32) {
    let own = |part: &str| format!("blk.{layer}.{part}");
    add(file, &own("attn_norm.weight"), &[HIDDEN], F32);
    add(file, &own("ffn_norm.weight"), &[HIDDEN], F32);
    let parts: &[_] = if family == "phi3" {
        &[("attn_qkv", 4 * HEAD)]
    } else {
        &[("attn_q", 2 * HEAD), ("attn_k", HEAD), ("attn_v", HEAD)]
    };
    for (part, rows) in parts {
        add(file, &own(&format!("{part}.weight")), &[HIDDEN, *rows], Q8_0);
        if family == "qwen2" {
            add(file, &own(&format!("{part}.bias")), &[*rows], F32);
        }
    }
    add(file, &own("attn_output.weight"), &[2 * HEAD, HIDDEN], Q4_0);
    if family == "gemma3" {
        for (part, width) in [
            ("attn_q_norm", HEAD),
            ("attn_k_norm", HEAD),
            ("post_attention_norm", HIDDEN),
            ("post_ffw_norm", HIDDEN),
        ] {
            add(file, &own(&format!("{part}.weight")), &[width], F32);
        }
    }
}

/// Mixtral, which calls itself llama.
fn experts() -> GgufFile {
    let mut file = metadata("llama");
    file.keys.push(key_u32("llama.expert_count", 4));
    file.keys.push(key_u32("llama.expert_used_count", 2));
    for layer in 0..LAYERS {
        attention(&mut file, "llama", layer);
        let own = |part: &str| format!("blk.{layer}.{part}.weight");
        add(&mut file, &own("ffn_gate_inp"), &[HIDDEN, 4], F32);
        add(&mut file, &own("ffn_gate_exps"), &[HIDDEN, WIDE, 4], Q4_0);
        add(&mut file, &own("ffn_up_exps"), &[HIDDEN, WIDE, 4], Q4_0);
        add(&mut file, &own("ffn_down_exps"), &[WIDE, HIDDEN, 4], Q8_0);
    }
    file
}

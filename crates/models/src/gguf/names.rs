//! Tensor names: GGUF to Hugging Face.

/// Hugging Face name of a GGUF tensor in a file of the architecture given; `None` if it has none.
/// The matrices of all experts are one tensor there: `….experts.gate_proj`.
pub(crate) fn hf_name(name: &str, architecture: &str) -> Option<String> {
    let top = match name {
        "token_embd.weight" => "model.embed_tokens.weight",
        "output_norm.weight" => "model.norm.weight",
        "output.weight" => "lm_head.weight",
        _ => return block_name(name, architecture),
    };
    Some(top.to_owned())
}

/// `blk.N.part.weight` or `.bias`.
fn block_name(name: &str, architecture: &str) -> Option<String> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let number: u32 = layer.parse().ok()?;
    let (part, suffix) = rest.rsplit_once('.')?;
    if number.to_string() != layer || !["weight", "bias"].contains(&suffix) {
        return None;
    }
    let part = match (architecture, part) {
        ("gemma2" | "gemma3", "ffn_norm") => "pre_feedforward_layernorm",
        ("gemma2" | "gemma3", "post_attention_norm") => "post_attention_layernorm",
        ("gemma2" | "gemma3", "post_ffw_norm") => "post_feedforward_layernorm",
        ("phi3", "attn_qkv") => "self_attn.qkv_proj",
        ("phi3", "ffn_up") => "mlp.gate_up_proj",
        ("llama", "ffn_gate_inp") => "block_sparse_moe.gate",
        ("llama", "ffn_gate_exps") => "block_sparse_moe.experts.w1",
        ("llama", "ffn_down_exps") => "block_sparse_moe.experts.w2",
        ("llama", "ffn_up_exps") => "block_sparse_moe.experts.w3",
        (_, part) => plain_part(part)?,
    };
    Some(format!("model.layers.{number}.{part}.{suffix}"))
}

fn plain_part(part: &str) -> Option<&'static str> {
    Some(match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "ffn_gate_inp" => "mlp.gate",
        "ffn_gate_exps" => "mlp.experts.gate_proj",
        "ffn_up_exps" => "mlp.experts.up_proj",
        "ffn_down_exps" => "mlp.experts.down_proj",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_hugging_face() {
        let cases = [
            ("token_embd.weight", Some("model.embed_tokens.weight")),
            ("output_norm.weight", Some("model.norm.weight")),
            ("output.weight", Some("lm_head.weight")),
            ("blk.0.attn_norm.weight", Some("model.layers.0.input_layernorm.weight")),
            ("blk.11.attn_q.bias", Some("model.layers.11.self_attn.q_proj.bias")),
            ("blk.3.attn_output.weight", Some("model.layers.3.self_attn.o_proj.weight")),
            ("blk.3.ffn_norm.weight", Some("model.layers.3.post_attention_layernorm.weight")),
            ("blk.3.ffn_down.weight", Some("model.layers.3.mlp.down_proj.weight")),
            ("blk.03.ffn_down.weight", None),
            ("blk.+3.ffn_down.weight", None),
            ("blk.3.ffn_down.scale", None),
            ("blk.3.ffn_gate_exps.bias.weight", None),
            ("blk.3.post_ffw_norm.weight", None),
            ("blk.3", None),
            ("rope_freqs.weight", None),
        ];
        for (name, expected) in cases {
            assert_eq!(hf_name(name, "qwen2").as_deref(), expected, "{name}");
        }
        let cases = [
            ("gemma3", "ffn_norm", "pre_feedforward_layernorm"),
            ("gemma3", "post_attention_norm", "post_attention_layernorm"),
            ("gemma", "ffn_norm", "post_attention_layernorm"),
            ("phi3", "ffn_up", "mlp.gate_up_proj"),
            ("qwen3moe", "ffn_gate_exps", "mlp.experts.gate_proj"),
            ("llama", "ffn_up_exps", "block_sparse_moe.experts.w3"),
        ];
        for (architecture, part, expected) in cases {
            let found = hf_name(&format!("blk.7.{part}.weight"), architecture);
            assert_eq!(found, Some(format!("model.layers.7.{expected}.weight")), "{architecture}");
        }
    }
}

//! Tensor names: GGUF to Hugging Face.

/// Hugging Face name of a GGUF tensor, for the Llama-like architectures; `None` for all others.
pub(crate) fn hf_name(name: &str) -> Option<String> {
    let top = match name {
        "token_embd.weight" => "model.embed_tokens.weight",
        "output_norm.weight" => "model.norm.weight",
        "output.weight" => "lm_head.weight",
        _ => return block_name(name),
    };
    Some(top.to_owned())
}

/// `blk.N.part.weight` or `.bias`.
fn block_name(name: &str) -> Option<String> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let number: u32 = layer.parse().ok()?;
    let (part, suffix) = rest.rsplit_once('.')?;
    if number.to_string() != layer || !["weight", "bias"].contains(&suffix) {
        return None;
    }
    let part = match part {
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
        _ => return None,
    };
    Some(format!("model.layers.{number}.{part}.{suffix}"))
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
            ("blk.3.ffn_gate_exps.weight", None),
            ("blk.3", None),
            ("rope_freqs.weight", None),
        ];
        for (name, expected) in cases {
            assert_eq!(hf_name(name).as_deref(), expected, "{name}");
        }
    }
}

//! `spec`: from a configuration to the decoder that it describes. A family is a function that
//! returns a `DecoderSpec`.

mod llama;

use crate::{DecoderSpec, Error, HfConfig};

/// Architectures served, for messages.
const SERVED: &str = "LlamaForCausalLM (Llama 2 and 3, SmolLM2, TinyLlama; llama in a GGUF file)";

/// The decoder that a configuration describes. `file` is the name in messages of the file that it
/// is from.
pub(crate) fn spec(config: &HfConfig, file: &str) -> Result<DecoderSpec, Error> {
    config.size.check(file)?;
    match config.architecture.as_str() {
        "LlamaForCausalLM" => llama::spec(config, file),
        other => {
            let what = format!("{other} is not served; served: {SERVED}");
            Err(Error::unsupported(file, "architectures", what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_architecture_is_named_beside_those_served() {
        let text = r#"{"architectures": ["NoSuchModel"], "hidden_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8,
            "max_position_embeddings": 8}"#;
        let config = HfConfig::from_json(text, "config.json").unwrap();
        let message = spec(&config, "config.json").unwrap_err().to_string();
        assert!(
            message.contains("NoSuchModel") && message.contains("LlamaForCausalLM"),
            "{message}"
        );
        assert_eq!(message.lines().count(), 1);
    }
}

//! How a model's embeddings are made, as its files declare it: `1_Pooling/config.json` of
//! sentence-transformers, or `pooling_type` of a GGUF file; the last token's where they do not.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use kvant_engine::Pooling;
use kvant_models::{Gguf, ModelFiles};
use kvant_server::{EmbeddingCard, Shorter};
use serde_json::Value;

/// Largest file that is read for it, bytes.
const CONFIG_BYTES: u64 = 1 << 20;

/// Reads the declaration.
pub(crate) fn card(files: &ModelFiles) -> Result<EmbeddingCard> {
    let width = files.spec()?.hidden;
    if let Some(gguf) = files.gguf() {
        return Ok(EmbeddingCard { pooling: of_gguf(gguf)?, width, shorter: Shorter::None });
    }
    let folder = files.folder();
    let pooling = match json(&folder.join("1_Pooling").join("config.json"))? {
        Some(config) => of_config(&config).context("1_Pooling/config.json")?,
        None => Pooling::default(),
    };
    let config = json(&folder.join("config.json"))?.unwrap_or_default();
    Ok(EmbeddingCard { pooling, width, shorter: shorter(&config) })
}

/// llama.cpp's numbers.
fn of_gguf(gguf: &Gguf) -> Result<Pooling> {
    let architecture = gguf.str("general.architecture").unwrap_or_default();
    match gguf.u64(&format!("{architecture}.pooling_type")) {
        None | Some(0 | 3) => Ok(Pooling::Last),
        Some(1) => Ok(Pooling::Mean),
        Some(2) => Ok(Pooling::First),
        Some(other) => bail!("{}: pooling_type {other} is not known, only 0 to 3", gguf.file()),
    }
}

fn of_config(config: &Value) -> Result<Pooling> {
    let modes = [
        ("pooling_mode_cls_token", Pooling::First),
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_lasttoken", Pooling::Last),
    ];
    let on = config.as_object().into_iter().flatten();
    let on = on.filter(|(key, value)| key.starts_with("pooling_mode_") && **value == true);
    let on: Vec<&str> = on.map(|(key, _)| key.as_str()).collect();
    let known = modes.into_iter().find(|(name, _)| on == [*name]);
    match known {
        Some((_, pooling)) => Ok(pooling),
        None if on.is_empty() => Ok(Pooling::default()),
        None => bail!("{} is not served; one of cls, mean and lasttoken is", on.join(" with ")),
    }
}

/// The lengths that the model was trained to be cut to, as vLLM reads them.
fn shorter(config: &Value) -> Shorter {
    let lengths = config["matryoshka_dimensions"].as_array();
    let lengths = lengths
        .map(|list| list.iter().filter_map(Value::as_u64).map(|length| length as usize).collect());
    match lengths {
        Some(lengths) => Shorter::Of(lengths),
        None if config["is_matryoshka"] == true => Shorter::Any,
        None => Shorter::None,
    }
}

/// `None` if there is no such file.
fn json(path: &Path) -> Result<Option<Value>> {
    let Ok(found) = fs::metadata(path) else { return Ok(None) };
    if found.len() > CONFIG_BYTES {
        bail!("{}: has more than {CONFIG_BYTES} bytes", path.display());
    }
    let text = fs::read_to_string(path);
    let text = text.with_context(|| format!("{}: cannot be read", path.display()))?;
    let value = serde_json::from_str(&text);
    Ok(Some(value.with_context(|| format!("{}: is not JSON", path.display()))?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pooling_is_what_the_model_declares() {
        let mode = |name: &str| {
            json!({"word_embedding_dimension": 8, "pooling_mode_cls_token": false,
            "pooling_mode_mean_tokens": false, name: true})
        };
        for (config, expected) in [
            (mode("pooling_mode_cls_token"), Some(Pooling::First)),
            (mode("pooling_mode_mean_tokens"), Some(Pooling::Mean)),
            (mode("pooling_mode_lasttoken"), Some(Pooling::Last)),
            (json!({}), Some(Pooling::Last)),
            (mode("pooling_mode_max_tokens"), None),
            (json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}), None),
        ] {
            assert_eq!(of_config(&config).ok(), expected, "{config}");
        }
    }

    #[test]
    fn cuts_are_those_of_the_training() {
        assert_eq!(shorter(&json!({})), Shorter::None);
        assert_eq!(shorter(&json!({"is_matryoshka": true})), Shorter::Any);
        let config = json!({"is_matryoshka": true, "matryoshka_dimensions": [64, 128]});
        assert_eq!(shorter(&config), Shorter::Of(vec![64, 128]));
    }
}

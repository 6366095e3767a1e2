//! `Words`: the tokenizer and chat template of a model, from its folder or its GGUF metadata.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use kvant_models::{Gguf, ModelFiles};
use kvant_text::{ChatTemplate, GgufVocab, TemplateTokens, Tokenizer};
use serde_json::Value;

/// Largest template or tokenizer_config.json, bytes.
const CONFIG_BYTES: u64 = 16 << 20;

/// What turns text into tokens and back.
#[derive(Clone, Debug)]
pub(crate) struct Words {
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// `None`: the model has none, so it continues text but does not chat.
    pub(crate) template: Option<Arc<ChatTemplate>>,
}

impl Words {
    /// Reads both.
    pub(crate) fn load(files: &ModelFiles) -> Result<Self> {
        let (tokenizer, source) = match files.gguf() {
            Some(gguf) => (from_gguf(gguf, files.folder())?, gguf_template(gguf)),
            None => (from_folder(files.folder())?, folder_template(files.folder())?),
        };
        let template = match source {
            Some((text, tokens)) => {
                let template = ChatTemplate::new(&text, tokens);
                let place = || match files.gguf() {
                    Some(gguf) => gguf.file().to_owned(),
                    None => files.folder().display().to_string(),
                };
                Some(Arc::new(template.with_context(place)?))
            }
            None => None,
        };
        Ok(Self { tokenizer: Arc::new(tokenizer), template })
    }
}

fn from_folder(folder: &Path) -> Result<Tokenizer> {
    let path = folder.join("tokenizer.json");
    if !path.is_file() {
        bail!("{}: there is no tokenizer.json beside the weights", folder.display());
    }
    Ok(Tokenizer::from_json_file(&path)?)
}

/// The vocabulary in the file, or a tokenizer.json beside a file without one.
fn from_gguf(gguf: &Gguf, folder: &Path) -> Result<Tokenizer> {
    let Some(tokens) = gguf.strings("tokenizer.ggml.tokens") else {
        return from_folder(folder).with_context(|| format!("{} has no vocabulary", gguf.file()));
    };
    let id = |key: &str| gguf.u64(key).and_then(|id| u32::try_from(id).ok());
    let vocab = GgufVocab {
        kind: gguf.str("tokenizer.ggml.model").unwrap_or_default().to_owned(),
        pre: gguf.str("tokenizer.ggml.pre").map(str::to_owned),
        tokens: tokens.to_vec(),
        scores: gguf.f32s("tokenizer.ggml.scores").unwrap_or_default(),
        token_types: gguf.i32s("tokenizer.ggml.token_type").unwrap_or_default(),
        merges: gguf.strings("tokenizer.ggml.merges").unwrap_or_default().to_vec(),
        bos: id("tokenizer.ggml.bos_token_id"),
        eos: id("tokenizer.ggml.eos_token_id"),
        add_bos: gguf.bool("tokenizer.ggml.add_bos_token"),
        add_eos: gguf.bool("tokenizer.ggml.add_eos_token"),
        add_space_prefix: gguf.bool("tokenizer.ggml.add_space_prefix"),
        architecture: gguf.str("general.architecture").map(str::to_owned),
    };
    Tokenizer::from_gguf(vocab).with_context(|| gguf.file().to_owned())
}

fn gguf_template(gguf: &Gguf) -> Option<(String, TemplateTokens)> {
    let text = gguf.str("tokenizer.chat_template")?.to_owned();
    let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap_or_default();
    let word = |key: &str| {
        let id = usize::try_from(gguf.u64(key)?).ok()?;
        tokens.get(id).cloned()
    };
    let bos = word("tokenizer.ggml.bos_token_id");
    Some((text, TemplateTokens { bos, eos: word("tokenizer.ggml.eos_token_id") }))
}

/// chat_template.jinja, or the template in chat_template.json or tokenizer_config.json.
fn folder_template(folder: &Path) -> Result<Option<(String, TemplateTokens)>> {
    let config = json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    let token = |key: &str| word(&config[key]);
    let tokens = TemplateTokens { bos: token("bos_token"), eos: token("eos_token") };
    let own = text(&folder.join("chat_template.jinja"))?;
    let found = match own {
        Some(text) => Some(text),
        None => match json(&folder.join("chat_template.json"))? {
            Some(other) => template_in(&other),
            None => template_in(&config),
        },
    };
    Ok(found.map(|text| (text, tokens)))
}

/// `chat_template`: a text, or a list of named ones of which `default` is taken.
fn template_in(config: &Value) -> Option<String> {
    match &config["chat_template"] {
        Value::String(text) => Some(text.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default").or(named.first())?;
            default["template"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}

/// A token as the file has it: a text, or an object with `content`.
fn word(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

fn json(path: &Path) -> Result<Option<Value>> {
    let Some(text) = text(path)? else { return Ok(None) };
    let value = serde_json::from_str(&text);
    Ok(Some(value.with_context(|| format!("{}: is not JSON", path.display()))?))
}

/// `None` if there is no such file.
fn text(path: &Path) -> Result<Option<String>> {
    let Ok(found) = fs::metadata(path) else { return Ok(None) };
    if found.len() > CONFIG_BYTES {
        bail!("{}: has more than {CONFIG_BYTES} bytes", path.display());
    }
    let text = fs::read_to_string(path);
    Ok(Some(text.with_context(|| format!("{}: cannot be read", path.display()))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates_are_found_wherever_the_file_has_them() {
        let named =
            json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
        for (config, expected) in [
            (json!({"chat_template": "x"}), Some("x")),
            (json!({"chat_template": named}), Some("d")),
            (json!({"chat_template": [{"name": "rag", "template": "r"}]}), Some("r")),
            (json!({"chat_template": []}), None),
            (json!({}), None),
        ] {
            assert_eq!(template_in(&config).as_deref(), expected, "{config}");
        }
    }

    #[test]
    fn tokens_are_texts_or_objects() {
        assert_eq!(word(&json!("<s>")).as_deref(), Some("<s>"));
        assert_eq!(word(&json!({"content": "<s>", "lstrip": false})).as_deref(), Some("<s>"));
        assert_eq!(word(&json!(null)), None);
    }
}

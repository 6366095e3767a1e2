//! GGUF vocabularies made of tokenizer.json files, as llama.cpp's converter makes them.

use std::fs;
use std::path::Path;

use kvant_text::GgufVocab;
use serde_json::Value;

/// A score lower than any other: SentencePiece's for runs of spaces.
const LOWEST: f32 = -1e9;

/// Reads a tokenizer.json into the lists of a GGUF file.
pub(crate) fn from_json(path: &Path) -> GgufVocab {
    let json: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut tokens: Vec<String> = Vec::new();
    let mut set = |id: &Value, text: &str| {
        let id = usize::try_from(id.as_u64().unwrap()).unwrap();
        if tokens.len() <= id {
            tokens.resize(id + 1, String::new());
        }
        text.clone_into(&mut tokens[id]);
    };
    for (text, id) in json["model"]["vocab"].as_object().unwrap() {
        set(id, text);
    }
    for token in json["added_tokens"].as_array().unwrap() {
        set(&token["id"], token["content"].as_str().unwrap());
    }
    let mut token_types = vec![1; tokens.len()];
    for token in json["added_tokens"].as_array().unwrap() {
        let id = usize::try_from(token["id"].as_u64().unwrap()).unwrap();
        token_types[id] = if token["special"] == true { 3 } else { 4 };
    }
    let merges = json["model"]["merges"].as_array().unwrap().iter().map(|merge| match merge {
        Value::String(text) => text.clone(),
        pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
    });
    GgufVocab {
        kind: "gpt2".to_owned(),
        merges: merges.collect(),
        tokens,
        token_types,
        ..GgufVocab::default()
    }
}

/// The same as a SentencePiece vocabulary: no merges, but scores that fall with the id, as training
/// gives them. `first`: the first piece that is no control token and no byte.
pub(crate) fn with_scores(vocab: GgufVocab, first: usize) -> GgufVocab {
    let score = |(id, text): (usize, &String)| match id {
        id if id < first => 0.0,
        _ if text.chars().all(|c| c == '▁') => LOWEST,
        id => -((id - first) as f32),
    };
    let scores = vocab.tokens.iter().enumerate().map(score).collect();
    GgufVocab { kind: "llama".to_owned(), merges: Vec::new(), scores, ..vocab }
}

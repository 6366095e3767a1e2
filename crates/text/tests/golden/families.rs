//! What scripts/make-family-golden.py made: small vocabularies of every kind that GGUF files hold
//! with the ids of texts, and templates with the constructs of each family's, rendered.

use std::fs;
use std::sync::Arc;

use kvant_text::{ChatTemplate, GgufVocab, TemplateTokens, Tokenizer};
use serde_json::Value;

use crate::{difference, golden, ids, none, root, streamed};

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn vocab(json: &Value) -> GgufVocab {
    let text = |key: &str| json[key].as_str().map(str::to_owned);
    let id = |key: &str| json[key].as_u64().map(|id| u32::try_from(id).unwrap());
    let numbers = |key: &str| json[key].as_array().unwrap().iter();
    GgufVocab {
        kind: text("kind").unwrap(),
        pre: text("pre"),
        tokens: texts(&json["tokens"]),
        scores: numbers("scores").map(|score| score.as_f64().unwrap() as f32).collect(),
        token_types: numbers("token_types").map(|kind| kind.as_i64().unwrap() as i32).collect(),
        merges: texts(&json["merges"]),
        bos: id("bos"),
        eos: id("eos"),
        add_bos: json["add_bos"].as_bool(),
        add_eos: None,
        add_space_prefix: json["add_space_prefix"].as_bool(),
        architecture: text("architecture"),
    }
}

fn check(name: &str) {
    let golden = golden(&format!("vocabularies/{name}"));
    let vocab = vocab(&golden["vocab"]);
    let begins: Vec<u32> =
        golden["vocab"]["begins_with"].as_u64().map(|id| id as u32).into_iter().collect();
    let tokenizer = Arc::new(Tokenizer::from_gguf(vocab).unwrap());
    assert_eq!(tokenizer.begins_with(), begins.first().copied());
    let cases = golden["texts"].as_array().unwrap();
    assert!(cases.len() > 40, "{} texts", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let expected = ids(&case["ids"]);
        let mut same = |what: &str, found: String, expected: String| {
            if found != expected {
                wrong.push(format!("{name}: {text:?}: {what}\n  {found}\n  {expected}"));
            }
        };
        let found = tokenizer.encode(text, false).unwrap();
        same("ids", format!("{found:?}"), format!("{expected:?}"));
        let whole = tokenizer.encode(text, true).unwrap();
        same("begin", format!("{whole:?}"), format!("{:?}", [&begins[..], &expected].concat()));
        let decoded = case["decoded"].as_str().unwrap().to_owned();
        same("decoded", tokenizer.decode(&expected, false), decoded);
        // The stream of a text is what it adds to a prompt.
        let prompt = tokenizer.encode("a", false).unwrap();
        let after = tokenizer.decode(&[&prompt[..], &expected[..]].concat(), true);
        same("stream", format!("a{}", streamed(&tokenizer, &expected)), after);
    }
    none(&wrong);
}

#[test]
fn byte_level_vocabularies() {
    for name in ["gpt-2", "smollm", "llama-3", "qwen2", "tekken", "phi-4-mini", "smollm3"] {
        check(name);
    }
}

#[test]
fn sentence_piece_vocabularies() {
    for name in ["llama-2", "mistral-v3", "llama-no-bytes", "gemma", "phi-3"] {
        check(name);
    }
}

#[test]
fn templates_of_the_families() {
    let golden = golden("families");
    let conversations = golden["conversations"].as_array().unwrap();
    let templates = golden["templates"].as_array().unwrap();
    assert!(conversations.len() > 40 && templates.len() > 10);
    let mut wrong = Vec::new();
    for template in templates {
        let name = template["name"].as_str().unwrap();
        let path = root().join(format!("tests/golden/text/families/{name}.jinja"));
        let token = |key: &str| template[key].as_str().map(str::to_owned);
        let tokens = TemplateTokens { bos: token("bos"), eos: token("eos") };
        let read = ChatTemplate::new(&fs::read_to_string(path).unwrap(), tokens);
        for conversation in conversations {
            let title = conversation["name"].as_str().unwrap();
            let mut case = conversation.clone();
            let result = template["cases"][title].as_object().unwrap();
            case.as_object_mut().unwrap().extend(result.clone());
            if let Some(difference) = difference(&read, &case) {
                wrong.push(format!("{name}: {title}: {difference}"));
            }
        }
    }
    none(&wrong);
}

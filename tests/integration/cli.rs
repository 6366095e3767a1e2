//! The command line from outside: wrong input is one line on stderr and an exit code, and nothing
//! hangs.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::server::{Running, kvant};

fn output(args: &[&str]) -> Output {
    kvant(args).output().expect("the binary was built by cargo")
}

/// The command fails with `code`, prints nothing on stdout and exactly one line on stderr, which
/// has all `parts`.
pub(crate) fn refused(args: &[&str], code: i32, parts: &[&str]) {
    let output = output(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert_eq!(output.stdout, b"", "{args:?}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with("error: "), "{args:?}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{args:?}: {part:?} is not in {stderr}");
    }
}

pub(crate) fn succeeded(output: Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn written(name: &str, bytes: &[u8]) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_missing_model_is_one_line() {
    for command in ["serve", "generate", "inspect", "fetch"] {
        refused(&[command, "./no/such/model.gguf"], 1, &["./no/such/model.gguf", "no such file"]);
        refused(
            &[command, "no-such-model"],
            1,
            &["no-such-model", "tiny", "smollm2-135m-instruct"],
        );
    }
}

/// A GGUF header of version 3 with so many tensors and entries.
fn gguf(tensors: u64, entries: u64, rest: &[u8]) -> Vec<u8> {
    let counts = [tensors.to_le_bytes(), entries.to_le_bytes()].concat();
    [b"GGUF\x03\0\0\0", counts.as_slice(), rest].concat()
}

#[test]
fn a_damaged_model_is_one_line() {
    // The key general.alignment, of type 4 (u32), with the value 0.
    let alignment = [&17_u64.to_le_bytes(), &b"general.alignment\x04\0\0\0\0\0\0\0"[..]].concat();
    for (name, bytes, what) in [
        ("empty.gguf", Vec::new(), "empty.gguf"),
        ("magic.gguf", b"GGUF".to_vec(), "magic.gguf"),
        ("truncated.gguf", gguf(1, 1, b""), "truncated.gguf"),
        ("other.gguf", b"PK\x03\x04 not a model at all".to_vec(), "other.gguf"),
        ("alignment.gguf", gguf(0, 1, &alignment), "general.alignment"),
        ("tensors.gguf", gguf(u64::MAX, 0, b""), "tensors.gguf"),
        ("entries.gguf", gguf(0, 1 << 60, b""), "entries.gguf"),
    ] {
        let path = written(name, &bytes);
        refused(&["inspect", &path], 1, &[name, what]);
        refused(&["generate", &path, "--prompt", "x"], 1, &[name, what]);
        refused(&["serve", &path, "--port", "0"], 1, &[name, what]);
    }
}

#[test]
fn a_damaged_folder_is_one_line() {
    let tiny = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/tiny-llama-1m");
    let weights = fs::read(tiny.join("model.safetensors")).unwrap();
    let past_the_end = [&(1_u64 << 40).to_le_bytes(), &weights[8..]].concat();
    for (name, weights) in [
        ("no-weights", None),
        ("header-past-the-end", Some(past_the_end)),
        ("truncated-weights", Some(weights[..weights.len() - 1].to_vec())),
        ("empty-weights", Some(Vec::new())),
    ] {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&folder).unwrap();
        for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            fs::copy(tiny.join(file), folder.join(file)).unwrap();
        }
        if let Some(weights) = weights {
            fs::write(folder.join("model.safetensors"), weights).unwrap();
        }
        refused(&["serve", folder.to_str().unwrap(), "--port", "0"], 1, &["safetensors"]);
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("no-model-here");
    fs::create_dir_all(&folder).unwrap();
    refused(&["serve", folder.to_str().unwrap(), "--port", "0"], 1, &["no-model-here"]);
}

#[test]
fn a_wrong_configuration_names_file_key_and_neighbour() {
    let path = written("wrong.toml", b"[scheduler]\nsequence = 4\n");
    let parts = ["wrong.toml", "scheduler.sequence;", "did you mean scheduler.sequences?"];
    refused(&["serve", "--model", "tiny", "--config", &path], 1, &parts);
    refused(&["serve", "--config", "no-such.toml"], 1, &["no-such.toml: cannot be read"]);

    let output = kvant(&["inspect", "tiny"]).env("KVANT_SERVER_PORT", "high").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("error: environment KVANT_SERVER_PORT: server.port is \"high\""));
}

#[test]
fn wrong_flags_are_one_line_and_code_2() {
    refused(&["serve", "--port", "x"], 2, &["--port", "0..=65535"]);
    refused(&["serve", "--port", "65536"], 2, &["--port", "0..=65535"]);
    refused(&["serve", "--set", "server.prot=1"], 2, &["did you mean server.port?"]);
    refused(&["serve", "--profile", "fast"], 2, &["fast", "low-memory"]);
    refused(&["serve", "--prot", "1"], 2, &["--prot", "--port"]);
    refused(&["generate", "tiny", "--max-tokens", "0"], 2, &["--max-tokens", "0"]);
    refused(&["generate", "tiny", "--temperature", "nan"], 2, &["--temperature", "0..=2"]);
    refused(&["serv"], 2, &["serv"]);
}

#[test]
fn a_busy_port_is_one_line() {
    let running = Running::start(&["--log-level", "off"]);
    let port = running.port();
    refused(&["serve", "--model", "tiny", "--port", port], 1, &[port, "in use", "--port"]);
}

#[test]
fn what_cannot_fit_into_memory_is_refused() {
    let flags = ["--cache-tokens", "1000000000", "--context-tokens", "1000000000"];
    let mut args = vec!["serve", "--model", "tiny", "--port", "0"];
    args.extend(flags);
    refused(&args, 1, &[]);
}

#[test]
fn generate_prints_the_same_text_twice() {
    let args = ["generate", "tiny", "--raw", "--prompt", "The whale", "--temperature", "0"];
    let mut args = args.to_vec();
    args.extend(["--max-tokens", "12"]);
    let first = succeeded(output(&args));
    assert!(first.trim().len() > 10, "{first:?}");
    assert_eq!(succeeded(output(&args)), first);
}

#[test]
fn chat_and_generate_read_stdin() {
    for args in [
        ["chat", "tiny", "--max-tokens", "5", "--temperature", "0"],
        ["generate", "tiny", "--max-tokens", "5", "--temperature", "0"],
    ] {
        let mut command = kvant(&args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"Call me Ishmael.\n").unwrap();
        let text = succeeded(child.wait_with_output().unwrap());
        assert!(!text.trim().is_empty(), "{args:?}");
    }
}

#[test]
fn inspect_describes_the_built_in_model() {
    let text = succeeded(output(&["inspect", "tiny", "--json"]));
    let facts: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(facts["family"], "llama");
    assert_eq!(facts["layers"], 4);
    assert_eq!(facts["heads"], serde_json::json!({"q": 2, "kv": 1, "dim": 64}));
    assert_eq!(facts["vocab"], 2048);
    assert_eq!(facts["model_context_tokens"], 2048);
    // K and V of 4 layers, 1 head of 64: 2 bytes each, or 12 bits and two scales of 2 bytes.
    assert_eq!(facts["dense_bytes_per_token"], 1024);
    assert_eq!(facts["cache_bytes_per_token"], 4 * (64 * 12 / 8 + 4));
    assert_eq!(facts["dtypes"]["f16"].as_u64().map(|tensors| tensors > 0), Some(true), "{facts}");
    assert!(succeeded(output(&["inspect", "tiny"])).contains("llama"));
}

/// A folder with nothing but the configuration of the built-in model.
pub(crate) fn configuration_alone(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).unwrap();
    let tiny = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/tiny-llama-1m/config.json");
    fs::copy(tiny, folder.join("config.json")).unwrap();
    folder.to_str().unwrap().to_owned()
}

#[test]
fn made_up_weights_are_in_the_memory_plan() {
    let folder = configuration_alone("inspect-dummy");
    let plan = |args: &[&str]| -> Value {
        let text = succeeded(output(&[&["inspect"], args, &["--json"]].concat()));
        let facts: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(facts["weight_bytes"], facts["memory_plan"]["weight_bytes"]);
        facts["memory_plan"].clone()
    };
    let made_up = plan(&[&folder, "--load-format", "dummy"]);
    let stored = plan(&["tiny"]);
    // Both have two bytes a number.
    assert_eq!(made_up["weight_bytes"], stored["weight_bytes"]);
    assert!(made_up["weight_bytes"].as_u64() > Some(1 << 20), "{made_up}");
}

#[test]
fn inspect_tells_how_large_a_cache_would_fit() {
    let fit = |preset: &str| {
        let args = ["inspect", "tiny", "--json", "--kv-cache", preset, "--context-tokens", "64"];
        let more = ["--sequences", "1", "--set", "cache.protect=false"];
        let text = succeeded(output(&[&args[..], &more].concat()));
        let facts: Value = serde_json::from_str(&text).unwrap();
        let plan = &facts["memory_plan"];
        assert_eq!(plan["cache_tokens"], 64, "{plan}");
        plan["fit_tokens"].as_f64().unwrap()
    };
    // 1024 bytes a token in 16 bits, 272 in codes of 4; what else runs here changes what is free.
    let ratio = fit("tq4") / fit("f16");
    assert!((3.2..4.4).contains(&ratio), "{ratio}");
}

#[test]
fn bench_measures_the_built_in_model() {
    let args = ["bench", "tiny", "--prompt-tokens", "20", "--output-tokens", "4", "--json"];
    let text = succeeded(output(&[&args[..], &["--concurrency", "1,3"]].concat()));
    let rows: Value = serde_json::from_str(&text).unwrap();
    let rows = rows["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| &row["concurrency"]).collect::<Vec<_>>(), [1, 3]);
    for row in rows {
        for key in ["prefill_tokens_per_s", "decode_tokens_per_s", "ttft_ms_p50", "itl_ms_p99"] {
            assert!(row[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {row}");
        }
        assert_eq!(row["output_tokens"], 4);
    }
}

#[test]
fn bench_takes_several_cases_in_one_run() {
    let folder = configuration_alone("bench-dummy");
    let args = ["bench", &folder, "--load-format", "dummy", "--cases", "1x20/8,3x70/9", "--json"];
    let table: Value = serde_json::from_str(&succeeded(output(&args))).unwrap();
    let shapes: Vec<_> = table["rows"].as_array().unwrap().iter().collect();
    let numbers = |row: &Value| {
        ["concurrency", "prompt_tokens", "output_tokens"].map(|key| row[key].as_u64().unwrap())
    };
    assert_eq!(shapes.iter().map(|row| numbers(row)).collect::<Vec<_>>(), [[1, 20, 8], [3, 70, 9]]);
    for row in shapes {
        let full = row["full_steps"].as_u64().unwrap();
        assert!(full > 0 && full <= 8 && row["step_ms_p50"].as_f64() > Some(0.0), "{row}");
        assert!(row["output_tokens_per_s"].as_f64() > Some(0.0), "{row}");
    }
    // The longest case is the context, and staging takes the prompts of a step.
    assert_eq!(
        (&table["context_tokens"], &table["memory_plan"]["staging_tokens"]),
        (&79.into(), &512.into())
    );
    assert_eq!((&table["device"], &table["cache"]), (&"cpu".into(), &"auto".into()));
    let text = succeeded(output(&args[..6]));
    assert!(text.contains("tokens would fit") && text.contains("step p50"), "{text}");
    let large = "--cache-tokens=128";
    refused(
        &[&args[..6], &[large]].concat(),
        1,
        &["case 3x70/9", "384 tokens, there is room for 128"],
    );
    refused(&[&args[..6], &["--prompt-tokens", "9"]].concat(), 2, &["--cases", "--prompt-tokens"]);
    refused(&["bench", "tiny", "--cases", "1x20"], 2, &["--cases", "64x1024/256"]);
}

#[test]
fn fetch_prints_the_path_of_the_built_in_model() {
    let path = succeeded(output(&["fetch", "tiny"]));
    assert!(PathBuf::from(path.trim()).join("model.safetensors").is_file(), "{path}");
}

#[test]
fn widths_that_are_not_served_are_refused_with_their_place() {
    for (set, what) in [
        ("cache.layers=0=k5v4", "cache.layers: no cache preset \"k5v4\""),
        ("cache.layers=0-f16", "cache.layers: \"0-f16\" is no list of layers"),
        ("cache.bits=4.5", "cache.bits: 4.5 bits are not served"),
        ("cache.key_bits=5", "cache.key_bits: 5 bits are not served"),
        ("cache.value_bits=7", "cache.value_bits: 7 bits are not served"),
    ] {
        refused(&["inspect", "tiny", "--set", set], 1, &[what]);
    }
}

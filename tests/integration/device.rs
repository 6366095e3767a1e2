//! A server and `kvant doctor` on the GPU that the build is for, where there is one: on Linux also
//! what `scripts/check-metal` puts in the place of Apple's runtime.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::client::{metric, post};
use crate::server::{Running, kvant};

const GPU: &str = if cfg!(feature = "cuda") { "cuda" } else { "metal" };

/// One test at a time has the GPU, which may be this processor.
fn alone() -> MutexGuard<'static, ()> {
    static GPU: Mutex<()> = Mutex::new(());
    GPU.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether there is a GPU; says so if not.
fn is_here() -> bool {
    let output = kvant(&["generate", "--model", "tiny", "--device", GPU, "--max-tokens", "1"])
        .args(["--prompt", "The", "--cache-tokens", "1024"])
        .output()
        .expect("the binary was built by cargo");
    if !output.status.success() {
        eprintln!("skipped: {}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

/// Text and likeliest tokens of answers to chats of one page and several, and how many pages were
/// packed for them.
fn answers(device: &str) -> (Vec<Value>, f64) {
    let limits =
        ["--cache-tokens", "2048", "--sequences", "4", "--set", "scheduler.staging_tokens=512"];
    let running =
        Running::start(&[&["--device", device, "--kv-cache", "tq4"], &limits[..]].concat());
    let answer = |words: usize| {
        let content: Vec<String> =
            (0..words).map(|at| format!("{at} whales upon the sea")).collect();
        let request = json!({
            "messages": [{"role": "user", "content": content.join(" and ")}],
            "max_tokens": 8, "ignore_eos": true, "logprobs": true, "temperature": 0,
        });
        let answer = post(&running.address, "/v1/chat/completions", &request);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let choice = answer.json()["choices"][0].take();
        let tokens = choice["logprobs"]["content"].as_array().expect("logprobs were asked for");
        let tokens: Vec<&Value> = tokens.iter().map(|token| &token["token"]).collect();
        assert_eq!(tokens.len(), 8, "{choice}");
        json!([choice["message"]["content"], tokens])
    };
    let all = [1, 9, 25].map(answer).to_vec();
    (all, metric(&running.address, "kvant:conversions_total"))
}

#[test]
fn on_the_gpu_a_chat_gets_the_tokens_of_the_cpu() {
    let _alone = alone();
    if is_here() {
        let (found, packed) = answers(GPU);
        let (expected, _) = answers("cpu");
        assert_eq!(found, expected);
        assert!(packed > 0.0);
    }
}

/// Every kernel, and the built-in model over several caches, against the CPU.
#[test]
fn on_the_gpu_every_check_of_doctor_passes() {
    let _alone = alone();
    let output = kvant(&["doctor", "--device", GPU]).output().expect("built by cargo");
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("cannot be used") || said.contains("has no code for") {
        return eprintln!("skipped: {said}");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    eprintln!("{text}");
    assert!(output.status.success(), "{said}");
    let passed = text.lines().filter(|line| line.starts_with("ok ")).count();
    assert!(text.contains(&format!("all {passed} checks passed")), "{text}");
    for check in ["kv_encode: tq4", "kv_merge: f16", "model, tq4 cache"] {
        assert!(text.contains(check), "{check}: {text}");
    }
}

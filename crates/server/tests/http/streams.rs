//! Streams: framing, first and last chunks, usage, errors within, comments while waiting.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{begin, get, post, read, read_until};
use crate::script::BROKEN;
use crate::server::Server;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn chat(more: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "one two three four"}],
        "stream": true, "max_tokens": 3});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn a_chat_begins_with_the_role_and_ends_with_the_reason() {
    let server = Server::start();
    let answer = post(&server, CHAT, &chat(&json!({})));
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let chunks = answer.chunks();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let mut text = String::new();
    for chunk in &chunks[1..chunks.len() - 1] {
        assert!(chunk["choices"][0]["delta"].get("role").is_none());
        assert_eq!(chunk["choices"][0]["finish_reason"], Value::Null);
        text.push_str(chunk["choices"][0]["delta"]["content"].as_str().unwrap());
    }
    let last = &chunks.last().unwrap()["choices"][0];
    assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("length")));
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        for key in ["id", "created", "model", "system_fingerprint"] {
            assert_eq!(chunk[key], chunks[0][key]);
        }
        assert!(chunk.get("usage").is_none() && chunk.get("error").is_none(), "{chunk}");
    }
    let whole = post(&server, CHAT, &chat(&json!({"stream": false}))).json();
    assert_eq!(whole["choices"][0]["message"]["content"], text);
}

#[test]
fn usage_comes_when_asked_for() {
    let server = Server::start();
    let body = chat(&json!({"stream_options": {"include_usage": true}}));
    let chunks = post(&server, CHAT, &body).chunks();
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 3);
    assert!(others.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));

    let each = json!({"stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let chunks = post(&server, CHAT, &chat(&each)).chunks();
    let counts: Vec<_> =
        chunks.iter().map(|chunk| chunk["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert!(counts.is_sorted() && counts[0] >= 1 && counts.last() == Some(&3), "{counts:?}");
}

#[test]
fn every_choice_has_one_role_and_one_reason() {
    let server = Server::start();
    let chunks = post(&server, CHAT, &chat(&json!({"n": 3}))).chunks();
    for index in 0..3 {
        let own: Vec<_> =
            chunks.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == index).collect();
        assert_eq!(own.iter().filter(|c| c["delta"].get("role").is_some()).count(), 1);
        assert_eq!(own.iter().filter(|c| !c["finish_reason"].is_null()).count(), 1);
        assert!(
            own[0]["delta"].get("role").is_some()
                && !own.last().unwrap()["finish_reason"].is_null()
        );
    }
}

#[test]
fn a_completion_streams_text_and_echo() {
    let server = Server::start();
    let body = json!({"prompt": "one two", "stream": true, "max_tokens": 2, "echo": true,
        "return_token_ids": true});
    let chunks = post(&server, TEXT, &body).chunks();
    assert!(
        chunks[0]["prompt_token_ids"].is_array() && chunks[1].get("prompt_token_ids").is_none()
    );
    let text: String = chunks.iter().map(|c| c["choices"][0]["text"].as_str().unwrap()).collect();
    assert!(text.starts_with("one twoone"), "{text}");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
}

#[test]
fn a_stop_string_ends_a_stream() {
    let server = Server::start();
    // All 200 tokens would take four seconds.
    server.script.step_ms.store(20, SeqCst);
    let body = chat(&json!({"stop": "three", "max_tokens": 200}));
    let chunks = post(&server, CHAT, &body).chunks();
    let text: String =
        chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "one two ");
    let last = &chunks.last().unwrap()["choices"][0];
    assert_eq!((&last["finish_reason"], &last["stop_reason"]), (&json!("stop"), &json!("three")));
    server.wait_for("free", Duration::from_secs(1), |gauges| gauges.cancelled_decode == 1);
}

#[test]
fn an_engine_that_dies_ends_streams_with_an_error_and_says_nothing_private() {
    let server = Server::start();
    server.script.step_ms.store(20, SeqCst);
    let body = json!({"prompt": [40, 41], "stream": true, "max_tokens": 200});
    let mut stream = begin(&server, TEXT, &body);
    let whole = begin(&server, TEXT, &json!({"prompt": [40, 41], "max_tokens": 200}));
    read_until(&mut stream, "data: ");
    server.script.panic.store(true, SeqCst);
    let error = read_until(&mut stream, "data: {\"error\"");
    let event: Value = serde_json::from_str(error.trim_start_matches("data: ")).unwrap();
    assert_eq!(event["error"]["code"], "engine_dead");
    read_until(&mut stream, "data: [DONE]");
    let mut whole = whole;
    let answer = read(&mut whole);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(!error.contains("secret") && !answer.text().contains("secret"));
    let health = get(&server, "/health");
    assert_eq!((health.status, health.json()), (503, json!({"status": "dead"})));
    let later = post(&server, TEXT, &json!({"prompt": [40]}));
    assert_eq!((later.status, later.header("retry-after")), (503, Some("5")));
}

#[test]
fn a_silent_stream_shows_that_it_lives() {
    let server = Server::with(|_, options| options.keep_alive = Duration::from_millis(30));
    server.script.hold.store(true, SeqCst);
    let body = json!({"prompt": [40, 41], "stream": true, "max_tokens": 2});
    let mut stream = begin(&server, TEXT, &body);
    read_until(&mut stream, ": ");
    read_until(&mut stream, ": ");
    server.script.hold.store(false, SeqCst);
    read_until(&mut stream, "data: {");
    read_until(&mut stream, "data: [DONE]");
}

#[test]
fn one_sequence_that_fails_leaves_the_others_alone() {
    let server = Server::start();
    let mut body = json!({"prompt": [[40, 41], [BROKEN, 40]], "max_tokens": 3});
    let whole = post(&server, TEXT, &body);
    assert_eq!((whole.status, &whole.json()["error"]["code"]), (500, &json!("engine_failed")));
    body["stream"] = json!(true);
    let mut events = post(&server, TEXT, &body).events();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let error: Value = serde_json::from_str(&events.pop().unwrap()).unwrap();
    assert_eq!(error["error"]["type"], "server_error");
    assert!(events.iter().all(|event| !event.contains("\"error\"")), "{events:?}");
    let other = post(&server, TEXT, &json!({"prompt": [40], "max_tokens": 1}));
    assert_eq!((other.status, get(&server, "/health").status), (200, 200));
}

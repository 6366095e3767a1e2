//! /v1/messages and /v1/messages/count_tokens: shapes, events, and every refusal in their dialect.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use kvant_server::{Access, Keys, Quota, hash_line};
use kvant_text::{ChatTemplate, TemplateTokens};
use serde_json::{Value, json};

use crate::client::{Answer, begin, post, send};
use crate::server::{CONTEXT, MODEL, Server};

const PATH: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";
const WORDS: &str = "the sea is blue";

fn body(max_tokens: usize, more: &Value) -> Value {
    let mut body = json!({"model": MODEL, "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": WORDS}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn tokens(server: &Server) -> usize {
    server.tokenizer.encode(WORDS, false).unwrap().len()
}

#[test]
fn a_message_has_every_key() {
    let server = Server::start();
    let count = tokens(&server);
    let answer = post(&server, PATH, &body(count, &json!({})));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("request-id"), answer.header("x-request-id"));
    let mut json = answer.json();
    let id = json.as_object_mut().unwrap().shift_remove("id").unwrap();
    assert!(id.as_str().unwrap().starts_with("msg_"));
    let usage = json!({"input_tokens": count, "output_tokens": count,
        "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0});
    let expected = json!({"type": "message", "role": "assistant", "model": MODEL,
        "content": [{"type": "text", "text": WORDS}], "stop_reason": "max_tokens",
        "stop_sequence": null, "usage": usage});
    assert_eq!(json, expected);
    let counted = post(&server, COUNT, &body(1, &json!({})));
    assert_eq!(counted.json(), json!({"input_tokens": count}));
}

#[test]
fn events_tell_the_same_as_the_whole() {
    let server = Server::start();
    let more = json!({"stop_sequences": [" blue"], "stream": true});
    let answer = post(&server, PATH, &body(40, &more));
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let events: Vec<Value> =
        answer.events().iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let names = answer.text().lines().filter_map(|line| line.strip_prefix("event: "));
    assert!(names.eq(events.iter().map(|event| event["type"].as_str().unwrap())));
    let mut kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    kinds.dedup();
    let order = [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(kinds, order);
    let text: String = events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
    assert_eq!(text, "the sea is");
    let last = &events[events.len() - 2];
    let delta = json!({"stop_reason": "stop_sequence", "stop_sequence": " blue"});
    assert_eq!(last["delta"], delta);
    let whole = post(&server, PATH, &body(40, &json!({"stop_sequences": [" blue"]}))).json();
    assert_eq!(whole["content"][0]["text"], text);
    assert_eq!((&whole["stop_reason"], &whole["usage"]), (&delta["stop_reason"], &last["usage"]));
}

#[test]
fn calls_are_blocks() {
    let template = "{# <tool_call> #}{% if tools %}{% endif %}{{ messages[0].content }}";
    let template = ChatTemplate::new(template, TemplateTokens::default()).unwrap();
    let server = Server::with_app(|_, _| {}, |app| app.template = Some(Arc::new(template)));
    let call = "So: <tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    let tool = json!({"name": "add", "input_schema": {"type": "object"}});
    let more = json!({"tools": [tool],
        "messages": [{"role": "user", "content": format!("{call}<|im_end|>")}]});
    let json = post(&server, PATH, &body(60, &more)).json();
    assert_eq!(
        (&json["stop_reason"], &json["content"][0]["text"]),
        (&json!("tool_use"), &json!("So:"))
    );
    let block = &json["content"][1];
    assert_eq!((&block["type"], &block["name"]), (&json!("tool_use"), &json!("add")));
    assert_eq!(block["input"], json!({"a": 1}));
}

/// Checks the shape and gives the kind and the message.
fn refusal(answer: &Answer, status: u16) -> (String, String) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let json = answer.json();
    let keys: Vec<_> = json.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["type", "error", "request_id"]);
    assert_eq!(json["type"], "error");
    assert_eq!(json["request_id"].as_str(), answer.header("request-id"));
    let error = json["error"].as_object().unwrap();
    assert_eq!(error.keys().collect::<Vec<_>>(), ["type", "message"]);
    let text = |key: &str| error[key].as_str().unwrap().to_owned();
    (text("type"), text("message"))
}

#[test]
fn wrong_fields_are_named_as_this_dialect_names_them() {
    let server = Server::start();
    for (more, named) in [
        (json!({"max_tokens": null}), "max_tokens is missing"),
        (json!({"max_tokens": 0}), "max_tokens is 0"),
        (json!({"messages": []}), "messages is empty"),
        (json!({"messages": null}), "messages is missing"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content is missing"),
        (json!({"stop_sequences": vec!["x"; 17]}), "stop_sequences has 17"),
        (json!({"stop_sequences": "x"}), "stop_sequences is \"x\""),
        (json!({"temperature": 2.1}), "temperature is 2.1"),
        (json!({"tools": [{"name": "f"}]}), "tools[0].input_schema is missing"),
        (
            json!({"thinking": {"type": "enabled", "budget_tokens": 9}}),
            "thinking.budget_tokens is not served",
        ),
    ] {
        let (kind, message) = refusal(&post(&server, PATH, &body(4, &more)), 400);
        assert_eq!(kind, "invalid_request_error");
        assert!(message.starts_with(named), "{message:?} for {more}");
    }
    assert_eq!(
        post(&server, PATH, &body(4, &json!({"stop_sequences": vec!["x"; 16]}))).status,
        200
    );
    let left = CONTEXT - tokens(&server);
    assert_eq!(post(&server, PATH, &body(left, &json!({}))).status, 200);
    let (kind, message) = refusal(&post(&server, PATH, &body(left + 1, &json!({}))), 400);
    assert_eq!(kind, "invalid_request_error");
    assert!(message.contains(&format!("{left} to generate")) || message.contains("context is"));
    for path in [PATH, COUNT] {
        let broken = send(&server, &format!("POST {path}"), "", b"{");
        assert_eq!(refusal(&broken, 400).0, "invalid_request_error");
        let other = post(&server, path, &body(4, &json!({"model": "other"})));
        assert_eq!(refusal(&other, 404).0, "not_found_error");
    }
}

#[test]
fn what_is_refused_before_the_route_has_the_same_shape() {
    let line = hash_line("kv-user", "user", false);
    let keys = Keys::parse(&format!("{line} requests_per_minute=1"), Quota::default()).unwrap();
    let access = Arc::new(Access::with_keys(keys));
    let server = Server::with_app(|_, _| {}, |app| app.access = access);
    let text = body(1, &json!({})).to_string();
    let ask = |line: &str, headers: &str| send(&server, line, headers, text.as_bytes());
    for path in [PATH, COUNT, "/v1/messages/batches"] {
        let line = format!("POST {path}");
        for headers in ["", "x-api-key: kv-other\r\n"] {
            let answer = ask(&line, headers);
            assert_eq!(refusal(&answer, 401).0, "authentication_error");
            assert!(answer.header("www-authenticate").is_some());
        }
    }
    let key = "x-api-key: kv-user\r\nx-request-id: mine\r\n";
    assert_eq!(ask(&format!("POST {PATH}"), key).status, 200);
    let full = ask(&format!("POST {PATH}"), key);
    assert_eq!(refusal(&full, 429).0, "rate_limit_error");
    assert!(full.header("retry-after").is_some());
    assert_eq!(full.header("request-id"), Some("mine"));
    assert_eq!(refusal(&ask(&format!("GET {PATH}"), key), 405).0, "invalid_request_error");
    assert_eq!(refusal(&ask("GET /v1/messages/batches", key), 404).0, "not_found_error");
    // A neighbour speaks OpenAI's.
    let other = ask("POST /v1/chat/completions", "");
    assert_eq!((other.status, &other.json()["error"]["code"]), (401, &json!("missing_api_key")));
    assert_eq!(other.header("request-id"), None);
}

#[test]
fn limits_and_the_end_of_the_server_have_it_too() {
    let server = Server::with(|engine, options| {
        (engine.sequences, engine.waiting_requests) = (1, 1);
        options.body_bytes = 1000;
    });
    let padded = |bytes: usize| {
        let text = body(1, &json!({"metadata": {"user_id": ""}})).to_string();
        let more = "x".repeat(bytes - text.len());
        body(1, &json!({"metadata": {"user_id": more}}))
    };
    assert_eq!(post(&server, PATH, &padded(1000)).status, 200);
    assert_eq!(refusal(&post(&server, PATH, &padded(1001)), 413).0, "request_too_large");
    let late = send(
        &server,
        &format!("POST {PATH}"),
        "x-kvant-timeout: soon\r\n",
        body(1, &json!({})).to_string().as_bytes(),
    );
    assert_eq!(refusal(&late, 400).0, "invalid_request_error");
    server.script.hold.store(true, SeqCst);
    let later = Duration::from_secs(20);
    let running = begin(&server, PATH, &body(4, &json!({})));
    server.wait_for("one runs", later, |gauges| gauges.running == 1);
    let waiting = begin(&server, PATH, &body(4, &json!({})));
    server.wait_for("one waits", later, |gauges| gauges.waiting == 1);
    let full = post(&server, PATH, &body(4, &json!({})));
    assert_eq!(refusal(&full, 429).0, "rate_limit_error");
    server.handle.drain();
    let closing = post(&server, PATH, &body(4, &json!({})));
    assert_eq!(refusal(&closing, 503).0, "overloaded_error");
    assert!(closing.header("retry-after").is_some());
    drop((running, waiting));
}

#[test]
fn an_error_in_a_stream_names_the_request() {
    let server = Server::start();
    server.script.step_ms.store(10, SeqCst);
    let text = body(60, &json!({"stream": true})).to_string();
    let headers = "x-kvant-timeout: 0.2\r\nx-request-id: mine-7\r\n";
    let late = send(&server, &format!("POST {PATH}"), headers, text.as_bytes());
    assert_eq!((late.status, late.header("request-id")), (200, Some("mine-7")));
    let events = late.events();
    let error: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!((&error["type"], &error["request_id"]), (&json!("error"), &json!("mine-7")));
    // A base address with a slash at its end: still what the client can read.
    let doubled = post(&server, "//v1/messages", &body(1, &json!({})));
    assert_eq!(refusal(&doubled, 404).0, "not_found_error");
}

//! /v1/responses: shapes, events in their order, names of fields, limits.

use std::sync::Arc;

use kvant_text::{ChatTemplate, TemplateTokens};
use serde_json::{Value, json};

use crate::client::post;
use crate::server::{CONTEXT, MODEL, Server};

const PATH: &str = "/v1/responses";
const WORDS: &str = "the sea is blue";

fn body(more: &Value) -> Value {
    let mut body = json!({"model": MODEL, "input": WORDS});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn tokens(server: &Server) -> usize {
    server.tokenizer.encode(WORDS, false).unwrap().len()
}

#[test]
fn a_response_says_what_was_asked_and_answered() {
    let server = Server::start();
    let count = tokens(&server);
    // The output ends one token before the prompt's copy does.
    let asked = json!({"max_output_tokens": count, "metadata": {"a": "b"}, "temperature": 0.5,
        "store": true});
    let answer = post(&server, PATH, &body(&asked));
    assert_eq!(answer.status, 200, "{answer:?}");
    let json = answer.json();
    assert!(json["id"].as_str().unwrap().starts_with("resp_"));
    let text = json!({"type": "output_text", "text": WORDS, "annotations": [], "logprobs": []});
    let item = &json["output"][0];
    assert_eq!((&item["type"], &item["role"]), (&json!("message"), &json!("assistant")));
    for (key, value) in item["content"][0].as_object().unwrap() {
        assert_eq!(Some(value), text.get(key), "{key}");
    }
    let usage = json!({"input_tokens": count, "output_tokens": count, "total_tokens": 2 * count,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0}});
    for (key, expected) in [
        ("object", json!("response")),
        ("status", json!("incomplete")),
        ("incomplete_details", json!({"reason": "max_output_tokens"})),
        ("completed_at", json!(null)),
        ("error", json!(null)),
        ("model", json!(MODEL)),
        ("metadata", json!({"a": "b"})),
        ("temperature", json!(0.5)),
        ("max_output_tokens", json!(count)),
        ("store", json!(false)),
        ("previous_response_id", json!(null)),
        ("tool_choice", json!("auto")),
        ("usage", usage),
    ] {
        assert_eq!(json[key], expected, "{key}");
    }
    let ended = post(&server, PATH, &body(&json!({"input": format!("{WORDS}<|im_end|>")}))).json();
    assert_eq!(
        (&ended["status"], &ended["incomplete_details"]),
        (&json!("completed"), &json!(null))
    );
    assert!(ended["completed_at"].is_u64());
}

#[test]
fn events_are_numbered_and_end_with_the_whole() {
    let server = Server::start();
    let input = json!([{"role": "user", "content": [
        {"type": "input_text", "text": format!("{WORDS}<|im_end|>")}]}]);
    let answer = post(&server, PATH, &body(&json!({"input": input, "stream": true})));
    let events: Vec<Value> =
        answer.events().iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let names = answer.text().lines().filter_map(|line| line.strip_prefix("event: "));
    assert!(names.eq(events.iter().map(|event| event["type"].as_str().unwrap())));
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], json!(index));
    }
    let mut kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    kinds.dedup();
    let order = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(kinds, order);
    let deltas = events.iter().filter(|event| event["type"] == "response.output_text.delta");
    let text: String = deltas.map(|event| event["delta"].as_str().unwrap()).collect();
    assert_eq!(text, WORDS);
    let whole = &events.last().unwrap()["response"];
    assert_eq!(whole["output"][0]["content"][0]["text"], WORDS);
    assert_eq!(
        (&whole["status"], &whole["id"]),
        (&json!("completed"), &events[0]["response"]["id"])
    );
}

#[test]
fn calls_are_items() {
    let template = "{# <tool_call> #}{% if tools %}{% endif %}{{ messages[0].content }}";
    let template = ChatTemplate::new(template, TemplateTokens::default()).unwrap();
    let server = Server::with_app(|_, _| {}, |app| app.template = Some(Arc::new(template)));
    let call = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    let tool = json!({"type": "function", "name": "add", "parameters": {"type": "object"}});
    let input = format!("{call}<|im_end|>");
    let json = post(&server, PATH, &body(&json!({"input": input, "tools": [tool]}))).json();
    let item = &json["output"][0];
    assert_eq!((&item["type"], &item["name"]), (&json!("function_call"), &json!("add")));
    assert_eq!((&item["arguments"], &item["status"]), (&json!("{\"a\": 1}"), &json!("completed")));
    assert!(item["call_id"].is_string());
}

#[test]
fn wrong_fields_are_named_as_this_dialect_names_them() {
    let server = Server::start();
    let format = |format: Value| json!({"text": {"format": format}});
    for (more, param) in [
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": [{"role": "king", "content": "x"}]}), "input[0].role"),
        (json!({"input": [{"role": "assistant", "content": "x"}]}), "input"),
        (json!({"instructions": 1}), "instructions"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"max_output_tokens": 1.5}), "max_output_tokens"),
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"background": true}), "background"),
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"conversation": "c"}), "conversation"),
        (json!({"include": ["x"]}), "include"),
        (json!({"top_logprobs": 1}), "top_logprobs"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"messages": []}), "messages"),
        (json!({"n": 2}), "n"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0]"),
        (json!({"tool_choice": {"type": "mcp"}}), "tool_choice"),
        (json!({"tool_choice": {"type": "function", "name": "f"}}), "tool_choice.name"),
        (json!({"reasoning": {"effort": "huge"}}), "reasoning.effort"),
        (json!({"reasoning": {"summary": "auto"}}), "reasoning.summary"),
        (format(json!({"type": "xml"})), "text.format"),
        (format(json!({"type": "json_schema", "name": "a b", "schema": {}})), "text.format"),
    ] {
        let answer = post(&server, PATH, &body(&more));
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, &error["param"]), (400, &json!(param)), "{more}: {error}");
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
}

#[test]
fn limits_hold_at_the_limit_and_one_past() {
    let server = Server::with(|_, options| options.body_bytes = 1000);
    let left = CONTEXT - tokens(&server);
    assert_eq!(post(&server, PATH, &body(&json!({"max_output_tokens": left}))).status, 200);
    let past = post(&server, PATH, &body(&json!({"max_output_tokens": left + 1})));
    let error = past.json()["error"].clone();
    assert_eq!((past.status, &error["code"]), (400, &json!("context_length_exceeded")));
    assert_eq!(error["param"], "input");
    let padded = |bytes: usize| {
        let text = body(&json!({"user": "", "max_output_tokens": 1})).to_string();
        body(&json!({"user": "x".repeat(bytes - text.len()), "max_output_tokens": 1}))
    };
    assert_eq!(post(&server, PATH, &padded(1000)).status, 200);
    assert_eq!(post(&server, PATH, &padded(1001)).status, 413);
}

//! Whole answers of both dialects: shapes, reasons to finish, usage.

use serde_json::{Value, json};

use crate::client::post;
use crate::server::{EOS, MODEL, Server};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn a_chat_has_every_key_of_the_schema() {
    let server = Server::start();
    let words = "the sea is blue";
    let count = server.tokenizer.encode(words, false).unwrap().len();
    let answer = post(
        &server,
        CHAT,
        &json!({"model": MODEL, "messages": [{"role": "user", "content": words}],
            "max_tokens": count}),
    );
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let json = answer.json();
    assert_eq!(
        keys(&json),
        ["id", "object", "created", "model", "system_fingerprint", "choices", "usage"]
    );
    assert_eq!((&json["object"], &json["model"]), (&json!("chat.completion"), &json!(MODEL)));
    assert!(json["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!((1_700_000_000..10_000_000_000).contains(&json["created"].as_u64().unwrap()));
    let expected = json!([{
        "index": 0,
        "message": {"role": "assistant", "content": words, "refusal": null},
        "logprobs": null, "finish_reason": "length", "stop_reason": null,
    }]);
    assert_eq!(json["choices"], expected);
    let usage = json!({
        "prompt_tokens": count, "completion_tokens": count, "total_tokens": 2 * count,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    });
    assert_eq!(json["usage"], usage);
}

#[test]
fn a_completion_has_its_own_shape_and_sixteen_tokens() {
    let server = Server::start();
    let answer = post(&server, TEXT, &json!({"prompt": [40, 41, 42]}));
    let json = answer.json();
    assert_eq!(json["object"], "text_completion");
    assert!(json["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(
        keys(&json["choices"][0]),
        ["index", "text", "logprobs", "finish_reason", "stop_reason"]
    );
    assert_eq!(json["usage"]["completion_tokens"], 16);
    assert_eq!(json["usage"]["prompt_tokens"], 3);
    assert_eq!(json["choices"][0]["finish_reason"], "length");
}

#[test]
fn each_way_to_stop_has_its_reason() {
    let server = Server::start();
    let prompt = json!([40, 41, EOS, 42]);
    for (more, reason, cause, tokens) in [
        (json!({}), "stop", json!(null), json!([40, 41])),
        (json!({"stop_token_ids": [41]}), "stop", json!(41), json!([40])),
        (
            json!({"ignore_eos": true, "max_tokens": 5}),
            "length",
            json!(null),
            json!([40, 41, 2, 42, 40]),
        ),
        (json!({"max_tokens": 1}), "length", json!(null), json!([40])),
        (json!({"min_tokens": 3, "max_tokens": 3}), "length", json!(null), json!([40, 41, 42])),
    ] {
        let mut body = json!({"prompt": prompt, "return_token_ids": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let json = post(&server, TEXT, &body).json();
        let choice = &json["choices"][0];
        assert_eq!(choice["finish_reason"], reason, "{body}");
        assert_eq!(choice["stop_reason"], cause, "{body}");
        assert_eq!(choice["token_ids"], tokens, "{body}");
        assert_eq!(json["prompt_token_ids"], prompt);
    }
}

#[test]
fn a_stop_string_cuts_the_text_and_frees_the_sequence() {
    let server = Server::start();
    // All 200 tokens would take four seconds.
    server.script.step_ms.store(20, std::sync::atomic::Ordering::SeqCst);
    let words = "one two three four";
    let body = json!({"prompt": words, "max_tokens": 200, "stop": ["thr", "zzz"]});
    let json = post(&server, TEXT, &body).json();
    let choice = &json["choices"][0];
    assert_eq!(choice["text"], "one two ");
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!("thr")));
    let second = std::time::Duration::from_secs(1);
    server.wait_for("it is free", second, |gauges| gauges.cancelled_decode == 1);
    assert_eq!(server.handle.gauges().pages_used, 0);
    assert!(json["usage"]["completion_tokens"].as_u64().unwrap() < 20);
}

#[test]
fn text_that_only_looks_like_a_stop_string_is_not_lost() {
    let server = Server::start();
    let body = json!({"prompt": "one two", "stop": ["twofold"], "max_tokens":
        server.tokenizer.encode("one two", true).unwrap().len()});
    let json = post(&server, TEXT, &body).json();
    assert_eq!(json["choices"][0]["text"], "one two");
    assert_eq!(json["choices"][0]["finish_reason"], "length");
}

#[test]
fn lists_of_prompts_and_n_are_numbered_prompt_by_prompt() {
    let server = Server::start();
    for prompt in [json!(["one", " two"]), json!([[40, 41], [42]])] {
        let json = post(&server, TEXT, &json!({"prompt": prompt, "n": 2, "max_tokens": 1})).json();
        let choices = json["choices"].as_array().unwrap();
        let indices: Vec<_> = choices.iter().map(|c| c["index"].as_u64().unwrap()).collect();
        assert_eq!(indices, [0, 1, 2, 3]);
        assert_eq!(choices[0]["text"], choices[1]["text"]);
        assert_eq!(choices[2]["text"], choices[3]["text"]);
        assert_ne!(choices[0]["text"], choices[2]["text"]);
        assert_eq!(json["usage"]["completion_tokens"], 4);
    }
}

#[test]
fn echo_puts_the_prompt_first() {
    let server = Server::start();
    let body = json!({"prompt": "one two", "echo": true, "max_tokens": 1});
    let json = post(&server, TEXT, &body).json();
    assert_eq!(json["choices"][0]["text"], "one twoone");
    let body = json!({"prompt": "one two", "echo": true, "max_tokens": 0});
    let json = post(&server, TEXT, &body).json();
    assert_eq!(json["choices"][0]["text"], "one two");
    assert_eq!(json["usage"]["completion_tokens"], 0);
    assert_eq!(json["choices"][0]["finish_reason"], "length");
}

#[test]
fn an_empty_model_and_unknown_fields_pass() {
    let server = Server::start();
    let body = json!({"model": "", "prompt": [40], "max_tokens": 1, "cache_prompt": false,
        "no_such_field": {"a": 1}, "temperature": null, "stop": null});
    assert_eq!(post(&server, TEXT, &body).status, 200);
    let body = json!({"messages": [{"role": "developer", "content": "x"},
        {"role": "user", "content": [{"type": "text", "text": "y"}]}], "tools": [],
        "max_completion_tokens": 2, "max_tokens": 1, "user": "me", "store": false});
    assert_eq!(post(&server, CHAT, &body).json()["usage"]["completion_tokens"], 2);
}

#[test]
fn a_chat_without_a_bound_uses_what_the_context_has_left() {
    let server = Server::start();
    let body = json!({"messages": [{"role": "user", "content": "x"}]});
    let json = post(&server, CHAT, &body).json();
    assert_eq!(json["usage"]["total_tokens"], crate::server::CONTEXT);
    assert_eq!(json["choices"][0]["finish_reason"], "length");
}

//! The smaller endpoints: models, tokens, version, metrics; and names of requests.

use serde_json::json;

use crate::client::{get, post, send};
use crate::server::{CONTEXT, MODEL, Server};

#[test]
fn the_model_is_listed_and_found() {
    let server = Server::with(|_, options| options.owned_by = "vllm".to_owned());
    let card = json!({"id": MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "vllm",
        "root": MODEL, "parent": null, "max_model_len": CONTEXT,
        "kv_cache": {"bytes_per_token": 96, "bits_per_element": 6.5, "layers": []}});
    assert_eq!(get(&server, "/v1/models").json(), json!({"object": "list", "data": [card]}));
    assert_eq!(get(&server, &format!("/v1/models/{MODEL}")).json(), card);
    assert_eq!(get(&server, "/v1/models/test%2Fecho").json(), card);
    assert!(get(&server, "/version").json()["version"].is_string());
}

#[test]
fn texts_become_tokens_and_back() {
    let server = Server::start();
    let words = "the <|im_end|> sea";
    let body = json!({"prompt": words, "return_token_strs": true});
    let json = post(&server, "/tokenize", &body).json();
    let tokens = server.tokenizer.encode(words, true).unwrap();
    assert_eq!(json["tokens"], json!(tokens));
    assert_eq!((&json["count"], &json["max_model_len"]), (&json!(tokens.len()), &json!(CONTEXT)));
    let strings = json["token_strs"].as_array().unwrap().iter().map(|s| s.as_str().unwrap());
    assert_eq!(strings.collect::<String>(), words);
    let back = post(&server, "/detokenize", &json!({"tokens": tokens}));
    assert_eq!(back.json(), json!({"prompt": words}));
    let body = json!({"messages": [{"role": "user", "content": "the sea"}]});
    let chat = post(&server, "/tokenize", &body).json();
    assert_eq!(chat["tokens"], json!(server.tokenizer.encode("the sea", false).unwrap()));
    assert_eq!(chat["token_strs"], json!(null));
    assert_eq!(post(&server, "/tokenize", &json!({})).status, 400);
    assert_eq!(post(&server, "/detokenize", &json!({"tokens": [2048]})).status, 400);
    assert_eq!(post(&server, "/detokenize", &json!({"tokens": []})).json(), json!({"prompt": ""}));
}

#[test]
fn every_answer_has_the_name_of_its_request() {
    let server = Server::start();
    let name = |sent: &str, path: &str| {
        let answer = send(&server, &format!("GET {path}"), sent, b"");
        answer.header("x-request-id").unwrap().to_owned()
    };
    let longest = "x".repeat(128);
    for path in ["/health", "/nowhere", "/v1/completions"] {
        assert_eq!(name("x-request-id: abc-1\r\n", path), "abc-1");
        assert_eq!(name(&format!("x-request-id: {longest}\r\n"), path), longest);
        for wrong in ["", &format!("x-request-id: {longest}y\r\n"), "x-request-id: a b\r\n"] {
            let own = name(wrong, path);
            assert!(own.starts_with("req-") && own != name(wrong, path), "{own}");
        }
    }
}

#[test]
fn the_page_of_metrics_counts_what_was_served() {
    let server = Server::start();
    let body = json!({"prompt": [40, 41, 42], "max_tokens": 4, "n": 2});
    assert_eq!(post(&server, "/v1/completions", &body).status, 200);
    server.wait_for("idle", std::time::Duration::from_secs(5), |gauges| gauges.running == 0);
    let answer = get(&server, "/metrics");
    let wanted = "text/plain; version=0.0.4; charset=utf-8";
    assert_eq!(answer.header("content-type"), Some(wanted));
    let page = answer.text();
    for line in [
        "vllm:num_requests_running{model_name=\"test/echo\"} 0",
        "vllm:num_requests_waiting{model_name=\"test/echo\"} 0",
        "vllm:kv_cache_usage_perc{model_name=\"test/echo\"} 0",
        "vllm:prompt_tokens_total{model_name=\"test/echo\"} 6",
        "vllm:generation_tokens_total{model_name=\"test/echo\"} 8",
        "vllm:request_success_total{model_name=\"test/echo\",finished_reason=\"length\"} 2",
        "vllm:request_success_total{model_name=\"test/echo\",finished_reason=\"abort\"} 0",
        "vllm:time_to_first_token_seconds_count{model_name=\"test/echo\"} 2",
        "vllm:inter_token_latency_seconds_count{model_name=\"test/echo\"} 6",
        "vllm:e2e_request_latency_seconds_count{model_name=\"test/echo\"} 2",
        "vllm:request_queue_time_seconds_count{model_name=\"test/echo\"} 2",
        "vllm:request_prompt_tokens_sum{model_name=\"test/echo\"} 6.0",
        "vllm:request_generation_tokens_sum{model_name=\"test/echo\"} 8.0",
        "kvant:cancelled_total{model_name=\"test/echo\",phase=\"decode\"} 0",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
}

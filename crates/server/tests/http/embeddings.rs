//! /v1/embeddings: its shape, its numbers, what it refuses, its bounds and its times.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use kvant_server::Shorter;
use serde_json::{Value, json};

use crate::client::{begin, post, read, read_until, send};
use crate::server::{CONTEXT, MODEL, Server, WAITING};

const PATH: &str = "/v1/embeddings";
const LATER: Duration = Duration::from_secs(20);

/// What the scripted engine's hidden state of a last token is, of length one.
fn expected(token: u32) -> Vec<f64> {
    let hidden = [f64::from(token), 1.0, 0.0, -2.0];
    let length = hidden.iter().map(|one| one * one).sum::<f64>().sqrt();
    hidden.iter().map(|one| one / length).collect()
}

fn numbers(embedding: &Value) -> Vec<f64> {
    embedding.as_array().unwrap().iter().map(|one| one.as_f64().unwrap()).collect()
}

fn near(found: &[f64], expected: &[f64]) -> bool {
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6)
}

#[test]
fn embeddings_come_in_the_order_of_their_inputs() {
    let server = Server::start();
    let answer = post(&server, PATH, &json!({"input": [[7, 40], [8], [9, 9, 41]], "user": "u"}));
    assert_eq!(answer.status, 200, "{answer:?}");
    let json = answer.json();
    assert_eq!((&json["object"], &json["model"]), (&json!("list"), &json!(MODEL)));
    assert_eq!(json["usage"], json!({"prompt_tokens": 6, "total_tokens": 6}));
    for (index, token) in [40, 8, 41].into_iter().enumerate() {
        let one = &json["data"][index];
        assert_eq!((&one["object"], &one["index"]), (&json!("embedding"), &json!(index)));
        assert!(near(&numbers(&one["embedding"]), &expected(token)), "{one}");
    }
    // A text, and a list of one, are the same input.
    let token = *server.tokenizer.encode("the sea", true).unwrap().last().unwrap();
    for input in [json!("the sea"), json!(["the sea"])] {
        let json = post(&server, PATH, &json!({"input": input, "model": MODEL})).json();
        assert!(near(&numbers(&json["data"][0]["embedding"]), &expected(token)), "{json}");
    }
}

#[test]
fn base64_holds_the_same_numbers() {
    let server = Server::start();
    let ask = |format: &str| {
        let body = json!({"input": [40], "encoding_format": format});
        post(&server, PATH, &body).json()["data"][0]["embedding"].clone()
    };
    let text = ask("base64").as_str().unwrap().to_owned();
    let letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = text.trim_end_matches('=').chars().flat_map(|letter| {
        let place = letters.find(letter).unwrap();
        (0..6).rev().map(move |bit| (place >> bit & 1) as u8)
    });
    let bits: Vec<u8> = bits.collect();
    let bytes = bits.chunks_exact(8).map(|bits| bits.iter().fold(0, |byte, bit| byte << 1 | bit));
    let bytes: Vec<u8> = bytes.collect();
    let found = bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap()));
    let found: Vec<f64> = found.map(f64::from).collect();
    assert!(near(&found, &numbers(&ask("float"))), "{text}");
}

#[test]
fn shorter_ones_are_made_where_the_model_allows() {
    let server = Server::with_app(|_, _| {}, |app| app.model.embedding.shorter = Shorter::Any);
    let json = post(&server, PATH, &json!({"input": [40], "dimensions": 2})).json();
    let length = (40.0_f64 * 40.0 + 1.0).sqrt();
    let found = numbers(&json["data"][0]["embedding"]);
    assert!(near(&found, &[40.0 / length, 1.0 / length]), "{found:?}");
    let plain = Server::start();
    let refused = post(&plain, PATH, &json!({"input": [40], "dimensions": 2}));
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("dimensions")));
}

#[test]
fn wrong_inputs_name_their_field() {
    let server = Server::start();
    let too_many = vec![json!([40]); WAITING + 1];
    for (body, param) in [
        (json!({}), "input"),
        (json!({"input": null}), "input"),
        (json!({"input": ""}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": [[]]}), "input"),
        (json!({"input": 7}), "input"),
        (json!({"input": {"a": 1}}), "input"),
        (json!({"input": ["x", 3]}), "input"),
        (json!({"input": [2048]}), "input"),
        (json!({"input": [-1]}), "input"),
        (json!({"input": vec!["x"; 2049]}), "input"),
        (json!({"input": too_many}), "input"),
        (json!({"input": vec![40; CONTEXT + 1]}), "input"),
        (json!({"input": "x", "encoding_format": "hex"}), "encoding_format"),
        (json!({"input": "x", "encoding_format": 1}), "encoding_format"),
        (json!({"input": "x", "dimensions": 0}), "dimensions"),
        (json!({"input": "x", "dimensions": 5}), "dimensions"),
        (json!({"input": "x", "user": 1}), "user"),
    ] {
        let answer = post(&server, PATH, &body);
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, &error["param"]), (400, &json!(param)), "{body}: {error}");
    }
    let other = post(&server, PATH, &json!({"input": "x", "model": "other"}));
    assert_eq!((other.status, &other.json()["error"]["code"]), (404, &json!("model_not_found")));
    for count in [1, WAITING] {
        let answer = post(&server, PATH, &json!({"input": vec![json!([40]); count]}));
        assert_eq!(answer.json()["data"].as_array().map(Vec::len), Some(count), "{answer:?}");
    }
    let longest = post(&server, PATH, &json!({"input": vec![40; CONTEXT]}));
    assert_eq!(longest.json()["usage"]["prompt_tokens"], CONTEXT);
}

#[test]
fn it_waits_for_its_turn_as_long_as_the_server_says() {
    let server = Server::with(|engine, options| {
        engine.sequences = 1;
        options.patience.queue = Some(Duration::from_millis(150));
    });
    server.script.step_ms.store(5, SeqCst);
    let running = json!({"prompt": [40, 41], "max_tokens": 200, "ignore_eos": true,
        "stream": true});
    let mut first = begin(&server, "/v1/completions", &running);
    read_until(&mut first, "data: ");
    let refused = post(&server, PATH, &json!({"input": [[40], [41]]}));
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    assert_eq!(refused.json()["error"]["code"], "queue_timeout");
    server.wait_for("left", Duration::from_secs(1), |gauges| gauges.waiting == 0);
    read_until(&mut first, "data: [DONE]");
    assert_eq!(post(&server, PATH, &json!({"input": [[40], [41]]})).status, 200);
}

#[test]
fn it_ends_when_its_time_is_over() {
    let server = Server::start();
    server.script.hold.store(true, SeqCst);
    let body = json!({"input": [[40], [41]]}).to_string();
    let late = send(&server, &format!("POST {PATH}"), "x-kvant-timeout: 0.2\r\n", body.as_bytes());
    assert_eq!((late.status, &late.json()["error"]["code"]), (408, &json!("request_timeout")));
    server.script.hold.store(false, SeqCst);
    server.wait_for("free", Duration::from_secs(1), |gauges| {
        gauges.running + gauges.waiting + gauges.pages_used + gauges.staging_tokens_used == 0
    });
}

#[test]
fn who_leaves_ends_it_in_the_queue_and_in_prefill() {
    let server = Server::with(|engine, _| {
        engine.sequences = 1;
        engine.step_tokens = 16;
    });
    server.script.step_ms.store(100, SeqCst);
    let connection = begin(&server, PATH, &json!({"input": [vec![40; 160], vec![41; 160]]}));
    server.wait_for("prefill", LATER, |gauges| gauges.running == 1 && gauges.waiting == 1);
    drop(connection);
    server.wait_for("free", Duration::from_secs(1), |gauges| {
        gauges.running + gauges.waiting + gauges.pages_used + gauges.staging_tokens_used == 0
    });
    let gauges = server.handle.gauges();
    assert_eq!((gauges.cancelled_waiting, gauges.cancelled_prefill), (1, 1));
    assert!(server.script.prompt_tokens.load(SeqCst) < 320);
}

#[test]
fn an_engine_that_dies_ends_it() {
    let server = Server::start();
    server.script.hold.store(true, SeqCst);
    let mut waiting = begin(&server, PATH, &json!({"input": [40]}));
    server.wait_for("running", LATER, |gauges| gauges.running + gauges.waiting == 1);
    server.script.panic.store(true, SeqCst);
    server.script.hold.store(false, SeqCst);
    let answer = read(&mut waiting);
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &json!("engine_dead")));
    assert!(!answer.text().contains("secret"), "{}", answer.text());
}

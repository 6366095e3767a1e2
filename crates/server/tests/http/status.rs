//! /admin/status: the sequences that wait and compute, and where the list ends.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{begin, get, open, post, read_until};
use crate::server::Server;

const TEXT: &str = "/v1/completions";
const LATER: Duration = Duration::from_secs(20);

fn told(server: &Server) -> (Vec<Value>, u64) {
    let status = get(server, "/admin/status").json();
    let list = status["sequences"].as_array().unwrap().clone();
    (list, status["sequences_not_told"].as_u64().unwrap())
}

#[test]
fn each_sequence_is_told_with_its_phase() {
    let server = Server::with(|engine, _| {
        engine.sequences = 1;
        engine.step_tokens = 16;
    });
    assert_eq!(told(&server), (Vec::new(), 0));
    server.script.step_ms.store(20, SeqCst);
    let body = json!({"prompt": [40, 41], "max_tokens": 200, "ignore_eos": true, "stream": true});
    let head = format!("POST {TEXT} HTTP/1.1\r\nx-request-id: first\r\n");
    let mut first = open(&server, &head, body.to_string().as_bytes());
    read_until(&mut first, "data: ");
    let second = begin(&server, "/v1/embeddings", &json!({"input": vec![42; 200]}));
    server.wait_for("waiting", LATER, |gauges| gauges.waiting == 1);
    let (list, more) = told(&server);
    assert_eq!((list.len(), more), (2, 0), "{list:?}");
    let keys: Vec<_> = list[0].as_object().unwrap().keys().collect();
    let expected =
        ["request_id", "endpoint", "phase", "prompt_tokens", "output_tokens", "age_seconds"];
    assert_eq!(keys, expected, "numbers and names, no text of anybody");
    assert_eq!((&list[0]["request_id"], &list[0]["endpoint"]), (&json!("first"), &json!(TEXT)));
    assert_eq!((&list[0]["phase"], &list[0]["prompt_tokens"]), (&json!("decode"), &json!(2)));
    assert!(list[0]["output_tokens"].as_u64() > Some(0), "{list:?}");
    assert!(list[0]["age_seconds"].as_f64() >= list[1]["age_seconds"].as_f64());
    assert!(list[1]["request_id"].as_str().unwrap().starts_with("req-"));
    assert_eq!(list[1]["endpoint"], "/v1/embeddings");
    assert_eq!((&list[1]["phase"], &list[1]["output_tokens"]), (&json!("waiting"), &json!(0)));
    server.script.step_ms.store(100, SeqCst);
    drop(first);
    server.wait_for("prefill", LATER, |gauges| gauges.staging_tokens_used > 0);
    server.script.hold.store(true, SeqCst);
    let (list, _) = told(&server);
    assert_eq!((list.len(), &list[0]["phase"]), (1, &json!("prefill")), "{list:?}");
    server.script.hold.store(false, SeqCst);
    drop(second);
    let start = std::time::Instant::now();
    while told(&server).0 != Vec::<Value>::new() {
        assert!(start.elapsed() < LATER, "who has left is told of");
    }
}

#[test]
fn the_list_has_a_bound() {
    let server = Server::with(|engine, _| engine.waiting_requests = 128);
    server.script.hold.store(true, SeqCst);
    let body = json!({"prompt": vec![[40]; 50], "n": 2, "max_tokens": 2, "ignore_eos": true});
    let held = begin(&server, TEXT, &body);
    let count = |wanted: usize| {
        let start = std::time::Instant::now();
        loop {
            let (list, more) = told(&server);
            if list.len() + more as usize == wanted {
                return (list.len(), more);
            }
            assert!(start.elapsed() < LATER, "{} and {more}", list.len());
        }
    };
    assert_eq!(count(100), (100, 0));
    let one = begin(&server, TEXT, &json!({"prompt": [40], "max_tokens": 2}));
    assert_eq!(count(101), (100, 1));
    server.script.hold.store(false, SeqCst);
    drop((held, one));
    assert_eq!(post(&server, TEXT, &json!({"prompt": [40], "max_tokens": 1})).status, 200);
}

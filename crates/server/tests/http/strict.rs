//! Fields that nobody knows: named in a header, or refused where the server is strict.

use serde_json::{Value, json};

use crate::client::{Answer, post};
use crate::server::Server;

const HEADER: &str = "x-kvant-unknown-fields";

/// A request that is taken, of every endpoint that generates or embeds.
fn requests() -> [(&'static str, Value); 6] {
    let messages = json!([{"role": "user", "content": "x"}]);
    [
        ("/v1/chat/completions", json!({"messages": messages, "max_tokens": 1})),
        ("/v1/completions", json!({"prompt": "x", "max_tokens": 1})),
        ("/v1/responses", json!({"input": "x", "max_output_tokens": 1})),
        ("/v1/embeddings", json!({"input": "x"})),
        ("/v1/messages", json!({"messages": messages, "max_tokens": 1})),
        ("/v1/messages/count_tokens", json!({"messages": messages})),
    ]
}

fn with(body: &Value, more: &Value) -> Value {
    let mut body = body.clone();
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn message(answer: &Answer) -> String {
    answer.json()["error"]["message"].as_str().unwrap().to_owned()
}

#[test]
fn a_lenient_server_names_them_in_a_header() {
    let server = Server::start();
    for (path, body) in requests() {
        let known = post(&server, path, &body);
        assert_eq!((known.status, known.header(HEADER)), (200, None), "{path}: {known:?}");
        let more = json!({"top_q": 1, "zz": null});
        let answer = post(&server, path, &with(&body, &more));
        let mut names: Vec<_> = answer.header(HEADER).unwrap_or_default().split(", ").collect();
        names.sort_unstable();
        assert_eq!((answer.status, names.as_slice()), (200, &["top_q", "zz"][..]), "{path}");
    }
    let (path, body) = &requests()[0];
    let nested = json!({"stream": true, "stream_options": {"include_usage": true, "every": 2}});
    let answer = post(&server, path, &with(body, &nested));
    assert_eq!(answer.header(HEADER), Some("stream_options.every"));
}

#[test]
fn a_strict_server_refuses_them_by_name() {
    let server = Server::with(|_, options| options.strict = true);
    for (path, body) in requests() {
        assert_eq!(post(&server, path, &body).status, 200, "{path}");
        let answer = post(&server, path, &with(&body, &json!({"top_q": 1})));
        assert_eq!(answer.status, 400, "{path}");
        assert!(message(&answer).starts_with("unknown fields: top_q;"), "{path}: {answer:?}");
        if !path.starts_with("/v1/messages") {
            let error = &answer.json()["error"];
            assert_eq!(
                (&error["param"], &error["code"]),
                (&json!("top_q"), &json!("unknown_parameter"))
            );
        }
    }
    let (path, body) = &requests()[0];
    let nested = json!({"stream": true, "stream_options": {"every": 2}});
    let answer = post(&server, path, &with(body, &nested));
    assert_eq!(
        (answer.status, &answer.json()["error"]["param"]),
        (400, &json!("stream_options.every"))
    );
    // Twenty are named, whatever they are called.
    let many = (0..30).map(|index| (format!("é{index}\r\n"), json!(0))).collect();
    let answer = post(&server, path, &with(body, &Value::Object(many)));
    assert_eq!(answer.status, 400);
    let told = message(&answer);
    assert_eq!(told.matches("??, ").count(), 20, "{told}");
    assert!(told.contains(", and 10 more;"), "{told}");
}

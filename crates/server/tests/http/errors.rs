//! Wrong input: each kind has its status, names its field, and has all four keys.

use std::io::{Read, Write};
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Answer, get, open, post, read, send};
use crate::server::{CONTEXT, Server};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// Checks the shape; returns param and code.
fn refusal(answer: &Answer, status: u16) -> (Value, Value) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let json = answer.json();
    let error = json["error"].as_object().unwrap();
    let keys: Vec<_> = error.keys().map(String::as_str).collect();
    assert_eq!(keys, ["message", "type", "param", "code"]);
    assert!(!error["message"].as_str().unwrap().is_empty());
    assert!(error["code"].is_string() && error["type"].is_string());
    (error["param"].clone(), error["code"].clone())
}

#[test]
fn wrong_values_of_a_chat_name_their_field() {
    let server = Server::start();
    for (field, value, code) in [
        ("temperature", json!(2.1), "invalid_value"),
        ("temperature", json!("NaN"), "invalid_type"),
        ("top_p", json!(1.5), "invalid_value"),
        ("n", json!(0), "invalid_value"),
        ("n", json!(129), "invalid_value"),
        ("n", json!(100), "invalid_value"),
        ("max_tokens", json!(0), "invalid_value"),
        ("max_tokens", json!(-1), "invalid_value"),
        ("max_completion_tokens", json!(1.5), "invalid_type"),
        ("min_tokens", json!(5000), "invalid_value"),
        ("top_logprobs", json!(3), "invalid_value"),
        ("logit_bias", json!({"999999": 1}), "invalid_value"),
        ("stop", json!(vec!["x"; 17]), "invalid_value"),
        ("stream", json!("yes"), "invalid_type"),
        ("stream_options", json!({"include_usage": true}), "invalid_value"),
        ("functions", json!([{}]), "unsupported_parameter"),
        ("response_format", json!({"type": "json_schema"}), "missing_required_parameter"),
        ("messages", json!([]), "invalid_value"),
        ("messages", json!(null), "missing_required_parameter"),
        ("messages", json!([{"role": "assistant", "content": "x"}]), "invalid_value"),
        ("continue_final_message", json!(true), "invalid_value"),
        ("model", json!(7), "invalid_type"),
        ("chat_template_kwargs", json!([]), "invalid_type"),
    ] {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}],
            "add_generation_prompt": true});
        body[field] = value.clone();
        let found = refusal(&post(&server, CHAT, &body), 400);
        assert_eq!(found, (json!(field), json!(code)), "{field}: {value}");
    }
}

#[test]
fn wrong_prompts_name_their_field() {
    let server = Server::start();
    for prompt in [
        json!(null),
        json!([]),
        json!([[]]),
        json!(""),
        json!(["x", ""]),
        json!({"a": 1}),
        json!(7),
        json!(["x", 3]),
        json!([3, "x"]),
        json!([2048]),
        json!([-1]),
        json!([1.5]),
        json!(vec!["x"; 1025]),
        json!(vec!["x"; 9]),
    ] {
        let answer = post(&server, TEXT, &json!({"prompt": prompt}));
        assert_eq!(refusal(&answer, 400).0, "prompt", "{prompt}");
    }
    let answer = post(&server, TEXT, &json!({"prompt": "x", "suffix": "y"}));
    assert_eq!(refusal(&answer, 400), (json!("suffix"), json!("unsupported_parameter")));
}

#[test]
fn bodies_that_are_no_json_are_bad_requests() {
    let server = Server::start();
    let deep = format!("{{\"messages\": {}", "[".repeat(10_000));
    for body in [b"".as_slice(), b"{", b"[1]", b"\xff\xfe", deep.as_bytes(), b"{\"top_p\": 1e999}"]
    {
        for path in [CHAT, TEXT, "/tokenize", "/detokenize"] {
            let answer =
                send(&server, &format!("POST {path}"), "content-type: text/plain\r\n", body);
            assert_eq!(refusal(&answer, 400).1, "invalid_json");
        }
    }
    let zipped = send(&server, &format!("POST {TEXT}"), "content-encoding: gzip\r\n", b"{}");
    refusal(&zipped, 415);
}

#[test]
fn what_does_not_fit_the_context_says_so_with_the_numbers() {
    let server = Server::start();
    let ask = |prompt: usize, max: Value| {
        post(&server, TEXT, &json!({"prompt": vec![40; prompt], "max_tokens": max}))
    };
    assert_eq!(ask(CONTEXT - 10, json!(10)).status, 200);
    assert_eq!(ask(CONTEXT - 1, json!(null)).json()["usage"]["completion_tokens"], 1);
    for (prompt, max) in
        [(CONTEXT - 10, json!(11)), (CONTEXT, json!(null)), (CONTEXT + 9, json!(1))]
    {
        let answer = ask(prompt, max);
        let expected = (json!("prompt"), json!("context_length_exceeded"));
        assert_eq!(refusal(&answer, 400), expected);
        assert!(answer.text().contains(&format!("{CONTEXT} tokens")), "{}", answer.text());
        assert!(answer.text().contains(&format!("{prompt} in the prompt")));
    }
    let body = json!({"messages": [{"role": "user", "content": "word ".repeat(20_000)}]});
    let found = refusal(&post(&server, CHAT, &body), 400);
    assert_eq!(found, (json!("messages"), json!("context_length_exceeded")));
}

#[test]
fn a_body_is_read_up_to_its_bound() {
    let bound = 4096;
    let server = Server::with(|_, options| options.body_bytes = bound);
    let body = |length: usize| {
        let text = json!({"prompt": [40], "max_tokens": 1, "x": ""}).to_string();
        let (start, end) = text.split_at(text.len() - 2);
        format!("{start}{}{end}", "y".repeat(length - text.len()))
    };
    let ask = |length| send(&server, &format!("POST {TEXT}"), "", body(length).as_bytes());
    assert_eq!(ask(bound).status, 200);
    assert_eq!(refusal(&ask(bound + 1), 413).1, "request_too_large");
    assert_eq!(refusal(&ask(10 * bound), 413).1, "request_too_large");
}

#[test]
fn a_body_that_does_not_come_is_given_up() {
    let server = Server::with(|_, options| options.body_time = Duration::from_millis(50));
    let head = format!("POST {TEXT} HTTP/1.1\r\ncontent-length: 10\r\nx: y\r\n");
    let mut stream = std::net::TcpStream::connect(&server.address).unwrap();
    stream.write_all(format!("{head}\r\n{{\"").as_bytes()).unwrap();
    assert_eq!(refusal(&read(&mut std::io::BufReader::new(stream)), 408).1, "body_timeout");
}

#[test]
fn a_head_that_does_not_come_is_given_up() {
    let server =
        Server::with(|_, options| options.connections.head_time = Duration::from_millis(50));
    for sent in ["", "GET /health HTTP/1.1\r\nx: "] {
        let mut stream = std::net::TcpStream::connect(&server.address).unwrap();
        stream.write_all(sent.as_bytes()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(!rest.starts_with(b"HTTP/1.1 200"));
    }
    // One that came in time leaves the connection open.
    let mut stream = open(&server, "GET /health HTTP/1.1\r\n", b"");
    assert_eq!(read(&mut stream).status, 200);
    std::thread::sleep(Duration::from_millis(80));
    stream.get_mut().write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert_eq!(read(&mut stream).status, 200);
}

/// splitmix64
fn random(state: &mut u64) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 1) as usize
}

#[test]
fn no_damaged_body_is_the_servers_fault() {
    let server = Server::start();
    let chat = json!({"model": "", "messages": [{"role": "user", "content": [{"type": "text",
        "text": "x"}]}], "n": 1, "stop": ["x"], "logit_bias": {"7": 1.5}, "max_tokens": 2,
        "logprobs": true, "top_logprobs": 2, "stream_options": null, "seed": 7});
    let text = json!({"prompt": [40, 41], "max_tokens": 1, "echo": true, "logprobs": 1, "top_k": 3,
        "temperature": 0.5, "min_p": 0.1, "stop_token_ids": [3]});
    let pieces = ["null", "-1", "1e308", "[]", "{}", "\"\"", "99999999999999999999", ",", "true"];
    for seed in 0..400_u64 {
        let mut state = seed;
        let (path, body) = if seed % 2 == 0 { (CHAT, &chat) } else { (TEXT, &text) };
        let mut body = body.to_string().into_bytes();
        for _ in 0..=random(&mut state) % 3 {
            let start = random(&mut state) % body.len();
            let end = (start + random(&mut state) % 4).min(body.len());
            let piece = pieces[random(&mut state) % pieces.len()];
            body.splice(start..end, piece.bytes());
        }
        let answer = send(&server, &format!("POST {path}"), "", &body);
        let shown = String::from_utf8_lossy(&body);
        assert!([200, 400, 404].contains(&answer.status), "seed {seed}: {shown}: {answer:?}");
        if answer.status != 200 {
            refusal(&answer, answer.status);
        }
    }
    assert_eq!(get(&server, "/health").status, 200);
}

#[test]
fn unknown_paths_and_methods_have_the_same_shape() {
    let server = Server::start();
    for path in ["/v1", "/v1/chat", "/v1/completions/", "//v1/models", "/v1/audio"] {
        assert_eq!(refusal(&get(&server, path), 404).1, "not_found", "{path}");
    }
    for (line, allowed) in [
        (format!("GET {CHAT}"), "POST"),
        (format!("DELETE {TEXT}"), "POST"),
        ("POST /v1/models".to_owned(), "GET,HEAD"),
        ("PUT /health".to_owned(), "GET,HEAD"),
    ] {
        let answer = send(&server, &line, "", b"");
        assert_eq!(refusal(&answer, 405).1, "method_not_allowed");
        assert_eq!(answer.header("allow"), Some(allowed), "{line}");
    }
}

#[test]
fn unknown_models_are_not_found() {
    let server = Server::start();
    let body = json!({"model": "gpt-9", "prompt": "x"});
    let expected = (json!("model"), json!("model_not_found"));
    assert_eq!(refusal(&post(&server, TEXT, &body), 404), expected);
    assert_eq!(refusal(&get(&server, "/v1/models/gpt-9"), 404), expected);
}

#[test]
fn a_model_without_a_template_does_not_chat() {
    let server = Server::with_app(|_, _| {}, |app| app.template = None);
    let body = json!({"messages": [{"role": "user", "content": "x"}]});
    assert_eq!(refusal(&post(&server, CHAT, &body), 400).1, "chat_template_missing");
    assert_eq!(post(&server, TEXT, &json!({"prompt": "x", "max_tokens": 1})).status, 200);
}

#[test]
fn a_connection_goes_on_after_a_refusal() {
    let server = Server::start();
    let mut stream = open(&server, &format!("POST {TEXT} HTTP/1.1\r\n"), b"{}");
    assert_eq!(read(&mut stream).status, 400);
    let get = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.get_mut().write_all(get).unwrap();
    assert_eq!(read(&mut stream).status, 200);
}

//! `kvant bench serve` against the real server, and against ones that fail in every way.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::client::post;
use crate::server::{Running, kvant};

fn load(url: &str, flags: &str) -> Output {
    let mut command = kvant(&["bench", "serve", "--url", url]);
    command.args(flags.split_whitespace()).output().expect("the binary was built by cargo")
}

fn report(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.stdout.is_empty(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"))
}

/// Fails with one line that has all `parts`.
fn refused(output: &Output, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} is not in {stderr}");
    }
}

#[test]
fn the_real_server_is_measured() {
    let running = Running::start(&["--log-level", "off"]);
    let url = format!("http://{}/v1/", running.address);
    for (flags, input, output) in [
        ("-n 12 -c 4 --input-tokens 20 --output-tokens 8 --json", 240, 96),
        ("-n 12 --rate 200 --input-tokens 20 --output-tokens 8 --json", 240, 96),
        ("-n 3 -c 1 --input-tokens 1 --output-tokens 1 --json", 3, 3),
    ] {
        let output_of = load(&url, &format!("{flags} --goodput ttft:600000,latency:600000"));
        assert!(output_of.status.success(), "{output_of:?}");
        let report = report(&output_of);
        for key in ["errors", "short", "counted_here"] {
            assert_eq!(report[key], 0, "{flags}: {report}");
        }
        assert_eq!(
            (&report["input_tokens"], &report["output_tokens"]),
            (&input.into(), &output.into())
        );
        assert_eq!(report["completed"], report["requests"]);
        assert_eq!((&report["model"], &report["goodput"]["share"]), (&"tiny".into(), &1.0.into()));
        let single = output == 3;
        for key in ["ttft_ms", "itl_ms", "tpot_ms", "latency_ms"] {
            let spread = &report[key];
            assert_eq!(spread.is_null(), single && matches!(key, "itl_ms" | "tpot_ms"), "{key}");
            let [p50, p99, max] = ["p50", "p99", "max"].map(|part| spread[part].as_f64());
            assert!(p50 <= p99 && p99 <= max, "{spread}");
        }
    }
    let text = "-n 6 -c 2 --input-tokens 5..9 --output-tokens 2..4";
    for more in ["--prompts words", "--text README.md", "--endpoint chat"] {
        let output = load(&url, &format!("{text} {more}"));
        let table = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        assert!(table.contains("6 of 6") && table.contains("ttft"), "{more}: {table}");
    }
    refused(&load(&url, "--model other"), &["no model other; it has tiny"]);
    refused(&load(&url, "--input-tokens 4000"), &["HTTP 400", "2048"]);
    refused(&load(&url, "--vocab 5000 --input-tokens 500"), &["HTTP 400"]);
}

#[test]
fn made_up_weights_are_served_by_token_ids() {
    let folder = crate::cli::configuration_alone("serve-dummy");
    let running = Running::of(&folder, &["--load-format", "dummy", "--sequences", "8"]);
    for line in ["prompts must be token ids", "MiB of weights", "ready in "] {
        running.wait_for_log(line);
    }
    let url = format!("http://{}", running.address);
    let flags = "-n 8 -c 8 --input-tokens 100 --output-tokens 20 --json";
    let report = report(&load(&url, flags));
    let keys = ["errors", "short", "counted_here"].map(|key| report[key].as_u64());
    assert_eq!(keys, [Some(0); 3], "{report}");
    let tokens = ["input_tokens", "output_tokens"].map(|key| report[key].as_u64());
    assert_eq!(tokens, [Some(800), Some(160)], "{report}");
    let body = serde_json::json!({"prompt": [5, 6, 7], "max_tokens": 3, "ignore_eos": true,
        "temperature": 0, "return_token_ids": true});
    let choice = &post(&running.address, "/v1/completions", &body).json()["choices"][0];
    let ids: Vec<String> =
        choice["token_ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    assert_eq!(choice["text"].as_str().unwrap().trim(), ids.join(" "));
    refused(&load(&url, "--prompts words"), &["HTTP 400", "give token ids instead of text"]);
    refused(&load(&url, "--endpoint chat"), &["HTTP 400"]);
}

#[test]
fn what_is_no_server_is_one_line() {
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    refused(
        &load(&format!("http://{address}"), ""),
        &["cannot be reached", "is the server running"],
    );
    refused(&load("127.0.0.1:8000", ""), &["--url", "http://127.0.0.1:8000"]);
    refused(&load("http://", ""), &["--url"]);
    refused(&load("http:///x", ""), &["cannot be reached"]);
    refused(&load("http://127.0.0.1:9", "--text no-such.txt"), &["no-such.txt"]);
    refused(&load("http://127.0.0.1:9", "--endpoint chat --prompts ids"), &["--prompts words"]);
    for (models, completions, part) in [
        ("404 no\r\n\r\n", "", "give --model"),
        ("200 ok\r\n\r\n{\"data\":[]}", "", "give --model"),
        ("401 no\r\n\r\n{\"error\":{\"message\":\"who?\"}}", "", "who?; give --api-key"),
        (MODELS, "404 no\r\n\r\nnothing here", "has no /v1/completions for model m: HTTP 404"),
        (MODELS, "200 ok\r\n\r\n{}", "the stream ended after 0 tokens"),
        (MODELS, "nonsense", "/v1/completions: "),
    ] {
        let stub = stub(move |path, _| if path.contains("models") { models } else { completions });
        refused(&load(&stub, ""), &[part]);
    }
}

const MODELS: &str = "200 ok\r\n\r\n{\"data\":[{\"id\":\"m\"}]}";

/// A server that answers a request by its path and its number among the requests for completions,
/// with the rest of a status line, headers and body; it closes the connection after it. An answer
/// that ends with `…` stays open for a while.
fn stub(answer: impl Fn(&str, usize) -> &'static str + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        let count = AtomicUsize::new(0);
        for stream in listener.incoming().map_while(Result::ok) {
            let (mut stream, path) = request(stream);
            let completion = path.contains("completions");
            let number = if completion { count.fetch_add(1, Ordering::Relaxed) } else { 0 };
            let text = answer(&path, number);
            let _ = stream.write_all(format!("HTTP/1.1 {text}").trim_end_matches('…').as_bytes());
            if text.ends_with('…') {
                thread::spawn(move || {
                    thread::sleep(Duration::from_secs(10));
                    drop(stream);
                });
            }
        }
    });
    url
}

/// Reads a request to its end, so that closing does not reset the connection; its path.
fn request(mut stream: TcpStream) -> (TcpStream, String) {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    loop {
        let head = text.split_once("\r\n\r\n");
        let length = |head: &str| {
            let line = head.lines().find(|l| l.to_ascii_lowercase().starts_with("content-length:"));
            line.map_or(0, |line| line[15..].trim().parse::<usize>().unwrap())
        };
        if head.is_some_and(|(head, body)| body.len() >= length(head)) {
            break;
        }
        match stream.read(&mut buffer) {
            Ok(count) if count > 0 => text.push_str(std::str::from_utf8(&buffer[..count]).unwrap()),
            _ => break,
        }
    }
    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
    (stream, path)
}

#[test]
fn failures_are_counted_by_kind() {
    const TWO: &str = "200 ok\r\nContent-Type: text/event-stream\r\n\r\n\
        data: {\"choices\":[{\"text\":\"a\"}]}\r\n\r\n: waiting\r\n\r\n\
        data: {\"choices\":[{\"text\":\"b\"}]}\r\n\r\n\
        data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}]}\r\n\r\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\r\n\r\n\
        data: [DONE]\r\n\r\n";
    const CUT: &str = "200 ok\r\n\r\ndata: {\"choices\":[{\"text\":\"a\"}]}\n\n";
    const SHORTENED: &str = "200 ok\r\nContent-Length: 900\r\n\r\ndata: {\"choices\":[]}\n\n";
    const SLOW: &str = "200 ok\r\n\r\ndata: {\"choices\":[{\"text\":\"a\"}]}\n\n…";
    const ONE: &str = "200 ok\r\n\r\ndata: {\"choices\":[{\"text\":\"a\"}]}\n\n\
        data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"stop\"}]}\n\n";
    // The first is the probe.
    let answers = [
        TWO,
        TWO,
        "503 busy\r\n\r\n{\"error\":{\"message\":\"full\"}}",
        CUT,
        SHORTENED,
        "200 ok\r\n\r\ndata: {broken\n\n",
        "200 ok\r\n\r\ndata: {\"error\":{\"message\":\"lost\"}}\n\n",
        "302 there\r\nLocation: /elsewhere\r\n\r\n",
        "",
        SLOW,
        "500 ouch\r\n\r\n<html>",
        ONE,
        "503 busy\r\n\r\n{\"error\":{\"message\":\"full\"}}",
    ];
    let url =
        stub(move |path, number| if path.contains("models") { MODELS } else { answers[number] });
    let count = answers.len() - 1;
    let flags = format!("-n {count} -c 1 --timeout 3 --output-tokens 2 --json --goodput itl:60000");
    let output = load(&url, &flags);
    assert!(output.status.success(), "{output:?}");
    let report = report(&output);
    let kinds: Vec<(&str, u64)> = report["error_kinds"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(kind, found)| (kind.as_str(), found["count"].as_u64().unwrap()))
        .collect();
    let expected = [
        ("connection", 1),
        ("http 302", 1),
        ("http 500", 1),
        ("http 503", 2),
        ("stream", 4),
        ("timeout", 1),
    ];
    assert_eq!(kinds, expected, "{report:#}");
    let number = |key: &str| report[key].as_u64().unwrap();
    assert_eq!((number("requests"), number("completed"), number("errors")), (12, 2, 10));
    assert_eq!((number("short"), number("counted_here"), number("output_tokens")), (1, 1, 3));
    assert_eq!(report["error_kinds"]["http 503"]["example"], "HTTP 503: full");
    assert_eq!(report["goodput"]["requests"], 1);

    // The first answers; all others fail, which is an error after the report.
    let url = stub(|path, number| match number {
        _ if path.contains("models") => MODELS,
        0 => TWO,
        _ => CUT,
    });
    let output = load(&url, "-n 3 -c 2 --output-tokens 2");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("0 of 3"), "{output:?}");
    refused(&output, &["none of 3 requests went well: the stream ended after 1 tokens"]);
}

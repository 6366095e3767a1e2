//! The built binary as an operator runs it: keys, sockets, going down, logs and traces.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cli::{refused, succeeded, written};
use crate::client::{ask, get, metric, post, send};
use crate::server::{Running, kvant};

const TEXT: &str = "/v1/completions";

fn endless() -> Vec<u8> {
    json!({"prompt": "The", "max_tokens": 1900, "ignore_eos": true}).to_string().into_bytes()
}

fn wait_for_work(address: &str) {
    let start = Instant::now();
    while metric(address, "vllm:num_requests_running") == 0.0 {
        assert!(start.elapsed() < Duration::from_mins(1), "it does not start");
    }
}

/// A new key and its line.
fn key(name: &str, more: &[&str]) -> (String, String) {
    let output = kvant(&[&["key", "--name", name], more].concat()).output().unwrap();
    let key = String::from_utf8(output.stderr.clone()).unwrap().trim().to_owned();
    (key, succeeded(output))
}

#[cfg(unix)]
#[test]
fn keys_of_a_file_open_the_server_and_a_hangup_reads_it_again() {
    let (first, line) = key("first", &[]);
    let (second, other) = key("second", &["--admin"]);
    assert!(first.len() > 60 && first != second && !line.contains(&first[3..]));
    let file = written("keys.txt", line.as_bytes());
    let running = Running::start(&["--keys", &file, "--log-level", "debug"]);
    let address = running.address.as_str();
    let status = |key: &str| {
        ask(address, "GET /v1/models", &format!("Authorization: Bearer {key}\r\n"), b"").status
    };
    assert_eq!(get(address, "/v1/models").status, 401);
    assert_eq!(get(address, "/health").status, 200);
    assert_eq!((status(&first), status(&second)), (200, 401));
    written("keys.txt", b"nonsense");
    running.signal("-HUP");
    running.wait_for_log("the keys stay as they were");
    assert_eq!(status(&first), 200, "a broken file changes nothing");
    written("keys.txt", other.as_bytes());
    running.signal("-HUP");
    running.wait_for_log("keys read again: 1 keys, 1 of them for /admin");
    assert_eq!((status(&first), status(&second)), (401, 200));
    let body = json!({"prompt": "The", "max_tokens": 2}).to_string();
    let head = format!("X-Api-Key: {second}\r\n");
    assert_eq!(ask(address, &format!("POST {TEXT}"), &head, body.as_bytes()).status, 200);
    running.wait_for_log("key=\"second\"");
    let log = running.log();
    assert!(!log.contains(&first) && !log.contains(&second), "a key is in the log");
}

#[test]
fn wrong_guards_are_one_line_before_the_model_is_loaded() {
    let broken = written("broken-keys.txt", b"# nothing\nsha256:12 x\n");
    refused(&["serve", "tiny", "--keys", &broken], 1, &["broken-keys.txt", "line 2", "sha256:"]);
    refused(&["serve", "tiny", "--keys", "/no/such"], 1, &["access.keys_file", "/no/such"]);
    let half = ["serve", "tiny", "--port", "0", "--set", "access.tls_key=x"];
    refused(&half, 1, &["access.tls_key is set", "access.tls_certificate"]);
    let endpoint = ["serve", "tiny", "--port", "0", "--set", "log.otlp_endpoint=ftp://x"];
    refused(&endpoint, 1, &["log.otlp_endpoint", "http://"]);
    refused(&["key", "--name", "a b"], 1, &["--name", "without spaces"]);
    let file = written("not-a-socket", b"");
    refused(&["serve", "tiny", "--uds", &file], 1, &["not-a-socket", "no socket"]);
}

#[cfg(unix)]
#[test]
fn a_unix_socket_is_ours_alone_and_goes_with_the_server() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    let path = std::env::temp_dir().join(format!("kvant-uds-{}.sock", std::process::id()));
    let flag = path.to_str().unwrap();
    // As a server that was killed leaves it.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let mut running = Running::start(&["--uds", flag]);
    assert_eq!(running.address, flag);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    refused(&["serve", "tiny", "--uds", flag], 1, &["somebody listens on", "--uds"]);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    running.terminate();
    assert!(running.wait().success());
    assert!(!path.exists(), "the socket is left behind");
}

#[cfg(unix)]
#[test]
fn a_second_signal_ends_the_server_at_once() {
    let mut running = Running::start(&["--set", "server.drain_seconds=3600"]);
    let address = running.address.clone();
    let streams: Vec<_> = (0..8).map(|_| send(&address, "POST", TEXT, &endless())).collect();
    wait_for_work(&address);
    running.terminate();
    running.wait_for_log("going down");
    let start = Instant::now();
    running.terminate();
    assert_eq!(running.wait().code(), Some(1));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    running.wait_for_log("a second signal has cut the requests that still ran");
    drop(streams);
}

#[cfg(unix)]
#[test]
fn going_down_has_a_limit() {
    let mut running = Running::start(&["--set", "server.drain_seconds=0"]);
    let address = running.address.clone();
    let stream = send(&address, "POST", TEXT, &endless());
    wait_for_work(&address);
    running.terminate();
    assert_eq!(running.wait().code(), Some(1));
    running.wait_for_log("requests that still ran after 0 s were cut");
    drop(stream);
}

/// Work on text and grammars may block a thread each, and no more of them than can have a turn.
#[cfg(target_os = "linux")]
#[test]
fn bursts_leave_no_crowd_of_threads() {
    let running = Running::start(&[]);
    let address = running.address.as_str();
    let before = running.threads();
    let cores = std::thread::available_parallelism().unwrap().get();
    let body = json!({"prompt": "The whale ".repeat(100), "max_tokens": 1});
    for _ in 0..5 {
        std::thread::scope(|scope| {
            for _ in 0..100 {
                scope.spawn(|| assert_eq!(post(address, TEXT, &body).status, 200));
            }
        });
        let after = running.threads();
        assert!(after <= before + cores + 4, "{before} threads have become {after}");
    }
}

#[test]
fn the_limits_of_a_file_hold() {
    let running = Running::start(&["--set", "limits.choices=2", "--set", "limits.head_lines=10"]);
    let address = running.address.as_str();
    let body = |n: u32| json!({"prompt": "The", "max_tokens": 1, "n": n});
    assert_eq!(post(address, TEXT, &body(2)).status, 200);
    let past = post(address, TEXT, &body(3));
    assert_eq!((past.status, past.json()["error"]["param"].as_str()), (400, Some("n")));
    let headers = "x: y\r\n".repeat(20);
    assert_eq!(ask(address, "GET /health", &headers, b"").status, 431);
}

#[test]
fn every_request_is_a_line_of_the_log_with_its_name() {
    let running = Running::start(&["--set", "log.format=json"]);
    let body = json!({"prompt": "The", "max_tokens": 3, "ignore_eos": true}).to_string();
    let head = "X-Request-Id: mine-1\r\n";
    let answer = ask(&running.address, &format!("POST {TEXT}"), head, body.as_bytes());
    let head = answer.head.to_ascii_lowercase();
    assert!(head.contains("x-request-id: mine-1"), "{head}");
    assert!(head.contains("openai-processing-ms: "), "{head}");
    running.wait_for_log("mine-1");
    let log = running.log();
    let line = log.lines().find(|line| line.contains("mine-1")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    let fields = &line["fields"];
    assert_eq!((&fields["id"], &fields["status"]), (&json!("mine-1"), &json!(200)));
    assert_eq!((&fields["output_tokens"], &fields["left"]), (&json!(3), &json!(false)));
}

/// A collector that takes one message and gives it.
fn collector() -> (String, mpsc::Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let _ = sender.send(taken(stream));
        }
    });
    (address, receiver)
}

fn taken(mut stream: TcpStream) -> Value {
    let mut text = String::new();
    let mut piece = [0; 4096];
    loop {
        let count = stream.read(&mut piece).unwrap();
        text.push_str(std::str::from_utf8(&piece[..count]).unwrap());
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() == length.unwrap().parse::<usize>().unwrap() {
            assert!(head.starts_with("post /v1/traces"), "{head}");
            assert!(head.contains("content-type: application/json"), "{head}");
            let message = serde_json::from_str(body).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").unwrap();
            return message;
        }
    }
}

#[test]
fn a_collector_gets_the_spans_of_a_request() {
    let (endpoint, messages) = collector();
    let running = Running::start(&["--set", &format!("log.otlp_endpoint={endpoint}")]);
    let body = json!({"prompt": "The", "max_tokens": 5, "ignore_eos": true}).to_string();
    let head = "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    ask(&running.address, &format!("POST {TEXT}"), head, body.as_bytes());
    let message = messages.recv_timeout(Duration::from_mins(1)).unwrap();
    let spans = &message["resourceSpans"][0]["scopeSpans"][0]["spans"];
    let spans = spans.as_array().unwrap();
    let names: Vec<_> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["POST /v1/completions", "queue", "prefill", "decode"]);
    let time = |span: &Value, name: &str| span[name].as_str().unwrap().parse::<u64>().unwrap();
    let (start, end) = (time(&spans[0], "startTimeUnixNano"), time(&spans[0], "endTimeUnixNano"));
    let mut at = start;
    for span in spans {
        assert_eq!(span["traceId"], "0af7651916cd43dd8448eb211c80319c");
        let (from, to) = (time(span, "startTimeUnixNano"), time(span, "endTimeUnixNano"));
        assert!(start <= from && from <= to && to <= end, "{span}");
        assert!(span["name"] == names[0] || from >= at, "{span} begins before the last part");
        at = from;
    }
    assert_eq!(spans[0]["parentSpanId"], "b7ad6b7169203331");
    assert!(spans[1..].iter().all(|span| span["parentSpanId"] == spans[0]["spanId"]));
    let attributes = spans[0]["attributes"].as_array().unwrap();
    let tokens = attributes.iter().find(|one| one["key"] == "gen_ai.usage.output_tokens");
    assert_eq!(tokens.unwrap()["value"]["intValue"], "5");
}

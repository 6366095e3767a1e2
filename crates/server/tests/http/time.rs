//! Time: requests that wait or run too long, clients that take or send nothing, engines that stall.

use std::io::{BufReader, Read, Write};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use kvant_server::{Fault, watch_engine};
use serde_json::{Value, json};

use crate::client::{begin, get, open, post, read, read_until, send};
use crate::server::Server;

const TEXT: &str = "/v1/completions";
const LATER: Duration = Duration::from_secs(20);

fn body(stream: bool, n: usize) -> Value {
    json!({"prompt": [40, 41], "max_tokens": 200, "ignore_eos": true, "stream": stream, "n": n})
}

fn free(server: &Server) {
    server.wait_for("free", Duration::from_secs(1), |gauges| {
        gauges.running + gauges.waiting + gauges.pages_used == 0
    });
}

fn counted(server: &Server, name: &str) -> u64 {
    let page = get(server, "/metrics");
    let line = page.text().lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_request_waits_for_its_turn_as_long_as_the_server_says() {
    for (stream, n) in [(false, 1), (true, 1), (false, 3), (true, 3)] {
        let server = Server::with(|engine, options| {
            engine.sequences = 1;
            options.patience.queue = Some(Duration::from_millis(150));
        });
        server.script.step_ms.store(5, SeqCst);
        let mut first = begin(&server, TEXT, &body(true, 1));
        read_until(&mut first, "data: ");
        let refused = post(&server, TEXT, &body(stream, n));
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
        assert_eq!(refused.json()["error"]["code"], "queue_timeout", "stream: {stream}");
        server.wait_for("left", Duration::from_secs(1), |gauges| gauges.waiting == 0);
        assert_eq!(counted(&server, "kvant:queue_timeouts_total"), n as u64);
        read_until(&mut first, "data: [DONE]");
        free(&server);
    }
}

#[test]
fn a_request_that_has_its_turn_is_not_cut_for_having_waited() {
    let server = Server::with(|_, options| {
        options.patience.queue = Some(Duration::from_millis(30));
    });
    server.script.step_ms.store(2, SeqCst);
    let answer = post(&server, TEXT, &body(false, 1));
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn a_request_ends_when_its_time_is_over() {
    let server = Server::start();
    server.script.step_ms.store(10, SeqCst);
    for n in [1, 2] {
        let body = body(false, n).to_string();
        let late =
            send(&server, &format!("POST {TEXT}"), "x-kvant-timeout: 0.2\r\n", body.as_bytes());
        assert_eq!((late.status, late.header("retry-after")), (408, None));
        let error = &late.json()["error"];
        assert_eq!(error["code"], "request_timeout");
        assert!(error["message"].as_str().unwrap().contains("within 0.2 s"), "{error}");
        free(&server);
    }
    // A stream has begun, so the reason comes as its last event.
    let text = body(true, 1).to_string();
    let late = send(&server, &format!("POST {TEXT}"), "x-kvant-timeout: 0.2\r\n", text.as_bytes());
    assert_eq!(late.status, 200);
    let events = late.events();
    assert!(events.len() > 2, "{events:?}");
    let error: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(error["error"]["code"], "request_timeout");
    assert_eq!(events.last().unwrap(), "[DONE]");
    free(&server);
    assert_eq!(counted(&server, "kvant:run_timeouts_total"), 4);
}

#[test]
fn a_client_may_ask_for_less_time_and_not_for_more() {
    let server =
        Server::with(|_, options| options.patience.whole = Some(Duration::from_millis(200)));
    server.script.step_ms.store(10, SeqCst);
    let ask = |header: &str| {
        let head = format!("x-kvant-timeout: {header}\r\n");
        send(&server, &format!("POST {TEXT}"), &head, body(false, 1).to_string().as_bytes())
    };
    assert_eq!(ask("86400").status, 408);
    for wrong in ["0", "-1", "NaN", "inf", "86400.1", "soon", ""] {
        let refused = ask(wrong);
        assert_eq!(refused.status, 400, "{wrong}");
        assert_eq!(refused.json()["error"]["param"], "x-kvant-timeout");
    }
}

/// A request whose answer is larger than what a socket's buffers hold.
fn large() -> Vec<u8> {
    let body = json!({"prompt": [40, 41], "max_tokens": 200, "ignore_eos": true, "stream": true,
        "n": 4, "logprobs": 20});
    let body = body.to_string();
    let length = body.len();
    format!("POST {TEXT} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

#[cfg(unix)]
#[test]
fn a_client_that_takes_nothing_is_cut() {
    let server = Server::on_socket(|_, options| {
        options.connections.write_time = Duration::from_millis(300);
    });
    // All of it takes four seconds; the buffers are full long before.
    server.script.step_ms.store(20, SeqCst);
    let mut slow = std::os::unix::net::UnixStream::connect(&server.address).unwrap();
    slow.write_all(&large()).unwrap();
    server.wait_for("it runs", LATER, |gauges| gauges.running > 0);
    server.wait_for("it is over", LATER, |gauges| gauges.running + gauges.pages_used == 0);
    assert_eq!(server.handle.gauges().cancelled_decode, 4);
    let mut rest = Vec::new();
    slow.set_read_timeout(Some(LATER)).unwrap();
    let start = Instant::now();
    let _ = slow.read_to_end(&mut rest);
    assert!(start.elapsed() < LATER, "the connection is open");
    let text = String::from_utf8_lossy(&rest);
    assert!(!text.contains("[DONE]"), "the buffers held all of it: {}", rest.len());
}

#[cfg(unix)]
#[test]
fn an_answer_that_nobody_reads_holds_no_pages() {
    let unread = 20;
    let server = Server::on_socket(|engine, _| engine.unread_tokens = unread);
    let mut slow = std::os::unix::net::UnixStream::connect(&server.address).unwrap();
    slow.write_all(&large()).unwrap();
    server.wait_for("given up", LATER, |gauges| gauges.unread > 0);
    // Its reader wakes up in the meantime.
    let mut stream = BufReader::new(slow);
    let answer = read(&mut stream);
    let error = answer.events().into_iter().find(|event| event.contains("reader_too_slow"));
    assert!(error.is_some(), "{}", answer.events().len());
    free(&server);
}

#[test]
fn heads_are_read_to_their_bounds() {
    let server = Server::with(|_, options| {
        options.connections.head_bytes = 2048;
        options.connections.head_lines = 20;
    });
    let start = "GET /health HTTP/1.1\r\nhost: x\r\nx: ";
    let ask = |text: String| {
        let mut stream = std::net::TcpStream::connect(&server.address).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream.set_read_timeout(Some(LATER)).unwrap();
        read(&mut BufReader::new(stream)).status
    };
    let sized = |bytes: usize| format!("{start}{}\r\n\r\n", "y".repeat(bytes - start.len() - 4));
    assert_eq!((ask(sized(2048)), ask(sized(2049))), (200, 431));
    let lines = |count: usize| {
        let more = "x: y\r\n".repeat(count - 1);
        format!("GET /health HTTP/1.1\r\nhost: x\r\n{more}\r\n")
    };
    assert_eq!((ask(lines(20)), ask(lines(21))), (200, 431));
}

#[test]
fn a_connection_waits_for_its_next_request_for_so_long() {
    let server =
        Server::with(|_, options| options.connections.idle_time = Duration::from_millis(200));
    let mut stream = open(&server, "GET /health HTTP/1.1\r\n", b"");
    assert_eq!(read(&mut stream).status, 200);
    stream.get_mut().write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert_eq!(read(&mut stream).status, 200, "one in time");
    let mut rest = Vec::new();
    let start = Instant::now();
    let _ = stream.read_to_end(&mut rest);
    assert!(start.elapsed() < LATER, "the connection is open");
}

#[test]
fn the_watchdog_sees_a_stall_and_a_death_and_nothing_else() {
    let server = Server::with(|engine, _| engine.stall = Duration::from_millis(20));
    let handle = server.handle.clone();
    let patience = Duration::from_millis(300);
    let watching = std::thread::spawn(move || watch_engine(&handle, patience));
    assert_eq!(post(&server, TEXT, &body(false, 1)).status, 200);
    assert!(!watching.is_finished(), "work is no fault");
    server.script.hold.store(true, SeqCst);
    let held = begin(&server, TEXT, &body(false, 1));
    match watching.join().unwrap() {
        Fault::Stalled(silent) => assert!(silent >= patience, "{silent:?}"),
        other @ Fault::Dead(_) => panic!("{other}"),
    }
    server.script.panic.store(true, SeqCst);
    server.script.hold.store(false, SeqCst);
    match watch_engine(&server.handle, patience) {
        Fault::Dead(why) => assert!(why.contains("panicked"), "{why}"),
        // The stall before it.
        Fault::Stalled(_) => {
            let dead = watch_engine(&server.handle, LATER);
            assert!(matches!(dead, Fault::Dead(_)), "{dead}");
        }
    }
    drop(held);
}

#[test]
fn ready_says_whether_a_request_would_be_taken() {
    let server = Server::with(|engine, _| {
        engine.sequences = 1;
        engine.waiting_requests = 1;
    });
    assert_eq!(get(&server, "/ready").json(), json!({"status": "ok"}));
    server.script.step_ms.store(5, SeqCst);
    let mut first = begin(&server, TEXT, &body(true, 1));
    read_until(&mut first, "data: ");
    let second = begin(&server, TEXT, &body(true, 1));
    server.wait_for("full", LATER, |gauges| gauges.waiting == 1);
    let ready = get(&server, "/ready");
    assert_eq!((ready.status, ready.json()), (503, json!({"status": "full"})));
    assert_eq!(get(&server, "/health").status, 200, "full is not ill");
    drop(second);
    server.wait_for("room", LATER, |gauges| gauges.waiting == 0);
    assert_eq!(get(&server, "/ready").status, 200);
    server.handle.drain();
    let ready = get(&server, "/ready");
    assert_eq!((ready.status, ready.json()), (503, json!({"status": "draining"})));
}

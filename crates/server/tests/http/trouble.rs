//! Overload, stalls and going down.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{begin, get, post, read, read_until};
use crate::server::{Server, WAITING};

const TEXT: &str = "/v1/completions";
const LATER: Duration = Duration::from_secs(20);

fn endless() -> Value {
    json!({"prompt": [40, 41], "max_tokens": 200, "ignore_eos": true, "stream": true})
}

fn wait_for_health(server: &Server, status: &str) {
    let start = Instant::now();
    while get(server, "/health").json()["status"] != status {
        assert!(start.elapsed() < LATER, "health is not {status}");
    }
}

#[test]
fn overload_is_429_at_once_and_all_or_nothing() {
    let server = Server::with(|engine, _| engine.sequences = 1);
    server.script.step_ms.store(5, SeqCst);
    let mut first = begin(&server, TEXT, &endless());
    read_until(&mut first, "data: ");
    server.script.hold.store(true, SeqCst);
    let waiting: Vec<_> = (0..WAITING - 1).map(|_| begin(&server, TEXT, &endless())).collect();
    server.wait_for("queue", LATER, |gauges| gauges.waiting == WAITING as u64 - 1);

    // Two sequences for one place: neither stays.
    let two = post(&server, TEXT, &json!({"prompt": [40], "n": 2, "max_tokens": 1}));
    assert_eq!(two.status, 429, "{two:?}");
    server.script.hold.store(false, SeqCst);
    server.wait_for("the one that was taken leaves", LATER, |gauges| gauges.cancelled_waiting == 1);
    server.script.hold.store(true, SeqCst);
    let last: Vec<_> = (0..2).map(|_| begin(&server, TEXT, &endless())).collect();
    server.wait_for("full", LATER, |gauges| gauges.waiting == WAITING as u64);

    let start = Instant::now();
    let refused = post(&server, TEXT, &json!({"prompt": [40]}));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    let error = &refused.json()["error"];
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("rate_limit_error"), &json!("queue_full"))
    );
    let page = get(&server, "/metrics");
    assert!(page.text().contains("reason=\"queue_full\"} "), "{}", page.text());
    drop((first, waiting, last));
    server.script.hold.store(false, SeqCst);
    server.wait_for("free", LATER, |gauges| gauges.running + gauges.waiting == 0);
    assert_eq!(post(&server, TEXT, &json!({"prompt": [40], "max_tokens": 1})).status, 200);
}

#[test]
fn a_stall_shows_in_health_and_passes() {
    let server = Server::with(|engine, options| {
        engine.stall = Duration::from_millis(50);
        // Nothing of this may be in health's way.
        options.text_tasks = 1;
    });
    assert_eq!(get(&server, "/health").json(), json!({"status": "ok"}));
    server.script.hold.store(true, SeqCst);
    let connection = begin(&server, TEXT, &json!({"prompt": [40], "max_tokens": 1}));
    let start = Instant::now();
    let stalled = loop {
        let health = get(&server, "/health");
        if health.status == 503 {
            break health.json();
        }
        assert!(start.elapsed() < LATER);
    };
    assert_eq!(stalled["status"], "stalled");
    assert!(stalled["silent_seconds"].as_f64().unwrap() >= 0.05);
    server.script.hold.store(false, SeqCst);
    let mut connection = connection;
    assert_eq!(read(&mut connection).status, 200);
    let start = Instant::now();
    while get(&server, "/health").status != 200 {
        assert!(start.elapsed() < LATER);
    }
}

#[test]
fn going_down_lets_running_requests_finish_and_refuses_new_ones() {
    let server = Server::start();
    server.script.step_ms.store(10, SeqCst);
    let mut running = begin(&server, TEXT, &endless());
    read_until(&mut running, "data: ");
    server.shut_down();
    let start = Instant::now();
    wait_for_health(&server, "draining");
    let refused = post(&server, TEXT, &json!({"prompt": [40]}));
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    assert_eq!(refused.json()["error"]["code"], "shutting_down");
    server.script.step_ms.store(0, SeqCst);
    read_until(&mut running, "data: [DONE]");
    while !server.serving.is_finished() {
        assert!(start.elapsed() < LATER, "the server does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(TcpStream::connect(&server.address).is_err(), "the listener is closed");
}

#[test]
fn going_down_waits_for_a_prompt_that_is_in_its_first_step() {
    let server = Server::start();
    server.script.hold.store(true, SeqCst);
    let mut running = begin(&server, TEXT, &json!({"prompt": [40], "max_tokens": 3}));
    let start = Instant::now();
    while server.script.steps.load(SeqCst) == 0 {
        assert!(start.elapsed() < LATER);
    }
    assert_eq!(server.handle.gauges().running, 1, "a step shows before it ends");
    server.shut_down();
    wait_for_health(&server, "draining");
    // Long enough for a server that does not wait to close.
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(get(&server, "/health").status, 503);
    server.script.hold.store(false, SeqCst);
    assert_eq!(read(&mut running).status, 200);
}

#[test]
fn an_idle_server_goes_down_although_somebody_says_nothing() {
    let server = Server::start();
    let silent = TcpStream::connect(&server.address).unwrap();
    let mut half = TcpStream::connect(&server.address).unwrap();
    half.write_all(b"GET /health HTT").unwrap();
    assert_eq!(get(&server, "/health").status, 200);
    server.shut_down();
    let start = Instant::now();
    while !server.serving.is_finished() {
        assert!(start.elapsed() < LATER, "the server does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop((silent, half));
}

#[test]
fn health_answers_while_texts_are_worked_on() {
    let server = Server::with(|_, options| options.text_tasks = 1);
    let long = json!({"prompt": "word ".repeat(200_000)});
    std::thread::scope(|scope| {
        let asking: Vec<_> =
            (0..4).map(|_| scope.spawn(|| post(&server, "/tokenize", &long))).collect();
        while asking.iter().any(|one| !one.is_finished()) {
            assert_eq!(get(&server, "/health").status, 200);
        }
        for one in asking {
            assert_eq!(one.join().unwrap().status, 200);
        }
    });
}

//! Clients that leave: their sequences are gone within a second, in every phase.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{begin, get, read_until};
use crate::server::Server;

const SECOND: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(20);

fn body(stream: bool, n: usize) -> Value {
    json!({"prompt": vec![40; 50], "max_tokens": 200, "ignore_eos": true, "stream": stream, "n": n})
}

fn free(server: &Server, phase: &str) {
    server.wait_for(phase, SECOND, |gauges| {
        gauges.running + gauges.waiting + gauges.pages_used + gauges.staging_tokens_used == 0
    });
}

#[test]
fn in_decode() {
    for stream in [true, false] {
        for n in [1, 3] {
            let server = Server::start();
            server.script.step_ms.store(5, SeqCst);
            let mut connection = begin(&server, "/v1/completions", &body(stream, n));
            if stream {
                read_until(&mut connection, "data: ");
            }
            server
                .wait_for("decode", LATER, |gauges| gauges.running == n as u64 && gauges.steps > 9);
            drop(connection);
            free(&server, "after decode");
            assert_eq!(server.handle.gauges().cancelled_decode, n as u64, "stream: {stream}");
            let page = get(&server, "/metrics");
            assert!(page.text().contains(&format!("finished_reason=\"abort\"}} {n}\n")));
        }
    }
}

#[test]
fn in_prefill() {
    for stream in [true, false] {
        // At least 16 prompt tokens a step: eight steps of 20 ms, and long ones leave time to see.
        let server = Server::with(|engine, _| engine.step_tokens = 16);
        server.script.step_ms.store(100, SeqCst);
        let long = json!({"prompt": vec![40; 160], "max_tokens": 9, "stream": stream});
        let connection = begin(&server, "/v1/completions", &long);
        server.wait_for("prefill", LATER, |gauges| gauges.staging_tokens_used > 0);
        drop(connection);
        free(&server, "after prefill");
        assert_eq!(server.handle.gauges().cancelled_prefill, 1, "stream: {stream}");
        assert!(server.script.prompt_tokens.load(SeqCst) < 160);
    }
}

#[test]
fn in_the_queue() {
    for stream in [true, false] {
        let server = Server::with(|engine, _| engine.sequences = 1);
        server.script.step_ms.store(5, SeqCst);
        let running = begin(&server, "/v1/completions", &body(true, 1));
        server.wait_for("running", LATER, |gauges| gauges.running == 1);
        let waiting = begin(&server, "/v1/completions", &body(stream, 1));
        server.wait_for("waiting", LATER, |gauges| gauges.waiting == 1);
        drop(waiting);
        server.wait_for("left the queue", SECOND, |gauges| gauges.waiting == 0);
        assert_eq!(server.handle.gauges().cancelled_waiting, 1, "stream: {stream}");
        assert_eq!(server.handle.gauges().running, 1, "the other one goes on");
        drop(running);
        free(&server, "all");
    }
}

#[test]
fn at_any_time() {
    let server = Server::start();
    server.script.step_ms.store(1, SeqCst);
    for seed in 0..60_u64 {
        // Far apart within the request's life, and the same in every run.
        let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let connection =
            begin(&server, "/v1/completions", &body(seed % 2 == 0, 1 + (mixed % 3) as usize));
        std::thread::sleep(Duration::from_micros(mixed % 20_000));
        drop(connection);
    }
    free(&server, "after all");
    let gauges = server.handle.gauges();
    let left = gauges.cancelled_waiting + gauges.cancelled_prefill + gauges.cancelled_decode;
    assert!(left > 0, "{gauges:?}");
}

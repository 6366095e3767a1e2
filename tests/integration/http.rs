//! The built binary over HTTP: real tokens of the built-in model, many clients at once, clients
//! that leave, load, health during a long prompt, and going down.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{get, metric, post, read, send};
use crate::server::Running;

/// A text of roughly so many tokens of the built-in model.
fn text(words: usize) -> String {
    "the whale was upon the sea and ".repeat(words / 7 + 1)
}

/// The `number`th of sixteen requests that differ in prompt, length, seed and rules.
fn request(number: usize) -> Value {
    json!({
        "prompt": format!("{number} {}", text(1 + number * 20)),
        "max_tokens": 10 + 5 * number,
        "temperature": 0.25 * (number % 5) as f64,
        "top_p": if number.is_multiple_of(2) { 1.0 } else { 0.9 },
        "seed": 77 * number,
        "ignore_eos": true,
        "stream": number.is_multiple_of(3),
    })
}

/// Status and text of a completion, streamed or not.
fn completion(address: &str, request: &Value) -> (u16, String) {
    let answer = post(address, "/v1/completions", request);
    if request["stream"] != true {
        let text = answer.json()["choices"][0]["text"].as_str().unwrap_or_default().to_owned();
        return (answer.status, text);
    }
    let events = answer.body.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    let events: Vec<&str> = events.collect();
    assert_eq!(events.last(), Some(&"[DONE]"), "{}", answer.body);
    let chunks = events[..events.len() - 1].iter();
    let chunks = chunks.map(|event| serde_json::from_str::<Value>(event).unwrap());
    let pieces = chunks.map(|chunk| chunk["choices"][0]["text"].as_str().unwrap().to_owned());
    (answer.status, pieces.collect())
}

#[test]
fn sixteen_at_once_get_what_each_gets_alone() {
    let running = Running::start(&[]);
    let address = running.address.as_str();
    let requests: Vec<Value> = (0..16).map(request).collect();
    let alone: Vec<_> = requests.iter().map(|request| completion(address, request)).collect();
    for (number, (status, text)) in alone.iter().enumerate() {
        assert!(*status == 200 && text.len() > 10, "{number}: {status} {text:?}");
    }
    for _ in 0..2 {
        let together: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = requests
                .iter()
                .map(|request| scope.spawn(move || completion(address, request)))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(together, alone);
    }
}

#[test]
fn a_client_that_leaves_frees_its_pages_within_a_second() {
    let running = Running::start(&["--sequences", "1"]);
    let address = running.address.as_str();
    let long = json!({"prompt": "The", "max_tokens": 1900, "ignore_eos": true});
    let streamed = json!({"prompt": "The", "max_tokens": 1900, "ignore_eos": true, "stream": true});
    let prefill = json!({"prompt": text(1900), "max_tokens": 1, "ignore_eos": true});
    for (what, body) in [("decode", &long), ("stream", &streamed), ("prefill", &prefill)] {
        let first = send(address, "POST", "/v1/completions", body.to_string().as_bytes());
        let waiting = send(address, "POST", "/v1/completions", long.to_string().as_bytes());
        let start = Instant::now();
        while what != "prefill" && metric(address, "vllm:num_requests_running") == 0.0 {
            assert!(start.elapsed() < Duration::from_secs(10), "{what} does not start");
        }
        // The one in the queue, then the one that runs.
        drop(waiting);
        drop(first);
        let start = Instant::now();
        while metric(address, "kvant:pages_used")
            + metric(address, "vllm:num_requests_running")
            + metric(address, "vllm:num_requests_waiting")
            > 0.0
        {
            assert!(start.elapsed() < Duration::from_secs(1), "{what} is still there");
            thread::sleep(Duration::from_millis(5));
        }
    }
    assert_eq!(completion(address, &request(1)).0, 200);
}

#[test]
fn health_answers_at_once_during_the_longest_prompt() {
    let running = Running::start(&["--step-tokens", "2048"]);
    let address = running.address.as_str();
    let prompts: Vec<_> = (0..8)
        .map(|number| {
            let prompt = format!("{number} {}", text(1900));
            let body = json!({"prompt": prompt, "max_tokens": 20, "ignore_eos": true});
            send(address, "POST", "/v1/completions", body.to_string().as_bytes())
        })
        .collect();
    let mut times = Vec::new();
    while metric(address, "vllm:request_prompt_tokens_count") < 8.0 {
        let start = Instant::now();
        let answer = get(address, "/health");
        times.push(start.elapsed());
        assert_eq!(answer.status, 200, "{answer:?}");
        thread::sleep(Duration::from_millis(2));
    }
    for prompt in prompts {
        assert_eq!(read(prompt).status, 200);
    }
    times.sort_unstable();
    // The worst of many may be the machine's doing; the median is ours.
    let median = times[times.len() / 2];
    assert!(median < Duration::from_millis(50), "{median:?} of {} tries", times.len());
}

#[test]
fn overload_is_429_with_a_time_to_come_back() {
    let flags = ["--sequences", "1", "--set", "scheduler.waiting_requests=1"];
    let running = Running::start(&flags);
    let address = running.address.as_str();
    let long = json!({"prompt": "The", "max_tokens": 1000, "ignore_eos": true}).to_string();
    let sent: Vec<_> =
        (0..8).map(|_| send(address, "POST", "/v1/completions", long.as_bytes())).collect();
    let answers: Vec<_> = sent.into_iter().map(read).collect();
    let (refused, served): (Vec<_>, Vec<_>) = answers.iter().partition(|a| a.status == 429);
    assert!(!refused.is_empty() && !served.is_empty(), "{} of 8 were refused", refused.len());
    for answer in refused {
        assert!(answer.head.to_ascii_lowercase().contains("retry-after: "), "{}", answer.head);
        assert_eq!(answer.json()["error"]["code"], "queue_full");
    }
    assert!(served.iter().all(|answer| answer.status == 200), "{served:?}");
    assert_eq!(completion(address, &request(1)).0, 200);
}

#[test]
fn wrong_bodies_harm_nobody() {
    let running = Running::start(&[]);
    let address = running.address.as_str();
    let good = post(address, "/v1/completions", &request(2)).body;
    let good: Value = serde_json::from_str(&good).unwrap();
    let nested = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let large = format!("{{\"prompt\": \"{}\"}}", "a".repeat(10 << 20));
    let chat = |messages: Value| json!({"messages": messages}).to_string();
    let hello = json!([{"role": "user", "content": "hello"}]);
    for (path, body, status, part) in [
        ("/v1/completions", nested.into_bytes(), 400, "error"),
        ("/v1/completions", large.into_bytes(), 413, "error"),
        ("/v1/completions", b"{\"prompt\": \"\xff\xfe\"}".to_vec(), 400, "unicode"),
        ("/v1/completions", b"{\"prompt\": ".to_vec(), 400, "error"),
        ("/v1/completions", b"{\"prompt\": \"x\", \"temperature\": NaN}".to_vec(), 400, "error"),
        ("/v1/completions", b"{\"prompt\": \"x\", \"max_tokens\": 0}".to_vec(), 400, "max_tokens"),
        ("/v1/completions", b"{\"prompt\": \"x\", \"max_tokens\": -5}".to_vec(), 400, "max_tokens"),
        ("/v1/completions", b"{\"prompt\": \"x\", \"max_tokens\": 99999}".to_vec(), 400, "2048"),
        ("/v1/completions", b"{\"prompt\": [5000]}".to_vec(), 400, "5000"),
        ("/v1/chat/completions", chat(json!([])).into_bytes(), 400, "messages"),
        (
            "/v1/chat/completions",
            json!({"model": "other", "messages": hello}).to_string().into_bytes(),
            404,
            "other",
        ),
        ("/v1/nothing", b"{}".to_vec(), 404, "error"),
    ] {
        let answer = read(send(address, "POST", path, &body));
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        assert_eq!(answer.status, status, "{path} {shown}: {answer:?}");
        let error = &answer.json()["error"];
        assert!(error["message"].as_str().is_some_and(|m| m.lines().count() == 1), "{error}");
        for key in ["type", "param", "code"] {
            assert!(error.get(key).is_some(), "{shown}: {error} lacks {key}");
        }
        assert!(answer.body.contains(part), "{shown}: {}", answer.body);
    }
    let again = post(address, "/v1/completions", &request(2)).json();
    assert_eq!(again["choices"][0]["text"], good["choices"][0]["text"]);
}

#[cfg(unix)]
#[test]
fn a_termination_signal_lets_running_requests_finish() {
    let mut running = Running::start(&[]);
    let address = running.address.clone();
    let body = json!({"prompt": "The", "max_tokens": 1500, "ignore_eos": true}).to_string();
    let stream = send(&address, "POST", "/v1/completions", body.as_bytes());
    let start = Instant::now();
    while metric(&address, "vllm:num_requests_running") == 0.0 {
        assert!(start.elapsed() < Duration::from_secs(10), "it does not start");
    }
    running.terminate();
    let start = Instant::now();
    loop {
        let health = get(&address, "/health");
        if health.status == 503 {
            assert_eq!(health.json()["status"], "draining");
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(2), "health stays {}", health.status);
    }
    let refused = post(&address, "/v1/completions", &request(1));
    assert_eq!(refused.status, 503);
    assert!(refused.head.to_ascii_lowercase().contains("retry-after: "), "{}", refused.head);
    let answer = read(stream);
    assert_eq!(answer.json()["usage"]["completion_tokens"], 1500);
    assert!(running.wait().success());
}

#[test]
fn a_prompt_longer_than_staging_is_served_and_says_so() {
    let running = Running::start(&["--kv-cache", "tq4", "--set", "scheduler.staging_tokens=128"]);
    let address = running.address.as_str();
    let ids = |count: usize| (0..count).map(|at| at * 37 % 2000).collect::<Vec<_>>();
    let request = json!({ "prompt": ids(129), "max_tokens": 70, "ignore_eos": true });
    let usage = |request: &Value| post(address, "/v1/completions", request).json()["usage"].clone();
    let early = usage(&request);
    assert_eq!(
        (early["prompt_tokens"].as_u64(), &early["completion_tokens"]),
        (Some(129), &70.into())
    );
    assert_eq!(early["prompt_tokens_details"]["early_converted_tokens"], 64);
    let whole = usage(&json!({ "prompt": ids(128), "max_tokens": 1 }));
    assert_eq!(whole["prompt_tokens_details"], json!({ "cached_tokens": 0 }));
    assert_eq!(metric(address, "kvant:early_conversions_total"), 1.0);
    assert!(metric(address, "kvant:conversions_total") >= 4.0);
    assert!(metric(address, "kvant:conversion_seconds_total") > 0.0);
    assert_eq!(metric(address, "kvant:conversions_not_finite_total"), 0.0);
}

#[test]
fn the_reference_road_answers_like_the_kernels() {
    let greedy =
        json!({ "prompt": "The whale", "max_tokens": 100, "temperature": 0, "ignore_eos": true });
    let answers = ["fused", "reference"].map(|road| {
        let running = Running::start(&["--attention", road, "--kv-cache", "tq4"]);
        completion(&running.address, &greedy)
    });
    assert_eq!(answers[0], answers[1]);
}

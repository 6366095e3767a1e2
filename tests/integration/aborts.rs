//! The abort matrix: a client that leaves in any phase, streaming or not, with one answer or four,
//! constrained or not, frees everything within a second.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{get, send};
use crate::server::Running;

const TEXT: &str = "/v1/completions";

/// A request that leaves, and how the server shows that it is in its phase.
struct Phase {
    name: &'static str,
    flags: &'static [&'static str],
    prompt_tokens: usize,
    /// Another one is running before it comes.
    behind: bool,
    is_there: fn(&Page, n: f64) -> bool,
}

const PHASES: [Phase; 4] = [
    Phase {
        name: "queued",
        flags: &["--sequences", "1"],
        prompt_tokens: 8,
        behind: true,
        is_there: |page, n| page.metric("vllm:num_requests_waiting") >= n,
    },
    Phase {
        name: "prefill",
        flags: &["--step-tokens", "16", "--kv-cache", "f16"],
        prompt_tokens: 1900,
        behind: false,
        is_there: |page, _| {
            page.metric("kvant:staging_tokens") > 0.0
                && page.metric("vllm:generation_tokens_total") == 0.0
        },
    },
    Phase {
        name: "converting",
        flags: &[
            "--step-tokens",
            "16",
            "--kv-cache",
            "tq4",
            "--set",
            "scheduler.staging_tokens=128",
        ],
        prompt_tokens: 1900,
        behind: false,
        is_there: |page, _| {
            page.metric("kvant:conversions_total") > 0.0
                && page.metric("kvant:staging_tokens") > 0.0
                && page.metric("vllm:generation_tokens_total") == 0.0
        },
    },
    Phase {
        name: "decode",
        flags: &["--kv-cache", "tq4"],
        prompt_tokens: 8,
        behind: false,
        is_there: |page, n| page.metric("vllm:generation_tokens_total") >= 2.0 * n,
    },
];

/// A page of metrics.
struct Page(String);

impl Page {
    fn of(address: &str) -> Self {
        Self(get(address, "/metrics").body)
    }

    fn metric(&self, name: &str) -> f64 {
        let line = self.0.lines().find(|line| line.starts_with(&format!("{name}{{")));
        line.unwrap_or_else(|| panic!("no {name}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    fn held(&self) -> f64 {
        [
            "kvant:pages_used",
            "kvant:staging_tokens",
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
        ]
        .iter()
        .map(|name| self.metric(name))
        .sum()
    }
}

/// Waits until a page is as wanted.
fn wait(address: &str, what: &str, within: Duration, wanted: impl Fn(&Page) -> bool) {
    let start = Instant::now();
    loop {
        let page = Page::of(address);
        if wanted(&page) {
            return;
        }
        assert!(start.elapsed() < within, "{what}: not within {within:?}: {}", page.0);
    }
}

/// How a request asks.
#[derive(Clone, Copy, Debug)]
struct Manner {
    stream: bool,
    n: usize,
    constrained: bool,
}

impl Manner {
    const PLAIN: Self = Self { stream: true, n: 1, constrained: false };

    fn all() -> impl Iterator<Item = Self> {
        (0..8).map(|bits| Self {
            stream: bits & 1 > 0,
            n: if bits & 2 > 0 { 4 } else { 1 },
            constrained: bits & 4 > 0,
        })
    }

    fn request(self, tokens: usize) -> Vec<u8> {
        let prompt: Vec<usize> = (0..tokens).map(|at| at * 37 % 2000).collect();
        let mut body: Value = json!({"prompt": prompt, "max_tokens": 2048 - tokens,
            "ignore_eos": true, "stream": self.stream, "n": self.n});
        if self.constrained {
            body["guided_regex"] = json!("[a-z ]{3000}");
        }
        body.to_string().into_bytes()
    }
}

#[test]
fn whoever_leaves_frees_everything_within_a_second() {
    let later = Duration::from_mins(1);
    let second = Duration::from_secs(1);
    for phase in &PHASES {
        for manner in Manner::all() {
            let what = format!("{}, {manner:?}", phase.name);
            let running = Running::start(phase.flags);
            let address = running.address.as_str();
            let first = phase.behind.then(|| {
                let first = send(address, "POST", TEXT, &Manner::PLAIN.request(8));
                wait(address, &what, later, |page| page.metric("vllm:num_requests_running") > 0.0);
                first
            });
            let leaving = send(address, "POST", TEXT, &manner.request(phase.prompt_tokens));
            wait(address, &what, later, |page| (phase.is_there)(page, manner.n as f64));
            drop(leaving);
            if let Some(first) = first {
                wait(address, &what, second, |page| {
                    page.metric("vllm:num_requests_waiting") == 0.0
                });
                drop(first);
            }
            wait(address, &what, second, |page| page.held() == 0.0);
            let page = Page::of(address);
            let aborted = "finished_reason=\"abort\"} ";
            let line = page.0.lines().find(|line| line.contains(aborted)).unwrap();
            let count = manner.n + usize::from(phase.behind);
            assert!(line.ends_with(&format!("{aborted}{count}")), "{what}: {line}");
        }
    }
}

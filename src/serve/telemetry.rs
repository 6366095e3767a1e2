//! Traces go to a collector as OTLP: HTTP with JSON, which every collector takes and which needs no
//! generated code. A thread of its own sends them, so that a slow collector slows nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use kvant_server::{SequenceTimes, Trace, TraceSink};
use serde_json::{Value, json};

/// Traces of one message at most.
const BATCH: usize = 256;

/// How long a collector may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// OTLP's numbers for kinds of spans and for a status of error.
const INTERNAL: u8 = 1;
const SERVER: u8 = 2;
const ERROR: u8 = 2;

/// Starts to send traces to the endpoint, if there is one.
pub(crate) fn start(endpoint: &str) -> Result<Option<TraceSink>> {
    if endpoint.is_empty() {
        return Ok(None);
    }
    if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
        bail!("log.otlp_endpoint is {endpoint:?}, it must begin with http:// or https://");
    }
    let (sink, mut traces) = TraceSink::new();
    let endpoint = endpoint.to_owned();
    let thread = std::thread::Builder::new().name("traces".into());
    let send = move || {
        let config = ureq::Agent::config_builder().timeout_global(Some(ANSWER)).build();
        let agent = ureq::Agent::new_with_config(config);
        let ids = Ids::new();
        let mut batch = Vec::new();
        while let Some(first) = traces.blocking_recv() {
            batch.push(first);
            while batch.len() < BATCH
                && let Ok(more) = traces.try_recv()
            {
                batch.push(more);
            }
            let message = message(&batch, &ids).to_string();
            batch.clear();
            let sent = agent.post(&endpoint).content_type("application/json").send(message);
            if let Err(error) = sent {
                tracing::warn!("the collector did not take traces: {error}");
            }
        }
    };
    thread.spawn(send).context("cannot start the thread that sends traces")?;
    Ok(Some(sink))
}

/// Numbers that no other span has.
#[derive(Debug)]
struct Ids {
    seed: Arc<std::hash::RandomState>,
    count: AtomicU64,
}

impl Ids {
    fn new() -> Self {
        Self { seed: Arc::default(), count: AtomicU64::new(0) }
    }

    fn next(&self) -> u64 {
        use std::hash::BuildHasher;
        // 0 is no name.
        self.seed.hash_one(self.count.fetch_add(1, Ordering::Relaxed)).max(1)
    }
}

fn message(traces: &[Trace], ids: &Ids) -> Value {
    let spans: Vec<Value> = traces.iter().flat_map(|trace| spans(trace, ids)).collect();
    let service = json!([
        attribute("service.name", &json!({"stringValue": "kvant"})),
        attribute("service.version", &json!({"stringValue": env!("CARGO_PKG_VERSION")})),
    ]);
    json!({"resourceSpans": [{
        "resource": {"attributes": service},
        "scopeSpans": [{"scope": {"name": "kvant"}, "spans": spans}],
    }]})
}

/// The request's span, and one for each part of its first sequence's time that the engine has told.
fn spans(trace: &Trace, ids: &Ids) -> Vec<Value> {
    let high = || u128::from(ids.next()) << 64 | u128::from(ids.next());
    let trace_id = format!("{:032x}", trace.parent.trace.unwrap_or_else(high));
    let root = format!("{:016x}", ids.next());
    let name = format!("POST {}", trace.route);
    let mut request = span(&trace_id, &root, &name, (trace.started, trace.started + trace.took));
    request["kind"] = SERVER.into();
    if let Some(parent) = trace.parent.span {
        request["parentSpanId"] = format!("{parent:016x}").into();
    }
    if trace.status.is_none_or(|status| status >= 500) {
        request["status"] = json!({"code": ERROR});
    }
    request["attributes"] = attributes(trace);
    let mut spans = vec![request];
    if let Some(times) = trace.sequences.first() {
        for (name, from, to) in parts(trace, times) {
            let id = format!("{:016x}", ids.next());
            let mut part = span(&trace_id, &id, name, (from, to));
            part["kind"] = INTERNAL.into();
            part["parentSpanId"] = root.clone().into();
            spans.push(part);
        }
    }
    spans
}

/// Counted back from the end, which is when the answer's last token was sent.
fn parts(trace: &Trace, times: &SequenceTimes) -> Vec<(&'static str, SystemTime, SystemTime)> {
    let (Some(queued), Some(prefill), Some(decode)) = (times.queued, times.prefill, times.decode)
    else {
        return Vec::new();
    };
    let before = trace.took.saturating_sub(queued + prefill + decode);
    let submitted = trace.started + before;
    let admitted = submitted + queued;
    let first = admitted + prefill;
    vec![
        ("queue", submitted, admitted),
        ("prefill", admitted, first),
        ("decode", first, first + decode),
    ]
}

fn span(trace: &str, id: &str, name: &str, (from, to): (SystemTime, SystemTime)) -> Value {
    let nanos = |time: SystemTime| {
        time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
    };
    json!({
        "traceId": trace,
        "spanId": id,
        "name": name,
        "startTimeUnixNano": nanos(from),
        "endTimeUnixNano": nanos(to),
    })
}

fn attributes(trace: &Trace) -> Value {
    let sum = |count: fn(&SequenceTimes) -> u64| trace.sequences.iter().map(count).sum::<u64>();
    let number = |value: u64| json!({"intValue": value.to_string()});
    let prompt = sum(|one| one.prompt_tokens as u64);
    let output = sum(|one| u64::from(one.output_tokens));
    let mut list = vec![
        attribute("http.route", &json!({"stringValue": trace.route})),
        attribute("kvant.request_id", &json!({"stringValue": trace.request_id})),
        attribute("gen_ai.usage.input_tokens", &number(prompt)),
        attribute("gen_ai.usage.output_tokens", &number(output)),
    ];
    if let Some(status) = trace.status {
        list.push(attribute("http.response.status_code", &number(status.into())));
    }
    let reasons: Vec<Value> =
        trace.sequences.iter().map(|one| json!({"stringValue": one.reason})).collect();
    let reasons = json!({"arrayValue": {"values": reasons}});
    list.push(attribute("gen_ai.response.finish_reasons", &reasons));
    Value::Array(list)
}

fn attribute(key: &str, value: &Value) -> Value {
    json!({"key": key, "value": value})
}

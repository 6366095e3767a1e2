//! `Metrics`: what the server counts, and the page that shows it beside the engine's gauges.
//!
//! Names and buckets are vLLM's, so that its dashboards and gateways read them; `kvant:` is ours.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use kvant_engine::{Gauges, PAGE_TOKENS, Rejected};

use crate::CacheCard;
use crate::counts::Counts;
use crate::histogram::Histogram;
use crate::under_way::UnderWay;

const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const EACH_TOKEN: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const REQUEST: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
/// `finished_reason`s, in the order of `Metrics::ends`.
const ENDS: [&str; 4] = ["stop", "length", "abort", "error"];
/// Reasons of rejection, in the order of `Metrics::rejections`.
const REJECTIONS: [&str; 5] = ["queue_full", "too_long", "closing", "dead", "invalid"];

/// Counters and histograms, written from any thread.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// `model_name="…"`.
    labels: String,
    /// Sequences that somebody is still told about.
    live: AtomicU64,
    pub(crate) under_way: Arc<UnderWay>,
    ends: [AtomicU64; ENDS.len()],
    rejections: [AtomicU64; REJECTIONS.len()],
    pub(crate) counts: Counts,
    pub(crate) times: Times,
    pub(crate) prompt_tokens: Histogram,
    pub(crate) output_tokens: Histogram,
}

/// Histograms of seconds.
#[derive(Debug)]
pub(crate) struct Times {
    pub(crate) first_token: Histogram,
    pub(crate) between_tokens: Histogram,
    pub(crate) each_token: Histogram,
    pub(crate) whole: Histogram,
    pub(crate) queue: Histogram,
    pub(crate) inference: Histogram,
    pub(crate) prefill: Histogram,
    pub(crate) decode: Histogram,
}

impl Metrics {
    pub(crate) fn new(model: &str, max_tokens: usize) -> Self {
        let tokens = token_bounds(max_tokens);
        Self {
            labels: format!("model_name=\"{}\"", escaped(model)),
            live: AtomicU64::new(0),
            under_way: Arc::default(),
            ends: Default::default(),
            rejections: Default::default(),
            counts: Counts::default(),
            times: Times::new(),
            prompt_tokens: Histogram::new(
                "vllm:request_prompt_tokens",
                "Prompt tokens of a sequence.",
                &tokens,
            ),
            output_tokens: Histogram::new(
                "vllm:request_generation_tokens",
                "Tokens generated for a sequence.",
                &tokens,
            ),
        }
    }

    /// A sequence was submitted; `left` will be called.
    pub(crate) fn came(&self) {
        self.live.fetch_add(1, Relaxed);
    }

    /// Nothing more will be told of a sequence.
    pub(crate) fn left(&self) {
        self.live.fetch_sub(1, Relaxed);
    }

    /// Whether no sequence is under way. The engine's own gauges lag by a step.
    pub(crate) fn is_idle(&self) -> bool {
        self.live.load(Relaxed) == 0
    }

    /// A sequence is over.
    pub(crate) fn ended(&self, reason: &str) {
        if let Some(index) = ENDS.iter().position(|end| *end == reason) {
            self.ends[index].fetch_add(1, Relaxed);
        }
    }

    /// A request was not taken.
    pub(crate) fn rejected(&self, rejected: &Rejected) {
        let index = match rejected {
            Rejected::QueueFull { .. } => 0,
            Rejected::TooLong { .. } => 1,
            Rejected::Closing => 2,
            Rejected::Dead => 3,
            Rejected::Invalid(_) => 4,
        };
        self.rejections[index].fetch_add(1, Relaxed);
    }

    /// The page, in Prometheus' text format 0.0.4.
    pub(crate) fn page(&self, gauges: &Gauges, cache: &CacheCard) -> String {
        let mut page = Page { text: String::new(), labels: &self.labels };
        page.engine(gauges);
        page.cache(cache, gauges.pages_used);
        page.conversions(gauges);
        page.cancelled(gauges);
        let name = "vllm:request_success_total";
        page.family(name, "counter", "Sequences that ended, by reason.");
        for (reason, count) in ENDS.iter().zip(&self.ends) {
            page.sample(name, &format!(",finished_reason=\"{reason}\""), count.load(Relaxed));
        }
        let name = "vllm:admission_rejections_total";
        page.family(name, "counter", "Requests that were not taken, by reason.");
        for (reason, count) in REJECTIONS.iter().zip(&self.rejections) {
            page.sample(name, &format!(",reason=\"{reason}\""), count.load(Relaxed));
        }
        page.counts(&self.counts);
        let Times { first_token, between_tokens, each_token, whole, .. } = &self.times;
        let Times { queue, inference, prefill, decode, .. } = &self.times;
        let times = [first_token, between_tokens, each_token, whole, queue, inference];
        for histogram in times.into_iter().chain([prefill, decode]) {
            histogram.write(&mut page.text, &self.labels);
        }
        self.prompt_tokens.write(&mut page.text, &self.labels);
        self.output_tokens.write(&mut page.text, &self.labels);
        page.text
    }
}

impl Metrics {
    /// Adds how many traces found no place on their way to the collector.
    pub(crate) fn lost_traces(&self, page: &mut String, count: u64) {
        let mut more = Page { text: String::new(), labels: &self.labels };
        more.family("kvant:traces_lost_total", "counter", "Traces that found no place.");
        more.sample("kvant:traces_lost_total", "", count);
        page.push_str(&more.text);
    }
}

impl Times {
    fn new() -> Self {
        let new = Histogram::new;
        Self {
            first_token: new(
                "vllm:time_to_first_token_seconds",
                "From a request's arrival to its first token.",
                &FIRST_TOKEN,
            ),
            between_tokens: new(
                "vllm:inter_token_latency_seconds",
                "From one token to the next.",
                &EACH_TOKEN,
            ),
            each_token: new(
                "vllm:request_time_per_output_token_seconds",
                "Mean time between the tokens of a sequence.",
                &EACH_TOKEN,
            ),
            whole: new(
                "vllm:e2e_request_latency_seconds",
                "From a request's arrival to its sequence's end.",
                &REQUEST,
            ),
            queue: new(
                "vllm:request_queue_time_seconds",
                "From submission to admission.",
                &REQUEST,
            ),
            inference: new(
                "vllm:request_inference_time_seconds",
                "From admission to the last token.",
                &REQUEST,
            ),
            prefill: new(
                "vllm:request_prefill_time_seconds",
                "From admission to the first token.",
                &REQUEST,
            ),
            decode: new(
                "vllm:request_decode_time_seconds",
                "From the first token to the last.",
                &REQUEST,
            ),
        }
    }
}

/// The page as it grows.
struct Page<'a> {
    text: String,
    labels: &'a str,
}

impl Page<'_> {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, more: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.text, "{name}{{{}{more}}} {value}", self.labels);
    }

    fn engine(&mut self, gauges: &Gauges) {
        let Gauges { pages_used, pages, .. } = *gauges;
        let usage = if pages == 0 { 0.0 } else { pages_used as f64 / pages as f64 };
        let waiting = gauges.waiting + gauges.preempted;
        let whole = |number: u64| number as f64;
        let rows: [(&str, &str, &str, f64); 12] = [
            (
                "vllm:num_requests_running",
                "gauge",
                "Sequences that compute.",
                whole(gauges.running),
            ),
            ("vllm:num_requests_waiting", "gauge", "Sequences that wait.", whole(waiting)),
            ("vllm:kv_cache_usage_perc", "gauge", "Part of the cache in use, 0 to 1.", usage),
            ("vllm:prompt_tokens_total", "counter", "Prompt tokens.", whole(gauges.prompt_tokens)),
            (
                "vllm:generation_tokens_total",
                "counter",
                "Tokens generated.",
                whole(gauges.output_tokens),
            ),
            ("vllm:num_preemptions_total", "counter", "Preemptions.", whole(gauges.preemptions)),
            (
                "kvant:num_requests_preempted",
                "gauge",
                "Preempted, waiting to go on.",
                whole(gauges.preempted),
            ),
            (
                "kvant:waiting_tokens",
                "gauge",
                "Prompt tokens that wait.",
                whole(gauges.waiting_tokens),
            ),
            (
                "kvant:staging_tokens",
                "gauge",
                "Tokens of prompts in staging.",
                whole(gauges.staging_tokens_used),
            ),
            ("kvant:pages_used", "gauge", "Cache pages in use.", whole(pages_used)),
            ("kvant:steps_total", "counter", "Steps of the engine.", whole(gauges.steps)),
            (
                "kvant:steps_ahead_total",
                "counter",
                "Steps queued before the tokens of the step in front were known.",
                whole(gauges.steps_ahead),
            ),
        ];
        for (name, kind, help, value) in rows {
            self.family(name, kind, help);
            self.sample(name, "", value);
        }
        let name = "vllm:cache_config_info";
        self.family(name, "gauge", "Shape of the cache.");
        let shape = format!(",block_size=\"{PAGE_TOKENS}\",num_gpu_blocks=\"{pages}\"");
        self.sample(name, &shape, 1);
    }

    fn cache(&mut self, cache: &CacheCard, pages: u64) {
        let name = "kvant:kv_cache_bits_per_element";
        self.family(name, "gauge", "Bits of one number of a full page, scales included.");
        self.sample(name, "", cache.bits_per_element);
        let name = "kvant:kv_cache_bytes_per_token";
        self.family(name, "gauge", "Bytes of one token of a full page, all layers.");
        self.sample(name, "", cache.bytes_per_token);
        let name = "kvant:kv_cache_used_bytes";
        self.family(name, "gauge", "Bytes of the pages in use.");
        self.sample(name, "", pages * PAGE_TOKENS as u64 * cache.bytes_per_token);
    }

    fn conversions(&mut self, gauges: &Gauges) {
        let seconds = gauges.conversion_micros as f64 / 1e6;
        for (name, help, value) in [
            (
                "kvant:conversions_total",
                "Pages packed, each layer's for itself.",
                gauges.converted_pages as f64,
            ),
            ("kvant:conversion_seconds_total", "Time that packing pages took.", seconds),
            (
                "kvant:conversions_not_finite_total",
                "Pages whose NaN and infinities became zeros.",
                gauges.not_finite_pages as f64,
            ),
            (
                "kvant:early_conversions_total",
                "Prompts longer than staging, read packed before they were complete.",
                gauges.early_prompts as f64,
            ),
        ] {
            self.family(name, "counter", help);
            self.sample(name, "", value);
        }
    }

    fn counts(&mut self, counts: &Counts) {
        let name = "kvant:answers_total";
        self.family(name, "counter", "Answers that have begun, by status.");
        for (status, count) in counts.answers() {
            self.sample(name, &format!(",code=\"{status}\""), count);
        }
        for (name, help, value) in counts.troubles() {
            self.family(name, "counter", help);
            self.sample(name, "", value);
        }
    }

    fn cancelled(&mut self, gauges: &Gauges) {
        let name = "kvant:cancelled_total";
        self.family(name, "counter", "Sequences left by the client or cut by a stop string.");
        for (phase, count) in [
            ("waiting", gauges.cancelled_waiting),
            ("prefill", gauges.cancelled_prefill),
            ("decode", gauges.cancelled_decode),
        ] {
            self.sample(name, &format!(",phase=\"{phase}\""), count);
        }
    }
}

/// 1, 2, 5, 10, … up to the longest.
fn token_bounds(most: usize) -> Vec<f64> {
    let decades = (0..).map(|exponent| 10_f64.powi(exponent));
    let bounds = decades.flat_map(|decade| [decade, 2.0 * decade, 5.0 * decade]);
    bounds.take_while(|bound| *bound <= most.max(1) as f64).collect()
}

/// A label's value as Prometheus reads it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_sample_belongs_to_a_family_that_is_named_once() {
        let metrics = Metrics::new("a \"b\"\\\n", 4096);
        metrics.ended("stop");
        metrics.rejected(&Rejected::Dead);
        metrics.times.first_token.observe(0.3);
        let gauges = Gauges { pages: 8, pages_used: 2, ..Gauges::default() };
        let page = metrics.page(&gauges, &CacheCard::default());
        let mut families = BTreeSet::new();
        let label = "model_name=\"a \\\"b\\\"\\\\\\n\"";
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                assert!(families.insert(rest.split(' ').next().unwrap().to_owned()), "{line}");
            } else if !line.starts_with('#') {
                let (name, rest) = line.split_once('{').unwrap();
                let stems = ["_bucket", "_sum", "_count"].map(|end| name.trim_end_matches(end));
                let known = families.contains(name) || stems.iter().any(|s| families.contains(*s));
                assert!(known && rest.starts_with(label), "{line}");
                let value = rest.rsplit(' ').next().unwrap();
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
        assert!(
            page.contains("vllm:kv_cache_usage_perc{model_name=\"a \\\"b\\\"\\\\\\n\"} 0.25\n")
        );
        assert!(page.contains("finished_reason=\"stop\"} 1\n"));
        assert!(page.contains("reason=\"dead\"} 1\n"));
        assert!(page.contains("block_size=\"64\",num_gpu_blocks=\"8\"} 1\n"));
    }

    #[test]
    fn bounds_of_tokens_go_up_to_the_context() {
        assert_eq!(token_bounds(100), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(token_bounds(99).last(), Some(&50.0));
        assert_eq!(token_bounds(0), [1.0]);
    }
}

//! `Stopwatch`: measures one sequence for the metrics page, whatever way it ends.

use std::sync::Arc;
use std::time::Instant;

use kvant_engine::{Turn, Usage};

use crate::context::{self, RequestContext, SequenceTimes};
use crate::metrics::Metrics;
use crate::patience::Late;
use crate::under_way::{Place, UnderWay};

/// Runs from a request's arrival to the end of one of its sequences.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    metrics: Arc<Metrics>,
    context: Option<Arc<RequestContext>>,
    arrived: Instant,
    prompt_tokens: usize,
    output_tokens: u32,
    first: Option<Instant>,
    last: Instant,
    /// In the list of what is under way; `None` once it is over.
    place: Option<Place>,
}

impl Stopwatch {
    pub(crate) fn new(
        metrics: Arc<Metrics>,
        arrived: Instant,
        prompt_tokens: usize,
        turn: Turn,
    ) -> Self {
        metrics.came();
        let context = context::current();
        let list = &metrics.under_way;
        let place = Some(UnderWay::enter(list, context.clone(), arrived, prompt_tokens, turn));
        let (output_tokens, first, last) = (0, None, arrived);
        Self { metrics, context, arrived, prompt_tokens, output_tokens, first, last, place }
    }

    /// A token has come.
    pub(crate) fn token(&mut self) {
        let now = Instant::now();
        let times = &self.metrics.times;
        if self.first.is_none() {
            self.first = Some(now);
            times.first_token.observe(now.duration_since(self.arrived).as_secs_f64());
        } else {
            times.between_tokens.observe(now.duration_since(self.last).as_secs_f64());
        }
        self.last = now;
        self.output_tokens += 1;
        if let Some(place) = &self.place {
            place.token();
        }
    }

    /// It ended as it should. The engine tells its times unless a stop string ended it.
    pub(crate) fn finished(&mut self, reason: &'static str, usage: Option<&Usage>) {
        self.ended(reason, usage);
        let times = &self.metrics.times;
        let now = Instant::now();
        times.whole.observe(now.duration_since(self.arrived).as_secs_f64());
        let output = usage.map_or(self.output_tokens, |usage| usage.output_tokens);
        self.metrics.prompt_tokens.observe(self.prompt_tokens as f64);
        self.metrics.output_tokens.observe(f64::from(output));
        if let (Some(first), 2..) = (self.first, self.output_tokens) {
            let each = self.last.duration_since(first) / (self.output_tokens - 1);
            times.each_token.observe(each.as_secs_f64());
        }
        if let Some(usage) = usage {
            times.queue.observe(usage.queued.as_secs_f64());
            times.prefill.observe(usage.prefill.as_secs_f64());
            times.decode.observe(usage.decode.as_secs_f64());
            times.inference.observe((usage.prefill + usage.decode).as_secs_f64());
        }
    }

    /// The engine could not finish it.
    pub(crate) fn failed(&mut self) {
        self.ended("error", None);
    }

    /// Its client has not read it.
    pub(crate) fn unread(&mut self) {
        self.metrics.counts.slow_readers.add();
        self.ended("abort", None);
    }

    /// Its time is over.
    pub(crate) fn late(&mut self, late: Late) {
        match late {
            Late::Queue(_) => self.metrics.counts.queue_timeouts.add(),
            Late::Whole(_) => self.metrics.counts.run_timeouts.add(),
        }
        self.ended("abort", None);
    }

    fn ended(&mut self, reason: &'static str, usage: Option<&Usage>) {
        self.place = None;
        self.metrics.ended(reason);
        if let Some(context) = &self.context {
            context.took(SequenceTimes {
                prompt_tokens: self.prompt_tokens,
                output_tokens: usage.map_or(self.output_tokens, |usage| usage.output_tokens),
                reason,
                queued: usage.map(|usage| usage.queued),
                prefill: usage.map(|usage| usage.prefill),
                decode: usage.map(|usage| usage.decode),
            });
        }
    }
}

impl Drop for Stopwatch {
    /// If it is not over, the client has left.
    fn drop(&mut self) {
        self.metrics.left();
        if self.place.is_some() {
            self.ended("abort", None);
        }
    }
}

//! `Served`: the report on a load, from what the client saw of every request.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use crate::Spread;

/// What a client saw of a request that went well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Arrival of every token, counted from when the request was due; at least one.
    pub times: Vec<Duration>,
    /// From when the request was due to the end of the answer.
    pub latency: Duration,
    /// Tokens of the prompt.
    pub input_tokens: u64,
    /// Tokens of the answer.
    pub output_tokens: u64,
    /// Tokens that were asked for.
    pub asked_tokens: u64,
    /// The server told both counts; otherwise they are of what was sent and of arrivals.
    pub told: bool,
}

/// A request that did not go well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What failures are counted by.
    pub kind: String,
    /// One line.
    pub what: String,
}

/// Failures of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failures {
    /// How many.
    pub count: usize,
    /// What one of them said.
    pub example: String,
}

/// Most milliseconds that a good request may take, as in `ttft:500,itl:100`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Bounds {
    /// Time to the first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft: Option<f64>,
    /// Every gap between two tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub itl: Option<f64>,
    /// Mean time of a token after the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpot: Option<f64>,
    /// Time to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<f64>,
}

/// Requests within the bounds that gave as many tokens as asked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Goodput {
    /// The bounds, milliseconds.
    pub bounds_ms: Bounds,
    /// How many.
    pub requests: usize,
    /// Part of all requests, failed ones among them.
    pub share: f64,
    /// How many a second.
    pub requests_per_s: f64,
}

/// The report. Rates are of the whole duration; times are of requests that went well.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Served {
    /// Requests sent.
    pub requests: usize,
    /// Requests that went well.
    pub completed: usize,
    /// Those among them with another number of tokens than asked for.
    pub short: usize,
    /// Those among them whose counts the server did not tell.
    pub counted_here: usize,
    /// Requests that failed.
    pub errors: usize,
    /// The same by kind.
    pub error_kinds: BTreeMap<String, Failures>,
    /// From the first request to the end of the last answer.
    pub duration_s: f64,
    /// Requests that went well, a second.
    pub requests_per_s: f64,
    /// Tokens of their prompts.
    pub input_tokens: u64,
    /// Tokens of their answers.
    pub output_tokens: u64,
    /// Tokens of their prompts, a second.
    pub input_tokens_per_s: f64,
    /// Tokens of their answers, a second.
    pub output_tokens_per_s: f64,
    /// Time to the first token.
    pub ttft_ms: Option<Spread>,
    /// Gaps between two arrivals of a stream.
    pub itl_ms: Option<Spread>,
    /// Mean time of a token after the first, by request.
    pub tpot_ms: Option<Spread>,
    /// Time to the end.
    pub latency_ms: Option<Spread>,
    /// If bounds were given.
    pub goodput: Option<Goodput>,
}

impl Answer {
    fn ttft(&self) -> f64 {
        self.times.first().map_or(0.0, ms)
    }

    fn gaps(&self) -> impl Iterator<Item = f64> {
        self.times.windows(2).map(|pair| ms(&pair[1].saturating_sub(pair[0])))
    }

    /// By tokens, not by arrivals: one arrival may bring several tokens.
    fn tpot(&self) -> Option<f64> {
        let after_first = self.output_tokens.checked_sub(1).filter(|tokens| *tokens > 0)?;
        let last = self.times.last().map_or(0.0, ms);
        Some((last - self.ttft()) / after_first as f64)
    }

    fn is_short(&self) -> bool {
        self.output_tokens != self.asked_tokens
    }

    fn is_good(&self, bounds: &Bounds) -> bool {
        let within = |value: f64, bound: Option<f64>| bound.is_none_or(|bound| value <= bound);
        !self.is_short()
            && within(self.ttft(), bounds.ttft)
            && self.gaps().all(|gap| within(gap, bounds.itl))
            && self.tpot().is_none_or(|tpot| within(tpot, bounds.tpot))
            && within(ms(&self.latency), bounds.latency)
    }
}

impl Served {
    /// Counts and rates of all requests of a load.
    pub fn of(
        outcomes: &[Result<Answer, Failure>],
        duration: Duration,
        bounds: Option<Bounds>,
    ) -> Self {
        let answers: Vec<&Answer> = outcomes.iter().flatten().collect();
        let mut error_kinds = BTreeMap::<String, Failures>::new();
        for Failure { kind, what } in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            let none = || Failures { count: 0, example: what.clone() };
            error_kinds.entry(kind.clone()).or_insert_with(none).count += 1;
        }
        let per_s = |count: f64| count / duration.as_secs_f64().max(1e-9);
        let input_tokens = answers.iter().map(|answer| answer.input_tokens).sum();
        let output_tokens = answers.iter().map(|answer| answer.output_tokens).sum();
        let goodput = bounds.map(|bounds_ms| {
            let requests = answers.iter().filter(|answer| answer.is_good(&bounds_ms)).count();
            let share = requests as f64 / outcomes.len().max(1) as f64;
            Goodput { bounds_ms, requests, share, requests_per_s: per_s(requests as f64) }
        });
        Self {
            requests: outcomes.len(),
            completed: answers.len(),
            short: answers.iter().filter(|answer| answer.is_short()).count(),
            counted_here: answers.iter().filter(|answer| !answer.told).count(),
            errors: outcomes.len() - answers.len(),
            error_kinds,
            duration_s: duration.as_secs_f64(),
            requests_per_s: per_s(answers.len() as f64),
            input_tokens,
            output_tokens,
            input_tokens_per_s: per_s(input_tokens as f64),
            output_tokens_per_s: per_s(output_tokens as f64),
            ttft_ms: Spread::of(answers.iter().map(|answer| answer.ttft()).collect()),
            itl_ms: Spread::of(answers.iter().flat_map(|answer| answer.gaps()).collect()),
            tpot_ms: Spread::of(answers.iter().filter_map(|answer| answer.tpot()).collect()),
            latency_ms: Spread::of(answers.iter().map(|answer| ms(&answer.latency)).collect()),
            goodput,
        }
    }
}

fn ms(time: &Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl FromStr for Bounds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bounds = Self::default();
        for part in text.split(',') {
            let (name, value) = part.split_once(':').ok_or("it must be like ttft:500,itl:100")?;
            let bound = match name.trim() {
                "ttft" => &mut bounds.ttft,
                "itl" => &mut bounds.itl,
                "tpot" => &mut bounds.tpot,
                "latency" => &mut bounds.latency,
                other => return Err(format!("{other:?} is none of ttft, itl, tpot, latency")),
            };
            let number = value.trim().parse().ok().filter(|ms: &f64| ms.is_finite() && *ms > 0.0);
            let number = number.ok_or_else(|| format!("{value:?} is no number of milliseconds"))?;
            if bound.replace(number).is_some() {
                return Err(format!("{} is there twice", name.trim()));
            }
        }
        Ok(bounds)
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ttft, itl, tpot, latency } = *self;
        let named = [("ttft", ttft), ("itl", itl), ("tpot", tpot), ("latency", latency)];
        let given = named.iter().filter_map(|(name, ms)| Some(format!("{name} {} ms", (*ms)?)));
        f.write_str(&given.collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, completed, errors, short, duration_s, .. } = self;
        writeln!(
            f,
            "requests     {completed} of {requests} in {duration_s:.2} s, {errors} failed"
        )?;
        for (kind, Failures { count, example }) in &self.error_kinds {
            writeln!(f, "  {count} × {kind}: {example}")?;
        }
        if *short > 0 {
            writeln!(f, "  {short} gave another number of tokens than asked for")?;
        }
        if self.counted_here > 0 {
            let count = self.counted_here;
            writeln!(f, "  {count} came without usage: each arrival counts as one token")?;
        }
        writeln!(f, "rate         {:.2} requests/s", self.requests_per_s)?;
        let (tokens, rate) = (self.input_tokens, self.input_tokens_per_s);
        writeln!(f, "input        {tokens} tokens, {rate:.1} tokens/s")?;
        let (tokens, rate) = (self.output_tokens, self.output_tokens_per_s);
        writeln!(f, "output       {tokens} tokens, {rate:.1} tokens/s")?;
        if let Some(Goodput { bounds_ms, requests, share, requests_per_s }) = &self.goodput {
            let percent = 100.0 * share;
            write!(f, "goodput      {requests} requests, {percent:.1} %, {requests_per_s:.2} ")?;
            writeln!(f, "requests/s within {bounds_ms}")?;
        }
        write!(f, "{:<12}", "ms")?;
        for column in ["mean", "p50", "p95", "p99", "max"] {
            write!(f, " {column:>10}")?;
        }
        let rows = [
            ("ttft", self.ttft_ms),
            ("itl", self.itl_ms),
            ("tpot", self.tpot_ms),
            ("latency", self.latency_ms),
        ];
        for (name, spread) in rows {
            write!(f, "\n{name:<12}")?;
            let values = spread.map(|s| [s.mean, s.p50, s.p95, s.p99, s.max]);
            for place in 0..5 {
                let text = values.map_or("-".to_owned(), |values| format!("{:.2}", values[place]));
                write!(f, " {text:>10}")?;
            }
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests;

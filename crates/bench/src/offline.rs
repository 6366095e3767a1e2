//! Offline throughput: so many equal prompts at once, random token ids of a fixed seed, greedy, end
//! tokens ignored.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kvant_engine::{GenerateRequest, Handle, SamplingParams, StopRules, TokenEvent, TokenStream};
use serde::Serialize;

use crate::random;
use crate::stats::percentile;

/// What to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Tokens of every prompt, at least 1.
    pub prompt_tokens: u32,
    /// Tokens generated for every prompt, at least 1.
    pub output_tokens: u32,
    /// Prompts, all submitted at once; at least 1.
    pub concurrency: u32,
    /// Seed of the token ids.
    pub seed: u64,
}

/// A load as people write it: `64x1024/256`, 64 prompts of 1024 tokens, 256 tokens out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Prompts at once.
    pub concurrency: u32,
    /// Tokens of every prompt.
    pub prompt_tokens: u32,
    /// Tokens generated for every prompt.
    pub output_tokens: u32,
}

/// What came out. Rates and times are of the whole set of prompts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Prompts at once.
    pub concurrency: u32,
    /// Tokens of every prompt.
    pub prompt_tokens: u32,
    /// Tokens generated for every prompt.
    pub output_tokens: u32,
    /// Prompt tokens by the time until the last prompt had its first token.
    pub prefill_tokens_per_s: f64,
    /// Tokens after that moment by the time that they took; `None` if there were none.
    pub decode_tokens_per_s: Option<f64>,
    /// Time to first token, median.
    pub ttft_ms_p50: f64,
    /// Time to first token, 99th percentile.
    pub ttft_ms_p99: f64,
    /// Time from a token to the next of its stream, median; `None` for one token.
    pub itl_ms_p50: Option<f64>,
    /// The same, 99th percentile.
    pub itl_ms_p99: Option<f64>,
    /// Median time of a step while every stream decodes and none has a prompt left: from the last
    /// first token to the first last one; `None` if there is no such time.
    pub step_ms_p50: Option<f64>,
    /// The same, mean: what packing adds in some steps is in it.
    pub step_ms_mean: Option<f64>,
    /// Steps of that kind.
    pub full_steps: usize,
    /// Generated tokens by the whole time.
    pub output_tokens_per_s: f64,
    /// From the first submission to the last token.
    pub total_s: f64,
}

impl Case {
    /// Sequences and tokens are within these.
    const MOST: [u32; 3] = [4096, 1_000_000, 1_000_000];

    /// Its load with random tokens of a seed.
    pub fn load(self, seed: u64) -> Load {
        let Self { concurrency, prompt_tokens, output_tokens } = self;
        Load { prompt_tokens, output_tokens, concurrency, seed }
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let [sequences, tokens, _] = Self::MOST;
            format!(
                "it must be like 64x1024/256, streams 1..={sequences}, then tokens of prompt and \
                 answer 1..={tokens}"
            )
        };
        let (streams, tokens) = text.split_once('x').ok_or_else(wrong)?;
        let (prompt, output) = tokens.split_once('/').ok_or_else(wrong)?;
        let mut numbers = [0; 3];
        for ((number, part), most) in
            numbers.iter_mut().zip([streams, prompt, output]).zip(Self::MOST)
        {
            let read = part.trim().parse().ok().filter(|n| (1..=most).contains(n));
            *number = read.ok_or_else(wrong)?;
        }
        let [concurrency, prompt_tokens, output_tokens] = numbers;
        Ok(Self { concurrency, prompt_tokens, output_tokens })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}/{}", self.concurrency, self.prompt_tokens, self.output_tokens)
    }
}

/// Runs a load after a short warm-up and measures it. The engine should be idle.
pub fn offline(handle: &Handle, load: &Load) -> Result<Row> {
    ensure!(load.concurrency > 0, "concurrency is 0, it must be at least 1");
    let warm_up = Load {
        prompt_tokens: load.prompt_tokens.min(16),
        output_tokens: load.output_tokens.min(2),
        concurrency: 1,
        seed: load.seed.wrapping_add(1),
    };
    run(handle, &warm_up)?;
    Ok(row(load, &run(handle, load)?))
}

/// Times of every token of every stream, counted from the first submission.
fn run(handle: &Handle, load: &Load) -> Result<Vec<Vec<Duration>>> {
    let requests: Vec<_> = (0..load.concurrency)
        .map(|number| request(load, u64::from(number), handle.limits().vocab as u64))
        .collect();
    let start = Instant::now();
    let mut streams = Vec::new();
    for request in requests {
        streams.push(handle.submit(request)?);
    }
    std::thread::scope(|scope| {
        let readers: Vec<_> = streams
            .into_iter()
            .map(|stream| scope.spawn(move || times(stream, start, load.output_tokens)))
            .collect();
        readers.into_iter().map(|reader| reader.join().expect("readers do not panic")).collect()
    })
}

fn request(load: &Load, number: u64, vocab: u64) -> GenerateRequest {
    let mut state = random::nth(load.seed, number);
    let prompt: Vec<u32> =
        (0..load.prompt_tokens).map(|_| (random::next(&mut state) % vocab.max(1)) as u32).collect();
    GenerateRequest {
        prompt: prompt.into(),
        sampling: Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }),
        stop: StopRules {
            max_tokens: load.output_tokens,
            min_tokens: 0,
            eos_tokens: Vec::new(),
            stop_tokens: Vec::new(),
        },
        prompt_logprobs: None,
        constraint: None,
        pooling: None,
    }
}

fn times(mut stream: TokenStream, start: Instant, expected: u32) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(expected as usize);
    loop {
        match stream.blocking_recv().context("the engine stopped during the measurement")? {
            TokenEvent::Token { .. } => times.push(start.elapsed()),
            TokenEvent::Prompt(_) | TokenEvent::Pooled { .. } => {}
            TokenEvent::Stuck(what) | TokenEvent::Failed(what) => {
                bail!("a sequence failed during the measurement: {what}")
            }
            TokenEvent::Done { .. } if times.len() == expected as usize => return Ok(times),
            TokenEvent::Done { .. } => {
                bail!("a sequence ended after {} of {expected} tokens", times.len())
            }
        }
    }
}

/// Arithmetic on the times of tokens; every stream has at least one.
fn row(load: &Load, streams: &[Vec<Duration>]) -> Row {
    let firsts: Vec<Duration> = streams.iter().map(|times| times[0]).collect();
    let prefilled = firsts.iter().max().copied().unwrap_or_default();
    let all = || streams.iter().flatten();
    let end = all().max().copied().unwrap_or_default();
    let later = all().filter(|time| **time > prefilled).count();
    let pairs = || streams.iter().flat_map(|times| times.windows(2));
    let gap = |pair: &[Duration]| pair[1].abs_diff(pair[0]);
    let gaps: Vec<Duration> = pairs().map(gap).collect();
    let finished = streams.iter().filter_map(|times| times.last()).min().copied();
    let full = |pair: &&[Duration]| pair[0] >= prefilled && Some(pair[1]) <= finished;
    let steps: Vec<Duration> = pairs().filter(full).map(gap).collect();
    let mean = |all: Duration| all.as_secs_f64() * 1e3 / steps.len() as f64;
    let prompt_tokens = f64::from(load.prompt_tokens) * streams.len() as f64;
    Row {
        concurrency: load.concurrency,
        prompt_tokens: load.prompt_tokens,
        output_tokens: load.output_tokens,
        prefill_tokens_per_s: prompt_tokens / prefilled.as_secs_f64(),
        decode_tokens_per_s: (later > 0)
            .then(|| later as f64 / end.abs_diff(prefilled).as_secs_f64()),
        ttft_ms_p50: percentile_ms(&firsts, 50).unwrap_or_default(),
        ttft_ms_p99: percentile_ms(&firsts, 99).unwrap_or_default(),
        itl_ms_p50: percentile_ms(&gaps, 50),
        itl_ms_p99: percentile_ms(&gaps, 99),
        step_ms_p50: percentile_ms(&steps, 50),
        step_ms_mean: (!steps.is_empty()).then(|| mean(steps.iter().sum())),
        full_steps: steps.len() / streams.len().max(1),
        output_tokens_per_s: all().count() as f64 / end.as_secs_f64(),
        total_s: end.as_secs_f64(),
    }
}

fn percentile_ms(values: &[Duration], percent: usize) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().map(|value| value.as_secs_f64() * 1e3).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    percentile(&sorted, percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(values: &[u64]) -> Vec<Duration> {
        values.iter().map(|value| Duration::from_millis(*value)).collect()
    }

    #[test]
    fn rates_count_decode_only_after_the_last_prefill() {
        let load = Load { prompt_tokens: 100, output_tokens: 3, concurrency: 2, seed: 1 };
        // The second stream's first token is at 500 ms; three tokens come later, the last at 1100
        // ms.
        let row = row(&load, &[ms(&[200, 400, 800]), ms(&[500, 900, 1100])]);
        assert_eq!(row.prefill_tokens_per_s, 200.0 / 0.5);
        assert_eq!(row.decode_tokens_per_s, Some(3.0 / 0.6));
        assert_eq!((row.ttft_ms_p50, row.ttft_ms_p99), (200.0, 500.0));
        assert_eq!((row.itl_ms_p50, row.itl_ms_p99), (Some(200.0), Some(400.0)));
        assert_eq!(row.total_s, 1.1);
    }

    #[test]
    fn steps_are_counted_while_all_streams_decode() {
        let load = Load { prompt_tokens: 10, output_tokens: 6, concurrency: 2, seed: 1 };
        // All decode from 300 to 370 ms: gaps of 10 and 10 and 50, and of 20 and 20; those that
        // begin before the last first token or end after the first end do not count.
        let early = ms(&[100, 200, 300, 310, 320, 370]);
        let late = ms(&[300, 320, 340, 375, 400, 500]);
        let row = row(&load, &[early, late]);
        assert_eq!(row.step_ms_p50, Some(20.0));
        assert_eq!(row.step_ms_mean, Some(110.0 / 5.0));
        assert_eq!((row.full_steps, row.output_tokens_per_s), (2, 24.0));
        // One stream has ended before the other has begun.
        let row = super::row(&load, &[ms(&[100, 110]), ms(&[200, 210])]);
        assert_eq!((row.step_ms_p50, row.step_ms_mean, row.full_steps), (None, None, 0));
    }

    #[test]
    fn cases_are_read_strictly() {
        let case: Case = "64x1024/256".parse().unwrap();
        assert_eq!(case, Case { concurrency: 64, prompt_tokens: 1024, output_tokens: 256 });
        assert_eq!(case.to_string(), "64x1024/256");
        assert!("4096x1000000/1000000".parse::<Case>().is_ok());
        for wrong in ["", "64", "64x1024", "x1/1", "0x1/1", "1x0/1", "1x1/0", "4097x1/1", "1x1/a"] {
            assert!(wrong.parse::<Case>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_token_has_no_decode_rate() {
        let load = Load { prompt_tokens: 10, output_tokens: 1, concurrency: 1, seed: 1 };
        let row = row(&load, &[ms(&[100])]);
        assert_eq!(row.decode_tokens_per_s, None);
        assert_eq!(row.itl_ms_p50, None);
    }

    #[test]
    fn prompts_are_the_same_for_the_same_seed_and_differ_within_a_load() {
        let load = Load { prompt_tokens: 50, output_tokens: 1, concurrency: 2, seed: 7 };
        let prompt = |load: &Load, number| request(load, number, 1000).prompt.to_vec();
        assert_eq!(prompt(&load, 0), prompt(&load, 0));
        assert_ne!(prompt(&load, 0), prompt(&load, 1));
        assert_ne!(prompt(&load, 0), prompt(&Load { seed: 8, ..load }, 0));
        assert!(prompt(&load, 0).iter().all(|id| *id < 1000));
        assert_eq!(prompt(&load, 0).len(), 50);
    }
}

//! Fields that say how tokens are chosen and when to stop, with their bounds in one place.
//!
//! Wider than OpenAI: stop takes 16 strings (4), logprobs of completions 20 (5), and top_k, min_p,
//! repetition_penalty, min_tokens, stop_token_ids, ignore_eos come from vLLM.

use kvant_engine::SamplingParams;
use serde_json::Value;

use crate::error::ApiError;
use crate::ids;
use crate::json::{Bound, Fields, token_id, wrong_type};

/// Counts of tokens end here.
const TOKENS: f64 = u32::MAX as f64;

const TEMPERATURE: Bound = Bound::new("temperature", 0.0, 2.0);
const TOP_P: Bound = Bound::above("top_p", 0.0, 1.0);
const TOP_K: Bound = Bound::new("top_k", -1.0, TOKENS);
const MIN_P: Bound = Bound::new("min_p", 0.0, 1.0);
const FREQUENCY: Bound = Bound::new("frequency_penalty", -2.0, 2.0);
const PRESENCE: Bound = Bound::new("presence_penalty", -2.0, 2.0);
const REPETITION: Bound = Bound::new("repetition_penalty", 0.01, 10.0);
const N: Bound = Bound::new("n", 1.0, 128.0);
const BEST_OF: Bound = Bound::new("best_of", 1.0, 128.0);
const MAX_TOKENS: Bound = Bound::new("max_tokens", 1.0, TOKENS);
const MAX_TOKENS_OR_ZERO: Bound = Bound::new("max_tokens", 0.0, TOKENS);
const MAX_COMPLETION_TOKENS: Bound = Bound::new("max_completion_tokens", 1.0, TOKENS);
const MIN_TOKENS: Bound = Bound::new("min_tokens", 0.0, TOKENS);
const TOP_LOGPROBS: Bound = Bound::new("top_logprobs", 0.0, 20.0);
const LOGPROBS: Bound = Bound::new("logprobs", 0.0, 20.0);
const PROMPT_LOGPROBS: Bound = Bound::new("prompt_logprobs", 0.0, 20.0);
const BIAS: f64 = 100.0;
const BIASES_MAX: usize = 1024;
const STOP_TOKENS_MAX: usize = 1024;
const STOPS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 1024;

/// Below it, 32-bit floats would make infinities of logits; it is taken for 0.
const COLDEST: f64 = 1e-4;

/// How tokens are chosen: of both endpoints.
#[derive(Clone, Debug)]
pub(crate) struct Sampling {
    /// All but the seed, which each sequence derives.
    pub(crate) params: SamplingParams,
    pub(crate) seed: Option<u64>,
    /// Answers to each prompt.
    pub(crate) n: usize,
    /// Sequences of each prompt, of which the `n` likeliest are told.
    pub(crate) best_of: usize,
    /// Whether log-probabilities are told: `best_of` needs them anyway.
    pub(crate) scores: bool,
    /// Log-probabilities of the prompt with so many alternatives.
    pub(crate) prompt_logprobs: Option<u32>,
    pub(crate) stops: Stops,
}

/// When to stop.
#[derive(Clone, Debug)]
pub(crate) struct Stops {
    pub(crate) strings: Vec<String>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) ignore_eos: bool,
    pub(crate) min_tokens: u32,
    /// As asked for; 0 only with echo.
    pub(crate) max_tokens: Option<u32>,
}

/// Where log-probabilities are asked for differs between the endpoints.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asks {
    /// `logprobs: true, top_logprobs: 3`.
    Chat,
    /// `logprobs: 3`; `max_tokens: 0` makes sense with echo.
    Text {
        /// The prompt is part of the answer.
        echo: bool,
    },
}

/// Takes the fields of sampling.
pub(crate) fn read(fields: &mut Fields, asks: Asks, vocab: usize) -> Result<Sampling, ApiError> {
    let n = fields.integer(&N)?.unwrap_or(1);
    let best_of = fields.integer(&BEST_OF)?.unwrap_or(n);
    if best_of < n {
        let message = format!("best_of is {best_of}, it must be at least n, which is {n}");
        return Err(ApiError::value("best_of", message));
    }
    let mut params = params(fields, asks, vocab)?;
    let scores = params.logprobs.is_some();
    if best_of > n {
        params.logprobs.get_or_insert(0);
    }
    Ok(Sampling {
        params,
        seed: seed(fields)?,
        n: n as usize,
        best_of: best_of as usize,
        scores,
        prompt_logprobs: fields.integer(&PROMPT_LOGPROBS)?.map(|top| top as u32),
        stops: stops(fields, asks, vocab)?,
    })
}

fn params(fields: &mut Fields, asks: Asks, vocab: usize) -> Result<SamplingParams, ApiError> {
    let temperature = fields.number(&TEMPERATURE)?.unwrap_or(1.0);
    let penalty = |value: Option<f64>, default: f64| value.unwrap_or(default) as f32;
    Ok(SamplingParams {
        temperature: if temperature < COLDEST { 0.0 } else { temperature as f32 },
        top_k: fields.integer(&TOP_K)?.filter(|k| *k > 0).map(|k| k as u32),
        top_p: penalty(fields.number(&TOP_P)?, 1.0).max(f32::MIN_POSITIVE),
        min_p: penalty(fields.number(&MIN_P)?, 0.0),
        frequency_penalty: penalty(fields.number(&FREQUENCY)?, 0.0),
        presence_penalty: penalty(fields.number(&PRESENCE)?, 0.0),
        repetition_penalty: penalty(fields.number(&REPETITION)?, 1.0),
        logit_bias: logit_bias(fields, vocab)?,
        seed: 0,
        logprobs: match asks {
            Asks::Chat => chat_logprobs(fields)?,
            Asks::Text { .. } => fields.integer(&LOGPROBS)?.map(|top| top as u32),
        },
    })
}

fn chat_logprobs(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let wanted = fields.flag("logprobs", false)?;
    let top = fields.integer(&TOP_LOGPROBS)?.unwrap_or(0) as u32;
    if top > 0 && !wanted {
        let message = format!("top_logprobs is {top}, it needs logprobs: true");
        return Err(ApiError::value("top_logprobs", message));
    }
    Ok(wanted.then_some(top))
}

fn seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    let Some(value) = fields.take("seed") else { return Ok(None) };
    let seed = value.as_u64().or_else(|| value.as_i64().map(|seed| seed as u64));
    seed.map(Some).ok_or_else(|| wrong_type("seed", &value, "an integer of 64 bits"))
}

fn logit_bias(fields: &mut Fields, vocab: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let map = fields.object("logit_bias")?.unwrap_or_default();
    at_most("logit_bias", map.len(), BIASES_MAX, "entries")?;
    let entry = |(key, value): (String, Value)| {
        let name = format!("logit_bias.{key}");
        let id = key.parse::<u32>().map_or_else(|_| Value::from(key), Value::from);
        let token = token_id("logit_bias", &id, vocab)?;
        let bias =
            value.as_f64().ok_or_else(|| wrong_type(&name, &value, "a number").of("logit_bias"))?;
        if bias.abs() > BIAS {
            let message = format!("{name} is {bias}, it must be from -{BIAS} to {BIAS}");
            return Err(ApiError::value("logit_bias", message));
        }
        Ok((token, bias as f32))
    };
    map.into_iter().map(entry).collect()
}

fn stops(fields: &mut Fields, asks: Asks, vocab: usize) -> Result<Stops, ApiError> {
    let echo = asks == Asks::Text { echo: true };
    let bound = if echo { MAX_TOKENS_OR_ZERO } else { MAX_TOKENS };
    let older = fields.integer(&bound)?;
    let newer = fields.integer(&MAX_COMPLETION_TOKENS)?;
    let max_tokens = newer.or(older).map(|max| max as u32);
    let min_tokens = fields.integer(&MIN_TOKENS)?.unwrap_or(0) as u32;
    if let Some(max) = max_tokens
        && min_tokens > max
    {
        let message = format!("min_tokens is {min_tokens}, it must be at most max_tokens, {max}");
        return Err(ApiError::value("min_tokens", message));
    }
    Ok(Stops {
        strings: stop_strings(fields)?,
        tokens: stop_tokens(fields, vocab)?,
        ignore_eos: fields.flag("ignore_eos", false)?,
        min_tokens,
        max_tokens,
    })
}

fn stop_strings(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let list = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    at_most("stop", list.len(), STOPS_MAX, "strings")?;
    let one = |value| match value {
        Value::String(text) if text.is_empty() => {
            Err(ApiError::value("stop", "stop has an empty string, which would stop at once"))
        }
        Value::String(text) => {
            at_most("stop", text.len(), STOP_BYTES_MAX, "bytes in a string")?;
            Ok(text)
        }
        other => Err(wrong_type("stop", &other, "a string or an array of strings")),
    };
    list.into_iter().map(one).collect()
}

fn stop_tokens(fields: &mut Fields, vocab: usize) -> Result<Vec<u32>, ApiError> {
    let list = fields.list("stop_token_ids")?.unwrap_or_default();
    at_most("stop_token_ids", list.len(), STOP_TOKENS_MAX, "tokens")?;
    list.iter().map(|value| token_id("stop_token_ids", value, vocab)).collect()
}

fn at_most(name: &str, count: usize, most: usize, what: &str) -> Result<(), ApiError> {
    if count <= most {
        return Ok(());
    }
    Err(ApiError::value(name, format!("{name} has {count} {what}, at most {most} are taken")))
}

impl Sampling {
    /// Parameters of each sequence of one prompt. The first is what `n: 1` gives.
    pub(crate) fn seeded(&self) -> impl Iterator<Item = SamplingParams> + '_ {
        let seed = self.seed.unwrap_or_else(ids::random_seed);
        (0..self.best_of as u64).map(move |index| SamplingParams {
            seed: ids::derived_seed(seed, index),
            ..self.params.clone()
        })
    }
}

#[cfg(test)]
mod tests;

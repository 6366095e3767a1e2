//! `sample`: logits and rules to a token.
//!
//! The order is: logit bias, forbidden tokens, the constraint, penalties, temperature, min_p,
//! top_k, top_p, draw.
//! The draw depends on (seed, index of the token) only, so a sequence gets the same tokens alone,
//! in a batch, and after preemption.

mod candidates;

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use crate::request::{TokenId, TokenLogprob};
use crate::step::SampleRow;

/// The chosen token, and its log-probability if asked for.
pub(crate) type Choice = (TokenId, Option<TokenLogprob>);

/// Chooses a token. logits: `[vocab]`, changed on the way. `None` if no token has a finite logit,
/// or one is NaN.
pub(crate) fn sample(logits: &mut [f32], row: &SampleRow) -> Option<Choice> {
    if logits.iter().any(|logit| logit.is_nan()) {
        return None;
    }
    let params = &row.params;
    // Reported under the model's own distribution, so taken before anything changes it.
    let report = params.logprobs.map(|top| (Distribution::new(logits), top_tokens(logits, top)));
    let before = report.as_ref().map(|_| logits.to_vec());
    for (token, bias) in &params.logit_bias {
        logits[*token as usize] += bias;
    }
    for token in &row.forbidden {
        logits[*token as usize] = f32::NEG_INFINITY;
    }
    if let Some(allowed) = &row.allowed {
        allowed.apply(logits);
    }
    if params.has_penalty() {
        penalize(logits, row);
    }
    let token = if params.temperature == 0.0 {
        greedy(logits)?
    } else {
        let uniform = uniform(params.seed, row.index);
        candidates::draw(logits, params, uniform)?
    };
    let logprob = report.zip(before).map(|((distribution, top), before)| TokenLogprob {
        token,
        logprob: distribution.logprob(before[token as usize]),
        top: top.into_iter().map(|(id, logit)| (id, distribution.logprob(logit))).collect(),
    });
    Some((token, logprob))
}

/// Log-probability of a given token with the likeliest alternatives. logits: `[vocab]`.
pub(crate) fn score(logits: &[f32], token: TokenId, top: u32) -> TokenLogprob {
    let distribution = Distribution::new(logits);
    let alternatives = top_tokens(logits, top).into_iter();
    TokenLogprob {
        token,
        logprob: distribution.logprob(logits[token as usize]),
        top: alternatives.map(|(id, logit)| (id, distribution.logprob(logit))).collect(),
    }
}

/// The normaliser of a softmax.
struct Distribution {
    max: f32,
    log_sum: f64,
}

impl Distribution {
    fn new(logits: &[f32]) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from((logit - max).exp())).sum();
        Self { max, log_sum: sum.ln() }
    }

    fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.max) - self.log_sum) as f32
    }
}

/// The `count` largest logits, best first, lower ids first among equals.
fn top_tokens(logits: &[f32], count: u32) -> Vec<(TokenId, f32)> {
    if count == 0 {
        return Vec::new();
    }
    let mut top = candidates::largest(logits, count as usize);
    top.sort_unstable_by(|a, b| candidates::larger(*a, *b));
    top
}

/// The largest finite logit, the lowest id among equals.
fn greedy(logits: &[f32]) -> Option<TokenId> {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, logit) in (0..).zip(logits) {
        if *logit > best.1 {
            best = (token, *logit);
        }
    }
    best.1.is_finite().then_some(best.0)
}

/// Repetition over prompt and output, then frequency and presence over the output, as vLLM and
/// OpenAI define them.
fn penalize(logits: &mut [f32], row: &SampleRow) {
    let params = &row.params;
    if params.repetition_penalty != 1.0 {
        let mut seen: Vec<TokenId> = row.prompt.iter().chain(&row.output).copied().collect();
        seen.sort_unstable();
        seen.dedup();
        for token in seen {
            let logit = &mut logits[token as usize];
            if *logit > 0.0 {
                *logit /= params.repetition_penalty;
            } else {
                *logit *= params.repetition_penalty;
            }
        }
    }
    let mut counts = HashMap::<TokenId, u32>::new();
    for token in &row.output {
        *counts.entry(*token).or_default() += 1;
    }
    for (token, count) in counts {
        let penalty = params.frequency_penalty * count as f32 + params.presence_penalty;
        logits[token as usize] -= penalty;
    }
}

/// A number in `0..1` for the token `index` of a sequence: SplitMix64's finaliser over seed and
/// counter, twice.
fn uniform(seed: u64, index: u32) -> f64 {
    const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |x: u64| {
        let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    };
    let stream = mix(seed.wrapping_add(GAMMA));
    let bits = mix(stream.wrapping_add(GAMMA.wrapping_mul(u64::from(index) + 1)));
    // 53 bits: every value is exact, and 1 is not reached.
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

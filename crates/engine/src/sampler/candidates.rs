//! `draw`: temperature, the three cuts, and the draw among what is left.
//!
//! Sorting a vocabulary for every token would cost more than a layer of a small model, and so would
//! its exponentials. So top_k is cut first, by logits, in one pass over them; top_p looks at the
//! likeliest tokens in growing portions and stops as soon as they reach it.

use crate::request::{SamplingParams, TokenId};

/// Tokens that top_p looks at first.
const PORTION: usize = 256;

/// A token and its unnormalised probability.
type Candidate = (TokenId, f64);

/// Draws a token by a number in `0..1`. `None` if no logit is finite.
pub(super) fn draw(logits: &[f32], params: &SamplingParams, uniform: f64) -> Option<TokenId> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() {
        return None;
    }
    let scale = 1.0 / f64::from(params.temperature);
    let weight = |logit: f32| (f64::from(logit - max) * scale).exp();
    // The likeliest has weight 1, so min_p is a bound on the weight itself.
    let least = f64::from(params.min_p).max(f64::MIN_POSITIVE);
    let weighed = |(token, logit)| (token, weight(logit));
    let likely = |(_, weight): &Candidate| *weight >= least;
    let mut kept: Vec<Candidate> = match params.top_k.map(|k| (k as usize).max(1)) {
        Some(k) if k < logits.len() => {
            largest(logits, k).into_iter().map(weighed).filter(likely).collect()
        }
        _ => (0..).zip(logits.iter().copied()).map(weighed).filter(likely).collect(),
    };
    if params.top_p < 1.0 {
        nucleus(&mut kept, f64::from(params.top_p));
    }
    // In the order of ids, whatever the cuts have done to it.
    kept.sort_unstable_by_key(|(token, _)| *token);
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    let mut left = uniform * total;
    for (token, weight) in &kept {
        left -= weight;
        if left < 0.0 {
            return Some(*token);
        }
    }
    kept.last().map(|(token, _)| *token)
}

/// The `count` largest logits, in no order; lower ids first among equals. One pass, and room for
/// twice as many.
pub(super) fn largest(logits: &[f32], count: usize) -> Vec<(TokenId, f32)> {
    let count = count.min(logits.len());
    let mut kept: Vec<(TokenId, f32)> = Vec::with_capacity(2 * count);
    let mut least = f32::NEG_INFINITY;
    for (token, logit) in (0..).zip(logits) {
        // Of equals the lower id is better, and it came first.
        if kept.len() >= count && *logit <= least {
            continue;
        }
        kept.push((token, *logit));
        if kept.len() == 2 * count {
            kept.select_nth_unstable_by(count - 1, |a, b| larger(*a, *b));
            kept.truncate(count);
            least = kept[count - 1].1;
        }
    }
    if kept.len() > count {
        kept.select_nth_unstable_by(count - 1, |a, b| larger(*a, *b));
        kept.truncate(count);
    }
    kept
}

/// Larger logits first, then lower ids.
pub(super) fn larger(a: (TokenId, f32), b: (TokenId, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps the smallest set of likeliest tokens whose part of the whole reaches `p`; at least one.
fn nucleus(kept: &mut Vec<Candidate>, p: f64) {
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    let mut portion = PORTION.min(kept.len());
    loop {
        if portion < kept.len() {
            kept.select_nth_unstable_by(portion - 1, better);
        }
        let sorted = &mut kept[..portion];
        sorted.sort_unstable_by(better);
        let mut sum = 0.0;
        let enough = sorted.iter().position(|(_, weight)| {
            sum += weight;
            sum >= p * total
        });
        if let Some(last) = enough {
            return kept.truncate(last + 1);
        }
        if portion == kept.len() {
            return;
        }
        portion = (portion * 8).min(kept.len());
    }
}

fn better(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

//! The sampler against arithmetic by hand, against a plain implementation in f64, and in the mean.

use std::sync::Arc;

use super::*;
use crate::constraint::TokenMask;
use crate::request::SamplingParams;

fn row(params: SamplingParams) -> SampleRow {
    SampleRow {
        params: Arc::new(params),
        index: 0,
        forbidden: Vec::new(),
        prompt: Arc::from([]),
        output: Vec::new(),
        allowed: None,
    }
}

fn greedy_params() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

/// The token chosen from a copy of the logits.
fn choose(logits: &[f32], row: &SampleRow) -> Option<TokenId> {
    sample(&mut logits.to_vec(), row).map(|(token, _)| token)
}

/// Plain cuts in f64 over a fully sorted vocabulary: which tokens may be drawn, and how likely.
fn expected(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut p: Vec<f64> =
        logits.iter().map(|l| (f64::from(l - max) / f64::from(params.temperature)).exp()).collect();
    let top = p.iter().copied().fold(0.0, f64::max);
    for p in &mut p {
        *p = if *p < f64::from(params.min_p) * top { 0.0 } else { *p };
    }
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*b].total_cmp(&p[*a]).then(a.cmp(b)));
    for token in order.iter().skip(params.top_k.map_or(p.len(), |k| k as usize)) {
        p[*token] = 0.0;
    }
    let total: f64 = p.iter().sum();
    let mut sum = 0.0;
    for token in order {
        if sum >= f64::from(params.top_p) * total {
            p[token] = 0.0;
        }
        sum += p[token];
    }
    let total: f64 = p.iter().sum();
    p.iter().map(|p| p / total).collect()
}

#[test]
fn greedy_takes_the_largest_and_the_lowest_of_equals() {
    for (logits, token) in [
        (&[1.0, 3.0, 2.0][..], Some(1)),
        (&[3.0, 1.0, 3.0], Some(0)),
        (&[f32::NEG_INFINITY, -5.0], Some(1)),
        (&[f32::NEG_INFINITY; 2], None),
        (&[0.0, f32::NAN], None),
        (&[0.0, f32::INFINITY], None),
    ] {
        assert_eq!(choose(logits, &row(greedy_params())), token, "{logits:?}");
    }
}

#[test]
fn draws_follow_the_distribution_after_the_cuts() {
    let logits: Vec<f32> = (0..40).map(|i| ((i * 7919) % 97) as f32 / 20.0).collect();
    let plain = SamplingParams::default();
    for params in [
        plain.clone(),
        SamplingParams { temperature: 0.5, ..plain.clone() },
        SamplingParams { temperature: 2.0, top_k: Some(5), ..plain.clone() },
        SamplingParams { top_p: 0.6, ..plain.clone() },
        SamplingParams { min_p: 0.3, ..plain.clone() },
        SamplingParams { top_k: Some(20), top_p: 0.5, min_p: 0.01, ..plain.clone() },
        SamplingParams { top_k: Some(1), ..plain.clone() },
        SamplingParams { top_k: Some(1000), ..plain },
    ] {
        const DRAWS: u32 = 40_000;
        let mut counts = vec![0_u32; logits.len()];
        let mut row = row(SamplingParams { seed: 11, ..params.clone() });
        for index in 0..DRAWS {
            row.index = index;
            counts[choose(&logits, &row).unwrap() as usize] += 1;
        }
        for (token, (p, count)) in expected(&logits, &params).iter().zip(&counts).enumerate() {
            let seen = f64::from(*count) / f64::from(DRAWS);
            // Five standard deviations.
            let bound = 5.0 * (p * (1.0 - p) / f64::from(DRAWS)).sqrt();
            assert!((seen - p).abs() <= bound, "token {token}: {seen}, not {p}; {params:?}");
        }
    }
}

#[test]
fn the_largest_are_those_of_a_sorted_vocabulary() {
    // With equals, and with tokens that must not be chosen.
    let logit =
        |i: usize| if i.is_multiple_of(7) { f32::NEG_INFINITY } else { (i * 37 % 50) as f32 };
    for length in [1, 2, 9, 300] {
        for logits in [(0..length).map(logit).collect::<Vec<_>>(), vec![1.0; length]] {
            let mut all: Vec<(TokenId, f32)> = (0..).zip(logits.iter().copied()).collect();
            all.sort_by(|a, b| b.1.total_cmp(&a.1));
            for count in [1, 2, 8, 150, 299, 300, 1000] {
                let expected = &all[..count.min(length)];
                assert_eq!(top_tokens(&logits, count as u32), expected, "{count} of {length}");
            }
        }
    }
}

#[test]
fn a_flat_distribution_needs_more_than_one_portion_for_top_p() {
    let logits = vec![0.0; 5000];
    let params = SamplingParams { top_p: 0.9, ..SamplingParams::default() };
    let mut row = row(params);
    let mut most = 0;
    for index in 0..20_000 {
        row.index = index;
        most = most.max(choose(&logits, &row).unwrap());
    }
    // 4500 tokens reach 0.9; among equals lower ids are kept.
    assert!((4400..4500).contains(&most), "{most}");
}

#[test]
fn the_same_seed_and_index_give_the_same_token() {
    let logits: Vec<f32> = (0..100).map(|i| (i % 13) as f32 / 5.0).collect();
    let tokens = |seed| -> Vec<TokenId> {
        let mut row = row(SamplingParams { seed, ..SamplingParams::default() });
        let draw = |index| {
            row.index = index;
            choose(&logits, &row).unwrap()
        };
        (0..50).map(draw).collect()
    };
    assert_eq!(tokens(1), tokens(1));
    assert_ne!(tokens(1), tokens(2));
    assert_ne!(tokens(0), tokens(u64::MAX));
}

#[test]
fn uniform_numbers_are_even_and_uncorrelated() {
    let mut sum = 0.0;
    let mut product = 0.0;
    for seed in 0..100 {
        for index in 0..100 {
            let u = uniform(seed, index);
            assert!((0.0..1.0).contains(&u));
            sum += u;
            product += (u - 0.5) * (uniform(seed, index + 1) - 0.5);
        }
    }
    // Standard deviations over 10,000: 0.0029 and 0.00083.
    assert!((sum / 1e4 - 0.5).abs() < 0.015, "{sum}");
    assert!((product / 1e4).abs() < 0.0042, "{product}");
}

#[test]
fn biases_and_forbidden_tokens_apply_before_the_choice() {
    let logits = [5.0, 4.0, 3.0];
    let mut row =
        row(SamplingParams { logit_bias: vec![(0, -100.0), (2, 2.0)], ..greedy_params() });
    assert_eq!(choose(&logits, &row), Some(2));
    row.forbidden = vec![2];
    assert_eq!(choose(&logits, &row), Some(1));
    row.forbidden = vec![0, 1, 2];
    assert_eq!(choose(&logits, &row), None);
}

#[test]
fn penalties_are_those_of_the_field() {
    let mut all = row(SamplingParams {
        repetition_penalty: 2.0,
        frequency_penalty: 0.5,
        presence_penalty: 0.25,
        ..greedy_params()
    });
    all.prompt = Arc::from([0, 1]);
    all.output = vec![2, 2, 3];
    let mut logits = [4.0, -4.0, 6.0, -1.0, 1.0];
    penalize(&mut logits, &all);
    // 0 and 1 stand in the prompt only: repetition alone. 2 twice and 3 once in the output.
    assert_eq!(logits, [2.0, -8.0, 6.0 / 2.0 - 1.0 - 0.25, -2.0 - 0.5 - 0.25, 1.0]);
}

#[test]
fn log_probabilities_are_of_the_model_not_of_the_rules() {
    let logits = [1.0_f32, 2.0, 3.0];
    let params =
        SamplingParams { logprobs: Some(2), logit_bias: vec![(0, 50.0)], ..greedy_params() };
    let (token, logprob) = sample(&mut logits.to_vec(), &row(params)).unwrap();
    let logprob = logprob.unwrap();
    let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
    let exact = |logit: f64| (logit - sum.ln()) as f32;
    assert_eq!((token, logprob.token), (0, 0));
    assert!((logprob.logprob - exact(1.0)).abs() < 1e-6);
    assert_eq!(logprob.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 1]);
    assert!((logprob.top[0].1 - exact(3.0)).abs() < 1e-6);
    assert_eq!(score(&logits, 0, 2), logprob);
    assert_eq!(score(&logits, 2, 0).top, []);
    assert_eq!(score(&logits, 2, 99).top.len(), 3);
}

#[test]
fn only_allowed_tokens_are_drawn_and_scores_stay_the_models_own() {
    let logits: Vec<f32> = (0..100).map(|token| ((token * 37) % 100) as f32 * 0.1).collect();
    let mut allowed = TokenMask::default();
    let set = [3, 40, 41, 77];
    for token in set {
        allowed.insert(token);
    }
    for temperature in [0.0, 0.7, 2.0] {
        for index in 0..50 {
            let params = SamplingParams {
                temperature,
                top_k: (index % 3 == 0).then_some(2),
                top_p: if index % 2 == 0 { 0.8 } else { 1.0 },
                repetition_penalty: 1.3,
                logprobs: Some(3),
                ..SamplingParams::default()
            };
            let free = row(params.clone());
            let bound = SampleRow { allowed: Some(allowed.clone()), index, ..row(params) };
            let (token, score) = sample(&mut logits.clone(), &bound).unwrap();
            assert!(set.contains(&token), "{token}");
            let (_, expected) = sample(&mut logits.clone(), &free).unwrap();
            let (score, expected) = (score.unwrap(), expected.unwrap());
            assert_eq!(score.top, expected.top);
            assert_eq!(score.logprob, super::score(&logits, token, 0).logprob);
        }
    }
    let none = SampleRow { allowed: Some(TokenMask::default()), ..row(greedy_params()) };
    assert_eq!(choose(&logits, &none), None);
    let drawn = SampleRow { allowed: Some(TokenMask::default()), ..row(SamplingParams::default()) };
    assert_eq!(choose(&logits, &drawn), None);
}

//! `sample` against the same rules in f64: the same token unless a cut or the draw is within
//! rounding of another.

use kvant_kernels::device::{Kernel, Params, SampleParams, SampleRowParams};

use crate::emulator::Emulator;
use crate::machine::{Buffer, Machine, bytes_of_floats, bytes_of_words, words};
use crate::random::Random;

#[test]
fn tokens_are_those_of_the_rules() {
    check(&Emulator::ops());
}

const GREEDY: SampleRowParams = SampleRowParams {
    seed_low: 0,
    seed_high: 0,
    index: 0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    inverse: 0.0,
    logprob: 1,
    result: 0,
};

/// Relative distance to a border within which f32 may decide otherwise.
const CLOSE: f64 = 1e-5;

pub(crate) fn check(machine: &impl Machine) {
    check_greedy(machine);
    for vocab in [1, 50, 1000, 5000] {
        let rows = 12;
        let mut logits = Random(vocab as u64).floats(rows * vocab);
        for x in &mut logits {
            *x *= 3.0;
        }
        // Many equal ones, some of them the likeliest.
        for x in &mut logits[..vocab] {
            *x = x.round();
        }
        logits[vocab..2 * vocab].fill(0.25);
        let rules: Vec<_> = (0..rows as u32).map(rule).collect();
        let found = run(machine, &logits, &rules);
        let mut close = 0;
        for ((logits, rule), (token, logprob)) in logits.chunks(vocab).zip(&rules).zip(found) {
            let (expected, near) = choose(logits, rule);
            assert!((token as usize) < vocab, "{rule:?}: {token}");
            if token != expected {
                assert!(near, "{rule:?} of {vocab}: {token} for {expected}");
                close += 1;
            }
            let exact = log_probability(logits, token as usize);
            assert!((f64::from(logprob) - exact).abs() < 1e-5, "{logprob} for {exact}");
        }
        assert!(close <= 1, "{close} of {rows} are close");
    }
}

/// Different rules by number.
fn rule(number: u32) -> SampleRowParams {
    let [top_k, top_p, min_p] = match number % 6 {
        0 => [0.0, 1.0, 0.0],
        1 => [20.0, 1.0, 0.0],
        2 => [0.0, 0.9, 0.0],
        3 => [40.0, 0.5, 0.0],
        4 => [0.0, 1.0, 0.2],
        _ => [7.0, 0.97, 0.01],
    };
    SampleRowParams {
        seed_low: 77 + number,
        seed_high: number << 20,
        index: 3 * number,
        top_k: top_k as u32,
        top_p,
        min_p,
        inverse: 1.0 / [1.0, 0.7, 1.5][number as usize % 3],
        logprob: 1,
        result: 0,
    }
}

/// Results go to the odd places, from the last one on; what is between is left as it is.
fn run(machine: &impl Machine, logits: &[f32], rules: &[SampleRowParams]) -> Vec<(u32, f32)> {
    let vocab = (logits.len() / rules.len()) as u32;
    let place = |row: usize| 2 * (rules.len() - 1 - row) + 1;
    let placed = rules.iter().enumerate();
    let placed = placed.map(|(row, rule)| SampleRowParams { result: place(row) as u32, ..*rule });
    let rule_words: Vec<u32> = placed.flat_map(|rule| rule.words()).collect();
    let buffers = [
        Buffer::Input(&bytes_of_floats(logits)),
        Buffer::Input(&bytes_of_words(&rule_words)),
        Buffer::Zeroed(2 * 8 * rules.len()),
        Buffer::Output(4 * rules.len()),
    ];
    let grid = [rules.len(), 1, 1];
    let found = machine.run((Kernel::Sample, grid), &buffers, &SampleParams { vocab });
    let (results, next) = (words(&found[0]), words(&found[1]));
    let results = results.as_chunks::<2>().0;
    assert!(results.iter().step_by(2).all(|result| *result == [0, 0]), "{results:?}");
    let found: Vec<_> = (0..rules.len()).map(|row| results[place(row)]).collect();
    assert!(found.iter().map(|[token, _]| token).eq(&next), "{found:?}, next {next:?}");
    found.iter().map(|[t, l]| (*t, f32::from_bits(*l))).collect()
}

fn check_greedy(machine: &impl Machine) {
    let vocab = 300;
    let mut logits = Random(1).floats(6 * vocab);
    let rows: Vec<&mut [f32]> = logits.chunks_mut(vocab).collect();
    for (row, logits) in rows.into_iter().enumerate() {
        match row {
            0 => (logits[299], logits[7], logits[170]) = (50.0, 50.0, 50.0),
            1 => logits[123] = f32::NAN,
            2 => logits.fill(f32::NEG_INFINITY),
            3 => logits[5] = f32::INFINITY,
            4 => logits[1..].fill(f32::NEG_INFINITY),
            _ => logits[128] = 90.0,
        }
    }
    let none = u32::MAX;
    let found = run(machine, &logits, &[GREEDY; 6]);
    assert_eq!([0, 1, 2, 3, 4, 5].map(|row| found[row].0), [7, none, none, none, 0, 128]);
    assert_eq!(found[4].1, 0.0);
    assert!((found[0].1 + 3_f32.ln()).abs() < 1e-5);
}

fn log_probability(logits: &[f32], token: usize) -> f64 {
    let sum: f64 = logits.iter().map(|x| f64::from(x - logits[token]).exp()).sum();
    -sum.ln()
}

/// The token by the rules, and whether some border is close.
fn choose(logits: &[f32], rule: &SampleRowParams) -> (u32, bool) {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |x: f32| (f64::from(x - top) * f64::from(rule.inverse)).exp();
    let mut order: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|x| weight(*x))).collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if rule.top_k > 0 {
        order.truncate(rule.top_k as usize);
    }
    let mut near = order.iter().any(|(_, w)| (w - f64::from(rule.min_p)).abs() < CLOSE);
    order.retain(|(_, w)| *w >= f64::from(rule.min_p));
    if rule.top_p < 1.0 {
        let goal = f64::from(rule.top_p) * order.iter().map(|(_, w)| w).sum::<f64>();
        let mut sum = 0.0;
        let last = order.iter().position(|(_, w)| {
            sum += w;
            near |= (sum - goal).abs() < CLOSE * goal;
            sum >= goal
        });
        order.truncate(last.unwrap() + 1);
    }
    order.sort_unstable_by_key(|(token, _)| *token);
    let total: f64 = order.iter().map(|(_, w)| w).sum();
    let mut left = uniform(rule) * total;
    for (token, weight) in &order {
        left -= weight;
        near |= left.abs() < CLOSE * total;
        if left < 0.0 {
            return (*token, near);
        }
    }
    (order.last().unwrap().0, true)
}

/// SplitMix64's finaliser over seed and counter, twice.
fn uniform(rule: &SampleRowParams) -> f64 {
    const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |x: u64| {
        let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    };
    let seed = u64::from(rule.seed_high) << 32 | u64::from(rule.seed_low);
    let stream = mix(seed.wrapping_add(GAMMA));
    let bits = mix(stream.wrapping_add(GAMMA.wrapping_mul(u64::from(rule.index) + 1)));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

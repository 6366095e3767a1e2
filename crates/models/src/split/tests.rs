//! Heads in their places, normed and turned, against the steps one by one.

use super::*;
use crate::{Rope, RopeScaling};

const HEADS: Heads = Heads { q: 3, kv: 1, dim: 6 };

fn rotary(rotated: usize) -> Rotary {
    let rope = Rope { theta: 1e4, rotated, scaling: RopeScaling::None, magnitude: 1.0 };
    Rotary::new(&rope, HEADS.dim).unwrap()
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0).collect()
}

fn run(split: &Split<'_>, qkv: &[f32], angles: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; qkv.len()];
    split.split(&mut out, qkv, angles).unwrap();
    out
}

#[test]
fn heads_are_normed_turned_and_put_apart() {
    let norms = [0.5, 2.0].map(|w| RmsNorm::new(vec![w; HEADS.dim], 1e-5).unwrap());
    // So many tokens that they go to several threads.
    for (tokens, rotated) in [(1, 6), (2, 4), (3, 0), (1200, 6)] {
        for norms in [None, Some(&norms)] {
            let rotary = rotary(rotated);
            let split = Split { heads: HEADS, norms, rotary: &rotary };
            let (qkv, angles) = (numbers(tokens * 30), numbers(tokens * rotated));
            let out = run(&split, &qkv, &angles);
            let (q, kv) = out.split_at(tokens * 18);
            let (k, v) = kv.split_at(tokens * 6);
            for (token, from) in qkv.chunks(30).enumerate() {
                let angles = &angles[token * rotated..][..rotated];
                for (head, x) in from[..24].chunks(6).enumerate() {
                    let mut expected = x.to_vec();
                    if let Some(norms) = norms {
                        norms[head / 3].row(&mut expected, x);
                    }
                    Rotary::turn(&mut expected, angles);
                    let found =
                        if head < 3 { &q[token * 18 + head * 6..] } else { &k[token * 6..] };
                    assert_eq!(found[..6], expected, "{tokens} tokens, head {head}");
                }
                assert_eq!(v[token * 6..][..6], from[24..]);
                let alone = run(&split, from, angles);
                assert_eq!(alone[..18], q[token * 18..][..18]);
                assert_eq!(alone[18..24], k[token * 6..][..6]);
            }
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_errors() {
    let rotary = rotary(4);
    let split = Split { heads: HEADS, norms: None, rotary: &rotary };
    for (out, qkv, angles) in [(29, 30, 4), (30, 30, 3), (60, 60, 4), (31, 31, 4)] {
        let [qkv, angles] = [qkv, angles].map(|length| vec![1.0; length]);
        assert!(split.split(&mut vec![0.0; out], &qkv, &angles).is_err(), "{out}");
    }
}

//! Vectors that a cache meets rarely: zeros, subnormals, too long, not finite.

#![cfg(test)]

mod normal;

use half::f16;
use kvant_turboquant::{Codec, Key, NonFinite, Rotation, ScaleRule, Side, Width};
use normal::Normal;

fn codecs() -> impl Iterator<Item = Codec> {
    let key = Key { layer: 0, side: Side::Keys, seed: 3 };
    let of = move |width| {
        let rules = ScaleRule::ALL.into_iter();
        rules.map(move |rule| Codec::new(Rotation::new(64, key), width, rule))
    };
    Width::ALL.into_iter().flat_map(of)
}

#[test]
fn zeros_decode_to_zeros() {
    for codec in codecs() {
        let zero = codec.encode(&[0.0; 64]).unwrap();
        assert_eq!(zero.scale.to_bits(), 0);
        assert_eq!(codec.encode(&[-0.0; 64]).unwrap(), zero);
        assert!(codec.decode(&zero).iter().all(|x| *x == 0.0));
        let query = codec.rotation().rotate(vec![5.0; 64]);
        assert_eq!(codec.score(&query, &zero), 0.0);
    }
}

#[test]
fn tiny_vectors_become_zeros_or_keep_their_size() {
    for codec in codecs() {
        let zero = codec.encode(&[0.0; 64]).unwrap();
        for tiny in [f32::from_bits(1), 1e-40, f32::MIN_POSITIVE, 1e-20, 9e-13] {
            assert_eq!(codec.encode(&[tiny; 64]).unwrap(), zero, "{tiny}");
        }
        // Where the scale is a subnormal half the length is still kept to its steps.
        let x: Vec<f32> = Normal::new(1).vector(64).iter().map(|x| x * 2e-3).collect();
        let back = codec.decode(&codec.encode(&x).unwrap());
        let length = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!((length(&back) / length(&x) - 1.0).abs() < 0.3, "{:?}", codec.book().width());
    }
}

#[test]
fn lengths_past_16_bits_are_stored_finite() {
    for codec in codecs() {
        let direction = Normal::new(2).vector(64);
        for size in [1e5, 1e8, 1e13, 1e20, 3e37] {
            let x: Vec<f32> = direction.iter().map(|x| x * size).collect();
            let encoded = codec.encode(&x).unwrap();
            assert!(encoded.scale.is_finite() && encoded.scale > f16::ZERO, "{size}");
            if size > 1e9 {
                assert_eq!(encoded.scale, f16::MAX, "{size}");
            }
            let cosine = {
                let back = codec.decode(&encoded);
                let dot = |a: &[f32], b: &[f32]| -> f64 {
                    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
                };
                dot(&x, &back) / (dot(&x, &x) * dot(&back, &back)).sqrt()
            };
            assert!(cosine > 0.7, "{size}: the direction is kept, {cosine}");
        }
    }
}

#[test]
fn what_is_not_finite_is_reported_and_not_stored() {
    for codec in codecs() {
        let zero = codec.encode(&[0.0; 64]).unwrap();
        for wrong in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for coordinate in [0, 17, 63] {
                let mut x = Normal::new(3).vector(64);
                x[coordinate] = wrong;
                let reported = Err(NonFinite { vector: 0, coordinate });
                assert_eq!(codec.encode(&x).map(|_| ()), reported);
                let mut codes = vec![77; 64];
                let scale = codec.encode_slice(&mut x, &mut codes);
                assert_eq!(scale, Err(NonFinite { vector: 0, coordinate }));
                assert_eq!(codes, zero.codes);
                assert!(x.iter().all(|x| *x == 0.0));
            }
        }
        // Finite to the last: the largest number is no infinity.
        assert!(codec.encode(&[f32::MAX; 64]).unwrap().scale.is_finite());
    }
}

//! Rotations are orthogonal, undone by their inverse and by no other, and differ between layers and
//! sides.

#![cfg(test)]

mod normal;

use kvant_turboquant::{Key, Rotation, Side};
use normal::Normal;

const DIMS: [usize; 14] = [1, 2, 20, 48, 64, 72, 80, 96, 100, 112, 128, 192, 224, 256];

fn key(layer: u32, side: Side, seed: u64) -> Key {
    Key { layer, side, seed }
}

fn length(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let rest: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    length(&rest) / length(a)
}

#[test]
fn the_inverse_is_exact_and_lengths_are_kept() {
    for dim in DIMS {
        let keyed = key(1, Side::Values, 7);
        for rotation in [Rotation::new(dim, keyed), Rotation::dense(dim, keyed)] {
            let x = Normal::new(3).vector(3 * dim);
            let rotated = rotation.rotate(x.clone());
            for (x, y) in x.chunks(dim).zip(rotated.as_slice().chunks(dim)) {
                assert!((length(y) / length(x) - 1.0).abs() < 1e-6, "{dim}");
            }
            let back = rotation.restore(rotated);
            assert!(distance(&x, &back) < 1e-6, "{dim}: {}", distance(&x, &back));
        }
    }
}

#[test]
fn a_hadamard_rotation_is_its_matrix() {
    for dim in [64, 80, 96, 112, 128] {
        let rotation = Rotation::new(dim, key(2, Side::Keys, 5));
        assert!(!rotation.is_dense());
        let mut units = vec![0.0; dim * dim];
        units.iter_mut().step_by(dim + 1).for_each(|x| *x = 1.0);
        let columns = rotation.rotate(units).into_values();
        let x = Normal::new(4).vector(dim);
        // y = Σ x_j · column j, in f64.
        let mut want = vec![0.0; dim];
        for (x, column) in x.iter().zip(columns.chunks(dim)) {
            want.iter_mut().zip(column).for_each(|(y, c)| *y += f64::from(*x) * f64::from(*c));
        }
        let want: Vec<f32> = want.into_iter().map(|y| y as f32).collect();
        assert!(distance(&want, rotation.rotate(x).as_slice()) < 1e-6, "{dim}");
    }
}

#[test]
fn the_wrong_inverse_gives_141_percent() {
    for dim in [64, 128, 256] {
        let keyed = key(0, Side::Values, 1);
        let (fast, dense) = (Rotation::new(dim, keyed), Rotation::dense(dim, keyed));
        let x = Normal::new(5).vector(100 * dim);
        let smuggled = dense.adopt(fast.rotate(x.clone()).into_values());
        let wrong = distance(&x, &dense.restore(smuggled));
        assert!((wrong - 2.0_f64.sqrt()).abs() < 0.02, "{dim}: {wrong}");
        let smuggled = fast.adopt(dense.rotate(x.clone()).into_values());
        let wrong = distance(&x, &fast.restore(smuggled));
        assert!((wrong - 2.0_f64.sqrt()).abs() < 0.02, "{dim}: {wrong}");
    }
}

#[test]
#[should_panic(expected = "rotated by another rotation")]
fn keys_do_not_leave_through_the_rotation_of_values() {
    let keys = Rotation::new(64, key(0, Side::Keys, 0));
    let values = Rotation::new(64, key(0, Side::Values, 0));
    values.restore(keys.rotate(vec![1.0; 64]));
}

#[test]
fn signs_are_balanced_irregular_and_never_shared() {
    let signs = |keyed: Key, dim: usize| -> Vec<bool> {
        (0..dim).map(|d| keyed.word(d as u64 / 64) >> (d % 64) & 1 == 1).collect()
    };
    let mut seen = Vec::new();
    for layer in 0..64 {
        for side in [Side::Keys, Side::Values] {
            for seed in [0, 1] {
                let drawn = signs(key(layer, side, seed), 128);
                let share = drawn.iter().filter(|s| **s).count() as f64 / 128.0;
                assert!((0.35..=0.65).contains(&share), "{layer} {side:?} {seed}: {share}");
                let changes = drawn.windows(2).filter(|pair| pair[0] != pair[1]).count();
                assert!((35..=92).contains(&changes), "{layer} {side:?} {seed}: {changes}");
                assert!(!seen.contains(&drawn), "{layer} {side:?} {seed} repeats");
                seen.push(drawn);
            }
        }
    }
}

#[test]
fn no_hadamard_row_becomes_sparse() {
    for dim in [64, 80, 128] {
        let rotation = Rotation::new(dim, key(0, Side::Keys, 0));
        let plain = |row: usize| -> Vec<f32> {
            let sign = |d: usize| if (row & d).count_ones() % 2 == 1 { -1.0 } else { 1.0 };
            (0..dim).map(sign).collect()
        };
        for row in 0..dim {
            let y = rotation.rotate(plain(row)).into_values();
            let largest = y.iter().fold(0.0, |m: f32, y| m.max(y.abs()));
            let share = f64::from(largest) / length(&y);
            assert!(share < 0.6, "{dim}: row {row} keeps {share} of its length in one coordinate");
        }
    }
}

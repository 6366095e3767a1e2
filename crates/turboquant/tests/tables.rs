//! The tables derived again: Lloyd-Max by its fixed point, the integer levels as a minimum that no
//! step improves.

#![cfg(test)]

use kvant_turboquant::{LEVELS, LLOYD_MAX, UNITS};

const STEP: f64 = 2e-4;
const END: f64 = 10.0;

/// Moments of order 0, 1, 2 of the positive half of a normal distribution, from 0 up to each grid
/// point.
struct Moments(Vec<[f64; 3]>);

impl Moments {
    fn new() -> Self {
        let mut sums = vec![[0.0; 3]];
        for index in 0..(END / STEP) as usize {
            let x = (index as f64 + 0.5) * STEP;
            let weight = (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt() * STEP;
            let last = sums[index];
            sums.push([last[0] + weight, last[1] + weight * x, last[2] + weight * x * x]);
        }
        Self(sums)
    }

    fn upto(&self, x: f64) -> [f64; 3] {
        let at = (x.min(END) / STEP).min(self.0.len() as f64 - 1.001);
        let (low, part) = (at as usize, at.fract());
        std::array::from_fn(|m| self.0[low][m] * (1.0 - part) + self.0[low + 1][m] * part)
    }

    /// Moments of the cells of ascending positive levels.
    fn cells(&self, levels: &[f64]) -> Vec<[f64; 3]> {
        let inner = levels.windows(2).map(|pair| f64::midpoint(pair[0], pair[1]));
        let borders: Vec<f64> = std::iter::once(0.0).chain(inner).chain([END]).collect();
        let sums: Vec<_> = borders.iter().map(|border| self.upto(*border)).collect();
        sums.windows(2).map(|pair| std::array::from_fn(|m| pair[1][m] - pair[0][m])).collect()
    }

    /// Mean squared error of a symmetric table with nearest levels.
    fn error(&self, levels: &[f64]) -> f64 {
        let cells = self.cells(levels);
        let of = |(level, cell): (&f64, [f64; 3])| {
            cell[2] - 2.0 * level * cell[1] + level * level * cell[0]
        };
        2.0 * levels.iter().zip(cells).map(of).sum::<f64>()
    }
}

#[test]
fn lloyd_max_tables_are_fixed_points() {
    let moments = Moments::new();
    for (bits, shipped) in (1..).zip(LLOYD_MAX) {
        assert_eq!(shipped.len(), 1 << (bits - 1));
        // Somewhere else: evenly spaced levels.
        let count = shipped.len() as f64;
        let mut levels: Vec<f64> =
            (0..shipped.len()).map(|i| 4.0 * (i as f64 + 0.5) / count).collect();
        for _ in 0..60_000 {
            let cells = moments.cells(&levels);
            let next: Vec<f64> = cells.iter().map(|cell| cell[1] / cell[0]).collect();
            let moved = levels.iter().zip(&next).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()));
            levels = next;
            if moved < 1e-9 {
                break;
            }
        }
        for (level, shipped) in levels.iter().zip(shipped) {
            assert!((level - shipped).abs() < 1e-4, "{bits} bits: {level}, shipped {shipped}");
        }
    }
    // Published outermost level and errors of 1 to 4 bits (Max 1960).
    assert!((LLOYD_MAX[3][7] - 2.733).abs() < 0.001);
    for (table, error) in LLOYD_MAX.iter().zip([0.3634, 0.1175, 0.03454, 0.009_497]) {
        assert!((moments.error(table) / error - 1.0).abs() < 1e-3);
    }
}

fn error(moments: &Moments, levels: &[f32], unit: f64) -> f64 {
    let levels: Vec<f64> = levels.iter().map(|level| f64::from(*level) * unit).collect();
    moments.error(&levels)
}

#[test]
fn integer_levels_are_a_minimum_near_lloyd_max() {
    let moments = Moments::new();
    // Allowed excess in percent; 6 and 7 bits pay for steps that are too coarse.
    let excess = [0.01, 0.01, 0.05, 0.5, 0.7, 2.2, 10.5];
    for (index, (levels, unit)) in LEVELS.into_iter().zip(UNITS).enumerate() {
        let bits = index + 1;
        let unit = f64::from(unit);
        let best = moments.error(LLOYD_MAX[index]);
        let own = error(&moments, levels, unit);
        let over = 100.0 * (own / best - 1.0);
        assert!(over < excess[index], "{bits} bits: {over:.2} % above Lloyd-Max");
        let (fraction, most) = if bits == 4 { (0.5, 63.5) } else { (0.0, 127.0) };
        assert!(levels.iter().all(|l| l.fract() == fraction && (0.5..=most).contains(l)));
        for at in 0..levels.len() {
            for step in [-1.0, 1.0] {
                let mut other = levels.to_vec();
                other[at] += step;
                if other[at] > 0.0 && other[at] <= most && other.is_sorted_by(|a, b| a < b) {
                    assert!(
                        error(&moments, &other, unit) > own - 1e-9,
                        "{bits} bits: {at} by {step}"
                    );
                }
            }
        }
        for factor in [0.999, 1.001] {
            assert!(
                error(&moments, levels, unit * factor) > own - 1e-9,
                "{bits} bits: unit {factor}"
            );
        }
    }
}

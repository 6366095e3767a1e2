//! The tables derived again: Lloyd-Max by its fixed point, the levels of bytes as the best of all
//! choices, found by a dynamic programme at every unit.

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
        sums.windows(2).map(|pair| minus(pair[1], pair[0])).collect()
    }

    /// Mean squared error of a symmetric table with nearest levels.
    fn error(&self, levels: &[f64]) -> f64 {
        let cells = levels.iter().zip(self.cells(levels));
        2.0 * cells.map(|(level, cell)| about(*level, cell)).sum::<f64>()
    }

    /// The smallest `error` of any `count` of these levels. The cost between two neighbours depends
    /// on no other level, so the best tables that end at a level follow from those one shorter.
    fn least_error(&self, grid: &[f64], count: usize) -> f64 {
        let below: Vec<_> = grid.iter().map(|level| self.upto(*level)).collect();
        let costs_from_lower = |(upper, level): (usize, &f64)| -> Vec<f64> {
            let cost = |(lower, from): (&f64, &[f64; 3])| {
                let middle = self.upto(f64::midpoint(*lower, *level));
                about(*lower, minus(middle, *from)) + about(*level, minus(below[upper], middle))
            };
            grid[..upper].iter().zip(&below).map(cost).collect()
        };
        let costs: Vec<_> = grid.iter().enumerate().map(costs_from_lower).collect();
        let first = grid.iter().zip(&below).map(|(level, from_zero)| about(*level, *from_zero));
        let mut least: Vec<f64> = first.collect();
        for _ in 1..count {
            let longer = |costs: &Vec<f64>| {
                let sums = least.iter().zip(costs).map(|(least, cost)| least + cost);
                sums.fold(f64::MAX, f64::min)
            };
            least = costs.iter().map(longer).collect();
        }
        let all = self.upto(END);
        let ends = grid.iter().zip(below).map(|(level, from)| about(*level, minus(all, from)));
        2.0 * least.iter().zip(ends).map(|(least, end)| least + end).fold(f64::MAX, f64::min)
    }
}

/// Squared error about `level` of a part with these moments.
fn about(level: f64, [mass, first, second]: [f64; 3]) -> f64 {
    second - 2.0 * level * first + level * level * mass
}

fn minus(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    std::array::from_fn(|m| a[m] - b[m])
}

fn shipped(bits: usize) -> Vec<f64> {
    LEVELS[bits - 1].iter().map(|level| f64::from(*level) * f64::from(UNITS[bits - 1])).collect()
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

#[test]
fn no_table_of_bytes_is_better() {
    let moments = Moments::new();
    // Excess over Lloyd-Max in percent. One level of 1 bit is exact, whatever it is called.
    for (bits, excess) in [(2, 0.001), (3, 0.003), (4, 0.34), (5, 0.58), (6, 1.94)] {
        let (lloyd_max, own) = (LLOYD_MAX[bits - 1], moments.error(&shipped(bits)));
        let over = 100.0 * (own / moments.error(lloyd_max) - 1.0);
        assert!(over < excess, "{bits} bits: {over} % above Lloyd-Max");
        let shift = if bits == 4 { 0.5 } else { 0.0 };
        let grid: Vec<f64> = (1..=127).map(f64::from).map(|level| level - shift).collect();
        let grid = &grid[..if bits == 4 { 64 } else { 127 }];
        assert!(LEVELS[bits - 1].iter().all(|level| grid.contains(&f64::from(*level))));
        // From units that waste the end of the grid to those of which `count` levels are too long.
        let count = lloyd_max.len();
        let (outermost, most) = (lloyd_max[count - 1], grid[grid.len() - 1]);
        let mut unit = 0.85 * outermost / most;
        while unit < 1.2 * outermost / grid[count - 1] {
            let levels: Vec<f64> = grid.iter().map(|level| level * unit).collect();
            let least = moments.least_error(&levels, count);
            assert!(
                own < least * (1.0 + 2e-6),
                "{bits} bits, unit {unit}: {least:e}, ours {own:e}"
            );
            unit *= 1.0005;
        }
    }
}

#[test]
fn levels_of_1_and_7_bits_are_lloyd_max() {
    for (bits, largest) in [(1, 127.0), (7, 32_767.0)] {
        let exact = LLOYD_MAX[bits - 1];
        let unit = exact[exact.len() - 1] / largest;
        let whole: Vec<f32> = exact.iter().map(|level| (level / unit).round() as f32).collect();
        assert_eq!(whole, LEVELS[bits - 1], "{bits} bits");
        assert!((f64::from(UNITS[bits - 1]) / unit - 1.0).abs() < 2e-7, "{bits} bits: {unit}");
    }
    let moments = Moments::new();
    let over = moments.error(&shipped(7)) / moments.error(LLOYD_MAX[6]) - 1.0;
    assert!(over < 1e-4, "16-bit levels cost {over}");
}

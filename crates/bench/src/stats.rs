//! `Spread`: what a set of measured values is like.

use serde::Serialize;

/// Mean, percentiles and maximum, in the unit of the values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest value.
    pub max: f64,
}

impl Spread {
    /// Of any values in any order; `None` if there are none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        Some(Self {
            mean: values.iter().sum::<f64>() / values.len() as f64,
            p50: percentile(&values, 50)?,
            p95: percentile(&values, 95)?,
            p99: percentile(&values, 99)?,
            max: *values.last()?,
        })
    }
}

/// The smallest value that at least `percent` of all values do not exceed; `sorted` ascends.
pub(crate) fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        for (values, percent, expected) in [
            (hundred.as_slice(), 50, Some(50.0)),
            (&hundred, 95, Some(95.0)),
            (&hundred, 99, Some(99.0)),
            (&hundred, 100, Some(100.0)),
            (&[7.0], 50, Some(7.0)),
            (&[7.0], 99, Some(7.0)),
            (&[1.0, 2.0], 50, Some(1.0)),
            (&[1.0, 2.0], 99, Some(2.0)),
            (&[], 50, None),
        ] {
            assert_eq!(percentile(values, percent), expected, "{percent} of {values:?}");
        }
    }

    #[test]
    fn a_spread_does_not_depend_on_the_order() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let spread = Spread { mean: 100.5, p50: 100.0, p95: 190.0, p99: 198.0, max: 200.0 };
        assert_eq!(Spread::of(values), Some(spread));
        assert_eq!(Spread::of(Vec::new()), None);
    }
}

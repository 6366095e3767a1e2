//! `Histogram`: counts by bucket without a lock, written as Prometheus wants them.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Observations by upper bound.
#[derive(Debug)]
pub(crate) struct Histogram {
    name: &'static str,
    help: &'static str,
    bounds: Vec<f64>,
    /// One more than bounds: the last is for what is above all.
    counts: Vec<AtomicU64>,
    /// Bits of an f64.
    sum: AtomicU64,
}

impl Histogram {
    /// `bounds` ascend.
    pub(crate) fn new(name: &'static str, help: &'static str, bounds: &[f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { name, help, bounds: bounds.to_vec(), counts, sum: AtomicU64::new(0) }
    }

    pub(crate) fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // The closure always gives a value, so this cannot fail.
        let _ = self.sum.fetch_update(Relaxed, Relaxed, add);
    }

    /// `labels`: `name="value"`, at least one.
    pub(crate) fn write(&self, page: &mut String, labels: &str) {
        let Self { name, help, .. } = self;
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut total = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            total += count.load(Relaxed);
            // `{:?}` keeps the point of whole numbers: le="1.0".
            let _ = writeln!(page, "{name}_bucket{{{labels},le=\"{bound:?}\"}} {total}");
        }
        total += self.counts[self.bounds.len()].load(Relaxed);
        let sum = f64::from_bits(self.sum.load(Relaxed));
        let _ = writeln!(page, "{name}_bucket{{{labels},le=\"+Inf\"}} {total}");
        let _ = writeln!(page, "{name}_sum{{{labels}}} {sum:?}");
        let _ = writeln!(page, "{name}_count{{{labels}}} {total}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_include_their_bound() {
        let histogram = Histogram::new("h", "what", &[1.0, 2.5]);
        for value in [0.5, 1.0, 2.0, 3.0] {
            histogram.observe(value);
        }
        let mut page = String::new();
        histogram.write(&mut page, "m=\"x\"");
        let expected = "# HELP h what\n# TYPE h histogram\n\
                        h_bucket{m=\"x\",le=\"1.0\"} 2\n\
                        h_bucket{m=\"x\",le=\"2.5\"} 3\n\
                        h_bucket{m=\"x\",le=\"+Inf\"} 4\n\
                        h_sum{m=\"x\"} 6.5\nh_count{m=\"x\"} 4\n";
        assert_eq!(page, expected);
    }
}

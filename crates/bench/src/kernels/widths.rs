//! `NamedWidths`: widths of keys and values as people write them: `tq4`, `tq3.5`, `k8v4`.

use std::fmt;
use std::str::FromStr;

use kvant_turboquant::{Width, Widths};
use serde::{Serialize, Serializer};

/// Widths that have fused kernels, and their name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedWidths(Widths);

impl NamedWidths {
    /// Bits of keys and values.
    pub fn widths(self) -> Widths {
        self.0
    }
}

impl fmt::Display for NamedWidths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Widths { keys, values } = self.0;
        let name = if keys == values { format!("tq{keys}") } else { format!("k{keys}v{values}") };
        f.pad(&name)
    }
}

impl FromStr for NamedWidths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = parse(text).filter(|widths| {
            [widths.keys, widths.values].iter().all(|width| Width::CACHE.contains(width))
        });
        known.map(Self).ok_or_else(|| {
            let bits = Width::CACHE.map(|width| width.to_string()).join(", ");
            format!("it must be like tq4, tq3.5 or k8v4, with widths of {bits} bits")
        })
    }
}

fn parse(text: &str) -> Option<Widths> {
    if let Some(average) = text.strip_prefix("tq") {
        return Widths::from_average(average.parse().ok()?).ok();
    }
    let (keys, values) = text.strip_prefix('k')?.split_once('v')?;
    let width = |bits: &str| Width::new(bits.parse().ok()?).ok();
    Some(Widths { keys: width(keys)?, values: width(values)? })
}

impl Serialize for NamedWidths {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (text, keys, values, name) in [
            ("tq4", 4, 4, "tq4"),
            ("tq8", 8, 8, "tq8"),
            ("tq3.5", 3, 4, "k3v4"),
            ("k8v4", 8, 4, "k8v4"),
            ("k6v6", 6, 6, "tq6"),
        ] {
            let named: NamedWidths = text.parse().unwrap();
            let Widths { keys: k, values: v } = named.widths();
            assert_eq!((k.bits(), v.bits(), named.to_string().as_str()), (keys, values, name));
        }
        for text in ["", "tq", "tq5", "tq1", "tq4.25", "tq9", "k8", "k8v", "v4k8", "k8v5", "4"] {
            let error = text.parse::<NamedWidths>().unwrap_err();
            assert!(error.contains("2, 3, 4, 6, 8 bits"), "{text}: {error}");
        }
    }
}

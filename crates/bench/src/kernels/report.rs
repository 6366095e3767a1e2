//! `KernelTable`: what the kernels took, for people and as JSON, and the arithmetic behind it.

use std::fmt;

use serde::Serialize;

use super::{HeadShape, NamedWidths};

/// Rows and what they were measured on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelTable {
    /// Heads of the layer.
    pub shape: HeadShape,
    /// Threads that computed.
    pub threads: usize,
    /// Instructions of the packed kernel.
    pub path: String,
    /// Reading memory on all threads, the highest of all rounds.
    pub read_gb_per_s_best: f64,
    /// The same, the median.
    pub read_gb_per_s_median: f64,
    /// How it was measured.
    pub method: Vec<String>,
    /// One row a width, batch and context.
    pub decode: Vec<DecodeRow>,
    /// One row a width.
    pub encode: Vec<EncodeRow>,
}

/// Decode attention of one layer, one token a row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DecodeRow {
    /// Bits of keys and values.
    pub widths: NamedWidths,
    /// Sequences.
    pub batch: u32,
    /// Tokens of each.
    pub context: u32,
    /// Packed bytes that a call reads.
    pub packed_bytes: u64,
    /// Over 16-bit pages.
    pub dense_ms: Figures,
    /// Over packed pages.
    pub packed_ms: Figures,
    /// Decoding all pages to 16 bits, then the 16-bit kernel.
    pub decoded_ms: Figures,
    /// 16-bit time by packed time.
    pub dense_ratio: Figures,
    /// Time of decoding first by packed time.
    pub decoded_ratio: Figures,
    /// Packed bytes by the lowest packed time.
    pub packed_gb_per_s: f64,
    /// The lowest packed time by the time that reading the packed bytes takes at the best rate of
    /// this run.
    pub floor_ratio: f64,
}

/// Encoding keys and values of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EncodeRow {
    /// Bits of keys and values.
    pub widths: NamedWidths,
    /// Microseconds of one token's heads.
    pub us_per_token: Figures,
    /// Tokens, from the lowest time.
    pub tokens_per_s: f64,
    /// Keys and values, each of one head and one token.
    pub vectors_per_s: f64,
}

/// The lowest and the middle one of several times, or a ratio of those of two ways.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Of the lowest. While other programs run, the shorter way is the likelier to find an
    /// undisturbed moment.
    pub best: f64,
    /// Of the middle ones; of an even number the mean of the two in the middle.
    pub median: f64,
}

impl Figures {
    /// Of at least one time.
    pub(super) fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (half, count) = (sorted.len() / 2, sorted.len());
        let median = f64::midpoint(sorted[half], sorted[(count - 1) / 2]);
        Self { best: sorted[0], median }
    }

    fn over(self, other: Self) -> Self {
        Self { best: self.best / other.best, median: self.median / other.median }
    }

    pub(super) fn scaled(self, factor: f64) -> Self {
        Self { best: self.best * factor, median: self.median * factor }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{} ({})", short(self.best), short(self.median)))
    }
}

/// Three digits that count.
fn short(value: f64) -> String {
    let decimals = match value {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

impl DecodeRow {
    /// Figures from times in milliseconds of (dense, packed, decoded) and bytes; what relates to
    /// the floor is filled in when all rounds are over.
    pub(super) fn new(
        (widths, batch, context): (NamedWidths, u32, u32),
        packed_bytes: u64,
        [dense_ms, packed_ms, decoded_ms]: [Figures; 3],
    ) -> Self {
        Self {
            widths,
            batch,
            context,
            packed_bytes,
            dense_ms,
            packed_ms,
            decoded_ms,
            dense_ratio: dense_ms.over(packed_ms),
            decoded_ratio: decoded_ms.over(packed_ms),
            packed_gb_per_s: packed_bytes as f64 / packed_ms.best / 1e6,
            floor_ratio: f64::NAN,
        }
    }

    pub(super) fn set_floor(&mut self, read_gb_per_s: f64) {
        self.floor_ratio = read_gb_per_s / self.packed_gb_per_s;
    }
}

impl EncodeRow {
    /// From the milliseconds of so many tokens.
    pub(super) fn new(widths: NamedWidths, ms: Figures, tokens: usize, kv_heads: usize) -> Self {
        let us_per_token = ms.scaled(1e3 / tokens as f64);
        let tokens_per_s = 1e6 / us_per_token.best;
        let vectors_per_s = tokens_per_s * 2.0 * kv_heads as f64;
        Self { widths, us_per_token, tokens_per_s, vectors_per_s }
    }
}

impl KernelTable {
    fn encode_us(&self, widths: NamedWidths) -> String {
        let row = self.encode.iter().find(|row| row.widths == widths);
        row.map_or("-".to_owned(), |row| short(row.us_per_token.best))
    }
}

impl fmt::Display for KernelTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HeadShape { kv_heads, group, dim } = self.shape;
        let (threads, path) = (self.threads, &self.path);
        writeln!(
            f,
            "{kv_heads} key heads, groups of {group}, dim {dim}, {threads} threads, {path}"
        )?;
        let (best, median) = (self.read_gb_per_s_best, self.read_gb_per_s_median);
        writeln!(f, "reading memory: {best:.1} GB/s, median {median:.1}\n")?;
        writeln!(
            f,
            "{:<6} {:>5} {:>7} {:>15} {:>15} {:>13} {:>15} {:>13} {:>6} {:>6} {:>9}",
            "widths",
            "batch",
            "context",
            "16-bit ms",
            "packed ms",
            "ratio",
            "decode first ms",
            "ratio",
            "GB/s",
            "floor",
            "encode us"
        )?;
        for row in &self.decode {
            writeln!(
                f,
                "{:<6} {:>5} {:>7} {:>15} {:>15} {:>13} {:>15} {:>13} {:>6.2} {:>6.2} {:>9}",
                row.widths,
                row.batch,
                row.context,
                row.dense_ms,
                row.packed_ms,
                row.dense_ratio,
                row.decoded_ms,
                row.decoded_ratio,
                row.packed_gb_per_s,
                row.floor_ratio,
                self.encode_us(row.widths),
            )?;
        }
        writeln!(
            f,
            "\n{:<6} {:>15} {:>12} {:>12}",
            "encode", "us a token", "tokens/s", "vectors/s"
        )?;
        for row in &self.encode {
            let EncodeRow { widths, us_per_token, tokens_per_s, vectors_per_s } = row;
            let rates = format!("{tokens_per_s:>12.0} {vectors_per_s:>12.0}");
            writeln!(f, "{widths:<6} {us_per_token:>15} {rates}")?;
        }
        writeln!(f)?;
        self.method.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(best: f64) -> Figures {
        Figures { best, median: 2.0 * best }
    }

    fn table() -> KernelTable {
        let widths: NamedWidths = "tq4".parse().unwrap();
        let dense = Figures { best: 6.0, median: 16.0 };
        let mut row =
            DecodeRow::new((widths, 8, 16_384), 17_000_000, [dense, times(4.0), times(32.0)]);
        row.set_floor(17.0);
        KernelTable {
            shape: HeadShape { kv_heads: 8, group: 4, dim: 128 },
            threads: 2,
            path: "Avx512".to_owned(),
            read_gb_per_s_best: 17.0,
            read_gb_per_s_median: 12.0,
            method: vec!["as it was".to_owned()],
            decode: vec![row.clone(), row],
            encode: vec![EncodeRow::new(widths, times(20.48), 4096, 8)],
        }
    }

    #[test]
    fn the_median_is_the_middle_one() {
        for (samples, best, median) in [
            (vec![3.0], 3.0, 3.0),
            (vec![5.0, 1.0], 1.0, 3.0),
            (vec![9.0, 2.0, 4.0], 2.0, 4.0),
            (vec![8.0, 1.0, 6.0, 4.0], 1.0, 5.0),
        ] {
            assert_eq!(Figures::of(&samples), Figures { best, median }, "{samples:?}");
        }
    }

    #[test]
    fn ratios_are_of_lowest_and_of_median_times() {
        let row = &table().decode[0];
        assert_eq!(row.dense_ratio, Figures { best: 1.5, median: 2.0 });
        assert_eq!(row.decoded_ratio, Figures { best: 8.0, median: 8.0 });
        // 17 MB in 4 ms; at 17 GB/s they would take 1 ms.
        assert_eq!((row.packed_gb_per_s, row.floor_ratio), (4.25, 4.0));
    }

    #[test]
    fn rates_of_encoding_count_keys_and_values() {
        let row = &table().encode[0];
        assert_eq!(row.us_per_token, times(5.0));
        assert_eq!((row.tokens_per_s, row.vectors_per_s), (200_000.0, 3_200_000.0));
    }

    #[test]
    fn columns_line_up() {
        let text = table().to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 11, "{text}");
        assert_eq!(lines[3].len(), lines[4].len());
        assert_eq!(lines[7].len(), lines[8].len());
        assert!(lines[4].contains("1.50 (2.00)") && lines[4].ends_with(" 5.00"), "{text}");
        assert_eq!(lines[10], "as it was");
    }

    #[test]
    fn json_has_every_figure() {
        let json = serde_json::to_value(table()).unwrap();
        assert_eq!(json["decode"][0]["widths"], "tq4");
        assert_eq!(json["decode"][1]["packed_ms"]["median"], 8.0);
        assert_eq!(json["decode"][0]["floor_ratio"], 4.0);
        assert_eq!(json["encode"][0]["us_per_token"]["best"], 5.0);
        assert_eq!(json["shape"]["kv_heads"], 8);
    }

    #[test]
    fn three_digits_count() {
        let shown = [0.0123, 1.0, 12.345, 123.4].map(short);
        assert_eq!(shown, ["0.012", "1.00", "12.3", "123"]);
    }
}

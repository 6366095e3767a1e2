//! `Table`: rows of a measurement, for people and as JSON.

use std::fmt;

use serde::Serialize;

use crate::Row;

/// Rows and what they were measured on.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// The model.
    pub model: String,
    /// Threads that computed.
    pub threads: usize,
    /// One row a concurrency.
    pub rows: Vec<Row>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} threads", self.model, self.threads)?;
        writeln!(
            f,
            "{:>7} {:>7} {:>7} {:>11} {:>11} {:>10} {:>10} {:>9} {:>9}",
            "streams",
            "prompt",
            "output",
            "prefill t/s",
            "decode t/s",
            "ttft p50",
            "ttft p99",
            "itl p50",
            "itl p99"
        )?;
        for row in &self.rows {
            let rate = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.1}"));
            let ms = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.1} ms"));
            writeln!(
                f,
                "{:>7} {:>7} {:>7} {:>11} {:>11} {:>10} {:>10} {:>9} {:>9}",
                row.concurrency,
                row.prompt_tokens,
                row.output_tokens,
                rate(Some(row.prefill_tokens_per_s)),
                rate(row.decode_tokens_per_s),
                ms(Some(row.ttft_ms_p50)),
                ms(Some(row.ttft_ms_p99)),
                ms(row.itl_ms_p50),
                ms(row.itl_ms_p99),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_missing_figures_are_dashes() {
        let row = Row {
            concurrency: 8,
            prompt_tokens: 128,
            output_tokens: 1,
            prefill_tokens_per_s: 1234.56,
            decode_tokens_per_s: None,
            ttft_ms_p50: 1.0,
            ttft_ms_p99: 2.0,
            itl_ms_p50: None,
            itl_ms_p99: None,
            total_s: 0.1,
        };
        let table = Table { model: "tiny".into(), threads: 2, rows: vec![row.clone(), row] };
        let text = table.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[1].len(), lines[2].len());
        assert!(lines[2].contains("1234.6") && lines[2].contains(" - "), "{}", lines[2]);
    }
}

//! `Table`: rows of a measurement, for people and as JSON.

use std::fmt;

use serde::Serialize;

use crate::Row;

/// Rows and what they were measured on.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// The model.
    pub model: String,
    /// Where it computed.
    pub device: String,
    /// Threads that computed.
    pub threads: usize,
    /// How keys and values were kept.
    pub cache: String,
    /// One row a load.
    pub rows: Vec<Row>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, device, threads, cache, .. } = self;
        writeln!(f, "{model} on {device}, {threads} threads, cache {cache}")?;
        writeln!(
            f,
            "{:>7} {:>7} {:>7} {:>11} {:>11} {:>10} {:>10} {:>9} {:>9} {:>9}",
            "streams",
            "prompt",
            "output",
            "prefill t/s",
            "decode t/s",
            "ttft p50",
            "ttft p99",
            "itl p50",
            "itl p99",
            "step p50"
        )?;
        for row in &self.rows {
            let rate = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.1}"));
            let ms = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.1} ms"));
            writeln!(
                f,
                "{:>7} {:>7} {:>7} {:>11} {:>11} {:>10} {:>10} {:>9} {:>9} {:>9}",
                row.concurrency,
                row.prompt_tokens,
                row.output_tokens,
                rate(Some(row.prefill_tokens_per_s)),
                rate(row.decode_tokens_per_s),
                ms(Some(row.ttft_ms_p50)),
                ms(Some(row.ttft_ms_p99)),
                ms(row.itl_ms_p50),
                ms(row.itl_ms_p99),
                ms(row.step_ms_p50),
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
            step_ms_p50: None,
            step_ms_mean: None,
            full_steps: 0,
            output_tokens_per_s: 80.0,
            total_s: 0.1,
        };
        let (model, device, cache) = ("tiny".into(), "cpu".into(), "tq4".into());
        let rows = vec![row.clone(), row];
        let table = Table { model, device, threads: 2, cache, rows };
        let text = table.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[1].len(), lines[2].len());
        assert!(lines[2].contains("1234.6") && lines[2].contains(" - "), "{}", lines[2]);
    }
}

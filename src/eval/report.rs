//! `Report`: everything that `kvant eval` measured, as Markdown and as JSON.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use kvant_bench::{
    NeedleRow, OccupancyRow, QualityRow, markdown, needle_markdown, occupancy_markdown,
};
use serde::Serialize;

use crate::facts::mib;

/// What was measured on what.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) model: String,
    /// Name of the file.
    pub(super) text: String,
    pub(super) version: &'static str,
    pub(super) processor: String,
    pub(super) threads: usize,
    pub(super) command: String,
    pub(super) windows: u32,
    pub(super) quality: Vec<QualityTable>,
    pub(super) needles: Vec<NeedleTable>,
    pub(super) occupancy: Vec<OccupancyRow>,
    pub(super) converting: Converting,
}

/// Rows of one context and batch.
#[derive(Debug, Serialize)]
pub(super) struct QualityTable {
    pub(super) context: u32,
    pub(super) batch: u32,
    pub(super) rows: Vec<QualityRow>,
}

/// Needles of one context.
#[derive(Debug, Serialize)]
pub(super) struct NeedleTable {
    pub(super) context: u32,
    pub(super) rows: Vec<NeedleRow>,
}

/// Memory of one prompt while it is converted.
#[derive(Debug, Serialize)]
pub(super) struct Converting {
    pub(super) prompt_tokens: usize,
    pub(super) rows: Vec<ConvertingRow>,
}

/// The same by cache.
#[derive(Debug, Serialize)]
pub(super) struct ConvertingRow {
    pub(super) name: String,
    /// What the process grew by at most; `None` where the system does not count it.
    pub(super) peak_bytes: Option<u64>,
    /// Staging, pages and tail.
    pub(super) formula_bytes: u64,
}

impl Report {
    /// Writes report.md and report.json to a folder that exists.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("{}", path.display()))
        };
        write("report.md", self.to_string())?;
        write("report.json", self.json()? + "\n")
    }

    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, text, version, processor, threads, command, windows, .. } = self;
        writeln!(f, "# {model} on {text}\n")?;
        writeln!(f, "kvant {version}, {processor}, {threads} threads\n\n```\n{command}\n```")?;
        for QualityTable { context, batch, rows } in &self.quality {
            writeln!(f, "\n## Context {context}, batch {batch}\n")?;
            writeln!(f, "Windows: {windows}; the second half of each is scored.\n")?;
            writeln!(f, "{}", markdown(rows).trim())?;
        }
        for NeedleTable { context, rows } in &self.needles {
            writeln!(f, "\n## Context {context}, needles\n")?;
            writeln!(
                f,
                "Kept, in all and by depth: of what f16 answers, this cache answers too.\n"
            )?;
            writeln!(f, "{}", needle_markdown(rows).trim())?;
        }
        writeln!(f, "\n## Bytes\n\n{}", occupancy_markdown(&self.occupancy).trim())?;
        write!(f, "{}", self.converting)
    }
}

impl fmt::Display for Converting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prompt_tokens, rows } = self;
        writeln!(f, "\n## Memory while a prompt of {prompt_tokens} tokens is converted\n")?;
        writeln!(f, "The peak of a process of its own; it has a step's activations too.\n")?;
        writeln!(f, "| cache | peak while converting | staging, pages, tail |\n|---|---|---|")?;
        for ConvertingRow { name, peak_bytes, formula_bytes } in rows {
            let peak = peak_bytes.map_or("-".to_owned(), mib);
            writeln!(f, "| {name} | {peak} | {} |", mib(*formula_bytes))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_does_not_count_is_a_dash() {
        let row =
            |peak_bytes| ConvertingRow { name: "tq4".into(), peak_bytes, formula_bytes: 1 << 20 };
        let converting =
            Converting { prompt_tokens: 64, rows: vec![row(None), row(Some(3 << 19))] };
        let text = converting.to_string();
        assert!(text.contains("| tq4 | - | 1.0 MiB |\n| tq4 | 1.5 MiB | 1.0 MiB |\n"), "{text}");
    }
}

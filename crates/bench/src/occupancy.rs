//! `occupancy`: bytes of a full page as they are allocated, held against the formula of the format,
//! and what a prompt takes while it is converted.

use std::fmt::Write;

use anyhow::{Result, ensure};
use kvant_kv_cache::{CacheLayer, CacheShape, Format, PAGE_TOKENS, PageStore, pages_for};
use kvant_turboquant::Width;
use serde::Serialize;

use crate::quality::{Candidate, with_dense};

/// Pages allocated to be counted.
const PAGES: usize = 8;

/// What a cache takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OccupancyRow {
    /// Name of the cache.
    pub name: String,
    /// Bytes of one token of a full page in all layers, as allocated.
    pub allocated_bytes_per_token: f64,
    /// The same by the formula.
    pub formula_bytes_per_token: f64,
    /// Part of what 16 bits take.
    pub ratio: f64,
    /// 16-bit tail of one sequence, bytes.
    pub tail_bytes: u64,
}

/// Allocates pages of every cache and counts; the first row is the 16-bit one. Bytes that are not
/// those of the formula are an error.
pub fn occupancy(candidates: &[Candidate]) -> Result<Vec<OccupancyRow>> {
    let caches = with_dense(candidates)?;
    let page_bytes = |cache: &Candidate| {
        let allocated = PageStore::new(&cache.shape, (PAGES, 0), 0).bytes() as f64 / PAGES as f64;
        let formula = formula(&cache.shape) as f64;
        let name = &cache.name;
        ensure!(allocated == formula, "{name}: a page takes {allocated} bytes, not {formula}");
        Ok(allocated)
    };
    let dense = page_bytes(&caches[0])?;
    let row = |cache: &Candidate| {
        let allocated = page_bytes(cache)?;
        Ok(OccupancyRow {
            name: cache.name.clone(),
            allocated_bytes_per_token: allocated / PAGE_TOKENS as f64,
            formula_bytes_per_token: formula(&cache.shape) as f64 / PAGE_TOKENS as f64,
            ratio: allocated / dense.max(1.0),
            tail_bytes: cache.shape.tail_bytes(),
        })
    };
    caches.iter().map(row).collect()
}

/// Bytes of a page in all layers, written down apart from the store's own arithmetic.
fn formula(shape: &CacheShape) -> u64 {
    let of_token = |layer: &CacheLayer| {
        let dim = layer.shape.dim;
        let of_head = match layer.format {
            Format::Dense => 2 * 2 * dim,
            // Two 16-bit scales; a key's codes fill whole words, plane by plane.
            Format::TurboQuant(widths) => {
                let words = |width: Width| {
                    width.planes().map(|(bits, _)| (dim * bits).div_ceil(32)).sum::<usize>()
                };
                2 * 2 + 4 * words(widths.keys) + dim * widths.values.bits() / 8
            }
        };
        (layer.shape.kv_heads * of_head) as u64
    };
    shape.layers.iter().map(of_token).sum::<u64>() * PAGE_TOKENS as u64
}

/// Bytes of a prompt's cache when its last page has been converted: 16-bit staging, pages, tail.
pub fn converting_bytes(shape: &CacheShape, prompt: usize) -> u64 {
    pages_for(prompt) as u64 * (shape.dense_page_bytes() + shape.page_bytes()) + shape.tail_bytes()
}

/// The rows as a Markdown table.
pub fn occupancy_markdown(rows: &[OccupancyRow]) -> String {
    let mut text = String::from(
        "| cache | bytes a token, allocated | by the formula | part of 16 bits | tail of a \
         sequence, bytes |\n|---|---|---|---|---|\n",
    );
    for OccupancyRow {
        name,
        allocated_bytes_per_token: allocated,
        formula_bytes_per_token: formula,
        ratio,
        tail_bytes,
    } in rows
    {
        let _ = writeln!(text, "| {name} | {allocated} | {formula} | {ratio:.4} | {tail_bytes} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use kvant_kv_cache::{LayerShape, LayerTraits, Wish, decide};

    use super::*;

    fn candidate(preset: &str, dim: usize) -> Candidate {
        let layer = LayerTraits {
            shape: LayerShape { kv_heads: 3, dim },
            queries_per_key: 3,
            key_bias: false,
            window: None,
        };
        let wish = Wish { preset: preset.parse().unwrap(), protect: false, ..Wish::default() };
        Candidate { name: preset.into(), shape: decide(&[layer; 30], &wish).unwrap() }
    }

    #[test]
    fn allocated_bytes_are_those_of_the_formula() {
        for dim in [16, 64, 80, 96, 128, 144, 256] {
            let presets = ["f16", "auto", "tq8", "k8v4", "tq4", "k4v3", "tq3", "tq2"];
            let rows = occupancy(&presets.map(|preset| candidate(preset, dim))).unwrap();
            assert_eq!(rows.len(), 9);
            assert_eq!((rows[0].ratio, rows[1].ratio), (1.0, 1.0));
        }
    }

    #[test]
    fn smollm2_in_four_bits() {
        let rows = occupancy(&[candidate("tq4", 64)]).unwrap();
        // 30 layers of 3 heads of 64: codes of half a byte and two scales of two bytes.
        let bytes: Vec<f64> = rows.iter().map(|row| row.formula_bytes_per_token).collect();
        assert_eq!(bytes, [23_040.0, 30.0 * 3.0 * (64.0 + 4.0)]);
        assert_eq!(rows[1].ratio, 68.0 / 256.0);
        let text = occupancy_markdown(&rows);
        assert!(text.contains("| tq4 | 6120 | 6120 | 0.2656 | 1474560 |"), "{text}");
        // 65 tokens: two tiles of staging, two pages, one tail.
        let shape = &candidate("tq4", 64).shape;
        assert_eq!(converting_bytes(shape, 65), 2 * 64 * (23_040 + 6120) + 64 * 23_040);
    }
}

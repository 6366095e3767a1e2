//! `quality`: what a cache costs: texts read through the cache of each preset and through a 16-bit
//! one, in step, and their distributions compared at every token.

use std::fmt::Write;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kvant_engine::{Prompts, Reading, Teacher, Window};
use kvant_kv_cache::CacheShape;
use kvant_models::Decoder;
use rayon::prelude::*;
use serde::Serialize;

/// What to read.
#[derive(Clone, Debug)]
pub struct QualityLoad {
    /// Texts; the first tokens of each are its prompt.
    pub windows: Vec<Window>,
    /// Texts in one batch.
    pub batch: usize,
    /// Seed of the rotations.
    pub seed: u64,
}

/// A cache to be judged.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Name of the preset, and of the scale rule where it is not the default.
    pub name: String,
    /// Its layers.
    pub shape: CacheShape,
}

/// The 16-bit cache of the same layers, which all are measured against, and the candidates behind
/// it.
pub fn with_dense(candidates: &[Candidate]) -> Result<Vec<Candidate>> {
    let layers = &candidates.first().context("no preset is named")?.shape.layers;
    let shape = CacheShape::dense(layers.iter().map(|layer| layer.shape));
    let dense = Candidate { name: "f16".to_owned(), shape };
    Ok(std::iter::once(dense).chain(candidates.iter().cloned()).collect())
}

/// What a cache costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QualityRow {
    /// Name of the cache.
    pub name: String,
    /// Bits of one number of a full page, scales included.
    pub bits_per_element: f64,
    /// Tokens that were predicted.
    pub positions: usize,
    /// exp of the mean negative log-likelihood of the text.
    pub perplexity: f64,
    /// Perplexity over that of the 16-bit cache, minus one, in percent.
    pub perplexity_percent: f64,
    /// Kullback-Leibler divergence from the 16-bit cache's distribution, nats.
    pub kl_mean: f64,
    /// Its 99th percentile.
    pub kl_p99: f64,
    /// Its largest value.
    pub kl_max: f64,
    /// Part of the tokens at which both take the same one for the likeliest, percent.
    pub top1_percent: f64,
}

/// Sums of one candidate.
#[derive(Default)]
struct Sums {
    loss: f64,
    kl: Vec<f64>,
    same: usize,
}

/// At one token: loss of the text's next token, divergence, and whether the likeliest agree.
struct Point {
    loss: f64,
    kl: f64,
    same: bool,
}

/// Reads all windows; the first row is the 16-bit cache. `progress` gets tokens done and all.
pub fn quality(
    decoder: &Arc<Decoder>,
    candidates: &[Candidate],
    load: &QualityLoad,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<QualityRow>> {
    ensure!(load.batch > 0 && !load.windows.is_empty(), "there is nothing to read");
    let caches = with_dense(candidates)?;
    let prompts = |windows: &[Window]| windows.iter().map(|window| window.prompt).sum::<usize>();
    let tokens: usize = load.windows.iter().map(|window| window.tokens.len()).sum();
    // Prompts are computed once, what follows them by every cache.
    let all = prompts(&load.windows) + caches.len() * (tokens - prompts(&load.windows));
    let mut sums: Vec<Sums> = caches.iter().map(|_| Sums::default()).collect();
    let mut done = 0;
    for windows in load.windows.chunks(load.batch) {
        let mut teachers = Vec::new();
        {
            let prompts = Prompts::new(decoder, &caches[0].shape, windows.to_vec())?;
            for cache in &caches {
                teachers.push(Teacher::new(&prompts, &cache.shape, load.seed)?);
            }
        }
        done += prompts(windows) as u64;
        progress(done, all as u64);
        while let Some(reference) = teachers[0].read()? {
            let mut readings = vec![reference];
            for teacher in &mut teachers[1..] {
                readings.push(teacher.read()?.context("texts are read in step")?);
            }
            done += readings.iter().map(|readings| readings.len() as u64).sum::<u64>();
            progress(done, all as u64);
            for (sums, readings_of) in sums.iter_mut().zip(&readings) {
                sums.add(windows, &readings[0], readings_of);
            }
        }
    }
    let rows = sums.into_iter().zip(&caches).map(|(sums, cache)| sums.row(cache));
    let mut rows: Vec<QualityRow> = rows.collect();
    let reference = rows[0].perplexity;
    for row in &mut rows {
        row.perplexity_percent = 100.0 * (row.perplexity / reference - 1.0);
    }
    Ok(rows)
}

impl Sums {
    fn add(&mut self, windows: &[Window], reference: &[Reading], readings: &[Reading]) {
        let points = reference.par_iter().zip(readings).filter_map(|(reference, reading)| {
            let next = windows[reading.window].tokens.get(reading.position + 1)?;
            Some(point(&reference.logits, &reading.logits, *next))
        });
        for point in points.collect::<Vec<_>>() {
            self.loss += point.loss;
            self.kl.push(point.kl);
            self.same += usize::from(point.same);
        }
    }

    fn row(mut self, cache: &Candidate) -> QualityRow {
        let positions = self.kl.len();
        let count = positions.max(1) as f64;
        self.kl.sort_unstable_by(f64::total_cmp);
        let rank = (positions * 99).div_ceil(100).max(1) - 1;
        QualityRow {
            name: cache.name.clone(),
            bits_per_element: cache.shape.bits_per_element(),
            positions,
            perplexity: (self.loss / count).exp(),
            perplexity_percent: 0.0,
            kl_mean: self.kl.iter().sum::<f64>() / count,
            kl_p99: self.kl.get(rank).copied().unwrap_or_default(),
            kl_max: self.kl.last().copied().unwrap_or_default(),
            top1_percent: 100.0 * self.same as f64 / count,
        }
    }
}

/// Compares two rows of logits in f64.
fn point(reference: &[f32], logits: &[f32], next: u32) -> Point {
    let (top, normal) = normaliser(reference);
    let (own_top, own_normal) = normaliser(logits);
    let pairs = reference.iter().zip(logits);
    let kl = pairs.map(|(reference, own)| {
        let log_p = f64::from(*reference) - normal;
        let p = log_p.exp();
        if p > 0.0 { p * (log_p - (f64::from(*own) - own_normal)) } else { 0.0 }
    });
    Point {
        loss: own_normal - f64::from(logits[next as usize]),
        kl: kl.sum::<f64>().max(0.0),
        same: top == own_top,
    }
}

/// The likeliest token and log of the sum of exponentials.
pub(crate) fn normaliser(logits: &[f32]) -> (usize, f64) {
    let mut top = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[top] {
            top = index;
        }
    }
    let max = f64::from(logits[top]);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - max).exp()).sum();
    (top, max + sum.ln())
}

/// The rows as a Markdown table.
pub fn markdown(rows: &[QualityRow]) -> String {
    let mut text = String::from(
        "| cache | bits a number | perplexity | against 16 bits | KL mean | KL p99 | KL max | same \
         top-1 |\n|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let QualityRow { name, bits_per_element, perplexity, perplexity_percent, .. } = row;
        let QualityRow { kl_mean, kl_p99, kl_max, top1_percent, .. } = row;
        let _ = writeln!(
            text,
            "| {name} | {bits_per_element:.2} | {perplexity:.3} | {perplexity_percent:+.2} % | \
             {kl_mean:.5} | {kl_p99:.4} | {kl_max:.3} | {top1_percent:.2} % |"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_and_loss_are_those_of_the_formula() {
        // p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2), any shift of the logits.
        let logits = |p: [f64; 3], shift: f64| p.map(|p| (p.ln() + shift) as f32);
        let p = logits([0.5, 0.25, 0.25], 3.0);
        let q = logits([0.25, 0.25, 0.5], -7.0);
        let point = super::point(&p, &q, 2);
        assert!((point.kl - 0.25 * 2_f64.ln()).abs() < 1e-6, "{}", point.kl);
        assert!((point.loss - 2_f64.ln()).abs() < 1e-6, "{}", point.loss);
        assert!(!point.same);
        let same = super::point(&p, &p, 0);
        assert!(same.kl == 0.0 && same.same && (same.loss - 2_f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn rows_are_means_and_percentiles() {
        let kl = (1..=200).rev().map(f64::from).collect();
        let sums = Sums { loss: 200.0 * 3_f64.ln(), kl, same: 150 };
        let row = sums.row(&Candidate { name: "x".into(), shape: CacheShape::dense([]) });
        assert!((row.perplexity - 3.0).abs() < 1e-9);
        assert_eq!((row.kl_mean, row.kl_p99, row.kl_max), (100.5, 198.0, 200.0));
        assert_eq!((row.top1_percent, row.positions), (75.0, 200));
        assert!(markdown(&[row]).lines().all(|line| line.matches('|').count() == 9));
    }
}

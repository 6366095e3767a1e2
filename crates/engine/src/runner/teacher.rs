//! `Teacher`: texts read through a cache as sequences are decoded, with the logits after every
//! token: what the quality of a cache is measured by. `Prompts` are computed once for many caches:
//! a prompt attends to 16-bit staging whatever its pages will be.

use std::sync::Arc;
use std::time::Duration;

use kvant_kv_cache::{CacheShape, PAGE_TOKENS, PageStore, Row, Span, Staging, pages_for};
use kvant_models::Decoder;

use super::{ModelRunner, RunError};
use crate::heartbeat::Heartbeat;
use crate::request::{SeqId, TokenId};
use crate::sequence::REPLAY_TOKENS;
use crate::step::{DecodeRow, Place, PrefillChunk, Step};

/// Prompt tokens of a step.
const CHUNK_TOKENS: usize = 256;

/// A text of which the first tokens are a prompt and the others are decoded.
#[derive(Clone, Debug)]
pub struct Window {
    /// The text.
    pub tokens: Vec<TokenId>,
    /// Tokens of the prompt, at least one.
    pub prompt: usize,
}

/// Logits after a token that was decoded.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Which text.
    pub window: usize,
    /// The token's position.
    pub position: usize,
    /// `[vocab]`
    pub logits: Vec<f32>,
}

/// Prompts in staging, as they are when their last chunk has been computed.
#[derive(Debug)]
pub struct Prompts {
    runner: ModelRunner,
    windows: Vec<Window>,
}

/// Several texts under way, all in one batch.
#[derive(Debug)]
pub struct Teacher {
    runner: ModelRunner,
    windows: Vec<Window>,
    /// Tokens in the cache, by window.
    cached: Vec<usize>,
    /// Pages from one window to the next.
    stride: usize,
}

impl Prompts {
    /// Computes the prompts in chunks, as the server does. Of `shape` only the heads matter.
    pub fn new(
        decoder: &Arc<Decoder>,
        shape: &CacheShape,
        windows: Vec<Window>,
    ) -> Result<Self, RunError> {
        let shape = CacheShape::dense(shape.layers.iter().map(|layer| layer.shape));
        // A prompt one token longer than it is never ends, so that staging keeps it.
        let totals: Vec<usize> = windows.iter().map(|window| window.prompt + 1).collect();
        let longest = totals.iter().copied().max().map_or(0, pages_for);
        let all: usize = totals.iter().map(|total| pages_for(*total) * PAGE_TOKENS).sum();
        // Pages that nobody reads: each prompt overwrites those before it.
        let store = PageStore::new(&shape, (longest, 1), 0);
        let mut runner = ModelRunner::new(decoder.clone(), store, Staging::new(&shape, all));
        let place = Place { pages: (0..longest as u32).collect(), tail: 0 };
        for (index, (window, total)) in windows.iter().zip(totals).enumerate() {
            let prompt = &window.tokens[..window.prompt];
            chunks(&mut runner, SeqId(index as u64), (prompt, total), &place)?;
        }
        Ok(Self { runner, windows })
    }
}

/// Computes one prompt by the server's road, chunk by chunk from staging into the pages of `shape`,
/// and drops it: for what it takes while it runs.
pub fn prefill_alone(
    decoder: &Arc<Decoder>,
    shape: &CacheShape,
    prompt: &[TokenId],
) -> Result<(), RunError> {
    let pages = pages_for(prompt.len());
    let store = PageStore::new(shape, (pages, 1), 0);
    let staging = Staging::new(shape, prompt.len());
    let mut runner = ModelRunner::new(decoder.clone(), store, staging);
    let place = Place { pages: (0..pages as u32).collect(), tail: 0 };
    chunks(&mut runner, SeqId(0), (prompt, prompt.len()), &place)
}

fn chunks(
    runner: &mut ModelRunner,
    seq: SeqId,
    (prompt, total): (&[TokenId], usize),
    place: &Place,
) -> Result<(), RunError> {
    for (index, tokens) in prompt.chunks(CHUNK_TOKENS).enumerate() {
        let chunk = PrefillChunk {
            seq,
            start: (index * CHUNK_TOKENS) as u32,
            total: total as u32,
            tiles: pages_for(total) as u32,
            tokens: tokens.to_vec(),
            place: place.clone(),
            prompt_logprobs: None,
            sample: None,
        };
        forward(runner, &Step { decode: Vec::new(), prefill: vec![chunk] })?;
    }
    Ok(())
}

/// On a thread that computes, as the engine's steps.
fn forward(runner: &mut ModelRunner, step: &Step) -> Result<(), RunError> {
    let alive = Heartbeat::new(Duration::MAX);
    rayon::scope(|_| runner.forward(step, &alive))
}

impl Teacher {
    /// Brings the prompts into a cache of its own, by the only road there is.
    pub fn new(prompts: &Prompts, shape: &CacheShape, seed: u64) -> Result<Self, RunError> {
        let Prompts { runner: ModelRunner { decoder, staging, .. }, windows } = prompts;
        let longest = windows.iter().map(|window| window.tokens.len()).max().unwrap_or_default();
        let stride = pages_for(longest);
        let mut store = PageStore::new(shape, (stride * windows.len(), windows.len()), seed);
        for (index, window) in windows.iter().enumerate() {
            let Place { pages, tail } = place(index, stride);
            let row = Row { pages: &pages, tail, position: 0, tokens: 0 };
            let span = Span { start: 0, end: window.prompt, total: window.prompt };
            for layer in 0..shape.layers.len() {
                store.convert(layer, (staging, index as u64), span, row)?;
            }
        }
        let runner = ModelRunner::new(decoder.clone(), store, Staging::new(shape, 0));
        let cached = windows.iter().map(|window| window.prompt).collect();
        Ok(Self { runner, windows: windows.clone(), cached, stride })
    }

    /// Decodes the next tokens of every text, at most as many of each as attention takes at once.
    /// A token's logits are the same bits as if it were decoded alone. `None` at the end.
    pub fn read(&mut self) -> Result<Option<Vec<Reading>>, RunError> {
        let mut step = Step::default();
        let mut places = Vec::new();
        for window in 0..self.windows.len() {
            let position = self.cached[window];
            let tokens = &self.windows[window].tokens[position..];
            let of_page = PAGE_TOKENS - position % PAGE_TOKENS;
            let tokens = &tokens[..tokens.len().min(of_page).min(REPLAY_TOKENS)];
            if tokens.is_empty() {
                continue;
            }
            places.extend((position..position + tokens.len()).map(|at| (window, at)));
            self.cached[window] += tokens.len();
            step.decode.push(DecodeRow {
                seq: SeqId(window as u64),
                tokens: tokens.to_vec(),
                position: position as u32,
                place: place(window, self.stride),
                sample: None,
            });
        }
        if places.is_empty() {
            return Ok(None);
        }
        forward(&mut self.runner, &step)?;
        let rows: Vec<u32> = (0..places.len() as u32).collect();
        let readings = self.runner.logits(&rows, |index, logits| {
            let (window, position) = places[index];
            Reading { window, position, logits: logits.to_vec() }
        });
        readings.map(Some)
    }
}

/// Pages and tail of a window.
fn place(window: usize, stride: usize) -> Place {
    let first = (window * stride) as u32;
    Place { pages: (first..first + stride as u32).collect(), tail: window as u32 }
}

#[cfg(test)]
mod tests;

//! `Teacher`: texts read through a cache as sequences are decoded, with the logits after every
//! token: what the quality of a cache is measured by.

use std::sync::Arc;

use kvant_kv_cache::{CacheShape, PAGE_TOKENS, PageStore, Staging, pages_for};
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

/// Several texts under way, all in one batch.
#[derive(Debug)]
pub struct Teacher {
    runner: ModelRunner,
    windows: Vec<Window>,
    /// Tokens in the cache, by window.
    cached: Vec<usize>,
    /// Pages from one window to the next.
    stride: usize,
    alive: Heartbeat,
}

impl Teacher {
    /// Computes the prompts, each in chunks, as the server does.
    pub fn new(
        decoder: &Arc<Decoder>,
        shape: &CacheShape,
        seed: u64,
        windows: Vec<Window>,
    ) -> Result<Self, RunError> {
        let longest = windows.iter().map(|window| window.tokens.len()).max().unwrap_or_default();
        let prompt = windows.iter().map(|window| window.prompt).max().unwrap_or_default();
        let stride = pages_for(longest);
        let room = (stride * windows.len(), windows.len());
        let store = PageStore::new(shape, room, seed);
        let runner = ModelRunner::new(decoder.clone(), store, Staging::new(shape, prompt));
        let alive = Heartbeat::new(std::time::Duration::MAX);
        let cached = windows.iter().map(|window| window.prompt).collect();
        let mut teacher = Self { runner, windows, cached, stride, alive };
        for window in 0..teacher.windows.len() {
            teacher.prefill(window)?;
        }
        Ok(teacher)
    }

    fn prefill(&mut self, window: usize) -> Result<(), RunError> {
        let Window { tokens, prompt } = &self.windows[window];
        for start in (0..*prompt).step_by(CHUNK_TOKENS) {
            let end = (start + CHUNK_TOKENS).min(*prompt);
            let chunk = PrefillChunk {
                seq: SeqId(window as u64),
                start: start as u32,
                total: *prompt as u32,
                tiles: pages_for(*prompt) as u32,
                tokens: tokens[start..end].to_vec(),
                place: self.place(window),
                prompt_logprobs: None,
                sample: None,
            };
            let step = Step { decode: Vec::new(), prefill: vec![chunk] };
            self.runner.forward(&step, &self.alive)?;
        }
        Ok(())
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
                place: self.place(window),
                sample: None,
            });
        }
        if places.is_empty() {
            return Ok(None);
        }
        let hidden = self.runner.forward(&step, &self.alive)?;
        let rows: Vec<u32> = (0..places.len() as u32).collect();
        let readings = self.runner.logits(&hidden, &rows, |index, logits| {
            let (window, position) = places[index];
            Reading { window, position, logits: logits.to_vec() }
        });
        readings.map(Some)
    }

    fn place(&self, window: usize) -> Place {
        let first = (window * self.stride) as u32;
        Place { pages: (first..first + self.stride as u32).collect(), tail: window as u32 }
    }
}

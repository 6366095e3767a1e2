//! `Teacher`: texts read through a cache as sequences are decoded, with the logits after every
//! token: what the quality of a cache is measured by. `Prompts` are computed once for many caches:
//! a prompt attends to 16-bit staging whatever its pages will be.

mod seat;

use std::sync::Arc;

use kvant_kv_cache::{CacheShape, PAGE_TOKENS, pages_for};
use kvant_models::Decoder;

use super::RunError;
use crate::request::{SeqId, TokenId};
use crate::sequence::REPLAY_TOKENS;
use crate::step::{DecodeRow, Place, PrefillChunk, Step};
use seat::Seat;

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
    seat: Seat,
    windows: Vec<Window>,
    /// Pages from one prompt to the next.
    stride: usize,
}

/// Several texts under way, all in one batch.
#[derive(Debug)]
pub struct Teacher {
    seat: Seat,
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
        // Where nobody reads their pages each prompt overwrites those before it.
        let stride = if Seat::keeps_pages(decoder) { longest } else { 0 };
        let room = (longest.max(stride * windows.len()), 1);
        let mut seat = Seat::new(decoder, &shape, room, all, 0)?;
        for (index, (window, total)) in windows.iter().zip(totals).enumerate() {
            let prompt = &window.tokens[..window.prompt];
            let first = (index * stride) as u32;
            let place = Place { pages: (first..first + longest as u32).collect(), tail: 0 };
            chunks(&mut seat, SeqId(index as u64), (prompt, total), &place)?;
        }
        Ok(Self { seat, windows, stride })
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
    let mut seat = Seat::new(decoder, shape, (pages, 1), prompt.len(), 0)?;
    let place = Place { pages: (0..pages as u32).collect(), tail: 0 };
    chunks(&mut seat, SeqId(0), (prompt, prompt.len()), &place)
}

fn chunks(
    seat: &mut Seat,
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
            pooling: None,
            sample: None,
        };
        seat.forward(&Step { decode: Vec::new(), prefill: vec![chunk] })?;
    }
    Ok(())
}

impl Teacher {
    /// Brings the prompts into a cache of its own, by the only road there is.
    pub fn new(prompts: &Prompts, shape: &CacheShape, seed: u64) -> Result<Self, RunError> {
        let Prompts { seat: computed, windows, stride: from_stride } = prompts;
        let longest = windows.iter().map(|window| window.tokens.len()).max().unwrap_or_default();
        let stride = pages_for(longest);
        let room = (stride * windows.len(), windows.len());
        let mut seat = Seat::new(computed.decoder(), shape, room, 0, seed)?;
        for (index, window) in windows.iter().enumerate() {
            let places = (&place(index, *from_stride), &place(index, stride));
            seat.take(computed, (index as u64, window), places)?;
        }
        let cached = windows.iter().map(|window| window.prompt).collect();
        Ok(Self { seat, windows: windows.clone(), cached, stride })
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
                follows: None,
            });
        }
        if places.is_empty() {
            return Ok(None);
        }
        self.seat.forward(&step)?;
        let rows: Vec<u32> = (0..places.len() as u32).collect();
        let readings = self.seat.logits(&rows, |index, logits| {
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

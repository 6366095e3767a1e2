//! `Step`: the only thing that crosses from policy (scheduler) to device (runner).
//!
//! Values, not references, so that a step can be logged, replayed and asserted.

use std::ops::Range;
use std::sync::Arc;

use kvant_kv_cache::{PAGE_TOKENS, PageList, pages_for};

use crate::constraint::TokenMask;
use crate::request::{Pooling, SamplingParams, SeqId, TokenId, TokenLogprob};

/// One turn of the engine: decode rows first, then chunks of prompts. A sequence is in it at most
/// once.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// New tokens of running sequences.
    pub decode: Vec<DecodeRow>,
    /// Parts of prompts.
    pub prefill: Vec<PrefillChunk>,
}

/// A sequence in the decode batch.
#[derive(Clone, Debug)]
pub struct DecodeRow {
    /// The sequence.
    pub seq: SeqId,
    /// Tokens whose K and V this step computes, all of one page: the newest one, or, after a
    /// preemption, several that were generated before.
    pub tokens: Vec<TokenId>,
    /// The first token's position.
    pub position: u32,
    /// Where the sequence's keys and values are.
    pub place: Place,
    /// How the next token is chosen; `None` if it is known already.
    pub sample: Option<SampleRow>,
    /// `Some` in a step ahead, in all of its rows: the row's one token is the result of that number
    /// of the step under way, which the host does not know yet. In `tokens` is a 0 for it.
    pub follows: Option<u32>,
}

impl Step {
    /// The sequences for which a token is chosen, in the order of the results.
    pub(crate) fn sampled(&self) -> impl Iterator<Item = (SeqId, &SampleRow)> {
        let rows = self.decode.iter().map(|row| (row.seq, &row.sample));
        let chunks = self.prefill.iter().map(|chunk| (chunk.seq, &chunk.sample));
        rows.chain(chunks).filter_map(|(seq, sample)| Some((seq, sample.as_ref()?)))
    }

    /// Whether tokens are all that is asked for, each by plain rules: what a GPU leaves behind
    /// beside them is not read, so that the next step may overwrite it.
    pub(crate) fn is_plain(&self) -> bool {
        self.sampled().all(|(_, sample)| sample.is_plain())
            && self
                .prefill
                .iter()
                .all(|chunk| chunk.prompt_logprobs.is_none() && chunk.pooling.is_none())
    }

    /// Its tokens whose hidden states are asked for, decode rows first; `None`: all.
    pub(crate) fn asked(&self) -> Option<Vec<u32>> {
        if self.prefill.is_empty() {
            return None;
        }
        let decoded: usize = self.decode.iter().map(|row| row.tokens.len()).sum();
        let mut first = decoded;
        let mut asked: Vec<u32> = (0..decoded as u32).collect();
        for chunk in &self.prefill {
            let Range { start, end } = chunk.asked();
            asked.extend((first + start..first + end).map(|token| token as u32));
            first += chunk.tokens.len();
        }
        (asked.len() < first).then_some(asked)
    }

    /// Of a step ahead: the results of the step in front of it that are its tokens.
    pub(crate) fn followed(&self) -> Option<Vec<u32>> {
        let follows = self.decode.iter().map(|row| row.follows);
        if self.decode.is_empty() { None } else { follows.collect() }
    }
}

/// Consecutive tokens of one prompt.
#[derive(Clone, Debug)]
pub struct PrefillChunk {
    /// The sequence.
    pub seq: SeqId,
    /// Position of the first token; 0 opens the sequence's staging.
    pub start: u32,
    /// Tokens of the whole prompt, for which staging is opened; it is closed with the last of them.
    pub total: u32,
    /// Staging tiles that the prompt has.
    pub tiles: u32,
    /// The tokens.
    pub tokens: Vec<TokenId>,
    /// Where the prompt's keys and values go.
    pub place: Place,
    /// `Some`: log-probabilities of this chunk's successors are asked for.
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// `Some`: hidden states are asked for, and no token.
    pub pooling: Option<Pooling>,
    /// `Some` in the prompt's last chunk: how the first token is chosen, unless it is known
    /// already.
    pub sample: Option<SampleRow>,
}

impl PrefillChunk {
    /// Whether the prompt ends with it.
    pub fn is_last(&self) -> bool {
        self.start as usize + self.tokens.len() == self.total as usize
    }

    /// Those of its tokens whose hidden states are asked for, whatever for.
    pub fn asked(&self) -> Range<usize> {
        let count = self.tokens.len();
        match (&self.prompt_logprobs, &self.pooling, &self.sample) {
            (Some(_), ..) => 0..count,
            (None, None, Some(_)) => count - 1..count,
            (None, ..) => self.pooled(),
        }
    }

    /// Those whose hidden states are asked for themselves.
    pub fn pooled(&self) -> Range<usize> {
        let count = self.tokens.len();
        match self.pooling {
            Some(Pooling::First) if self.start == 0 => 0..1,
            Some(Pooling::Last) if self.is_last() => count - 1..count,
            Some(Pooling::Mean) => 0..count,
            None | Some(Pooling::First | Pooling::Last) => 0..0,
        }
    }

    /// Whether staging is too small for the prompt, so that its oldest pages are read packed before
    /// it is complete.
    pub fn is_early(&self) -> bool {
        pages_for(self.total as usize) > self.tiles as usize
    }
}

/// Pages that a chunk of a prompt longer than staging touches at most, in a staging of so many
/// tiles. What the chunk's first tokens read must stay beside what its last ones write.
pub(crate) fn early_span(tiles: usize) -> usize {
    (tiles / 4).max(1)
}

/// Pages up to and with its own that a token of such a prompt reads in 16 bits: the same whatever
/// the chunks, so that results do not depend on them.
pub(crate) fn early_recent(tiles: usize) -> usize {
    tiles + 1 - early_span(tiles)
}

/// Tokens of a prompt that its last one reads packed.
pub(crate) fn early_tokens(prompt: usize, tiles: usize) -> usize {
    let pages = pages_for(prompt);
    if pages > tiles { (pages - early_recent(tiles)) * PAGE_TOKENS } else { 0 }
}

/// Where a sequence's keys and values are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its pages, in order, with room for the tokens of the step.
    pub pages: PageList,
    /// Number of its tail, below the number of sequences.
    pub tail: u32,
}

/// Which prompt log-probabilities a chunk reports.
#[derive(Clone, Debug)]
pub struct PromptLogprobs {
    /// Alternatives to report beside each token.
    pub top: u32,
    /// The prompt's tokens at positions `start + 1 ..= start + tokens.len()`, cut at the prompt's
    /// end.
    pub targets: Vec<TokenId>,
}

/// Everything that choosing one token needs beside the logits. Pure data, so a preempted sequence
/// samples the same.
#[derive(Clone, Debug)]
pub struct SampleRow {
    /// The rules.
    pub params: Arc<SamplingParams>,
    /// Generated tokens so far: the counter of the sequence's generator.
    pub index: u32,
    /// Tokens that must not be chosen now (`min_tokens` not reached).
    pub forbidden: Vec<TokenId>,
    /// The prompt; read only by the repetition penalty.
    pub prompt: Arc<[TokenId]>,
    /// Tokens generated so far; filled only when a penalty is on.
    pub output: Vec<TokenId>,
    /// The only tokens that may be chosen, if the sequence has a constraint.
    pub allowed: Option<TokenMask>,
}

impl SampleRow {
    /// Whether the next token follows from logits, parameters and `index` alone, as on a GPU.
    pub(crate) fn is_plain(&self) -> bool {
        let params = &self.params;
        params.logit_bias.is_empty()
            && self.forbidden.is_empty()
            && self.allowed.is_none()
            && !params.has_penalty()
            && params.logprobs.is_none_or(|top| top == 0)
    }
}

/// What a step gave for one sequence: for every row and chunk that samples, and for every chunk
/// with prompt log-probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The sequence.
    pub seq: SeqId,
    /// Log-probabilities of prompt tokens, of a chunk that asked for them.
    pub prompt: Vec<TokenLogprob>,
    /// The chosen token: of every decode row and of every chunk with a completion, unless its
    /// logits were not finite.
    pub token: Option<TokenId>,
    /// Of the chosen token, if asked for.
    pub logprob: Option<TokenLogprob>,
    /// Of every chunk of a prompt that is pooled: the sum of the hidden states that it was asked
    /// for, `[hidden]`; empty if it was asked for none.
    pub pooled: Option<Vec<f32>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(range: Range<u32>, total: u32, pooling: Option<Pooling>) -> PrefillChunk {
        PrefillChunk {
            seq: SeqId(0),
            start: range.start,
            total,
            tiles: 8,
            tokens: vec![0; range.len()],
            place: Place::default(),
            prompt_logprobs: None,
            pooling,
            sample: None,
        }
    }

    fn row(tokens: usize) -> DecodeRow {
        DecodeRow {
            seq: SeqId(1),
            tokens: vec![0; tokens],
            position: 0,
            place: Place::default(),
            sample: None,
            follows: None,
        }
    }

    #[test]
    fn a_step_asks_for_rows_and_for_ends_of_prompts() {
        let sample = SampleRow {
            params: Arc::default(),
            index: 0,
            forbidden: Vec::new(),
            prompt: Arc::from([]),
            output: Vec::new(),
            allowed: None,
        };
        let ended = PrefillChunk { sample: Some(sample), ..chunk(5..9, 9, None) };
        let scored = PrefillChunk {
            prompt_logprobs: Some(PromptLogprobs { top: 0, targets: vec![0; 2] }),
            ..ended.clone()
        };
        let step = |decode, prefill| Step { decode, prefill };
        assert_eq!(step(vec![row(1), row(3)], vec![]).asked(), None);
        assert_eq!(step(vec![], vec![chunk(0..4, 9, None)]).asked(), Some(vec![]));
        let mixed = step(vec![row(1), row(2)], vec![chunk(0..4, 9, None), ended.clone()]);
        assert_eq!(mixed.asked(), Some(vec![0, 1, 2, 10]));
        assert_eq!(step(vec![row(1)], vec![scored.clone()]).asked(), None);
        assert_eq!(step(vec![], vec![ended, scored]).asked(), Some(vec![3, 4, 5, 6, 7]));
        let pooled = [Pooling::First, Pooling::Last, Pooling::Mean].map(Some);
        let all = |start| pooled.map(|pooling| chunk(start..start + 3, 6, pooling)).to_vec();
        assert_eq!(step(vec![], all(0)).asked(), Some(vec![0, 6, 7, 8]));
        assert_eq!(step(vec![], all(3)).asked(), Some(vec![5, 6, 7, 8]));
    }
}

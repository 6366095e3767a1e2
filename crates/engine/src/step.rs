//! `Step`: the only thing that crosses from policy (scheduler) to device (runner).
//!
//! Values, not references, so that a step can be logged, replayed and asserted.

use std::sync::Arc;

use kvant_kv_cache::PageList;

use crate::request::{SamplingParams, SeqId, TokenId, TokenLogprob};

/// One turn of the engine: decode rows first, then chunks of prompts. A sequence is in it at most
/// once.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// One new token for each running sequence.
    pub decode: Vec<DecodeRow>,
    /// Parts of prompts.
    pub prefill: Vec<PrefillChunk>,
}

/// A sequence in the decode batch.
#[derive(Clone, Debug)]
pub struct DecodeRow {
    /// The sequence.
    pub seq: SeqId,
    /// Its newest token, whose K and V this step computes.
    pub token: TokenId,
    /// The token's position; its page is `pages[position / PAGE_TOKENS]`.
    pub position: u32,
    /// The sequence's pages, in order, with room for `position`.
    pub pages: PageList,
    /// How the next token is chosen.
    pub sample: SampleRow,
}

/// Consecutive tokens of one prompt.
#[derive(Clone, Debug)]
pub struct PrefillChunk {
    /// The sequence.
    pub seq: SeqId,
    /// Position of the first token; 0 opens the sequence's staging.
    pub start: u32,
    /// Tokens of the whole prefill, for which staging is opened.
    pub total: u32,
    /// The tokens.
    pub tokens: Vec<TokenId>,
    /// `Some`: log-probabilities of this chunk's successors are asked for.
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// `Some` in the prompt's last chunk: staging is converted into these pages and a token is
    /// sampled.
    pub completion: Option<Completion>,
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

/// What ends a prefill.
#[derive(Clone, Debug)]
pub struct Completion {
    /// Pages for every token of the prompt.
    pub pages: PageList,
    /// How the first token is chosen.
    pub sample: SampleRow,
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
}

/// What a step gave for one sequence: one for every decode row, for every chunk with a completion,
/// and for every chunk with prompt log-probabilities.
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
}

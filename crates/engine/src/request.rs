//! What a client of the engine says and hears: `GenerateRequest`, `SamplingParams`, `TokenEvent`,
//! `Rejected`.
//!
//! Token ids only: no text, no JSON, no HTTP status. `engine::Handle` takes a request and gives a
//! `TokenStream`.

use std::sync::Arc;
use std::time::Duration;

use crate::constraint::Constraint;

/// A token's number in the model's vocabulary.
pub type TokenId = u32;

/// Identity of one sequence for the life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

/// How one sequence's next token is chosen from its logits. The defaults are plain sampling, as
/// OpenAI's.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Logits are divided by it; 0 means greedy.
    pub temperature: f32,
    /// Keep the k most likely tokens; `None` keeps all.
    pub top_k: Option<u32>,
    /// Keep the smallest set of tokens whose probability reaches it; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than this fraction of the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Subtracted from a logit for each earlier occurrence in the output.
    pub frequency_penalty: f32,
    /// Subtracted once from the logit of every token already in the output.
    pub presence_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1 is
    /// off.
    pub repetition_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Seed of the counter-based generator of this sequence.
    pub seed: u64,
    /// `Some(n)`: report the chosen token's log-probability and the n likeliest alternatives (n may
    /// be 0).
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Whether the tokens so far change the next one's logits.
    pub(crate) fn has_penalty(&self) -> bool {
        self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
            || self.repetition_penalty != 1.0
    }
}

/// When a sequence ends by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct StopRules {
    /// Generated tokens at most; at least 1.
    pub max_tokens: u32,
    /// End-of-text and stop tokens stay forbidden (their logits are masked) until so many tokens
    /// are generated.
    pub min_tokens: u32,
    /// The model's own end tokens; empty when the request says `ignore_eos`.
    pub eos_tokens: Vec<TokenId>,
    /// The request's stop tokens.
    pub stop_tokens: Vec<TokenId>,
}

/// Which hidden states of a prompt, after the final norm, are asked for in place of an output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's.
    First,
    /// The last token's.
    #[default]
    Last,
    /// The mean of all.
    Mean,
}

/// One prompt and how to continue it. `Handle::submit` checks the lengths against the engine's
/// limits.
#[derive(Debug)]
pub struct GenerateRequest {
    /// The prompt; not empty, every id below the vocabulary's size.
    pub prompt: Arc<[TokenId]>,
    /// How tokens are chosen.
    pub sampling: Arc<SamplingParams>,
    /// When to stop.
    pub stop: StopRules,
    /// `Some(n)`: log-probabilities of the prompt's own tokens with n alternatives come before the
    /// first token.
    pub prompt_logprobs: Option<u32>,
    /// What the output must be like; nothing has been generated under it yet.
    pub constraint: Option<Box<dyn Constraint>>,
    /// `Some`: nothing is generated; the prompt's hidden states are the answer.
    pub pooling: Option<Pooling>,
}

/// A token's log-probability under the model's distribution before temperature, with the likeliest
/// alternatives.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token that was chosen (or stands in the prompt).
    pub token: TokenId,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens, best first.
    pub top: Vec<(TokenId, f32)>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token of the model, or a stop token of the request (the token is named).
    Stop(TokenId),
    /// The constraint allows nothing after the last token.
    Complete,
    /// `max_tokens`, or the context is full.
    Length,
}

/// Counts and times of a finished sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub output_tokens: u32,
    /// How often the sequence was preempted and computed again.
    pub preemptions: u32,
    /// From submission to the first admission.
    pub queued: Duration,
    /// From the first admission to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// What a sequence's stream carries.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenEvent {
    /// Log-probabilities of prompt tokens 1.. (the first token has none); only if asked for, before
    /// any token.
    Prompt(Vec<TokenLogprob>),
    /// One generated token. A token that ends the sequence by `FinishReason::Stop` is not sent as
    /// `Token`.
    Token {
        /// The token.
        token: TokenId,
        /// Only if asked for.
        logprob: Option<TokenLogprob>,
    },
    /// The last event of a sequence that ended by itself.
    Done {
        /// Why.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
    /// The only event of a prompt whose hidden states were asked for.
    Pooled {
        /// `[hidden]`, of any length as a vector.
        hidden: Vec<f32>,
        /// What it took.
        usage: Usage,
    },
    /// The last event of a sequence whose constraint cannot go on, or that its constraint and its
    /// other rules leave no token; the text is fit for a client.
    Stuck(String),
    /// The last event of a sequence that the engine could not finish; the text is fit for a client.
    Failed(String),
}

/// Why the engine did not take a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Too many requests or tokens wait already.
    #[error(
        "the queue is full: {waiting_requests} requests with {waiting_tokens} tokens are \
         waiting; retry later"
    )]
    QueueFull {
        /// Requests waiting.
        waiting_requests: usize,
        /// Their prompt tokens.
        waiting_tokens: usize,
    },
    /// Prompt and output cannot fit the context.
    #[error(
        "this model's context is {limit} tokens, but {prompt} prompt tokens and {output} output \
         tokens were asked for"
    )]
    TooLong {
        /// Tokens of context that the engine serves.
        limit: usize,
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens asked for (at least 1).
        output: usize,
    },
    /// The server is going down.
    #[error("the server is shutting down")]
    Closing,
    /// The engine's thread is gone or stalled.
    #[error("the engine is not running")]
    Dead,
    /// The request itself is malformed (an empty prompt, a token id outside the vocabulary).
    #[error("{0}")]
    Invalid(String),
}

//! Choices of /v1/chat/completions, whole and as deltas.

use kvant_text::Tokenizer;
use serde::Serialize;

use crate::order::Reply;
use crate::sequence::{Cause, Piece, Score};
use crate::wire::finite;

/// A whole answer.
#[derive(Serialize)]
pub(crate) struct Choice {
    index: usize,
    message: Message,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<Cause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
    /// Always null; the schema wants the key.
    refusal: Option<String>,
}

/// A part of an answer.
#[derive(Serialize)]
pub(crate) struct Part {
    index: usize,
    delta: Delta,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<Cause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

#[derive(Serialize)]
struct Logprobs {
    content: Vec<Entry>,
    refusal: Option<Vec<Entry>>,
}

#[derive(Serialize)]
struct Entry {
    #[serde(flatten)]
    token: Scored,
    top_logprobs: Vec<Scored>,
}

#[derive(Serialize)]
struct Scored {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// A whole answer of all its pieces in one.
pub(crate) fn whole(
    index: usize,
    piece: Piece,
    reply: Reply,
    scores: Option<&Tokenizer>,
) -> Choice {
    let Piece { text, tokens, scores: found, end } = piece;
    let (finish_reason, stop_reason) =
        end.map_or((None, None), |end| (Some(end.reason), end.cause));
    Choice {
        index,
        message: Message { role: "assistant", content: text, refusal: None },
        logprobs: scores.map(|tokenizer| logprobs(&found, tokenizer)),
        finish_reason,
        stop_reason,
        token_ids: reply.token_ids.then_some(tokens),
    }
}

/// The parts of a piece: the role before the first, the text, and the end.
pub(crate) fn parts(
    (index, first): (usize, bool),
    piece: Piece,
    reply: Reply,
    scores: Option<&Tokenizer>,
) -> Vec<Part> {
    let part = |delta| Part {
        index,
        delta,
        logprobs: None,
        finish_reason: None,
        stop_reason: None,
        token_ids: None,
    };
    let mut parts = Vec::new();
    if first {
        let content = Some(String::new());
        parts.push(part(Delta { role: Some("assistant"), content }));
    }
    if piece.tells(reply) {
        let content = part(Delta { role: None, content: Some(piece.text) });
        let told = scores.filter(|_| !piece.scores.is_empty());
        parts.push(Part {
            logprobs: told.map(|tokenizer| logprobs(&piece.scores, tokenizer)),
            token_ids: reply.token_ids.then_some(piece.tokens),
            ..content
        });
    }
    if let Some(end) = piece.end {
        let (finish_reason, stop_reason) = (Some(end.reason), end.cause);
        parts.push(Part { finish_reason, stop_reason, ..part(Delta::default()) });
    }
    parts
}

fn logprobs(scores: &[Score], tokenizer: &Tokenizer) -> Logprobs {
    let token = |id: u32, logprob: f32| {
        let bytes = tokenizer.token_bytes(id);
        let token = String::from_utf8_lossy(&bytes).into_owned();
        Scored { token, logprob: finite(logprob), bytes }
    };
    let entry = |score: &Score| Entry {
        token: token(score.token, score.logprob.unwrap_or(0.0)),
        top_logprobs: score.top.iter().map(|(id, logprob)| token(*id, *logprob)).collect(),
    };
    Logprobs { content: scores.iter().map(entry).collect(), refusal: None }
}

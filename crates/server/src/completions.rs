//! Choices of /v1/completions; the same whole and in parts.

use kvant_text::Tokenizer;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::order::Reply;
use crate::sequence::{Cause, End, Piece, Score};
use crate::wire::finite;

/// An answer or a part of one.
#[derive(Serialize)]
pub(crate) struct Choice {
    index: usize,
    text: String,
    logprobs: Option<Lists>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<Cause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<Value>,
}

/// Lists of the same length, one entry a token.
#[derive(Default, Serialize)]
struct Lists {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
}

/// A whole answer of all its pieces in one.
pub(crate) fn whole(
    index: usize,
    piece: Piece,
    reply: Reply,
    scores: Option<&Tokenizer>,
    prompt_logprobs: Option<Value>,
) -> Choice {
    let end = piece.end.clone();
    let logprobs = scores.map(|tokenizer| logprobs(&piece.scores, tokenizer));
    Choice { prompt_logprobs, ..choice(index, piece, reply, logprobs, end) }
}

/// The parts of a piece: the text, and the end.
pub(crate) fn parts(
    index: usize,
    mut piece: Piece,
    reply: Reply,
    scores: Option<&Tokenizer>,
) -> Vec<Choice> {
    let end = piece.end.take();
    let mut parts = Vec::new();
    if piece.tells(reply) {
        let told = scores.filter(|_| !piece.scores.is_empty());
        let logprobs = told.map(|tokenizer| logprobs(&piece.scores, tokenizer));
        parts.push(choice(index, piece, reply, logprobs, None));
    }
    if end.is_some() {
        let reply = Reply { token_ids: false, ..reply };
        parts.push(choice(index, Piece::default(), reply, None, end));
    }
    parts
}

fn choice(
    index: usize,
    piece: Piece,
    reply: Reply,
    logprobs: Option<Lists>,
    end: Option<End>,
) -> Choice {
    let (finish_reason, stop_reason) =
        end.map_or((None, None), |end| (Some(end.reason), end.cause));
    let token_ids = reply.token_ids.then_some(piece.tokens);
    let text = piece.parts.content();
    let prompt_logprobs = None;
    Choice { index, text, logprobs, finish_reason, stop_reason, token_ids, prompt_logprobs }
}

fn logprobs(scores: &[Score], tokenizer: &Tokenizer) -> Lists {
    let mut lists = Lists::default();
    for score in scores {
        lists.tokens.push(name(tokenizer, score.token));
        lists.token_logprobs.push(score.logprob.map(finite));
        lists.top_logprobs.push(score.logprob.and_then(|own| top(score, own, tokenizer)));
        lists.text_offset.push(score.offset);
    }
    lists
}

/// The likeliest tokens and the chosen one; nothing if none were asked for.
fn top(score: &Score, own: f32, tokenizer: &Tokenizer) -> Option<Map<String, Value>> {
    if score.top.is_empty() {
        return None;
    }
    let mut map = Map::new();
    for (token, logprob) in score.top.iter().chain([&(score.token, own)]) {
        // Two tokens may have the same text; the likelier one stays.
        map.entry(name(tokenizer, *token)).or_insert_with(|| finite(*logprob).into());
    }
    Some(map)
}

/// A token's text; bytes that are no text are spelled as OpenAI spells them, so that they differ.
fn name(tokenizer: &Tokenizer, token: u32) -> String {
    use std::fmt::Write;
    String::from_utf8(tokenizer.token_bytes(token)).unwrap_or_else(|error| {
        error.as_bytes().iter().fold("bytes:".to_owned(), |mut name, byte| {
            let _ = write!(name, "\\x{byte:02x}");
            name
        })
    })
}

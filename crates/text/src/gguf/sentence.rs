//! SentencePiece vocabularies (`llama`): pieces with scores, spaces as U+2581, bytes without a
//! piece as `<0x0A>`. Merges are found from the scores, as the transformers library does.

use std::cmp::Reverse;
use std::collections::HashMap;

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Merges};

use super::{GgufVocab, Plan, UNKNOWN, bpe, ids, part, token_type, wrong};
use crate::error::Error;
use crate::pieces::Spelling;

/// Longest piece, bytes: all its splits are tried. The longest known have 93.
pub(super) const PIECE_BYTES: usize = 1024;

pub(super) fn plan(vocab: &GgufVocab) -> Result<Plan, Error> {
    if vocab.scores.is_empty() {
        return wrong("a llama vocabulary needs scores; convert the model again");
    }
    if let Some(id) = vocab.scores.iter().position(|score| score.is_nan()) {
        return wrong(format!("the score of token {id} is not a number; the file is damaged"));
    }
    if let Some(id) = vocab.tokens.iter().position(|text| text.len() > PIECE_BYTES) {
        return wrong(format!("token {id} has more than {PIECE_BYTES} bytes"));
    }
    let prefix = vocab.add_space_prefix.unwrap_or(true);
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let normalizer = if prefix {
        // To every stretch between special tokens, as SentencePiece's first models were used.
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        json!({"type": "Sequence", "normalizers": [prepend, spaces]})
    } else {
        spaces
    };
    Ok(Plan {
        model: model(vocab)?,
        normalizer: part(normalizer)?,
        words: part(Value::Null)?,
        spelling: Spelling::Sentence { drops_space: prefix },
        adds_bos: true,
    })
}

fn model(vocab: &GgufVocab) -> Result<BPE, Error> {
    let unknown = (0..vocab.tokens.len()).find(|id| token_type(vocab, *id) == UNKNOWN);
    let unknown = unknown.map(|id| vocab.tokens[id].clone());
    bpe(vocab, merges(vocab), |builder| {
        let builder = builder.byte_fallback(true).fuse_unk(true);
        match unknown {
            Some(text) => builder.unk_token(text),
            None => builder,
        }
    })
}

/// All pairs of pieces that make a piece, the highest score first; equal ones by the longer left
/// part, then by id, for `generate_merges` of transformers orders them so.
fn merges(vocab: &GgufVocab) -> Merges {
    let ids = ids(vocab);
    let mut found: Vec<Pair<'_>> = Vec::new();
    for (text, score) in vocab.tokens.iter().zip(&vocab.scores) {
        let first = found.len();
        found.extend(pairs(text, *score, &ids));
        found[first..].sort_by_key(|pair| (pair.left_id, pair.right_id));
    }
    // Stable, so the order by id is kept among equals.
    found.sort_by(|a, b| {
        let lengths = |pair: &Pair<'_>| Reverse((pair.left_chars, pair.right_chars));
        b.score.total_cmp(&a.score).then_with(|| lengths(a).cmp(&lengths(b)))
    });
    found.into_iter().map(|pair| (pair.left.to_owned(), pair.right.to_owned())).collect()
}

struct Pair<'a> {
    left: &'a str,
    right: &'a str,
    left_id: u32,
    right_id: u32,
    left_chars: usize,
    right_chars: usize,
    score: f32,
}

/// The ways to make a piece of two.
fn pairs<'a>(
    text: &'a str,
    score: f32,
    ids: &HashMap<&str, u32>,
) -> impl Iterator<Item = Pair<'a>> {
    let chars = text.chars().count();
    let splits = text.char_indices().enumerate().skip(1);
    // -0 and 0 are equal scores.
    let score = score + 0.0;
    splits.filter_map(move |(left_chars, (at, _))| {
        let (left, right) = text.split_at(at);
        let (left_id, right_id) = (*ids.get(left)?, *ids.get(right)?);
        let right_chars = chars - left_chars;
        Some(Pair { left, right, left_id, right_id, left_chars, right_chars, score })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_are_in_the_order_of_transformers() {
        let tokens = ["a", "b", "c", "ab", "bc", "abc", "cab", "abcab"].map(str::to_owned);
        let scores = vec![0.0, 0.0, 0.0, -0.0, 0.0, 0.0, 1.0, 0.0];
        let vocab = GgufVocab { tokens: tokens.to_vec(), scores, ..GgufVocab::default() };
        let found: Vec<String> =
            merges(&vocab).into_iter().map(|(left, right)| format!("{left} {right}")).collect();
        // From its generate_merges.
        assert_eq!(found, ["c ab", "abc ab", "ab cab", "ab c", "a bc", "a b", "b c"]);
    }
}

//! `prompt_logprobs` as vLLM tells them: of each token of the prompt, it and the likeliest others
//! by token id; null for the first, which nothing comes before.

use kvant_engine::TokenLogprob;
use kvant_text::Tokenizer;
use serde_json::{Map, Value, json};

use crate::sequence::Piece;
use crate::wire::finite;

/// Of the piece of the first answer to a prompt.
pub(crate) fn json(piece: &Piece, top: u32, tokenizer: &Tokenizer) -> Value {
    let entries = piece.prompt.iter().map(|score| entry(score, top, tokenizer));
    std::iter::once(Value::Null).chain(entries).collect()
}

fn entry(score: &TokenLogprob, top: u32, tokenizer: &Tokenizer) -> Value {
    let one = |token: u32, logprob: f32, rank: Option<usize>| {
        let text = String::from_utf8_lossy(&tokenizer.token_bytes(token)).into_owned();
        json!({"logprob": finite(logprob), "rank": rank, "decoded_token": text})
    };
    let own = score.top.iter().position(|(token, _)| *token == score.token);
    let mut map = Map::new();
    // Of a token that is not among the likeliest the rank is not known.
    let rank = own.map(|index| index + 1);
    map.insert(score.token.to_string(), one(score.token, score.logprob, rank));
    for (index, (token, logprob)) in score.top.iter().take(top as usize).enumerate() {
        map.entry(token.to_string()).or_insert_with(|| one(*token, *logprob, Some(index + 1)));
    }
    Value::Object(map)
}

//! /v1/embeddings: the hidden states of prompts, pooled as the model says, of length one.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use kvant_engine::{GenerateRequest, Pooling, SamplingParams, StopRules};
use serde_json::{Value, json};

use crate::body;
use crate::error::ApiError;
use crate::json::{Fields, token_id, wrong_type};
use crate::sequence::{Rules, Sequence};
use crate::sequences::Sequences;
use crate::served::Served;
use crate::stopwatch::Stopwatch;
use crate::unknown::Unknown;

/// Inputs of one request at most; OpenAI's.
const INPUTS_MAX: usize = 2048;

/// How the model's embeddings are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmbeddingCard {
    /// As the model declares it; the last token's where it declares nothing.
    pub pooling: Pooling,
    /// Numbers of an embedding.
    pub width: usize,
    /// Shorter lengths that it was trained to be cut to.
    pub shorter: Shorter,
}

/// To which lengths an embedding may be cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Shorter {
    /// None: the numbers are of use only together.
    #[default]
    None,
    /// Any.
    Any,
    /// These.
    Of(Vec<usize>),
}

/// What is to be embedded, and how it is told.
#[derive(Debug)]
struct Inputs {
    prompts: Vec<Arc<[u32]>>,
    width: usize,
    base64: bool,
    unknown: Unknown,
}

/// POST /v1/embeddings.
pub(crate) async fn create(
    State(served): State<Arc<Served>>,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let body = body::read(request, &served.app.options).await?;
    served.check_open()?;
    let inputs = served.work(move |served| read(served, &body)).await?;
    let embeddings = pool(&served, &inputs, arrived).await?;
    let data = embeddings.into_iter().enumerate().map(|(index, hidden)| {
        let embedding = told(&unit(hidden, inputs.width), inputs.base64);
        json!({"object": "embedding", "index": index, "embedding": embedding})
    });
    let data: Vec<Value> = data.collect();
    let tokens: usize = inputs.prompts.iter().map(|prompt| prompt.len()).sum();
    let answer = json!({
        "object": "list",
        "data": data,
        "model": served.app.model.id,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    });
    Ok((inputs.unknown, Json(answer)).into_response())
}

/// The pooled hidden state of every prompt, in the times that the request has.
async fn pool(
    served: &Served,
    inputs: &Inputs,
    arrived: Instant,
) -> Result<Vec<Vec<f32>>, ApiError> {
    let rules = Arc::new(Rules::of_pooling(served.app.tokenizer.clone()));
    let mut list = Vec::new();
    for prompt in &inputs.prompts {
        let stream = served.app.handle.submit(pooled(served, prompt.clone()));
        let stream = stream.map_err(|rejected| served.rejected(rejected))?;
        let (metrics, turn) = (served.metrics.clone(), stream.turn());
        let watch = Stopwatch::new(metrics, arrived, prompt.len(), turn);
        list.push(Sequence::new(stream, rules.clone(), None, watch));
    }
    let mut sequences = Sequences::new(list);
    let mut embeddings = vec![Vec::new(); sequences.len()];
    while let Some(next) = sequences.next().await {
        let (index, piece) = next.map_err(|error| served.public(error))?;
        embeddings[index] = piece.pooled;
    }
    Ok(embeddings)
}

fn read(served: &Served, body: &[u8]) -> Result<Inputs, ApiError> {
    let mut fields = Fields::parse(body)?;
    served.check_model(&mut fields)?;
    fields.text("user")?;
    let base64 = match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let message = format!("encoding_format is {other:?}, it must be float or base64");
            return Err(ApiError::value("encoding_format", message));
        }
    };
    let card = &served.app.model.embedding;
    let width = match fields.take("dimensions") {
        None => card.width,
        Some(value) => dimensions(card, &value)?,
    };
    let input = fields.take("input").ok_or_else(|| ApiError::missing("input"))?;
    let prompts = separate(input)?.into_iter().map(|input| prompt(served, input));
    let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
    check_queue(served, &prompts)?;
    let unknown = fields.rest(served.app.options.strict)?;
    Ok(Inputs { prompts, width, base64, unknown })
}

fn dimensions(card: &EmbeddingCard, value: &Value) -> Result<usize, ApiError> {
    let wanted = value.as_u64().filter(|wanted| *wanted > 0);
    let wanted = wanted.ok_or_else(|| wrong_type("dimensions", value, "a positive integer"))?;
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let sound = match &card.shorter {
        _ if wanted == card.width => true,
        Shorter::None => false,
        Shorter::Any => wanted < card.width,
        Shorter::Of(lengths) => lengths.contains(&wanted),
    };
    if sound {
        return Ok(wanted);
    }
    let lengths = match &card.shorter {
        Shorter::None => format!("this model's embeddings have {} and are not cut", card.width),
        Shorter::Any => format!("this model's embeddings have at most {}", card.width),
        Shorter::Of(lengths) => format!("this model's have {} or one of {lengths:?}", card.width),
    };
    Err(ApiError::value("dimensions", format!("dimensions is {wanted}, {lengths}")))
}

/// The single inputs: a text, a list of texts, token ids, or a list of lists of them.
fn separate(input: Value) -> Result<Vec<Value>, ApiError> {
    let list = match input {
        Value::Array(list) if list.is_empty() => {
            return Err(ApiError::value("input", "input is an empty array"));
        }
        Value::Array(list) if list[0].is_number() => vec![Value::Array(list)],
        Value::Array(list) => list,
        one => vec![one],
    };
    if list.len() > INPUTS_MAX {
        let message = format!("input has {} entries, at most {INPUTS_MAX} are taken", list.len());
        return Err(ApiError::value("input", message));
    }
    Ok(list)
}

fn prompt(served: &Served, input: Value) -> Result<Arc<[u32]>, ApiError> {
    let tokens: Arc<[u32]> = match input {
        Value::String(text) => served.encode("input", &text, true)?,
        Value::Array(list) if !list.is_empty() => {
            let vocab = served.app.handle.limits().vocab;
            let tokens = list.iter().map(|id| token_id("input", id, vocab));
            tokens.collect::<Result<Vec<u32>, _>>()?.into()
        }
        Value::Array(_) => {
            return Err(ApiError::value("input", "input has an empty array of tokens"));
        }
        other => {
            let wanted = "a string, an array of strings, of token ids, or of arrays of token ids";
            return Err(wrong_type("input", &other, wanted));
        }
    };
    let limit = served.app.handle.limits().context_tokens;
    if tokens.len() > limit {
        return Err(ApiError::too_long(limit, tokens.len(), 0).of("input"));
    }
    Ok(tokens)
}

/// Refuses what would find the queue too full at any time.
fn check_queue(served: &Served, prompts: &[Arc<[u32]>]) -> Result<(), ApiError> {
    let limits = served.app.handle.limits();
    let tokens: usize = prompts.iter().map(|prompt| prompt.len()).sum();
    if prompts.len() > limits.waiting_requests {
        let most = limits.waiting_requests;
        let message = format!("input has {} entries, this server queues {most}", prompts.len());
        return Err(ApiError::value("input", message));
    }
    if prompts.len() > 1 && tokens > limits.waiting_tokens {
        let most = limits.waiting_tokens;
        let message = format!("input has {tokens} tokens, this server queues {most}");
        return Err(ApiError::value("input", message));
    }
    Ok(())
}

fn pooled(served: &Served, prompt: Arc<[u32]>) -> GenerateRequest {
    GenerateRequest {
        prompt,
        sampling: Arc::new(SamplingParams::default()),
        stop: StopRules {
            max_tokens: 0,
            min_tokens: 0,
            eos_tokens: Vec::new(),
            stop_tokens: Vec::new(),
        },
        prompt_logprobs: None,
        constraint: None,
        pooling: Some(served.app.model.embedding.pooling),
    }
}

/// The first numbers, of length one together.
fn unit(mut hidden: Vec<f32>, width: usize) -> Vec<f32> {
    hidden.truncate(width);
    let square: f64 = hidden.iter().map(|one| f64::from(*one).powi(2)).sum();
    let length = square.sqrt().max(f64::MIN_POSITIVE);
    hidden.iter().map(|one| (f64::from(*one) / length) as f32).collect()
}

fn told(embedding: &[f32], base64: bool) -> Value {
    if base64 {
        let bytes: Vec<u8> = embedding.iter().flat_map(|one| one.to_le_bytes()).collect();
        return encode(&bytes).into();
    }
    embedding.iter().map(|one| Value::from(*one)).collect()
}

/// Base64 with padding.
fn encode(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = (0..3)
            .fold(0_u32, |word, at| word << 8 | u32::from(chunk.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= chunk.len() { letter as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (bytes, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(encode(bytes.as_bytes()), expected);
        }
        assert_eq!(told(&[1.0, -2.5], true), "AACAPwAAIMA=");
    }

    #[test]
    fn embeddings_are_cut_only_where_that_is_sound() {
        let card = |shorter| EmbeddingCard { pooling: Pooling::Last, width: 8, shorter };
        for (shorter, wanted, sound) in [
            (Shorter::None, 8, true),
            (Shorter::None, 4, false),
            (Shorter::Any, 4, true),
            (Shorter::Any, 8, true),
            (Shorter::Any, 9, false),
            (Shorter::Of(vec![4]), 4, true),
            (Shorter::Of(vec![4]), 5, false),
        ] {
            let found = dimensions(&card(shorter.clone()), &json!(wanted));
            assert_eq!(found.is_ok(), sound, "{shorter:?} {wanted}");
        }
        for wrong in [json!(0), json!(-1), json!(1.5), json!("4")] {
            let error = dimensions(&card(Shorter::Any), &wrong).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("dimensions"));
        }
    }

    #[test]
    fn what_is_cut_has_length_one() {
        assert_eq!(unit(vec![3.0, 4.0, 9.0], 2), [0.6, 0.8]);
        assert_eq!(unit(vec![0.0, 0.0], 2), [0.0, 0.0]);
    }
}

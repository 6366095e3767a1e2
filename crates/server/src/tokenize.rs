//! /tokenize and /detokenize, in vLLM's shapes.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde::Serialize;
use serde_json::{Value, json};

use crate::body;
use crate::error::ApiError;
use crate::json::{Fields, token_id};
use crate::render;
use crate::served::Served;

/// A text as tokens.
#[derive(Serialize)]
pub(crate) struct Tokenized {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

/// POST /tokenize: a prompt, or messages.
pub(crate) async fn tokenize(
    State(served): State<Arc<Served>>,
    request: Request,
) -> Result<Json<Tokenized>, ApiError> {
    let body = body::read(request, &served.app.options).await?;
    served.work(move |served| tokens(served, &body)).await.map(Json)
}

fn tokens(served: &Served, body: &[u8]) -> Result<Tokenized, ApiError> {
    let mut fields = Fields::parse(body)?;
    served.check_model(&mut fields)?;
    let strings = fields.flag("return_token_strs", false)?;
    let tokens = match fields.text("prompt")? {
        Some(text) => {
            let special = fields.flag("add_special_tokens", true)?;
            let tokens = served.app.tokenizer.encode(&text, special);
            tokens.map_err(|error| ApiError::value("prompt", error.to_string()))?
        }
        None if fields.has("messages") => render::chat(served, &mut fields)?.prompt.tokens.to_vec(),
        None => return Err(ApiError::missing("prompt")),
    };
    let name = |token: &u32| {
        String::from_utf8_lossy(&served.app.tokenizer.token_bytes(*token)).into_owned()
    };
    Ok(Tokenized {
        count: tokens.len(),
        max_model_len: served.app.model.max_model_len,
        token_strs: strings.then(|| tokens.iter().map(name).collect()),
        tokens,
    })
}

/// POST /detokenize: tokens.
pub(crate) async fn detokenize(
    State(served): State<Arc<Served>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let body = body::read(request, &served.app.options).await?;
    served.work(move |served| text(served, &body)).await.map(Json)
}

fn text(served: &Served, body: &[u8]) -> Result<Value, ApiError> {
    let mut fields = Fields::parse(body)?;
    served.check_model(&mut fields)?;
    let list = fields.list("tokens")?.ok_or_else(|| ApiError::missing("tokens"))?;
    let vocab = served.app.tokenizer.vocab_len();
    let tokens = list.iter().map(|token| token_id("tokens", token, vocab));
    let tokens = tokens.collect::<Result<Vec<u32>, _>>()?;
    Ok(json!({"prompt": served.app.tokenizer.decode(&tokens, false)}))
}

//! /v1/messages and /v1/messages/count_tokens: Anthropic's dialect, whole and streamed.

mod request;
mod told;

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::error::ApiError;
use crate::json::Fields;
use crate::served::Served;
use crate::{body, converse, render};
use told::Told;

/// POST /v1/messages. The header `anthropic-version` is taken whatever it says.
pub(crate) async fn create(
    State(served): State<Arc<Served>>,
    request: Request,
) -> Result<Response, ApiError> {
    converse::answer::<Told>(served, request).await
}

/// POST /`v1/messages/count_tokens`: the same request without an answer.
pub(crate) async fn count(
    State(served): State<Arc<Served>>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = body::read(request, &served.app.options).await?;
    let read = move |served: &Served| {
        let own = |error: ApiError| error.renamed(&request::NAMES);
        let mut fields = request::read(Fields::parse(&body)?, false)?;
        served.check_model(&mut fields)?;
        let prompt = render::chat(served, &mut fields).map_err(own)?.prompt;
        Ok((prompt.tokens.len(), fields.rest(served.app.options.strict)?))
    };
    let (tokens, unknown) = served.work(read).await?;
    Ok((unknown, Json(json!({"input_tokens": tokens}))).into_response())
}

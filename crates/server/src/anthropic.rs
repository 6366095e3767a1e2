//! /v1/messages and /v1/messages/count_tokens: Anthropic's dialect, whole and streamed.

mod request;
mod told;

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::json::Fields;
use crate::order::{Dialect, Order};
use crate::served::Served;
use crate::sse::{self, Events};
use crate::wire::Head;
use crate::{body, generate, guide, render, submit};
use told::Told;

/// A refusal in this dialect's shape.
#[derive(Debug)]
pub(crate) struct Refusal(ApiError);

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error.renamed(&request::NAMES))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = body_of(&self.0);
        // With the headers that the refusal has anyway.
        let mut response = self.0.into_response();
        let json = Json(body).into_response();
        *response.body_mut() = json.into_body();
        response.headers_mut().remove(axum::http::header::CONTENT_LENGTH);
        response
    }
}

/// The body of a refusal, and of the event that ends a stream.
fn body_of(error: &ApiError) -> Value {
    let kind = match error.status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": error.message()}})
}

/// POST /v1/messages. The header `anthropic-version` is taken whatever it says.
pub(crate) async fn create(
    State(served): State<Arc<Served>>,
    request: Request,
) -> Result<Response, Refusal> {
    let arrived = Instant::now();
    let body = body::read(request, &served.app.options).await?;
    served.check_open()?;
    let read = move |served: &Served| {
        let (fields, stream) = request::read(Fields::parse(&body)?, true)?;
        Ok((Order::of(served, Dialect::Chat, fields)?, stream))
    };
    let (order, stream) = served.work(read).await?;
    let grammar = guide::compile(&served, order.guide.as_ref()).await?;
    let mut sequences = submit::submit(&served, &order, grammar.as_deref(), arrived)?;
    let unknown = order.unknown.clone();
    let head = Head::new(order, &served.app.model.id, served.app.handle.limits());
    let told = Told::new(head);
    if stream {
        let events = Events::begin(served, Box::new(told), sequences).await?;
        return Ok((unknown, sse::response(events)).into_response());
    }
    let piece = generate::first(&served, &mut sequences).await?;
    Ok((unknown, Json(told.whole(piece, &sequences))).into_response())
}

/// POST /`v1/messages/count_tokens`: the same request without an answer.
pub(crate) async fn count(
    State(served): State<Arc<Served>>,
    request: Request,
) -> Result<Response, Refusal> {
    let body = body::read(request, &served.app.options).await?;
    let read = move |served: &Served| {
        let (mut fields, _) = request::read(Fields::parse(&body)?, false)?;
        served.check_model(&mut fields)?;
        let prompt = render::chat(served, &mut fields)?.prompt;
        Ok((prompt.tokens.len(), fields.rest(served.app.options.strict)?))
    };
    let (tokens, unknown) = served.work(read).await?;
    Ok((unknown, Json(json!({"input_tokens": tokens}))).into_response())
}

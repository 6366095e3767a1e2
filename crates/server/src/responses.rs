//! /v1/responses: create, whole and streamed. Nothing is kept, so there is nothing to go on from.

mod items;
mod request;
mod told;

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;
use crate::json::Fields;
use crate::order::{Dialect, Order};
use crate::served::Served;
use crate::sse::{self, Events};
use crate::wire::Head;
use crate::{body, generate, guide, submit};
use told::Told;

/// POST /v1/responses.
pub(crate) async fn create(
    State(served): State<Arc<Served>>,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let body = body::read(request, &served.app.options).await?;
    served.check_open()?;
    let read = move |served: &Served| {
        let (fields, asked) = request::read(Fields::parse(&body)?)?;
        let order = Order::of(served, Dialect::Chat, fields);
        Ok((order.map_err(|error| error.renamed(&request::NAMES))?, asked))
    };
    let (order, asked) = served.work(read).await?;
    let grammar = guide::compile(&served, order.guide.as_ref()).await;
    let grammar = grammar.map_err(|error| error.renamed(&request::NAMES))?;
    let sequences = submit::submit(&served, &order, grammar.as_deref(), arrived);
    let mut sequences = sequences.map_err(|error| error.renamed(&request::NAMES))?;
    let unknown = order.unknown.clone();
    let head = Head::new(order, &served.app.model.id, served.app.handle.limits());
    let stream = asked.stream;
    let told = Told::new(head, asked);
    if stream {
        let events = Events::begin(served, Box::new(told), sequences).await?;
        return Ok((unknown, sse::response(events)).into_response());
    }
    let piece = generate::first(&served, &mut sequences).await?;
    Ok((unknown, Json(told.whole(piece, &sequences))).into_response())
}

//! What dialects that are chat under other names share: from the body to the answer.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::error::ApiError;
use crate::json::Fields;
use crate::order::{Dialect, Order};
use crate::sequence::Piece;
use crate::sequences::Sequences;
use crate::served::Served;
use crate::sse::{self, Events, Tell};
use crate::wire::Head;
use crate::{body, generate, guide, submit};

/// A dialect: its fields as those of chat, and its answer.
pub(crate) trait Converse: Tell + Sized + 'static {
    /// What its answer says of its request.
    type Asked: Send + 'static;

    /// What chat calls a field, and what it is called here.
    const NAMES: &'static [(&'static str, &'static str)];

    /// The fields of chat. What nobody knows stays for chat to report.
    fn read(fields: Fields) -> Result<(Fields, Self::Asked), ApiError>;

    fn new(head: Head, asked: Self::Asked) -> Self;

    /// The whole answer.
    fn whole(self, piece: Piece, sequences: &Sequences) -> Value;
}

/// Answers a request, whole or in events. What is refused as chat has the dialect's names.
pub(crate) async fn answer<T: Converse>(
    served: Arc<Served>,
    request: Request,
) -> Result<Response, ApiError> {
    let own = |error: ApiError| error.renamed(T::NAMES);
    let arrived = Instant::now();
    let body = body::read(request, &served.app.options).await?;
    served.check_open()?;
    let read = move |served: &Served| {
        let (fields, asked) = T::read(Fields::parse(&body)?)?;
        Ok((Order::of(served, Dialect::Chat, fields).map_err(own)?, asked))
    };
    let (order, asked) = served.work(read).await?;
    let grammar = guide::compile(&served, order.guide.as_ref()).await.map_err(own)?;
    let sequences = submit::submit(&served, &order, grammar.as_deref(), arrived);
    let mut sequences = sequences.map_err(own)?;
    let unknown = order.unknown.clone();
    let head = Head::new(order, &served.app.model.id, served.app.handle.limits());
    let streamed = head.reply.stream.is_some();
    let told = T::new(head, asked);
    if streamed {
        let events = Events::begin(served, Box::new(told), sequences).await?;
        return Ok((unknown, sse::response(events)).into_response());
    }
    let piece = generate::first(&served, &mut sequences).await?;
    Ok((unknown, Json(told.whole(piece, &sequences))).into_response())
}

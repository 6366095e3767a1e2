//! /v1/chat/completions and /v1/completions: from the body to the answer.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;
use crate::order::{Dialect, Order};
use crate::sequence::{Piece, Sequences};
use crate::served::Served;
use crate::sse::{self, Events};
use crate::wire::{Head, Tally};
use crate::{body, chat, completions, submit};

/// POST /v1/chat/completions.
pub(crate) async fn chat(
    State(served): State<Arc<Served>>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(served, Dialect::Chat, request).await
}

/// POST /v1/completions.
pub(crate) async fn text(
    State(served): State<Arc<Served>>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(served, Dialect::Text, request).await
}

/// Dropping the future, or the body that it gives, cancels what is under way.
async fn answer(
    served: Arc<Served>,
    dialect: Dialect,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let body = body::read(request, &served.app.options).await?;
    served.check_open()?;
    let order = served.work(move |served| Order::read(served, dialect, &body)).await?;
    let sequences = submit::submit(&served, &order, arrived)?;
    let scores = order.sampling.params.logprobs.is_some();
    let head = Head::new(order, &served.app.model.id, served.app.handle.limits());
    if head.reply.stream.is_some() {
        return Ok(sse::response(Events::new(served, head, sequences, scores)));
    }
    let json = collect(&served, &head, sequences, scores).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

async fn collect(
    served: &Served,
    head: &Head,
    mut sequences: Sequences,
    scores: bool,
) -> Result<String, ApiError> {
    let mut pieces: Vec<Piece> = (0..sequences.len()).map(|_| Piece::default()).collect();
    while let Some(next) = sequences.next().await {
        let (index, piece) = next.map_err(|error| served.public(error))?;
        pieces[index].extend(piece);
    }
    let usage = Tally::Of(head.usage(sequences.output_tokens()));
    let tokenizer = scores.then_some(&*served.app.tokenizer);
    let pieces = pieces.into_iter().enumerate();
    let reply = head.reply;
    Ok(match head.dialect {
        Dialect::Chat => {
            let choice = |(index, piece)| chat::whole(index, piece, reply, tokenizer);
            head.json(pieces.map(choice).collect(), usage, true)
        }
        Dialect::Text => {
            let choice = |(index, piece)| completions::whole(index, piece, reply, tokenizer);
            head.json(pieces.map(choice).collect(), usage, true)
        }
    })
}

//! /v1/chat/completions and /v1/completions: from the body to the answer.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::deltas::Deltas;
use crate::error::ApiError;
use crate::order::{Dialect, Order};
use crate::sampling::Sampling;
use crate::sequence::Piece;
use crate::sequences::Sequences;
use crate::served::Served;
use crate::sse::{self, Events};
use crate::wire::Head;
use crate::{body, chat, completions, guide, likeliest, prompt_scores, submit};

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
    let grammar = guide::compile(&served, order.guide.as_ref()).await?;
    let sequences = submit::submit(&served, &order, grammar.as_deref(), arrived)?;
    let unknown = order.unknown.clone();
    let head = Head::new(order, &served.app.model.id, served.app.handle.limits());
    if head.reply.stream.is_some() {
        let words = served.app.tokenizer.clone();
        let told = Box::new(Deltas::new(head, words, sequences.len()));
        let events = Events::begin(served, told, sequences).await?;
        return Ok((unknown, sse::response(events)).into_response());
    }
    let json = collect(&served, &head, sequences).await?;
    Ok((unknown, [(header::CONTENT_TYPE, "application/json")], json).into_response())
}

/// All of the first sequence.
pub(crate) async fn first(served: &Served, sequences: &mut Sequences) -> Result<Piece, ApiError> {
    let mut whole = Piece::default();
    while let Some(next) = sequences.next().await {
        let (_, piece) = next.map_err(|error| served.public(error))?;
        whole.extend(piece);
    }
    Ok(whole)
}

async fn collect(
    served: &Served,
    head: &Head,
    mut sequences: Sequences,
) -> Result<String, ApiError> {
    let mut pieces: Vec<Piece> = (0..sequences.len()).map(|_| Piece::default()).collect();
    while let Some(next) = sequences.next().await {
        let (index, piece) = next.map_err(|error| served.public(error))?;
        pieces[index].extend(piece);
    }
    let usage = head.usage(&sequences);
    let Sampling { n, prompt_logprobs, .. } = head.sampling;
    let words = &*served.app.tokenizer;
    let tokenizer = head.sampling.scores.then_some(words);
    let pieces = likeliest::told(pieces, &head.sampling);
    // The prompt's are with the first answer to it.
    let of_prompt = |index: usize| {
        let asked = prompt_logprobs.filter(|_| index.is_multiple_of(n))?;
        Some(prompt_scores::json(&pieces[index], asked, words))
    };
    let mut prompts: Vec<_> = (0..pieces.len()).map(of_prompt).collect();
    let pieces = pieces.into_iter().enumerate();
    let reply = head.reply;
    Ok(match head.dialect {
        Dialect::Chat => {
            let of_prompt = prompts[0].take();
            let choice = |(index, piece)| chat::whole(index, piece, reply, tokenizer);
            head.whole(pieces.map(choice).collect(), usage, of_prompt)
        }
        Dialect::Text => {
            let choices = pieces.zip(prompts).map(|((index, piece), of_prompt)| {
                completions::whole(index, piece, reply, tokenizer, of_prompt)
            });
            head.whole(choices.collect(), usage, None)
        }
    })
}

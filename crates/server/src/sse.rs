//! `Events`: the body of a streamed answer.
//!
//! It owns the sequences, so that they are cancelled when the connection drops the body.

use std::convert::Infallible;
use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep};

use crate::order::{Dialect, StreamUsage};
use crate::sequence::{Piece, Sequences};
use crate::served::Served;
use crate::wire::{Head, Tally};
use crate::{chat, completions};

/// A streamed answer.
#[derive(Debug)]
pub(crate) struct Events {
    served: Arc<Served>,
    head: Head,
    /// `None` after the last event.
    sequences: Option<Sequences>,
    scores: bool,
    /// By choice: whether its first chunk is out.
    begun: Vec<bool>,
    /// Whether any chunk is out.
    first_out: bool,
    silence: Pin<Box<Sleep>>,
}

/// The answer to the request, with the headers that keep proxies from holding it back.
pub(crate) fn response(events: Events) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(events)).into_response()
}

impl Events {
    pub(crate) fn new(served: Arc<Served>, head: Head, sequences: Sequences, scores: bool) -> Self {
        let begun = vec![false; sequences.len()];
        let silence = Box::pin(sleep(served.app.options.keep_alive));
        let sequences = Some(sequences);
        Self { served, head, sequences, scores, begun, first_out: false, silence }
    }

    /// Chunks of a piece.
    fn chunks(&mut self, index: usize, piece: Piece) -> String {
        let served = self.served.clone();
        let tokenizer = self.scores.then_some(&*served.app.tokenizer);
        let first = !std::mem::replace(&mut self.begun[index], true);
        let reply = self.head.reply;
        let mut text = String::new();
        match self.head.dialect {
            Dialect::Chat => {
                for part in chat::parts((index, first), piece, reply, tokenizer) {
                    self.chunk(&mut text, vec![part]);
                }
            }
            Dialect::Text => {
                for part in completions::parts(index, piece, reply, tokenizer) {
                    self.chunk(&mut text, vec![part]);
                }
            }
        }
        text
    }

    fn chunk<C: Serialize>(&mut self, text: &mut String, choices: Vec<C>) {
        let usage = match self.head.reply.stream {
            None | Some(StreamUsage::Never) => Tally::Absent,
            Some(StreamUsage::Last) => Tally::Null,
            Some(StreamUsage::Each) => self.usage(),
        };
        let first = !std::mem::replace(&mut self.first_out, true);
        event(text, &self.head.json(choices, usage, first));
    }

    fn usage(&self) -> Tally {
        let output_tokens = self.sequences.as_ref().map_or(0, Sequences::output_tokens);
        Tally::Of(self.head.usage(output_tokens))
    }

    /// The end of a stream that went well.
    fn last(&mut self) -> String {
        let mut text = String::new();
        if !matches!(self.head.reply.stream, None | Some(StreamUsage::Never)) {
            event(&mut text, &self.head.json(Vec::<()>::new(), self.usage(), false));
        }
        self.sequences = None;
        event(&mut text, "[DONE]");
        text
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<String>> {
        loop {
            let Some(sequences) = &mut self.sequences else { return Poll::Ready(None) };
            let text = match sequences.poll_next(cx) {
                Poll::Ready(Some(Ok((index, piece)))) => self.chunks(index, piece),
                Poll::Ready(Some(Err(error))) => {
                    self.sequences = None;
                    let mut text = String::new();
                    event(&mut text, &self.served.public(error).body().to_string());
                    event(&mut text, "[DONE]");
                    text
                }
                Poll::Ready(None) => self.last(),
                Poll::Pending => {
                    if self.silence.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    ": waiting\n\n".to_owned()
                }
            };
            let silence = Instant::now() + self.served.app.options.keep_alive;
            self.silence.as_mut().reset(silence);
            if !text.is_empty() {
                return Poll::Ready(Some(text));
            }
        }
    }
}

impl Stream for Events {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().next(cx).map(|text| text.map(|text| Ok(text.into())))
    }
}

fn event(text: &mut String, content: &str) {
    let _ = write!(text, "data: {content}\n\n");
}

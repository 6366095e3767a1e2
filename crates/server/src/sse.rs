//! `Events`: the body of a streamed answer.
//!
//! It owns the sequences, so that they are cancelled when the connection drops the body.

use std::convert::Infallible;
use std::fmt::{Debug, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde_json::Value;
use tokio::time::{Instant, Sleep, sleep};

use crate::error::ApiError;
use crate::sequence::Piece;
use crate::sequences::Sequences;
use crate::served::Served;

/// How a dialect tells an answer in events.
pub(crate) trait Tell: Debug + Send {
    /// Before anything has come of the sequences.
    fn begin(&mut self) -> String {
        String::new()
    }

    /// A piece of a sequence.
    fn piece(&mut self, index: usize, piece: Piece, sequences: &Sequences) -> String;

    /// The end of an answer that went well.
    fn end(&mut self, sequences: &Sequences) -> String;

    /// The end of one that did not.
    fn failed(&mut self, error: &ApiError) -> String;

    /// Said in place of nothing, so that the client sees that the server is there.
    fn waiting(&self) -> &'static str {
        ": waiting\n\n"
    }
}

/// A streamed answer.
#[derive(Debug)]
pub(crate) struct Events {
    served: Arc<Served>,
    told: Box<dyn Tell>,
    /// `None` after the last event.
    sequences: Option<Sequences>,
    begun: bool,
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
    /// Waits for the first piece, for a while: until there is something to say, a refusal can still
    /// have a status.
    pub(crate) async fn begin(
        served: Arc<Served>,
        told: Box<dyn Tell>,
        mut sequences: Sequences,
    ) -> Result<Self, ApiError> {
        let begun = sequences.begin(served.app.options.keep_alive).await;
        begun.map_err(|error| served.public(error))?;
        let silence = Box::pin(sleep(served.app.options.keep_alive));
        Ok(Self { served, told, sequences: Some(sequences), begun: false, silence })
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<String>> {
        loop {
            let Some(sequences) = &mut self.sequences else { return Poll::Ready(None) };
            if !std::mem::replace(&mut self.begun, true) {
                let text = self.told.begin();
                if !text.is_empty() {
                    return Poll::Ready(Some(text));
                }
            }
            let text = match sequences.poll_next(cx) {
                Poll::Ready(Some(Ok((index, piece)))) => self.told.piece(index, piece, sequences),
                Poll::Ready(Some(Err(error))) => {
                    self.sequences = None;
                    self.told.failed(&self.served.public(error))
                }
                Poll::Ready(None) => {
                    let text = self.told.end(sequences);
                    self.sequences = None;
                    text
                }
                Poll::Pending => {
                    if self.silence.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.told.waiting().to_owned()
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

/// Adds an event without a name.
pub(crate) fn event(text: &mut String, content: &str) {
    let _ = write!(text, "data: {content}\n\n");
}

/// Adds an event with a name.
pub(crate) fn named_event(text: &mut String, name: &str, content: &Value) {
    let _ = write!(text, "event: {name}\ndata: {content}\n\n");
}

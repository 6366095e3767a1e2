//! A panic in one request's work ends that request and nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use axum::Error;
use axum::body::{Body, Bytes, HttpBody};
use axum::response::{IntoResponse, Response};
use http_body::{Frame, SizeHint};

use crate::access::Slot;
use crate::context::Over;
use crate::error::ApiError;

/// The answer to a request whose work may panic.
pub(crate) struct Isolated<F> {
    work: Pin<Box<F>>,
}

impl<F> Isolated<F> {
    pub(crate) fn new(work: F) -> Self {
        Self { work: Box::pin(work) }
    }
}

impl<F: Future<Output = Response>> Future for Isolated<F> {
    /// And whether it panicked.
    type Output = (Response, bool);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let work = self.work.as_mut();
        // What the work has touched is dropped with it; what is shared has no locks over a panic.
        let Ok(response) = catch_unwind(AssertUnwindSafe(|| work.poll(cx))) else {
            let error =
                ApiError::internal("internal_error", "this request failed inside the server");
            return Poll::Ready((error.into_response(), true));
        };
        response.map(|response| (response, false))
    }
}

/// The body of an answer with what is held until its last byte.
#[derive(Debug)]
pub(crate) struct Kept {
    body: Body,
    _slot: Option<Slot>,
    /// Below `body`: the sequences end first.
    over: Over,
}

impl Kept {
    pub(crate) fn new(body: Body, slot: Option<Slot>, over: Over) -> Self {
        let kept = Self { body, _slot: slot, over };
        if kept.body.is_end_stream() {
            kept.over.0.completed();
        }
        kept
    }
}

impl HttpBody for Kept {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let body = &mut this.body;
        let frame = catch_unwind(AssertUnwindSafe(|| pin!(body).poll_frame(cx)));
        let Ok(frame) = frame else {
            this.body = Body::empty();
            let failed = std::io::Error::other("this answer failed inside the server");
            return Poll::Ready(Some(Err(Error::new(failed))));
        };
        if matches!(frame, Poll::Ready(None)) || this.body.is_end_stream() {
            this.over.0.completed();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use axum::http::StatusCode;

    use super::*;

    fn over() -> Over {
        let request = axum::extract::Request::new(Body::empty());
        Over(crate::context::RequestContext::of(&request, None))
    }

    /// A stream of one piece that panics then.
    struct Breaks(bool);

    impl futures_core::Stream for Breaks {
        type Item = Result<Bytes, std::io::Error>;

        fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            assert!(!self.0, "on purpose");
            self.0 = true;
            Poll::Ready(Some(Ok(Bytes::from_static(b"first"))))
        }
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_of_500() {
        let work = async {
            tokio::task::yield_now().await;
            let none: Vec<Response> = Vec::new();
            none.into_iter().next().expect("on purpose")
        };
        let (response, panicked) = Isolated::new(work).await;
        assert_eq!((response.status(), panicked), (StatusCode::INTERNAL_SERVER_ERROR, true));
        let (response, panicked) = Isolated::new(async { StatusCode::OK.into_response() }).await;
        assert_eq!((response.status(), panicked), (StatusCode::OK, false));
    }

    #[tokio::test]
    async fn a_panic_in_a_stream_ends_the_stream() {
        let mut kept = Kept::new(Body::from_stream(Breaks(false)), None, over());
        let mut next = async || poll_fn(|cx| pin!(&mut kept).poll_frame(cx)).await;
        assert_eq!(next().await.unwrap().unwrap().into_data().unwrap(), "first");
        assert!(next().await.unwrap().is_err());
        assert!(next().await.is_none());
    }
}

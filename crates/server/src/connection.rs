//! `Connection`: bytes of a client that must come and go: the first request's head has a time
//! within which it comes, and an answer one within which some of it is taken.
//!
//! Bodies have their own time (`body`), and so has the wait for another request (`door`).

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::options::ConnectionOptions;

/// What ends a head.
const END: [u8; 4] = *b"\r\n\r\n";

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Connection<S> {
    stream: S,
    /// Until the first head is complete.
    head: Option<Head>,
    stall: Stall,
}

impl<S> Connection<S> {
    pub(crate) fn new(stream: S, options: &ConnectionOptions) -> Self {
        let head = Some(Head { deadline: Box::pin(sleep(options.head_time)), matched: 0 });
        Self { stream, head, stall: Stall { time: options.write_time, deadline: None } }
    }
}

#[derive(Debug)]
struct Head {
    deadline: Pin<Box<Sleep>>,
    /// Bytes of `END` that the last bytes are.
    matched: usize,
}

impl Head {
    /// Whether the head is complete with these bytes.
    fn ends_in(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            self.matched = match *byte {
                byte if byte == END[self.matched] => self.matched + 1,
                b'\r' => 1,
                _ => 0,
            };
            if self.matched == END.len() {
                return true;
            }
        }
        false
    }
}

/// Since when the client has taken nothing.
#[derive(Debug)]
struct Stall {
    time: Duration,
    /// While it takes nothing.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    /// What a write gave, or an error if nothing went for too long.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.deadline = None;
            return written;
        }
        let end = Instant::now() + self.time;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        if deadline.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        tracing::info!("a client took nothing for {:?}; its connection is cut", self.time);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = pin!(&mut this.stream).poll_read(cx, buffer);
        if let Some(head) = &mut this.head {
            if head.ends_in(&buffer.filled()[before..]) {
                this.head = None;
            } else if head.deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = pin!(&mut this.stream).poll_write(cx, bytes);
        this.stall.watch(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = pin!(&mut this.stream).poll_write_vectored(cx, slices);
        this.stall.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = pin!(&mut this.stream).poll_flush(cx);
        this.stall.watch(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let ended = pin!(&mut this.stream).poll_shutdown(cx);
        this.stall.watch(cx, ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_head_ends_wherever_it_is_cut() {
        let text = b"GET / HTTP/1.1\r\nx: \r\r\n\r\n";
        for cut in 0..=text.len() {
            let mut head = Head { deadline: Box::pin(sleep(Duration::ZERO)), matched: 0 };
            let (start, end) = text.split_at(cut);
            let ends = [start, end].map(|part| head.ends_in(part));
            assert_eq!(ends, [cut == text.len(), cut < text.len()], "{cut}");
            if cut == text.len() {
                continue;
            }
            let mut head = Head { deadline: Box::pin(sleep(Duration::ZERO)), matched: 0 };
            assert!(!head.ends_in(&text[..text.len() - 1]));
        }
    }
}

//! Connections that must say something: the first request's head has a time within which it comes.
//!
//! Bodies have their own time (`body`), and a connection that has asked once costs little.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};

/// What ends a head.
const END: [u8; 4] = *b"\r\n\r\n";

/// Listens; its connections close if the first head does not come in time.
#[derive(Debug)]
pub(crate) struct Connections {
    pub(crate) listener: TcpListener,
    pub(crate) head_time: Duration,
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // axum's own: it waits and goes on after errors such as too many open files.
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // A token is a small packet, and the next one is not to wait for its acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("a connection keeps its delay: {error}");
        }
        let head = Some(Head { deadline: Box::pin(sleep(self.head_time)), matched: 0 });
        (Connection { stream, head }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    /// Until the first head is complete.
    head: Option<Head>,
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

impl AsyncRead for Connection {
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

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        pin!(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        pin!(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.get_mut().stream).poll_shutdown(cx)
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

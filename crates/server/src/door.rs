//! `Door`: where clients come in. Takes connections, one task each, and lets them finish when the
//! server goes down.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::connection::Connection;
use crate::options::ConnectionOptions;
use crate::tls::Tls;

/// How long to wait before the next try where the system has no room for a connection.
const NO_ROOM: Duration = Duration::from_millis(250);

/// When a silent connection is asked whether somebody is there, how often, and how many times.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_mins(1), Duration::from_secs(10), 3);

/// What the server listens on.
#[derive(Debug)]
pub enum Listening {
    /// An address and a port.
    Tcp(TcpListener),
    /// A path.
    #[cfg(unix)]
    Unix(UnixListener),
}

impl From<TcpListener> for Listening {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

/// A client's stream of bytes, before anything is read.
enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

/// What every connection is served with.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    pub(crate) router: Router,
    pub(crate) options: ConnectionOptions,
    pub(crate) tls: Option<Arc<Tls>>,
}

impl Door {
    /// Serves until `closed` is true and the connections that are left have ended. Those that wait
    /// for a request end at once.
    pub(crate) async fn serve(self, listening: Listening, mut closed: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(self.options.most));
        let mut open = JoinSet::new();
        let stop = closed.clone();
        let taking = async {
            loop {
                while open.try_join_next().is_some() {}
                let place = places.clone().acquire_owned().await;
                let place = place.expect("the semaphore is never closed");
                match listening.accept().await {
                    Ok(stream) => {
                        open.spawn(self.clone().one(stream, place, stop.clone()));
                    }
                    Err(error) if is_the_clients(&error) => {}
                    Err(error) => {
                        tracing::warn!("no connection can be taken: {error}");
                        sleep(NO_ROOM).await;
                    }
                }
            }
        };
        let closing = async {
            let _ = closed.wait_for(|closed| *closed).await;
        };
        tokio::select! {
            () = taking => {}
            () = closing => {}
        }
        drop(listening);
        while open.join_next().await.is_some() {}
    }

    async fn one(
        self,
        stream: Stream,
        _place: OwnedSemaphorePermit,
        closed: watch::Receiver<bool>,
    ) {
        match (stream, &self.tls) {
            (Stream::Tcp(stream), None) => {
                prepare(&stream);
                self.http(stream, closed).await;
            }
            (Stream::Tcp(stream), Some(tls)) => {
                prepare(&stream);
                let greeting = timeout(self.options.head_time, tls.acceptor().accept(stream));
                match greeting.await {
                    Ok(Ok(stream)) => self.http(stream, closed).await,
                    Ok(Err(error)) => tracing::debug!("a client spoke no TLS: {error}"),
                    Err(_) => tracing::debug!("a client did not finish its TLS greeting"),
                }
            }
            #[cfg(unix)]
            (Stream::Unix(stream), _) => self.http(stream, closed).await,
        }
    }

    async fn http<S>(&self, stream: S, mut closed: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let ConnectionOptions { idle_time, head_bytes, head_lines, .. } = self.options;
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(idle_time)
            .max_headers(head_lines)
            .max_header_size(head_bytes);
        let stream = TokioIo::new(Connection::new(stream, &self.options));
        let service = TowerToHyperService::new(self.router.clone());
        let mut serving = pin!(http.serve_connection(stream, service));
        let closing = async {
            // An error would mean that nobody is left who could close.
            let _ = closed.wait_for(|closed| *closed).await;
        };
        let ended = tokio::select! {
            ended = serving.as_mut() => ended,
            () = closing => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!("a connection ended: {error}");
        }
    }
}

impl Listening {
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => Ok(Stream::Tcp(listener.accept().await?.0)),
            #[cfg(unix)]
            Self::Unix(listener) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

fn prepare(stream: &TcpStream) {
    let (time, interval, retries) = KEEPALIVE;
    let alive = socket2::TcpKeepalive::new().with_time(time).with_interval(interval);
    let alive = alive.with_retries(retries);
    let socket = socket2::SockRef::from(stream);
    // A token is a small packet, and the next one is not to wait for its acknowledgement.
    if let Err(error) = stream.set_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&alive)) {
        tracing::debug!("a connection keeps the system's settings: {error}");
    }
}

/// Whether only the one client that came has a problem.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

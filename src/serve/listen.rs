//! Where `kvant serve` listens: bound before the model is loaded, so that a busy place costs no
//! time.

use std::io::ErrorKind;
use std::net::TcpListener;
#[cfg(unix)]
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use kvant_server::Listening;

use crate::config::ServerConfig;

/// A place that is taken, not yet served. A socket's path is removed when it is dropped.
#[derive(Debug)]
pub(crate) enum Place {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener, SocketPath),
}

/// The path of a unix socket that is ours.
#[derive(Debug)]
pub(crate) struct SocketPath(PathBuf);

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Place {
    pub(crate) fn take(server: &ServerConfig) -> Result<Self> {
        if server.uds.is_empty() {
            return tcp(server).map(Self::Tcp);
        }
        #[cfg(unix)]
        return unix(&server.uds);
        #[cfg(not(unix))]
        bail!("server.uds: this system has no unix sockets; use --host and --port");
    }

    /// Whether others than this machine's own may connect.
    pub(crate) fn is_public(&self) -> bool {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().is_ok_and(|address| !address.ip().is_loopback())
            }
            #[cfg(unix)]
            Self::Unix(..) => false,
        }
    }

    /// For the runtime, with what is printed and what must live as long.
    pub(crate) fn serve(self, tls: bool) -> Result<(Listening, String, Option<SocketPath>)> {
        let unusable = "cannot use the listening socket";
        match self {
            Self::Tcp(listener) => {
                listener.set_nonblocking(true).context(unusable)?;
                let listener = tokio::net::TcpListener::from_std(listener)?;
                let scheme = if tls { "https" } else { "http" };
                let address = format!("{scheme}://{}", listener.local_addr()?);
                Ok((Listening::Tcp(listener), address, None))
            }
            #[cfg(unix)]
            Self::Unix(listener, path) => {
                listener.set_nonblocking(true).context(unusable)?;
                let listener = tokio::net::UnixListener::from_std(listener)?;
                let address = format!("unix:{}", path.0.display());
                Ok((Listening::Unix(listener), address, Some(path)))
            }
        }
    }
}

fn tcp(server: &ServerConfig) -> Result<TcpListener> {
    let ServerConfig { host, port, .. } = server;
    TcpListener::bind((host.trim_matches(['[', ']']), *port)).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => {
            anyhow!("port {port} of {host} is in use; choose another with --port")
        }
        ErrorKind::PermissionDenied => {
            anyhow!("port {port} of {host} is not permitted; choose one above 1023 with --port")
        }
        _ => anyhow!("cannot listen on {host} port {port}: {error}; check --host"),
    })
}

#[cfg(unix)]
fn unix(path: &str) -> Result<Place> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let file = PathBuf::from(path);
    if let Ok(there) = std::fs::symlink_metadata(&file) {
        if !there.file_type().is_socket() {
            bail!("{path} is there and is no socket; choose another path with --uds");
        }
        if UnixStream::connect(&file).is_ok() {
            bail!("somebody listens on {path}; choose another path with --uds");
        }
        // Left by a server that was killed.
        std::fs::remove_file(&file).with_context(|| format!("cannot remove {path}"))?;
    }
    let listener = UnixListener::bind(&file);
    let listener =
        listener.map_err(|error| anyhow!("cannot listen on {path}: {error}; check --uds"))?;
    let own = SocketPath(file);
    std::fs::set_permissions(&own.0, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot keep others from {path}"))?;
    Ok(Place::Unix(listener, own))
}

//! Connections: HTTP/1.1 with bounds, so that a slow or a greedy client costs little and never the archiver, nor the answer
//! to a probe.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::connections::{Connections, Place};
use crate::error::{Error, Kind, Result};

/// A connection that is older is closed, so that one whose client reads nothing does not stay.
const CONNECTION_LIVES: Duration = Duration::from_secs(600);

/// A request has at most so many headers, and they hold at most so many bytes.
const MOST_HEADERS: usize = 64;
const MOST_HEADER_BYTES: usize = 16 << 10;

/// After the system refused a connection (no file descriptor is left): a moment for others to end.
const AFTER_REFUSAL: Duration = Duration::from_millis(200);

/// How often overdue connections are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Binds an address that was set by `key`.
pub(super) async fn bind(listen: SocketAddr, key: &str) -> Result<TcpListener> {
    TcpListener::bind(listen).await.map_err(|source| {
        Error::new(Kind::Unavailable, format!("cannot listen on {listen}"))
            .source(source)
            .hint(format!("set {key} to an address of this machine and a port that is free"))
    })
}

/// Who asks, as an extension of each request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Accepts connections for ever.
pub(super) async fn serve(listener: TcpListener, app: Router) {
    let all = Arc::new(Connections::default());
    let close_overdue = async {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            all.close_overdue(Instant::now());
        }
    };
    tokio::join!(accept(listener, app, &all), close_overdue);
}

async fn accept(listener: TcpListener, app: Router, all: &Arc<Connections>) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let place = Arc::new(all.admit(from.ip(), Instant::now()));
                tokio::spawn(connection(stream, Peer(from), place, app.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(AFTER_REFUSAL).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: Peer, place: Arc<Place>, app: Router) {
    let app = TowerToHyperService::new(app);
    let answer = |mut request: Request<Incoming>| {
        place.headed(Instant::now());
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(Arc::clone(&place));
        let (place, answer) = (Arc::clone(&place), app.call(request));
        async move {
            let answer = answer.await;
            place.answered(Instant::now());
            answer
        }
    };
    let stream = Watched { stream, place: Arc::clone(&place) };
    let served = http1::Builder::new()
        // The time that a client may take is counted by its place.
        .header_read_timeout(None)
        .max_headers(MOST_HEADERS)
        .max_buf_size(MOST_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    tokio::select! {
        ended = served => {
            // The client went away, or sent what is not HTTP.
            if let Err(error) = ended {
                tracing::debug!(%error, peer = %peer.0, "a connection has ended");
            }
        }
        () = place.closed() => tracing::debug!(peer = %peer.0, "a connection was closed: it was slow, or made room"),
        () = tokio::time::sleep(CONNECTION_LIVES) => {}
    }
}

/// A stream that notes when its client sends something.
struct Watched {
    stream: TcpStream,
    place: Arc<Place>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if into.filled().len() > before {
            self.place.received(Instant::now());
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

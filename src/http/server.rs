//! Connections: HTTP/1.1 with bounds, so that a slow or a greedy client costs little and never the archiver.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// So many connections are served; more wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 128;

/// A request's headers must come within this, and a connection without a request is closed after it: longer than the
/// usual time between two scrapes.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);

/// A connection that is older is closed, so that one whose client reads nothing does not stay.
const CONNECTION_LIVES: Duration = Duration::from_secs(600);

/// A request has at most so many headers, and they hold at most so many bytes.
const MOST_HEADERS: usize = 64;
const MOST_HEADER_BYTES: usize = 16 << 10;

/// After the system refused a connection (no file descriptor is left): a moment for others to end.
const AFTER_REFUSAL: Duration = Duration::from_millis(200);

/// Accepts connections for ever.
pub(super) async fn serve(listener: TcpListener, app: Router) {
    let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let app = app.clone();
                tokio::spawn(async move {
                    connection(stream, app).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(AFTER_REFUSAL).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, app: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_headers(MOST_HEADERS)
        .max_buf_size(MOST_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    match tokio::time::timeout(CONNECTION_LIVES, served).await {
        Ok(Ok(())) | Err(_) => {}
        // The client went away, or sent what is not HTTP.
        Ok(Err(error)) => tracing::debug!(%error, "a connection has ended"),
    }
}

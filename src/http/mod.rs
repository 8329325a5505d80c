//! The HTTP listener: metrics for Prometheus, health for Kubernetes, a status page for people, and Kafka Connect's REST
//! shapes for tools that speak them.
//!
//! ```text
//!   Prometheus ── /metrics ──────────────┐
//!   Kubernetes ── /healthz, /readyz ─────┤                      ┌── status ── the running pipeline
//!   a browser ─── /, /api/status ────────┼──► App ──► Board ────┤
//!   Connect's tools ─ /connectors … ─────┘      │               └── orders ─► pause, stop, restart, go on
//!                     PUT, POST: Authorization: Bearer ── token file
//! ```
//!
//! Reading is open to whoever reaches the listener. Changing takes the token of `http.admin_token_file`; without that
//! key nothing can be changed. Every answer is made from what the pipeline has published, so no request makes it wait.
//! `docs/HTTP.md` describes the answers.

mod api;
mod auth;
mod caller;
mod connect;
mod connections;
mod health;
mod metrics;
mod page;
mod replay;
mod server;
mod trail;

use std::borrow::Cow;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::config::{Config, Http};
use crate::error::{Error, Kind, Result};
use crate::escape;
use crate::pipeline::published::Published;
use crate::telemetry::metrics::{Recorder, install};
use auth::Token;
use connections::{Place, REQUEST_WITHIN};
pub use replay::ReplayListener;
use server::Peer;
use trail::Trail;

/// No answer takes longer than this.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// A request with a larger body is refused. None needs one.
const MOST_BODY_BYTES: usize = 64 << 10;

/// How often measurements that wait are summed up, should nobody read them.
const TIDY_EVERY: Duration = Duration::from_secs(5);

/// What every answer is made from.
struct App {
    config: Config,
    published: Arc<Published>,
    recorder: Recorder,
    token: Option<Token>,
    /// This process as Connect's tools name a worker.
    worker: String,
    store: health::StoreProbe,
    gate: Arc<Gate>,
}

/// What every request passes.
struct Gate {
    /// Whether the listener is of the loopback interface.
    loopback: bool,
    trail: Trail,
}

impl Gate {
    fn of(socket: &TcpListener) -> Self {
        let loopback = socket.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
        Self { loopback, trail: Trail::new() }
    }
}

/// The listener, bound and not yet serving.
pub struct Listener {
    socket: TcpListener,
    app: Arc<App>,
}

/// Whether the listener's settings are usable: the token file, if there is one.
///
/// # Errors
/// [`Kind::Config`], naming the key and the way out.
pub fn validate(http: &Http) -> Result<()> {
    http.admin_token_file.as_deref().map(Token::open).transpose().map(drop)
}

impl Listener {
    /// Binds `http.listen`, and makes the process count. It must come before what is to be counted is opened.
    ///
    /// # Errors
    /// A token file that is unusable, an address that is taken or not of this machine.
    pub async fn bind(http: &Http, config: &Config, published: Arc<Published>) -> Result<Self> {
        let token = http.admin_token_file.as_deref().map(Token::open).transpose()?;
        let socket = bind(http.listen, "http.listen").await?;
        let port = socket.local_addr().map_or(http.listen.port(), |address| address.port());
        let worker = format!("{}:{port}", host_name());
        let (config, recorder, store) = (config.clone(), install()?, health::StoreProbe::default());
        let gate = Arc::new(Gate::of(&socket));
        tracing::info!(listen = %http.listen, changes = token.is_some(), "listening for HTTP");
        Ok(Self { socket, app: Arc::new(App { config, published, recorder, token, worker, store, gate }) })
    }

    /// Serves until the future is dropped.
    pub async fn serve(self) {
        let Self { socket, app } = self;
        let tidy = async {
            loop {
                tokio::time::sleep(TIDY_EVERY).await;
                app.recorder.tidy();
            }
        };
        tokio::join!(server::serve(socket, routes(Arc::clone(&app))), tidy);
    }
}

/// Binds an address that was set by `key`.
async fn bind(listen: SocketAddr, key: &str) -> Result<TcpListener> {
    TcpListener::bind(listen).await.map_err(|source| {
        Error::new(Kind::Unavailable, format!("cannot listen on {listen}"))
            .source(source)
            .hint(format!("set {key} to an address of this machine and a port that is free"))
    })
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".to_owned() } else { name.trim().to_owned() }
}

fn routes(app: Arc<App>) -> Router {
    let connector = Router::new()
        .route("/", get(connect::connector))
        .route("/config", get(connect::config))
        .route("/status", get(connect::status))
        .route("/tasks", get(connect::tasks))
        .route("/tasks/{task}/status", get(connect::task_status))
        .route("/topics", get(connect::topics))
        .route("/offsets", get(connect::offsets))
        .route("/pause", put(connect::pause))
        .route("/resume", put(connect::resume))
        .route("/stop", put(connect::stop))
        .route("/restart", post(connect::restart))
        .route("/skip", post(connect::skip));
    Router::new()
        .route("/", get(page::root))
        .route("/page.css", get(page::style))
        .route("/page.js", get(page::script))
        .route("/text.js", get(page::text))
        .route("/metrics", get(metrics::metrics))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/api/status", get(api::status))
        .route("/api/streams/{topic}", get(api::stream))
        .route("/connectors", get(connect::connectors))
        .route("/connectors/", get(connect::connectors))
        .route("/connectors/{connector}/", get(connect::connector))
        .route("/connector-plugins", get(connect::plugins))
        .nest("/connectors/{connector}", connector)
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&app.gate), guard))
        .with_state(app)
}

/// What holds for every request and every answer: who may ask, bounds, and headers that keep a browser from doing more than
/// it should.
async fn guard(
    State(gate): State<Arc<Gate>>,
    Extension(peer): Extension<Peer>,
    Extension(place): Extension<Arc<Place>>,
    request: Request,
    next: Next,
) -> Response {
    let mut answer = match admitted(&gate, peer, request).await {
        Ok(request) => {
            place.asked(Instant::now());
            match tokio::time::timeout(ANSWER_WITHIN, next.run(request)).await {
                Ok(answer) => in_json(answer).await,
                Err(_) => refusal(StatusCode::SERVICE_UNAVAILABLE, "no answer in time; see /healthz and the log"),
            }
        }
        Err(refused) => refused,
    };
    let headers = answer.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(HeaderName::from_static("referrer-policy"), HeaderValue::from_static("no-referrer"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    escaped(answer).await
}

/// The request, if its sender may ask, with all of its body. What is not there whole is not done.
async fn admitted(gate: &Gate, Peer(peer): Peer, request: Request) -> Result<Request, Response> {
    if let Err(refused) = caller::check(&request, gate.loopback) {
        let asked = format!("{} {}", request.method(), request.uri().path());
        gate.trail.refused(refused.reason, peer, &asked, Instant::now());
        return Err(refusal(refused.status, refused.message));
    }
    let (parts, body) = request.into_parts();
    const TOO_LARGE: (StatusCode, &str) =
        (StatusCode::PAYLOAD_TOO_LARGE, "a request's body may have 64 KiB; none is needed");
    // What is said to be too large is not waited for.
    let within = if body.size_hint().lower() > MOST_BODY_BYTES as u64 { None } else { Some(REQUEST_WITHIN) };
    let whole = Limited::new(body, MOST_BODY_BYTES).collect();
    let (status, message) = match tokio::time::timeout(within.unwrap_or_default(), whole).await {
        _ if within.is_none() => TOO_LARGE,
        Ok(Ok(body)) => return Ok(Request::from_parts(parts, Body::from(body.to_bytes()))),
        Ok(Err(error)) if error.is::<LengthLimitError>() => TOO_LARGE,
        Ok(Err(_)) => (StatusCode::BAD_REQUEST, "the request's body cannot be read; nothing was done"),
        Err(_) => (StatusCode::REQUEST_TIMEOUT, "the request's body did not come in time; nothing was done"),
    };
    let mut refused = refusal(status, message);
    // The rest of the body would be taken for the next request.
    refused.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    Err(refused)
}

/// The refusals of the library for HTTP are text.
async fn in_json(answer: Response) -> Response {
    let is_text = |kind: &HeaderValue| kind.as_bytes().starts_with(b"text/plain");
    if !answer.status().is_client_error() || !answer.headers().get(header::CONTENT_TYPE).is_some_and(is_text) {
        return answer;
    }
    let status = answer.status();
    // It lies in memory already.
    let text = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap_or_default();
    refusal(status, String::from_utf8_lossy(&text))
}

/// JSON as a terminal may show it: names and messages in it come from servers and stores.
async fn escaped(answer: Response) -> Response {
    if answer.headers().get(header::CONTENT_TYPE).is_none_or(|kind| kind != "application/json") {
        return answer;
    }
    let (mut parts, body) = answer.into_parts();
    // It lies in memory already.
    let Ok(bytes) = axum::body::to_bytes(body, usize::MAX).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    if let Cow::Owned(text) = escape::json(&String::from_utf8_lossy(&bytes)) {
        parts.headers.remove(header::CONTENT_LENGTH);
        return Response::from_parts(parts, Body::from(text));
    }
    Response::from_parts(parts, Body::from(bytes))
}

/// An error as Kafka Connect writes it.
fn refusal(status: StatusCode, message: impl Into<String>) -> Response {
    let message: String = message.into();
    (status, axum::Json(json!({ "error_code": status.as_u16(), "message": message }))).into_response()
}

fn unknown_path(uri: Uri) -> Ready<Response> {
    let message = format!("there is no {}; docs/HTTP.md lists the paths", uri.path());
    ready(refusal(StatusCode::NOT_FOUND, message))
}

fn wrong_method(method: Method, uri: Uri) -> Ready<Response> {
    let path = uri.path();
    let way_out = match path.rsplit('/').next() {
        Some("pause" | "resume" | "stop") => "it takes PUT",
        Some("restart" | "skip") => "it takes POST",
        // What Connect would let one create, change or delete.
        _ if path.starts_with("/connectors") => "what is archived is set in the configuration",
        _ => "it is only read, with GET",
    };
    ready(refusal(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not allowed on {path}: {way_out}")))
}

/// What the handlers take.
type AppState = State<Arc<App>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn json_orders_a_terminal_nothing_and_keeps_its_value() {
        let message = "a topic \u{202e}\u{9b}2J\u{7f}\u{2067}\n";
        let answer = escaped(refusal(StatusCode::NOT_FOUND, message)).await;
        let bytes = axum::body::to_bytes(answer.into_body(), usize::MAX).await.expect("a body");
        let text = std::str::from_utf8(&bytes).expect("text");
        assert!(!text.contains(escape::is_unsafe), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(text).expect("JSON")["message"], message);
    }
}

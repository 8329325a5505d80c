//! What every request and every answer passes: who may ask, bounds, and headers that keep a browser from doing more than it should.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::caller;
use super::connections::{Place, REQUEST_WITHIN};
use super::refusal::refusal;
use super::server::Peer;
use super::trail::Trail;
use crate::escape;

/// No answer takes longer than this.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// A request with a larger body is refused. None needs one.
const MOST_BODY_BYTES: usize = 64 << 10;

/// What every request passes.
pub(super) struct Gate {
    /// Whether the listener is of the loopback interface.
    loopback: bool,
    pub(super) trail: Trail,
}

impl Gate {
    pub(super) fn of(socket: &TcpListener) -> Self {
        let loopback = socket.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
        Self { loopback, trail: Trail::new() }
    }
}

/// What holds for every request and every answer: who may ask, bounds, and headers that keep a browser from doing more than
/// it should.
pub(super) async fn guard(
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

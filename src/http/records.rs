//! The records of a topic at a moment, for the status page: what they hold for whoever knows the reader's token, and for others when
//! and how large they were.
//!
//! They are read from the archive for one request at a time, with bounds of their own (see [`crate::replay::at_moment`]), so that
//! looking costs the archiver little.

use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::app::AppState;
use super::auth::{Token, may_read};
use super::refusal::refusal;
use super::server::Peer;
use crate::error::{Error, Kind};
use crate::replay::{Beginning, Seen, at_moment};
use crate::time;

/// How many records are shown if the request does not say, and at the most.
const RECORDS: usize = 20;
const MOST_RECORDS: usize = 200;

/// So long a request waits for the one before it, and so long records are looked for.
const TURN_WITHIN: Duration = Duration::from_secs(4);
const READ_WITHIN: Duration = Duration::from_secs(10);

/// What shows records.
pub(super) struct Records {
    token: Token,
    turn: Semaphore,
}

impl Records {
    pub(super) fn of(token: Token) -> Self {
        Self { token, turn: Semaphore::new(1) }
    }
}

/// What is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// The moment.
    from: String,
    /// How many records.
    limit: Option<usize>,
}

/// `GET /api/streams/<topic>/records`.
pub(super) async fn records(
    State(app): AppState,
    Path(topic): Path<String>,
    Query(asked): Query<Asked>,
    Extension(Peer(peer)): Extension<Peer>,
    headers: HeaderMap,
) -> Response {
    let Some(records) = &app.records else {
        return refusal(StatusCode::FORBIDDEN, "no records are shown here: http.reader_token_file is not set");
    };
    let is_reader = match may_read(&records.token, &headers) {
        Ok(is_reader) => is_reader,
        Err(refused) => {
            app.gate.trail.refused("token", peer, &format!("records of {topic:?}"), Instant::now());
            return *refused;
        }
    };
    let from = match time::parse(&asked.from, time::now()) {
        Ok(from) => from,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, format!("from: {error}")),
    };
    let most = asked.limit.unwrap_or(RECORDS);
    if !(1..=MOST_RECORDS).contains(&most) {
        return refusal(StatusCode::BAD_REQUEST, format!("limit: {most} is not allowed, use 1 to {MOST_RECORDS}"));
    }
    let (Some(opened), Some(kafka)) = (app.published.opened(), &app.config.kafka) else {
        return refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "no topics are archived here, or the archive is still being opened",
        );
    };
    let Ok(Ok(_turn)) = tokio::time::timeout(TURN_WITHIN, records.turn.acquire()).await else {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "records are read for somebody else; ask again");
    };
    let looking = at_moment(&opened.store, &kafka.cluster, &topic, from, most);
    let found = match tokio::time::timeout(READ_WITHIN, looking).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return refusal(status_of(&error), error.to_string()),
        Err(_) => {
            let message = "the records were not found in 10 s: use `tidelog cat`";
            return refusal(StatusCode::SERVICE_UNAVAILABLE, message);
        }
    };
    if is_reader {
        tracing::info!(topic, from = time::rfc3339(from), records = found.records.len(), %peer, "records were shown over HTTP");
    }
    let left_out = found.left_out.iter().map(|(object, why)| json!({ "object": object, "why": why }));
    Json(json!({
        "topic": topic,
        "from": time::rfc3339(from),
        "until": time::rfc3339(found.until),
        "masked": !is_reader,
        "records": found.records.iter().map(|record| shown(record, is_reader)).collect::<Vec<_>>(),
        "left_out": left_out.collect::<Vec<_>>(),
    }))
    .into_response()
}

fn status_of(error: &Error) -> StatusCode {
    match error.kind() {
        Kind::NotFound => StatusCode::NOT_FOUND,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// A record; what it holds only to a reader.
fn shown(record: &Seen, is_reader: bool) -> Value {
    let length = |part: &Option<Beginning>| part.as_ref().map(|part| part.length);
    let mut shown = json!({
        "generation": record.generation,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": time::rfc3339(record.timestamp),
        "timestamp_type": record.timestamp_type.name(),
        "key_bytes": length(&record.key),
        "value_bytes": length(&record.value),
        "header_count": record.header_count,
    });
    if is_reader {
        shown["key"] = held(record.key.as_ref());
        shown["value"] = held(record.value.as_ref());
        let headers = record.headers.iter().map(|(name, value)| json!([held(Some(name)), held(value.as_ref())]));
        shown["headers"] = headers.collect();
    }
    shown
}

/// Text as text, other bytes as base64, null as null; what was cut says so.
fn held(part: Option<&Beginning>) -> Value {
    let Some(Beginning { bytes, length }) = part else { return Value::Null };
    let text = std::str::from_utf8(bytes);
    match (text, bytes.len() < *length) {
        (Ok(text), false) => json!(text),
        (Ok(text), true) => json!({ "beginning": text }),
        (Err(_), false) => json!({ "base64": STANDARD.encode(bytes) }),
        (Err(_), true) => json!({ "beginning_base64": STANDARD.encode(bytes) }),
    }
}

//! The records of a topic at a moment, for the status page: what they hold for whoever knows the reader's token, and for others when
//! and how large they were.
//!
//! They are read from the archive for one request at a time, with bounds of their own (see [`crate::replay::at_moment`]), so that
//! looking costs the archiver little.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::app::{App, AppState};
use super::auth::may_read;
use super::refusal::refusal;
use super::server::Peer;
use crate::error::{Error, Kind};
use crate::replay::{Beginning, Moment, Seen, at_moment};
use crate::time;

/// How many records are shown if the request does not say, and at the most.
const RECORDS: usize = 20;
const MOST_RECORDS: usize = 200;

/// So long records are looked for.
const READ_WITHIN: Duration = Duration::from_secs(10);

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
    let is_reader = match may_look(&app, &topic, (peer, &headers)) {
        Ok(is_reader) => is_reader,
        Err(refused) => return *refused,
    };
    let from = match time::parse(&asked.from, time::now()) {
        Ok(from) => from,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, format!("from: {error}")),
    };
    let most = asked.limit.unwrap_or(RECORDS);
    if !(1..=MOST_RECORDS).contains(&most) {
        return refusal(StatusCode::BAD_REQUEST, format!("limit: {most} is not allowed, use 1 to {MOST_RECORDS}"));
    }
    let found = match look(&app, is_reader, &topic, (from, most)).await {
        Ok(found) => found,
        Err(refused) => return *refused,
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

/// Returns whether what records hold is shown, if anything is.
fn may_look(app: &App, topic: &str, (peer, headers): (SocketAddr, &HeaderMap)) -> Result<bool, Box<Response>> {
    let Some(readers) = &app.readers else {
        let message = "no records are shown here: http.reader_token_file is not set";
        return Err(Box::new(refusal(StatusCode::FORBIDDEN, message)));
    };
    may_read(&readers.token, headers).inspect_err(|_| {
        app.gate.trail.refused("token", peer, &format!("records of {topic:?}"), Instant::now());
    })
}

async fn look(app: &App, is_reader: bool, topic: &str, (from, most): (i64, usize)) -> Result<Moment, Box<Response>> {
    let unavailable = |message: &str| Box::new(refusal(StatusCode::SERVICE_UNAVAILABLE, message));
    let (Some(opened), Some(kafka), Some(readers)) = (app.published.opened(), &app.config.kafka, &app.readers) else {
        return Err(unavailable("no topics are archived here, or the archive is still being opened"));
    };
    let Some(_turn) = readers.turn(is_reader).await else {
        return Err(unavailable("records are read for somebody else; ask again"));
    };
    let looking = at_moment(&opened.store, &kafka.cluster, topic, from, most);
    match tokio::time::timeout(READ_WITHIN, looking).await {
        Ok(found) => found.map_err(|error| Box::new(refusal(status_of(&error), error.to_string()))),
        Err(_) => Err(unavailable("the records were not found in 10 s: use `tidelog cat`")),
    }
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

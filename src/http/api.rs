//! What the status page shows, as JSON; described in `docs/HTTP.md`.
//!
//! Nothing in it depends on when it is asked for, so an answer has an ETag and a page that asks again gets 304 while
//! nothing has changed; the time stands in the header `Date`.

use std::hash::Hasher;

use axum::extract::{Path, State as Held};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use twox_hash::XxHash64;

use super::app::{App, AppState};
use super::health;
use super::refusal::refusal;
use crate::pipeline::desired::State;
use crate::pipeline::kafka::merge::Merges;
use crate::pipeline::kafka::status::{GapSpan, PartitionStatus, Stall, Status, StreamStatus, Trouble};
use crate::pipeline::postgres::{SlotStatus, Snapshot};
use crate::pipeline::state::status::{DocumentStatus, StateStatus};
use crate::source::postgres::{SlotKind, WalStatus};
use crate::stream::{Lsn, StateKind, StateOf};
use crate::tasks::{Failure, Weight};
use crate::telemetry::{REVISION, VERSION};
use crate::time;

/// `GET /api/status`.
pub(super) async fn status(Held(app): AppState, headers: HeaderMap) -> Response {
    let health = health::ready(&app).await;
    tagged(&headers, &overview(&app, &health))
}

/// `GET /api/streams/<topic>`: the partitions of a topic that this process owns.
pub(super) fn stream(
    Held(app): AppState,
    Path(topic): Path<String>,
    headers: HeaderMap,
) -> std::future::Ready<Response> {
    let status = app.published.kafka().map(|kafka| kafka.status()).unwrap_or_default();
    let found = status.streams.iter().find(|stream| *stream.topic == *topic);
    std::future::ready(match found {
        None => refusal(StatusCode::NOT_FOUND, format!("this process has no partition of a topic {topic}")),
        Some(stream) => {
            let mut answer = shown(stream);
            answer["partitions"] = stream.partitions.iter().map(partition).collect();
            answer["gaps"] = stream.gaps.iter().map(gap).collect();
            tagged(&headers, &answer)
        }
    })
}

/// Answers 304 if the client has this answer already.
fn tagged(headers: &HeaderMap, answer: &Value) -> Response {
    let body = answer.to_string();
    let mut hash = XxHash64::with_seed(0);
    hash.write(body.as_bytes());
    let tag = format!("\"{:016x}\"", hash.finish());
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let mut response = if known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, "application/json")], body).into_response()
    };
    let headers = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    // Kept, and asked for each time.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn overview(app: &App, health: &health::Health) -> Value {
    let opened = app.published.opened();
    json!({
        "version": VERSION,
        "revision": REVISION,
        "worker": app.worker,
        "writer": opened.map(|opened| opened.writer.as_str()),
        "started": time::utc(app.published.started()),
        "ready": health.reasons.is_empty(),
        "reasons": health.reasons,
        "notes": health.notes,
        "failing": app.published.tasks().failing().iter().map(failure).collect::<Vec<_>>(),
        "archive": app.config.archive.url.as_str(),
        "memory_budget_bytes": app.config.memory_budget,
        "kafka": app.published.kafka().zip(app.config.kafka.as_ref()).map(|(published, config)| {
            let mut kafka = kafka(&published.status());
            kafka["cluster"] = json!(config.cluster);
            kafka["cluster_id"] = json!(published.cluster_id());
            kafka["group_id"] = json!(config.group_id);
            kafka["merge"] = json!(config.merge.map(|_| merges(&published.merges.now())));
            kafka
        }),
        "postgres": app.published.postgres().map(|published| postgres(published.state(), &published.status.now())),
        "state": app.published.state().map(|published| state(&published.status())),
    })
}

fn merges(merged: &Merges) -> Value {
    json!({
        "merges": merged.merges,
        "segments": merged.segments,
        "stored_bytes_before": merged.bytes_before,
        "stored_bytes_after": merged.bytes_after,
        "deleted": merged.deleted,
        "damaged": merged.damaged,
        "last": utc(merged.last),
    })
}

fn state(status: &StateStatus) -> Value {
    let kind = |(kind, status): (&StateKind, &DocumentStatus)| {
        let DocumentStatus { versions, changed, polled } = status;
        let shown = json!({ "versions": versions, "changed": changed.map(time::utc), "polled": time::utc(*polled) });
        (kind.name().to_owned(), shown)
    };
    let failed = &status.failed;
    let stream = |(of, status): (&StateOf, &DocumentStatus)| {
        let DocumentStatus { versions, changed, polled } = status;
        json!({
            "stream": of.to_string(),
            "versions": versions,
            "changed": changed.map(time::utc),
            "polled": time::utc(*polled),
            "failed": failed.get(of),
        })
    };
    let refused =
        status.refused.values().flatten().map(|refusal| json!({ "what": refusal.what, "grant": refusal.grant }));
    json!({
        "kinds": status.kinds().iter().map(kind).collect::<serde_json::Map<_, _>>(),
        "streams": status.streams.iter().map(stream).collect::<Vec<_>>(),
        "refused": refused.collect::<Vec<_>>(),
    })
}

fn kafka(status: &Status) -> Value {
    json!({
        "state": status.state.name(),
        "since": status.since.map(time::utc),
        "member": status.member,
        "resolving": status.resolving,
        "brokers": status.brokers.as_ref().map(trouble),
        "memory_used_bytes": status.memory_used,
        "last_checkpoint": status.last_checkpoint.map(time::utc),
        "streams": status.streams.iter().map(|stream| {
            let mut answer = shown(stream);
            answer["partitions"] = json!(stream.partitions.len());
            answer["gaps"] = stream.gaps.iter().map(gap).collect();
            answer
        }).collect::<Vec<_>>(),
    })
}

fn postgres((state, since): (State, DateTime<Utc>), now: &Snapshot) -> Value {
    let slot = |status: &SlotStatus| {
        let (kind, database) = match &status.slot.kind {
            SlotKind::Physical => ("physical", None),
            SlotKind::Logical { database, .. } => ("logical", Some(database)),
        };
        json!({
            "slot": status.slot.name,
            "kind": kind,
            "database": database,
            "active": status.slot.active,
            "wal_status": status.slot.wal_status.map(WalStatus::name),
            "retained_bytes": status.slot.retained_bytes,
            "safe_bytes": status.slot.safe_bytes,
            "seconds_to_loss": status.seconds_to_loss.map(f64::round),
        })
    };
    let lsn = |lsn: Lsn| (lsn.0 > 0).then(|| lsn.to_string());
    json!({
        "state": state.name(),
        "since": time::utc(since),
        "host": now.host,
        "trouble": now.trouble,
        // As text: JavaScript's numbers do not hold it.
        "system_id": now.system_id.map(|id| id.to_string()),
        "timeline": now.timeline,
        "server_lsn": lsn(now.server),
        "received_lsn": lsn(now.received),
        "durable_lsn": lsn(now.durable),
        "lag_bytes": now.lag_bytes,
        "complete_through": utc(now.complete_through),
        "last_commit": utc(now.last_commit),
        "bytes": now.raw_bytes,
        "stored_bytes": now.stored_bytes,
        "segments": now.segments,
        "gaps": now.gaps,
        "slots": now.slots.iter().map(slot).collect::<Vec<_>>(),
        "last_backup": utc(now.last_backup),
        "windows": now.windows.iter().map(|window| {
            json!({ "from": time::utc(window.from), "to": time::utc(window.to) })
        }).collect::<Vec<_>>(),
    })
}

/// A stream without its partitions and gaps.
fn shown(stream: &StreamStatus) -> Value {
    let totals = &stream.totals;
    json!({
        "stream": *stream.stream,
        "topic": *stream.topic,
        "generation": stream.generation,
        "records": totals.records,
        "bytes": totals.raw_bytes,
        "stored_bytes": totals.stored_bytes,
        "segments": totals.segments,
        "gap_count": totals.gaps,
        "min_time": totals.min_timestamp.map(time::rfc3339),
        "max_time": totals.max_timestamp.map(time::rfc3339),
        "complete_through": utc(stream.complete_through),
        "lag_records": stream.lag_records(),
        // Digits that nobody reads would make every answer a new one.
        "records_per_second": rounded(stream.records_per_second),
        "bytes_per_second": rounded(stream.bytes_per_second),
        "segments_waiting": stream.waiting,
        "stalled": stream.partitions.iter().filter(|at| at.stall.is_some()).map(|at| at.partition).collect::<Vec<_>>(),
        "trouble": stream.trouble.as_ref().map(trouble),
    })
}

fn rounded(rate: f64) -> f64 {
    (rate * 10.0).round() / 10.0
}

fn utc(at: Option<DateTime<Utc>>) -> Option<String> {
    at.map(time::utc)
}

fn failure(failure: &Failure) -> Value {
    json!({
        "task": failure.task.name(),
        "about": *failure.about,
        "since": time::utc(failure.since),
        "text": *failure.text,
        "hint": failure.hint.as_deref(),
        "next_try": utc(failure.next_try),
        "stops_archiving": failure.task.weight() == Weight::Stops,
    })
}

fn trouble(trouble: &Trouble) -> Value {
    json!({ "since": time::utc(trouble.since), "text": *trouble.text })
}

fn partition(at: &PartitionStatus) -> Value {
    json!({
        "partition": at.partition,
        "checkpoint_position": at.committed,
        "archived": at.archived,
        "next": at.next,
        "end": at.end,
        "lag_records": at.lag_records(),
        "complete_through": utc(at.complete_through),
        "held": at.held,
        "stall": at.stall.as_ref().map(stall),
    })
}

fn stall(stall: &Stall) -> Value {
    json!({
        "reason": stall.cause.name(),
        "since": time::utc(stall.since),
        "text": *stall.text,
        "hint": *stall.hint,
    })
}

fn gap(gap: &GapSpan) -> Value {
    json!({
        "partition": gap.partition,
        "start": gap.start,
        "end": gap.end,
        "offsets": gap.end - gap.start,
        "reason": gap.reason,
        "from": gap.from.map(time::rfc3339),
        "to": time::rfc3339(gap.to),
        "found": time::rfc3339(gap.found),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_the_client_has_is_not_sent_again() {
        let (one, other) = (json!({ "a": 1 }), json!({ "a": 2 }));
        let first = tagged(&HeaderMap::new(), &one);
        let tag = first.headers()[header::ETAG].clone();
        let asked = HeaderMap::from_iter([(header::IF_NONE_MATCH, tag)]);
        assert_eq!(first.status(), StatusCode::OK);
        assert_eq!(tagged(&asked, &one).status(), StatusCode::NOT_MODIFIED);
        assert_eq!(tagged(&asked, &other).status(), StatusCode::OK);
    }
}

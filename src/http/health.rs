//! Whether the process makes progress (`/healthz`), and whether it does its work (`/readyz`); if not, why not.
//!
//! A process that is not healthy is to be killed. One that is not ready waits for something: a broker, the store, the
//! group; killing it would not help. Somebody's pause is neither.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::app::{App, AppState};
use crate::pipeline::desired::State as Activity;
use crate::pipeline::kafka::status::{Stall, Status};
use crate::pipeline::postgres::{SlotStatus, Snapshot};
use crate::source::postgres::WalStatus;
use crate::stream::StreamId;
use crate::tasks::{Failure, Task, Weight};
use crate::time;

/// The collector goes round ten times a second; librdkafka may hold it for some seconds when partitions move.
const SILENT_AT_MOST: Duration = Duration::from_secs(30);

/// The receiver of WAL shows itself once a second; a disk may hold up a sync for a while.
const HELD_UP_AT_MOST: Duration = Duration::from_secs(60);

/// So many topics that fail are named.
const MOST_NAMED: usize = 3;

/// Seconds to its loss under which a replication slot is told of, as the log and the page do.
const NEAR_LOSS: f64 = 3_600.0;

/// What is wrong, and what else one should know.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Health {
    pub(super) reasons: Vec<String>,
    pub(super) notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Answer {
    status: &'static str,
    reasons: Vec<String>,
    notes: Vec<String>,
}

impl Health {
    fn answer(self, good: &'static str, bad: &'static str) -> Response {
        let Self { reasons, notes } = self;
        let (code, status) =
            if reasons.is_empty() { (StatusCode::OK, good) } else { (StatusCode::SERVICE_UNAVAILABLE, bad) };
        (code, Json(Answer { status, reasons, notes })).into_response()
    }
}

/// `GET /healthz`.
pub(super) fn healthz(State(app): AppState) -> std::future::Ready<Response> {
    std::future::ready(live(&app, Instant::now()).answer("ok", "failing"))
}

/// `GET /readyz`.
pub(super) async fn readyz(State(app): AppState) -> Response {
    ready(&app).await.answer("ready", "not ready")
}

fn live(app: &App, now: Instant) -> Health {
    let mut health = Health::default();
    match (app.published.opened(), app.published.kafka()) {
        (None, _) => health.notes.push("the archive is being opened".to_owned()),
        (Some(_), Some(kafka)) if kafka.silent_for(now) > SILENT_AT_MOST => health.reasons.push(format!(
            "the collector has made no round for {} s: restart the process; nothing is lost by it",
            kafka.silent_for(now).as_secs()
        )),
        _ => {}
    }
    let held_up = app.published.postgres().map_or(Duration::ZERO, |postgres| postgres.status.silent_for(now));
    if held_up > HELD_UP_AT_MOST {
        health.reasons.push(format!(
            "the receiver of WAL has been held up for {} s, by the disk of archive.spool_dir or a fault: restart the process; nothing is lost by it",
            held_up.as_secs()
        ));
    }
    health
}

/// Returns what keeps the process from its work.
pub(super) async fn ready(app: &App) -> Health {
    let mut health = live(app, Instant::now());
    let Some(opened) = app.published.opened() else {
        health.reasons.append(&mut health.notes);
        return health;
    };
    let status = app.published.kafka().map(|kafka| kafka.status()).unwrap_or_default();
    if app.published.kafka().is_some() {
        judge(&status, &mut health);
        judge_stalls(&status, time::now(), &mut health);
    }
    let resting = app.published.postgres().is_some_and(|postgres| is_resting(postgres.state().0));
    judge_failures(&app.published.tasks().failing(), resting, &mut health);
    let mut stream = status.streams.first().map(|stream| stream.stream.to_string());
    if let Some(postgres) = app.published.postgres() {
        let now = postgres.status.now();
        judge_postgres(postgres.state(), &now, &mut health);
        stream = stream.or(now.system_id.map(|system_id| StreamId::Postgres { system_id }.to_string()));
    }
    if let Err(why) = app.store.ask(opened, stream.as_deref()).await {
        health.reasons.push(why.to_string());
    }
    health
}

/// What the state of a connector means for readiness; `connecting` says why it is not there yet.
fn judge_state(name: &str, (state, since): (Activity, Option<DateTime<Utc>>), connecting: &str, health: &mut Health) {
    let since = since.map(|since| format!(" since {}", time::utc(since))).unwrap_or_default();
    match state {
        Activity::Running => {}
        Activity::Paused | Activity::Stopped => {
            let state = state.name();
            health.notes.push(format!("{name} is {state}{since}: PUT /connectors/{name}/resume goes on"));
        }
        Activity::Ending => health.reasons.push("the process is ending".to_owned()),
        Activity::Restarting => health.reasons.push(format!("{name} is restarting")),
        Activity::Connecting => health.reasons.push(format!("{connecting}{since}: see the log")),
    }
}

fn judge_postgres(state: (Activity, DateTime<Utc>), now: &Snapshot, health: &mut Health) {
    match &now.trouble {
        // It is told with everything that fails.
        Some(_) if !is_resting(state.0) => {}
        _ => judge_state("postgres", (state.0, Some(state.1)), "no write-ahead log is received", health),
    }
    // The server's disk fills meanwhile, and whoever looks at it asks why.
    let own = now.slots.iter().find(|slot| now.trouble.is_some() && now.slot.as_ref() == Some(&slot.slot.name));
    let kept = own.and_then(|slot| slot.slot.retained_bytes.map(|bytes| (&slot.slot.name, bytes)));
    health.notes.extend(kept.map(|(slot, bytes)| {
        format!("no write-ahead log is archived, and the replication slot {slot} keeps {bytes} bytes of it on the server's disk")
    }));
    let lost = now.slots.iter().filter(|slot| slot.slot.is_lost());
    health.notes.extend(lost.map(|slot| format!("the replication slot {} is lost", slot.slot.name)));
    let near = now.slots.iter().filter(|slot| is_near_loss(slot));
    health.notes.extend(near.map(|slot| format!("the replication slot {} can be lost within an hour", slot.slot.name)));
}

fn is_resting(state: Activity) -> bool {
    matches!(state, Activity::Paused | Activity::Stopped)
}

/// What fails and is tried again: of each task a few are named.
fn judge_failures(failing: &[Failure], postgres_rests: bool, health: &mut Health) {
    for of_task in failing.chunk_by(|one, next| one.task == next.task) {
        let task = of_task[0].task;
        if postgres_rests && task.is_of_postgres() {
            continue;
        }
        let into = if task.weight() == Weight::Stops { &mut health.reasons } else { &mut health.notes };
        into.extend(of_task.iter().take(MOST_NAMED).map(tell));
        let more = of_task.len().saturating_sub(MOST_NAMED);
        if more > 0 {
            into.push(format!("{more} more of {} fail", task.name()));
        }
    }
}

/// Partitions that stand still, with their reason and the way out: a few of each reason are named. One that has stood for a
/// while makes the process unready, but for a transaction of somebody else's that is open: nothing here can end it.
fn judge_stalls(status: &Status, now: DateTime<Utc>, health: &mut Health) {
    let streams = status.streams.iter();
    let stalls = streams.flat_map(|stream| stream.partitions.iter().map(move |at| (stream, at)));
    let mut stalls: Vec<_> = stalls.filter_map(|(stream, at)| Some((at.stall.as_ref()?, &*stream.topic, at))).collect();
    stalls.sort_by_key(|(stall, topic, at)| (!stall.is_failure(now), stall.cause, *topic, at.partition));
    let kind = |stall: &Stall| (stall.cause, stall.is_failure(now));
    for alike in stalls.chunk_by(|(one, ..), (next, ..)| kind(one) == kind(next)) {
        let (stall, ..) = alike[0];
        let into = if stall.is_failure(now) { &mut health.reasons } else { &mut health.notes };
        into.extend(alike.iter().take(MOST_NAMED).map(|(stall, topic, at)| {
            let Stall { cause, since, text, hint } = stall;
            let (partition, offset, since) = (at.partition, at.next, time::utc(*since));
            format!(
                "{topic} partition {partition} stands at offset {offset} since {since}: {text} ({}, do: {hint})",
                cause.name()
            )
        }));
        let more = alike.len().saturating_sub(MOST_NAMED);
        if more > 0 {
            into.push(format!("{more} more partitions stand still ({})", stall.cause.name()));
        }
    }
}

fn tell(failure: &Failure) -> String {
    let about = match &*failure.about {
        "" if failure.task == Task::Leftovers => "archive",
        "" if failure.task.is_of_postgres() => "postgres",
        "" => "kafka",
        about => about,
    };
    let hint = failure.hint.as_deref().map(|hint| format!(", do: {hint}")).unwrap_or_default();
    format!("{about}: {} (since {}{hint})", failure.text, time::utc(failure.since))
}

/// Returns whether a slot loses its log within the hour if nothing changes. One whose reader is there and has not fallen behind is
/// as far from its loss as it can be, however small `max_slot_wal_keep_size` is.
fn is_near_loss(status: &SlotStatus) -> bool {
    let keeps_up = status.slot.active && status.slot.wal_status == Some(WalStatus::Reserved);
    !status.slot.is_lost() && !keeps_up && status.seconds_to_loss.is_some_and(|left| left < NEAR_LOSS)
}

fn judge(status: &Status, health: &mut Health) {
    judge_state("kafka", (status.state, status.since), "the consumer group has not taken this process in", health);
    if status.resolving > 0 {
        health.reasons.push(format!("the positions of {} partitions are being looked up", status.resolving));
    }
    if status.memory_full {
        health.notes.push("fetching pauses: memory.budget is used up".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::{Slot, SlotKind};

    fn judged(status: &Status) -> Health {
        let mut health = Health::default();
        judge(status, &mut health);
        health
    }

    #[test]
    fn only_what_keeps_it_from_work_makes_it_unready() {
        let since = DateTime::from_timestamp_millis(0);
        let running = Status { state: Activity::Running, since, ..Status::default() };
        assert_eq!(judged(&running), Health::default());
        let paused = judged(&Status { state: Activity::Paused, ..running.clone() });
        assert_eq!(
            (paused.reasons.len(), paused.notes),
            (
                0,
                vec!["kafka is paused since 1970-01-01T00:00:00.000Z: PUT /connectors/kafka/resume goes on".to_owned()]
            )
        );
        for (status, says) in [
            (
                Status { state: Activity::Connecting, ..running.clone() },
                "the consumer group has not taken this process in",
            ),
            (Status { state: Activity::Ending, ..running.clone() }, "is ending"),
            (Status { resolving: 3, ..running.clone() }, "the positions of 3 partitions"),
        ] {
            let health = judged(&status);
            assert!(health.reasons.len() == 1 && health.reasons[0].contains(says), "{health:?}");
        }
    }

    #[test]
    fn what_stops_archiving_is_a_reason_and_what_hinders_it_a_note() {
        let failure = |task, about: &str| Failure {
            task,
            about: about.into(),
            since: DateTime::from_timestamp_millis(0).expect("a time"),
            text: "an upload: no answer".into(),
            hint: Some("wait".into()),
            next_try: None,
        };
        let mut failing: Vec<Failure> = ["a", "b", "c", "d", "e"].map(|at| failure(Task::KafkaUpload, at)).into();
        failing.push(failure(Task::WalReceive, ""));
        failing.push(failure(Task::BaseBackup, ""));
        let mut health = Health::default();
        judge_failures(&failing, false, &mut health);
        assert_eq!(health.reasons.len(), 5);
        assert_eq!(health.reasons[0], "a: an upload: no answer (since 1970-01-01T00:00:00.000Z, do: wait)");
        assert_eq!(health.reasons[3], "2 more of kafka_upload fail");
        assert!(health.reasons[4].starts_with("postgres: an upload") && health.notes.len() == 1, "{health:?}");
        let mut resting = Health::default();
        judge_failures(&failing, true, &mut resting);
        assert_eq!((resting.reasons.len(), resting.notes.len()), (4, 0), "somebody has paused it");
    }

    #[test]
    fn a_slot_is_told_of_before_it_is_lost_and_after() {
        let slot = |name: &str, wal_status, seconds_to_loss| SlotStatus {
            slot: Slot {
                name: name.to_owned(),
                kind: SlotKind::Physical,
                active: false,
                wal_status: Some(wal_status),
                restart: None,
                retained_bytes: None,
                safe_bytes: None,
                inactive_since_ms: None,
                invalidation_reason: None,
            },
            seconds_to_loss,
        };
        let mut read = slot("read", WalStatus::Reserved, Some(10.0));
        read.slot.active = true;
        let slots = vec![
            read,
            slot("gone", WalStatus::Lost, Some(0.0)),
            slot("near", WalStatus::Extended, Some(3_599.0)),
            slot("far", WalStatus::Extended, Some(3_600.0)),
            slot("safe", WalStatus::Reserved, None),
        ];
        let mut health = Health::default();
        let running = (Activity::Running, DateTime::default());
        judge_postgres(running, &Snapshot { slots, ..Snapshot::default() }, &mut health);
        assert_eq!(
            health.notes,
            ["the replication slot gone is lost", "the replication slot near can be lost within an hour"]
        );
        assert!(health.reasons.is_empty(), "{health:?}");
    }
}

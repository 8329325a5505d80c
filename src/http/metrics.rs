//! `/metrics`: what was counted, and what is so now.

use std::ops::Add;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};

use super::app::AppState;
use super::health;
use crate::manifest::drills::{Drilled, Outcome};
use crate::pipeline::desired::State as Activity;
use crate::pipeline::kafka::status::{Cause, Incomplete, PartitionStatus, Status};
use crate::pipeline::postgres::{SlotStatus, Snapshot};
use crate::tasks::{Task, Tasks};
use crate::telemetry::metrics::{
    ALL_PARTITIONS, ASSIGNED_PARTITIONS, BASE_BACKUP, BUILD_INFO, CHECKPOINT_POSITION, COMPLETE_THROUGH,
    CONNECTORS_FAILED, DRILL_PASSED, DRILL_SUCCESS, Exposition, LAG_RECORDS, LAG_SECONDS, LAST_CHECKPOINT,
    MEMORY_BUDGET, MEMORY_USED, Metric, OTHER_TOPICS, PAUSED, READY, RECOVERABLE_FROM, RECOVERABLE_TO,
    SEGMENTS_WAITING, SLOT_LOST, SLOT_RETAINED, SLOT_SAFE, SLOT_SECONDS_TO_LOSS, STALLED_PARTITIONS, STALLED_SINCE,
    STATE_POLLED, TASK_FAILING, TASK_FAILING_SINCE, WAL_DURABLE, WAL_LAG_BYTES, WAL_LAG_SECONDS, WAL_RECEIVED,
};
use crate::telemetry::{REVISION, VERSION, process};

/// `GET /metrics`.
pub(super) async fn metrics(State(app): AppState) -> Response {
    let ready = health::ready(&app).await.reasons.is_empty();
    let mut out = Exposition::after(app.recorder.render());
    out.single(&BUILD_INFO, &[("version", VERSION), ("revision", REVISION)], 1.0);
    out.single(&READY, &[], flag(ready));
    out.single(&MEMORY_BUDGET, &[], app.config.memory_budget as f64);
    let kafka = app.published.kafka().map(|kafka| ("kafka", kafka.status().state));
    let postgres = app.published.postgres().map(|postgres| ("postgres", postgres.state().0));
    out.family(&PAUSED, |samples| {
        for (connector, state) in kafka.into_iter().chain(postgres) {
            samples.add(&[("connector", connector)], flag(matches!(state, Activity::Paused | Activity::Stopped)));
        }
    });
    expose_tasks(app.published.tasks(), &mut out);
    if let Some(kafka) = app.published.kafka() {
        expose_kafka(&kafka.status(), crate::time::now(), &mut out);
    }
    if let Some(postgres) = app.published.postgres() {
        expose_postgres(&postgres.status.now(), crate::time::now(), &mut out);
    }
    if let Some(state) = app.published.state() {
        let status = state.status();
        let polled = status.kinds();
        out.family(&STATE_POLLED, |samples| {
            polled.iter().for_each(|(kind, status)| samples.add(&[("kind", kind.name())], seconds(status.polled)));
        });
        out.family(&CONNECTORS_FAILED, |samples| {
            status.failed.iter().for_each(|(of, names)| samples.add(&[("cluster", &of.scope)], names.len() as f64));
        });
    }
    expose_drills(&app.published.drills().last(), &mut out);
    process::expose(&mut out);
    answer(out)
}

/// The answer of a path that Prometheus reads.
pub(super) fn answer(out: Exposition) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], out.finish()).into_response()
}

fn flag(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

fn expose_kafka(status: &Status, now: DateTime<Utc>, out: &mut Exposition) {
    out.single(&MEMORY_USED, &[], status.memory_used as f64);
    let partitions: usize = status.streams.iter().map(|stream| stream.partitions.len()).sum();
    out.single(&ASSIGNED_PARTITIONS, &[], partitions as f64);
    let waiting: u64 = status.streams.iter().map(|stream| stream.waiting).sum();
    out.single(&SEGMENTS_WAITING, &[], waiting as f64);
    if let Some(at) = status.last_checkpoint {
        out.single(&LAST_CHECKPOINT, &[("kind", "kafka")], seconds(at));
    }
    let age = |at: DateTime<Utc>| (seconds(now) - seconds(at)).max(0.0);
    let never = |value: &dyn Fn(DateTime<Utc>) -> f64| {
        let sample =
            |at: &Incomplete| Sample { label: Arc::clone(&at.label), partition: at.partition, value: value(at.since) };
        status.incomplete.iter().map(sample).collect::<Vec<_>>()
    };
    expose_stalls(status, out);
    per_partition(&CHECKPOINT_POSITION, samples(status, |at| Some(at.committed as f64)), Add::add, out);
    per_partition(&LAG_RECORDS, samples(status, |at| at.lag_records().map(|lag| lag as f64)), Add::add, out);
    let lags = samples(status, |at| at.complete_through.map(age)).chain(never(&age));
    per_partition(&LAG_SECONDS, lags, f64::max, out);
    let complete = samples(status, |at| at.complete_through.map(seconds)).chain(never(&|_| 0.0));
    per_partition(&COMPLETE_THROUGH, complete, f64::min, out);
}

/// How many partitions stand still by each cause, and since when each of them.
fn expose_stalls(status: &Status, out: &mut Exposition) {
    let stalls = || status.streams.iter().flat_map(|stream| &stream.partitions).filter_map(|at| at.stall.as_ref());
    out.family(&STALLED_PARTITIONS, |samples| {
        for cause in Cause::ALL {
            let count = stalls().filter(|stall| stall.cause == cause).count();
            samples.add(&[("reason", cause.name())], count as f64);
        }
    });
    let since = |at: &PartitionStatus| at.stall.as_ref().map(|stall| seconds(stall.since));
    per_partition(&STALLED_SINCE, samples(status, since), f64::min, out);
}

fn expose_tasks(tasks: &Tasks, out: &mut Exposition) {
    out.family(&TASK_FAILING, |samples| {
        for task in Task::ALL {
            samples.add(&[("task", task.name())], tasks.failing_of(*task).0 as f64);
        }
    });
    out.family(&TASK_FAILING_SINCE, |samples| {
        for task in Task::ALL {
            if let Some(since) = tasks.failing_of(*task).1 {
                samples.add(&[("task", task.name())], seconds(since));
            }
        }
    });
}

fn expose_drills(last: &[Drilled], out: &mut Exposition) {
    out.family(&DRILL_SUCCESS, |samples| {
        for (drilled, at) in last.iter().filter_map(|drilled| Some((drilled, drilled.last_success?))) {
            samples.add(&[("drill", &drilled.drill)], seconds(at));
        }
    });
    out.family(&DRILL_PASSED, |samples| {
        for drilled in last {
            samples.add(&[("drill", &drilled.drill)], flag(drilled.outcome == Outcome::Passed));
        }
    });
}

fn expose_postgres(now: &Snapshot, at: DateTime<Utc>, out: &mut Exposition) {
    // Nothing was received yet: 0 would be a position that is wrong.
    if now.received.0 > 0 {
        out.single(&WAL_RECEIVED, &[], now.received.0 as f64);
    }
    if now.durable.0 > 0 {
        out.single(&WAL_DURABLE, &[], now.durable.0 as f64);
        out.single(&WAL_LAG_BYTES, &[], now.lag_bytes as f64);
    }
    if let Some(through) = now.complete_through {
        out.single(&WAL_LAG_SECONDS, &[], (seconds(at) - seconds(through)).max(0.0));
    }
    per_slot(&SLOT_RETAINED, now, |slot| slot.slot.retained_bytes.map(|bytes| bytes as f64), out);
    per_slot(&SLOT_SAFE, now, |slot| slot.slot.safe_bytes.map(|bytes| bytes as f64), out);
    per_slot(&SLOT_LOST, now, |slot| Some(flag(slot.slot.is_lost())), out);
    per_slot(&SLOT_SECONDS_TO_LOSS, now, |slot| slot.seconds_to_loss, out);
    if let Some(last) = now.last_backup {
        out.single(&BASE_BACKUP, &[], seconds(last));
    }
    if let Some(window) = now.windows.last() {
        out.single(&RECOVERABLE_FROM, &[], seconds(window.from));
        out.single(&RECOVERABLE_TO, &[], seconds(window.to));
    }
}

fn per_slot(metric: &Metric, now: &Snapshot, value: impl Fn(&SlotStatus) -> Option<f64>, out: &mut Exposition) {
    out.family(metric, |samples| {
        for slot in &now.slots {
            if let Some(value) = value(slot) {
                samples.add(&[("slot", &slot.slot.name)], value);
            }
        }
    });
}

fn seconds(time: DateTime<Utc>) -> f64 {
    time.timestamp_millis() as f64 / 1000.0
}

/// What is known of one partition.
struct Sample {
    label: Arc<str>,
    partition: i32,
    value: f64,
}

/// Returns what is known of the partitions that are read.
fn samples(status: &Status, value: impl Fn(&PartitionStatus) -> Option<f64>) -> impl Iterator<Item = Sample> {
    let partitions = status.streams.iter().flat_map(|stream| stream.partitions.iter().map(move |at| (stream, at)));
    partitions.filter_map(move |(stream, at)| {
        Some(Sample { label: Arc::clone(&stream.label), partition: at.partition, value: value(at)? })
    })
}

/// Writes a series for each partition of a topic that has its own label, and one for all others together.
fn per_partition(
    metric: &Metric,
    known: impl Iterator<Item = Sample>,
    fold: impl Fn(f64, f64) -> f64,
    out: &mut Exposition,
) {
    let mut others: Option<f64> = None;
    out.family(metric, |samples| {
        for Sample { label, partition, value } in known {
            if &*label == OTHER_TOPICS {
                others = Some(others.map_or(value, |sum| fold(sum, value)));
            } else {
                samples.add(&[("topic", &label), ("partition", &partition.to_string())], value);
            }
        }
        if let Some(value) = others {
            samples.add(&[("topic", OTHER_TOPICS), ("partition", ALL_PARTITIONS)], value);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::kafka::status::StreamStatus;
    use crate::stream::Totals;

    fn at(ms: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(ms).expect("a time")
    }

    fn stream(topic: &str, label: &str, partitions: &[(i64, Option<i64>, Option<i64>)]) -> StreamStatus {
        let partition =
            |(number, &(archived, end, complete)): (i32, &(i64, Option<i64>, Option<i64>))| PartitionStatus {
                partition: number,
                committed: archived,
                archived,
                next: archived,
                end,
                complete_through: complete.map(at),
                held: false,
                stall: None,
            };
        StreamStatus {
            stream: format!("kafka/main/{topic}.0").into(),
            topic: topic.into(),
            label: label.into(),
            generation: 0,
            partitions: (0..).zip(partitions).map(partition).collect(),
            totals: Totals::default(),
            gaps: Arc::new([]),
            records_per_second: 0.0,
            bytes_per_second: 0.0,
            waiting: 2,
            complete_through: None,
            trouble: None,
        }
    }

    #[test]
    fn topics_beyond_the_limit_are_summed_and_what_is_not_known_is_left_out() {
        let status = Status {
            streams: vec![
                stream("a", "a", &[(10, Some(15), Some(1_000)), (7, None, None)]),
                stream("b", OTHER_TOPICS, &[(100, Some(101), Some(4_000)), (200, Some(205), Some(3_000))]),
                stream("c", OTHER_TOPICS, &[(1, Some(1), Some(5_000))]),
            ],
            // One that is read and was never complete, and one whose position is still being looked up.
            incomplete: [("a", 1, 2_000), ("d", 0, 3_500), (OTHER_TOPICS, 0, 1_500)]
                .map(|(label, partition, since)| Incomplete { label: label.into(), partition, since: at(since) })
                .into(),
            ..Status::default()
        };
        let mut out = Exposition::default();
        expose_kafka(&status, at(6_000), &mut out);
        let text = out.finish();
        let samples: Vec<&str> =
            text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("tidelog_stalled")).collect();
        assert_eq!(
            samples,
            [
                "tidelog_memory_used_bytes 0",
                "tidelog_assigned_partitions 5",
                "tidelog_segments_waiting 6",
                "tidelog_checkpoint_position{topic=\"a\",partition=\"0\"} 10",
                "tidelog_checkpoint_position{topic=\"a\",partition=\"1\"} 7",
                "tidelog_checkpoint_position{topic=\"(other)\",partition=\"(all)\"} 301",
                "tidelog_lag_records{topic=\"a\",partition=\"0\"} 5",
                "tidelog_lag_records{topic=\"(other)\",partition=\"(all)\"} 6",
                "tidelog_lag_seconds{topic=\"a\",partition=\"0\"} 5",
                "tidelog_lag_seconds{topic=\"a\",partition=\"1\"} 4",
                "tidelog_lag_seconds{topic=\"d\",partition=\"0\"} 2.5",
                "tidelog_lag_seconds{topic=\"(other)\",partition=\"(all)\"} 4.5",
                "tidelog_complete_through_timestamp_seconds{topic=\"a\",partition=\"0\"} 1",
                "tidelog_complete_through_timestamp_seconds{topic=\"a\",partition=\"1\"} 0",
                "tidelog_complete_through_timestamp_seconds{topic=\"d\",partition=\"0\"} 0",
                "tidelog_complete_through_timestamp_seconds{topic=\"(other)\",partition=\"(all)\"} 0",
            ]
        );
    }
}

//! A connector as Connect describes one, made from what the pipeline shows.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::masked;
use super::names::{KAFKA, KAFKA_CLASS, POSTGRES, POSTGRES_CLASS};
use crate::http::app::App;
use crate::pipeline::desired::State;
use crate::pipeline::kafka::status::{PartitionStatus, Stall, Status, StreamStatus};
use crate::pipeline::postgres::Snapshot;
use crate::time;

/// A connector at one moment.
pub(super) struct Connector {
    pub(super) name: &'static str,
    pub(super) config: BTreeMap<String, String>,
    pub(super) topics: Vec<String>,
    kind: &'static str,
    state: &'static str,
    worker: String,
    tasks: Vec<Task>,
}

/// A task of it: a partition.
struct Task {
    state: &'static str,
    /// Why it failed.
    trace: Option<String>,
    config: Value,
    partition: Value,
    offset: Value,
}

impl Connector {
    /// The connectors that the configuration has.
    pub(super) fn all(app: &App) -> Vec<Self> {
        let kafka = app.config.kafka.as_ref().zip(app.published.kafka());
        let kafka = kafka.map(|(config, published)| {
            let status = published.status();
            Self {
                name: KAFKA,
                config: masked::kafka(&app.config, config),
                topics: status.streams.iter().map(|stream| stream.topic.to_string()).collect(),
                kind: "sink",
                state: connector_state(status.state),
                worker: app.worker.clone(),
                tasks: tasks(&status, time::now()),
            }
        });
        let postgres = app.config.postgres.as_ref().zip(app.published.postgres());
        let postgres = postgres.map(|(config, published)| {
            let ((state, _), now) = (published.state(), published.status.now());
            Self {
                name: POSTGRES,
                config: masked::postgres(&app.config, config),
                topics: Vec::new(),
                kind: "source",
                state: connector_state(state),
                worker: app.worker.clone(),
                tasks: wal_task(state, &now).into_iter().collect(),
            }
        });
        kafka.into_iter().chain(postgres).collect()
    }

    fn task_ids(&self) -> Vec<Value> {
        (0..self.tasks.len()).map(|task| json!({ "connector": self.name, "task": task })).collect()
    }

    /// Connect's `ConnectorInfo`.
    pub(super) fn info(&self) -> Value {
        json!({ "name": self.name, "config": self.config, "tasks": self.task_ids(), "type": self.kind })
    }

    /// Connect's `ConnectorStateInfo`.
    pub(super) fn status(&self) -> Value {
        let tasks = (0..self.tasks.len()).filter_map(|task| self.task_status(task));
        json!({
            "name": self.name,
            "connector": { "state": self.state, "worker_id": self.worker },
            "tasks": tasks.collect::<Vec<_>>(),
            "type": self.kind,
        })
    }

    /// As [`Connector::status`], with everything about to restart.
    pub(super) fn restarting(&self) -> Value {
        let mut status = self.status();
        status["connector"]["state"] = json!("RESTARTING");
        for task in status["tasks"].as_array_mut().into_iter().flatten() {
            task["state"] = json!("RESTARTING");
        }
        status
    }

    /// Connect's `TaskState`.
    pub(super) fn task_status(&self, number: usize) -> Option<Value> {
        let task = self.tasks.get(number)?;
        let mut status = json!({ "id": number, "state": task.state, "worker_id": self.worker });
        if let Some(trace) = &task.trace {
            status["trace"] = json!(trace);
        }
        Some(status)
    }

    /// Connect's list of `TaskInfo`.
    pub(super) fn task_configs(&self) -> Value {
        let tasks = self.task_ids().into_iter().zip(&self.tasks);
        tasks.map(|(id, task)| json!({ "id": id, "config": task.config })).collect()
    }

    /// Connect's `ConnectorOffsets` (KIP-875).
    pub(super) fn offsets(&self) -> Value {
        let offsets = self.tasks.iter().map(|task| json!({ "partition": task.partition, "offset": task.offset }));
        json!({ "offsets": offsets.collect::<Vec<_>>() })
    }
}

/// The states of Connect (`AbstractStatus.State`).
fn connector_state(state: State) -> &'static str {
    match state {
        State::Connecting => "UNASSIGNED",
        State::Running | State::Ending => "RUNNING",
        State::Paused => "PAUSED",
        State::Stopped => "STOPPED",
        State::Restarting => "RESTARTING",
    }
}

fn tasks(status: &Status, now: DateTime<Utc>) -> Vec<Task> {
    let partitions = status.streams.iter().flat_map(|stream| stream.partitions.iter().map(move |at| (stream, at)));
    partitions.map(|(stream, at)| task(status.state, (stream, at), now)).collect()
}

/// A partition whose topic cannot reach the store, or that stands still, counts as failed, although it goes on by itself: that is
/// the state for which people set alarms.
fn task(state: State, (stream, at): (&StreamStatus, &PartitionStatus), now: DateTime<Utc>) -> Task {
    let failure = at.stall.as_ref().filter(|stall| stall.is_failure(now));
    let (state, trace) = match (&stream.trouble, failure) {
        (Some(trouble), _) => ("FAILED", Some(trouble.text.to_string())),
        (None, Some(stall)) => ("FAILED", Some(stands(at, stall))),
        (None, None) if at.held && state == State::Running => ("UNASSIGNED", None),
        (None, None) => (connector_state(state), None),
    };
    Task {
        state,
        trace,
        config: json!({ "task.class": KAFKA_CLASS, "topic": *stream.topic, "partition": at.partition.to_string() }),
        partition: json!({ "kafka_topic": *stream.topic, "kafka_partition": at.partition }),
        offset: json!({ "kafka_offset": at.committed }),
    }
}

fn stands(at: &PartitionStatus, Stall { cause, since, text, hint }: &Stall) -> String {
    let (offset, since) = (at.next, time::utc(*since));
    format!("stands at offset {offset} since {since}: {text} ({}, do: {hint})", cause.name())
}

/// The one timeline that is received; a connector that was stopped has no task.
fn wal_task(state: State, now: &Snapshot) -> Option<Task> {
    let (system, timeline) = now.system_id.zip(now.timeline).filter(|_| state != State::Stopped)?;
    let failing = now.trouble.clone().filter(|_| matches!(state, State::Connecting | State::Running));
    Some(Task {
        state: if failing.is_some() { "FAILED" } else { connector_state(state) },
        trace: failing,
        config: json!({ "task.class": POSTGRES_CLASS, "system_id": system.to_string(), "timeline": timeline.to_string() }),
        partition: json!({ "system_id": system.to_string(), "timeline": timeline }),
        offset: json!({ "lsn": now.durable.to_string() }),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pipeline::kafka::status::{Cause, Trouble};
    use crate::stream::Totals;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).expect("a time")
    }

    fn stream(topic: &str, trouble: Option<Trouble>) -> StreamStatus {
        let partition = |partition, held| PartitionStatus {
            partition,
            committed: 5,
            archived: 5,
            next: 7,
            end: None,
            complete_through: None,
            held,
            stall: None,
        };
        StreamStatus {
            stream: format!("kafka/main/{topic}.0").into(),
            topic: topic.into(),
            label: topic.into(),
            generation: 0,
            partitions: vec![partition(0, false), partition(2, true)],
            totals: Totals::default(),
            gaps: Arc::new([]),
            records_per_second: 0.0,
            bytes_per_second: 0.0,
            waiting: 0,
            complete_through: None,
            trouble,
        }
    }

    #[test]
    fn partitions_are_tasks_in_order_and_one_that_fails_says_why() {
        let trouble = Trouble { since: at(0), text: "no disk".into() };
        let streams = vec![stream("a", None), stream("b", Some(trouble))];
        let connector = Connector {
            name: KAFKA,
            config: BTreeMap::new(),
            topics: Vec::new(),
            kind: "sink",
            state: "RUNNING",
            worker: "host:1".to_owned(),
            tasks: tasks(&Status { state: State::Running, streams, ..Status::default() }, at(0)),
        };
        let status = connector.status();
        let states: Vec<_> = status["tasks"].as_array().expect("tasks").iter().map(|task| &task["state"]).collect();
        assert_eq!(states, ["RUNNING", "UNASSIGNED", "FAILED", "FAILED"]);
        assert_eq!(
            status["tasks"][3],
            json!({ "id": 3, "state": "FAILED", "worker_id": "host:1", "trace": "no disk" })
        );
        assert_eq!(connector.task_configs()[1]["config"]["partition"], "2");
        let first =
            json!({ "partition": { "kafka_topic": "a", "kafka_partition": 0 }, "offset": { "kafka_offset": 5 } });
        assert_eq!(connector.offsets()["offsets"][0], first);
        assert_eq!(connector.restarting()["tasks"][0]["state"], "RESTARTING");
        assert!(connector.task_status(4).is_none());
        let status = Status { state: State::Paused, streams: vec![stream("a", None)], ..Status::default() };
        let paused = tasks(&status, at(0));
        assert!(paused.iter().all(|task| task.state == "PAUSED"));
    }
    #[test]
    fn a_partition_that_stands_still_is_a_failed_task_and_one_behind_an_open_transaction_is_not() {
        let mut stream = stream("a", None);
        let stall = |cause| Stall { cause, since: at(0), text: "no".into(), hint: "look".into() };
        stream.partitions[0].stall = Some(stall(Cause::Unreadable));
        stream.partitions[1].stall = Some(stall(Cause::OpenTransaction));
        stream.partitions[1].held = false;
        let status = Status { state: State::Running, streams: vec![stream], ..Status::default() };
        let states = |seconds| tasks(&status, at(seconds)).into_iter().map(|task| task.state).collect::<Vec<_>>();
        assert_eq!(states(10), ["RUNNING", "RUNNING"], "it may go on in a moment");
        assert_eq!(states(60), ["FAILED", "RUNNING"]);
        let trace = tasks(&status, at(60)).remove(0).trace.expect("why");
        assert_eq!(trace, "stands at offset 7 since 1970-01-01T00:00:00.000Z: no (unreadable, do: look)");
    }
}

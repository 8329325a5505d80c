//! Every task of the running service by its name. What fails and is tried again says so here, and only here; what
//! panics ends the process ([`supervised`]).
//!
//! ```text
//!   backoff, rounds ── Reporter: failed, succeeded ──► Tasks ──► /readyz, /api/status, the page, /metrics
//!   tasks, threads  ── spawn, thread: a panic ───────► Tasks ──► run ends with an error
//! ```
//!
//! A failure stands until whoever reported it succeeds or is gone: a [`Reporter`] that is dropped takes its failure with
//! it. So nothing is shown of a topic that went to another process, and nothing has to be cleared by hand.

pub(crate) mod backoff;
mod supervised;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::Notify;

use crate::error::Error;
pub(crate) use supervised::caught;

/// What a failure keeps the service from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Something is not archived meanwhile: the process is not ready.
    Stops,
    /// Archiving goes on; something beside it does not.
    Hinders,
}

/// Declares the tasks, and [`Task::ALL`] of them.
macro_rules! tasks {
    ($($ident:ident $name:literal $weight:ident $help:literal;)*) => {
        /// Something that fails, is tried again, and reports. The names are values of a metric's label.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Task {
            $(#[doc = $help] $ident,)*
        }

        impl Task {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$ident),*];

            /// The name, as metrics and status documents write it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$ident => $name,)*
                }
            }

            /// Returns what its failure means for the service.
            pub fn weight(self) -> Weight {
                match self {
                    $(Self::$ident => Weight::$weight,)*
                }
            }
        }
    };
}

tasks! {
    KafkaPositions "kafka_positions" Stops "Looks up where assigned partitions are read on.";
    KafkaEnds "kafka_ends" Stops "Asks the brokers where partitions end.";
    KafkaTopicIds "kafka_topic_ids" Hinders "Asks the brokers for the ids of topics before a checkpoint.";
    KafkaSpool "kafka_spool" Stops "Encodes records into files of the spool.";
    KafkaUpload "kafka_upload" Stops "Uploads the segments of a topic.";
    KafkaCheckpoint "kafka_checkpoint" Stops "Writes the checkpoints of a topic.";
    KafkaRights "kafka_rights" Stops "Looks whether topics may be read.";
    KafkaMembers "kafka_members" Stops "Looks whether other clients take partitions of the group.";
    KafkaWatch "kafka_watch" Hinders "Looks for what no event tells: rights, members of the group, generations that others have begun.";
    KafkaMaintenance "kafka_upkeep" Hinders "Expires records that retention lets go.";
    KafkaMerge "kafka_merge" Hinders "Merges small segments of topics.";
    KafkaState "kafka_state" Hinders "Keeps topics with their settings, groups with their positions, and access control lists.";
    ConnectState "connect_state" Hinders "Keeps the connectors of Connect with their configs, states and offsets.";
    RegistryState "registry_state" Hinders "Keeps the subjects of a schema registry with their versions, ids and schemas.";
    KafkaStateMaintenance "kafka_state_upkeep" Hinders "Expires versions of the state of Kafka that retention lets go.";
    Leftovers "leftover_uploads" Hinders "Aborts uploads that killed processes have left in the bucket.";
    Drills "drills" Hinders "Reads what the last drills have found.";
    WalOpen "wal_open" Stops "Opens the chain of the write-ahead log.";
    WalReceive "wal_receive" Stops "Receives the write-ahead log.";
    WalSpool "wal_spool" Stops "Writes the write-ahead log into the spool.";
    WalUpload "wal_upload" Stops "Uploads segments of the write-ahead log.";
    WalCheckpoint "wal_checkpoint" Stops "Writes the checkpoints of the write-ahead log.";
    WalCoverage "wal_coverage" Hinders "Writes down up to when the write-ahead log is complete.";
    WalMaintenance "wal_upkeep" Hinders "Merges segments of the write-ahead log, and expires what retention lets go.";
    WalSlots "wal_slots" Hinders "Looks at the server's replication slots.";
    SlotState "slot_state" Hinders "Keeps replication slots with their positions, and publications.";
    BaseBackup "base_backup" Hinders "Takes base backups.";
}

impl Task {
    /// Returns whether it works for Postgres, not for Kafka.
    pub fn is_of_postgres(self) -> bool {
        self >= Self::WalOpen
    }
}

/// Something that fails now, and is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What fails.
    pub task: Task,
    /// The topic or the object that it is about; empty where it is about all.
    pub about: Arc<str>,
    /// Since when it has failed without a success.
    pub since: DateTime<Utc>,
    /// What cannot be done, and why.
    pub text: Arc<str>,
    /// What to do about it.
    pub hint: Option<Arc<str>>,
    /// When it is tried again, where that is known.
    pub next_try: Option<DateTime<Utc>>,
}

/// The failures of now, and the panic that ends the process.
#[derive(Debug, Default)]
pub struct Tasks {
    failing: Mutex<BTreeMap<(Task, u64), Failure>>,
    reporters: AtomicU64,
    panicked: Mutex<Option<Error>>,
    has_panicked: Notify,
}

impl Tasks {
    /// Returns what fails now, by task and then by the order in which those that report were made.
    pub fn failing(&self) -> Vec<Failure> {
        self.lock().values().cloned().collect()
    }

    /// Returns how many of `task` fail now, and since when the first of them.
    pub fn failing_of(&self, task: Task) -> (usize, Option<DateTime<Utc>>) {
        let failing = self.lock();
        let since = failing.range((task, 0)..=(task, u64::MAX)).map(|(_, failure)| failure.since);
        (since.clone().count(), since.min())
    }

    /// Returns where `task` reports about `about`.
    pub(crate) fn reporter(self: &Arc<Self>, task: Task, about: impl Into<Arc<str>>) -> Reporter {
        let id = self.reporters.fetch_add(1, Ordering::Relaxed);
        Reporter { tasks: Arc::clone(self), task, id, about: about.into() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Task, u64), Failure>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where one loop says whether it fails. Whoever holds it is the only one that clears its failure.
#[derive(Debug)]
pub(crate) struct Reporter {
    tasks: Arc<Tasks>,
    task: Task,
    id: u64,
    about: Arc<str>,
}

impl Reporter {
    /// Reports that `what` failed, and is tried again after `wait`. True if this is another failure than the one that stands.
    pub(crate) fn failed(&self, what: impl std::fmt::Display, error: &Error, wait: Option<Duration>) -> bool {
        let now = crate::time::now();
        let text: Arc<str> = format!("{what}: {error}").into();
        let mut failing = self.tasks.lock();
        let before = failing.get(&(self.task, self.id));
        let (since, is_news) = before.map_or((now, true), |before| (before.since, before.text != text));
        let failure = Failure {
            task: self.task,
            about: Arc::clone(&self.about),
            since,
            text,
            hint: error.hint_text().map(Arc::from),
            next_try: wait.and_then(|wait| Some(now + TimeDelta::from_std(wait).ok()?)),
        };
        failing.insert((self.task, self.id), failure);
        is_news
    }

    /// Reports that it does not fail any more.
    pub(crate) fn succeeded(&self) {
        self.tasks.lock().remove(&(self.task, self.id));
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.succeeded();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn error(text: &str) -> Error {
        Error::new(Kind::Unavailable, text).hint("wait")
    }

    #[test]
    fn a_failure_keeps_its_beginning_and_goes_with_a_success() {
        let tasks = Arc::<Tasks>::default();
        let reporter = tasks.reporter(Task::KafkaUpload, "orders");
        assert!(reporter.failed("an upload", &error("first"), Some(Duration::from_secs(1))));
        assert!(!reporter.failed("an upload", &error("first"), Some(Duration::from_secs(1))), "it was told already");
        let first = tasks.failing()[0].clone();
        assert!(first.next_try.is_some_and(|next| next > first.since));
        assert_eq!((&*first.text, &*first.about, first.hint.as_deref()), ("an upload: first", "orders", Some("wait")));
        assert!(reporter.failed("an upload", &error("second"), None));
        let second = tasks.failing();
        assert_eq!((second.len(), second[0].since, &*second[0].text), (1, first.since, "an upload: second"));
        reporter.succeeded();
        assert_eq!(tasks.failing(), []);
    }

    #[test]
    fn one_loop_does_not_clear_anothers_failure_and_takes_its_own_with_it() {
        let tasks = Arc::<Tasks>::default();
        let [first, second] = [(); 2].map(|()| tasks.reporter(Task::WalUpload, ""));
        first.failed("an upload", &error("away"), None);
        second.failed("an upload", &error("away"), None);
        first.succeeded();
        assert_eq!(tasks.failing_of(Task::WalUpload).0, 1);
        drop(first);
        assert_eq!(tasks.failing_of(Task::WalUpload).0, 1);
        drop(second);
        assert_eq!(tasks.failing_of(Task::WalUpload), (0, None));
    }

    #[test]
    fn every_task_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = Task::ALL.iter().map(|task| task.name()).collect();
        assert_eq!(names.len(), Task::ALL.len());
        let of_postgres = Task::ALL.iter().filter(|task| task.is_of_postgres());
        assert!(of_postgres.clone().count() > 0);
        assert!(of_postgres.into_iter().all(|task| !task.name().starts_with("kafka")));
        let others = Task::ALL.iter().filter(|task| !task.is_of_postgres() && !task.name().starts_with("kafka"));
        assert_eq!(
            others.collect::<Vec<_>>(),
            [&Task::ConnectState, &Task::RegistryState, &Task::Leftovers, &Task::Drills],
            "beside it, and of both"
        );
    }
}

//! What the running pipeline publishes of itself, and what is requested of it: all that it shares with the HTTP listener.
//!
//! ```text
//!   collector ── tick, publish (once a second) ──► PublishedKafka ──► /healthz, /readyz, /metrics, /api/status, REST
//!             ◄── desired state: run, pause, stop ──               ◄── PUT /connectors/kafka/pause …
//! ```
//!
//! Neither side waits for the other: a reader takes the last state that was published.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::desired::{Control, State};
use super::drills::PublishedDrills;
use super::kafka::merge::PublishedMerges;
use super::kafka::status::Status;
use super::postgres;
use super::skips::Skips;
use super::state::status::PublishedState;
use crate::config::Config;
use crate::store::Store;
use crate::tasks::Tasks;

/// The state of the whole pipeline.
#[derive(Debug)]
pub struct Published {
    started: DateTime<Utc>,
    tasks: Arc<Tasks>,
    opened: OnceLock<Opened>,
    kafka: Option<Arc<PublishedKafka>>,
    postgres: Option<Arc<PublishedPostgres>>,
    state: Option<Arc<PublishedState>>,
    drills: Arc<PublishedDrills>,
}

/// What is there once the pipeline has started.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The archive's store.
    pub store: Store,
    /// The name of this process in the archive.
    pub writer: String,
}

impl Published {
    /// What a pipeline publishes that has not started.
    pub fn new(config: &Config) -> Arc<Self> {
        let tasks = Arc::<Tasks>::default();
        let kafka = config.kafka.as_ref().map(|_| Arc::new(PublishedKafka::new(Arc::clone(&tasks))));
        let postgres =
            config.postgres.as_ref().map(|_| Arc::new(PublishedPostgres::new(Arc::clone(&tasks), crate::time::now())));
        let state = config.state.as_ref().map(|_| Arc::default());
        let (opened, drills) = (OnceLock::new(), Arc::default());
        Arc::new(Self { started: crate::time::now(), tasks, opened, kafka, postgres, state, drills })
    }

    /// The tasks of the process, and what fails of them.
    pub fn tasks(&self) -> &Arc<Tasks> {
        &self.tasks
    }

    /// When the process started.
    pub fn started(&self) -> DateTime<Utc> {
        self.started
    }

    /// The store and the writer's name; none before the store was opened and tried.
    pub fn opened(&self) -> Option<&Opened> {
        self.opened.get()
    }

    /// Kafka, if the configuration has it.
    pub fn kafka(&self) -> Option<&Arc<PublishedKafka>> {
        self.kafka.as_ref()
    }

    /// Postgres, if the configuration has it.
    pub fn postgres(&self) -> Option<&Arc<PublishedPostgres>> {
        self.postgres.as_ref()
    }

    /// The state of Kafka, if it is kept.
    pub fn state(&self) -> Option<&Arc<PublishedState>> {
        self.state.as_ref()
    }

    /// What drills have found.
    pub fn drills(&self) -> &Arc<PublishedDrills> {
        &self.drills
    }

    pub(super) fn has_opened(&self, opened: &Opened) {
        if let Some(kafka) = &self.kafka {
            kafka.tick(Instant::now());
        }
        self.opened.get_or_init(|| opened.clone());
    }
}

/// What Kafka's part publishes.
#[derive(Debug)]
pub struct PublishedKafka {
    /// What is asked of the collector.
    pub control: Control,
    /// What is requested to be skipped.
    pub skips: Skips,
    /// What was merged.
    pub merges: Arc<PublishedMerges>,
    pub(super) tasks: Arc<Tasks>,
    status: RwLock<Arc<Status>>,
    cluster_id: OnceLock<String>,
    begun: Instant,
    /// When the collector last went round, in ms since `begun`.
    ticked: AtomicU64,
}

impl PublishedKafka {
    fn new(tasks: Arc<Tasks>) -> Self {
        Self {
            control: Control::default(),
            skips: Skips::default(),
            merges: Arc::default(),
            tasks,
            status: RwLock::default(),
            cluster_id: OnceLock::new(),
            begun: Instant::now(),
            ticked: AtomicU64::new(0),
        }
    }

    /// What the collector published last.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The cluster's id, once a broker has told it.
    pub fn cluster_id(&self) -> Option<&str> {
        self.cluster_id.get().map(String::as_str)
    }

    /// For how long the collector has not gone round.
    pub fn silent_for(&self, now: Instant) -> Duration {
        now.duration_since(self.begun).saturating_sub(Duration::from_millis(self.ticked.load(Ordering::Relaxed)))
    }

    pub(super) fn publish(&self, status: Status) {
        *self.status.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(status);
    }

    pub(super) fn learn_cluster_id(&self, id: String) {
        self.cluster_id.get_or_init(|| id);
    }

    pub(super) fn tick(&self, now: Instant) {
        let since = u64::try_from(now.duration_since(self.begun).as_millis()).unwrap_or(u64::MAX);
        self.ticked.store(since, Ordering::Relaxed);
    }
}

/// What Postgres' part publishes.
#[derive(Debug)]
pub struct PublishedPostgres {
    /// What is asked of the archiver of WAL.
    pub control: Control,
    /// What it knows of itself.
    pub status: Arc<postgres::Status>,
    /// The desired state that was applied last, and since when.
    phase: Mutex<(State, DateTime<Utc>)>,
}

impl PublishedPostgres {
    fn new(tasks: Arc<Tasks>, now: DateTime<Utc>) -> Self {
        let (control, status) = (Control::default(), postgres::Status::new(tasks));
        Self { control, status, phase: Mutex::new((State::Connecting, now)) }
    }

    /// What the archiver is doing, and since when it was let or kept from it.
    pub fn state(&self) -> (State, DateTime<Utc>) {
        let (phase, since) = *self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        let connected = phase == State::Connecting && self.status.now().connected;
        (if connected { State::Running } else { phase }, since)
    }

    pub(super) fn enter(&self, phase: State) {
        let mut now = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if now.0 != phase {
            *now = (phase, crate::time::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_counted_from_the_last_tick() {
        let published = PublishedKafka::new(Arc::default());
        let later = |seconds| published.begun + Duration::from_secs(seconds);
        assert_eq!(published.silent_for(later(40)), Duration::from_secs(40));
        published.tick(later(40));
        assert_eq!(published.silent_for(later(45)), Duration::from_secs(5));
        assert_eq!(published.silent_for(later(39)), Duration::ZERO);
    }
}

//! What the running pipeline shows of itself, and what is asked of it: all that it shares with the HTTP listener.
//!
//! ```text
//!   collector ── tick, publish (once a second) ──► KafkaBoard ──► /healthz, /readyz, /metrics, /api/status, REST
//!             ◄── orders: run, pause, stop, restart ──    ◄── PUT /connectors/kafka/pause …
//! ```
//!
//! Neither side waits for the other: a reader takes the last state that was published, and an order stands until it is
//! replaced. So an order is never lost and never queues, and the archiver obeys it when it looks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::kafka::status::Status;
use super::postgres;
use super::skips::Skips;
use super::state::status::StateBoard;
use super::tasks::Tasks;
use crate::config::Config;
use crate::store::Store;

/// The state of the whole pipeline.
#[derive(Debug)]
pub struct Board {
    started: DateTime<Utc>,
    tasks: Arc<Tasks>,
    opened: OnceLock<Opened>,
    kafka: Option<Arc<KafkaBoard>>,
    postgres: Option<Arc<PostgresBoard>>,
    state: Option<Arc<StateBoard>>,
}

/// What is there once the pipeline has started.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The archive's store.
    pub store: Store,
    /// The name of this process in the archive.
    pub writer: String,
}

impl Board {
    /// The board of a pipeline that has not started.
    pub fn new(config: &Config) -> Arc<Self> {
        let tasks = Arc::<Tasks>::default();
        let kafka = config.kafka.as_ref().map(|_| Arc::new(KafkaBoard::new(Arc::clone(&tasks))));
        let postgres = config.postgres.as_ref().map(|_| Arc::new(PostgresBoard::new(Arc::clone(&tasks), Utc::now())));
        let state = config.state.as_ref().map(|_| Arc::default());
        Arc::new(Self { started: Utc::now(), tasks, opened: OnceLock::new(), kafka, postgres, state })
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
    pub fn kafka(&self) -> Option<&Arc<KafkaBoard>> {
        self.kafka.as_ref()
    }

    /// Postgres, if the configuration has it.
    pub fn postgres(&self) -> Option<&Arc<PostgresBoard>> {
        self.postgres.as_ref()
    }

    /// The state of Kafka, if it is kept.
    pub fn state(&self) -> Option<&Arc<StateBoard>> {
        self.state.as_ref()
    }

    pub(super) fn has_opened(&self, opened: &Opened) {
        if let Some(kafka) = &self.kafka {
            kafka.tick(Instant::now());
        }
        self.opened.get_or_init(|| opened.clone());
    }
}

/// What an archiver is to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wish {
    /// Archive.
    #[default]
    Run,
    /// Keep everything that it owns, and read no more of it.
    Pause,
    /// Give back what it owns, and own nothing.
    Stop,
}

/// What an archiver is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    /// It has no connection, or the group has not taken it in.
    #[default]
    Connecting,
    /// It archives.
    Running,
    /// It keeps what it owns and reads nothing.
    Paused,
    /// It has given back what it owned, or is doing so.
    Stopped,
    /// It gives back what it owns, to begin anew.
    Restarting,
    /// The process is ending.
    Ending,
}

impl State {
    /// The state as status documents and log lines write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Restarting => "restarting",
            Self::Ending => "ending",
        }
    }
}

/// What was asked of an archiver last.
#[derive(Debug, Default)]
pub struct Orders(Mutex<Order>);

/// An order as it stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) wish: Wish,
    /// How often a restart was asked for.
    pub(super) restarts: u64,
}

impl Orders {
    /// Asks for `wish`.
    pub fn ask(&self, wish: Wish) {
        self.order().wish = wish;
    }

    /// Asks to give everything back and to begin anew.
    pub fn restart(&self) {
        self.order().restarts += 1;
    }

    pub(super) fn read(&self) -> Order {
        *self.order()
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kafka's part of the board.
#[derive(Debug)]
pub struct KafkaBoard {
    /// What is asked of the collector.
    pub orders: Orders,
    /// What is ordered to be skipped.
    pub skips: Skips,
    pub(super) tasks: Arc<Tasks>,
    status: RwLock<Arc<Status>>,
    cluster_id: OnceLock<String>,
    begun: Instant,
    /// When the collector last went round, in ms since `begun`.
    ticked: AtomicU64,
}

impl KafkaBoard {
    fn new(tasks: Arc<Tasks>) -> Self {
        Self {
            orders: Orders::default(),
            skips: Skips::default(),
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

/// Postgres' part of the board.
#[derive(Debug)]
pub struct PostgresBoard {
    /// What is asked of the archiver of WAL.
    pub orders: Orders,
    /// What it knows of itself.
    pub status: Arc<postgres::Status>,
    /// What was done of the orders, and since when.
    phase: Mutex<(State, DateTime<Utc>)>,
}

impl PostgresBoard {
    fn new(tasks: Arc<Tasks>, now: DateTime<Utc>) -> Self {
        let (orders, status) = (Orders::default(), postgres::Status::new(tasks));
        Self { orders, status, phase: Mutex::new((State::Connecting, now)) }
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
            *now = (phase, Utc::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_order_stands_and_restarts_are_counted() {
        let orders = Orders::default();
        assert_eq!(orders.read(), Order { wish: Wish::Run, restarts: 0 });
        orders.ask(Wish::Pause);
        orders.ask(Wish::Stop);
        orders.restart();
        orders.restart();
        assert_eq!(orders.read(), Order { wish: Wish::Stop, restarts: 2 });
    }

    #[test]
    fn silence_is_counted_from_the_last_tick() {
        let board = KafkaBoard::new(Arc::default());
        let later = |seconds| board.begun + Duration::from_secs(seconds);
        assert_eq!(board.silent_for(later(40)), Duration::from_secs(40));
        board.tick(later(40));
        assert_eq!(board.silent_for(later(45)), Duration::from_secs(5));
        assert_eq!(board.silent_for(later(39)), Duration::ZERO);
    }
}

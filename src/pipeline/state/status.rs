//! What the keeper of Kafka's state shows of itself.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

use crate::source::kafka::state::Refusal;
use crate::stream::StateKind;

/// What is known of the state that is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateStatus {
    /// The streams, once they were polled.
    pub kinds: BTreeMap<StateKind, KindStatus>,
    /// What the brokers do not tell.
    pub refused: Vec<Refusal>,
}

/// One stream of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindStatus {
    /// How many versions there have been.
    pub versions: i64,
    /// When the newest of them was found.
    pub changed: Option<DateTime<Utc>>,
    /// When the brokers last told it.
    pub polled: DateTime<Utc>,
}

/// State's part of what is published.
#[derive(Debug, Default)]
pub struct PublishedState(Mutex<StateStatus>);

impl PublishedState {
    /// Returns what is known now.
    pub fn status(&self) -> StateStatus {
        self.lock().clone()
    }

    pub(super) fn polled(&self, kind: StateKind, versions: i64, changed: Option<i64>, now: DateTime<Utc>) {
        let changed = changed.and_then(DateTime::from_timestamp_millis);
        self.lock().kinds.insert(kind, KindStatus { versions, changed, polled: now });
    }

    pub(super) fn refused(&self, refused: Vec<Refusal>) {
        self.lock().refused = refused;
    }

    fn lock(&self) -> MutexGuard<'_, StateStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

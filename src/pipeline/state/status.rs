//! What the keeper of Kafka's state shows of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

use crate::source::told::Refusal;
use crate::stream::{StateKind, StateOf};

/// What is known of the state that is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateStatus {
    /// The streams, once they were polled.
    pub streams: BTreeMap<StateOf, DocumentStatus>,
    /// What is not told, by who does not.
    pub refused: BTreeMap<String, Vec<Refusal>>,
    /// The connectors that have failed, or of which a task has.
    pub failed: BTreeMap<StateOf, BTreeSet<String>>,
}

impl StateStatus {
    /// Returns what is known of each kind: of several streams of one kind what the one says that was told longest ago.
    pub fn kinds(&self) -> BTreeMap<StateKind, DocumentStatus> {
        let mut kinds: BTreeMap<StateKind, DocumentStatus> = BTreeMap::new();
        for (of, status) in &self.streams {
            let known = kinds.entry(of.kind).or_insert(*status);
            if status.polled < known.polled {
                *known = *status;
            }
        }
        kinds
    }
}

/// One stream of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DocumentStatus {
    /// How many versions there have been.
    pub versions: i64,
    /// When the newest of them was found.
    pub changed: Option<DateTime<Utc>>,
    /// When it was last told.
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

    pub(super) fn polled(&self, of: &StateOf, versions: i64, changed: Option<i64>, now: DateTime<Utc>) {
        let changed = changed.and_then(DateTime::from_timestamp_millis);
        self.lock().streams.insert(of.clone(), DocumentStatus { versions, changed, polled: now });
    }

    pub(super) fn refused(&self, who: &str, refused: Vec<Refusal>) {
        self.lock().refused.insert(who.to_owned(), refused);
    }

    pub(super) fn failed(&self, of: &StateOf, failed: BTreeSet<String>) {
        self.lock().failed.insert(of.clone(), failed);
    }

    fn lock(&self) -> MutexGuard<'_, StateStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

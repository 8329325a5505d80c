//! What the collector was told and only shows.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::pipeline::desired::State;
use crate::pipeline::kafka::stalls::Refusal;
use crate::tasks::Reporter;

/// What the collector was told and only shows.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) last_checkpoint: Option<DateTime<Utc>>,
    /// Partitions of a topic that cannot be read yet.
    pub(super) unresolved: BTreeMap<Arc<str>, Reporter>,
    /// What was said last of the connection to a broker.
    pub(super) fault: Option<Refusal>,
    /// The state that was published last, and since when it is so.
    pub(super) state: Option<(State, DateTime<Utc>)>,
}

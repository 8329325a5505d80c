//! Why offsets are lost.

use serde::{Deserialize, Serialize};

/// Why offsets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// The broker had removed the records (retention or DeleteRecords) before they were archived.
    BrokerRetention,
    /// The broker had the records, and nobody could decode them; somebody ordered to skip them.
    Unreadable,
    /// The server had removed WAL before it was archived: its slot was lost, dropped or never there.
    ServerRemovedWal,
}

impl GapReason {
    /// The reason in words, for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::BrokerRetention => "broker retention",
            Self::Unreadable => "unreadable, skipped by order",
            Self::ServerRemovedWal => "the server removed the WAL",
        }
    }

    /// The reason as it stands in JSON and in metric labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::BrokerRetention => "broker_retention",
            Self::Unreadable => "unreadable",
            Self::ServerRemovedWal => "server_removed_wal",
        }
    }
}

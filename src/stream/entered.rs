//! The place of base backups in a chain: each entered with the hash of its `backup.json`, so that to change anything of one
//! unseen one has to change everything after it, as for segments.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Body;

/// Base backups that count from an entry on, and those that do not any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entered {
    /// Those that count from now on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<BackupRef>,
    /// The names of those that are given up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
    /// When it was decided.
    pub decided: DateTime<Utc>,
}

/// A base backup, by what must not change of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupRef {
    /// Its name.
    pub name: String,
    /// The sha256 of the bytes of its `backup.json`, hex. That one names the sha256 of all its parts.
    pub sha256: String,
}

impl Body {
    /// The base backups that the entry enters or gives up.
    pub fn entered(&self) -> Option<&Entered> {
        match self {
            Self::Backups(entered) => Some(entered),
            _ => None,
        }
    }
}

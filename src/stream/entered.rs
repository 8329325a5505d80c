//! The place of base backups in a chain: each entered with the hash of its `backup.json`, so that to change anything of one
//! unseen one has to change everything after it, as for segments.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Body;

/// Base backups that count from an entry on, and those that do not any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entered {
    /// Those that count from now on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<BackupRef>,
    /// The names of those that are expired.
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
    /// The name of the one that it builds on, if it is incremental: known although its `backup.json` cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
}

/// The base backups that count, by name.
pub type CountedBackups = BTreeMap<String, CountedBackup>;

/// What a chain says of a base backup that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountedBackup {
    /// The sha256 of the bytes of its `backup.json`.
    pub sha256: String,
    /// The name of the one that it builds on, if it is incremental.
    pub parent: Option<String>,
}

impl BackupRef {
    /// As a map of those that count has it.
    pub fn counted(&self) -> (String, CountedBackup) {
        (self.name.clone(), CountedBackup { sha256: self.sha256.clone(), parent: self.parent.clone() })
    }
}

impl Body {
    /// The base backups that the entry enters or expires.
    pub fn entered(&self) -> Option<&Entered> {
        match self {
            Self::Backups(entered) => Some(entered),
            _ => None,
        }
    }
}

/// Those of `names` that can be expired: none that stays builds on them.
pub fn unneeded<'a>(counted: &CountedBackups, names: impl IntoIterator<Item = &'a String>) -> BTreeSet<&'a String> {
    let mut free: BTreeSet<&String> = names.into_iter().collect();
    loop {
        let stay = counted.iter().filter(|(name, _)| !free.contains(name));
        let needed: BTreeSet<&String> = stay.filter_map(|(_, one)| one.parent.as_ref()).collect();
        let before = free.len();
        free.retain(|name| !needed.contains(name));
        if free.len() == before {
            return free;
        }
    }
}

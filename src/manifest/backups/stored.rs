//! A `backup.json` field by field. serde's `flatten` would keep all that it does not know, at many times its size.

use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::{Archive, Backup, Parent, Part};
use crate::stream::{Lsn, System};

#[derive(Deserialize)]
pub(super) struct Stored {
    format: u32,
    name: String,
    label: String,
    #[serde(with = "crate::stream::decimal")]
    system_id: u64,
    wal_segment_size: u32,
    server_version: u32,
    timeline: u32,
    start: Lsn,
    end: Lsn,
    end_timeline: u32,
    started: DateTime<Utc>,
    finished: DateTime<Utc>,
    #[serde(default)]
    read_back: bool,
    #[serde(default)]
    damaged: Vec<String>,
    #[serde(default)]
    checksums: Option<bool>,
    #[serde(default)]
    parent: Option<Parent>,
    archives: Vec<Archive>,
    manifest: Part,
}

impl From<Stored> for Backup {
    fn from(stored: Stored) -> Self {
        let Stored { format, name, label, system_id, wal_segment_size, server_version, timeline, .. } = stored;
        let Stored {
            start, end, end_timeline, started, finished, damaged, checksums, parent, archives, manifest, ..
        } = stored;
        Self {
            format,
            name,
            label,
            system: System { system_id, wal_segment_size, server_version },
            timeline,
            start,
            end,
            end_timeline,
            started,
            finished,
            is_read_back: stored.read_back,
            damaged,
            checksums,
            parent,
            archives,
            manifest,
        }
    }
}

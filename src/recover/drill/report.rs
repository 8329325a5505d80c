//! What a drill tells.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::error::{Error, Kind, Result};
use crate::manifest::drills::Outcome;
use crate::stream::Lsn;

/// All of a drill.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Which drill.
    pub drill: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether nothing is wrong.
    pub ok: bool,
    /// When it began.
    pub started: DateTime<Utc>,
    /// How long it took.
    pub seconds: f64,
    /// What repeats it: `--seed`.
    pub seed: u64,
    /// What the archive was read for.
    pub archive: Archived,
    /// What was restored: of each system one database.
    pub restored: Vec<Restoration>,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
    /// What was left out, and why.
    pub skipped: Vec<String>,
    /// Why it could not be carried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What was read of the archive.
#[derive(Debug, Default, Serialize)]
pub struct Archived {
    /// Streams: topics, WAL, state.
    pub streams: u64,
    /// Their segments.
    pub segments: u64,
    /// Their records.
    pub records: u64,
    /// Base backups.
    pub backups: u64,
    /// Their bytes, of segments and base backups.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// One system that was restored.
#[derive(Debug, Default, Serialize)]
pub struct Restoration {
    /// Which system.
    pub system_id: String,
    /// PostgreSQL's major version.
    pub server_version: u32,
    /// The moment, or position.
    pub at: String,
    /// The base backup.
    pub backup: String,
    /// The timeline on which the server has opened.
    pub timeline: u32,
    /// The end of the last record that it has replayed.
    pub reached: Option<Lsn>,
    /// Bytes that were unpacked.
    pub bytes: u64,
    /// Bytes of log that were replayed.
    pub log_bytes: u64,
    /// How long unpacking took.
    pub restored_seconds: f64,
    /// How long replaying and opening took.
    pub opened_seconds: f64,
    /// The databases.
    pub databases: Vec<Database>,
    /// What ran of `pg_amcheck`: `passed`, `found`, or why it did not.
    pub amcheck: String,
    /// What an operator should know.
    pub notes: Vec<String>,
    #[serde(skip)]
    pub(super) findings: Vec<Finding>,
}

/// A database that was read.
#[derive(Debug, Serialize)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Its tables.
    pub tables: Vec<Table>,
    /// Rows of them all.
    pub rows: u64,
}

/// A table that was read from its first page to its last.
#[derive(Debug, Serialize)]
pub struct Table {
    /// Its name, with its schema.
    pub name: String,
    /// Its rows.
    pub rows: u64,
}

/// Where something was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Reading the archive.
    Archive,
    /// Unpacking the base backup, reading the log.
    Restore,
    /// Replaying and opening.
    Open,
    /// Reading tables.
    Tables,
    /// `pg_amcheck`.
    Amcheck,
}

impl Part {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Archive => "archive",
            Self::Restore => "restore",
            Self::Open => "open",
            Self::Tables => "tables",
            Self::Amcheck => "amcheck",
        }
    }
}

/// Something that is not as it should be.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// Where it was found.
    pub part: Part,
    /// The object, or the table.
    pub about: String,
    /// What is wrong.
    pub detail: String,
}

impl Restoration {
    /// Takes an error as a finding if it is one.
    ///
    /// # Errors
    /// It again, where it tells of something else than of damage.
    pub(super) fn found(&mut self, part: Part, error: Error) -> Result<()> {
        if !matches!(error.kind(), Kind::Corrupt | Kind::Incomplete | Kind::NotFound) {
            return Err(error);
        }
        self.findings.push(Finding { part, about: format!("system {}", self.system_id), detail: error.to_string() });
        Ok(())
    }
}

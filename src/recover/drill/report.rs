//! What a drill tells.

use std::time::Instant;

use chrono::{DateTime, SubsecRound as _, Utc};
use serde::Serialize;

use crate::error::{Error, Kind, Result};
use crate::manifest::drills::{Drilled, Outcome};
use crate::store::Store;
use crate::stream::{FORMAT_VERSION, Lsn};
use crate::time;

/// All of a drill.
#[derive(Debug, Serialize)]
pub struct Report<T> {
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
    /// What was tried.
    #[serde(flatten)]
    pub about: T,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
    /// What was left out, and why.
    pub skipped: Vec<String>,
    /// Why it could not be carried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip)]
    begun: Instant,
}

impl<T> Report<T> {
    /// That of a drill that begins.
    pub(super) fn begin(drill: &'static str, seed: u64, about: T) -> Self {
        Self {
            drill,
            outcome: Outcome::Passed,
            ok: true,
            started: now(),
            seconds: 0.0,
            seed,
            about,
            findings: Vec::new(),
            skipped: Vec::new(),
            error: None,
            begun: Instant::now(),
        }
    }

    /// Says how it ended, and keeps it in the archive. An error that tells of the archive is a finding; any other kept the drill from
    /// being carried out, and is given beside the report.
    pub(super) async fn end(mut self, store: &Store, error: Option<Error>) -> (Self, Option<Error>) {
        self.outcome = match (&error, self.findings.is_empty()) {
            (_, false) => Outcome::Found,
            (Some(_), true) => Outcome::Failed,
            (None, true) => Outcome::Passed,
        };
        self.ok = self.outcome == Outcome::Passed;
        self.error = error.as_ref().map(ToString::to_string);
        self.seconds = self.begun.elapsed().as_secs_f64();
        self.keep(store).await;
        (self, error)
    }

    /// Tells `tidelog run`. An archive that is read-only for who drills keeps nobody from it.
    async fn keep(&self, store: &Store) {
        let drilled = Drilled {
            format: FORMAT_VERSION,
            drill: self.drill.to_owned(),
            outcome: self.outcome,
            started: self.started,
            finished: now(),
            seed: self.seed,
            findings: self.findings.len() as u64,
            last_success: None,
        };
        if let Err(error) = drilled.write(store).await {
            tracing::warn!(%error, hint = error.hint_text(), "the result of the drill cannot be kept: no metric, and no alert, knows of it");
        }
    }

    /// Adds what is not as it should be.
    pub(super) fn found(&mut self, part: Part, about: impl Into<String>, detail: impl Into<String>) {
        self.findings.push(Finding { part, about: about.into(), detail: detail.into() });
    }
}

/// The time, as results have it.
fn now() -> DateTime<Utc> {
    time::now().trunc_subsecs(3)
}

/// What the drill `corruption` has read.
#[derive(Debug, Default, Serialize)]
pub struct Corruption {
    /// What the archive was read for.
    pub archive: Archived,
    /// What was restored: of each system one database.
    pub restored: Vec<Restoration>,
}

/// What the drill `pipeline` has tried.
#[derive(Debug, Default, Serialize)]
pub struct Pipeline {
    /// Where to.
    pub at: String,
    /// What the recovery says of itself.
    pub recovery: Option<crate::recover::report::Report>,
    /// What an operator should know.
    pub notes: Vec<String>,
}

/// What the drill `slot` has tried.
#[derive(Debug, Default, Serialize)]
pub struct Slots {
    /// When the slots were lost.
    pub at: String,
    /// The slots.
    pub slots: Vec<OfSlot>,
    /// What an operator should know.
    pub notes: Vec<String>,
}

/// A slot that was brought back.
#[derive(Debug, Default, Serialize)]
pub struct OfSlot {
    /// Its connector.
    pub connector: String,
    /// Its name.
    pub slot: String,
    /// The end of the last commit that the connector had sent.
    pub from: Lsn,
    /// Up to where it was decoded.
    pub to: Lsn,
    /// From where the slot of the standby decodes; none where it was not made.
    pub decodes_from: Option<Lsn>,
    /// Transactions of the database in between, by the archived log.
    pub commits: u64,
    /// Those that the slot gives: the others changed nothing that is published.
    pub decoded: u64,
    /// Those of which the archived topics have an event: each has to be among what the slot gives.
    pub in_topics: u64,
    /// Clean-ups of the planner's statistics that were made harmless.
    pub harmless: u64,
}

/// What the drill `schema` has tried.
#[derive(Debug, Default, Serialize)]
pub struct Schemas {
    /// The registry.
    pub registry: String,
    /// The moment of which the archived state is.
    pub at: Option<DateTime<Utc>>,
    /// Subjects.
    pub subjects: usize,
    /// Their versions, soft-deleted ones too.
    pub versions: usize,
    /// How many of their ids the registry gave itself, in place of the archived ones.
    pub other_ids: usize,
    /// What was read of the topics.
    pub records: Records,
    /// What an operator should know.
    pub notes: Vec<String>,
}

/// Archived records that were read with schemas.
#[derive(Debug, Default, Serialize)]
pub struct Records {
    /// Generations of topics.
    pub topics: u64,
    /// The records that the archive has of them up to the moment.
    pub archived: u64,
    /// Those that were read.
    pub read: u64,
    /// Keys and values that were decoded by their schemas, from the first byte to the last.
    pub decoded: u64,
    /// Keys and values in JSON or Protobuf: their schemas are there, and Protobuf was not decoded.
    pub named: u64,
    /// Keys and values that name no schema.
    pub without: u64,
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
    /// A slot that was brought back.
    Slot,
    /// Recovering the pipeline.
    Recovery,
    /// The registry, read back.
    Registry,
    /// Archived records, by their schemas.
    Records,
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
            Self::Slot => "slot",
            Self::Recovery => "recovery",
            Self::Registry => "registry",
            Self::Records => "records",
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

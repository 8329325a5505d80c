//! What a drill is asked for.

use std::path::PathBuf;

use crate::config::Server;
use crate::restore::plan::Goal;

/// What a drill is asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The system to restore; none: each one of the archive.
    pub system: Option<u64>,
    /// Where to; none: a moment that the seed chooses.
    pub at: Option<Goal>,
    /// What chooses it.
    pub seed: u64,
    /// The directory below which the drill makes one of its own.
    pub scratch: PathBuf,
    /// Where PostgreSQL's programs are; none: where packages have them, and on `PATH`.
    pub bin_dir: Option<PathBuf>,
    /// The superuser of the database.
    pub user: String,
    /// The libraries that the server loads at its start (`shared_preload_libraries`).
    pub preload: String,
}

/// What the drill `schema` is asked for.
#[derive(Debug, Clone)]
pub struct AskedSchema {
    /// The registry: a scratch one, empty.
    pub registry: Server,
    /// The moment, in ms since 1970; none: one that the seed chooses.
    pub at: Option<i64>,
    /// What chooses it, and the records.
    pub seed: u64,
    /// How many records of each topic are read.
    pub records: u64,
}

/// What the drill `pipeline` is asked for.
#[derive(Debug, Clone)]
pub struct AskedPipeline {
    /// The file that names the scratch servers.
    pub pipeline: PathBuf,
    /// Where to, as it was typed; none: a moment that the seed chooses.
    pub at: Option<String>,
    /// What chooses it.
    pub seed: u64,
    /// The directory below which the drill makes one of its own.
    pub scratch: PathBuf,
    /// Where PostgreSQL's programs are; none: where packages have them, and on `PATH`.
    pub bin_dir: Option<PathBuf>,
}

/// What the drill `slot` is asked for.
#[derive(Debug, Clone)]
pub struct AskedSlot {
    /// When slots were lost, as it was typed; none: a moment that the seed chooses.
    pub at: Option<String>,
    /// What chooses it.
    pub seed: u64,
    /// How much of the log behind it is decoded.
    pub wal: u64,
    /// The directory below which the drill makes one of its own.
    pub scratch: PathBuf,
    /// Where PostgreSQL's programs are; none: where packages have them, and on `PATH`.
    pub bin_dir: Option<PathBuf>,
    /// The superuser of the database.
    pub user: String,
}

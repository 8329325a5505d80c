//! Which base backup is to be taken, and of what.

use crate::config;
use crate::source::postgres::Server;
use crate::store::Store;

/// What a base backup is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BackupKind {
    /// A full one.
    Full,
    /// An incremental one.
    Incremental,
    /// An incremental one where there are fewer than this since the last full one, and the server takes it; or else a full one.
    Within(u64),
}

/// A base backup that is to be taken.
pub(crate) struct BackupJob<'a> {
    pub(crate) server: &'a Server,
    pub(crate) config: &'a config::Postgres,
    pub(crate) store: &'a Store,
    pub(crate) writer: &'a str,
    pub(crate) kind: BackupKind,
}

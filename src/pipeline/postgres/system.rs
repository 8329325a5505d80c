//! Which Postgres system the server and the archive are of.

use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest::{self, Chain};
use crate::source::postgres::Replication;
use crate::store::Store;
use crate::stream::{StreamId, System};

/// The chain of the Postgres system that the archive holds, if it holds one.
pub(super) async fn archived_system(store: &Store) -> Result<Option<Chain>> {
    let systems: Vec<StreamId> =
        manifest::streams(store).await?.into_iter().filter(|stream| stream.topic().is_none()).collect();
    match systems.as_slice() {
        [] => Ok(None),
        [system] => Chain::open(store, system).await,
        _ => Err(Error::new(Kind::Config, "the archive holds the WAL of several Postgres systems")
            .hint("one archive holds one system: set archive.url to an archive of its own for each")),
    }
}

/// Whether an error before the first success means that the configuration is wrong, and a retry helps nobody.
pub(super) fn is_final(error: &Error) -> bool {
    matches!(error.kind(), Kind::Config | Kind::Denied | Kind::Unsupported)
}

/// The facts of the system behind a connection.
pub(super) async fn system_of(replication: &mut Replication) -> Result<System> {
    let system_id = replication.identify().await?.system_id;
    let size = replication.wal_segment_size().await?;
    let wal_segment_size = u32::try_from(size).or_err(Kind::Unsupported, || format!("WAL files of {size} bytes"))?;
    Ok(System { system_id, wal_segment_size, server_version: replication.version() / 10_000 })
}

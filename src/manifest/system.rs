//! The Postgres system that an archive holds.

use super::Chain;
use crate::error::{Error, Kind, Result};
use crate::store::Store;
use crate::stream::StreamId;

/// The chain of the Postgres system that the archive holds, if it holds one.
pub(crate) async fn archived_system(store: &Store) -> Result<Option<Chain>> {
    let mut systems = super::streams(store).await?;
    systems.retain(|stream| matches!(stream, StreamId::Postgres { .. }));
    match systems.as_slice() {
        [] => Ok(None),
        [system] => Chain::open(store, system).await,
        _ => Err(Error::new(Kind::Config, "the archive holds the WAL of several Postgres systems")
            .hint("one archive holds one system: set archive.url to an archive of its own for each")),
    }
}

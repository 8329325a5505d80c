//! The Postgres system that a server is of.

use crate::error::{Kind, Result, ResultExt as _};
use crate::source::postgres::Replication;
use crate::stream::System;

/// The facts of the system behind a connection.
pub(crate) async fn system_of(replication: &mut Replication) -> Result<System> {
    let system_id = replication.identify().await?.system_id;
    let size = replication.wal_segment_size().await?;
    let wal_segment_size = u32::try_from(size).or_err(Kind::Unsupported, || format!("WAL files of {size} bytes"))?;
    Ok(System { system_id, wal_segment_size, server_version: replication.version() / 10_000 })
}

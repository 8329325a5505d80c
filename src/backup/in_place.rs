//! Tablespaces in place, which are directories of `pg_tblspc` where others are links: a developer's, with `allow_in_place_tablespaces`.
//!
//! Up to PostgreSQL 15 a server knows of none of them when it lists tablespaces (`do_pg_backup_start`, xlog.c), and with a map of
//! tablespaces it sends nothing of `pg_tblspc` (`sendDir`, basebackup.c): their files would be missing, and its own manifest would not
//! tell. Asked for links instead of a map, it sends them with the data directory. The catalog is asked once the backup has begun:
//! those that are made later are in the log.

use crate::error::Result;
use crate::source::postgres::{BackupOptions, BackupStream, Server};

/// The first version that gives them archives of their own.
const LISTED: u32 = 160_000;

/// Begins a base backup again if it would lack tablespaces in place.
pub(super) async fn with_them(server: &Server, begun: BackupStream, options: &BackupOptions) -> Result<BackupStream> {
    if begun.replication().version() >= LISTED {
        return Ok(begun);
    }
    let server = server.only(begun.replication().shown());
    match are_there(&server).await {
        Ok(false) => Ok(begun),
        Ok(true) => {
            drop(begun);
            server.replication().await?.base_backup(&BackupOptions { links: true, ..options.clone() }).await
        }
        // A standby may let in replication alone.
        Err(error) => {
            tracing::warn!(%error, "nobody knows whether the server has tablespaces in place, which this base backup would lack");
            Ok(begun)
        }
    }
}

async fn are_there(server: &Server) -> Result<bool> {
    let sql = "SELECT count(*) FROM pg_catalog.pg_tablespace \
               WHERE pg_catalog.pg_tablespace_location(oid) = 'pg_tblspc/' || oid::pg_catalog.text";
    let rows = server.sql().await?.query(sql, "look for tablespaces in place").await?;
    Ok(rows.first().and_then(|row| row.first()).is_some_and(|count| count.as_deref() != Some("0")))
}

//! Plain SQL, for what the replication protocol does not tell.

use super::conn::{Connection, Purpose, Server};
use crate::error::Result;

/// A connection for SQL.
pub struct Sql {
    pub(super) connection: Connection,
}

impl Server {
    /// A connection for SQL, to the database that `postgres.url` names.
    pub async fn sql(&self) -> Result<Sql> {
        Ok(Sql { connection: self.connect(Purpose::Sql).await? })
    }
}

impl Sql {
    /// The server's version as `server_version_num` has it: 150018 for 15.18.
    pub fn version(&self) -> u32 {
        self.connection.version
    }

    /// The rows of a query, every column as PostgreSQL's text for it. `doing` ends the sentence "cannot …" if it fails.
    pub async fn query(&mut self, sql: &str, doing: &str) -> Result<Vec<Vec<Option<String>>>> {
        self.connection.query(sql, doing).await
    }
}

//! What is read of the tables at the marker: into files, for the server at the offset, and a count and a sum of each, which that server
//! has to come to.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::captured::{Captured, of_publication, session};
use super::statements::Of;
use crate::error::{Error, Kind, Result};
use crate::source::postgres::{Server, Sql};

/// A table at the marker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtEnd {
    /// What it is.
    pub table: Captured,
    /// How many rows it has, and the sum of their hashes, as the server tells them.
    pub counted: (String, String),
}

/// The files of a table.
pub(super) fn files(folder: &Path, at: usize) -> (PathBuf, PathBuf) {
    (folder.join(format!("{at}.rows")), folder.join(format!("{at}.keys")))
}

/// Reads all tables of a publication; of the rows those that a transaction from `from` on has written.
///
/// # Errors
/// A publication without a table, a server that does not answer, or cannot write the files.
pub async fn read(server: &Server, publication: &str, (from, folder): (Option<u32>, &Path)) -> Result<Vec<AtEnd>> {
    let mut sql = session(server).await?;
    let mut tables = Vec::new();
    for (at, table) in of_publication(&mut sql, publication).await?.into_iter().enumerate() {
        let of = Of { table: &table, at };
        let doing = format!("read {}", table.shown());
        let (rows, keys) = files(folder, at);
        sql.query(&of.write_rows(from, &rows.display().to_string()), &doing).await?;
        if let Some(statement) = of.write_keys(&keys.display().to_string()) {
            sql.query(&statement, &doing).await?;
        }
        let counted = counted(&mut sql, of).await?;
        tables.push(AtEnd { table, counted });
    }
    if tables.is_empty() {
        return Err(Error::new(Kind::Unsupported, format!("the publication {publication} has no table")));
    }
    Ok(tables)
}

/// Counts a table.
///
/// # Errors
/// A server that does not answer.
pub(super) async fn counted(sql: &mut Sql, of: Of<'_>) -> Result<(String, String)> {
    let doing = format!("count {}", of.table.shown());
    match sql.query(&of.counted(), &doing).await?.first().map(Vec::as_slice) {
        Some([Some(rows), Some(sum)]) => Ok((rows.clone(), sum.clone())),
        _ => Err(Error::new(Kind::Internal, format!("the server does not {doing}"))),
    }
}

/// Removes the files.
pub fn remove(folder: &Path) {
    drop(fs::remove_dir_all(folder));
}

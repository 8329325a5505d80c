//! What a server is besides its data and its log: replication slots, and the publications of each database.
//!
//! The server writes the JSON itself (`to_jsonb` of a row), so that a version tells all that it knows of a slot and no other has to be
//! taught it. What changes without anything having changed (`active_pid`, `safe_wal_size`) is left out. Who may stream WAL may read
//! `pg_replication_slots` and the catalogs of publications; of a database only who may connect to it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::conn::Server;
use super::sql::Sql;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::source::told::{Part, Refusal};

/// What a server told of itself.
pub struct Told {
    /// Which system it is.
    pub system_id: u64,
    /// Its slots and publications.
    pub part: Part,
}

#[derive(Serialize)]
struct State {
    /// As `server_version_num` has it.
    server_version: u32,
    /// Slots are those of one server: a standby has its own.
    is_standby: bool,
    slots: Box<RawValue>,
    databases: BTreeMap<String, Database>,
}

#[derive(Serialize)]
struct Database {
    publications: Box<RawValue>,
}

impl Server {
    /// Asks for slots and publications.
    ///
    /// # Errors
    /// A server that is away, or refuses who logs in.
    pub async fn state(&self) -> Result<Told> {
        let mut sql = self.sql().await?;
        let rows = sql.query(SYSTEM, "read which system it is").await?;
        let [system_id, is_standby, slots] = columns(&sql, rows, "read pg_replication_slots")?;
        let system_id = system_id.parse().map_err(|_| sql.connection.unexpected("read which system it is"))?;
        let (mut databases, mut refused) = (BTreeMap::new(), Vec::new());
        // Of several hosts the one that has told its slots.
        let same = self.only(&sql.connection.shown);
        for row in sql.query(DATABASES, "read pg_database").await? {
            let mut row = row.into_iter().flatten();
            let (Some(name), Some(may_connect)) = (row.next(), row.next()) else { continue };
            let refusal = |grant: String| Refusal { what: format!("publications of the database {name}"), grant };
            if may_connect != "t" {
                refused.push(refusal(format!("CONNECT ON DATABASE {name} TO {}", self.user())));
                continue;
            }
            match same.of_database(&name).publications().await {
                Ok(publications) => drop(databases.insert(name, Database { publications })),
                Err(error) if error.kind() == Kind::Denied => {
                    // What the server says may name a port of ours, and what is refused is told once.
                    tracing::debug!(%error, database = name, "a database lets nobody in");
                    refused.push(refusal(format!("a line of pg_hba.conf that lets {} into {name}", self.user())));
                }
                // It was dropped just now.
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let state =
            State { server_version: sql.version(), is_standby: is_standby == "t", slots: json(slots)?, databases };
        Ok(Told { system_id, part: Part::found(&state, refused)? })
    }

    /// The publications of the database that is connected to, as JSON.
    async fn publications(&self) -> Result<Box<RawValue>> {
        const DOING: &str = "read pg_publication";
        let mut sql = self.sql().await?;
        let rows = sql.query(&publications(sql.version()), DOING).await?;
        let [publications] = columns(&sql, rows, DOING)?;
        json(publications)
    }
}

const SYSTEM: &str = "SELECT (SELECT system_identifier FROM pg_control_system()), pg_is_in_recovery(), \
    coalesce(jsonb_object_agg(s.slot_name, to_jsonb(s) - ARRAY['slot_name', 'datoid', 'active_pid', 'safe_wal_size']), '{}') \
    FROM pg_replication_slots s";

const DATABASES: &str = "SELECT datname, has_database_privilege(oid, 'CONNECT') FROM pg_database \
    WHERE datallowconn AND NOT datistemplate ORDER BY datname";

/// Lists of columns, row filters and whole schemas came with 15.
fn publications(version: u32) -> String {
    let (of_table, schemas) = match version {
        150_000.. => (
            "jsonb_build_object('columns', (SELECT jsonb_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a \
               WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs)), \
               'row_filter', pg_get_expr(r.prqual, r.prrelid))",
            "(SELECT coalesce(jsonb_agg(n.nspname ORDER BY n.nspname), '[]') FROM pg_publication_namespace s \
               JOIN pg_namespace n ON n.oid = s.pnnspid WHERE s.pnpubid = p.oid)",
        ),
        _ => ("'{}'::jsonb", "'[]'::jsonb"),
    };
    format!(
        "SELECT coalesce(jsonb_object_agg(p.pubname, to_jsonb(p) - ARRAY['oid', 'pubname', 'pubowner'] || jsonb_build_object( \
           'owner', pg_get_userbyid(p.pubowner), \
           'tables', (SELECT coalesce(jsonb_object_agg(format('%I.%I', n.nspname, c.relname), {of_table}), '{{}}') \
              FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
              WHERE r.prpubid = p.oid), \
           'schemas', {schemas})), '{{}}') FROM pg_publication p"
    )
}

/// The columns of the one row that a query has.
fn columns<const N: usize>(sql: &Sql, rows: Vec<Vec<Option<String>>>, doing: &str) -> Result<[String; N]> {
    let row: Option<Vec<String>> = rows.into_iter().next().and_then(|row| row.into_iter().collect());
    row.and_then(|row| row.try_into().ok()).ok_or_else(|| sql.connection.unexpected(doing))
}

/// The same JSON without what the server puts between its parts, so that its versions do not differ in that.
fn json(text: String) -> Result<Box<RawValue>> {
    let failed = || "the server told something that is no JSON".to_owned();
    let value: Value = serde_json::from_str(&text).or_err(Kind::Corrupt, failed)?;
    serde_json::value::to_raw_value(&value).map_err(|error| Error::new(Kind::Internal, failed()).source(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_newer_servers_are_asked_for_what_is_new() {
        let (new, old) = (publications(150_000), publications(140_009));
        for name in ["prattrs", "prqual", "pg_publication_namespace"] {
            assert!(new.contains(name) && !old.contains(name), "{name}");
        }
    }

    #[test]
    fn what_the_server_writes_is_stored_in_one_way() {
        let shown = json("{\"b\": 1,  \"a\": [1, 2]}".to_owned()).expect("JSON");
        assert_eq!(shown.get(), json("{\"b\":1,\"a\":[1,2]}".to_owned()).expect("JSON").get());
        assert_eq!(json("{".to_owned()).expect_err("none").kind(), Kind::Corrupt);
    }
}

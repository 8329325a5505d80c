//! The captured tables, as a server has them.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::recover::slots::literal;
use crate::source::postgres::{Server, Sql};

/// A table of a publication.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// Its schema.
    pub schema: String,
    /// Its name there.
    pub name: String,
    /// Whether it is a partitioned table that is published as a whole.
    pub is_root: bool,
    /// Its columns, in their order.
    pub columns: Vec<Column>,
    /// The columns of its primary key, or else of its replica identity; empty where it has none.
    pub key: Vec<String>,
    /// `pg_class.relreplident`.
    pub identity: char,
}

/// A column of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type, as `format_type` writes it.
    pub kind: String,
    /// Whether it is NOT NULL.
    pub is_required: bool,
    /// Whether the server works it out from others.
    pub is_generated: bool,
    /// Whether it is GENERATED ALWAYS AS IDENTITY.
    pub is_always: bool,
    /// What rows have that are older than the column (`attmissingval`).
    pub missing: Option<String>,
}

impl Captured {
    /// Its name, for people.
    pub fn shown(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Whether its updates and deletes can be published: without a replica identity the server refuses them.
    pub fn has_identity(&self) -> bool {
        match self.identity {
            'f' | 'i' => true,
            'd' => !self.key.is_empty(),
            _ => false,
        }
    }

    /// Whether another server has it with the same columns.
    pub fn has_columns_of(&self, other: &Self) -> bool {
        let columns = |of: &Self| of.columns.iter().map(|one| (one.name.clone(), one.kind.clone())).collect::<Vec<_>>();
        columns(self) == columns(other)
    }
}

/// A session in which values look the same on both servers, and triggers, rules and foreign keys are quiet.
///
/// # Errors
/// A server that does not answer.
pub async fn session(server: &Server) -> Result<Sql> {
    const SETTINGS: [(&str, &str); 11] = [
        ("statement_timeout", "0"),
        ("lock_timeout", "0"),
        ("search_path", "pg_catalog"),
        ("row_security", "off"),
        ("session_replication_role", "replica"),
        ("DateStyle", "ISO, YMD"),
        ("IntervalStyle", "postgres"),
        ("extra_float_digits", "3"),
        ("bytea_output", "hex"),
        ("TimeZone", "UTC"),
        ("client_min_messages", "warning"),
    ];
    let mut sql = server.sql().await?;
    for (name, value) in SETTINGS {
        sql.query(&format!("SET {name} = {}", literal(value)), "set the session").await?;
    }
    Ok(sql)
}

/// Reads the tables of a publication.
///
/// # Errors
/// A server that does not answer.
pub(super) async fn of_publication(sql: &mut Sql, publication: &str) -> Result<Vec<Captured>> {
    let asked = format!(
        "SELECT DISTINCT p.schemaname, p.tablename FROM pg_publication_tables p WHERE p.pubname = {} ORDER BY 1, 2",
        literal(publication)
    );
    let mut tables = Vec::new();
    for row in sql.query(&asked, "list the tables of a publication").await? {
        let [Some(schema), Some(name)] = row.as_slice() else { continue };
        tables.extend(named(sql, schema, name).await?);
    }
    Ok(tables)
}

/// Reads one table; none where there is none.
///
/// # Errors
/// A server that does not answer.
pub(super) async fn named(sql: &mut Sql, schema: &str, name: &str) -> Result<Option<Captured>> {
    let asked = format!(
        "SELECT c.oid, c.relkind = 'p', c.relreplident FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = {} AND c.relname = {} AND c.relkind IN ('r', 'p')",
        literal(schema),
        literal(name)
    );
    let rows = sql.query(&asked, "look for a table").await?;
    let Some([Some(oid), Some(is_root), Some(identity)]) = rows.first().map(Vec::as_slice) else { return Ok(None) };
    let asked = format!(
        "SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated <> '', a.attidentity = 'a',
                CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END
         FROM pg_attribute a WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
    );
    let mut columns = Vec::new();
    for row in sql.query(&asked, "read the columns of a table").await? {
        let [Some(name), Some(kind), Some(required), Some(generated), Some(always), missing] = row.as_slice() else {
            return Err(Error::new(Kind::Internal, format!("the server does not tell the columns of {schema}.{name}")));
        };
        columns.push(Column {
            name: name.clone(),
            kind: kind.clone(),
            is_required: required == "t",
            is_generated: generated == "t",
            is_always: always == "t",
            missing: missing.clone(),
        });
    }
    let asked = format!(
        "SELECT a.attname FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(number, at), pg_attribute a
         WHERE i.indexrelid = (SELECT indexrelid FROM pg_index WHERE indrelid = {oid} AND (indisprimary OR indisreplident)
                               ORDER BY indisprimary DESC LIMIT 1)
           AND k.at <= i.indnkeyatts AND a.attrelid = {oid} AND a.attnum = k.number ORDER BY k.at"
    );
    let key = sql.query(&asked, "read the key of a table").await?;
    Ok(Some(Captured {
        schema: schema.to_owned(),
        name: name.to_owned(),
        is_root: is_root == "t",
        columns,
        key: key.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect(),
        identity: identity.chars().next().unwrap_or('n'),
    }))
}

//! The SQL by which a table is read at one end and changed at the other.
//!
//! Rows are told apart by their text, and keys by the text of theirs: a collation may call two of them equal that are two keys in a topic.
//! A transaction number is compared as those of the log are: they go round.

use std::collections::BTreeMap;

use super::captured::{Captured, Column};
use crate::recover::database::quoted_name;
use crate::recover::slots::literal;

/// Where the other end's rows are kept. They are not published: the tables are not logged.
pub(super) const SCHEMA: &str = "tidelog_net";

/// A table in it with one row, once all is loaded. A crash takes the row as it does what was loaded.
pub(super) const LOADED: &str = "tidelog_net.loaded";

/// A table in it that is there, and logged, once all is changed but what holds the marker.
pub(super) const CHANGED: &str = "tidelog_net.changed";

/// Columns beside those of a table: which transaction wrote the row, and the row as text.
const WRITER: &str = "\"tidelog xmin\"";
const TEXT: &str = "\"tidelog row\"";

/// The name of a table within a statement: a column that is called so would be another thing.
const T: &str = "\"tidelog t\"";

/// A table, and where it stands among all.
#[derive(Clone, Copy)]
pub(super) struct Of<'a> {
    pub(super) table: &'a Captured,
    pub(super) at: usize,
}

/// Which rows of the other end are changed now: those that hold the marker come last.
#[derive(Debug, Clone, Copy)]
pub(super) enum Which<'a> {
    /// All but those with this text.
    Without(Option<&'a str>),
    /// Those with this text.
    With(&'a str),
}

impl Which<'_> {
    fn condition(self, text: &str) -> String {
        match self {
            Self::Without(None) => String::new(),
            Self::Without(Some(token)) => format!(" AND strpos({text}, {}) = 0", literal(token)),
            Self::With(token) => format!(" AND strpos({text}, {}) > 0", literal(token)),
        }
    }
}

/// Whether a transaction number is `from` or a later one.
fn is_since(number: &str, from: u32) -> String {
    format!("({number} > 2 AND (({number} - {from}) & 4294967295) < 2147483648)")
}

fn listed<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(|name| quoted_name(name)).collect::<Vec<_>>().join(", ")
}

impl Of<'_> {
    fn name(&self) -> String {
        format!("{}.{}", quoted_name(&self.table.schema), quoted_name(&self.table.name))
    }

    /// Rows of tables that inherit from it are those of other topics.
    fn only(&self) -> String {
        if self.table.is_root { self.name() } else { format!("ONLY {}", self.name()) }
    }

    fn rows(&self) -> String {
        format!("{SCHEMA}.rows_{}", self.at)
    }

    fn keys(&self) -> String {
        format!("{SCHEMA}.keys_{}", self.at)
    }

    fn has_key(&self) -> bool {
        !self.table.key.is_empty()
    }

    /// Whether a row of one is that of the other.
    fn same_key(&self, one: &str, other: &str) -> String {
        let of = |column: &String| {
            let column = quoted_name(column);
            format!("{one}.{column}::text COLLATE \"C\" = {other}.{column}::text COLLATE \"C\"")
        };
        self.table.key.iter().map(of).collect::<Vec<_>>().join(" AND ")
    }

    /// Writes the rows into a file that were written by a transaction or a later one; all of a table without a key, and where that
    /// transaction is not known.
    pub(super) fn write_rows(&self, from: Option<u32>, file: &str) -> String {
        let written = |from| format!("WHERE {}", is_since(&format!("{T}.xmin::text::bigint"), from));
        let some = from.filter(|_| self.has_key()).map(written).unwrap_or_default();
        let only = self.only();
        format!("COPY (SELECT {T}.xmin::text::bigint, {T}::text, {T}.* FROM {only} {T} {some}) TO {}", literal(file))
    }

    /// Writes all keys into a file; none of a table without.
    pub(super) fn write_keys(&self, file: &str) -> Option<String> {
        let columns = listed(self.table.key.iter());
        self.has_key().then(|| format!("COPY (SELECT {columns} FROM {}) TO {}", self.only(), literal(file)))
    }

    /// Counts it, and sums up the hashes of its rows.
    pub(super) fn counted(&self) -> String {
        let hash = format!("hashtextextended({T}::text COLLATE \"C\", 0)");
        format!("SELECT count(*), coalesce(sum({hash}), 0) FROM {} {T}", self.only())
    }

    /// Loads the files.
    pub(super) fn load(&self, (rows, keys): (&str, &str)) -> Vec<String> {
        let columns = |names: &mut dyn Iterator<Item = &Column>| {
            names.map(|column| format!("{} {}", quoted_name(&column.name), column.kind)).collect::<Vec<_>>().join(", ")
        };
        let all = columns(&mut self.table.columns.iter());
        let comma = if all.is_empty() { "" } else { ", " };
        let mut statements = vec![
            format!("DROP TABLE IF EXISTS {}, {}", self.rows(), self.keys()),
            format!("CREATE UNLOGGED TABLE {} ({WRITER} bigint, {TEXT} text{comma}{all})", self.rows()),
            format!("COPY {} FROM {}", self.rows(), literal(rows)),
        ];
        if self.has_key() {
            let key = columns(&mut self.table.columns.iter().filter(|column| self.table.key.contains(&column.name)));
            let names = listed(self.table.key.iter());
            statements.push(format!("CREATE UNLOGGED TABLE {} ({key})", self.keys()));
            statements.push(format!("COPY {} ({names}) FROM {}", self.keys(), literal(keys)));
        }
        statements
    }

    /// Makes a row that a connector has sent, and that is at neither end: its delete is published then, as that of any other row that is
    /// gone. What is not known of it is NULL, or some other row's. None where its key cannot be told.
    pub(super) fn sent(&self, row: &BTreeMap<String, Option<String>>) -> Option<String> {
        let is_alike =
            |column: &Column| ALIKE.contains(&column.kind.as_str()) || column.kind.starts_with("character varying(");
        let own = |column: &&Column| !column.is_generated;
        let mut values = Vec::new();
        for column in self.table.columns.iter().filter(own) {
            let value = row.get(&column.name).cloned().flatten().filter(|_| is_alike(column));
            let name = quoted_name(&column.name);
            values.push(match value {
                Some(text) => format!("{}::{} AS {name}", literal(&text), column.kind),
                None if self.table.key.contains(&column.name) => return None,
                None if !column.is_required => format!("NULL::{} AS {name}", column.kind),
                None => format!("(SELECT {name} FROM {} LIMIT 1) AS {name}", self.rows()),
            });
        }
        let names = listed(self.table.columns.iter().filter(own).map(|column| &column.name));
        self.has_key().then(|| {
            format!(
                "INSERT INTO {} ({names}) OVERRIDING SYSTEM VALUE SELECT {names} FROM (SELECT {}) v \
                 WHERE NOT EXISTS (SELECT FROM {} k WHERE {}) ON CONFLICT DO NOTHING",
                self.name(),
                values.join(", "),
                self.keys(),
                self.same_key("k", "v")
            )
        })
    }

    /// Deletes what is not at the other end; none where deletes cannot be published.
    pub(super) fn delete(&self) -> Option<String> {
        let only = self.only();
        let gone = match self.has_key() {
            _ if !self.table.has_identity() => return None,
            true => format!(
                "DELETE FROM {only} {T} WHERE NOT EXISTS (SELECT FROM {} k WHERE {})",
                self.keys(),
                self.same_key("k", T)
            ),
            false => format!(
                "DELETE FROM {only} {T} USING (SELECT m.place, m.part FROM (SELECT {T}.ctid AS place, {T}.tableoid AS part, \
                   {T}::text COLLATE \"C\" AS text, row_number() OVER (PARTITION BY {T}::text COLLATE \"C\") AS n FROM {only} {T}) m \
                 WHERE NOT EXISTS (SELECT FROM {} k WHERE k.text = m.text AND k.n = m.n)) g \
                 WHERE {T}.ctid = g.place AND {T}.tableoid = g.part",
                self.numbered()
            ),
        };
        Some(count_of(&gone))
    }

    /// Counts rows that are gone at the other end, of a table whose deletes cannot be published.
    pub(super) fn gone(&self) -> String {
        let only = self.only();
        match self.has_key() {
            true => format!(
                "SELECT count(*) FROM {only} {T} WHERE NOT EXISTS (SELECT FROM {} k WHERE {})",
                self.keys(),
                self.same_key("k", T)
            ),
            false => format!(
                "SELECT count(*) FROM (SELECT {T}::text COLLATE \"C\" AS text, row_number() OVER (PARTITION BY {T}::text COLLATE \"C\") \
                   AS n FROM {only} {T}) m WHERE NOT EXISTS (SELECT FROM {} k WHERE k.text = m.text AND k.n = m.n)",
                self.numbered()
            ),
        }
    }

    /// The other end's rows, equal ones numbered.
    fn numbered(&self) -> String {
        format!(
            "(SELECT {TEXT} COLLATE \"C\" AS text, row_number() OVER (PARTITION BY {TEXT} COLLATE \"C\") AS n FROM {})",
            self.rows()
        )
    }

    /// Updates what is another row at the other end, or was written by a transaction from `from` on: it may have been another one
    /// meanwhile, which a consumer has seen. None where there is nothing but the key, or updates cannot be published.
    pub(super) fn update(&self, from: u32, which: Which<'_>) -> Option<String> {
        let own = |column: &&Column| !column.is_generated && !self.table.key.contains(&column.name);
        let set: Vec<String> = self.table.columns.iter().filter(own).map(|column| quoted_name(&column.name)).collect();
        if !self.has_key() || set.is_empty() || !self.table.has_identity() {
            return None;
        }
        let set = set.iter().map(|column| format!("{column} = s.{column}")).collect::<Vec<_>>().join(", ");
        let update = format!(
            "UPDATE {} {T} SET {set} FROM {} s WHERE {} AND ({T}::text COLLATE \"C\" IS DISTINCT FROM s.{TEXT} OR {}){}",
            self.only(),
            self.rows(),
            self.same_key("s", T),
            is_since(&format!("s.{WRITER}"), from),
            which.condition(&format!("s.{TEXT}"))
        );
        Some(count_of(&update))
    }

    /// Inserts what is at the other end alone.
    pub(super) fn insert(&self, which: Which<'_>) -> String {
        let own = self.table.columns.iter().filter(|column| !column.is_generated).map(|column| &column.name);
        let names: Vec<&String> = own.collect();
        let (into, from) = (listed(names.iter().copied()), names.iter().map(|name| format!("s.{}", quoted_name(name))));
        let from = from.collect::<Vec<_>>().join(", ");
        let only = self.only();
        let new = match self.has_key() {
            true => format!(
                "SELECT {from} FROM {} s WHERE NOT EXISTS (SELECT FROM {only} {T} WHERE {}){}",
                self.rows(),
                self.same_key("s", T),
                which.condition(&format!("s.{TEXT}"))
            ),
            false => format!(
                "SELECT {from} FROM (SELECT *, row_number() OVER (PARTITION BY {TEXT} COLLATE \"C\") AS {WRITER_N} FROM {}) s \
                 WHERE NOT EXISTS (SELECT FROM (SELECT {T}::text COLLATE \"C\" AS text, row_number() OVER \
                   (PARTITION BY {T}::text COLLATE \"C\") AS n FROM {only} {T}) m WHERE m.text = s.{TEXT} COLLATE \"C\" AND m.n = s.{WRITER_N}){}",
                self.rows(),
                which.condition(&format!("s.{TEXT}"))
            ),
        };
        count_of(&format!("INSERT INTO {} ({into}) OVERRIDING SYSTEM VALUE {new}", self.name()))
    }

    /// What gives the table the columns that it has at the other end, where the two differ in columns that were added or dropped; none
    /// where a column has another type.
    pub(super) fn become_as(&self, now: &Captured) -> Option<Vec<String>> {
        let there = |of: &Captured, name: &str| of.columns.iter().find(|column| column.name == name).cloned();
        let mut statements = Vec::new();
        for column in &now.columns {
            match there(self.table, &column.name) {
                None => statements.push(format!(
                    "ALTER TABLE {} DROP COLUMN {} CASCADE",
                    self.name(),
                    quoted_name(&column.name)
                )),
                Some(other) if other.kind != column.kind => return None,
                Some(_) => {}
            }
        }
        for column in self.table.columns.iter().filter(|column| there(now, &column.name).is_none()) {
            if column.is_generated {
                return None;
            }
            let missing =
                column.missing.as_ref().map(|value| format!(" DEFAULT {}", literal(value))).unwrap_or_default();
            let required = if column.is_required && column.missing.is_some() { " NOT NULL" } else { "" };
            let name = quoted_name(&column.name);
            statements.push(format!(
                "ALTER TABLE {} ADD COLUMN {name} {}{missing}{required}",
                self.name(),
                column.kind
            ));
        }
        Some(statements)
    }

    /// What makes the table as it is at the other end, and publishes it.
    pub(super) fn made(&self, publication: Option<&str>) -> Vec<String> {
        let column = |column: &Column| {
            let required = if column.is_required { " NOT NULL" } else { "" };
            format!("{} {}{required}", quoted_name(&column.name), column.kind)
        };
        let mut parts: Vec<String> = self.table.columns.iter().map(column).collect();
        if self.has_key() {
            parts.push(format!("PRIMARY KEY ({})", listed(self.table.key.iter())));
        }
        let mut statements = vec![
            format!("CREATE SCHEMA IF NOT EXISTS {}", quoted_name(&self.table.schema)),
            format!("CREATE TABLE {} ({})", self.name(), parts.join(", ")),
        ];
        if self.table.identity == 'f' {
            statements.push(format!("ALTER TABLE {} REPLICA IDENTITY FULL", self.name()));
        }
        statements.extend(publication.map(|publication| self.published(publication)));
        statements
    }

    /// What publishes the table.
    pub(super) fn published(&self, publication: &str) -> String {
        format!("ALTER PUBLICATION {} ADD TABLE {}", quoted_name(publication), self.only())
    }

    /// Lists what refuses rows on the way that are whole at its end: other unique indexes, and exclusions.
    pub(super) fn obstacles(&self) -> String {
        format!(
            "SELECT DISTINCT coalesce(pg_partition_root(i.indexrelid), i.indexrelid)::regclass, r.conrelid::regclass, quote_ident(r.conname)
             FROM pg_index i LEFT JOIN pg_constraint r
               ON r.conindid = coalesce(pg_partition_root(i.indexrelid), i.indexrelid) AND r.contype IN ('u', 'x')
             WHERE i.indrelid = {}::regclass AND (i.indisunique OR i.indisexclusion) AND NOT i.indisprimary AND NOT i.indisreplident",
            literal(&self.name())
        )
    }

    /// Its columns that a statement cannot set: identities that are always the server's.
    pub(super) fn freed(&self) -> Vec<String> {
        let is = |column: &&Column| column.is_always && !self.table.key.contains(&column.name);
        let free = |column: &Column| {
            format!("ALTER TABLE {} ALTER COLUMN {} DROP IDENTITY IF EXISTS", self.name(), quoted_name(&column.name))
        };
        self.table.columns.iter().filter(is).map(free).collect()
    }
}

/// Types that a connector writes as the server does, whatever its settings are.
const ALIKE: [&str; 9] =
    ["smallint", "integer", "bigint", "boolean", "text", "character varying", "uuid", "json", "jsonb"];

const WRITER_N: &str = "\"tidelog n\"";

/// The statement, giving how many rows it has changed.
fn count_of(statement: &str) -> String {
    format!("WITH x AS ({statement} RETURNING 1) SELECT count(*) FROM x")
}

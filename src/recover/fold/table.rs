//! A table as the server has it, in a count of its rows and one sum a column.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::hash::hash;
use crate::error::{Error, Kind, Result};
use crate::source::postgres::{Server, Sql};

/// Types that a connector writes just as the server writes them as text, whatever its settings are. A NULL in a column with a default is
/// written as that default by Kafka's converters (`replace.null.with.default`, KIP-581).
const ALIKE: &str = "'int2','int4','int8','bool','text','varchar','uuid','json','jsonb'";

/// The first version whose publications have row filters.
const FILTERS: u32 = 150_000;

/// What the seed is called beside the columns of a table.
const SEED: &str = "\"tidelog seed\"";

/// Between the columns of a key of several.
const BETWEEN: &str = "\x1f";

/// What is compared of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its schema.
    pub schema: String,
    /// Its name there.
    pub name: String,
    /// How many rows it has.
    pub rows: u64,
    /// The columns of its primary key, if all of them can be compared.
    pub key: Vec<String>,
    /// The sum of the hashes of each column that can be compared, with the key as the seed; as text, for JSON has no such numbers.
    #[serde(with = "as_text")]
    pub sums: BTreeMap<String, i128>,
    /// How many columns cannot be.
    pub others: usize,
    /// Why its topic may well come to other rows.
    #[serde(default)]
    pub may_differ: Option<String>,
    /// Why no columns are compared, where it is not for their types.
    #[serde(default)]
    pub no_columns: Option<String>,
    /// Why it was not counted.
    #[serde(default)]
    pub refused: Option<String>,
}

/// Why a table is not counted that no archived topic is of.
pub(super) const NO_TOPIC: &str = "it has no archived topic";

mod as_text {
    use std::collections::BTreeMap;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(sums: &BTreeMap<String, i128>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(sums.iter().map(|(name, sum)| (name, sum.to_string())))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<BTreeMap<String, i128>, D::Error> {
        let sums = BTreeMap::<String, String>::deserialize(from)?;
        let parse = |(name, sum): (String, String)| Ok((name, sum.parse().map_err(D::Error::custom)?));
        sums.into_iter().map(parse).collect()
    }
}

impl Table {
    /// The seed of the hashes of a row: its key, so that a value in another row is another one.
    pub(super) fn seed<'a>(&self, text: impl Fn(&str) -> Option<&'a str>) -> Option<i64> {
        if self.key.is_empty() {
            return Some(0);
        }
        let parts: Option<Vec<&str>> = self.key.iter().map(|column| text(column)).collect();
        Some(hash(parts?.join(BETWEEN).as_bytes(), 0))
    }
}

/// Reads the tables of a publication.
///
/// # Errors
/// A server that does not answer. A table that cannot be read says so itself.
pub(super) async fn tables(
    server: &Server,
    publication: &str,
    is_wanted: impl Fn(&str, &str) -> bool,
) -> Result<Vec<Table>> {
    let mut sql = server.sql().await?;
    for set in ["SET statement_timeout = 0", "SET search_path = pg_catalog", "SET row_security = off"] {
        sql.query(set, "set the session").await?;
    }
    let has_filter = if sql.version() >= FILTERS { "p.rowfilter IS NOT NULL" } else { "false" };
    let asked = format!(
        "SELECT p.schemaname, p.tablename, c.oid, c.relkind,
                CASE WHEN {has_filter} THEN 'its publication has a row filter'
                     WHEN NOT (b.pubinsert AND b.pubupdate AND b.pubdelete) THEN 'its publication leaves operations out'
                     WHEN c.relkind = 'p' THEN 'partitions that come and go are in no topic' END
         FROM pg_publication_tables p JOIN pg_publication b ON b.pubname = p.pubname
         JOIN pg_namespace n ON n.nspname = p.schemaname
         JOIN pg_class c ON c.relname = p.tablename AND c.relnamespace = n.oid
         WHERE p.pubname = {} ORDER BY 1, 2",
        literal(publication)
    );
    let sums = hashes_alike(&mut sql).await?;
    let mut tables = Vec::new();
    for row in sql.query(&asked, "list the tables of a publication").await? {
        let [Some(schema), Some(name), Some(oid), Some(kind), may_differ] = row.as_slice() else { continue };
        let (schema, name, may_differ) = (schema.clone(), name.clone(), may_differ.clone());
        let mut table = Table { schema, name, may_differ, ..Table::default() };
        if !is_wanted(&table.schema, &table.name) {
            table.refused = Some(NO_TOPIC.to_owned());
        } else if let Err(error) = count(&mut sql, &mut table, (oid, kind, sums)).await {
            if error.is_transient() {
                return Err(error);
            }
            table.refused = Some(error.to_string());
        }
        if !sums {
            table.no_columns = Some("this server's encoding, or its hash of texts, is another one".to_owned());
        }
        tables.push(table);
    }
    Ok(tables)
}

/// Whether the server's hashes of texts are ours, over the same bytes.
async fn hashes_alike(sql: &mut Sql) -> Result<bool> {
    let text = "tidelog: thirty bytes and some";
    let asked = format!("SELECT hashtextextended('{text}' COLLATE \"C\", 7), current_setting('server_encoding')");
    let rows = sql.query(&asked, "try a hash").await?;
    let Some([Some(its), Some(encoding)]) = rows.first().map(Vec::as_slice) else { return Ok(false) };
    Ok(*its == hash(text.as_bytes(), 7).to_string() && encoding == "UTF8")
}

async fn count(sql: &mut Sql, table: &mut Table, (oid, kind, sums): (&str, &str, bool)) -> Result<()> {
    let asked = format!(
        "SELECT a.attname,
                ((t.typname IN ({ALIKE}) AND t.typnamespace = 11) OR t.typtype = 'e') AND (a.attnotnull OR NOT a.atthasdef),
                coalesce(a.attnum = ANY (i.indkey), false)
         FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
         LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
         WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
    );
    let (mut columns, mut key, mut all_alike) = (Vec::new(), Vec::new(), true);
    for row in sql.query(&asked, "read the columns of a table").await? {
        let [Some(name), Some(alike), Some(is_key)] = row.as_slice() else { continue };
        if is_key == "t" {
            all_alike &= alike == "t";
            key.push(name.clone());
        }
        match alike == "t" && sums {
            true => columns.push(name.clone()),
            false => table.others += 1,
        }
    }
    if all_alike {
        table.key = key;
    }
    let seed = match table.key.as_slice() {
        [] => "0::bigint".to_owned(),
        key => {
            let parts: Vec<String> = key.iter().map(|column| format!("{}::text", quoted(column))).collect();
            format!("hashtextextended(concat_ws(E'\\x1f', {}) COLLATE \"C\", 0)", parts.join(", "))
        }
    };
    let summed = |column: &String| format!("sum(hashtextextended({}::text COLLATE \"C\", {SEED}))", quoted(column));
    let what: Vec<String> = std::iter::once("count(*)".to_owned()).chain(columns.iter().map(summed)).collect();
    // Rows of tables that inherit from it are those of other topics.
    let only = if kind == "p" { "" } else { "ONLY " };
    // Without OFFSET the seed would be worked out once a column.
    let asked = format!(
        "SELECT {} FROM (SELECT *, {seed} AS {SEED} FROM {only}{}.{} OFFSET 0) x",
        what.join(", "),
        quoted(&table.schema),
        quoted(&table.name)
    );
    let rows = sql.query(&asked, &format!("count {}.{}", table.schema, table.name)).await?;
    let untold = || Error::new(Kind::Internal, "the server does not tell a count");
    let mut told = rows.into_iter().next().ok_or_else(untold)?.into_iter();
    table.rows = told.next().flatten().and_then(|rows| rows.parse().ok()).ok_or_else(untold)?;
    for (column, sum) in columns.into_iter().zip(told) {
        let sum = sum.map_or(Ok(0), |sum| sum.parse()).map_err(|_| untold())?;
        table.sums.insert(column, sum);
    }
    Ok(())
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

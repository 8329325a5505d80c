//! Each captured table beside the rows that its topic comes to: the database and the topics were brought back by ways of their own, and
//! this is where they meet.
//!
//! ```text
//!   server, nobody can write yet ─► table: rows, one sum a column ─► journal
//!   target's topic ─► row: what a record does ─► topic: rows by key ─► rows, one sum a column ─┬─► the same, or which differ
//!                                                                     hash, as the server's ──┘
//! ```
//!
//! Only columns are compared that every connector writes just as the server writes them as text, and that all rows of the topic have:
//! one that was added later is in no older record. Of tables whose events are changed on their way nothing is compared, which is said.

mod hash;
mod row;
mod table;
mod topic;

use std::collections::{BTreeMap, BTreeSet};

use chrono::DateTime;

pub(super) use row::{Change, change};
pub use table::Table;
pub use topic::Sent;

use self::topic::Folded;
use super::connector::Connector;
use super::cut::Schemas;
use super::journal::{Journal, Proof};
use crate::config::Config;
use crate::error::{Kind, Result, ResultExt as _};
use crate::manifest;
use crate::replay::Rename;
use crate::replay::kafka::Connection;
use crate::source::postgres::Server;
use crate::store::Store;
use crate::stream::StreamId;
use crate::time;

/// What more rows in a topic may come from.
const TRUNCATES: &str = " (a TRUNCATE is in no topic, by skipped.operations)";

/// So many names are told.
const MOST_NAMED: usize = 8;

/// Counts the tables that a connector captures, while they are as they were at the commit.
///
/// # Errors
/// A server that does not answer, and the store's.
pub async fn count(store: &Store, config: &Config, server: &Server, of: &Connector) -> Result<Vec<Table>> {
    if why_not(of).is_some() {
        return Ok(Vec::new());
    }
    let cluster = config.kafka.as_ref().map(|kafka| kafka.cluster.as_str());
    let streams = manifest::streams(store).await?;
    let archived = streams.iter().filter_map(StreamId::topic);
    let archived = archived.filter(|stream| cluster.is_none_or(|cluster| cluster == stream.cluster));
    let topics: BTreeSet<&str> = archived.map(|stream| stream.topic.as_str()).collect();
    let server = server.of_database(of.database());
    table::tables(&server, of.publication(), |schema, name| topics.contains(archived_topic(of, schema, name).as_str()))
        .await
}

/// The topic of a table, with what no topic may be called replaced (`TopicSchema`'s sanitized names).
fn archived_topic(of: &Connector, schema: &str, table: &str) -> String {
    let is_taken = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
    format!("{}.{schema}.{table}", of.prefixes.0).chars().map(|c| if is_taken(c) { c } else { '_' }).collect()
}

/// A setting by which the archived records were written.
fn was<'a>(of: &'a Connector, key: &str) -> Option<&'a str> {
    of.archived.get(key).and_then(Option::as_deref).filter(|value| !value.is_empty())
}

/// Why the topics of a connector cannot be compared with its tables.
fn why_not(of: &Connector) -> Option<String> {
    if of.plugin() != "pgoutput" {
        return Some(format!("its plugin is {}, and what it captures is not known by a publication", of.plugin()));
    }
    let others = ["message.key.columns", "topic.naming.strategy"];
    if let Some(key) = others.into_iter().find(|key| was(of, key).is_some()) {
        return Some(format!("its {key} gives records other keys, or topics other names, than the tables have"));
    }
    if was(of, "topic.delimiter").is_some_and(|delimiter| delimiter != ".") {
        return Some("its topic.delimiter is not the default".to_owned());
    }
    transforms(of).find(|name| !unwraps(of, name)).map(|name| format!("the transform {name} may change its records"))
}

fn transforms(of: &Connector) -> impl Iterator<Item = &str> {
    was(of, "transforms").unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty())
}

fn unwraps(of: &Connector, name: &str) -> bool {
    was(of, &format!("transforms.{name}.type")) == Some("io.debezium.transforms.ExtractNewRecordState")
}

/// Whether values stand in the topic as they are in the table.
fn has_values(of: &Connector) -> bool {
    let changes = ["column.mask", "column.truncate", "converters", "post.processors", "unavailable.value.placeholder"];
    !of.archived.keys().any(|key| changes.iter().any(|change| key.starts_with(change)))
}

/// Why a topic may well have other rows than its table.
fn may_differ(of: &Connector, is_late: bool) -> Option<&'static str> {
    if is_late {
        return Some("the archive does not have its beginning");
    }
    let mode = was(of, "snapshot.mode").unwrap_or("initial");
    if !["initial", "initial_only", "always", "when_needed"].contains(&mode) {
        return Some("by its snapshot.mode the connector did not begin with all rows");
    }
    let some = ["snapshot.select.statement.overrides", "snapshot.include.collection.list"];
    if some.into_iter().any(|key| was(of, key).is_some()) {
        return Some("its first snapshot was made of some rows");
    }
    if was(of, "skipped.operations")
        .is_some_and(|skipped| skipped.split(',').any(|op| ["c", "u", "d"].contains(&op.trim())))
    {
        return Some("the connector leaves operations out (skipped.operations)");
    }
    // What is left of a deletion was called otherwise before 2.5.
    let tells = |name: &str| {
        let set = |key: &str| was(of, &format!("transforms.{name}.{key}"));
        set("delete.tombstone.handling.mode").is_some_and(|mode| mode != "drop")
            || set("delete.handling.mode") == Some("rewrite")
    };
    let drops = transforms(of).any(|name| unwraps(of, name) && !tells(name));
    drops.then_some("the transform that unwraps its records may leave out what was deleted")
}

/// Whether the connector passes truncates on.
fn tells_truncates(of: &Connector) -> bool {
    was(of, "skipped.operations").is_some_and(|skipped| !skipped.split(',').any(|op| op.trim() == "t"))
}

/// Compares the topics as they are at the target with the tables that were counted.
///
/// # Errors
/// A cluster that does not answer, and the store's.
pub async fn compare(
    store: &Store,
    (connectors, journal): (&[Connector], &Journal),
    (to, rename): (&Connection, &Rename),
) -> Result<Proof> {
    let now = time::now();
    let at = DateTime::from_timestamp_micros(journal.commit.at).unwrap_or(now);
    let schemas = std::sync::Arc::new(Schemas::archived(store, at, now).await?.renumbered(&journal.schema_ids));
    let mut told = Told::default();
    for of in connectors {
        if why_not(of).is_none() && !journal.tables.contains_key(&of.name) {
            told.proof.notes.push(format!("the tables of {} were not counted when its slot was made", of.name));
            continue;
        }
        let ends = journal.connectors.get(&of.name).and_then(|known| known.ends.as_ref());
        let tables = journal.tables.get(&of.name).map(Vec::as_slice).unwrap_or_default();
        let is_late = |archived: &str| journal.late_topics.contains(archived);
        told.compare((of, tables), (to, rename, ends), (&schemas, &is_late)).await?;
    }
    Ok(told.close())
}

/// Compares the topics of one connector, as they are now, with its tables as they were counted. A topic of which records were removed may
/// well have fewer rows.
///
/// # Errors
/// As those of [`compare`].
pub async fn compare_now(store: &Store, (of, tables): (&Connector, &[Table]), to: &Connection) -> Result<Proof> {
    let now = time::now();
    let schemas = std::sync::Arc::new(Schemas::archived(store, now, now).await?);
    let names: Vec<String> = tables.iter().map(|table| archived_topic(of, &table.schema, &table.name)).collect();
    let client = to.clone();
    let late = tokio::task::spawn_blocking(move || topic::without_beginning(&client, names)).await;
    let late = late.or_err(Kind::Internal, || "looking at topics was aborted".to_owned())??;
    let mut told = Told::default();
    told.compare((of, tables), (to, &Rename::default(), None), (&schemas, &|topic: &str| late.contains(topic))).await?;
    Ok(told.close())
}

/// Reads what a connector has sent of tables (schema and name) since a moment in ms since 1970, after it had seen the commit that ends at
/// a position; in their order.
///
/// # Errors
/// A cluster that does not answer, and the store's.
pub async fn sent_since(
    store: &Store,
    (of, tables): (&Connector, &[(&str, &str)]),
    to: &Connection,
    since: (Option<i64>, u64),
) -> Result<Vec<Sent>> {
    let now = time::now();
    let schemas = std::sync::Arc::new(Schemas::archived(store, now, now).await?);
    let mut all = Vec::new();
    for (schema, table) in tables {
        let (to, topic) = (to.clone(), archived_topic(of, schema, table));
        let (schemas, name) = (std::sync::Arc::clone(&schemas), topic.clone());
        let sent = tokio::task::spawn_blocking(move || topic::sent_since(&to, &topic, since, &schemas)).await;
        all.push(sent.or_err(Kind::Internal, || format!("reading {name} was aborted"))??);
    }
    Ok(all)
}

/// Where topics end, by topic and partition.
type Ends = BTreeMap<String, BTreeMap<i32, i64>>;

/// What comparing has come to.
#[derive(Default)]
struct Told {
    proof: Proof,
    tables: u64,
    rows: u64,
    columns: usize,
    others: BTreeMap<String, usize>,
}

impl Told {
    /// Compares the tables of a connector with their topics.
    async fn compare(
        &mut self,
        (of, tables): (&Connector, &[Table]),
        (to, rename, ends): (&Connection, &Rename, Option<&Ends>),
        (schemas, is_late): (&std::sync::Arc<Schemas>, &(dyn Fn(&str) -> bool + Sync)),
    ) -> Result<()> {
        if let Some(why) = why_not(of) {
            self.proof.notes.push(format!("the tables of {} are not compared with their topics: {why}", of.name));
            return Ok(());
        }
        self.without_topic(tables);
        for table in tables.iter().filter(|table| table.refused.as_deref() != Some(table::NO_TOPIC)) {
            let archived = archived_topic(of, &table.schema, &table.name);
            let topic = rename.target(&archived)?;
            if let Some(why) = &table.refused {
                self.not_compared(table, why);
                continue;
            }
            // What the connector has written since is not the commit's.
            let ends = ends.map(|ends| ends.get(&topic).cloned().unwrap_or_default());
            let (to, own, schemas) = (to.clone(), table.clone(), std::sync::Arc::clone(schemas));
            let of_topic = topic.clone();
            let folded = tokio::task::spawn_blocking(move || topic::fold(&to, (&of_topic, ends), &own, &schemas));
            let folded = folded.await.or_err(Kind::Internal, || format!("reading {topic} was aborted"))??;
            let may_differ = table.may_differ.as_deref().or(may_differ(of, is_late(&archived)));
            let truncates = if tells_truncates(of) { "" } else { TRUNCATES };
            self.tell((table, &topic), &folded, (has_values(of), may_differ, truncates));
        }
        Ok(())
    }

    fn without_topic(&mut self, tables: &[Table]) {
        let none = tables.iter().filter(|table| table.refused.as_deref() == Some(table::NO_TOPIC));
        let names: Vec<String> = none.map(|table| format!("{}.{}", table.schema, table.name)).collect();
        if !names.is_empty() {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            self.proof.notes.push(format!(
                "tables of the publication that have no archived topic are not compared: {}",
                named(&names)
            ));
        }
    }

    fn not_compared(&mut self, table: &Table, why: &str) {
        let Table { schema, name, .. } = table;
        self.proof.notes.push(format!("{schema}.{name} is not compared with its topic: {why}"));
    }

    fn tell(
        &mut self,
        (table, topic): (&Table, &str),
        folded: &Folded,
        (values, may_differ, truncates): (bool, Option<&str>, &str),
    ) {
        if let Some(why) = &folded.refused {
            return self.not_compared(table, why);
        }
        if let Some(why) = &table.no_columns {
            let Table { schema, name, .. } = table;
            self.proof.notes.push(format!("of {schema}.{name} rows are counted alone: {why}"));
        }
        let Table { schema, name, rows, .. } = table;
        let compared = |column: &&String| values && folded.sums.contains_key(*column);
        let columns: Vec<&String> = table.sums.keys().filter(compared).collect();
        let differing: Vec<&str> = columns
            .iter()
            .filter(|column| table.sums[**column] != folded.sums[**column])
            .map(|column| column.as_str())
            .collect();
        let told = match (*rows == folded.rows, differing.is_empty()) {
            (true, true) => {
                (self.tables, self.rows, self.columns) =
                    (self.tables + 1, self.rows + rows, self.columns + columns.len());
                let left = table.sums.len() - columns.len() + table.others;
                if left > 0 {
                    self.others.insert(format!("{schema}.{name}"), left);
                }
                return;
            }
            (true, false) => {
                format!(
                    "{schema}.{name} and the rows that {topic} comes to differ in {} (what an ALTER TABLE rewrites is in no topic)",
                    named(&differing)
                )
            }
            (false, _) => {
                let why = if folded.rows > *rows { truncates } else { "" };
                format!("{schema}.{name} has {rows} rows, and {topic} comes to {}{why}", folded.rows)
            }
        };
        match may_differ {
            Some(why) => self.proof.notes.push(format!("{told}: {why}")),
            None => self.proof.differences.push(told),
        }
    }

    fn close(mut self) -> Proof {
        self.proof.words = format!(
            "{} tables, {} rows: as many as their topics come to, and {} columns the same",
            self.tables, self.rows, self.columns
        );
        if !self.others.is_empty() {
            let others: Vec<String> = self.others.iter().map(|(table, count)| format!("{table} ({count})")).collect();
            let others: Vec<&str> = others.iter().map(String::as_str).collect();
            self.proof.notes.push(format!(
                "columns that a connector may write in another way, or that not every record has, were not compared: {}",
                named(&others)
            ));
        }
        self.proof
    }
}

fn named(names: &[&str]) -> String {
    let more = names.len().saturating_sub(MOST_NAMED);
    let shown = names.iter().take(MOST_NAMED).copied().collect::<Vec<_>>().join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

#[cfg(test)]
mod tests;

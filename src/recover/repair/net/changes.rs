//! The tables at the offset are made those at the marker, in two transactions that the connector reads: all that differs, and then the
//! marker, or the rows that hold it. Before the second one is committed, every table has the count and the sum that it has at the marker.

use std::path::Path;

use super::captured::{Captured, named, of_publication, session};
use super::end::{AtEnd, counted, files};
use super::statements::{CHANGED, LOADED, Of, SCHEMA, Which};
use crate::error::{Error, Kind, Result};
use crate::recover::fold::Sent;
use crate::recover::slots::{literal, one};
use crate::source::postgres::{Server, Sql, is_refusal};

/// How far the changes are, as the server at the offset says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing is loaded, or not all, and nothing is changed; or all is done.
    Before,
    /// All is loaded, and nothing is changed.
    Loaded,
    /// All is changed but what holds the marker, and what was loaded is gone: a crash empties tables that are not logged.
    Unloaded,
    /// All is changed but what holds the marker.
    Changed,
}

/// What was changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows that are gone.
    pub deleted: u64,
    /// Rows that are others.
    pub updated: u64,
    /// Rows that are new.
    pub inserted: u64,
}

/// The tables, and how they are changed.
pub struct Changes<'a> {
    /// The tables at the marker.
    pub tables: &'a [AtEnd],
    /// Rows that were written by this transaction or a later one may have been others meanwhile.
    pub from: u32,
    /// The text of the marker, where a row holds it.
    pub token: Option<&'a str>,
}

/// Asks how far it is.
///
/// # Errors
/// A server that does not answer.
pub async fn stage(sql: &mut Sql) -> Result<Stage> {
    let doing = "ask how far the changes are";
    let asked = format!("SELECT to_regclass({}), to_regclass({})", literal(LOADED), literal(CHANGED));
    let rows = sql.query(&asked, doing).await?;
    let is_there = |at: usize| rows.first().is_some_and(|row| row.get(at).is_some_and(Option::is_some));
    let asked = format!("SELECT 1 FROM {LOADED}");
    let is_loaded = is_there(0) && one(sql, &asked, doing).await?.is_some();
    Ok(match (is_loaded, is_there(1)) {
        (true, true) => Stage::Changed,
        (true, false) => Stage::Loaded,
        (false, true) => Stage::Unloaded,
        (false, false) => Stage::Before,
    })
}

impl Changes<'_> {
    fn each(&self) -> impl Iterator<Item = Of<'_>> {
        self.tables.iter().enumerate().map(|(at, one)| Of { table: &one.table, at })
    }

    /// Loads what was read at the marker, gives the tables the columns that they have there, and makes the rows that were sent and are at
    /// neither end, in the order of the tables, before the slot is made. Gives what is to be known, and what cannot be made.
    ///
    /// # Errors
    /// A column that has another type there, and those of the server.
    pub async fn load(
        &self,
        server: &Server,
        (publication, folder): (&str, &Path),
        sent: &[Sent],
    ) -> Result<(Vec<String>, Vec<String>)> {
        let mut sql = session(server).await?;
        let (mut notes, mut differences) = (Vec::new(), Vec::new());
        let begins = format!("CREATE SCHEMA IF NOT EXISTS {SCHEMA}; DROP TABLE IF EXISTS {LOADED}");
        sql.query(&begins, "begin loading").await?;
        let published = of_publication(&mut sql, publication).await?;
        let is_for_all = format!("SELECT puballtables FROM pg_publication WHERE pubname = {}", literal(publication));
        let is_for_all = one(&mut sql, &is_for_all, "look for the publication").await?.as_deref() == Some("t");
        for of in self.each() {
            let is_published = is_for_all || published.iter().any(|one| one.shown() == of.table.shown());
            notes.extend(shape(&mut sql, of, (publication, is_for_all, is_published)).await?);
            clear(&mut sql, of).await?;
            let (rows, keys) = files(folder, of.at);
            for statement in of.load((&rows.display().to_string(), &keys.display().to_string())) {
                sql.query(&statement, &format!("load {}", of.table.shown())).await?;
            }
            if let Some(sent) = sent.get(of.at) {
                differences.extend(make_sent(&mut sql, of, sent).await?);
            }
        }
        sql.query("ANALYZE", "end loading").await?;
        sql.query(&format!("CREATE UNLOGGED TABLE {LOADED} AS SELECT 1 AS one"), "end loading").await?;
        Ok((notes, differences))
    }

    /// Changes all but what holds the marker, in one transaction. How many rows, and what cannot be published, is kept before it is committed.
    ///
    /// # Errors
    /// Those of the server, and of what keeps it.
    pub async fn change(&self, server: &Server, keep: impl FnOnce(Counts, Vec<String>) -> Result<()>) -> Result<()> {
        let mut sql = session(server).await?;
        let (mut counts, mut differences) = (Counts::default(), Vec::new());
        sql.query("BEGIN", "change the tables").await?;
        for of in self.each() {
            let doing = format!("change {}", of.table.shown());
            match of.delete() {
                Some(delete) => counts.deleted += count(&mut sql, &delete, &doing).await?,
                None => match count(&mut sql, &of.gone(), &doing).await? {
                    0 => {}
                    gone => differences.push(format!(
                        "{gone} rows of {} are gone, by a TRUNCATE, and it has no replica identity: they stay in its topic",
                        of.table.shown()
                    )),
                },
            }
            let which = Which::Without(self.token);
            if let Some(update) = of.update(self.from, which) {
                counts.updated += count(&mut sql, &update, &doing).await?;
            }
            counts.inserted += count(&mut sql, &of.insert(which), &doing).await?;
        }
        sql.query(&format!("CREATE TABLE {CHANGED} ()"), "change the tables").await?;
        keep(counts, differences)?;
        sql.query("COMMIT", "change the tables").await.map(drop)
    }

    /// Changes the rest, or writes the marker as a message; compares all tables, and commits. What is to be kept of the transaction is kept
    /// before.
    ///
    /// # Errors
    /// [`Kind::Internal`] for a table that is not as it is at the marker: nothing of the connector's was read by then.
    pub async fn mark(
        &self,
        server: &Server,
        message: &str,
        keep: impl FnOnce(u32) -> Result<()>,
    ) -> Result<(u64, u64)> {
        let mut sql = session(server).await?;
        let doing = "write the marker";
        sql.query("BEGIN", doing).await?;
        match self.token {
            Some(token) => {
                let which = Which::With(token);
                let mut rows = 0;
                for of in self.each() {
                    if let Some(update) = of.update(self.from, which) {
                        rows += count(&mut sql, &update, doing).await?;
                    }
                    rows += count(&mut sql, &of.insert(which), doing).await?;
                }
                if rows == 0 {
                    let error = Error::new(
                        Kind::Unsupported,
                        "the marker's statement left no row with its text in a captured table",
                    );
                    return Err(
                        error.hint("let marker write '{token}' into a row that stays, of a table of the publication")
                    );
                }
            }
            None => {
                let emits = format!("SELECT pg_logical_emit_message(true, {}, '')", literal(message));
                sql.query(&emits, doing).await?;
            }
        }
        let compared = self.compare(&mut sql).await?;
        let xid = one(&mut sql, "SELECT pg_current_xact_id()", doing).await?.and_then(|xid| xid.parse::<u64>().ok());
        let xid = xid.and_then(|xid| u32::try_from(xid & u64::from(u32::MAX)).ok());
        keep(xid.ok_or_else(|| Error::new(Kind::Internal, "the server does not tell its transaction"))?)?;
        sql.query(&format!("DROP SCHEMA {SCHEMA} CASCADE"), doing).await?;
        sql.query("COMMIT", doing).await?;
        Ok(compared)
    }

    /// Compares the tables with what they are at the marker; gives how many, and how many rows they have.
    async fn compare(&self, sql: &mut Sql) -> Result<(u64, u64)> {
        let (mut tables, mut rows) = (0, 0);
        for (of, at_end) in self.each().zip(self.tables) {
            // What cannot be published has been told.
            if !of.table.has_identity() {
                continue;
            }
            let now = counted(sql, of).await?;
            if now != at_end.counted {
                let message = format!(
                    "{} comes to {} rows by its net changes, and has {} at the marker, or others",
                    of.table.shown(),
                    now.0,
                    at_end.counted.0
                );
                return Err(Error::new(Kind::Internal, message));
            }
            (tables, rows) = (tables + 1, rows + now.0.parse::<u64>().unwrap_or_default());
        }
        Ok((tables, rows))
    }
}

/// Makes the rows of a table that were sent and are at neither end; gives what cannot be made.
async fn make_sent(sql: &mut Sql, of: Of<'_>, sent: &Sent) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    let shown = of.table.shown();
    if sent.without_key > 0 {
        differences.push(format!(
            "{} changes of {shown} were sent beyond the offset, and have no key: those rows come again",
            sent.without_key
        ));
    }
    let mut left = 0;
    for row in &sent.rows {
        match of.sent(row) {
            Some(statement) => match sql.query(&statement, &format!("make a row of {shown} that was sent")).await {
                Err(error) if !is_refusal(&error) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "a row that was sent cannot be made");
                    left += 1;
                }
                Ok(_) => {}
            },
            None => left += 1,
        }
    }
    if left > 0 {
        differences.push(format!(
            "{left} rows of {shown} were sent beyond the offset, and it is not known which: one that is gone by now stays in its topic"
        ));
    }
    Ok(differences)
}

/// Gives a table the columns that it has at the marker, or makes it; gives what is to be known.
async fn shape(
    sql: &mut Sql,
    of: Of<'_>,
    (publication, is_for_all, is_published): (&str, bool, bool),
) -> Result<Vec<String>> {
    let Captured { schema, name, .. } = of.table;
    let doing = format!("give {} the columns that it has at the marker", of.table.shown());
    let Some(now) = named(sql, schema, name).await? else {
        for statement in of.made((!is_for_all).then_some(publication)) {
            sql.query(&statement, &doing).await?;
        }
        return Ok(Vec::new());
    };
    let mut notes = Vec::new();
    if !is_published {
        sql.query(&of.published(publication), &doing).await?;
        notes.push(format!(
            "{} was added to the publication while nothing was read: rows that it had before the offset are in no topic",
            of.table.shown()
        ));
    }
    if of.table.has_columns_of(&now) {
        return Ok(notes);
    }
    let refused = || {
        let message = format!("columns of {} have other types at the marker than at the offset", of.table.shown());
        Error::new(Kind::Unsupported, message).hint("let the connector begin with a snapshot of that table")
    };
    for statement in of.become_as(&now).ok_or_else(refused)? {
        sql.query(&statement, &doing).await?;
    }
    Ok(notes)
}

/// Removes what would refuse rows on the way.
async fn clear(sql: &mut Sql, of: Of<'_>) -> Result<()> {
    let doing = format!("clear the way for {}", of.table.shown());
    for statement in of.freed() {
        sql.query(&statement, &doing).await?;
    }
    // Without a key of its own, a connector may take that of a unique index.
    if of.table.key.is_empty() {
        return Ok(());
    }
    for row in sql.query(&of.obstacles(), &doing).await? {
        let statement = match row.as_slice() {
            [_, Some(table), Some(constraint)] => format!("ALTER TABLE {table} DROP CONSTRAINT {constraint} CASCADE"),
            [Some(index), ..] => format!("DROP INDEX {index} CASCADE"),
            _ => continue,
        };
        sql.query(&statement, &doing).await?;
    }
    Ok(())
}

async fn count(sql: &mut Sql, statement: &str, doing: &str) -> Result<u64> {
    Ok(one(sql, statement, doing).await?.and_then(|count| count.parse().ok()).unwrap_or_default())
}

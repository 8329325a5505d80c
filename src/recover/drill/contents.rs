//! What a restored database holds, read from its first page to its last.
//!
//! ```text
//!   every database ─► every table, with what is stored beside it (TOAST): count(*) of all pages
//!                └──► pg_amcheck, where the machine has it: tables, and B-tree indexes against them
//! ```
//!
//! An index of texts has the order of the C library that made it. Where this machine's has another version, each of them would look
//! damaged (wiki.postgresql.org/wiki/Locale_data_changes), so the indexes of such a database are left out, and that is told.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::report::{Database, Finding, Part, Restoration, Table};
use super::restored::Restored;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::escape::one_line;
use crate::recover::server::Server;
use crate::source::postgres::{Sql, is_refusal, server_error};

/// Findings of one kind that are named: a damaged disk has thousands.
const MOST_NAMED: usize = 50;

/// How long a server may take to come back after a session of it has crashed.
const COMES_BACK: Duration = Duration::from_secs(60);

/// What every session is set to, since which version: settings of roles and databases (`ALTER ROLE … SET`) win over the command line.
const SESSION: [(&str, u32); 12] = [
    // Damage is told.
    ("SET zero_damaged_pages = off", 13),
    ("SET ignore_checksum_failure = off", 13),
    ("SET statement_timeout = 0", 13),
    // Prepared transactions come with a backup, and nobody ends them here: a table that one has locked is a finding.
    ("SET lock_timeout = '60s'", 13),
    ("SET transaction_timeout = 0", 17),
    ("SET idle_in_transaction_session_timeout = 0", 13),
    ("SET default_transaction_read_only = off", 13),
    ("SET row_security = off", 13),
    ("SET search_path = pg_catalog", 13),
    // All pages of a table are read, and not those of an index in their place.
    ("SET enable_indexscan = off", 13),
    ("SET enable_indexonlyscan = off", 13),
    ("SET enable_bitmapscan = off", 13),
];

/// Tables, what is kept as one, and TOAST. Partitions are tables; what they make up, views and foreign tables have no pages. Temporary
/// ones of sessions that are gone cannot be read, and materialized views that were never filled neither.
const TABLES: &str = "SELECT format('%I.%I', n.nspname, c.relname), c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't' AND c.relispopulated \
    AND n.nspname !~ '^pg_(toast_)?temp_' ORDER BY 1";

/// Reads everything.
///
/// # Errors
/// A server that does not answer. Damage is a finding.
pub(super) async fn read(restored: &Restored, user: &str, report: &mut Restoration) -> Result<()> {
    let names = databases(&restored.server, user).await?;
    let mut checked = Vec::new();
    for name in names {
        let mut sql = match session(restored, user, &name).await {
            Ok(sql) => sql,
            Err(error) => {
                found(report, Part::Tables, &name, &error);
                continue;
            }
        };
        let (database, is_whole) = tables((restored, user), &mut sql, &name, report).await?;
        report.databases.push(database);
        if !is_whole {
            continue;
        }
        let sorts_as_there = sorts_as_there(&mut sql, restored.version).await?;
        if let Some(why) = &sorts_as_there {
            report.notes.push(format!("the indexes of the database {name} were not checked: {why}"));
        }
        checked.push((name, sorts_as_there.is_none(), has_amcheck(&mut sql).await?));
    }
    amcheck(restored, user, &checked, report).await
}

async fn databases(server: &Server, user: &str) -> Result<Vec<String>> {
    let asked = "SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname";
    let rows = server.anywhere(user).await?.query(asked, "list the databases").await?;
    Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}

/// What a session of a server of this version is set to.
fn session_of(version: u32) -> impl Iterator<Item = &'static str> {
    SESSION.iter().filter(move |(_, since)| version >= *since).map(|(set, _)| *set)
}

async fn session(restored: &Restored, user: &str, database: &str) -> Result<Sql> {
    let mut sql = restored.server.at(user, database)?.sql().await?;
    for set in session_of(restored.version) {
        sql.query(set, "set the session").await?;
    }
    Ok(sql)
}

/// Opens a session, as soon as the server is open again: a session that damage ends takes all others with it.
async fn session_again(restored: &Restored, user: &str, database: &str) -> Option<Sql> {
    let begun = tokio::time::Instant::now();
    loop {
        match session(restored, user, database).await {
            Ok(sql) => return Some(sql),
            Err(_) if begun.elapsed() > COMES_BACK => return None,
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// Counts the rows of all tables; gives whether the server could be asked to the end.
async fn tables(
    (restored, user): (&Restored, &str),
    sql: &mut Sql,
    database: &str,
    report: &mut Restoration,
) -> Result<(Database, bool)> {
    let mut read = Database { name: database.to_owned(), tables: Vec::new(), rows: 0 };
    for row in sql.query(TABLES, "list the tables").await? {
        let [Some(name), Some(kind)] = &row[..] else { continue };
        match sql.query(&format!("SELECT count(*) FROM {name}"), &format!("read {name}")).await {
            Ok(rows) => {
                let rows = rows.first().and_then(|row| row.first()?.as_ref()?.parse().ok()).unwrap_or_default();
                // Those of the system are read like the others, and tell an operator nothing.
                let is_of_system = ["pg_catalog.", "information_schema."].iter().any(|schema| name.starts_with(schema));
                if kind != "t" && !is_of_system {
                    read.rows += rows;
                    read.tables.push(Table { name: name.clone(), rows });
                }
            }
            Err(error) if is_refusal(&error) => found(report, Part::Tables, &format!("{database}: {name}"), &error),
            Err(error) => {
                found(report, Part::Tables, &format!("{database}: {name}"), &error);
                match session_again(restored, user, database).await {
                    Some(again) => *sql = again,
                    None => return Ok((read, false)),
                }
            }
        }
    }
    Ok((read, true))
}

fn found(report: &mut Restoration, part: Part, about: &str, error: &Error) {
    let detail = server_error(error).map_or_else(|| error.to_string(), ToString::to_string);
    add(report, Finding { part, about: about.to_owned(), detail });
}

/// Adds a finding, or counts it where there are many of its kind.
fn add(report: &mut Restoration, finding: Finding) {
    let part = finding.part;
    match report.findings.iter().filter(|one| one.part == part).count() {
        0..MOST_NAMED => report.findings.push(finding),
        MOST_NAMED => {
            let detail = "there is more that is not named".to_owned();
            report.findings.push(Finding { part, about: "…".to_owned(), detail });
        }
        _ => {}
    }
}

/// Returns why indexes of texts may have another order here than there; none where they have the same.
async fn sorts_as_there(sql: &mut Sql, version: u32) -> Result<Option<String>> {
    // A database says since 15 which version its own collation had.
    let of_database = "SELECT 'the database', datcollversion, pg_database_collation_actual_version(oid) FROM pg_database \
        WHERE datname = current_database() AND datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid) UNION ALL ";
    let of_others = "SELECT collname::text, collversion, pg_collation_actual_version(oid) FROM pg_collation WHERE collversion IS NOT NULL \
        AND collversion IS DISTINCT FROM pg_collation_actual_version(oid) AND oid IN (SELECT unnest(indcollation) FROM pg_index)";
    let asked = format!("{}{of_others}", if version >= 15 { of_database } else { "" });
    let rows = sql.query(&asked, "compare the versions of collations").await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let told = |at: usize| row.get(at).cloned().flatten().unwrap_or_else(|| "none".to_owned());
    Ok(Some(format!("the collation of {} had version {} there, and has {} here", told(0), told(1), told(2))))
}

async fn has_amcheck(sql: &mut Sql) -> Result<bool> {
    let asked = "SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'";
    Ok(!sql.query(asked, "look for amcheck").await?.is_empty())
}

/// Runs `pg_amcheck` over each database.
async fn amcheck(
    restored: &Restored,
    user: &str,
    databases: &[(String, bool, bool)],
    report: &mut Restoration,
) -> Result<()> {
    let program = restored.bin_dir.join("pg_amcheck");
    if !program.exists() {
        report.amcheck =
            format!("left out: {} is not there (it comes with PostgreSQL 14 and newer)", program.display());
        return Ok(());
    }
    if databases.iter().any(|(_, _, has_it)| !has_it) {
        report.amcheck =
            "left out: this PostgreSQL has no extension amcheck (a package of contributed modules brings it)"
                .to_owned();
        return Ok(());
    }
    let mut all_passed = true;
    for (name, with_indexes, _) in databases {
        let command = command(&program, restored, user, name, *with_indexes);
        let ended = tokio::task::spawn_blocking(move || { command }.output()).await;
        let ended = ended.or_err(Kind::Internal, || "pg_amcheck was not waited for".to_owned())?;
        let ended = ended.map_err(|source| Error::io(source, format!("cannot run {}", program.display())))?;
        let said = [ended.stdout, ended.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        match ended.status.code() {
            Some(0) => {}
            // Corruption was found, or something kept it from being looked for.
            Some(1 | 2) => {
                all_passed = false;
                paragraphs(&said.concat()).into_iter().for_each(|(about, detail)| {
                    add(report, Finding { part: Part::Amcheck, about: format!("{name}: {about}"), detail });
                });
            }
            _ => {
                let message =
                    format!("{} ended with {}: {}", program.display(), ended.status, one_line(said[1].trim()));
                return Err(Error::new(Kind::Unsupported, message));
            }
        }
    }
    report.amcheck = if all_passed { "passed" } else { "found" }.to_owned();
    Ok(())
}

fn command(program: &Path, restored: &Restored, user: &str, database: &str, with_indexes: bool) -> Command {
    let mut command = Command::new(program);
    let (socket, port) = restored.server.place();
    command.arg("--host").arg(socket).arg("--port").arg(port.to_string()).args(["--username", user, "--no-password"]);
    command.args(["--install-missing", "--jobs=2", "--database", &pattern_of(database)]);
    match with_indexes {
        true => command.arg("--heapallindexed"),
        false => command.args(["--no-dependent-indexes", "--exclude-index=*"]),
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
        command.env_remove(name);
    }
    command.env("PGOPTIONS", options_of(restored.version)).env("PGPASSFILE", "/dev/null").env("LC_ALL", "C");
    command
}

/// The same for a session of `pg_amcheck`, which looks through indexes and sets its own search path.
fn options_of(version: u32) -> String {
    let mut options =
        "-c zero_damaged_pages=off -c ignore_checksum_failure=off -c statement_timeout=0 -c lock_timeout=60s \
        -c default_transaction_read_only=off"
            .to_owned();
    if version >= 17 {
        options.push_str(" -c transaction_timeout=0");
    }
    options
}

/// The pattern that only this name fits to: outside of quotes it would be folded, and `*`, `?` and `.` mean something.
fn pattern_of(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// What `pg_amcheck` says: of an object on one line, and what is wrong indented below it.
fn paragraphs(said: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in said.lines().filter(|line| !line.trim().is_empty()) {
        match found.last_mut() {
            Some((_, detail)) if line.starts_with(' ') => {
                let separator = if detail.is_empty() { "" } else { "; " };
                *detail = format!("{detail}{separator}{}", one_line(line.trim()));
            }
            _ => found.push((one_line(line.trim().trim_end_matches(':')).into_owned(), String::new())),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pg_amcheck_says_is_told_by_object() {
        let said = "heap table \"postgres.public.t\", block 0, offset 3:\n    line pointer redirection to item at offset 21840\n\
            btree index \"postgres.public.i\":\n    ERROR:  heap tuple (0,1) from table \"t\" lacks matching index tuple\n    HINT:  Retrying.\n";
        let found = paragraphs(said);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].0, "heap table \"postgres.public.t\", block 0, offset 3");
        assert!(found[1].1.starts_with("ERROR:") && found[1].1.ends_with("HINT:  Retrying."), "{found:?}");
        assert!(paragraphs("\n").is_empty());
    }

    #[test]
    fn thousands_of_findings_are_not_all_named() {
        let mut report = Restoration::default();
        let finding = |part| Finding { part, about: "t".to_owned(), detail: "x".to_owned() };
        (0..1000).for_each(|_| add(&mut report, finding(Part::Tables)));
        add(&mut report, finding(Part::Amcheck));
        assert_eq!(report.findings.len(), MOST_NAMED + 2);
    }

    #[test]
    fn settings_of_databases_and_roles_hide_no_damage() {
        for version in [13, 17] {
            let (session, options) = (session_of(version).collect::<Vec<_>>(), options_of(version));
            for (set, option) in [
                ("SET zero_damaged_pages = off", "-c zero_damaged_pages=off"),
                ("SET ignore_checksum_failure = off", "-c ignore_checksum_failure=off"),
                ("SET lock_timeout = '60s'", "-c lock_timeout=60s"),
            ] {
                assert!(session.contains(&set) && options.contains(option), "{version}: {set}");
            }
            let is_known = version >= 17;
            assert_eq!(session.contains(&"SET transaction_timeout = 0"), is_known);
            assert_eq!(options.contains("-c transaction_timeout=0"), is_known);
        }
    }

    #[test]
    fn a_name_of_a_database_is_no_pattern() {
        assert_eq!(pattern_of("Shop.*"), "\"Shop.*\"");
        assert_eq!(pattern_of("a\"b"), "\"a\"\"b\"");
    }
}

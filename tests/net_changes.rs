//! Net changes between two states of a database, of random histories: the old state and what is changed of it are the new one, and nothing
//! more is changed than the history has touched.
//!
//! ```text
//!   database `new` = `old` + a random history ─► read ─► files ─► loaded and changed in `old` ─► the same rows?
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tidelog::recover::fold::Sent;
use tidelog::recover::repair::net::changes::{Changes, Counts, Stage, stage};
use tidelog::recover::repair::net::end::read;
use tidelog::source::postgres::Server;

use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::program;
use crate::rig::records::Random;

/// A key of two columns, one of which a collation might call equal to another; a table whose unique values change places, with a column
/// that is worked out and one that is always the server's; a bag; rows that are nothing but their key.
const TABLES: &str = "
    CREATE TABLE pair (a int, b text, n int, note text, PRIMARY KEY (b, a));
    CREATE TABLE swap (id bigint PRIMARY KEY, n int UNIQUE DEFERRABLE, twice int GENERATED ALWAYS AS (n * 2) STORED,
                       own bigint GENERATED ALWAYS AS IDENTITY, doc jsonb, at timestamptz, raw bytea, many text[]);
    CREATE TABLE bag (n int, note text);
    ALTER TABLE bag REPLICA IDENTITY FULL;
    CREATE TABLE \"Only \"\"keys\" (\"the key\" uuid PRIMARY KEY);
    CREATE PUBLICATION p FOR ALL TABLES;";

/// One change of a random kind to a random row, in SQL; keys of `pair` that it touches are noted.
fn change(random: &mut Random, touched: &mut BTreeSet<String>) -> String {
    let small = |random: &mut Random, bound: u64| i64::try_from(random.below(bound)).expect("small");
    let (a, b) = (small(random, 6), ["x", "X", "", "a\tb\\N", "é"][usize::try_from(random.below(5)).expect("small")]);
    let n = small(random, 3);
    let key = format!("{a}|{b}");
    let quoted = format!("'{b}'");
    match random.below(9) {
        0..=2 => {
            touched.insert(key);
            format!(
                "INSERT INTO pair VALUES ({a}, {quoted}, {n}, NULL) ON CONFLICT (a, b) DO UPDATE SET n = excluded.n;"
            )
        }
        3 => {
            touched.insert(key);
            format!("DELETE FROM pair WHERE a = {a} AND b = {quoted};")
        }
        4 => format!(
            "INSERT INTO swap (id, n, doc, at, raw, many) VALUES ({a}, (SELECT coalesce(max(n), 0) + 1 FROM swap), '{{\"k\": [{n}, null]}}', 'epoch', '\\x0{n}ff', ARRAY['{n}', NULL, '{{']) \
             ON CONFLICT (id) DO UPDATE SET doc = excluded.doc, at = swap.at + interval '1 day 1 ms', many = NULL;"
        ),
        5 => format!("DELETE FROM swap WHERE id = {a};"),
        // All of them take each other's place.
        6 => "UPDATE swap SET n = s.n FROM (SELECT id, lead(n, 1, first) OVER (ORDER BY id) AS n \
              FROM swap, (SELECT n AS first FROM swap ORDER BY id LIMIT 1) f) s WHERE s.id = swap.id;"
            .to_owned(),
        7 => format!(
            "INSERT INTO bag SELECT {n}, {quoted} FROM generate_series(0, {n}); DELETE FROM bag WHERE ctid = (SELECT ctid FROM bag WHERE n = {a} ORDER BY ctid LIMIT 1);"
        ),
        _ => format!(
            "DELETE FROM \"Only \"\"keys\" WHERE \"the key\"::text LIKE '%{a}'; \
             INSERT INTO \"Only \"\"keys\" VALUES ('00000000-0000-0000-0000-00000000000{n}') ON CONFLICT DO NOTHING;"
        ),
    }
}

/// All rows of all tables, as text.
fn rows(postgres: &Postgres, database: &str) -> Vec<String> {
    let tables = ["pair", "swap", "bag", "\"Only \"\"keys\""];
    let rows = |table: &&str| {
        let asked = format!("SELECT t::text COLLATE \"C\" AS row FROM {table} t ORDER BY row");
        format!("{table}:\n{}", in_database(postgres, database, &asked))
    };
    tables.iter().map(rows).collect()
}

#[test]
fn the_old_state_and_its_net_changes_are_the_new_one() {
    let settings = [("wal_level", "logical"), ("fsync", "off")];
    let options = PostgresOptions { version: Version::V13, config: &settings, ..Default::default() };
    let postgres = Postgres::start(options);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let socket = postgres.data_dir().parent().expect("its directory");
    let server = |database: &str| Server::at_socket((socket, postgres.port()), "postgres", database).expect("a server");
    // The server writes into it, and is another user.
    let folder = tempfile::tempdir().expect("a directory");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("everybody's");
    let mut seen = Counts::default();
    for seed in 0..12 {
        let (mut random, mut touched) = (Random::new(seed), BTreeSet::new());
        for database in ["old", "new"] {
            postgres.psql(&format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)"));
        }
        postgres.psql("CREATE DATABASE old");
        in_database(&postgres, "old", TABLES);
        let begin: String = (0..10 + random.below(60)).map(|_| change(&mut random, &mut touched)).collect();
        in_database(&postgres, "old", &begin);
        postgres.psql("CREATE DATABASE new TEMPLATE old");
        touched.clear();
        let from: u32 = postgres.psql("SELECT pg_snapshot_xmin(pg_current_snapshot())").parse().expect("a number");
        for _ in 0..random.below(12) {
            let history: String = (0..1 + random.below(8)).map(|_| change(&mut random, &mut touched)).collect();
            in_database(&postgres, "new", &history);
        }
        let (wanted, before) = (rows(&postgres, "new"), writers(&postgres));
        let counts = runtime.block_on(brought(&postgres, &server, (from, folder.path())));
        assert_eq!(rows(&postgres, "old"), wanted, "seed {seed}");
        let after = writers(&postgres);
        for (key, writer) in before.iter().filter(|(key, _)| !touched.contains(*key)) {
            assert_eq!(after.get(key), Some(writer), "seed {seed}: {key} was changed, and nothing has touched it");
        }
        seen.deleted += counts.deleted;
        seen.updated += counts.updated;
        seen.inserted += counts.inserted;
    }
    assert!(seen.deleted > 8 && seen.updated > 20 && seen.inserted > 20, "the histories do too little: {seen:?}");
}

fn in_database(postgres: &Postgres, database: &str, sql: &str) -> String {
    let mut command = postgres.client("psql");
    command.env("PGDATABASE", database).args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql]);
    program::run(command).expect(0).stdout
}

/// Which transaction wrote each row of `pair` in `old`.
fn writers(postgres: &Postgres) -> BTreeMap<String, String> {
    let rows = in_database(postgres, "old", "SELECT xmin, a || '|' || b FROM pair");
    rows.lines()
        .filter_map(|line| line.split_once('|'))
        .map(|(writer, key)| (key.to_owned(), writer.to_owned()))
        .collect()
}

/// Brings the net changes from `new` into `old`, by the way of crashes.
async fn brought(postgres: &Postgres, server: &impl Fn(&str) -> Server, (from, folder): (u32, &Path)) -> Counts {
    let tables = read(&server("new"), "p", (Some(from), folder)).await.expect("read");
    assert_eq!(tables.len(), 4);
    let changes = |tables| Changes { tables, from, token: None };
    let old = server("old");
    let mut sql = old.sql().await.expect("a session");
    let mut is_at = async |wanted| assert_eq!(stage(&mut sql).await.expect("a stage"), wanted);
    // What a crash does to tables that are not logged.
    let crash = || {
        let empty = "DO $$ DECLARE t regclass; BEGIN FOR t IN SELECT oid FROM pg_class WHERE relpersistence = 'u' AND relkind = 'r' \
            LOOP EXECUTE 'TRUNCATE ' || t; END LOOP; END $$";
        in_database(postgres, "old", empty);
    };
    is_at(Stage::Before).await;
    for _ in 0..2 {
        crash();
        is_at(Stage::Before).await;
        let (notes, unmade) = changes(&tables).load(&old, ("p", folder), &sent()).await.expect("loaded");
        assert_eq!((notes.len(), unmade.len()), (0, 2), "{notes:?} {unmade:?}");
        is_at(Stage::Loaded).await;
    }
    let mut counts = None;
    let changing = changes(&tables);
    let kept = changing.change(&old, |now, differences| {
        assert!(differences.is_empty(), "{differences:?}");
        counts = Some(now);
        Ok(())
    });
    kept.await.expect("changed");
    is_at(Stage::Changed).await;
    crash();
    is_at(Stage::Unloaded).await;
    changes(&tables).load(&old, ("p", folder), &[]).await.expect("loaded");
    is_at(Stage::Changed).await;
    // What is not as it is there is not committed.
    let mut wrong = tables.clone();
    wrong[0].counted.1.push('1');
    let error = changes(&wrong).mark(&old, "m", |_| Ok(())).await.expect_err("another sum");
    assert!(error.to_string().contains("net changes"), "{error}");
    is_at(Stage::Changed).await;
    let (compared, _) = changes(&tables).mark(&old, "m", |_| Ok(())).await.expect("the same");
    assert_eq!(compared, 4);
    is_at(Stage::Before).await;
    let counts: Counts = counts.expect("they were kept");
    assert!(counts.deleted > 0, "a row that was sent and is gone is deleted: {counts:?}");
    counts
}

/// What a connector has sent beyond its offset, of the tables in their order: of one with a key a row that is at neither end, one that is
/// at both or at the new one, and one of which the key is not known; changes without a key.
fn sent() -> Vec<Sent> {
    let row = |columns: &[(&str, &str)]| {
        columns.iter().map(|(name, text)| ((*name).to_owned(), Some((*text).to_owned()))).collect::<BTreeMap<_, _>>()
    };
    let pair =
        vec![row(&[("a", "99"), ("b", "it's gone"), ("n", "1")]), row(&[("a", "1"), ("b", "x")]), row(&[("a", "98")])];
    let own = vec![row(&[("id", "77"), ("own", "5"), ("doc", "{}"), ("at", "12")])];
    let of = |rows, without_key| Sent { rows, without_key };
    vec![of(vec![], 0), of(vec![], 3), of(pair, 0), of(own, 0)]
}

//! `tidelog ls --commits`: what it lists is what the server committed, by other readers of the same log.
//!
//! ```text
//!   server ─► WAL ─► tidelog run ─► archive ─► ls --commits ──────────────┐
//!     ├── pg_xact_commit_timestamp: which transactions, and when ─────────┤ the same?
//!     └── pg_walinspect (15 and newer), pgoutput (13, 14): from where to where
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;

use serde_json::Value;
use tidelog::stream::Lsn;

use crate::postgres_restore::{PATIENCE, Place, wait_recovered};
use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::wait_until;

const SETTINGS: [(&str, &str); 6] = [
    ("track_commit_timestamp", "on"),
    ("max_prepared_transactions", "5"),
    ("wal_level", "logical"),
    ("autovacuum", "off"),
    ("max_wal_size", "64MB"),
    ("wal_keep_size", "1GB"),
];

/// A server whose WAL files have 1 MiB, so that many records lie across the ends of files.
fn with_small_files(version: Version) -> Place {
    let initdb = ["--wal-segsize=1"];
    let options = PostgresOptions { version, config: &SETTINGS, initdb: &initdb, ..PostgresOptions::default() };
    Place::of(Postgres::start(options))
}

/// A commit as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Commit {
    start: Lsn,
    end: Lsn,
    xid: u32,
    time: String,
    subxids: Vec<u32>,
}

fn lsn(value: &Value) -> Lsn {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{value} is no LSN"))
}

fn number(value: &Value) -> u32 {
    value.as_u64().and_then(|number| number.try_into().ok()).unwrap_or_else(|| panic!("{value} is no number"))
}

fn commit(row: &Value) -> Commit {
    let subxids = row["subxids"].as_array().map(|all| all.iter().map(number).collect());
    let time = chrono::DateTime::parse_from_rfc3339(row["time"].as_str().expect("a time")).expect("a time");
    Commit {
        start: lsn(&row["lsn"]),
        end: lsn(&row["end"]),
        xid: number(&row["xid"]),
        time: micros(time.timestamp_micros()),
        subxids: subxids.unwrap_or_default(),
    }
}

/// Microseconds since 1970, as the tests compare them.
fn micros(us: i64) -> String {
    let time = chrono::DateTime::from_timestamp_micros(us).expect("a time");
    time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

/// What `ls --commits` prints with these arguments.
fn listing(place: &Place, args: &[&str], status: i32) -> Value {
    place.tidelog(&[&["ls", "--commits", "--json"], args].concat()).expect(status).json()
}

fn commits_of(listing: &Value) -> Vec<Commit> {
    let rows = listing["commits"].as_array().expect("commits");
    assert_eq!(listing["count"], rows.len());
    rows.iter().filter(|row| row["kind"] == "commit").map(commit).collect()
}

fn commits(place: &Place, args: &[&str]) -> Vec<Commit> {
    commits_of(&listing(place, args, 0))
}

/// Holds what was listed from transaction `first` on against the server's own memory of when each transaction was committed.
fn assert_as_the_server_says(postgres: &Postgres, listed: &[Commit], first: u32) {
    let sql = "SELECT xid, (extract(epoch FROM at) * 1000000)::bigint FROM (SELECT xid, pg_xact_commit_timestamp(xid::text::xid) AS at \
        FROM generate_series($first, txid_snapshot_xmax(txid_current_snapshot()) - 1) xid) x WHERE at IS NOT NULL";
    let said = postgres.psql(&sql.replace("$first", &first.to_string()));
    let row = |line: &str| {
        let (xid, at) = line.split_once('|').expect("two columns");
        (xid.parse::<u32>().expect("a number"), micros(at.parse().expect("microseconds")))
    };
    let said: BTreeMap<u32, String> = said.lines().map(row).collect();
    let xids = |commit: &Commit| [vec![commit.xid], commit.subxids.clone()].concat();
    let all = listed.iter().flat_map(|commit| xids(commit).into_iter().map(|xid| (xid, commit.time.clone())));
    let all: BTreeMap<u32, String> = all.filter(|(xid, _)| *xid >= first).collect();
    assert!(said.len() > 3, "{said:?}");
    assert_eq!(all, said);
}

/// The commits between two positions by another reader of the server's log; which of their times it does not tell.
fn by_walinspect(postgres: &Postgres, lsns: (Lsn, Lsn)) -> Vec<(Lsn, Lsn, u32, Vec<u32>)> {
    postgres.psql("CREATE EXTENSION IF NOT EXISTS pg_walinspect");
    let said = postgres.psql(&format!(
        "SELECT start_lsn, end_lsn, xid, record_type, description FROM pg_get_wal_records_info('{}', '{}') \
         WHERE resource_manager = 'Transaction' AND record_type IN ('COMMIT', 'COMMIT_PREPARED')",
        lsns.0, lsns.1
    ));
    let row = |line: &str| {
        let columns: Vec<&str> = line.splitn(5, '|').collect();
        let prepared = columns[4].split_once(": ").filter(|_| columns[3] == "COMMIT_PREPARED");
        let prepared = prepared.and_then(|(xid, _)| xid.trim().parse().ok());
        let subxids = columns[4].split_once("subxacts: ").map_or("", |(_, rest)| rest);
        let subxids =
            subxids.split(';').next().unwrap_or_default().split(' ').filter_map(|xid| xid.trim().parse().ok());
        let xid = prepared.unwrap_or_else(|| columns[2].parse().expect("a number"));
        (columns[0].parse().expect("an LSN"), columns[1].parse().expect("an LSN"), xid, subxids.collect())
    };
    said.lines().map(row).collect()
}

/// The commits by the server's logical decoding: of those that changed rows where each begins and ends, and when it was.
fn by_pgoutput(postgres: &Postgres) -> Vec<(Lsn, Lsn, u32, String)> {
    const EPOCH_US: i64 = 946_684_800_000_000;
    let said = postgres.psql(
        "SELECT xid, encode(data, 'hex') FROM pg_logical_slot_peek_binary_changes('decoded', NULL, NULL, \
         'proto_version', '1', 'publication_names', 'everything') WHERE get_byte(data, 0) = 67",
    );
    let row = |line: &str| {
        let (xid, data) = line.split_once('|').expect("two columns");
        // 'C', flags, and three numbers of 64 bits.
        let number = |at: usize| u64::from_str_radix(&data[at * 2..at * 2 + 16], 16).expect("hexadecimal");
        let time = micros(number(18).cast_signed() + EPOCH_US);
        (Lsn(number(2)), Lsn(number(10)), xid.parse().expect("a number"), time)
    };
    said.lines().map(row).collect()
}

/// The position at which the server is.
fn here(postgres: &Postgres) -> Lsn {
    postgres.psql("SELECT pg_current_wal_insert_lsn()").parse().expect("an LSN")
}

/// A number that no transaction had before.
fn next_xid(postgres: &Postgres) -> u32 {
    postgres.psql("SELECT txid_snapshot_xmax(txid_current_snapshot())").parse().expect("a number")
}

/// All kinds of transactions; gives the number of the one that only notifies.
fn do_everything(postgres: &Postgres) -> u32 {
    std::thread::scope(|scope| {
        // One that is open all the time, over several files.
        scope.spawn(|| {
            postgres.psql(
                "BEGIN; CREATE TABLE long AS SELECT n, repeat('x', 300) FROM generate_series(1, 4000) n; \
                 SELECT pg_sleep(1.5); INSERT INTO long VALUES (0, ''); COMMIT",
            )
        });
        for n in 0..3 {
            postgres.psql(&format!(
                "DO $$ BEGIN PERFORM set_config('synchronous_commit', 'off', false); FOR i IN 1..300 LOOP INSERT INTO markers VALUES ({n} * 1000 + i); COMMIT; END LOOP; END $$"
            ));
            postgres.psql(&format!("BEGIN; INSERT INTO markers VALUES ({n} + 100000); ROLLBACK"));
        }
        postgres.psql(
            "BEGIN; INSERT INTO markers VALUES (10000); SAVEPOINT a; INSERT INTO markers VALUES (10001); SAVEPOINT b; \
             INSERT INTO markers VALUES (10002); ROLLBACK TO b; RELEASE a; SAVEPOINT c; INSERT INTO markers VALUES (10003); COMMIT",
        );
        postgres.psql("BEGIN; INSERT INTO markers VALUES (10010); SAVEPOINT a; DELETE FROM markers WHERE id = 1; PREPARE TRANSACTION 'one'");
        postgres.psql("BEGIN; INSERT INTO markers VALUES (10011); PREPARE TRANSACTION 'two'");
        postgres.psql("INSERT INTO markers VALUES (10012)");
        postgres.psql("COMMIT PREPARED 'one'");
        postgres.psql("ROLLBACK PREPARED 'two'");
        postgres.psql("CREATE TABLE made (n int); DROP TABLE made");
        postgres.psql("SELECT count(*) FROM markers");
        let notifies = next_xid(postgres);
        postgres.psql("NOTIFY somebody, 'hello'");
        notifies
    })
}

/// A commit whose record lies across the end of a file: what is left of it is filled up, but for half of the record.
fn commit_over_the_end_of_a_file(postgres: &Postgres, n: u32) {
    postgres.psql(&format!(
        "DO $$ DECLARE room int; BEGIN \
         FOR i IN 1..300 LOOP BEGIN INSERT INTO markers VALUES ({n} * 1000 + i); EXCEPTION WHEN unique_violation THEN NULL; END; END LOOP; \
         room := 1048576 - ((pg_current_wal_insert_lsn() - '0/0') % 1048576)::int; \
         room := room - (room / 8192 + 1) * 24 - 700; \
         IF room > 0 THEN PERFORM pg_logical_emit_message(false, 'x', repeat('x', room)); END IF; END $$"
    ));
}

#[test]
fn every_commit_is_listed_as_the_server_saw_it() {
    for version in Version::ALL {
        let place = with_small_files(version);
        let postgres = &place.postgres;
        postgres.psql("CREATE PUBLICATION everything FOR ALL TABLES");
        postgres.psql("SELECT pg_create_logical_replication_slot('decoded', 'pgoutput')");
        let (from, first) = (here(postgres), next_xid(postgres));
        let notifies = do_everything(postgres);
        let (mut across, mut rounds) = (false, 0);
        while !across {
            rounds += 1;
            assert!(rounds < 20, "{version:?}: no commit lies across the end of a file");
            commit_over_the_end_of_a_file(postgres, 1_000 + rounds);
            place.wait_archived();
            let file = |lsn: Lsn| lsn.0 >> 20;
            across = commits(&place, &["--from", &from.to_string()]).iter().any(|one| file(one.start) < file(one.end));
        }
        // The server dies in the middle of a transaction, and goes on.
        let open = postgres
            .client("psql")
            .args([
                "-q",
                "-c",
                "BEGIN; INSERT INTO markers SELECT 2000000 + n FROM generate_series(1, 20000) n; SELECT pg_sleep(600)",
            ])
            .stderr(Stdio::null())
            .spawn();
        let mut open = open.expect("psql can be started");
        wait_until("it to have written", PATIENCE, || {
            postgres.psql(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE 'BEGIN; INSERT%'",
            ) == "1"
        });
        postgres.kill();
        open.wait().expect("it has lost its server");
        postgres.restart();
        postgres.psql("INSERT INTO markers VALUES (20000)");
        let until = place.wait_archived();

        let listed = commits(&place, &["--from", &from.to_string(), "--to", &until.to_string()]);
        assert_as_the_server_says(postgres, &listed, first);
        assert!(listed.iter().any(|commit| commit.xid == notifies), "{version:?}: to notify takes a transaction");
        assert!(listed.is_sorted_by_key(|commit| commit.start) && listed.iter().all(|one| from <= one.start));
        let pages = listed.iter().filter(|commit| commit.start.0 / 8192 != commit.end.0 / 8192).count();
        assert!(pages > 1, "{version:?}: commits lie across the ends of pages");
        if !matches!(version, Version::V13 | Version::V14) {
            let same = by_walinspect(postgres, (from, until));
            let own: Vec<_> = listed.iter().map(|one| (one.start, one.end, one.xid, one.subxids.clone())).collect();
            assert_eq!(own, same, "{version:?}");
        }
        let decoded = by_pgoutput(postgres);
        assert!(decoded.len() > 900, "{version:?}: {}", decoded.len());
        let own: BTreeSet<_> = listed.iter().map(|one| (one.start, one.end, one.xid, one.time.clone())).collect();
        for commit in &decoded {
            assert!(own.contains(commit), "{version:?}: {commit:?} is not listed");
        }
        ranges_hold_what_lies_in_them(&place, &listed, until);
    }
}

/// Ranges of times and positions hold just the commits that lie in them, and `--at` names the last one.
fn ranges_hold_what_lies_in_them(place: &Place, listed: &[Commit], until: Lsn) {
    for index in [0, 1, listed.len() / 2, listed.len() - 2] {
        let (one, next) = (&listed[index], &listed[index + 1]);
        let positions = commits(place, &["--from", &one.start.to_string(), "--to", &next.end.to_string()]);
        assert_eq!(positions, listed[index..index + 2]);
        let before = Lsn(one.end.0 - 1).to_string();
        assert!(!commits(place, &["--to", &before]).contains(one), "it ends one byte later");
        assert!(commits(place, &["--to", &one.end.to_string()]).contains(one));
        let same_time: Vec<Commit> = listed.iter().filter(|other| other.time == one.time).cloned().collect();
        let us = chrono::DateTime::parse_from_rfc3339(&one.time).expect("a time").timestamp_micros();
        assert_eq!(commits(place, &["--from", &one.time, "--to", &micros(us + 1)]), same_time);
        assert_eq!(commits(place, &["--at", &one.end.to_string()]), std::slice::from_ref(one));
        let later = listed.iter().position(|other| other.time > one.time).unwrap_or(listed.len());
        assert_eq!(commits(place, &["--at", &one.time]), listed[later - 1..later]);
    }
    let mixed = commits(place, &["--from", &listed[5].time, "--to", &listed[9].end.to_string()]);
    assert_eq!(mixed, listed.iter().take(10).filter(|one| one.time >= listed[5].time).cloned().collect::<Vec<_>>());
    // Nothing was committed there, and nothing lies ahead of the archive.
    let empty = place.tidelog(&["ls", "--commits", "--from", "2020-01-01T00:00:00Z", "--to", "2020-01-01T00:00:01Z"]);
    assert_eq!(empty.expect(0).stdout.lines().count(), 1);
    let ahead = Lsn(until.0 + (64 << 20)).to_string();
    let output = place.tidelog(&["ls", "--commits", "--json", "--to", &ahead]).expect(3);
    assert!(output.stderr.contains("lies behind the end of the archived WAL"), "{}", output.stderr);
    let last = listed.last().expect("one");
    assert!(commits_of(&output.json()).contains(last), "what there is is listed");
    let refused = place.tidelog(&["ls", "--commits", "--at", &ahead]).expect(1).stderr;
    assert!(refused.contains("lies behind the end of the archived WAL"), "{refused}");
    place.tidelog(&["ls", "--commits", "--from", "0/2", "--to", "0/1"]).expect(2);
    place.tidelog(&["ls", "--commits", "--from", "yesterday"]).expect(2);
    place.tidelog(&["ls", "--from", "-1h"]).expect(2);
}

/// What decides about slots, by another reader: of running transactions the three numbers, of cleanups of catalogs the horizon.
fn slot_records_by_walinspect(postgres: &Postgres, lsns: (Lsn, Lsn), version: Version) -> BTreeMap<Lsn, Vec<u32>> {
    postgres.psql("CREATE EXTENSION IF NOT EXISTS pg_walinspect");
    // It does not print the flag of 16: there the files of catalogs tell, which have the numbers of the first start.
    let of_catalogs = match version {
        Version::V16 => {
            "description LIKE '%snapshotConflictHorizon%' AND (regexp_match(block_ref, 'rel [0-9]+/[0-9]+/([0-9]+)'))[1]::int < 16384"
        }
        _ => "description LIKE '%isCatalogRel: T%' OR record_type = 'VISIBLE'",
    };
    let said = postgres.psql(&format!(
        "SELECT start_lsn, record_type, description FROM pg_get_wal_records_info('{}', '{}') \
         WHERE record_type = 'RUNNING_XACTS' OR ({of_catalogs})",
        lsns.0, lsns.1
    ));
    let mut found = BTreeMap::new();
    for line in said.lines() {
        let columns: Vec<&str> = line.splitn(3, '|').collect();
        let after = |name: &str| {
            let rest = columns[2].split_once(&format!("{name} ")).map(|(_, rest)| rest)?;
            rest.split(|c: char| !c.is_ascii_alphanumeric()).next().map(str::to_owned)
        };
        let number = |name: &str| after(name).and_then(|text| text.parse().ok());
        let at: Lsn = columns[0].parse().expect("an LSN");
        if columns[1] == "RUNNING_XACTS" {
            let names = ["nextXid", "latestCompletedXid", "oldestRunningXid"];
            found.insert(at, names.map(|name| number(name).expect("a number")).to_vec());
            continue;
        }
        if version == Version::Debian {
            continue;
        }
        // It has the flag of catalogs, 0x04, among others.
        let flags = after("flags:").and_then(|text| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok());
        let is_catalog = columns[1] != "VISIBLE" || flags.expect("flags") & 4 != 0;
        // One of an index's page has an epoch before it, and some have none.
        let horizon = columns[2].split_once("snapshotConflictHorizon").and_then(|(_, rest)| rest.split(',').next());
        let horizon = horizon.and_then(|text| text.rsplit([':', ' ']).next()?.parse().ok()).unwrap_or(0);
        if is_catalog && horizon != 0 {
            found.insert(at, vec![horizon]);
        }
    }
    found
}

#[test]
fn what_decides_about_slots_is_listed_as_another_reader_sees_it() {
    for version in [Version::Debian, Version::V16, Version::V17, Version::V18] {
        let place = with_small_files(version);
        let postgres = &place.postgres;
        let from = here(postgres);
        for n in 0..30 {
            postgres.psql(&format!("CREATE TABLE t{n} (a int PRIMARY KEY, b text); COMMENT ON TABLE t{n} IS 'x'; INSERT INTO t{n} VALUES (1, 'x')"));
            postgres.psql(&format!("ANALYZE t{n}"));
        }
        (0..30).for_each(|n| drop(postgres.psql(&format!("DROP TABLE t{n}; COMMENT ON ROLE postgres IS 'x{n}'"))));
        for catalog in ["pg_class", "pg_attribute", "pg_statistic", "pg_depend", "pg_index", "pg_shdescription"] {
            postgres.psql(&format!("VACUUM (FREEZE) {catalog}"));
        }
        postgres.psql("DELETE FROM markers; CHECKPOINT");
        postgres.psql("VACUUM (FREEZE) markers");
        let until = place.wait_archived();
        let range = ["--slot-records", "--from", &from.to_string(), "--to", &until.to_string()];
        let listed = listing(&place, &range, 0);
        let rows = listed["commits"].as_array().expect("rows");
        assert!(rows.is_sorted_by_key(|row| lsn(&row["lsn"])));
        let numbers = |row: &Value| match row["kind"].as_str() {
            Some("running_xacts") => {
                let names = ["next_xid", "latest_completed_xid", "oldest_running_xid"];
                Some((lsn(&row["lsn"]), names.map(|name| number(&row[name])).to_vec()))
            }
            Some("catalog_cleanup") => Some((lsn(&row["lsn"]), vec![number(&row["horizon"])])),
            _ => None,
        };
        let own: BTreeMap<Lsn, Vec<u32>> = rows.iter().filter_map(numbers).collect();
        assert_eq!(own, slot_records_by_walinspect(postgres, (from, until), version), "{version:?}");
        let cleanups: Vec<&Value> = rows.iter().filter(|row| row["kind"] == "catalog_cleanup").collect();
        assert_eq!(cleanups.is_empty(), version == Version::Debian, "{version:?}: 15 does not say of what a record is");
        let of = |relation: &str, database: &str| {
            let file = postgres.psql(&format!("SELECT pg_relation_filenode('{relation}'), {database}"));
            cleanups.iter().any(|row| format!("{}|{}", row["relation"], row["database"]) == file)
        };
        let own_database = "(SELECT oid FROM pg_database WHERE datname = current_database())";
        if version != Version::Debian {
            assert!(of("pg_class", own_database) && of("pg_attribute", own_database), "{version:?}: {cleanups:?}");
            assert!(of("pg_shdescription", "0"), "{version:?}: a catalog that all databases share");
            assert!(!of("markers", own_database), "{version:?}: a table is no catalog");
        }
        // By time: what stands between the first commit of the range and the first behind it.
        let commits = commits_of(&listed);
        let (first, behind) = (&commits[3], &commits[20]);
        let args = ["--slot-records", "--from", &first.time, "--to", &behind.time];
        let part = listing(&place, &args, 0);
        let expected = rows.iter().filter(|row| (first.start..behind.start).contains(&lsn(&row["lsn"])));
        assert_eq!(part["commits"].as_array().expect("rows").iter().collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }
}

#[test]
fn the_way_to_each_timeline_has_its_own_commits_and_a_recovery_ends_with_the_one_that_is_named() {
    for version in [Version::V13, Version::V18] {
        let place = Place::with(version, &[("track_commit_timestamp", "on")]);
        let first = next_xid(&place.postgres);
        place.mark(1);
        place.back_up();
        place.mark(2);
        let (_, target) = place.mark(3);
        // These are left behind.
        (4..8).for_each(|id| drop(place.mark(id)));
        place.wait_archived();
        let old = commits(&place, &[]);
        assert_as_the_server_says(&place.postgres, &old, first);
        place.postgres.stop();
        let named = commits(&place, &["--at", &target]);
        let data = place.restore("data", &["--to-time", &target, "--action", "pause"]);
        let options =
            PostgresOptions { version, config: &[("track_commit_timestamp", "on")], ..PostgresOptions::default() };
        let restored = Postgres::adopt(&data, options);
        restored.wait_ready();
        wait_until("the target to be reached", PATIENCE, || restored.psql("SELECT pg_is_wal_replay_paused()") == "t");
        let at: Lsn = restored.psql("SELECT pg_last_wal_replay_lsn()").parse().expect("an LSN");
        assert_eq!(named.iter().map(|one| one.end).collect::<Vec<_>>(), [at], "{version:?}");
        restored.psql("SELECT pg_wal_replay_resume()");
        wait_recovered(&restored);
        place.archive(&restored, "");
        wait_until("the restored server to be archived", PATIENCE, || {
            restored.psql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "1"
        });
        (14..20).for_each(|id| drop(restored.psql(&format!("INSERT INTO markers VALUES ({id}, 'x')"))));
        place.wait_archived_of(&restored, 2);
        let new = commits(&place, &[]);
        assert_as_the_server_says(&restored, &new, first);
        assert!(
            new.windows(2).all(|two| two[0].end <= two[1].start),
            "{version:?}: each once, in the order of the log"
        );
        let common = new.iter().zip(&old).take_while(|(one, other)| one == other).count();
        assert_eq!(old[common - 1], named[0], "{version:?}: they part where the recovery ended");
        assert!(old.len() >= common + 4 && new.len() >= common + 6);
        assert_eq!(commits(&place, &["--timeline", "1"]), old);
        let unknown = place.tidelog(&["ls", "--commits", "--timeline", "9"]).expect(1).stderr;
        assert!(unknown.contains("no WAL of timeline 9"), "{unknown}");
    }
}

#[test]
fn what_is_lost_is_told_where_it_matters_alone() {
    let settings =
        [("track_commit_timestamp", "on"), ("wal_keep_size", "0"), ("min_wal_size", "32MB"), ("max_wal_size", "32MB")];
    let place = Place::with(Version::Debian, &settings);
    place.mark(1);
    let (_, before) = place.mark(2);
    place.mark(3);
    let archived = place.wait_archived();
    place.stop_archiving();
    place.postgres.psql("SELECT pg_drop_replication_slot('tidelog')");
    for id in 10..16 {
        place.mark(id);
        place.postgres.psql("SELECT pg_switch_wal()");
        place.postgres.psql("CHECKPOINT");
    }
    place.archive_again();
    let (_, after) = place.mark(20);
    let last = place.mark(21).0;
    place.wait_archived();
    let whole = place.tidelog(&["ls", "--commits", "--json"]).expect(3);
    assert!(
        whole.stderr.contains("is lost") && whole.stderr.contains("what was committed there is not known"),
        "{}",
        whole.stderr
    );
    let whole = whole.json();
    let gap = (lsn(&whole["gaps"][0]["start"]), lsn(&whole["gaps"][0]["end"]));
    assert!(archived <= gap.0 && gap.0 < gap.1 && gap.1 < last, "{gap:?}");
    let listed = commits_of(&whole);
    assert!(listed.len() >= 4 && listed.iter().all(|one| one.end <= gap.0 || gap.1 <= one.start));
    assert!(listed.iter().any(|one| one.end <= gap.0) && listed.iter().any(|one| gap.1 <= one.start), "on both sides");
    // On one side of it nothing is missing.
    let early: Vec<Commit> = listed.iter().filter(|one| one.end <= gap.0).cloned().collect();
    let earlier: Vec<Commit> = early.iter().filter(|one| one.time < before).cloned().collect();
    assert_eq!(earlier.len() + 1, early.len());
    let late: Vec<Commit> = listed.iter().filter(|one| gap.1 <= one.start && one.time >= after).cloned().collect();
    assert_eq!(commits(&place, &["--to", &gap.0.to_string()]), early);
    assert_eq!(commits(&place, &["--to", &before]), earlier);
    assert_eq!(commits(&place, &["--from", &after]), late);
    assert_eq!(commits(&place, &["--at", &before]), earlier[earlier.len() - 1..]);
    assert_eq!(commits(&place, &["--at", &last.to_string()]), late[late.len() - 1..]);
    let within = place.tidelog(&["ls", "--commits", "--at", &gap.1.to_string()]).expect(3).stderr;
    assert!(within.contains("is lost"), "{within}");
}

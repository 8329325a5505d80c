//! Targets of a recovery: what comes back is what was asked for, to the microsecond and to the record, or nothing does.
//!
//! ```text
//!   server's own times: pg_xact_commit_timestamp ─┐
//!                                                  ├─► restore-postgres ─► a real server: which rows?
//!   backup.json by a clock that is wrong ──────────┘
//! ```

use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};
use futures::executor::block_on;
use tidelog::stream::sha256;

use crate::postgres_restore::{PATIENCE, Place, markers, wait_recovered};
use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::process::tail;
use crate::rig::program;

const SETTINGS: [(&str, &str); 2] = [("track_commit_timestamp", "on"), ("max_prepared_transactions", "5")];

fn with_times(version: Version) -> Place {
    Place::with(version, &SETTINGS)
}

/// A restored server, once it has recovered. Postgres refuses to with fewer prepared transactions than the server had.
fn adopted(version: Version, data: &Path) -> Postgres {
    let postgres = Postgres::adopt(data, PostgresOptions { version, config: &SETTINGS, ..PostgresOptions::default() });
    wait_recovered(&postgres);
    postgres
}

/// What a restored server has. Its directory goes.
fn came_back(version: Version, data: &Path, sql: &str) -> String {
    let postgres = adopted(version, data);
    let said = postgres.psql(sql);
    drop(postgres);
    std::fs::remove_dir_all(data).expect("it can go");
    said
}

fn micros(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

/// When the transaction was committed that wrote the row, to the microsecond.
fn committed(place: &Place, id: u32) -> DateTime<Utc> {
    let said = place.postgres.psql(&format!(
        "SELECT to_char(pg_xact_commit_timestamp(xmin), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM markers WHERE id = {id}"
    ));
    DateTime::parse_from_rfc3339(&said).expect("a time").with_timezone(&Utc)
}

fn refused(place: &Place, target: &[&str]) -> String {
    let into = place.home.path().join("refused").display().to_string();
    let output = place.tidelog(&[&["restore-postgres", "--into", &into], target].concat());
    assert_ne!(output.status, Some(0), "{target:?}: {}", output.stdout);
    assert!(!Path::new(&into).exists(), "nothing was begun");
    output.stderr
}

#[test]
fn a_time_is_meant_to_the_microsecond() {
    for version in Version::ALL {
        let place = with_times(version);
        place.mark(1);
        place.back_up();
        place.postgres.psql("INSERT INTO markers VALUES (2, 'x')");
        // One transaction drops the table and leaves a row elsewhere that tells its time.
        place.postgres.psql("CREATE TABLE dropped AS SELECT 1 AS x");
        place.postgres.psql("BEGIN; DROP TABLE dropped; INSERT INTO markers VALUES (3, 'x'); COMMIT");
        place.postgres.psql("INSERT INTO markers VALUES (4, 'x')");
        place.wait_archived();
        let dropped = committed(&place, 3);
        let just_before = micros(dropped - TimeDelta::microseconds(1));
        let tell = "SELECT count(*), to_regclass('dropped') IS NOT NULL FROM markers";
        let at = |target: &[&str]| came_back(version, &place.restore("data", target), tell);
        assert_eq!(at(&["--to-time", &just_before]), "2|t", "{version:?}: the table is there one µs before");
        assert_eq!(
            at(&["--to-time", &micros(dropped)]),
            "3|f",
            "{version:?}: what committed at the time belongs to it"
        );
        assert_eq!(at(&["--to-time", &micros(dropped), "--exclusive"]), "2|t", "{version:?}: unless it is exclusive");
    }
}

#[test]
fn nothing_of_a_later_transaction_comes_along_however_early_it_takes_effect() {
    for version in [Version::V13, Version::Debian, Version::V18] {
        let place = with_times(version);
        place.mark(1);
        place.back_up();
        place.postgres.psql("CREATE DATABASE other");
        let (_, before) = place.mark(2);
        // Its files go, and then it commits; since 15.4 it is marked as dropped before that, too.
        place.postgres.psql("DROP DATABASE other");
        let dropped = place.postgres.psql("SELECT pg_current_xact_id()::text::int - 1");
        place.postgres.psql("BEGIN; INSERT INTO markers VALUES (3, 'x'); PREPARE TRANSACTION 'p'");
        let (_, prepared) = time_of(&place);
        place.mark(4);
        place.wait_archived();
        let other = "SELECT count(*), (SELECT datconnlimit || '|' || (pg_database_size(oid) > 1000000) FROM pg_database \
            WHERE datname = 'other'), (SELECT count(*) FROM pg_prepared_xacts) FROM markers";
        let at = |target: &[&str]| came_back(version, &place.restore("data", target), other);
        assert_eq!(at(&["--to-time", &before]), "2|-1|true|0", "{version:?}: it is whole");
        assert_eq!(at(&["--to-xid", &dropped, "--exclusive"]), "2|-1|true|0", "{version:?}");
        assert_eq!(at(&["--to-xid", &dropped]), "2||0", "{version:?}: it is gone");
        assert_eq!(at(&["--to-time", &prepared]), "2||1", "{version:?}: a prepared transaction waits to be ended");
    }
}

/// A position, and a time after all that was done before and before all that is done later; writes nothing.
fn time_of(place: &Place) -> (String, String) {
    let said = place.postgres.psql(
        "SELECT pg_current_wal_insert_lsn(), to_char(clock_timestamp() + '1 ms', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), pg_sleep(0.01)",
    );
    let mut columns = said.split('|');
    let mut next = || columns.next().expect("a column").to_owned();
    (next(), next())
}

/// The `backup.json` of a backup, as another clock would have written it and had it entered in the chain.
fn by_another_clock(place: &Place, name: &str, off: TimeDelta) {
    let folder = place.home.path().join("archive/backups/postgres");
    let system = std::fs::read_dir(folder).expect("backups").next().expect("a system").expect("a folder").path();
    let file: PathBuf = system.join(name).join("backup.json");
    let text = std::fs::read_to_string(&file).expect("a backup");
    let mut backup: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    for field in ["started", "finished"] {
        let time = DateTime::parse_from_rfc3339(backup[field].as_str().expect("a time")).expect("a time");
        backup[field] = serde_json::json!(time + off);
    }
    let text = serde_json::to_vec_pretty(&backup).expect("JSON");
    std::fs::write(&file, &text).expect("it can be written");
    let (mut chain, now) = (place.chain().expect("a chain"), tidelog::time::now());
    let backup = serde_json::from_value(backup).expect("a backup");
    block_on(async {
        chain.expire_backups(&[name.to_owned()], "clock", now).await.expect("it is expired");
        chain.enter(&backup, &sha256(&text), [0, 0], ("clock", now)).await.expect("it is entered");
    });
}

#[test]
fn whatever_the_clock_of_the_machine_that_took_a_backup_said() {
    let place = with_times(Version::Debian);
    place.mark(1);
    let first = place.back_up();
    place.mark(2);
    let target = micros(committed(&place, 2));
    (3..=6).for_each(|id| drop(place.mark(id)));
    place.wait_archived();
    place.stop_archiving();
    let second = place.tidelog(&["backup", "--wait", "0s", "--json"]).expect(3).json();
    place.archive(&place.postgres, "");
    place.mark(7);
    place.wait_archived();
    let name = |backup: &serde_json::Value| backup["name"].as_str().expect("a name").to_owned();
    let restored = |target: &str| {
        let data = place.restore("data", &["--to-time", target]);
        came_back(Version::Debian, &data, "SELECT count(*), coalesce(max(id), 0) FROM markers")
    };
    // The second one seems to lie before the target, and holds what came after it.
    by_another_clock(&place, &name(&second), TimeDelta::minutes(-10));
    assert_eq!(restored(&target), "2|2");
    // The first one seems to come too late, and leads there.
    by_another_clock(&place, &name(&first), TimeDelta::minutes(10));
    assert_eq!(restored(&target), "2|2");
    assert_eq!(restored(&micros(committed(&place, 6))), "6|6");
    // Nothing was committed between the last row and the backup: its moment is any since that row.
    let said = refused(&place, &["--to-time", &micros(committed(&place, 2)), "--backup", &name(&second)]);
    assert!(said.contains("before the end of the base backup"), "{said}");
    let data = place.restore("data", &["--to-time", &micros(committed(&place, 6)), "--backup", &name(&second)]);
    assert_eq!(came_back(Version::Debian, &data, "SELECT count(*) FROM markers"), "6");
}

#[test]
fn a_restore_point_and_a_transaction_are_targets() {
    for version in Version::ALL {
        let place = with_times(version);
        place.mark(1);
        place.back_up();
        place.postgres.psql("SELECT pg_create_restore_point('release')");
        place.mark(2);
        let xid = place.postgres.psql("INSERT INTO markers VALUES (3, 'x'); SELECT xmin FROM markers WHERE id = 3");
        place.mark(4);
        place.postgres.psql("SELECT pg_create_restore_point('release')");
        // A prepared transaction is ended by another one's record, and files and subtransactions stand before its number.
        place.postgres.psql("CREATE TABLE large AS SELECT generate_series(1, 10000) AS x");
        let prepared = place.postgres.psql(
            "BEGIN; INSERT INTO markers VALUES (5, 'x'); SAVEPOINT s; DROP TABLE large; RELEASE s; \
             CREATE TABLE made AS SELECT 1 AS x; SELECT xmin FROM markers WHERE id = 5; PREPARE TRANSACTION 'p'",
        );
        place.mark(6);
        place.postgres.psql("COMMIT PREPARED 'p'");
        place.mark(7);
        place.postgres.psql("SELECT pg_create_restore_point('end')");
        place.wait_archived();
        let ids = "SELECT string_agg(id::text, ',' ORDER BY id) FROM markers";
        let at = |target: &[&str]| came_back(version, &place.restore("data", target), ids);
        assert_eq!(at(&["--to-name", "release"]), "1,2,3,4", "{version:?}: the last one of the name");
        assert_eq!(at(&["--to-xid", &xid]), "1,2,3", "{version:?}");
        assert_eq!(at(&["--to-xid", &xid, "--exclusive"]), "1,2", "{version:?}");
        assert_eq!(at(&["--to-xid", &prepared]), "1,2,3,4,5,6", "{version:?}: where it was committed");
        assert_eq!(at(&["--to-xid", &prepared, "--exclusive"]), "1,2,3,4,6", "{version:?}");
        assert_eq!(at(&["--to-name", "end"]), "1,2,3,4,5,6,7", "{version:?}");
        for target in [["--to-name", "none"], ["--to-xid", "4000000000"]] {
            let said = refused(&place, &target);
            assert!(said.contains("is not in the WAL that can be recovered") && said.contains("--to-lsn"), "{said}");
        }
    }
}

#[test]
fn an_exclusive_position_leaves_out_the_record_that_ends_there() {
    let place = Place::new(Version::Debian);
    place.mark(1);
    place.back_up();
    place.mark(2);
    let (end, _) = place.mark(3);
    place.mark(4);
    place.wait_archived();
    let at =
        |target: &[&str]| came_back(Version::Debian, &place.restore("data", target), "SELECT max(id) FROM markers");
    assert_eq!(at(&["--to-lsn", &end.to_string()]), "3");
    assert_eq!(at(&["--to-lsn", &end.to_string(), "--exclusive"]), "2");
    for wrong in [&["--exclusive"][..], &["--to", "latest", "--exclusive"], &["--to-xid", "1", "--to-name", "a"]] {
        let into = place.home.path().join("wrong").display().to_string();
        place.tidelog(&[&["restore-postgres", "--into", &into], wrong].concat()).expect(2);
    }
}

#[test]
fn what_was_committed_at_once_comes_back_together_or_not_at_all() {
    let place = with_times(Version::Debian);
    place.mark(1);
    place.back_up();
    // Several clients, so that some commits share a millisecond, and some lie just beside each other.
    let script = place.home.write("many.sql", "INSERT INTO markers VALUES (nextval('ids'), 'x');\n");
    place.postgres.psql("CREATE SEQUENCE ids START 10");
    place.postgres.pgbench(&["-n", "-c", "8", "-j", "2", "-t", "40", "-f", &script.display().to_string()]);
    place.mark(9_000);
    place.wait_archived();
    let times = place.postgres.psql(
        "SELECT to_char(pg_xact_commit_timestamp(xmin), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM markers WHERE id >= 10 ORDER BY 1",
    );
    let times: Vec<&str> = times.lines().collect();
    for at in [40, 120, 200] {
        let data = place.restore("data", &["--to-time", times[at]]);
        let later = format!("SELECT count(*) FROM markers WHERE pg_xact_commit_timestamp(xmin) > '{}'", times[at]);
        let postgres = adopted(Version::Debian, &data);
        assert_eq!(postgres.psql(&later), "0", "{}", tail(&postgres.log(), 5));
        let earlier = times.iter().filter(|time| **time <= times[at]).count();
        assert_eq!(postgres.psql("SELECT count(*) FROM markers WHERE id >= 10"), earlier.to_string());
        let (said, log) = (markers(&postgres), postgres.log());
        assert!(log.contains("recovery stopping after WAL location"), "{said}: {}", tail(&log, 5));
        drop(postgres);
        std::fs::remove_dir_all(&data).expect("it can go");
    }
}

/// A copy of a directory.
fn copied(from: &Path, to: &Path) {
    let mut copy = std::process::Command::new("cp");
    copy.arg("-a").arg(from).arg(to);
    program::run(copy).expect(0);
}

#[test]
fn an_older_copy_of_the_archive_is_not_taken_for_its_end() {
    let place = Place::new(Version::Debian);
    place.mark(1);
    place.back_up();
    place.mark(2);
    place.wait_archived();
    let (archive, old, new) =
        (place.home.path().join("archive"), place.home.path().join("older"), place.home.path().join("newer"));
    copied(&archive, &old);
    place.mark(3);
    place.wait_archived();
    place.stop_archiving();
    place.postgres.kill();
    let data = place.restore("data", &[]);
    // A replica of the bucket that lags, a volume that was put back: all files are sound, and the last ones are not there yet.
    std::fs::rename(&archive, &new).expect("it goes away");
    std::fs::rename(&old, &archive).expect("the older one comes");
    let postgres = place.adopt(&data, Version::Debian);
    let ended = postgres.wait_ended(PATIENCE);
    let log = postgres.log();
    assert!(ended.is_some_and(|status| !status.success()), "it has to stop: {}", tail(&log, 20));
    assert!(log.contains("is an older copy"), "{}", tail(&log, 20));
    drop(postgres);
    std::fs::rename(&archive, &old).expect("it goes away");
    std::fs::rename(&new, &archive).expect("the right one comes back");
    assert_eq!(came_back(Version::Debian, &data, "SELECT max(id) FROM markers"), "3");
}

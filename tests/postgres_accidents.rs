//! Accidents of the field that concern more than one part: `pg_resetwal`, conflicts on a standby, and what other tools were reported for
//! their retention.

use std::process::Command;

use crate::postgres_path::{KEPT, backups, plans_hold, recoverable, wait_older};
use crate::postgres_restore::{PATIENCE, Place, markers, wait_recovered};
use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::process::{Process, tail};
use crate::rig::program;
use crate::rig::wait_until;

/// What a restore to a target has.
fn restored(place: &Place, version: Version, target: &[&str]) -> String {
    let data = place.restore("restored", target);
    let postgres = place.adopt(&data, version);
    wait_recovered(&postgres);
    let rows = markers(&postgres);
    drop(postgres);
    std::fs::remove_dir_all(data).expect("it can go");
    rows
}

/// The server's log begins again further on, on the same timeline of the same system, and what was between was never written.
#[test]
fn over_a_log_that_was_reset_nothing_is_promised_and_a_backup_is_taken() {
    for (version, far) in [(Version::Debian, false), (Version::V18, true)] {
        let place = Place::new(version);
        place.mark(1);
        let first = place.back_up()["name"].as_str().expect("a name").to_owned();
        let (before, _) = place.mark(2);
        place.wait_archived();
        place.stop_archiving();
        place.postgres.stop();
        // It does not run as root.
        let mut reset = Command::new("unshare");
        reset.args(["--user", "--map-user=65534", "--map-group=65534"]).arg(version.program("pg_resetwal")).arg("-f");
        if far {
            reset.args(["-l", "000000010000000300000042"]);
        }
        reset.arg("-D").arg(place.postgres.data_dir());
        program::run(reset).expect(0);
        place.postgres.restart();
        place.mark(3);
        place.archive(&place.postgres, "[postgres.base_backup]\nevery = \"24h\"\n");
        wait_until("another base backup", PATIENCE, || backups(&place).len() == 2);
        wait_until("it to be used", PATIENCE, || backups(&place)[1]["usable"] == true);
        place.mark(4);
        place.mark(5);
        place.wait_archived();
        wait_until("two windows: up to there, and from the new backup on", PATIENCE, || recoverable(&place) == 2);
        let listing = place.tidelog(&["ls", "--json"]).expect(0).json();
        assert_eq!(listing["streams"][0]["gaps"].as_array().map(Vec::len), Some(1), "{listing}");
        assert!(plans_hold(&place, "reset") > 2);
        place.stop_archiving();
        let over = ["restore-postgres", "--into", "over", "--backup", &first];
        let said = place.tidelog(&over).expect(3).stderr;
        assert!(said.contains("--to-lsn"), "{version:?}: {said}");
        assert_eq!(restored(&place, version, &["--to-lsn", &before.to_string()]), "2|2", "{version:?}");
        assert_eq!(restored(&place, version, &[]), "5|5", "{version:?}");
        assert_eq!(place.tidelog(&["verify", "--deep"]).status, Some(0), "{version:?}");
    }
}

/// A walsender that sends a base backup has no snapshot that replay could be in the way of; sessions that read have.
#[test]
fn a_backup_from_a_standby_is_whole_while_recovery_conflicts_with_its_readers() {
    let place = Place::new(Version::Debian);
    place
        .postgres
        .psql("CREATE TABLE changed AS SELECT n, repeat(md5(n::text), 20) AS text FROM generate_series(1, 40000) AS n");
    place.postgres.psql("CREATE DATABASE dropped");
    let config = [("max_standby_streaming_delay", "0"), ("hot_standby_feedback", "off")];
    let standby = place.postgres.standby(PostgresOptions { config: &config, ..PostgresOptions::default() });
    let text = std::fs::read_to_string(place.home.path().join("tidelog.toml")).expect("the configuration");
    let more = format!("[postgres.base_backup]\nurl = \"{}\"\nmax_rate = \"6MiB\"\n", standby.url("postgres"));
    place.home.write("tidelog.toml", &(text + &more));
    place.mark(1);
    let mut reader = standby.client("psql");
    reader.args([
        "-X",
        "-c",
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM changed; SELECT pg_sleep(300)",
    ]);
    let mut reader = Process::start(reader, &place.home.path().join("reader"));
    wait_until("somebody to read", PATIENCE, || {
        standby.psql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == "1"
    });

    let mut backup = place.home.start(&["-c", "tidelog.toml", "backup", "--json"]);
    let sends = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender' AND query LIKE 'BASE_BACKUP%'";
    wait_until("the standby to send", PATIENCE, || {
        backup.assert_running();
        standby.psql(sends) == "1"
    });
    place.postgres.psql("DROP DATABASE dropped");
    let mut id = 1;
    wait_until("the backup to end beside what replay brings", PATIENCE, || {
        id += 1;
        place.mark(id);
        place.postgres.psql("UPDATE changed SET text = 'x' WHERE n % 7 = 0");
        place.postgres.psql("VACUUM FULL changed");
        standby.psql(sends) == "0"
    });
    assert_eq!(backup.wait(PATIENCE), 0);
    assert!(id > 2, "it was over before anything was replayed");
    assert!(reader.wait(PATIENCE).is_some_and(|status| !status.success()));
    assert!(reader.output().contains("conflict with recovery"), "{}", reader.output());
    place.wait_archived();
    let rows = "SELECT count(*), md5(string_agg(n || text, '' ORDER BY n)) FROM changed";
    let data = place.restore("data", &[]);
    let again = place.adopt(&data, Version::Debian);
    wait_recovered(&again);
    assert_eq!(again.psql(rows), place.postgres.psql(rows), "{}", tail(&again.log(), 20));
    assert_eq!(markers(&again), markers(&place.postgres));
    assert_eq!(again.psql("SELECT count(*) FROM pg_database WHERE datname = 'dropped'"), "0");
    let mut amcheck = again.client("pg_amcheck");
    amcheck.args(["--install-missing", "--heapallindexed", "-d", "postgres"]);
    program::run(amcheck).expect(0);
}

/// EnterpriseDB/barman#274 and #1054, wal-g/wal-g#230 and #1203: a window keeps the backup before it and the chain that it is of, a later
/// full one lets both go as one, the log and the history of every timeline stay that a recovery passes, and nothing to expire is no error.
#[test]
fn what_other_tools_were_reported_for_does_not_happen_to_retention() {
    let version = Version::V18;
    let settings = [("summarize_wal", "on"), ("wal_keep_size", "512MB"), ("autovacuum", "off")];
    let place = Place::with(version, &settings[..2]);
    let config = place.home.path().join("tidelog.toml");
    let expire = || {
        let text = std::fs::read_to_string(&config).expect("the configuration");
        place.home.write("tidelog.toml", &(text.clone() + KEPT));
        let said = place.tidelog(&["expire", "--json"]).expect(0).json();
        place.home.write("tidelog.toml", &text);
        said["backups"].as_u64().expect("a number")
    };
    place.mark(1);
    place.wait_archived();
    assert_eq!(expire(), 0, "there is no base backup yet");
    place.back_up();
    place.mark(2);
    place.tidelog(&["backup", "--incremental"]).expect(0);
    place.mark(3);
    place.wait_archived();
    wait_older(&place.postgres);
    place.mark(4);
    place.wait_archived();
    assert_eq!((expire(), backups(&place).len()), (0, 2), "the window begins behind both, and needs them");

    // Two promotions, with a chain of backups behind each.
    let options = || PostgresOptions { config: &settings, ..PostgresOptions::default() };
    let second = promoted(&place, &place.postgres, options(), 2);
    let third = promoted(&place, &second, options(), 3);
    assert_eq!(backups(&place).len(), 6);
    wait_older(&third);
    third.psql("INSERT INTO markers VALUES (1000, 'x')");
    place.wait_archived_of(&third, 3);
    assert_eq!((expire(), backups(&place).len()), (4, 2), "the chains before the last one go, each as one");
    assert_eq!(expire(), 0);
    let rows = markers(&third);
    place.stop_archiving();
    let programs = version.program("pg_combinebackup");
    let programs = programs.parent().expect("a folder").display().to_string();
    assert_eq!(restored(&place, version, &["--bin-dir", &programs]), rows);
    let history = |timeline: u32| place.tidelog(&["wal-fetch", &format!("{timeline:08X}.history"), "history"]);
    (2..=3).for_each(|timeline| drop(history(timeline).expect(0)));
    assert_eq!(place.tidelog(&["verify", "--deep"]).status, Some(0));
}

/// A standby of a server that takes its place and is archived, with a full and an incremental base backup.
fn promoted(place: &Place, before: &Postgres, options: PostgresOptions<'_>, timeline: i32) -> Postgres {
    let standby = before.standby(options);
    wait_until("the standby to have it all", PATIENCE, || markers(&standby) == markers(before));
    place.stop_archiving();
    before.kill();
    standby.promote();
    place.archive(&standby, "");
    let mark = |id: i32| {
        standby.psql(&format!("INSERT INTO markers VALUES ({timeline}0{id}, 'x')"));
        place.wait_archived_of(&standby, timeline);
    };
    mark(0);
    place.back_up();
    mark(1);
    place.tidelog(&["backup", "--incremental"]).expect(0);
    mark(2);
    standby
}

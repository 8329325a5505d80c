//! The path from a base backup to a target, over timelines and gaps: what `ls` calls recoverable is restored, before and after
//! any `expire`.
//!
//! ```text
//!   timeline 1  ├─ A ── 1 ── 2 ──┬── B ── 3 ─┤       B lies behind the switch and leads nowhere: A has to stay
//!   timeline 2                   └──── 4 ── 5 ─►
//! ```

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::postgres_restore::{PATIENCE, Place, markers, wait_recovered};
use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::program;
use crate::rig::wait_until;

pub(crate) const KEPT: &str = "[retention]\npostgres = \"1s\"\n";

/// The moments from which `ls` says that one can recover, to which it says so, and one in between.
fn claimed(place: &Place) -> Vec<String> {
    let listing = place.tidelog(&["ls", "--json"]).expect(0).json();
    let time = |value: &Value| {
        let text = value.as_str().expect("a time");
        DateTime::parse_from_rfc3339(text).expect("a time").with_timezone(&Utc)
    };
    let mut moments = Vec::new();
    for window in listing["recoverable"].as_array().expect("windows") {
        let (from, to) = (time(&window["from"]), time(&window["to"]));
        moments.extend([from, from + (to - from) / 2, to]);
    }
    moments.iter().map(|moment| moment.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)).collect()
}

/// A plan for every moment that `ls` claims; gives how many.
pub(crate) fn plans_hold(place: &Place, of: &str) -> usize {
    let moments = claimed(place);
    for (number, moment) in moments.iter().enumerate() {
        let data = place.restore(&format!("{of}-{number}"), &["--to-time", moment]);
        std::fs::remove_dir_all(data).expect("it can go");
    }
    moments.len()
}

/// Waits until what was committed so far is older than the window of retention.
pub(crate) fn wait_older(postgres: &Postgres) {
    let now = postgres.psql("SELECT clock_timestamp() + '1.5 s'");
    wait_until("a second to pass", PATIENCE, || postgres.psql(&format!("SELECT clock_timestamp() > '{now}'")) == "t");
}

/// A server that was recovered to a moment before the second backup, and archived since.
pub(crate) fn recovered_and_archived(version: Version, place: &Place) -> Postgres {
    place.mark(1);
    place.back_up();
    let (target, _) = place.mark(2);
    place.back_up();
    place.mark(3);
    place.wait_archived();
    place.stop_archiving();
    place.postgres.kill();
    let data = place.restore("again", &["--to-lsn", &target.to_string()]);
    let again = place.adopt(&data, version);
    wait_recovered(&again);
    assert_eq!(markers(&again), "2|2");
    place.archive(&again, KEPT);
    for id in [4, 5] {
        again.psql(&format!("INSERT INTO markers VALUES ({id}, 'x')"));
        place.wait_archived_of(&again, 2);
    }
    again
}

#[test]
fn what_ls_claims_is_restored_after_a_recovery_to_a_moment_before_a_backup_and_an_expire() {
    for version in [Version::V13, Version::Debian, Version::V18] {
        let place = Place::new(version);
        let again = recovered_and_archived(version, &place);
        assert!(plans_hold(&place, "before") > 0);
        wait_older(&again);
        again.psql("INSERT INTO markers VALUES (6, 'x')");
        place.wait_archived_of(&again, 2);
        let said = place.tidelog(&["expire", "--json"]).expect(0).json();
        assert_eq!(said["backups"], 0, "the backup behind the switch is not needed, and its timeline is: {said}");
        assert!(plans_hold(&place, "after") > 0, "{version:?}");
        let data = place.restore("latest", &[]);
        let latest = place.adopt(&data, version);
        wait_recovered(&latest);
        assert_eq!(markers(&latest), "5|6", "1, 2, 4, 5 and 6");
        if version == Version::Debian {
            what_was_left_is_restored_too(&place);
            a_standby_out_of_the_archive_follows(&place, &again);
        }
    }
}

/// Another recovery to what the first one left behind (pgbackrest/pgbackrest#2327, pgbackrest/pgbackrest#2091).
fn what_was_left_is_restored_too(place: &Place) {
    let data = place.restore("left", &["--timeline", "1"]);
    let left = place.adopt(&data, Version::Debian);
    wait_recovered(&left);
    assert_eq!(markers(&left), "3|3");
}

/// A standby of the server that was recovered, made by a restore and not by a copy of it: it goes over to its timeline
/// (autobase-tech/autobase#588, patroni/patroni#2416).
fn a_standby_out_of_the_archive_follows(place: &Place, primary: &Postgres) {
    let data = place.restore("standby", &[]);
    std::fs::remove_file(data.join("tidelog.restored.conf")).expect("removed");
    std::fs::rename(data.join("recovery.signal"), data.join("standby.signal")).expect("renamed");
    let line = format!("primary_conninfo = '{}'\n", primary.url("postgres"));
    let mut file = std::fs::OpenOptions::new().append(true).open(data.join("postgresql.auto.conf")).expect("a file");
    std::io::Write::write_all(&mut file, line.as_bytes()).expect("written");
    let standby = place.adopt(&data, Version::Debian);
    standby.wait_ready();
    primary.psql("INSERT INTO markers VALUES (7, 'x')");
    wait_until("the standby to follow", PATIENCE, || markers(&standby) == "6|7");
    assert_eq!(standby.psql("SELECT pg_is_in_recovery(), count(*) FROM pg_stat_wal_receiver"), "t|1");
}

#[test]
fn a_backup_of_the_new_timeline_lets_the_old_one_go() {
    let place = Place::new(Version::Debian);
    let again = recovered_and_archived(Version::Debian, &place);
    let listing = place.tidelog(&["restore-postgres", "--list", "--json"]).expect(0).json();
    let old = listing["backups"][0]["name"].as_str().expect("a name").to_owned();
    // Beyond where timeline 1 ends.
    for id in 100..103 {
        again.psql(&format!("INSERT INTO markers VALUES ({id}, 'x'); DELETE FROM markers WHERE id = {id}"));
        again.psql("SELECT pg_switch_wal()");
    }
    place.back_up();
    again.psql("INSERT INTO markers VALUES (6, 'x')");
    place.wait_archived_of(&again, 2);
    wait_older(&again);
    again.psql("INSERT INTO markers VALUES (7, 'x')");
    place.wait_archived_of(&again, 2);
    // The service that archives would be before the command now and then.
    place.stop_archiving();
    place.forget_holds();
    // Somebody restores what is kept: that holds up nothing else.
    place.restore("held", &[]);
    let said = place.tidelog(&["expire", "--json"]).expect(0).json();
    assert_eq!(said["backups"], 2, "neither backup of timeline 1 leads to what is kept: {said}");
    assert!(said["segments"].as_u64().is_some_and(|segments| segments > 0), "{said}");
    // Who still has its name is told which there are (pgbackrest/pgbackrest#1873).
    let listing = place.tidelog(&["restore-postgres", "--list", "--json"]).expect(0).json();
    let left = listing["backups"][0]["name"].as_str().expect("a name").to_owned();
    let into = place.home.path().join("expired").display().to_string();
    let refused = place.tidelog(&["restore-postgres", "--into", &into, "--backup", &old]);
    assert!(
        refused.status == Some(1) && refused.stderr.contains(&old) && refused.stderr.contains(&left),
        "{refused:?}"
    );
    assert!(plans_hold(&place, "after") > 0);
    let data = place.restore("latest", &[]);
    let latest = place.adopt(&data, Version::Debian);
    wait_recovered(&latest);
    assert_eq!(markers(&latest), "6|7");
}

/// Has the server remove WAL before it is archived.
pub(crate) fn lose_wal(place: &Place) {
    let server = &place.postgres;
    place.stop_archiving();
    server.psql("SELECT pg_drop_replication_slot('tidelog')");
    let file = server.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    wait_until("the server to remove WAL", PATIENCE, || {
        server.psql("INSERT INTO markers SELECT max(id) + 1, 'lost' FROM markers");
        server.psql("SELECT pg_switch_wal()");
        server.psql("CHECKPOINT");
        server.psql(&format!("SELECT count(*) FROM pg_ls_waldir() WHERE name = '{file}'")) == "0"
    });
}

#[test]
fn behind_a_gap_nothing_is_promised_and_a_backup_is_due_even_after_a_restart() {
    let place = Place::new(Version::Debian);
    place.mark(1);
    place.back_up();
    place.mark(2);
    place.wait_archived();
    lose_wal(&place);
    // A process that knows nothing of the gap any more: it was found by the one before.
    // It asks for a backup at once, and the server that backups come from is away.
    place.archive(&place.postgres, "[postgres.base_backup]\nurl = \"postgres://postgres@127.0.0.1:1/postgres\"\n");
    wait_until("the gap", PATIENCE, || place.chain().is_some_and(|chain| chain.totals().gaps == 1));
    let (_, after) = place.mark(1_000);
    place.mark(1_001);
    place.wait_archived();
    assert!(plans_hold(&place, "gap") > 0, "before the gap everything can be recovered");
    let refused = |target: &[&str]| {
        let into = place.home.path().join("refused").display().to_string();
        place.tidelog(&[&["restore-postgres", "--into", &into], target].concat()).expect(3).stderr
    };
    for target in [&[][..], &["--to-time", &after]] {
        let said = refused(target);
        assert!(said.contains("is lost (the server removed the WAL)") && said.contains("--to-time"), "{said}");
    }
    let newest = claimed(&place).pop().expect("a moment");
    assert!(newest < after, "ls claims {newest}");
    place.archive(&place.postgres, "[postgres.base_backup]\nevery = \"24h\"\n");
    wait_until("a new backup", PATIENCE, || {
        place.program().as_mut().expect("it archives").assert_running();
        place.tidelog(&["ls", "--json"]).expect(0).json()["recoverable"].as_array().is_some_and(|all| all.len() == 2)
    });
    place.restore("latest", &[]);
}

#[test]
fn a_backup_from_before_the_archive_is_none_and_another_is_due() {
    let place = Place::new(Version::Debian);
    place.wait_archived();
    place.stop_archiving();
    let archive = place.home.path().join("archive");
    std::fs::remove_dir_all(&archive).expect("what there is of it");
    std::fs::remove_dir_all(place.home.path().join("spool")).expect("what there is of it");
    place.postgres.psql("SELECT pg_drop_replication_slot('tidelog')");
    place.mark(1);
    let waiting = place.home.start(&["-c", "tidelog.toml", "backup", "--wait", "10m"]);
    let find = || {
        let mut find = std::process::Command::new("find");
        find.arg(place.home.path()).args(["-name", "backup.json"]);
        program::run(find).expect(0).stdout
    };
    wait_until("the backup", PATIENCE, || !find().is_empty());
    for id in 2..5 {
        place.mark(id);
        place.postgres.psql("SELECT pg_switch_wal()");
    }
    place.archive(&place.postgres, "");
    wait_until("the archive", PATIENCE, || place.chain().is_some_and(|chain| chain.positions().len() == 1));
    place.mark(5);
    place.wait_archived();
    let said = place.tidelog(&["ls"]).expect(0).stdout;
    assert!(said.contains("recoverable: nothing yet"), "{said}");
    // Whoever waits for it hears so at once.
    assert_eq!(waiting.wait(PATIENCE), 3);
    place.archive(&place.postgres, "[postgres.base_backup]\nevery = \"24h\"\n");
    wait_until("a backup that can be used", PATIENCE, || {
        place.program().as_mut().expect("it archives").assert_running();
        place.tidelog(&["ls"]).expect(0).stdout.contains("recoverable: Postgres from")
    });
    let data = place.restore("latest", &[]);
    let latest = place.adopt(&data, Version::Debian);
    wait_recovered(&latest);
    assert_eq!(markers(&latest), "5|5");
}

#[test]
fn a_promoted_standby_is_restored_from_the_backup_of_the_old_primary() {
    let place = Place::new(Version::Debian);
    let standby = place.postgres.standby(Default::default());
    place.mark(1);
    place.back_up();
    place.mark(2);
    place.wait_archived();
    wait_until("the standby to have it all", PATIENCE, || markers(&standby) == "2|2");
    standby.promote();
    // The old primary goes on for a while, and is backed up: nobody will follow it.
    place.mark(3);
    place.back_up();
    place.wait_archived();
    place.archive(&standby, KEPT);
    standby.psql("INSERT INTO markers VALUES (4, 'x')");
    place.wait_archived_of(&standby, 2);
    wait_older(&standby);
    standby.psql("INSERT INTO markers VALUES (5, 'x')");
    place.wait_archived_of(&standby, 2);
    place.tidelog(&["expire"]).expect(0);
    assert!(plans_hold(&place, "after") > 0);
    let data = place.restore("latest", &[]);
    let latest = place.adopt(&data, Version::Debian);
    wait_recovered(&latest);
    assert_eq!(markers(&latest), "4|5");
}

#[test]
fn over_wal_of_level_minimal_nothing_is_restored_and_a_backup_is_taken() {
    for version in [Version::V13, Version::Debian, Version::V18] {
        let place = Place::with(version, &[("wal_keep_size", "256MB")]);
        place.mark(1);
        let first = place.back_up()["name"].as_str().expect("a name").to_owned();
        let (before, _) = place.mark(2);
        place.wait_archived();
        place.stop_archiving();
        run_with_minimal(&place, version);
        // It asks for a backup at once, and the server that backups come from is away.
        place.archive(&place.postgres, "[postgres.base_backup]\nurl = \"postgres://postgres@127.0.0.1:1/postgres\"\n");
        wait_until("the archiver to stream again", PATIENCE, || {
            place.postgres.psql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") != "0"
        });
        let (_, after) = place.mark(4);
        place.mark(5);
        place.wait_archived();
        let barrier = nothing_is_promised_behind_it(&place, &first, &after);
        place.archive(&place.postgres, "[postgres.base_backup]\nevery = \"24h\"\n");
        wait_until("another base backup", PATIENCE, || backups(&place).len() == 2);
        wait_until("it to be used", PATIENCE, || backups(&place)[1]["usable"] == true);
        assert_eq!(backups(&place)[0]["reaches"]["limit"], "wal_level_minimal");
        place.mark(6);
        place.mark(7);
        wait_until("two windows: up to there, and from the new backup on", PATIENCE, || recoverable(&place) == 2);
        assert!(plans_hold(&place, "both") > 2);
        let into = place.home.path().join("over").display().to_string();
        let said = place.tidelog(&["restore-postgres", "--into", &into, "--backup", &first]).expect(3).stderr;
        assert!(said.contains("wal_level = minimal") && said.contains("--to-lsn"), "{said}");
        assert!(!std::path::Path::new(&into).exists(), "{said}");
        let before = before.to_string();
        let targets: [(&str, &[&str], &str); 3] = [
            ("before", &["--to-lsn", &before], "2|2"),
            ("up-to-it", &["--to-lsn", &barrier], "2|2"),
            ("after", &[], "7|7"),
        ];
        for (name, target, rows) in targets {
            let restored = place.adopt(&place.restore(name, target), version);
            wait_recovered(&restored);
            assert_eq!(markers(&restored), rows, "{version:?}, {name}");
        }
        assert_eq!(place.tidelog(&["verify", "--deep"]).status, Some(0));
    }
}

/// Starts the server with `wal_level = minimal`, writes, and starts it as before.
fn run_with_minimal(place: &Place, version: Version) {
    // A server with a slot does not start so.
    place.postgres.psql("SELECT pg_drop_replication_slot('tidelog')");
    place.postgres.stop();
    let config = [("wal_level", "minimal"), ("max_wal_senders", "0"), ("wal_keep_size", "256MB")];
    let minimal = PostgresOptions { version, config: &config, ..PostgresOptions::default() };
    let minimal = Postgres::adopt(place.postgres.data_dir(), minimal);
    minimal.wait_ready();
    minimal.psql("INSERT INTO markers VALUES (3, 'x')");
    minimal.stop();
    place.postgres.restart();
}

/// Nobody calls recoverable what no restore comes to while there is no later backup; gives the last position that is.
fn nothing_is_promised_behind_it(place: &Place, first: &str, after: &str) -> String {
    assert!(plans_hold(place, "minimal") > 0, "before it everything can be recovered");
    let newest = claimed(place).pop().expect("a moment");
    assert!(newest.as_str() < after, "ls claims {newest}");
    for target in [&[][..], &["--to-time", after], &["--backup", first]] {
        let into = place.home.path().join("refused").display().to_string();
        let said = place.tidelog(&[&["restore-postgres", "--into", &into], target].concat()).expect(3).stderr;
        assert!(said.contains("wal_level = minimal") && said.contains("--to-lsn"), "{said}");
    }
    let reaches = backups(place)[0]["reaches"].clone();
    assert_eq!(reaches["limit"], "wal_level_minimal", "{reaches}");
    reaches["end"].as_str().expect("a position").to_owned()
}

pub(crate) fn backups(place: &Place) -> Vec<Value> {
    let listing = place.tidelog(&["restore-postgres", "--list", "--json"]).expect(0).json();
    listing["backups"].as_array().cloned().unwrap_or_default()
}

/// How many windows `ls` tells.
pub(crate) fn recoverable(place: &Place) -> usize {
    let listing = place.tidelog(&["ls", "--json"]).expect(0).json();
    listing["recoverable"].as_array().map_or(0, Vec::len)
}

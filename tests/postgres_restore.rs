//! Base backups and recovery: what comes back is exactly what was committed, and a recovery that lacks something stops.
//!
//! ```text
//!   server ─► tidelog run, tidelog backup ─► archive ─► restore-postgres ─► a real server, fed by wal-fetch
//!      └───────────────────────── the same rows, up to the target? ─────────────────────┘
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::DateTime;
use futures::executor::block_on;
use serde_json::Value;
use tidelog::manifest::{Chain, Selection};
use tidelog::stream::{Lsn, StreamId};

use crate::archive::on_disk;
use crate::rig::postgres::{GERMAN, Postgres, PostgresOptions, Version};
use crate::rig::process::tail;
use crate::rig::program::{self, Home, Output, Program};
use crate::rig::wait_until;

/// For a machine that does other work, too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
const STOP: Duration = Duration::from_secs(40);

/// A server, its archive, and the program that archives it.
pub(crate) struct Place {
    pub(crate) home: Home,
    pub(crate) postgres: Postgres,
    program: Mutex<Option<Program>>,
}

impl Place {
    pub(crate) fn new(version: Version) -> Place {
        Place::with(version, &[])
    }

    /// One with more settings of the server.
    pub(crate) fn with(version: Version, settings: &[(&str, &str)]) -> Place {
        let config = [&[("autovacuum", "off"), ("max_wal_size", "64MB")], settings].concat();
        Place::of(Postgres::start(PostgresOptions { version, config: &config, ..PostgresOptions::default() }))
    }

    /// One whose pages have checksums.
    pub(crate) fn with_checksums(version: Version) -> Place {
        let config = [GERMAN, ("autovacuum", "off"), ("max_wal_size", "64MB")];
        let options = PostgresOptions { version, config: &config, initdb: &["-k"], ..PostgresOptions::default() };
        Place::of(Postgres::start(options))
    }

    pub(crate) fn of(postgres: Postgres) -> Place {
        let home = Home::new();
        let path = home.path().display();
        home.write(
            "tidelog.toml",
            &format!(
                "[archive]\nurl = \"file://{path}/archive\"\nspool_dir = \"{path}/spool\"\n\
                 [postgres]\nurl = \"{}\"\nmax_age = \"300ms\"\n",
                postgres.url("postgres")
            ),
        );
        let program = home.start(&["-c", "tidelog.toml", "run"]);
        let place = Place { home, postgres, program: Mutex::new(Some(program)) };
        // What a backup begins with has to be archived.
        wait_until("the archiver to stream", PATIENCE, || {
            let streams = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'tidelog' AND active";
            place.program().as_mut().expect("it archives").assert_running();
            place.postgres.psql(streams) == "1"
        });
        place.postgres.psql("CREATE TABLE markers(id int PRIMARY KEY, filler text)");
        place
    }

    pub(crate) fn program(&self) -> MutexGuard<'_, Option<Program>> {
        self.program.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tidelog(&self, args: &[&str]) -> Output {
        self.home.run(&[&["-c", "tidelog.toml"], args].concat())
    }

    pub(crate) fn back_up(&self) -> Value {
        self.tidelog(&["backup", "--json"]).expect(0).json()
    }

    /// One transaction; gives the position after it and a time after it.
    pub(crate) fn mark(&self, id: u32) -> (Lsn, String) {
        self.postgres.psql(&format!("INSERT INTO markers SELECT {id}, repeat('x', 200)"));
        let said = self.postgres.psql(
            "SELECT pg_current_wal_insert_lsn(), to_char(clock_timestamp() + '1 ms', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), pg_sleep(0.01)",
        );
        let mut columns = said.split('|');
        let lsn = columns.next().and_then(|lsn| lsn.parse().ok()).expect("an LSN");
        (lsn, columns.next().expect("a time").to_owned())
    }

    pub(crate) fn chain(&self) -> Option<Chain> {
        let store = on_disk(&self.home.path().join("archive"));
        block_on(async {
            let streams = tidelog::manifest::streams(&store).await.expect("the archive can be listed");
            let system = streams.into_iter().find(|stream| matches!(stream, StreamId::Postgres { .. }))?;
            Chain::open(&store, &system).await.expect("the chain can be opened")
        })
    }

    pub(crate) fn wait_archived(&self) -> Lsn {
        self.wait_archived_of(&self.postgres, 1)
    }

    pub(crate) fn wait_archived_of(&self, postgres: &Postgres, timeline: i32) -> Lsn {
        let end: Lsn = postgres.psql("SELECT pg_current_wal_flush_lsn()").parse().expect("an LSN");
        wait_until(&format!("the archive to reach {end}"), PATIENCE, || {
            self.program().as_mut().expect("it archives").assert_running();
            self.chain().and_then(|chain| chain.position(timeline).copied()).is_some_and(|at| Lsn::at(at.end) >= end)
        });
        end
    }

    /// Up to where a timeline is archived.
    pub(crate) fn end(&self, timeline: i32) -> Lsn {
        let position = self.chain().and_then(|chain| chain.position(timeline).copied());
        Lsn::at(position.expect("the timeline is archived").end)
    }

    /// Waits until the archive is known to be complete up to `time`.
    pub(crate) fn wait_complete(&self, time: &str) {
        let time = DateTime::parse_from_rfc3339(time).expect("a time");
        wait_until(&format!("the archive to be complete up to {time}"), PATIENCE, || {
            let listing = self.tidelog(&["ls", "--json"]).expect(0).json();
            let through = listing["streams"][0]["complete_through"].as_str().map(DateTime::parse_from_rfc3339);
            through.is_some_and(|through| through.expect("a time") >= time)
        });
    }

    /// Where the record of the last commit begins, by the server's own tool.
    fn last_commit(&self) -> Lsn {
        let file = self.postgres.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        let mut waldump = self.postgres.client("pg_waldump");
        waldump.args(["--rmgr", "Transaction"]).arg(self.postgres.wal_dir().join(file));
        // It ends with an error, where the log ends.
        let said = program::run(waldump).stdout;
        let commit = said.lines().rfind(|line| line.contains("desc: COMMIT")).expect("a commit");
        let lsn = commit.split("lsn: ").nth(1).and_then(|rest| rest.split(',').next()).expect("its position");
        lsn.parse().expect("an LSN")
    }

    /// Archives another server of the same system from now on, or the same one again.
    pub(crate) fn archive(&self, postgres: &Postgres, more: &str) {
        let path = self.home.path().display();
        let config = format!(
            "[archive]\nurl = \"file://{path}/archive\"\nspool_dir = \"{path}/spool\"\n\
             [postgres]\nurl = \"{}\"\nmax_age = \"300ms\"\n{more}",
            postgres.url("postgres")
        );
        self.home.write("tidelog.toml", &config);
        let old = self.program().take();
        old.into_iter().for_each(|program| program.terminate(STOP));
        *self.program() = Some(self.home.start(&["-c", "tidelog.toml", "run"]));
    }

    /// Archives the same server again.
    pub(crate) fn archive_again(&self) {
        *self.program() = Some(self.home.start(&["-c", "tidelog.toml", "run"]));
        wait_until("the log to be streamed", PATIENCE, || {
            self.program().as_mut().expect("it archives").assert_running();
            self.postgres.psql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "1"
        });
    }

    pub(crate) fn stop_archiving(&self) {
        self.program().take().expect("it archives").terminate(STOP);
    }

    /// As if nobody restored any more.
    pub(crate) fn forget_holds(&self) {
        std::fs::remove_dir_all(self.home.path().join("archive/holds")).expect("there were some");
    }

    /// A restored directory.
    pub(crate) fn restore(&self, name: &str, target: &[&str]) -> PathBuf {
        let into = self.home.path().join(name);
        let shown = into.display().to_string();
        self.tidelog(&[&["restore-postgres", "--into", &shown], target].concat()).expect(0);
        into
    }

    /// A standby of the server. What another version's `pg_basebackup -R` writes an old server may not understand.
    pub(crate) fn standby(&self) -> Postgres {
        let primary = self.postgres.url("postgres");
        let config = [("primary_conninfo", primary.as_str())];
        self.postgres.standby(PostgresOptions { config: &config, ..PostgresOptions::default() })
    }

    pub(crate) fn adopt(&self, data: &Path, version: Version) -> Postgres {
        Postgres::adopt(data, PostgresOptions { version, ..PostgresOptions::default() })
    }
}

/// Waits until a restored server has reached its target and opened.
pub(crate) fn wait_recovered(postgres: &Postgres) {
    postgres.wait_ready();
    wait_until("the end of the recovery", PATIENCE, || postgres.psql("SELECT pg_is_in_recovery()") == "f");
}

pub(crate) fn markers(postgres: &Postgres) -> String {
    postgres.psql("SELECT count(*), coalesce(max(id), 0) FROM markers")
}

#[test]
fn every_moment_comes_back_exactly() {
    let place = Place::new(Version::Debian);
    let tablespace = place.home.path().join("fast");
    std::fs::create_dir(&tablespace).expect("a directory");
    place.postgres.psql(&format!("CREATE TABLESPACE fast LOCATION '{}'", tablespace.display()));
    place.postgres.psql("CREATE TABLE placed TABLESPACE fast AS SELECT generate_series(1, 10000) AS x");
    let early = place.postgres.psql("SELECT to_char(clock_timestamp(), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
    let before = place.mark(1);
    let backup = place.back_up();
    assert_eq!((&backup["usable"], &backup["timeline"]), (&true.into(), &1.into()), "{backup}");
    let marks: BTreeMap<u32, (Lsn, String)> = (2..=6).map(|id| (id, place.mark(id))).collect();
    place.postgres.psql("SELECT pg_switch_wal()");
    place.postgres.psql("INSERT INTO placed SELECT generate_series(1, 20000)");
    place.mark(7);
    place.wait_archived();

    let moved = |name: &str| {
        let place = place.home.path().join(name).display().to_string();
        ["--tablespace".to_owned(), format!("{}={place}", tablespace.display())]
    };
    let restore = |name: &str, target: [&str; 2]| {
        let moved = moved(&format!("{name}-fast"));
        let data = place.restore(name, &[&target[..], &moved.each_ref().map(String::as_str)].concat());
        let postgres = place.adopt(&data, Version::Debian);
        wait_recovered(&postgres);
        postgres
    };
    let by_lsn = restore("lsn", ["--to-lsn", &marks[&3].0.to_string()]);
    assert_eq!(markers(&by_lsn), "3|3");
    assert_eq!(by_lsn.psql("SELECT count(*) FROM placed"), "10000");
    let by_time = restore("time", ["--to-time", &marks[&5].1]);
    assert_eq!(markers(&by_time), "5|5");

    place.stop_archiving();
    place.postgres.kill();
    let latest = restore("latest", ["--to", "latest"]);
    assert_eq!(markers(&latest), "7|7");
    assert_eq!(latest.psql("SELECT count(*) FROM placed"), "30000");
    let map = latest.data_dir().join("pg_tblspc");
    let link = std::fs::read_dir(map).expect("a directory").next().expect("a link").expect("a link").path();
    assert_eq!(std::fs::read_link(link).expect("a link"), place.home.path().join("latest-fast"));
    let mut amcheck = latest.client("pg_amcheck");
    amcheck.args(["--install-missing", "--all"]);
    program::run(amcheck).expect(0);
    assert_eq!(latest.psql("SHOW archive_mode"), "off", "it runs on its own");
    assert!(!latest.wal_dir().join(".tidelog").exists(), "nothing fetched in advance is left");

    // The archive is whole, file by file; a flipped byte in the backup is found, and no restore uses it.
    let report = place.tidelog(&["verify", "--deep", "--json"]).expect(0).json();
    assert_eq!(report["errors"], serde_json::json!([]), "{report}");
    let name = backup["name"].as_str().expect("a name");
    let folder = format!("archive/backups/postgres/system={}/{name}", backup["system_id"].as_str().expect("an id"));
    let part = place.home.path().join(folder).join("base.tar.0000000.zst");
    let sound = std::fs::read(&part).expect("a part");
    let mut flipped = sound.clone();
    flipped[1000] ^= 1;
    std::fs::write(&part, flipped).expect("damage can be done");
    let report = place.tidelog(&["verify", "--json"]).expect(3).json();
    assert!(
        report["errors"][0]["object"].as_str().is_some_and(|object| object.ends_with("base.tar.0000000.zst")),
        "{report}"
    );
    let into = place.home.path().join("damaged").display().to_string();
    let refusal = place.tidelog(
        &[&["restore-postgres", "--into", &into][..], &moved("damaged-fast").each_ref().map(String::as_str)].concat(),
    );
    assert!(refusal.expect(3).stderr.contains("is damaged"));
    std::fs::write(&part, sound).expect("it is mended");

    // What cannot be reached says what can.
    let refused = |target: [&str; 2], parts: &[&str]| {
        let into = place.home.path().join("refused").display().to_string();
        let output = place.tidelog(&["restore-postgres", "--into", &into, target[0], target[1]]);
        assert_ne!(output.status, Some(0), "{target:?}");
        for part in parts {
            assert!(output.stderr.contains(part), "{part:?} is not in {}", output.stderr);
        }
    };
    refused(["--to-lsn", &before.0.to_string()], &["before the end of the first base backup", "nearest"]);
    refused(["--to-time", &early], &["before the end of the first base backup", "--to-lsn"]);
    refused(["--to-time", "2090-01-01T00:00:00Z"], &["after the end of the archived WAL", "--to latest"]);
    refused(["--to-lsn", "FF/0"], &["after the end of the archived WAL", "--to latest"]);
    refused(["--backup", "other"], &["no base backup other"]);
    // Another server runs in one, and the other one is the home of this test.
    for (full, why) in [(place.home.path().join("lsn"), "runs on"), (place.home.path().to_owned(), "is not empty")] {
        let said = place.tidelog(&["restore-postgres", "--into", &full.display().to_string()]).expect(2).stderr;
        assert!(said.contains(why), "{said}");
    }
    let mounted = place.home.path().join("mounted");
    std::fs::create_dir_all(mounted.join("lost+found")).expect("directories");
    let said = place.tidelog(&["restore-postgres", "--into", &mounted.display().to_string()]).expect(2).stderr;
    assert!(said.contains("lost+found") && said.contains(&format!("{}/data", mounted.display())), "{said}");
    // An empty disk, and one on which something else is already.
    std::fs::create_dir(mounted.join("data")).expect("a directory");
    let said = place.tidelog(&["restore-postgres", "--into", &mounted.display().to_string()]).expect(2).stderr;
    assert!(said.contains("is not empty"), "{said}");
}

#[test]
fn a_recovery_ends_where_its_plan_ended_whatever_is_archived_later() {
    let place = Place::new(Version::Debian);
    place.mark(1);
    place.back_up();
    // A record of more than one WAL file, and a target in it.
    let before: Lsn = place.postgres.psql("SELECT pg_current_wal_insert_lsn()").parse().expect("an LSN");
    place.postgres.psql("SELECT pg_logical_emit_message(true, 'long', repeat('x', 40000000))");
    let in_the_long_one = before + 38_000_000;
    let (_, time) = place.mark(2);
    place.wait_complete(&time);
    place.stop_archiving();
    let long = place.restore("long", &["--to-lsn", &in_the_long_one.to_string()]);
    let end = place.end(1).to_string();
    let within = place.last_commit() + 9;
    let by_lsn = place.restore("lsn", &["--to-lsn", &end]);
    let by_time = place.restore("time", &["--to-time", &time]);
    let looked_at = place.restore("looked-at", &["--action", "pause"]);
    let cut = place.restore("cut", &["--to-lsn", &within.to_string()]);

    *place.program() = Some(place.home.start(&["-c", "tidelog.toml", "run"]));
    place.mark(3);
    place.postgres.psql("SELECT pg_switch_wal()");
    place.mark(4);
    place.wait_archived();
    for (data, expected) in [(&by_lsn, "2|2"), (&by_time, "2|2"), (&cut, "1|1"), (&long, "1|1")] {
        let postgres = place.adopt(data, Version::Debian);
        wait_recovered(&postgres);
        assert_eq!(markers(&postgres), expected, "{}", tail(&postgres.log(), 20));
    }
    let paused = place.adopt(&looked_at, Version::Debian);
    paused.wait_ready();
    wait_until("the recovery to pause", PATIENCE, || paused.psql("SELECT pg_get_wal_replay_pause_state()") == "paused");
    assert_eq!(markers(&paused), "2|2");
    drop(paused);
    // Without a target all that is archived by then comes back.
    let open = place.restore("open", &[]);
    place.mark(5);
    place.wait_archived();
    let postgres = place.adopt(&open, Version::Debian);
    wait_recovered(&postgres);
    assert_eq!(markers(&postgres), "5|5");
}

#[test]
fn a_recovery_stops_where_the_archive_lacks_something() {
    let place = Place::new(Version::Debian);
    place.mark(1);
    place.back_up();
    for id in 2..=5 {
        place.mark(id);
        place.postgres.psql("SELECT pg_switch_wal()");
    }
    place.wait_archived();
    place.stop_archiving();
    let chain = place.chain().expect("there is one");
    let mut segments = block_on(chain.select(&Selection::default())).expect("it can be read").segments;
    segments.sort_by_key(|segment| segment.partitions[0].start);
    let middle = &segments[segments.len() - 2];
    let archive = place.home.path().join("archive");
    let object = archive.join(&middle.object);
    let sound = std::fs::read(&object).expect("the segment");

    let stops = |name: &str, expected: &str| {
        let data = place.restore(name, &[]);
        (data, expected.to_owned())
    };
    let jobs = [stops("missing", "is missing"), stops("damaged", "sha256"), stops("away", "holds no WAL")];
    let run = |data: &Path, expected: &str| {
        let postgres = place.adopt(data, Version::Debian);
        let ended = postgres.wait_ended(PATIENCE);
        let log = postgres.log();
        assert!(ended.is_some_and(|status| !status.success()), "it has to stop: {}", tail(&log, 20));
        assert!(log.contains(expected) && log.contains("error: "), "{expected}: {}", tail(&log, 20));
        assert!(!log.contains("selected new timeline ID"), "{}", tail(&log, 20));
    };
    std::fs::remove_file(&object).expect("damage can be done");
    run(&jobs[0].0, &jobs[0].1);
    let mut flipped = sound.clone();
    let at = flipped.len() - 20;
    flipped[at] ^= 1;
    std::fs::write(&object, flipped).expect("damage can be done");
    run(&jobs[1].0, &jobs[1].1);
    std::fs::write(&object, &sound).expect("it is mended");
    let hidden = place.home.path().join("hidden");
    std::fs::rename(&archive, &hidden).expect("it goes away");
    run(&jobs[2].0, &jobs[2].1);

    // The archive comes back, and the very same directory goes on to the end.
    std::fs::remove_dir_all(&archive).expect("what was made in its place");
    std::fs::rename(&hidden, &archive).expect("it comes back");
    let postgres = place.adopt(&jobs[2].0, Version::Debian);
    wait_recovered(&postgres);
    assert_eq!(markers(&postgres), "5|5");
}

#[test]
fn wal_fetch_answers_as_postgres_reads_it() {
    let place = Place::new(Version::Debian);
    place.postgres.psql("SELECT pg_switch_wal()");
    place.mark(1);
    let end = place.wait_archived();
    let name = |lsn: Lsn| format!("0000000100000000{:08X}", lsn.0 >> 24);
    let target = place.home.path().join("RECOVERYXLOG");
    let path = target.display().to_string();
    let fetch = |name: &str| place.tidelog(&["wal-fetch", name, &path]);
    let begun = name(end);
    fetch(&begun).expect(0);
    let fetched = std::fs::read(&target).expect("the file");
    let file = std::fs::read(place.postgres.wal_dir().join(&begun)).expect("the server's file");
    let known = (end.0 % (16 << 20)) as usize;
    assert!(fetched.len() == 16 << 20 && fetched[..known] == file[..known], "what is archived, and zeros");
    for absent in [name(end + (16 << 20)), "00000002.history".into(), format!("{begun}.00000028.backup")] {
        fetch(&absent).expect(1);
    }
    fetch("000000050000000000000001").expect(1);
    let before = fetch("000000010000000000000000").expect(200);
    assert!(before.stderr.contains("the archive begins at"), "{}", before.stderr);
    fetch("nonsense").expect(200);
    place.home.run(&["-c", "none.toml", "wal-fetch", &begun, &path]).expect(200);
    place.tidelog(&["wal-fetch"]).expect(200);
    place.tidelog(&["wal-fetch", &begun, "/nowhere/at/all"]).expect(200);
}

#[test]
fn a_store_that_does_not_answer_is_waited_for() {
    let home = Home::new();
    home.write(
        "tidelog.toml",
        "[archive]\nurl = \"s3://away/archive\"\n[archive.options]\naws_endpoint = \"http://127.0.0.1:1\"\n\
         aws_allow_http = \"true\"\naws_access_key_id = \"a\"\naws_secret_access_key = \"b\"\n[postgres]\nurl = \"host=a\"\n",
    );
    let mut fetch = home.start(&["-c", "tidelog.toml", "wal-fetch", "000000010000000000000001", "file"]);
    wait_until("it to say what is wrong", PATIENCE, || {
        fetch.assert_running();
        fetch.output().contains("error: ")
    });
    // Postgres waits as long; in the end it hears 200, and stops.
    fetch.assert_running();
    fetch.kill();
}

#[test]
fn every_version_comes_back() {
    // Given by the command line, as Patroni does: no file of the backup says so, and a recovery needs them.
    let limits = [
        ("max_connections", "137"),
        ("max_worker_processes", "11"),
        ("max_prepared_transactions", "3"),
        ("max_locks_per_transaction", "70"),
    ];
    for version in Version::ALL.into_iter().filter(|version| *version != Version::Debian) {
        let place = Place::with(version, &limits);
        place.mark(1);
        place.back_up();
        place.mark(2);
        place.wait_archived();
        place.stop_archiving();
        place.postgres.kill();
        let data = place.restore("data", &[]);
        // Another major version says so, and does no harm.
        let other = place.adopt(&data, Version::Debian);
        assert!(other.wait_ended(PATIENCE).is_some_and(|status| !status.success()));
        assert!(other.log().contains("FATAL: "), "{}", other.log());
        drop(other);
        let postgres = place.adopt(&data, version);
        wait_recovered(&postgres);
        assert_eq!(markers(&postgres), "2|2", "{version:?}");
        let configured = std::fs::read_to_string(data.join("postgresql.auto.conf")).expect("its settings");
        assert!(configured.ends_with("include_if_exists 'tidelog.recovery.conf'\n"), "{configured}");
        let apart = std::fs::read_to_string(data.join("tidelog.restored.conf")).expect("what keeps it apart");
        for (name, value) in limits {
            assert!(apart.contains(&format!("\n{name} = {value} ")), "{version:?}: {name} in {apart}");
        }
    }
}

#[test]
fn a_backup_may_come_from_a_standby() {
    let place = Place::new(Version::Debian);
    let standby = place.postgres.standby(PostgresOptions::default());
    let config = std::fs::read_to_string(place.home.path().join("tidelog.toml")).expect("the configuration");
    let more = format!("[postgres.base_backup]\nurl = \"{}\"\n", standby.url("postgres"));
    place.home.write("tidelog.toml", &(config + &more));
    let checked = place.tidelog(&["check", "--connect"]).expect(0).stdout;
    assert!(checked.contains("ok     base backups"), "{checked}");
    place.mark(1);
    let backup = place.back_up();
    place.mark(2);
    place.wait_archived();
    let data = place.restore("data", &["--backup", backup["name"].as_str().expect("a name")]);
    let label = std::fs::read_to_string(data.join("backup_label")).expect("the label");
    assert!(label.contains("BACKUP FROM: standby"), "{label}");
    let postgres = place.adopt(&data, Version::Debian);
    wait_recovered(&postgres);
    assert_eq!(markers(&postgres), "2|2");
}

#[test]
fn a_recovery_follows_a_promotion_or_stays_before_it() {
    let place = Place::new(Version::Debian);
    let standby = place.postgres.standby(PostgresOptions::default());
    place.stop_archiving();
    let config = std::fs::read_to_string(place.home.path().join("tidelog.toml")).expect("the configuration");
    let (first, second) = (place.postgres.port(), standby.port());
    let both = format!("127.0.0.1:{first},127.0.0.1:{second}/postgres?target_session_attrs=primary");
    let config = config.replace(&format!("127.0.0.1:{first}/postgres"), &both);
    place.home.write("tidelog.toml", &config);
    *place.program() = Some(place.home.start(&["-c", "tidelog.toml", "run"]));
    place.mark(1);
    place.back_up();
    place.mark(2);
    place.wait_archived();
    wait_until("the standby to have it all", PATIENCE, || markers(&standby) == "2|2");
    place.postgres.kill();
    wait_until("the end of timeline 1 to be archived", PATIENCE, || {
        place.end(1) >= standby.psql("SELECT pg_last_wal_receive_lsn()").parse().expect("an LSN")
    });
    let before = place.restore("before", &["--to-lsn", &place.end(1).to_string()]);
    standby.promote();
    standby.psql("INSERT INTO markers VALUES (3, 'on timeline 2')");
    place.wait_archived_of(&standby, 2);
    let between = place.restore("between", &["--to-lsn", &place.end(2).to_string()]);
    standby.psql("INSERT INTO markers VALUES (4, 'on timeline 2')");
    place.wait_archived_of(&standby, 2);
    place.stop_archiving();
    let newest = place.restore("newest", &[]);
    let old = place.restore("old", &["--timeline", "1"]);
    let all = [("before", before, "2|2"), ("between", between, "3|3"), ("newest", newest, "4|4"), ("old", old, "2|2")];
    for (name, data, expected) in all {
        let postgres = place.adopt(&data, Version::Debian);
        wait_recovered(&postgres);
        assert_eq!(markers(&postgres), expected, "{name}");
        assert_eq!(
            postgres.psql("SELECT timeline_id FROM pg_control_checkpoint()").parse::<u32>().ok(),
            Some(3),
            "{name}"
        );
    }
}

#[test]
fn backups_come_by_the_clock() {
    let place = Place::new(Version::Debian);
    let config = std::fs::read_to_string(place.home.path().join("tidelog.toml")).expect("the configuration");
    place.stop_archiving();
    place.home.write("tidelog.toml", &format!("{config}[postgres.base_backup]\nevery = \"60s\"\n"));
    let mut program = place.home.start(&["-c", "tidelog.toml", "run"]);
    let folder = place.home.path().join("archive/backups/postgres");
    let committed = || {
        let systems = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let backups = systems.flat_map(|system| std::fs::read_dir(system.path()).into_iter().flatten().flatten());
        backups.filter(|backup| backup.path().join("backup.json").exists()).count()
    };
    wait_until("the first base backup", PATIENCE, || {
        program.assert_running();
        committed() == 1
    });
    program.terminate(STOP);
}

/// How many marks lie between the backup and the end of the load, and how many of them are restored to.
const MARKS: u32 = 60;
const RESTORES: usize = 20;

#[test]
fn twenty_random_moments_under_load_come_back_exactly() {
    let place = Place::new(Version::Debian);
    place.postgres.pgbench(&["-i", "-s", "1", "-q"]);
    let mut load = place.postgres.pgbench_start(&["-n", "-c", "2", "-R", "400", "-T", "600"]);
    place.mark(1);
    place.back_up();
    let script: String = (2..=MARKS)
        .map(|id| {
            format!(
                "INSERT INTO markers VALUES ({id}, 'x');\n\
                 SELECT {id}, pg_current_wal_insert_lsn(), to_char(clock_timestamp() + '1 ms', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), pg_sleep(0.03);\n"
            )
        })
        .collect();
    let mut psql = place.postgres.client("psql");
    psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-f"]).arg(place.home.write("marks.sql", &script));
    let said = program::run(psql).expect(0).stdout;
    let marks: Vec<Vec<&str>> = said.lines().map(|line| line.split('|').collect()).collect();
    assert_eq!(marks.len(), MARKS as usize - 1);
    assert!(load.ended().is_none(), "pgbench runs: {}", load.output());
    place.wait_archived();
    load.kill();
    place.mark(MARKS + 1);
    place.wait_archived();

    let place = &place;
    let restore = |number: usize| {
        let mut random = [0; 8];
        getrandom::fill(&mut random).expect("the system gives random bytes");
        let mark = &marks[usize::try_from(u64::from_ne_bytes(random) % marks.len() as u64).expect("small")];
        let target = if number.is_multiple_of(2) { ["--to-lsn", mark[1]] } else { ["--to-time", mark[2]] };
        let data = place.restore(&format!("restored-{number}"), &target);
        let postgres = place.adopt(&data, Version::Debian);
        wait_recovered(&postgres);
        assert_eq!(markers(&postgres), format!("{0}|{0}", mark[0]), "{target:?}");
        // What pgbench promises of its tables at any moment.
        let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history) \
                    AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history)";
        assert_eq!(postgres.psql(sums), "t", "{target:?}");
        let mut amcheck = postgres.client("pg_amcheck");
        amcheck.args(["--install-missing", "--heapallindexed", "-d", "postgres"]);
        program::run(amcheck).expect(0);
        drop(postgres);
        std::fs::remove_dir_all(&data).expect("it can go");
    };
    std::thread::scope(|scope| {
        for lane in 0..2 {
            scope.spawn(move || (lane..RESTORES).step_by(2).for_each(restore));
        }
    });
}

//! Incremental base backups (PostgreSQL 17 and newer): a chain of them is taken, kept, listed, judged and restored as one.
//!
//! ```text
//!   full ─── mark 2 ─── incremental ─── mark 3 ─── incremental ─── mark 4        restored to before and after the last one,
//!     └── tables that change, go, come, and lie in a tablespace                   by pg_combinebackup of the same version
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tidelog::stream::Lsn;

use crate::postgres_again::s3_with;
use crate::postgres_path::{KEPT, lose_wal, wait_older};
use crate::postgres_restore::{PATIENCE, Place, markers, wait_recovered};
use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::process::tail;
use crate::rig::s3_proxy::{Fault, Proxy, Rule};
use crate::rig::{program, wait_for, wait_until};
use crate::store_faults::in_bucket;
use crate::wal::may_mount;

const SUMMARIZED: [(&str, &str); 1] = [("summarize_wal", "on")];

/// The tables whose rows are compared.
const TABLES: [&str; 3] = ["grown", "placed", "late"];

fn sums(postgres: &Postgres) -> Vec<String> {
    let sum = |table: &&str| {
        let is_there = postgres.psql(&format!("SELECT to_regclass('{table}') IS NOT NULL")) == "t";
        let sum =
            || postgres.psql(&format!("SELECT count(*), md5(string_agg(t::text, '' ORDER BY t::text)) FROM {table} t"));
        if is_there { sum() } else { "none".to_owned() }
    };
    TABLES.iter().map(sum).collect()
}

fn incremental(place: &Place) -> Value {
    place.tidelog(&["backup", "--incremental", "--json"]).expect(0).json()
}

fn name(backup: &Value) -> &str {
    backup["name"].as_str().expect("a name")
}

fn folder(place: &Place, backup: &Value) -> PathBuf {
    let system = backup["system_id"].as_str().expect("an id");
    place.home.path().join(format!("archive/backups/postgres/system={system}")).join(name(backup))
}

/// The directory of the programs of a version.
fn bin_dir(version: Version) -> String {
    version.program("pg_combinebackup").parent().expect("a directory").display().to_string()
}

/// A full backup and two that build on each other.
struct Chained {
    place: Place,
    fast: PathBuf,
    backups: [Value; 3],
    /// The position after each mark, and the rows there: of 3 between the incremental ones, of 4 at the end.
    between: (Lsn, Vec<String>),
    last: (Lsn, Vec<String>),
}

fn chained(version: Version) -> Chained {
    let place = Place::with(version, &SUMMARIZED);
    let fast = place.home.path().join("fast");
    std::fs::create_dir(&fast).expect("a directory");
    place.postgres.psql(&format!("CREATE TABLESPACE fast LOCATION '{}'", fast.display()));
    place.postgres.psql(
        "CREATE TABLE placed TABLESPACE fast AS SELECT n, md5(n::text) AS text FROM generate_series(1, 20000) AS n",
    );
    place
        .postgres
        .psql("CREATE TABLE grown AS SELECT n, repeat(md5(n::text), 20) AS text FROM generate_series(1, 40000) AS n");
    place.postgres.psql("CREATE TABLE late AS SELECT 1 AS n");
    place.mark(1);
    let full = place.back_up();
    place
        .postgres
        .psql("UPDATE grown SET text = 'changed' WHERE n = 17; DELETE FROM placed WHERE n % 1000 = 0; DROP TABLE late");
    place.mark(2);
    let first = incremental(&place);
    place.postgres.psql("INSERT INTO grown SELECT n, 'new' FROM generate_series(40001, 40100) AS n; TRUNCATE placed");
    let (between, _) = place.mark(3);
    let rows_between = sums(&place.postgres);
    place.postgres.psql("INSERT INTO placed SELECT n, 'again' FROM generate_series(1, 500) AS n");
    place.postgres.psql("CREATE TABLE late TABLESPACE fast AS SELECT n FROM generate_series(1, 3000) AS n");
    let second = incremental(&place);
    place.postgres.psql("UPDATE late SET n = n + 1 WHERE n < 9");
    let (last, _) = place.mark(4);
    let rows_last = sums(&place.postgres);
    place.mark(5);
    place.wait_archived();
    Chained { place, fast, backups: [full, first, second], between: (between, rows_between), last: (last, rows_last) }
}

impl Chained {
    fn asked(&self, into: &str, more: &[&str]) -> Vec<String> {
        let data = self.place.home.path().join(into).display().to_string();
        // What separates the sides of a mapping may stand in a name.
        let moved = format!("{}={data}-fast=2", self.fast.display());
        let args = ["-c", "tidelog.toml", "restore-postgres", "--json", "--into", &data, "--tablespace", &moved];
        args.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
    }

    fn tried(&self, into: &str, more: &[&str]) -> program::Output {
        let asked = self.asked(into, more);
        self.place.home.run(&asked.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// A restored server, and what the restore said.
    fn restored(&self, into: &str, version: Version, target: Lsn) -> (Postgres, Value) {
        let (bin, target) = (bin_dir(version), target.to_string());
        let said = self.tried(into, &["--bin-dir", &bin, "--to-lsn", &target]).expect(0).json();
        let data = self.place.home.path().join(into);
        nothing_is_left(&data);
        let postgres = self.place.adopt(&data, version);
        wait_recovered(&postgres);
        (postgres, said)
    }
}

fn nothing_is_left(data: &Path) {
    for folder in [data.to_owned(), format!("{}-fast=2", data.display()).into()] {
        let mut find = Command::new("find");
        find.arg(folder).args([
            "(",
            "-name",
            "tidelog.chain*",
            "-o",
            "-name",
            "INCREMENTAL.*",
            "-o",
            "-name",
            "combined-*",
            ")",
        ]);
        assert_eq!(program::run(find).expect(0).stdout, "");
    }
    let mode = std::os::unix::fs::MetadataExt::mode(&data.metadata().expect("a directory"));
    assert_eq!(mode & 0o777, 0o700);
}

fn comes_back(version: Version) {
    let chained = chained(version);
    let Chained { place, fast, backups: [full, first, second], between, last } = &chained;
    assert_eq!((&full["parent"], &first["parent"], &second["parent"]), (&Value::Null, &full["name"], &first["name"]));
    assert!(
        second["usable"] == true && second["stored_bytes"].as_u64() < full["stored_bytes"].as_u64().map(|all| all / 3)
    );
    let listing = place.tidelog(&["restore-postgres", "--list", "--json"]).expect(0).json();
    assert!(
        listing["backups"].as_array().is_some_and(|rows| rows.iter().all(|row| row["usable"] == true)),
        "{listing}"
    );
    assert_eq!(listing["backups"][2]["parent"], first["name"], "{listing}");

    // Without the server's programs it says which option is missing, and with those of another version, too.
    let other = if version == Version::V17 { Version::V18 } else { Version::V17 };
    for bin in [bin_dir(other), fast.display().to_string()] {
        let said = chained.tried("refused", &["--bin-dir", &bin]).expect(2).stderr;
        assert!(said.contains("--bin-dir") && said.contains("pg_combinebackup"), "{said}");
        assert!(!place.home.path().join("refused").exists());
    }
    let said = chained.tried("refused", &["--delta", "--bin-dir", &bin_dir(version)]).expect(2).stderr;
    assert!(said.contains("--delta") && said.contains(&format!("--backup {}", name(full))), "{said}");

    place.stop_archiving();
    let (postgres, said) = chained.restored("last", version, last.0);
    assert_eq!(
        (name(second), &said["builds_on"]),
        (said["backup"].as_str().expect("one"), &serde_json::json!([name(full), name(first)]))
    );
    assert_eq!((markers(&postgres), sums(&postgres)), ("4|4".to_owned(), last.1.clone()), "{version:?}");
    assert!(!last.1[2].starts_with("none"));
    let mut amcheck = postgres.client("pg_amcheck");
    amcheck.args(["--install-missing", "--all"]);
    program::run(amcheck).expect(0);
    let (postgres, said) = chained.restored("between", version, between.0);
    assert_eq!(said["backup"], first["name"], "{said}");
    assert_eq!((markers(&postgres), sums(&postgres)), ("3|3".to_owned(), between.1.clone()), "{version:?}");
}

#[test]
fn a_chain_of_incremental_backups_comes_back_exactly() {
    comes_back(Version::V17);
    comes_back(Version::V18);
}

#[test]
fn a_chain_is_judged_kept_and_expired_as_one() {
    let chained = chained(Version::V17);
    let Chained { place, backups: [full, first, second], last, .. } = &chained;
    let bin = bin_dir(Version::V17);
    place.tidelog(&["verify", "--deep"]).expect(0);
    // A part of the full one is damaged: verify names all three, by their names.
    let part = folder(place, full).join("base.tar.0000000.zst");
    let sound = std::fs::read(&part).expect("a part");
    std::fs::write(&part, b"damage").expect("written");
    let report = place.tidelog(&["verify", "--json"]).expect(3).json();
    let said = report["errors"].to_string();
    assert!([full, first, second].iter().all(|backup| said.contains(name(backup))), "{report}");
    // One that is missing is damage for a restore, too.
    std::fs::remove_file(&part).expect("removed");
    place.tidelog(&["verify"]).expect(3);
    let said = chained.tried("refused", &["--bin-dir", &bin, "--backup", name(full)]).expect(3).stderr;
    assert!(said.contains("base.tar.0000000.zst of a base backup is missing"), "{said}");
    std::fs::remove_dir_all(place.home.path().join("refused")).expect("it goes");
    place.forget_holds();
    std::fs::write(&part, &sound).expect("mended");
    // Its backup.json cannot be read: the others are of no use, and say why.
    let commit = folder(place, full).join("backup.json");
    let json = std::fs::read(&commit).expect("one");
    std::fs::write(&commit, b"{").expect("written");
    let listing = place.tidelog(&["restore-postgres", "--list", "--json"]).expect(3).json();
    let rows = listing["backups"].as_array().expect("a list");
    assert!(
        rows.len() == 2 && rows.iter().all(|row| row["usable"] == false && row["lacks"] == full["name"]),
        "{listing}"
    );
    let said = chained.tried("refused", &["--bin-dir", &bin, "--backup", name(second)]).expect(3).stderr;
    assert!(said.contains(name(second)) && said.contains(name(full)), "{said}");
    let said = place.tidelog(&["ls"]).expect(3).stdout;
    assert!(said.contains("recoverable: nothing"), "{said}");
    let said = place.tidelog(&["backup", "--incremental"]).expect(1).stderr;
    assert!(said.contains("`tidelog backup`"), "{said}");
    std::fs::write(&commit, &json).expect("mended");

    // Retention goes past the full one: it loses its WAL, and stays with what builds on it.
    place.archive(&place.postgres, KEPT);
    wait_older(&place.postgres);
    place.mark(6);
    place.wait_archived();
    // The service that archives may be before it.
    place.tidelog(&["expire"]).expect(0);
    let listing = place.tidelog(&["restore-postgres", "--list", "--json"]).expect(0).json();
    let usable: Vec<&Value> = listing["backups"].as_array().expect("a list").iter().map(|row| &row["usable"]).collect();
    assert_eq!(usable, [false, false, true], "{listing}");
    place.tidelog(&["verify"]).expect(0);
    let (postgres, said) = chained.restored("kept", Version::V17, last.0);
    assert_eq!((&said["backup"], markers(&postgres).as_str()), (&second["name"], "4|4"));
    drop(postgres);
    place.forget_holds();
    // Another one builds on it all the same (postgrespro/pg_probackup#451).
    assert_eq!(incremental(place)["parent"], second["name"]);
    // A new full one is enough for the window: all three go at once.
    place.back_up();
    place.mark(7);
    place.wait_archived();
    wait_older(&place.postgres);
    place.mark(8);
    place.wait_archived();
    place.tidelog(&["expire"]).expect(0);
    let listing = place.tidelog(&["restore-postgres", "--list", "--json"]).expect(0).json();
    assert_eq!(listing["backups"].as_array().map(Vec::len), Some(1), "{listing}");
    place.tidelog(&["verify"]).expect(0);
}

#[test]
fn a_restore_of_a_chain_that_was_killed_goes_on() {
    let chained = chained(Version::V18);
    let Chained { place, backups: [full, _, second], last, .. } = &chained;
    let bin = bin_dir(Version::V18);
    place.stop_archiving();
    refused_without_room(&chained);
    // A segment of the log that is missing is damage, and told before anything is written.
    let (segment, kept) = (last_segment(place), place.home.path().join("kept"));
    std::fs::rename(&segment, &kept).expect("moved");
    let said = chained.tried("refused", &["--bin-dir", &bin]).expect(3).stderr;
    let named = segment.file_name().expect("a name").to_string_lossy();
    assert!(said.contains(&*named) && said.contains("is missing"), "{said}");
    assert!(!place.home.path().join("refused").exists() && holds(place) == 0);
    std::fs::rename(&kept, &segment).expect("moved back");
    // The last one's own objects do not come for now.
    let config = std::fs::read_to_string(place.home.path().join("tidelog.toml")).expect("a configuration");
    let mut bucket = s3_with(&place.home.path().join("archive"));
    let proxy = Proxy::before(&mut bucket);
    place.home.write("tidelog.toml", &in_bucket(&bucket, &place.home));
    proxy.add(Rule::new("GET", &format!("{}/base\\.tar", name(second)), Fault::Delay(PATIENCE)));
    let asked = chained.asked("data", &["--bin-dir", &bin]);
    let killed = place.home.start(&asked.iter().map(String::as_str).collect::<Vec<_>>());
    let data = place.home.path().join("data");
    let own = data.join("tidelog.chain").join(name(second));
    wait_until("the last one to be fetched", PATIENCE, || own.exists());
    assert!(data.join("tidelog.chain").join(name(full)).join("global/pg_control").exists());
    killed.kill();
    place.home.write("tidelog.toml", &config);
    assert!(!data.join("global/pg_control").exists(), "Postgres would start on it");

    // Killed while it combined: what came of that is nobody's, and one file of the full one is not whole.
    let combined = data.join("tidelog.chain/combined-1/base");
    std::fs::create_dir_all(&combined).expect("made");
    std::fs::write(combined.join("stray"), b"x").expect("written");
    std::fs::create_dir_all(data.join("base/5")).expect("made");
    std::fs::write(data.join("base/5/112"), b"half").expect("moved before the kill");
    std::fs::write(data.join("tidelog.chain").join(name(full)).join("PG_VERSION"), b"1").expect("cut off");
    // A program that fails leaves what was fetched, and says what happened.
    let broken = place.home.path().join("broken");
    std::fs::create_dir(&broken).expect("made");
    let script = "#!/bin/sh\n[ \"$1\" = --version ] && echo 'pg_combinebackup (PostgreSQL) 18.1' && exit\necho 'error: No space left on device' >&2\nexit 1\n";
    let program = broken.join("pg_combinebackup");
    std::fs::write(&program, script).expect("written");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("its rights");
    let said = chained.tried("data", &["--bin-dir", &broken.display().to_string()]).expect(1).stderr;
    assert!(said.contains("No space left on device") && said.contains("run the same command again"), "{said}");
    assert!(said.contains("for the base backups and about") && said.contains("are free"), "{said}");
    let (postgres, said) = chained.restored("data", Version::V18, last.0);
    assert!(said["kept_bytes"].as_u64() > Some(1 << 20) && said["fetched_bytes"].as_u64() < Some(1 << 20), "{said}");
    assert_eq!(
        (markers(&postgres), sums(&postgres)),
        ("4|4".to_owned(), last.1.clone()),
        "{}",
        tail(&postgres.log(), 20)
    );
    drop(postgres);
    // The same archive in a bucket (EnterpriseDB/barman#1205).
    let bucket = s3_with(&place.home.path().join("archive"));
    place.home.write("tidelog.toml", &in_bucket(&bucket, &place.home));
    let (postgres, _) = chained.restored("from-a-bucket", Version::V18, last.0);
    assert_eq!((markers(&postgres), sums(&postgres)), ("4|4".to_owned(), last.1.clone()));
}

#[test]
fn what_cannot_be_incremental_is_told_and_a_service_takes_a_full_one() {
    let old = Place::new(Version::V16);
    old.mark(1);
    old.back_up();
    let said = old.tidelog(&["backup", "--incremental"]).expect(1).stderr;
    assert!(said.contains("PostgreSQL 17 or newer"), "{said}");
    let checked = asked_by_check(&old);
    assert!(checked.contains("all are full ones") && checked.contains("PostgreSQL 17 or newer"), "{checked}");
    drop(old);

    let place = Place::new(Version::V17);
    place.mark(1);
    let said = place.tidelog(&["backup", "--incremental"]).expect(1).stderr;
    assert!(said.contains("no base backup that an incremental one could build on"), "{said}");
    place.back_up();
    let said = place.tidelog(&["backup", "--incremental"]).expect(1).stderr;
    assert!(said.contains("summarize_wal is off") && said.contains("ALTER SYSTEM SET summarize_wal = on"), "{said}");
    let said = asked_by_check(&place);
    assert!(said.contains("all are full ones") && said.contains("ALTER SYSTEM SET summarize_wal = on"), "{said}");
    summarize(&place, "on", "1");
    let said = asked_by_check(&place);
    assert!(!said.contains("full ones"), "{said}");
    let full = place.back_up();
    place.mark(2);
    let own = incremental(&place);
    assert_eq!(own["parent"], full["name"]);
    // The service does the same behind a gap of the archive: the server has its summaries, and the new one needs no WAL of before.
    place.wait_archived();
    lose_wal(&place);
    place.archive(&place.postgres, "[postgres.base_backup]\nincrementals = 2\n");
    let third = taken(&place, 4);
    assert_eq!(third["parent"], own["name"]);
    place.mark(3_000);
    place.wait_archived();
    let bin = bin_dir(Version::V17);
    let data = place.restore("behind", &["--bin-dir", &bin]);
    let postgres = place.adopt(&data, Version::V17);
    wait_recovered(&postgres);
    assert_eq!(markers(&postgres), markers(&place.postgres));
    drop(postgres);
    // Two are enough, and without summaries there would be none: a full one comes each time.
    lose_wal(&place);
    place.archive(&place.postgres, "[postgres.base_backup]\nincrementals = 2\n");
    assert_eq!(taken(&place, 5)["parent"], Value::Null);
    summarize(&place, "off", "0");
    for summary in std::fs::read_dir(place.postgres.wal_dir().join("summaries")).expect("a directory").flatten() {
        std::fs::remove_file(summary.path()).expect("removed");
    }
    place.wait_archived();
    lose_wal(&place);
    summarize(&place, "on", "1");
    let said = place.tidelog(&["backup", "--incremental"]).expect(1).stderr;
    assert!(
        said.contains("the server takes no incremental base backup on") && said.contains("take a full one with"),
        "{said}"
    );
    place.archive(&place.postgres, "[postgres.base_backup]\nincrementals = 2\n");
    assert_eq!(taken(&place, 6)["parent"], Value::Null);
    let said = place.program().as_ref().expect("it archives").output();
    assert!(said.contains("an incremental base backup cannot be taken: a full one is"), "{said}");
}

#[test]
fn what_no_restore_could_read_is_no_parent() {
    let place = Place::with(Version::V17, &SUMMARIZED);
    let fast = place.home.path().join("fast");
    std::fs::create_dir(&fast).expect("a directory");
    place.postgres.psql(&format!("CREATE TABLESPACE fast LOCATION '{}'", fast.display()));
    place.mark(1);
    let full = place.back_up();
    // A part of the parent is not there.
    let part = folder(&place, &full).join("base.tar.0000000.zst");
    let kept = place.home.path().join("kept");
    std::fs::rename(&part, &kept).expect("moved");
    let said = place.tidelog(&["backup", "--incremental"]).expect(3).stderr;
    assert!(said.contains("nothing can build on") && said.contains("base.tar.0000000.zst"), "{said}");
    assert!(said.contains("`tidelog backup`"), "{said}");
    std::fs::rename(&kept, &part).expect("moved back");
    let own = incremental(&place);
    assert_eq!(own["parent"], full["name"]);

    // pg_checksums writes every page of the server, and no log of that.
    place.wait_archived();
    place.stop_archiving();
    place.postgres.stop();
    let mut enable = place.postgres.client("pg_checksums");
    enable.args(["--enable", "--no-sync", "-D"]).arg(place.postgres.data_dir());
    program::run(enable).expect(0);
    place.postgres.restart();
    place.archive(&place.postgres, "[postgres.base_backup]\nincrementals = 6\nevery = \"1h\"\n");
    place.mark(2);
    let said = place.tidelog(&["backup", "--incremental"]).expect(1).stderr;
    assert!(said.contains("nothing can build on") && said.contains("pg_checksums"), "{said}");
    // The service takes a full one, on which the next ones build.
    lose_wal(&place);
    place.archive(&place.postgres, "[postgres.base_backup]\nincrementals = 6\n");
    let full = taken(&place, 3);
    assert_eq!(full["parent"], Value::Null);
    place.mark(5_000);
    let own = incremental(&place);
    assert_eq!(own["parent"], full["name"]);
    place.mark(5_001);
    place.wait_archived();
    place.stop_archiving();

    // What is refused before anything was restored holds nothing; what can be gone on with does.
    let (bin, data) = (bin_dir(Version::V17), place.home.path().join("restored"));
    let asked = ["restore-postgres", "--bin-dir", &bin, "--into", &data.display().to_string()];
    let moved = format!("{}={}", fast.display(), place.home.path().join("fast-restored").display());
    let said = place.tidelog(&asked).expect(2).stderr;
    assert!(said.contains("--tablespace"), "{said}");
    assert_eq!(holds(&place), 0);
    std::fs::rename(&part, &kept).expect("moved");
    let part_of_last = folder(&place, &own).join("base.tar.0000000.zst");
    let kept_of_last = place.home.path().join("kept-of-last");
    std::fs::rename(&part_of_last, &kept_of_last).expect("moved");
    let mapped = [&asked[..], &["--tablespace", &moved]].concat();
    place.tidelog(&mapped).expect(3);
    assert_eq!(holds(&place), 1);
    std::fs::rename(&kept_of_last, &part_of_last).expect("moved back");
    std::fs::rename(&kept, &part).expect("moved back");
    place.tidelog(&mapped).expect(0);
    let postgres = place.adopt(&data, Version::V17);
    wait_recovered(&postgres);
    assert_eq!(markers(&postgres), markers(&place.postgres));
}

/// What `check --connect` says where incremental backups are wanted.
fn asked_by_check(place: &Place) -> String {
    let config = std::fs::read_to_string(place.home.path().join("tidelog.toml")).expect("the configuration");
    place.home.write("wanted.toml", &format!("{config}[postgres.base_backup]\nincrementals = 2\n"));
    place.home.run(&["-c", "wanted.toml", "check", "--connect"]).expect(0).stdout
}

/// The object with the last of the log.
/// A disk on which not even the unpacked backups have room is left as it is.
fn refused_without_room(chained: &Chained) {
    if !may_mount() {
        return;
    }
    let asked = chained.asked("small", &["--bin-dir", &bin_dir(Version::V18)]).join(" ");
    let script = format!(
        "mkdir small && mount -t tmpfs -o size=24m tmpfs small
         \"$0\" {asked} || {{ code=$?; ls -A small; exit $code; }}"
    );
    let refused = program::run(chained.place.home.shell(&script)).expect(1);
    let said = &refused.stderr;
    assert!(
        said.contains("/small: restoring takes ") && said.contains(" MiB are free") && said.contains("--backup NAME"),
        "{said}"
    );
    assert_eq!((refused.stdout.as_str(), holds(&chained.place)), ("", 0), "{said}");
    assert!(!chained.place.home.path().join("small-fast=2").exists());
}

fn last_segment(place: &Place) -> PathBuf {
    let mut find = Command::new("find");
    find.arg(place.home.path().join("archive/segments")).args(["-name", "*.wal.zst"]);
    let found = program::run(find).expect(0).stdout;
    found.lines().max().expect("there is log").into()
}

/// How many holds there are.
fn holds(place: &Place) -> usize {
    let mut find = Command::new("find");
    find.arg(place.home.path().join("archive/holds")).args(["-name", "*.json"]);
    program::run(find).expect(0).stdout.lines().count()
}

/// Switches the summaries of the log, and waits until the server has so many processes that make them.
fn summarize(place: &Place, value: &str, processes: &str) {
    place.postgres.psql(&format!("ALTER SYSTEM SET summarize_wal = {value}"));
    place.postgres.reload();
    wait_until("the summarizer to follow", PATIENCE, || {
        place.postgres.psql("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsummarizer'") == processes
    });
}

/// The last of so many base backups, when it can be used.
fn taken(place: &Place, count: usize) -> Value {
    wait_for("another base backup", PATIENCE, || {
        place.program().as_mut().expect("it archives").assert_running();
        let listing = place.tidelog(&["restore-postgres", "--list", "--json"]).expect(0).json();
        let rows = listing["backups"].as_array().expect("a list");
        rows.last().filter(|row| rows.len() == count && row["usable"] == true).cloned()
    })
}

/// A full one of timeline 1, an incremental one of timeline 2, and one of timeline 2 on that.
#[test]
fn a_chain_goes_over_a_promotion() {
    let version = Version::V18;
    let place = Place::with(version, &SUMMARIZED);
    let options = || PostgresOptions { version, config: &SUMMARIZED, ..PostgresOptions::default() };
    let standby = place.postgres.standby(options());
    place
        .postgres
        .psql("CREATE TABLE grown AS SELECT n, repeat(md5(n::text), 20) AS text FROM generate_series(1, 9000) AS n");
    place.mark(1);
    let full = place.back_up();
    place.postgres.psql("UPDATE grown SET text = 'on 1' WHERE n = 17");
    place.mark(2);
    place.wait_archived();
    wait_until("the standby to have it all", PATIENCE, || markers(&standby) == "2|2");
    standby.promote();
    place.archive(&standby, "");
    // Until it is streamed, the checkpoint of a base backup may remove WAL of before: a gap, for which a full one is taken.
    wait_until("the standby's log to be streamed", PATIENCE, || {
        standby.psql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "1"
    });
    standby.psql("UPDATE grown SET text = 'on 2' WHERE n = 8000; INSERT INTO markers VALUES (3, 'x')");
    let first = incremental(&place);
    assert_eq!(first["parent"], full["name"], "{first}");
    standby.psql("DELETE FROM grown WHERE n % 100 = 0; INSERT INTO markers VALUES (4, 'x')");
    let second = incremental(&place);
    assert_eq!(second["parent"], first["name"], "{second}");
    standby.psql("INSERT INTO markers VALUES (5, 'x')");
    place.wait_archived_of(&standby, 2);
    let expected = (markers(&standby), sums(&standby));
    let data = place.restore("restored", &["--bin-dir", &bin_dir(version)]);
    let restored = place.adopt(&data, version);
    wait_recovered(&restored);
    assert_eq!((markers(&restored), sums(&restored)), expected, "{version:?}");
    let mut amcheck = restored.client("pg_amcheck");
    amcheck.args(["--install-missing", "--all"]);
    program::run(amcheck).expect(0);
    place.tidelog(&["verify"]).expect(0);
}

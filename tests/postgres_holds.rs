//! What retention and tidying leave alone: what a restore and its recovery still need, and a backup that is being written.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::postgres_path::{KEPT, wait_older};
use crate::postgres_restore::{PATIENCE, Place, markers, wait_recovered};
use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::process::temporary_directory;
use crate::rig::{wait_for, wait_until};

/// Backups, and a restore of the first one that is unpacked and not started, while retention lets all but the present go. It begins
/// some seconds after this, and finds a file of WAL before the first backup, which nobody holds.
fn restored_and_overtaken(place: &Place) -> PathBuf {
    place.mark(1);
    place.postgres.psql("SELECT pg_switch_wal()");
    place.back_up();
    let (target, _) = place.mark(2);
    place.wait_archived();
    let data = place.restore("held", &["--to-lsn", &target.to_string()]);
    place.back_up();
    place.mark(3);
    place.wait_archived();
    wait_older(&place.postgres);
    place.mark(4);
    place.wait_archived();
    place.archive(&place.postgres, KEPT);
    data
}

/// How many base backups are listed.
fn listed(place: &Place) -> usize {
    let listing = place.tidelog(&["restore-postgres", "--list", "--json"]).expect(0).json();
    listing["backups"].as_array().expect("a list").len()
}

#[test]
fn what_a_restore_and_its_recovery_need_is_kept_while_they_last() {
    let place = Place::new(Version::Debian);
    let data = restored_and_overtaken(&place);
    wait_until("the service's own retention", PATIENCE, || {
        place.program().as_ref().expect("it archives").output().contains("retention expired WAL")
    });
    assert_eq!(listed(&place), 2, "it is held");
    let said = place.tidelog(&["expire", "--json"]).expect(0).json();
    assert_eq!((&said["backups"], &said["segments"]), (&0.into(), &0.into()), "it is held: {said}");
    let restored = place.adopt(&data, Version::Debian);
    wait_recovered(&restored);
    assert_eq!(markers(&restored), "2|2");
    // Nobody holds it any more.
    place.stop_archiving();
    place.forget_holds();
    let dry = place.tidelog(&["expire", "--dry-run", "--json"]).expect(0).json();
    assert!(dry["backups"] == 1 && dry["segments"].as_u64() > Some(0), "{dry}");
    place.archive(&place.postgres, KEPT);
    wait_until("the service to expire what nobody holds", PATIENCE, || listed(&place) == 1);
    place.stop_archiving();
    let said = place.tidelog(&["expire", "--json"]).expect(0).json();
    assert_eq!((&said["backups"], &said["segments"]), (&0.into(), &0.into()), "{said}");
    // The parts of what was expired are there for an hour, and then no more.
    let report = place.tidelog(&["verify", "--json"]).expect(0).json();
    assert_eq!((&report["backups"], &report["leftovers"]), (&1.into(), &1.into()), "{report}");
    for folder in backup_folders(&place).iter().filter(|folder| folder.join("removed.json").exists()) {
        make_older(folder, Duration::from_secs(3_601));
    }
    place.tidelog(&["expire"]).expect(0);
    let report = place.tidelog(&["verify", "--json"]).expect(0).json();
    assert_eq!((&report["backups"], &report["leftovers"]), (&1.into(), &0.into()), "{report}");
}

#[test]
fn a_restore_waits_for_a_retention_that_may_not_have_seen_its_hold() {
    let place = Place::new(Version::Debian);
    place.mark(1);
    let backup = place.back_up();
    place.wait_archived();
    let holds = place.home.path().join("archive/holds/postgres").join(backup["system_id"].as_str().expect("an id"));
    std::fs::create_dir_all(&holds).expect("a folder");
    let under_way = holds.join("gives-up-x");
    std::fs::write(&under_way, "{}").expect("written");
    let into = place.home.path().join("restored");
    let args = ["-c", "tidelog.toml", "restore-postgres", "--into", &into.display().to_string()];
    let mut restoring = place.home.start(&args);
    wait_until("the restore to wait", PATIENCE, || {
        restoring.assert_running();
        restoring.output().contains("retention is expiring something")
    });
    assert!(!into.join("PG_VERSION").exists(), "nothing is unpacked before");
    // It expired just what was planned with.
    let commit = place.home.path().join("archive").join(format!(
        "backups/postgres/system={}/{}/backup.json",
        backup["system_id"].as_str().expect("an id"),
        backup["name"].as_str().expect("a name")
    ));
    let kept = commit.with_extension("kept");
    std::fs::rename(&commit, &kept).expect("taken away");
    std::fs::remove_file(&under_way).expect("removed");
    wait_until("the restore to end", PATIENCE, || !restoring.is_running());
    let said = restoring.output();
    assert!(restoring.wait(PATIENCE) != 0 && said.contains("retention expired the base backup"), "{said}");
    std::fs::rename(&kept, &commit).expect("brought back");
    let restored = place.adopt(&place.restore("again", &[]), Version::Debian);
    wait_recovered(&restored);
    assert_eq!(markers(&restored), "1|1");
}

#[test]
fn a_recovery_of_which_nobody_knows_holds_what_it_asks_for() {
    let place = Place::new(Version::Debian);
    place.mark(1);
    place.back_up();
    place.mark(2);
    place.wait_archived();
    let data = place.restore("standby", &["--action", "pause", "--to-lsn", &place.end(1).to_string()]);
    // As a tool of before, or a hand, would leave it.
    place.forget_holds();
    std::fs::remove_dir_all(data.join("pg_wal/.tidelog")).expect("it can go");
    let restored = place.adopt(&data, Version::Debian);
    restored.wait_ready();
    let held = wait_for("a hold of the recovery", PATIENCE, || std::fs::read_dir(holds(&place)).ok()?.next());
    let text = std::fs::read_to_string(held.expect("a hold").path()).expect("a hold");
    assert!(text.contains("a recovery"), "{text}");
}

#[test]
fn a_restore_from_an_archive_that_takes_no_hold_goes_on_and_says_so() {
    // Its log lies elsewhere, which a base backup does not tell (wal-g/cnpg-plugin-wal-g#69).
    let elsewhere = temporary_directory("wal");
    let waldir = format!("--waldir={}", elsewhere.path().join("wal").display());
    let options = PostgresOptions { initdb: &[waldir.as_str()], ..PostgresOptions::default() };
    let place = Place::of(Postgres::start(options));
    assert!(place.postgres.data_dir().join("pg_wal").is_symlink());
    place.mark(1);
    place.back_up();
    place.wait_archived();
    place.stop_archiving();
    // Root may write anywhere, but not into a file.
    place.forget_holds();
    std::fs::write(place.home.path().join("archive/holds"), "").expect("a file");
    let into = place.home.path().join("restored").display().to_string();
    let said = place.tidelog(&["restore-postgres", "--into", &into]).expect(0);
    assert!(said.stderr.contains("no hold can be written"), "{}", said.stderr);
    let restored = place.adopt(Path::new(&into), Version::Debian);
    wait_recovered(&restored);
    assert_eq!(markers(&restored), "1|1");
    assert!(!restored.data_dir().join("pg_wal").is_symlink());
}

#[test]
fn the_parts_of_a_killed_backup_are_found_and_removed_after_their_time() {
    let place = Place::new(Version::Debian);
    place.mark(1);
    let sound = place.back_up();
    place.archive(&place.postgres, "[postgres.base_backup]\nmax_rate = \"8MiB\"\n[retention]\npostgres = \"7d\"\n");
    let backup = place.home.start(&["-c", "tidelog.toml", "backup"]);
    let name = sound["name"].as_str().expect("a name").to_owned();
    let folder = wait_for("a part of the next backup", PATIENCE, || {
        let mut others = backup_folders(&place).into_iter().filter(|folder| !folder.ends_with(&name));
        others.find(|folder| folder.join("base.tar.0000000.zst").exists())
    });
    backup.kill();
    let report = place.tidelog(&["verify", "--json"]).expect(0).json();
    assert_eq!((&report["backups"], &report["leftovers"]), (&1.into(), &1.into()), "{report}");
    assert!(report["leftover_bytes"].as_u64().is_some_and(|bytes| bytes > 1_000), "{report}");
    std::fs::write(folder.join("notes.txt"), "mine").expect("a file of somebody else");
    for folder in backup_folders(&place) {
        make_older(&folder, Duration::from_secs(23 * 3_600));
    }
    place.tidelog(&["expire"]).expect(0);
    assert!(folder.join("base.tar.0000000.zst").exists(), "it may still be written");
    for folder in backup_folders(&place) {
        make_older(&folder, Duration::from_secs(3_600 + 1));
    }
    // The service does it, too, some seconds after it begins.
    place.archive(&place.postgres, "[retention]\npostgres = \"7d\"\n");
    wait_until("the parts to be removed", PATIENCE, || !folder.join("base.tar.0000000.zst").exists());
    assert!(folder.join("notes.txt").exists());
    let report = place.tidelog(&["verify", "--json"]).expect(0).json();
    assert_eq!((&report["backups"], &report["leftovers"]), (&1.into(), &0.into()), "{report}");
    place.restore("sound", &["--backup", &name]);
}

fn holds(place: &Place) -> PathBuf {
    let systems = place.home.path().join("archive/holds/postgres");
    let system = std::fs::read_dir(&systems).ok().and_then(|mut systems| systems.next());
    system.map_or(systems, |system| system.expect("a folder").path())
}

/// The folders of all base backups.
fn backup_folders(place: &Place) -> Vec<PathBuf> {
    let systems = place.home.path().join("archive/backups/postgres");
    let system = std::fs::read_dir(systems).expect("backups").next().expect("a system").expect("a folder").path();
    std::fs::read_dir(system).expect("a system").map(|folder| folder.expect("a folder").path()).collect()
}

/// Dates all files of a folder back.
fn make_older(folder: &Path, by: Duration) {
    for file in std::fs::read_dir(folder).expect("a folder") {
        let file = File::options().write(true).open(file.expect("a file").path()).expect("a file");
        let written = file.metadata().and_then(|facts| facts.modified()).expect("a date");
        file.set_modified(written - by).expect("it can be dated back");
    }
}

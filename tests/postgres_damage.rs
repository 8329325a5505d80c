//! One damaged object of a base backup, or of a timeline, against the sound ones beside it.
//!
//! ```text
//!   backup A  sound          restore-postgres, with --backup A or without: comes back, with a warning
//!   backup B  backup.json ✗  ls, verify: name it once, and end with 3; run: goes on
//! ```

use std::path::PathBuf;

use crate::postgres_restore::{PATIENCE, Place, markers, wait_recovered};
use crate::rig::postgres::Version;
use crate::rig::wait_until;

/// The `backup.json` of a backup.
fn commit_of(place: &Place, name: &str) -> PathBuf {
    let folder = place.home.path().join("archive/backups/postgres");
    let system = std::fs::read_dir(folder).expect("backups").next().expect("a system").expect("a folder").path();
    system.join(name).join("backup.json")
}

#[test]
fn a_damaged_backup_keeps_nobody_from_the_sound_ones() {
    let place = Place::new(Version::Debian);
    place.mark(1);
    let name = |backup: serde_json::Value| backup["name"].as_str().expect("a name").to_owned();
    let good = name(place.back_up());
    place.mark(2);
    let bad = name(place.back_up());
    place.mark(3);
    place.wait_archived();
    let file = commit_of(&place, &bad);
    let sound = std::fs::read(&file).expect("a backup");
    let other = std::fs::read(commit_of(&place, &good)).expect("a backup");
    let newer = br#"{"format":9,"name":"from another version"}"#;
    for damage in [&b""[..], &sound[..sound.len() / 2], b"\0\0\0\0\0\0\0\0", newer, &other] {
        std::fs::write(&file, damage).expect("damage can be done");
        for target in [&[][..], &["--backup", &good]] {
            let into = place.home.path().join("data");
            let shown = into.display().to_string();
            let said = place.tidelog(&[&["restore-postgres", "--into", &shown], target].concat()).expect(0);
            assert_eq!(said.stderr.matches("a base backup is passed over").count(), 1, "{}", said.stderr);
            assert!(said.stdout.contains(&good) && said.stderr.contains(&*bad), "{}", said.stderr);
            std::fs::remove_dir_all(into).expect("it can go");
        }
        let into = place.home.path().join("data").display().to_string();
        let said = place.tidelog(&["restore-postgres", "--into", &into, "--backup", &bad]);
        assert_ne!(said.status, Some(0));
        assert!(said.stderr.contains(&bad) && said.stderr.contains("leave --backup out"), "{}", said.stderr);
        let listed = place.tidelog(&["ls"]).expect(3);
        assert!(listed.stdout.contains("recoverable: Postgres from") && listed.stderr.contains(&bad), "{listed:?}");
        let report = place.tidelog(&["verify", "--json"]).expect(3).json();
        let errors = report["errors"].as_array().expect("errors");
        assert!(
            errors.len() == 1 && errors[0]["object"].as_str().is_some_and(|object| object.contains(&*bad)),
            "{report}"
        );
    }
    // A process that starts beside it takes backups by the clock, merges, and says what can be recovered.
    place.archive(&place.postgres, "[http]\nlisten = \"127.0.0.1:0\"\n");
    place.mark(4);
    place.wait_archived();
    wait_until("it to tell of the damaged one", PATIENCE, || {
        place.program().as_mut().expect("it archives").assert_running();
        place.program().as_ref().is_some_and(|program| program.output().contains("a base backup is passed over"))
    });
    let said = place.program().as_ref().expect("it archives").output();
    assert!(!said.contains("the maintenance of the archived WAL is put off"), "{said}");
    let data = place.restore("again", &[]);
    let postgres = place.adopt(&data, Version::Debian);
    wait_recovered(&postgres);
    assert_eq!(markers(&postgres), "4|4");
    std::fs::write(&file, &sound).expect("it is mended");
    place.tidelog(&["verify"]).expect(0);
    place.tidelog(&["ls"]).expect(0);
}

#[test]
fn a_damaged_history_keeps_nobody_from_the_other_timelines() {
    let place = Place::new(Version::Debian);
    let standby = place.postgres.standby(Default::default());
    place.mark(1);
    place.back_up();
    place.mark(2);
    place.wait_archived();
    wait_until("the standby to have it all", PATIENCE, || markers(&standby) == "2|2");
    standby.promote();
    place.archive(&standby, "");
    standby.psql("INSERT INTO markers VALUES (3, 'x')");
    place.wait_archived_of(&standby, 2);
    place.stop_archiving();
    let folder = place.home.path().join("archive/segments/postgres");
    let system = std::fs::read_dir(folder).expect("WAL").next().expect("a system").expect("a folder").path();
    let history = system.join("history/00000002.history");
    let sound = std::fs::read(&history).expect("a history");
    std::fs::write(&history, b"2\tnonsense\n").expect("damage can be done");
    let report = place.tidelog(&["verify", "--json"]).expect(3).json();
    assert!(report["errors"].to_string().contains("00000002.history"), "{report}");
    let into = place.home.path().join("refused").display().to_string();
    let said = place.tidelog(&["restore-postgres", "--into", &into]);
    assert!(said.status != Some(0) && said.stderr.contains("--timeline"), "{}", said.stderr);
    let data = place.restore("first", &["--timeline", "1", "--action", "pause"]);
    assert!(data.join("recovery.signal").exists());
    std::fs::write(&history, sound).expect("it is mended");
    place.restore("newest", &[]);
    place.tidelog(&["verify"]).expect(0);
}

#[test]
fn a_backup_that_was_exchanged_or_never_entered_is_used_by_nobody() {
    let place = Place::new(Version::Debian);
    place.mark(1);
    let name = |backup: serde_json::Value| backup["name"].as_str().expect("a name").to_owned();
    let first = name(place.back_up());
    place.mark(2);
    let second = name(place.back_up());
    place.mark(3);
    place.wait_archived();
    place.stop_archiving();
    // It says that it reaches from an earlier place: sound by itself, and wrong.
    let file = commit_of(&place, &second);
    let sound = std::fs::read_to_string(&file).expect("a backup");
    std::fs::write(&file, sound.replace("\"label\"", "\"lable\": \"\", \"label\"")).expect("it is exchanged");
    let report = place.tidelog(&["verify", "--json"]).expect(3).json();
    assert!(report["errors"].to_string().contains("is not the one that was entered"), "{report}");
    let into = place.home.path().join("exchanged").display().to_string();
    let said = place.tidelog(&["restore-postgres", "--into", &into]).expect(0);
    assert!(said.stdout.contains(&first) && said.stderr.contains("is not the one that was entered"), "{said:?}");
    std::fs::write(&file, &sound).expect("it is mended");
    place.tidelog(&["verify"]).expect(0);
    // As a process leaves it that is killed before it has entered its backup.
    let folder = file.parent().expect("a folder");
    let late = folder.with_file_name("29990101T000000Z-0123456789ab");
    let copied = std::process::Command::new("cp").arg("-a").arg(folder).arg(&late).status().expect("cp runs");
    assert!(copied.success());
    let renamed = sound.replace(&*second, "29990101T000000Z-0123456789ab");
    std::fs::write(late.join("backup.json"), renamed).expect("written");
    let report = place.tidelog(&["verify", "--json"]).expect(0).json();
    assert_eq!((&report["leftovers"], &report["errors"]), (&1.into(), &serde_json::json!([])), "{report}");
    let into = place.home.path().join("entered").display().to_string();
    let said = place.tidelog(&["restore-postgres", "--into", &into]).expect(0);
    assert!(said.stdout.contains(&second), "{said:?}");
    // What somebody has removed is told until one says that it may be gone.
    std::fs::remove_dir_all(folder).expect("removed");
    let report = place.tidelog(&["verify"]).expect(3);
    assert!(report.stdout.contains("a base backup cannot be read") && report.stdout.contains("--repair"), "{report:?}");
    let report = place.tidelog(&["verify", "--repair", "--json"]).expect(0).json();
    assert_eq!(report["repaired"][0]["let_go"], serde_json::json!([second]), "{report}");
    place.tidelog(&["verify"]).expect(0);
    let into = place.home.path().join("left").display().to_string();
    let said = place.tidelog(&["restore-postgres", "--into", &into]).expect(0);
    assert!(said.stdout.contains(&first), "{said:?}");
    // The last one may be somewhere else: that of all is no reason to forget them.
    std::fs::rename(commit_of(&place, &first).parent().expect("a folder"), place.home.path().join("kept"))
        .expect("moved");
    let said = place.tidelog(&["verify", "--repair"]).expect(3).stderr;
    assert!(said.contains("none of the base backups that count is there"), "{said}");
}

#[test]
fn retention_goes_on_beside_a_damaged_backup_and_a_damaged_chain() {
    let place = Place::new(Version::Debian);
    place.mark(1);
    let name = |backup: serde_json::Value| backup["name"].as_str().expect("a name").to_owned();
    name(place.back_up());
    place.mark(2);
    let bad = name(place.back_up());
    place.mark(3);
    name(place.back_up());
    place.mark(4);
    place.wait_archived();
    place.stop_archiving();
    let config = std::fs::read_to_string(place.home.path().join("tidelog.toml")).expect("the configuration");
    place.home.write("tidelog.toml", &format!("{config}[retention]\npostgres = \"1s\"\n"));
    std::fs::write(commit_of(&place, &bad), b"damaged").expect("damage can be done");
    let other = place.home.path().join("archive/manifest/postgres/123");
    std::fs::create_dir(&other).expect("a folder");
    place.home.write("archive/manifest/postgres/123/00000000000000000000.json", "damaged");
    // The first one is not needed a second later.
    wait_until("a backup not to be needed", PATIENCE, || {
        place.tidelog(&["expire", "--dry-run", "--json"]).expect(3).json()["backups"] == 1
    });
    let said = place.tidelog(&["expire", "--json"]).expect(3);
    assert_eq!(said.stderr.matches("postgres/123 cannot be read").count(), 1, "{}", said.stderr);
    let gone = said.json();
    assert_eq!(gone["backups"], 1, "{gone}");
    std::fs::remove_dir_all(other).expect("it can go");
    let said = place.tidelog(&["expire"]).expect(3);
    assert_eq!(said.stderr.matches("are passed over").count(), 1, "it stays, and is named once: {}", said.stderr);
    assert!(said.stderr.contains(&*bad), "{}", said.stderr);
    let data = place.restore("restored", &[]);
    let postgres = place.adopt(&data, Version::Debian);
    wait_recovered(&postgres);
    assert_eq!(markers(&postgres), "4|4");
}

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
    assert!(!said.contains("the upkeep of the archived WAL is put off"), "{said}");
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

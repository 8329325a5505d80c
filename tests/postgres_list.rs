//! `restore-postgres --list`: what it says of a base backup, a restore from that backup accepts.

use std::path::Path;

use chrono::DateTime;
use serde_json::Value;

use crate::postgres_path::recovered_and_archived;
use crate::postgres_restore::Place;
use crate::rig::postgres::Version;

fn listed(place: &Place, code: i32) -> Value {
    place.tidelog(&["restore-postgres", "--list", "--json"]).expect(code).json()
}

/// The bytes of all files below a folder.
fn size_of(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).expect("a folder").flatten();
    files.map(|file| file.metadata().expect("a file").len()).sum()
}

#[test]
fn what_is_listed_of_a_backup_is_what_it_reaches() {
    let place = Place::new(Version::Debian);
    place.wait_archived();
    assert_eq!(listed(&place, 0)["backups"], serde_json::json!([]));
    let said = place.tidelog(&["restore-postgres", "--list"]).expect(0).stdout;
    assert!(said.contains("no base backup: `tidelog backup`"), "{said}");

    // The first leads over the switch to timeline 2, the second lies behind it.
    let again = recovered_and_archived(Version::Debian, &place);
    let listing = listed(&place, 0);
    let rows = listing["backups"].as_array().expect("a list");
    let ways: Vec<&Value> = rows.iter().map(|row| &row["reaches"]["timelines"]).collect();
    assert_eq!(ways, [&serde_json::json!([1, 2]), &serde_json::json!([1])], "{listing}");
    for row in rows {
        assert_eq!((&row["usable"], &row["server_version"]), (&true.into(), &15.into()), "{row}");
        let path = row["path"].as_str().expect("a path");
        let commit = place.home.path().join("archive").join(path).join("backup.json");
        let stored = size_of(commit.parent().expect("a folder")) - commit.metadata().expect("a file").len();
        assert_eq!(row["stored_bytes"].as_u64(), Some(stored), "{row}");
        assert!(row["bytes"].as_u64() > Some(stored) && row["age_seconds"].as_u64() < Some(600), "{row}");
        let reaches = &row["reaches"];
        let timeline = reaches["timelines"].as_array().and_then(|all| all.last()).expect("one").to_string();
        let restore = |option: &str, target: &str| {
            let name = row["name"].as_str().expect("a name");
            let data = place.restore("data", &[option, target, "--backup", name, "--timeline", &timeline]);
            std::fs::remove_dir_all(data).expect("it can go");
        };
        for end in ["from", "to"] {
            let moment = reaches[end].as_str().unwrap_or_else(|| panic!("no {end} in {row}"));
            DateTime::parse_from_rfc3339(moment).expect("a time");
            restore("--to-time", moment);
        }
        restore("--to-lsn", reaches["start"].as_str().expect("an LSN"));
        restore("--to-lsn", reaches["end"].as_str().expect("an LSN"));
    }
    let table = place.tidelog(&["restore-postgres", "--list"]).expect(0).stdout;
    assert!(table.starts_with("PostgreSQL 15, system ") && table.contains("1 → 2"), "{table}");
    drop(again);

    // One that cannot be read is named, and the others are listed all the same.
    let second = rows[1]["path"].as_str().expect("a path");
    std::fs::write(place.home.path().join("archive").join(second).join("backup.json"), b"{").expect("damage");
    let listing = listed(&place, 3);
    assert_eq!(listing["backups"].as_array().map(Vec::len), Some(1), "{listing}");
    assert_eq!(listing["errors"][0]["name"], rows[1]["name"], "{listing}");
    for wrong in [&["--list", "--into", "x"][..], &["--list", "--to", "latest"], &[]] {
        place.tidelog(&[&["restore-postgres"], wrong].concat()).expect(2);
    }
}

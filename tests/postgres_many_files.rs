//! Very many files: a backup of them that is called one can be restored.

use std::fs::File;

use tempfile::TempDir;

use crate::postgres_restore::Place;
use crate::rig::postgres::Version;

/// Files enough for a manifest of 45 MiB: it is sent in many pieces.
const FILES: usize = 200_000;

/// A directory in memory, where there is such a place: a disk takes a minute for so many files.
fn in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

#[test]
fn a_backup_of_two_hundred_thousand_files_is_restored() {
    let place = Place::new(Version::Debian);
    let (old, new) = (in_memory(), in_memory());
    place.postgres.psql(&format!("CREATE TABLESPACE many LOCATION '{}'", old.path().display()));
    let versions = std::fs::read_dir(old.path()).expect("a tablespace").next().expect("a version").expect("a folder");
    let folder = versions.path().join("filler");
    std::fs::create_dir(&folder).expect("a folder");
    for n in 0..FILES {
        File::create(folder.join(format!("{n:060}"))).expect("a file");
    }
    place.mark(1);
    let backup = place.back_up();
    assert_eq!(backup["usable"], true, "{backup}");
    let report = place.tidelog(&["verify", "--json"]).expect(0).json();
    assert_eq!((&report["errors"], &report["backups"]), (&serde_json::json!([]), &1.into()), "{report}");
    let moved = format!("{}={}", old.path().display(), new.path().display());
    place.restore("restored", &["--tablespace", &moved]);
    let restored = new.path().join(versions.file_name()).join("filler");
    assert_eq!(std::fs::read_dir(restored).expect("a folder").count(), FILES);
}

//! A data directory with very many files: a backup of it that is called one can be restored.

use std::fs::File;

use crate::postgres_restore::Place;
use crate::rig::postgres::Version;

/// Files enough for a manifest of 35 MiB: it is sent in several pieces.
const FILES: usize = 200_000;

#[test]
fn a_backup_of_two_hundred_thousand_files_is_restored() {
    let place = Place::new(Version::Debian);
    let folder = place.postgres.data_dir().join("filler");
    std::fs::create_dir(&folder).expect("a folder");
    for n in 0..FILES {
        File::create(folder.join(format!("{n:060}"))).expect("a file");
    }
    place.mark(1);
    let backup = place.back_up();
    assert_eq!(backup["usable"], true, "{backup}");
    place.wait_archived();
    let report = place.tidelog(&["verify", "--deep", "--json"]).expect(0).json();
    assert_eq!((&report["errors"], &report["backups"]), (&serde_json::json!([]), &1.into()), "{report}");
    let data = place.restore("restored", &[]);
    assert_eq!(std::fs::read_dir(data.join("filler")).expect("a folder").count(), FILES);
}

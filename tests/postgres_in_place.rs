//! Tablespaces in place: directories of `pg_tblspc` where others are links (`allow_in_place_tablespaces`, a developer's setting).
//!
//! ```text
//!   CREATE TABLESPACE … LOCATION ''     before the backup and after it, beside one that has a place
//!        └── backup ─► restore, --delta, an incremental chain (17, 18) ─► are the rows there, and is nothing linked?
//! ```

use std::path::{Path, PathBuf};

use crate::postgres_restore::{Place, wait_recovered};
use crate::rig::postgres::{Postgres, Version};
use crate::rig::process::tail;

/// A server with a tablespace that has a place, which it gives, and one in place, with a table in each.
fn with_tablespaces(version: Version, settings: &[(&str, &str)]) -> (Place, PathBuf) {
    let place = Place::with(version, &[&[("allow_in_place_tablespaces", "on")], settings].concat());
    let outside = place.home.path().join("outside");
    std::fs::create_dir(&outside).expect("a directory");
    place.postgres.psql(&format!("CREATE TABLESPACE outside LOCATION '{}'", outside.display()));
    place.postgres.psql("CREATE TABLESPACE early LOCATION ''");
    for tablespace in ["outside", "early"] {
        fill(&place, tablespace);
    }
    (place, outside)
}

fn fill(place: &Place, tablespace: &str) {
    let table = "AS SELECT generate_series(1, 5000) AS x";
    place.postgres.psql(&format!("CREATE TABLE in_{tablespace} TABLESPACE {tablespace} {table}"));
}

/// What is in the tables, and where their tablespaces lie, in the order of their names.
fn seen(postgres: &Postgres, tablespaces: &[&str]) -> String {
    let sums = tablespaces.iter().map(|one| postgres.psql(&format!("SELECT count(*), sum(x) FROM in_{one}")));
    let links = "SELECT count(*) FROM pg_tablespace WHERE pg_tablespace_location(oid) = 'pg_tblspc/' || oid";
    sums.chain([postgres.psql(links)]).collect::<Vec<_>>().join(" ")
}

const WHOLE: &str = "5000|12502500";

fn open(place: &Place, data: &Path, version: Version) -> Postgres {
    let postgres = place.adopt(data, version);
    wait_recovered(&postgres);
    postgres
}

/// The files of tablespaces in place that a table has pages in.
fn in_place_files(data: &Path) -> Vec<PathBuf> {
    let mut waiting = vec![data.join("pg_tblspc")];
    let mut files = Vec::new();
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(&folder).expect("a directory").flatten() {
            let kind = entry.file_type().expect("its kind");
            if kind.is_dir() {
                waiting.push(entry.path());
            } else if kind.is_file() && entry.metadata().expect("its size").len() >= 8192 {
                files.push(entry.path());
            }
        }
    }
    files
}

#[test]
fn a_tablespace_in_place_comes_back() {
    for version in [Version::V13, Version::Debian, Version::V16, Version::V18] {
        let (place, outside) = with_tablespaces(version, &[]);
        place.back_up();
        place.postgres.psql("INSERT INTO in_early SELECT generate_series(5001, 6000)");
        let before = place.mark(1).0.to_string();
        place.postgres.psql("CREATE TABLESPACE late LOCATION ''");
        fill(&place, "late");
        place.wait_archived();
        place.stop_archiving();
        let report = place.tidelog(&["verify", "--deep", "--json"]).expect(0).json();
        assert_eq!(report["errors"], serde_json::json!([]), "{version:?}: {report}");

        let moved = format!("{}={}", outside.display(), place.home.path().join("moved").display());
        let data = place.restore("data", &["--tablespace", &moved]);
        let postgres = open(&place, &data, version);
        let more = "6000|18003000";
        assert_eq!(seen(&postgres, &["outside", "early", "late"]), format!("{WHOLE} {more} {WHOLE} 2"), "{version:?}");
        let setting = "SELECT setting FROM pg_settings WHERE name = 'allow_in_place_tablespaces'";
        postgres.reload();
        crate::rig::wait_until("the settings of the recovery to go", crate::postgres_restore::PATIENCE, || {
            postgres.psql(setting) == "off"
        });
        postgres.stop();
        postgres.restart();
        assert_eq!(seen(&postgres, &["late"]), format!("{WHOLE} 2"), "{version:?}");
        postgres.stop();

        // Over what lies there, one file of which is damaged, to before the second one.
        let damaged = in_place_files(&data);
        assert!(!damaged.is_empty(), "{version:?}");
        damaged.iter().for_each(|file| std::fs::write(file, b"damaged").expect("damage can be done"));
        let place_of = data.display().to_string();
        let asked = ["restore-postgres", "--delta", "--into", &place_of, "--tablespace", &moved, "--to-lsn", &before];
        place.tidelog(&asked).expect(0);
        let again = open(&place, &data, version);
        assert_eq!(
            seen(&again, &["outside", "early"]),
            format!("{WHOLE} {more} 1"),
            "{version:?}: {}",
            tail(&again.log(), 20)
        );
        let said = place.tidelog(&["restore-postgres", "--into", &format!("{place_of}-2")]).expect(2).stderr;
        assert!(said.contains("--tablespace") && !said.contains("pg_tblspc"), "{version:?}: {said}");
    }
}

#[test]
fn a_chain_of_incremental_backups_has_its_tablespaces_in_place() {
    for version in [Version::V17, Version::V18] {
        let (place, outside) = with_tablespaces(version, &[("summarize_wal", "on")]);
        place.back_up();
        place.postgres.psql("UPDATE in_early SET x = x + 1 WHERE x <= 10");
        place.postgres.psql("CREATE TABLESPACE gone LOCATION ''");
        fill(&place, "gone");
        place.tidelog(&["backup", "--incremental"]).expect(0);
        place.postgres.psql("DROP TABLE in_gone");
        place.postgres.psql("DROP TABLESPACE gone");
        place.postgres.psql("CREATE TABLESPACE late LOCATION ''");
        fill(&place, "late");
        place.tidelog(&["backup", "--incremental"]).expect(0);
        place.wait_archived();
        place.stop_archiving();
        let moved = format!("{}={}", outside.display(), place.home.path().join("moved").display());
        let programs = version.program("pg_combinebackup");
        let programs = programs.parent().expect("a folder").display().to_string();
        let data = place.restore("data", &["--tablespace", &moved, "--bin-dir", &programs]);
        let postgres = open(&place, &data, version);
        let changed = "5000|12502510";
        let expected = format!("{WHOLE} {changed} {WHOLE} 2");
        assert_eq!(seen(&postgres, &["outside", "early", "late"]), expected, "{version:?}");
    }
}

//! A page whose checksum is wrong: the server tells of it at the end of a base backup, when everything was sent.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::postgres_restore::{PATIENCE, Place, wait_recovered};
use crate::rig::http::Server;
use crate::rig::kafka::free_port;
use crate::rig::postgres::Version;
use crate::rig::wait_for;

/// Overwrites a page of a table on the disk; gives the name of its file.
fn hurt(place: &Place) -> String {
    hurt_in(place, "hurt", "pg_default")
}

fn hurt_in(place: &Place, table: &str, tablespace: &str) -> String {
    place
        .postgres
        .psql(&format!("CREATE TABLE {table} TABLESPACE {tablespace} AS SELECT generate_series(1, 5000) AS x"));
    place.postgres.psql("CHECKPOINT");
    let file = place.postgres.psql(&format!("SELECT pg_relation_filepath('{table}')"));
    let opened = File::options().write(true).open(place.postgres.data_dir().join(&file)).expect("a table");
    opened.write_all_at(&[0x5a; 64], 8_192 + 4_000).expect("it is overwritten");
    file.rsplit('/').next().expect("a name").to_owned()
}

#[test]
fn a_bad_page_is_named_and_the_next_attempt_is_an_hour_away() {
    for version in [Version::V13, Version::V18] {
        let place = Place::with_checksums(version);
        let name = hurt(&place);
        let fast = place.home.path().join("fast");
        std::fs::create_dir(&fast).expect("a directory");
        place.postgres.psql(&format!("CREATE TABLESPACE fast LOCATION '{}'", fast.display()));
        let placed = hurt_in(&place, "placed", "fast");
        let said = place.tidelog(&["backup"]);
        let names = said.stderr.contains(&name) && said.stderr.contains(&placed);
        assert!(said.status == Some(3) && names, "{version:?}: {}", said.stderr);
        place.wait_archived();
        let report = place.tidelog(&["verify", "--json"]).expect(0).json();
        assert_eq!((&report["backups"], &report["leftovers"]), (&0.into(), &0.into()), "{report}");
        let server = Server::new(format!("127.0.0.1:{}", free_port()));
        let more = format!("[postgres.base_backup]\nevery = \"1d\"\n[http]\nlisten = \"{}\"\n", server.address);
        place.archive(&place.postgres, &more);
        let line = wait_for("the failure in the log", PATIENCE, || {
            let log = place.program().as_ref().expect("it archives").output();
            log.lines().find(|line| line.contains("cannot take a base backup")).map(str::to_owned)
        });
        assert!(line.contains(&name) && line.contains("3600s"), "{line}");
        let status = server.json("/api/status").to_string();
        assert!(status.contains("base_backup") && status.contains(&name), "{status}");
    }
}

#[test]
fn a_backup_with_bad_pages_is_kept_on_request_and_marked() {
    let place = Place::with_checksums(Version::Debian);
    place.mark(1);
    let sound = place.back_up();
    assert_eq!(sound["damaged"], serde_json::json!([]), "{sound}");
    let name = hurt(&place);
    place.archive(&place.postgres, "[postgres.base_backup]\nkeep_damaged = true\n");
    let kept = place.tidelog(&["backup", "--json"]).expect(0).json();
    assert!(kept["damaged"].to_string().contains(&name), "{kept}");
    place.mark(2);
    place.wait_archived();
    let into = place.home.path().join("chosen").display().to_string();
    let chosen = place.tidelog(&["restore-postgres", "--into", &into, "--json"]).expect(0).json();
    assert!(chosen["backup"] == sound["name"] && chosen["damaged"] == serde_json::json!([]), "{chosen}");
    let into = place.home.path().join("asked").display().to_string();
    let asked = ["restore-postgres", "--into", &into, "--backup", kept["name"].as_str().expect("a name")];
    let said = place.tidelog(&asked).expect(0);
    assert!(said.stderr.contains("bad pages") && said.stderr.contains(&name), "{}", said.stderr);
    let restored = place.adopt(std::path::Path::new(&into), Version::Debian);
    wait_recovered(&restored);
    let refused = restored.try_psql("SELECT sum(x) FROM hurt");
    assert!(refused.status != Some(0) && refused.stderr.contains("invalid page"), "{}", refused.stderr);
    place.postgres.assert_german("Prüfsumme");
}

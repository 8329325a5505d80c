//! Servers that do not fit the archive: what is said of them in one sentence, and the way out.
//!
//! ```text
//!   archive   1 ├───────── a ─────────►     an older copy of the directory, put back       "… is an older copy …"
//!   copy      1 ├──── copied ── b ─────►     … that has written on                          "… does not go on where the archive ends …"
//!                                            … and has an archive of its own               archived
//!                                            … or what is archived is abandoned            archived
//! ```

use std::path::{Path, PathBuf};

use crate::postgres_restore::{PATIENCE, Place, markers, wait_recovered};
use crate::rig::http::Server;
use crate::rig::kafka::free_port;
use crate::rig::postgres::{Postgres, Version};
use crate::rig::program;
use crate::rig::wait_until;

/// Archives a server of the place from now on, and tells by HTTP how that goes.
fn archive(place: &Place, postgres: &Postgres) -> Server {
    let address = format!("127.0.0.1:{}", free_port());
    place.archive(postgres, &format!("[http]\nlisten = \"{address}\"\n"));
    Server::new(address)
}

/// Waits until the process is not ready, for this reason.
fn says(place: &Place, server: &Server, words: &str) {
    wait_until(&format!("it to say {words:?}"), PATIENCE, || {
        place.program().as_mut().expect("it archives").assert_running();
        let answer = server.is_up().then(|| server.get("/readyz"));
        answer.is_some_and(|answer| answer.status == 503 && answer.body.contains(words))
    });
}

fn copied(from: &Path, to: &Path) {
    let mut copy = std::process::Command::new("cp");
    copy.arg("-a").arg(from).arg(to);
    program::run(copy).expect(0);
}

/// A server with a base backup that is archived, and a copy of its directory from before it went on.
fn copied_and_archived(version: Version) -> (Place, PathBuf) {
    let place = Place::new(version);
    place.mark(1);
    place.back_up();
    place.wait_archived();
    place.stop_archiving();
    place.postgres.stop();
    let data = place.home.path().join("copy");
    copied(place.postgres.data_dir(), &data);
    place.postgres.restart();
    place.archive(&place.postgres, "");
    (place, data)
}

#[test]
fn an_older_copy_of_the_server_is_named_and_has_a_way_out() {
    for version in [Version::V13, Version::Debian, Version::V18] {
        let (place, data) = copied_and_archived(version);
        place.mark(2);
        place.postgres.psql("SELECT pg_logical_emit_message(true, 'x', repeat('x', 100000))");
        let end = place.wait_archived();
        place.stop_archiving();
        place.postgres.kill();

        let copy = place.adopt(&data, version);
        copy.wait_ready();
        let server = archive(&place, &copy);
        says(&place, &server, "it is an older copy of the server that is archived");
        // It is written to, and comes beyond where the archive ends.
        wait_until("it to come further", PATIENCE, || {
            copy.psql("INSERT INTO markers SELECT coalesce(max(id), 0) + 100, repeat('y', 5000) FROM markers");
            copy.psql("SELECT pg_logical_emit_message(true, 'y', repeat('y', 50000))");
            copy.psql(&format!("SELECT pg_current_wal_flush_lsn() - '{end}'::pg_lsn > 100000")) == "t"
        });
        says(&place, &server, "does not go on where the archive ends");
        assert_eq!(place.end(1), end, "nothing was spliced");
        if version != Version::Debian {
            abandon(&place, 1);
            goes_on_with(&place, &copy, 1, version);
            continue;
        }
        // The other way out: an archive of its own.
        place.stop_archiving();
        let config = std::fs::read_to_string(place.home.path().join("tidelog.toml")).expect("the configuration");
        place
            .home
            .write("tidelog.toml", &config.replace("/archive\"", "/archive-2\"").replace("/spool\"", "/spool-2\""));
        *place.program() = Some(place.home.start(&["-c", "tidelog.toml", "run"]));
        wait_until("it to be archived", PATIENCE, || {
            copy.psql("SELECT count(*) FROM pg_stat_replication WHERE application_name = 'tidelog'") == "1"
        });
        copy.psql("INSERT INTO markers VALUES (50, 'x')");
        place.back_up();
        let (rows, restored) = (markers(&copy), place.restore("restored", &[]));
        let restored = place.adopt(&restored, version);
        wait_recovered(&restored);
        assert_eq!(markers(&restored), rows, "{version:?}");
    }
}

#[test]
fn a_base_backup_of_an_older_copy_never_counts() {
    let (place, data) = copied_and_archived(Version::V17);
    // A base backup begins with a WAL file of its own: the archive has that, too.
    for id in 2..5 {
        place.mark(id);
        place.postgres.psql("SELECT pg_switch_wal()");
    }
    place.mark(5);
    place.wait_archived();
    let sound = place.back_up();
    place.wait_archived();
    place.stop_archiving();
    place.postgres.kill();

    let copy = place.adopt(&data, Version::V17);
    copy.wait_ready();
    let config = std::fs::read_to_string(place.home.path().join("tidelog.toml")).expect("the configuration");
    place.home.write("tidelog.toml", &config.replace(&place.postgres.url("postgres"), &copy.url("postgres")));
    copy.psql("INSERT INTO markers VALUES (100, 'of another server')");
    // What is archived would be replayed over its pages.
    let said = place.tidelog(&["backup", "--wait", "1s"]).expect(1).stderr;
    assert!(said.contains("is another than the archived one") && said.contains("timeline abandon 1"), "{said}");
    let listing = place.tidelog(&["restore-postgres", "--list", "--json"]).expect(0).json();
    let rows = listing["backups"].as_array().expect("a list");
    assert!(rows.len() == 2 && rows.last().is_some_and(|row| row["name"] == sound["name"]), "{listing}");
    let parts = place.tidelog(&["verify", "--json"]).expect(0).json();
    assert_eq!(parts["leftovers"], 0, "{parts}");
}

/// Abandons a timeline while the archiver stands before it.
fn abandon(place: &Place, timeline: u32) {
    let told = place.tidelog(&["timeline", "abandon", &timeline.to_string(), "--json"]).expect(0).json();
    assert_eq!(told["timeline"], timeline);
    let listed = place.tidelog(&["ls", "--json"]).expect(0).json();
    assert_eq!(listed["streams"][0]["abandoned"][0]["partition"], timeline, "{listed}");
    assert!(place.chain().expect("a chain").position(timeline.cast_signed()).is_none());
    let again = place.tidelog(&["timeline", "abandon", &timeline.to_string()]);
    // Whether the archiver has gone on by now or not: what it has archived since stays.
    assert_ne!(again.status, Some(0), "{}", again.stdout);
    assert!(again.stderr.contains("was abandoned on"), "{}", again.stderr);
}

/// The archiver goes on with this server by itself, and what comes back is what the server has.
fn goes_on_with(place: &Place, postgres: &Postgres, timeline: i32, version: Version) {
    postgres.psql("INSERT INTO markers VALUES (5000, 'x')");
    wait_until("the archiver to go on", PATIENCE, || {
        place.program().as_mut().expect("it archives").assert_running();
        place.chain().is_some_and(|chain| chain.position(timeline).is_some())
    });
    place.back_up();
    postgres.psql("INSERT INTO markers VALUES (5001, 'x')");
    place.wait_archived_of(postgres, timeline);
    place.tidelog(&["verify", "--deep"]).expect(0);
    let (rows, restored) = (markers(postgres), place.restore("restored", &[]));
    let restored = place.adopt(&restored, version);
    wait_recovered(&restored);
    assert_eq!(markers(&restored), rows, "{version:?}");
}

#[test]
fn another_standby_promoted_to_the_same_timeline_is_named() {
    for version in [Version::V13, Version::V18] {
        another_standby(version);
    }
}

fn another_standby(version: Version) {
    let place = Place::new(version);
    let (first, second) = (place.standby(), place.standby());
    place.mark(1);
    place.wait_archived();
    wait_until("the first to have it", PATIENCE, || markers(&first) == "1|1");
    first.promote();
    place.archive(&first, "");
    first.psql("INSERT INTO markers VALUES (2, 'of the first')");
    place.wait_archived_of(&first, 2);
    place.stop_archiving();
    let end = place.end(2);
    place.mark(3);
    wait_until("the second to have it", PATIENCE, || markers(&second) == "2|3");
    second.promote();
    second.psql("INSERT INTO markers SELECT generate_series(10, 1000), repeat('z', 200)");
    let server = archive(&place, &second);
    says(&place, &server, "two servers were promoted to the same timeline");
    says(&place, &server, &format!("is archived up to {end}"));
    says(&place, &server, "`tidelog timeline abandon 2`");
    assert_eq!(place.end(2), end, "nothing was spliced");
    abandon(&place, 2);
    goes_on_with(&place, &second, 2, version);
}

#[test]
fn a_copy_that_was_archived_by_mistake_is_named() {
    for version in [Version::V13, Version::V18] {
        copy_by_mistake(version);
    }
}

fn copy_by_mistake(version: Version) {
    let place = Place::new(version);
    let standby = place.standby();
    place.mark(1);
    place.back_up();
    place.wait_archived();
    place.stop_archiving();
    let data = place.restore("drill", &[]);
    let drill: Postgres = place.adopt(&data, version);
    wait_recovered(&drill);
    place.archive(&drill, "");
    drill.psql("INSERT INTO markers VALUES (2, 'of the drill')");
    place.wait_archived_of(&drill, 2);
    let of_drill = place.back_up();
    let server = archive(&place, &place.postgres);
    says(&place, &server, "the server is on timeline 1 with its log up to ");
    says(&place, &server, &format!("and timeline 2 is archived already up to {}", place.end(2)));
    says(&place, &server, "`tidelog timeline abandon 2`");
    let refused = place.tidelog(&["timeline", "abandon", "1"]);
    assert!(refused.stderr.contains("timeline 2 of the archive comes from it"), "{}", refused.stderr);
    abandon(&place, 2);
    goes_on_with(&place, &place.postgres, 1, version);
    // Production comes to the same number, and nothing of the drill is taken for it.
    let rows = markers(&place.postgres);
    wait_until("the standby to have it", PATIENCE, || markers(&standby) == rows);
    standby.promote();
    place.archive(&standby, "");
    standby.psql("INSERT INTO markers VALUES (6000, 'of production')");
    place.wait_archived_of(&standby, 2);
    let (rows, restored) = (markers(&standby), place.restore("restored-2", &[]));
    let restored = place.adopt(&restored, version);
    wait_recovered(&restored);
    assert_eq!(markers(&restored), rows, "{version:?}");
    place.tidelog(&["verify", "--deep"]).expect(0);
    let named = place.home.path().join("of-drill").display().to_string();
    let name = of_drill["name"].as_str().expect("a name");
    let refused = place.tidelog(&["restore-postgres", "--into", &named, "--backup", name]);
    assert_ne!(refused.status, Some(0), "a backup of the drill leads nowhere: {}", refused.stdout);
}

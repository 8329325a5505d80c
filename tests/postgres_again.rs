//! A restore over what is there: one that was interrupted goes on, and `--delta` fetches only what differs.
//!
//! ```text
//!   killed while it waits for the last part ─► the same command again ─► only the last parts are read
//!   a server that was stopped, or broken    ─► --delta                ─► only what it changed is read
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::postgres_restore::{PATIENCE, Place, markers, wait_recovered};
use crate::rig::postgres::{Postgres, Version};
use crate::rig::s3::{self, Bucket};
use crate::rig::s3_proxy::{Fault, Proxy, Rule};
use crate::rig::{program, wait_until};
use crate::store_faults::in_bucket;

/// Tables of 40 MiB each, so that a backup has several parts. They are read, for who reads first changes hint bits.
const TABLES: u32 = 4;

fn filler(number: u32) -> String {
    format!(
        "CREATE TABLE filler{number} AS SELECT n, (SELECT string_agg(md5(({number} * 1000000 + n * 60 + i)::text), '') \
         FROM generate_series(1, 60) AS i) AS text FROM generate_series(1, 20000) AS n"
    )
}

fn sums(postgres: &Postgres) -> Vec<String> {
    let sum = |number| format!("SELECT md5(string_agg(n || text, '' ORDER BY n)) FROM filler{number}");
    (0..TABLES).map(|number| postgres.psql(&sum(number))).collect()
}

struct Filled {
    place: Place,
    sums: Vec<String>,
    /// The objects of the backup's data directory, in order.
    parts: Vec<PathBuf>,
}

fn filled(version: Version) -> Filled {
    fill(Place::new(version))
}

fn fill(place: Place) -> Filled {
    (0..TABLES).for_each(|number| drop(place.postgres.psql(&filler(number))));
    let sums = sums(&place.postgres);
    place.mark(1);
    let backup = place.back_up();
    place.mark(2);
    place.wait_archived();
    let folder = place.home.path().join("archive/backups/postgres");
    let folder = folder.join(format!("system={}", backup["system_id"].as_str().expect("an id")));
    let folder = folder.join(backup["name"].as_str().expect("a name"));
    let is_part = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("base.tar"));
    let entries = std::fs::read_dir(folder).expect("a backup").map(|entry| entry.expect("a file").path());
    let parts: BTreeSet<PathBuf> = entries.filter(is_part).collect();
    assert!(parts.len() >= 6, "{parts:?}");
    Filled { place, sums, parts: parts.into_iter().collect() }
}

/// How many bytes of the backup were read, in percent.
fn read(said: &Value, parts: &[PathBuf]) -> u64 {
    let all: u64 = parts.iter().map(|part| part.metadata().expect("a part").len()).sum();
    said["fetched_bytes"].as_u64().expect("a number") * 100 / all
}

fn restore(place: &Place, data: &Path, more: &[&str]) -> Value {
    let into = data.display().to_string();
    place.tidelog(&[&["restore-postgres", "--json", "--into", &into], more].concat()).expect(0).json()
}

fn refused(place: &Place, data: &Path, more: &[&str]) -> String {
    let into = data.display().to_string();
    let said = place.tidelog(&[&["restore-postgres", "--into", &into], more].concat());
    assert_eq!(said.status, Some(2), "{}", said.stderr);
    said.stderr
}

/// Every file below a directory.
fn files(root: &Path) -> Vec<PathBuf> {
    if !root.exists() {
        return Vec::new();
    }
    let mut find = Command::new("find");
    find.arg(root).args(["-type", "f", "-size", "+0"]);
    // What goes while it looks is no failure of the test.
    program::run(find).stdout.lines().map(PathBuf::from).collect()
}

#[test]
fn a_restore_that_was_killed_goes_on_where_it_was() {
    for version in [Version::V13, Version::V18] {
        let Filled { place, sums: before, parts } = filled(version);
        place.stop_archiving();
        let last = parts.last().and_then(|part| part.file_name()).expect("parts").to_string_lossy();
        let mut bucket = s3_with(&place.home.path().join("archive"));
        let proxy = Proxy::before(&mut bucket);
        place.home.write("tidelog.toml", &in_bucket(&bucket, &place.home));
        proxy.add(Rule::new("GET", &regex::escape(&last), Fault::Delay(PATIENCE)));
        let data = place.home.path().join("data");
        let into = data.display().to_string();
        let killed = place.home.start(&["-c", "tidelog.toml", "restore-postgres", "--into", &into]);
        let is_table = |file: &&PathBuf| file.metadata().is_ok_and(|facts| facts.len() > 30 << 20);
        wait_until("most of it to be unpacked", PATIENCE, || files(&data).iter().filter(is_table).count() >= 3);
        let busy = refused(&place, &data, &[]);
        assert!(busy.contains(&format!("process {}", killed.id())), "{busy}");
        killed.kill();
        proxy.clear();
        assert!(!data.join("global/pg_control").exists(), "Postgres would start on it");

        // What is whole is not read again, and what is not is: a file that was cut off, and one that is nobody's.
        let cut = data.join("PG_VERSION");
        std::fs::write(&cut, b"1").expect("cut off");
        std::fs::write(data.join("base/stray"), b"x").expect("written");
        let said = restore(&place, &data, &[]);
        assert!(said["kept_bytes"].as_u64() > Some(70 << 20) && read(&said, &parts) < 80, "{said}");
        assert_eq!(said["removed_files"], 1, "{said}");
        let own = place.postgres.data_dir().join("PG_VERSION");
        assert_eq!(std::fs::read(cut).expect("a file"), std::fs::read(own).expect("a file"));
        let again = refused(&place, &data, &[]);
        assert!(again.contains("is not empty") && again.contains("--delta"), "it was finished: {again}");
        let postgres = place.adopt(&data, version);
        wait_recovered(&postgres);
        assert_eq!((markers(&postgres).as_str(), sums(&postgres)), ("2|2", before), "{version:?}");
    }
}

#[test]
fn a_delta_fetches_what_differs_and_never_runs_over_a_server() {
    let place = Place::new(Version::Debian);
    let (fast, moved) = (place.home.path().join("fast"), place.home.path().join("moved"));
    std::fs::create_dir(&fast).expect("a directory");
    place.postgres.psql(&format!("CREATE TABLESPACE fast LOCATION '{}'", fast.display()));
    place.postgres.psql("CREATE TABLE placed TABLESPACE fast AS SELECT generate_series(1, 10000) AS x");
    let Filled { place, sums: before, parts } = fill(place);
    let (target, _) = place.mark(3);
    place.postgres.psql("DELETE FROM placed; DELETE FROM markers; CREATE TABLE later AS SELECT generate_series(1, 9)");
    place.mark(9);
    place.wait_archived();
    place.stop_archiving();
    let data = place.postgres.data_dir().to_owned();
    let target = target.to_string();
    let asked = ["--delta", "--to-lsn", &target, "--tablespaces-at-old-places"];
    let running = refused(&place, &data, &asked);
    assert!(running.contains("a server, or another restore, runs") && running.contains("postmaster.pid"), "{running}");
    place.postgres.kill();
    // Its backends hold its shared memory for a moment.
    wait_until("its processes to end", PATIENCE, || refused(&place, &data, &asked[1..]).contains("--delta"));
    let other = place.home.path().join("other");
    std::fs::create_dir(&other).expect("a directory");
    std::fs::write(other.join("letter"), b"x").expect("written");
    assert!(refused(&place, &other, &asked).contains("is not empty"), "no data directory");
    let elsewhere = format!("{}={}", fast.display(), other.display());
    let foreign = refused(&place, &data, &["--delta", "--tablespace", &elsewhere]);
    assert!(foreign.contains("other is not empty") && other.join("letter").exists(), "{foreign}");
    // A link may lead to what somebody else uses.
    std::fs::rename(data.join("pg_wal"), &moved).expect("moved");
    std::os::unix::fs::symlink(&moved, data.join("pg_wal")).expect("linked");
    let linked = refused(&place, &data, &asked);
    assert!(linked.contains("pg_wal is a link") && data.join("global/pg_control").exists(), "{linked}");
    assert!(!data.join("tidelog.restoring").exists() && !data.join("postmaster.pid").exists(), "nothing was begun");
    std::fs::remove_file(data.join("pg_wal")).expect("removed");
    std::fs::rename(&moved, data.join("pg_wal")).expect("moved");

    let said = restore(&place, &data, &asked);
    assert!(said["kept_bytes"].as_u64() > Some(150 << 20) && read(&said, &parts) < 90, "{said}");
    assert!(said["removed_files"].as_u64() > Some(0), "what was made after the backup: {said}");
    // Now it differs in the control file and the settings alone.
    let said = restore(&place, &data, &asked);
    assert!(said["kept_bytes"].as_u64() > Some(150 << 20) && read(&said, &parts) < 60, "{said}");
    let postgres = place.adopt(&data, Version::Debian);
    wait_recovered(&postgres);
    assert_eq!((markers(&postgres).as_str(), sums(&postgres)), ("3|3", before));
    assert_eq!(postgres.psql("SELECT count(*), to_regclass('later') FROM placed"), "10000|");
}

#[test]
fn a_store_that_is_away_is_waited_for_and_what_is_unpacked_stays() {
    let Filled { place, sums: before, parts: _ } = filled(Version::Debian);
    place.stop_archiving();
    let archive = place.home.path().join("archive");
    let mut bucket = s3_with(&archive);
    let proxy = Proxy::before(&mut bucket);
    place.home.write("tidelog.toml", &in_bucket(&bucket, &place.home));
    // Longer than a request is repeated by the store's client.
    let away = proxy.add(Rule::new("GET", "base\\.tar", Fault::Answer(503, "SlowDown")).skip(3));
    proxy.add(Rule::new("GET", "segments/postgres", Fault::Answer(400, "RequestTimeout")).times(1));
    let data = place.home.path().join("data");
    let into = data.display().to_string();
    let mut restoring = place.home.start(&["-c", "tidelog.toml", "restore-postgres", "--into", &into]);
    wait_until("it to say that it waits", PATIENCE, || {
        restoring.assert_running();
        restoring.output().contains("it is waited for")
    });
    assert!(away.met() > 7, "the store's client had given up");
    proxy.clear();
    assert_eq!(restoring.wait(PATIENCE), 0);
    let postgres = place.adopt(&data, Version::Debian);
    wait_recovered(&postgres);
    assert_eq!((markers(&postgres).as_str(), sums(&postgres)), ("2|2", before));
}

#[test]
fn a_backup_of_few_parts_is_read_by_as_many_readers_as_were_asked_for() {
    let Filled { place, sums: before, parts } = filled(Version::Debian);
    place.stop_archiving();
    let mut bucket = s3_with(&place.home.path().join("archive"));
    let proxy = Proxy::before(&mut bucket);
    place.home.write("tidelog.toml", &in_bucket(&bucket, &place.home));
    let held = Duration::from_secs(20);
    let asked = proxy.add(Rule::new("GET", "base\\.tar", Fault::Delay(held)));
    let data = place.home.path().join("data");
    let into = data.display().to_string();
    let begun = Instant::now();
    let mut restoring = place.home.start(&["-c", "tidelog.toml", "restore-postgres", "--into", &into, "--jobs", "8"]);
    // There is room for five at a time.
    wait_until("five parts to be asked for", PATIENCE, || {
        restoring.assert_running();
        asked.met() >= 5
    });
    assert!(begun.elapsed() < held, "some of {} waited for the first: {:?}", parts.len(), begun.elapsed());
    proxy.clear();
    assert_eq!(restoring.wait(PATIENCE), 0);
    let postgres = place.adopt(&data, Version::Debian);
    wait_recovered(&postgres);
    assert_eq!((markers(&postgres).as_str(), sums(&postgres)), ("2|2", before));
}

#[test]
fn answers_that_pass_and_a_slow_link_only_make_a_backup_and_a_restore_slow() {
    let place = Place::new(Version::Debian);
    place.postgres.psql(
        "CREATE TABLE noise AS SELECT n, (SELECT string_agg(md5(random()::text || n || i), '') \
         FROM generate_series(1, 60) AS i) AS text FROM generate_series(1, 3000) AS n",
    );
    let sum = "SELECT md5(string_agg(n || text, '' ORDER BY n)) FROM noise";
    let before = place.postgres.psql(sum);
    place.wait_archived();
    place.stop_archiving();
    let mut bucket = s3_with(&place.home.path().join("archive"));
    let proxy = Proxy::before(&mut bucket);
    let url = place.postgres.url("postgres");
    let config = format!("{}[postgres]\nurl = \"{url}\"\nmax_age = \"300ms\"\n", in_bucket(&bucket, &place.home));
    place.home.write("tidelog.toml", &config);
    *place.program() = Some(place.home.start(&["-c", "tidelog.toml", "run"]));
    let once = |method, key: &str, code| proxy.add(Rule::new(method, key, Fault::Answer(400, code)).times(1));

    // Whatever a backup asks of the store is refused once, as tokens expire and connections grow old.
    let refused = [
        once("PUT", "base\\.tar", "ExpiredToken"),
        once("PUT", "backup_manifest", "RequestTimeout"),
        once("HEAD", "base\\.tar", "RequestTimeout"),
        once("GET", "backup_manifest", "ExpiredToken"),
        once("PUT", "backup\\.json", "ExpiredToken"),
        once("PUT", "manifest/postgres", "RequestTimeout"),
    ];
    let backup = place.back_up();
    assert_eq!(backup["usable"], true, "{backup}");
    assert!(refused.iter().all(|rule| rule.met() == 1), "{:?}", refused.map(|rule| rule.met()));
    let (end, _) = place.mark(1);
    wait_until("the archive to have it", PATIENCE, || {
        place.postgres.psql(&format!("SELECT coalesce(max(flush_lsn), '0/0') >= '{end}' FROM pg_stat_replication"))
            == "t"
    });
    place.stop_archiving();
    proxy.clear();

    // The same of a restore, one answer breaks off, and all of it comes at 500 KB a second.
    let refused = [
        once("GET", "backup\\.json", "ExpiredToken"),
        once("GET", "backup_manifest", "RequestTimeout"),
        once("GET", "manifest/postgres", "ExpiredToken"),
        once("PUT", "holds/", "RequestTimeout"),
        once("GET", "base\\.tar", "ExpiredToken"),
        proxy.add(Rule::new("GET", "base\\.tar", Fault::CutAnswer(200_000)).times(1)),
    ];
    let wal = once("GET", "segments/postgres", "ExpiredToken");
    let slow = proxy.add(Rule::new("GET", "base\\.tar|segments/postgres", Fault::BytesPerSecond(500_000)));
    let (data, begun) = (place.home.path().join("data"), Instant::now());
    let said = restore(&place, &data, &[]);
    let least = Duration::from_secs(said["fetched_bytes"].as_u64().expect("a number") / 500_000);
    assert!(begun.elapsed() >= least && least > Duration::from_secs(5), "{:?}: {said}", begun.elapsed());
    assert!(refused.iter().all(|rule| rule.met() == 1), "{:?}", refused.map(|rule| rule.met()));
    let fetched = slow.met();
    let chain = once("GET", "manifest/postgres", "RequestTimeout");
    let postgres = place.adopt(&data, Version::Debian);
    wait_recovered(&postgres);
    assert!(slow.met() > fetched && (wal.met(), chain.met()) == (1, 1), "it was recovered over the same link");
    assert_eq!((markers(&postgres).as_str(), postgres.psql(sum)), ("1|1", before));
}

/// A bucket with what an archive on the disk holds.
pub(crate) fn s3_with(archive: &Path) -> Bucket {
    let bucket = s3::s3s_fs();
    let files = bucket.files().expect("they are files");
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(archive.join(".")).arg(files);
    program::run(copy).expect(0);
    bucket
}

//! Postgres in, against real servers of every version: the WAL stream, timelines, base backups, slots, logins.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tidelog::config::{Config, Postgres as Settings};
use tidelog::error::{Error, Kind};
use tidelog::source::postgres::{
    BackupEvent, BackupOptions, BackupStream, Event, Rate, Replication, Server, SlotKind, Status, WalStatus, WalStream,
    is_removed_wal, is_wrong_state,
};
use tidelog::stream::Lsn;
use tokio::time::timeout;

use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::process::temporary_directory;
use crate::rig::program::{self, Home};
use crate::rig::wait_until;

/// For an answer of a server on a machine that does other work, too.
const PATIENCE: Duration = Duration::from_secs(60);

fn settings(url: &str, more: &str) -> Settings {
    let text = format!("[archive]\nurl = \"memory://\"\n[postgres]\nurl = {url:?}\n{more}");
    let config = Config::parse(&text, "test", &BTreeMap::new()).expect("the configuration is valid");
    config.postgres.expect("[postgres] is there")
}

fn server(url: &str) -> Server {
    Server::new(&settings(url, "")).expect("the url is valid")
}

async fn replication(postgres: &Postgres) -> Replication {
    server(&postgres.url("postgres")).replication().await.expect("the server lets us in")
}

fn refused<T>(result: Result<T, Error>) -> Error {
    result.map(drop).expect_err("it must fail")
}

/// The position at the front of the WAL file that holds `lsn`.
fn file_start(lsn: Lsn) -> Lsn {
    Lsn(lsn.0 & !((16 << 20) - 1))
}

fn current(postgres: &Postgres) -> Lsn {
    postgres.psql("SELECT pg_current_wal_flush_lsn()").parse().expect("an LSN")
}

/// Reads WAL up to `end` at least, and says so to the server.
async fn read_to(stream: &mut WalStream, bytes: &mut Vec<u8>, end: Lsn) {
    let reading = async {
        loop {
            let at = match stream.next().await.expect("the server streams") {
                Event::Data { start, bytes: piece, server_end, sent_us } => {
                    bytes.extend_from_slice(piece);
                    assert!(server_end >= start && sent_us > 1_700_000_000_000_000);
                    start + piece.len() as u64
                }
                Event::Keepalive { .. } => continue,
                Event::TimelineEnded { .. } => panic!("the timeline goes on"),
            };
            if at >= end {
                let status = Status { write: at, flush: at, apply: at, reply: false };
                return stream.send_status(status).await.expect("the server listens");
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("the WAL comes in time");
}

/// The next event that is no keepalive.
async fn next_timeline(stream: &mut WalStream) -> (u32, Lsn) {
    let reading = async {
        loop {
            if let Event::TimelineEnded { next_timeline, switch } = stream.next().await.expect("the server answers") {
                return (next_timeline, switch);
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("the timeline ends in time")
}

async fn stream_from_a_slot(version: Version) {
    let postgres = Postgres::start(PostgresOptions { version, ..PostgresOptions::default() });
    let mut client = replication(&postgres).await;
    let identity = client.identify().await.expect("an answer");
    let number = postgres.psql("SHOW server_version_num");
    assert_eq!(client.version().to_string(), number);
    assert_eq!(identity.system_id.to_string(), postgres.psql("SELECT system_identifier FROM pg_control_system()"));
    assert_eq!(client.wal_segment_size().await.expect("an answer"), 16 << 20);
    assert_eq!(client.show("wal_level").await.expect("an answer"), "replica");
    let no_history = refused(client.timeline_history(2).await);
    assert!(no_history.to_string().contains("history of timeline 2"), "{no_history}");

    client.create_slot("tidelog").await.expect("a slot is free");
    client.create_slot("tidelog").await.expect("it is there already");
    match client.read_slot("tidelog").await {
        Ok(found) => {
            let slot = found.expect("the slot is there");
            assert!(slot.restart.is_some() && slot.timeline == Some(1), "{slot:?}");
            assert_eq!(client.read_slot("other").await.expect("an answer"), None);
        }
        Err(error) => assert!(error.kind() == Kind::Unsupported && client.version() < 150_000, "{error}"),
    }

    let start = file_start(identity.flush);
    let mut stream = client.stream(Some("tidelog"), 1, start).await.expect("the WAL is there");
    postgres.psql("CREATE TABLE t AS SELECT g, repeat('x', 500) FROM generate_series(1, 20000) g");
    let end = current(&postgres);
    let mut bytes = Vec::new();
    read_to(&mut stream, &mut bytes, end).await;
    for (at, piece) in (start.0..).step_by(16 << 20).zip(bytes.chunks(16 << 20)) {
        let name = postgres.psql(&format!("SELECT pg_walfile_name('{}')", Lsn(at + 1)));
        let file = std::fs::read(postgres.wal_dir().join(&name)).expect("the server has the file");
        assert!(file[..piece.len()] == *piece, "{name} of {version:?} is what was streamed");
    }
    wait_until("the server to know how far we are", PATIENCE, || {
        postgres.psql("SELECT flush_lsn >= pg_current_wal_flush_lsn() FROM pg_stat_replication") == "t"
    });
    assert_eq!(postgres.psql("SELECT application_name FROM pg_stat_replication"), "tidelog");

    // The connection can be used again, and the slot can go.
    let mut client = timeout(PATIENCE, stream.finish()).await.expect("in time").expect("the stream ends");
    assert_eq!(client.identify().await.expect("an answer").system_id, identity.system_id);
    wait_until("the slot to be free", PATIENCE, || postgres.psql("SELECT active FROM pg_replication_slots") == "f");
    client.drop_slot("tidelog").await.expect("it is free");
    assert_eq!(postgres.psql("SELECT count(*) FROM pg_replication_slots"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_streams_what_its_files_hold() {
    for version in Version::ALL {
        stream_from_a_slot(version).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_ends_where_the_server_says() {
    let primary = Postgres::start(PostgresOptions::default());
    let standby = primary.standby(PostgresOptions::default());
    let mut client = replication(&standby).await;
    let first = file_start(client.identify().await.expect("an answer").flush);
    let mut stream = client.stream(None, 1, first).await.expect("the WAL is there");
    primary.psql("CREATE TABLE t AS SELECT generate_series(1, 1000)");
    let end = current(&primary);
    let mut bytes = Vec::new();
    read_to(&mut stream, &mut bytes, end).await;
    drop(primary);
    standby.promote();
    let (next, switch) = next_timeline(&mut stream).await;
    assert!(next == 2 && switch >= end, "{next} from {switch}");
    assert_eq!(next_timeline(&mut stream).await, (next, switch), "the end stays the end");
    let status = Status { write: switch, flush: switch, apply: switch, reply: true };
    stream.send_status(status).await.expect("nobody listens, and that is no harm");

    let mut client = stream.finish().await.expect("the connection is free");
    let history = client.timeline_history(2).await.expect("there is one");
    let file = std::fs::read(standby.wal_dir().join("00000002.history")).expect("the server has it");
    assert_eq!(history, file);
    assert!(String::from_utf8_lossy(&history).contains(&switch.to_string()));

    // Asked for what comes after the end of the old timeline, the server has nothing to stream.
    let mut at_end = client.stream(None, 1, switch).await.expect("an answer");
    assert_eq!(next_timeline(&mut at_end).await, (2, switch));
    let client = at_end.finish().await.expect("the connection is free");
    standby.psql("CREATE TABLE u AS SELECT generate_series(1, 1000)");
    // The new timeline's file begins with the old one's bytes.
    let start = file_start(switch);
    let mut stream = client.stream(None, 2, start).await.expect("the new timeline is there");
    let mut newer = Vec::new();
    read_to(&mut stream, &mut newer, current(&standby)).await;
    let known = &bytes[(start - first) as usize..];
    let shared = known.len().min((switch - start) as usize);
    assert!(shared > 0 && newer[..shared] == known[..shared]);
    standby.kill();
    let error = loop {
        match timeout(PATIENCE, stream.next()).await.expect("the end is seen in time") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(error.is_transient(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_that_was_removed_is_told_from_a_server_that_is_away() {
    let postgres = Postgres::start(PostgresOptions {
        config: &[("max_slot_wal_keep_size", "16MB"), ("max_wal_size", "32MB"), ("wal_keep_size", "0")],
        ..PostgresOptions::default()
    });
    let mut client = replication(&postgres).await;
    let start = file_start(client.identify().await.expect("an answer").flush);
    client.create_slot("tidelog").await.expect("a slot is free");
    let mut sql = server(&postgres.url("postgres")).sql().await.expect("the server lets us in");
    let before = sql.slots().await.expect("an answer");
    let [slot] = &before.slots[..] else { panic!("one slot: {before:?}") };
    assert!(
        slot.kind == SlotKind::Physical && slot.wal_status == Some(WalStatus::Reserved) && !slot.active,
        "{slot:?}"
    );
    assert!(slot.safe_bytes.is_some_and(|bytes| bytes > 0), "{slot:?}");
    let mut rate = Rate::new(Duration::from_secs(60));
    rate.observe(Duration::ZERO, before.current);
    postgres.psql("CREATE TABLE t(x text)");
    for _ in 0..6 {
        postgres.psql(
            "INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 12000); SELECT pg_switch_wal(); CHECKPOINT",
        );
    }
    let after = sql.slots().await.expect("an answer");
    rate.observe(Duration::from_secs(10), after.current);
    let [slot] = &after.slots[..] else { panic!("one slot: {after:?}") };
    assert!(slot.is_lost() && slot.wal_status == Some(WalStatus::Lost), "{slot:?}");
    assert_eq!(rate.seconds_to_loss(slot), Some(0.0));
    assert!(rate.bytes_per_second().is_some_and(|rate| rate > 5e6), "{rate:?}");

    // The server says so at the start or with the first answer.
    let removed = async {
        match client.stream(None, 1, start).await {
            Ok(mut stream) => refused(stream.next().await),
            Err(error) => error,
        }
    };
    let error = timeout(PATIENCE, removed).await.expect("in time");
    assert!(is_removed_wal(&error) && error.kind() == Kind::NotFound, "{error:?}");
    let lost = async {
        match replication(&postgres).await.stream(Some("tidelog"), 1, start).await {
            Ok(mut stream) => refused(stream.next().await),
            Err(error) => error,
        }
    };
    // From 18 on a lost slot has a state that other refusals have, too: then the catalog tells.
    let error = timeout(PATIENCE, lost).await.expect("in time");
    assert!(is_removed_wal(&error) || is_wrong_state(&error), "{error:?}");

    postgres.stop();
    let error = refused(server(&postgres.url("postgres")).replication().await);
    assert!(error.is_transient() && !is_removed_wal(&error), "{error:?}");
    postgres.restart();
    let mut client = replication(&postgres).await;
    let now = client.identify().await.expect("an answer").flush;
    let mut stream = client.stream(None, 1, now).await.expect("what comes from now on is there");
    postgres.kill();
    let error = timeout(PATIENCE, async {
        loop {
            if let Err(error) = stream.next().await {
                return error;
            }
        }
    });
    assert!(error.await.expect("in time").is_transient());
    postgres.restart();
    assert!(replication(&postgres).await.identify().await.is_ok(), "it starts again over what it left");
}

#[tokio::test(flavor = "multi_thread")]
async fn logical_slots_are_seen_with_what_they_decode() {
    for version in [Version::Debian, Version::V18] {
        let config = [("wal_level", "logical")];
        let postgres = Postgres::start(PostgresOptions { version, config: &config, ..PostgresOptions::default() });
        let mut sql = server(&postgres.socket_url("postgres")).sql().await.expect("the socket lets us in");
        assert_eq!(sql.slots().await.expect("an answer").slots, []);
        postgres.psql("SELECT pg_create_logical_replication_slot('dbz', 'pgoutput')");
        let found = sql.slots().await.expect("an answer");
        let kind = SlotKind::Logical { plugin: "pgoutput".into(), database: "postgres".into() };
        assert_eq!(found.slots[0].kind, kind);
        assert_eq!(found.slots[0].inactive_since_ms.is_some(), version == Version::V18);
        assert!(found.slots[0].restart.is_some_and(|restart| restart <= found.current), "{found:?}");
    }
}

/// A base backup written to disk as `pg_basebackup -Ft` would.
async fn take(client: Replication, options: &BackupOptions, folder: &Path) -> (Lsn, Lsn, Vec<PathBuf>) {
    bring(client.base_backup(options).await.expect("the server sends one"), folder).await
}

async fn bring(mut backup: BackupStream, folder: &Path) -> (Lsn, Lsn, Vec<PathBuf>) {
    let start = backup.start_lsn();
    let (mut files, mut out, mut end, mut last) = (Vec::new(), Vec::new(), None, 0);
    let mut path = None;
    while end.is_none() {
        let next = match timeout(PATIENCE, backup.next()).await.expect("in time").expect("the server goes on") {
            BackupEvent::Data(bytes) => {
                out.extend_from_slice(bytes);
                continue;
            }
            BackupEvent::Progress { done } => {
                assert!(done >= last, "progress goes on");
                last = done;
                continue;
            }
            BackupEvent::Archive { name, .. } => Some(folder.join(name)),
            BackupEvent::Manifest => Some(folder.join("backup_manifest")),
            BackupEvent::End { end: at, timeline } => {
                end = Some(at);
                assert_eq!(timeline, 1);
                None
            }
        };
        if let Some(path) = path.take() {
            std::fs::write(&path, &out).expect("a file can be written");
            files.push(path);
        }
        out.clear();
        path = next;
    }
    assert!(last > 0);
    let mut client = backup.finish().expect("the backup has ended");
    client.identify().await.expect("the connection is free");
    (start, end.expect("the end"), files)
}

fn unpack(archive: &Path, into: &Path) {
    std::fs::create_dir_all(into).expect("a directory");
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(archive).arg("-C").arg(into);
    program::run(tar).expect(0);
}

fn verify(version: Version, data: &Path) {
    let mut verify = Command::new(version.program("pg_verifybackup"));
    verify.arg("-n").arg("-e").arg(data);
    program::run(verify).expect(0);
}

async fn back_up(version: Version) {
    let config = [("summarize_wal", "on")];
    let is_summarized = matches!(version, Version::V17 | Version::V18);
    let config = if is_summarized { &config[..] } else { &[] };
    let postgres = Postgres::start(PostgresOptions { version, config, ..PostgresOptions::default() });
    let place = temporary_directory("tablespace");
    let fast = place.path().join("fast");
    std::fs::create_dir(&fast).expect("a directory");
    postgres.psql(&format!("CREATE TABLESPACE fast LOCATION '{}'", fast.display()));
    postgres.psql("CREATE TABLE t TABLESPACE fast AS SELECT generate_series(1, 50000) AS x");
    let folder = temporary_directory("backup");
    let options = BackupOptions { label: "it's a test".into(), ..BackupOptions::default() };
    let (start, end, files) = take(replication(&postgres).await, &options, folder.path()).await;
    assert!(start < end);
    let names: Vec<_> =
        files.iter().map(|file| file.file_name().expect("a name").to_string_lossy().into_owned()).collect();
    let oid = postgres.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'");
    assert_eq!(names, [format!("{oid}.tar"), "base.tar".to_owned(), "backup_manifest".to_owned()]);

    let data = folder.path().join("data");
    unpack(&folder.path().join("base.tar"), &data);
    unpack(&folder.path().join(format!("{oid}.tar")), &data.join("pg_tblspc").join(&oid));
    std::fs::copy(folder.path().join("backup_manifest"), data.join("backup_manifest")).expect("a copy");
    verify(version, &data);
    let map = std::fs::read_to_string(data.join("tablespace_map")).expect("the map of tablespaces");
    assert_eq!(map.trim(), format!("{oid} {}", fast.display()));
    let label = std::fs::read_to_string(data.join("backup_label")).expect("the label");
    assert!(label.contains("it's a test") && label.contains(&start.to_string()), "{label}");

    let manifest = std::fs::read(folder.path().join("backup_manifest")).expect("the manifest");
    if !is_summarized {
        let error = refused(replication(&postgres).await.base_backup_on(&options, &mut &manifest[..]).await);
        assert_eq!(error.kind(), Kind::Unsupported, "{error}");
        return;
    }
    postgres.psql("INSERT INTO t SELECT generate_series(50001, 50100)");
    let later = temporary_directory("incremental");
    let stream = replication(&postgres).await.base_backup_on(&options, &mut &manifest[..]).await;
    bring(stream.expect("it begins"), later.path()).await;
    let delta = later.path().join("data");
    unpack(&later.path().join("base.tar"), &delta);
    unpack(&later.path().join(format!("{oid}.tar")), &delta.join("pg_tblspc").join(&oid));
    std::fs::copy(later.path().join("backup_manifest"), delta.join("backup_manifest")).expect("a copy");
    verify(version, &delta);
    let size = |path: &Path| std::fs::metadata(path).expect("it is there").len();
    assert!(size(&later.path().join("base.tar")) < size(&folder.path().join("base.tar")) / 2, "only what has changed");
    let error = refused(replication(&postgres).await.base_backup_on(&options, &mut &b"{}"[..]).await);
    assert!(error.to_string().contains("manifest"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn base_backups_of_every_version_are_whole() {
    for version in Version::ALL {
        back_up(version).await;
    }
}

/// A certificate authority of its own, a server's certificate for `localhost`, a client's for `tls_user`.
fn certificates(folder: &Path) {
    let script = r#"
        set -eu
        openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -subj /CN=ca -days 2
        for name in server client; do
            openssl req -newkey rsa:2048 -nodes -keyout $name.key -out $name.csr -subj "/CN=$([ $name = client ] && echo tls_user || echo localhost)"
            printf 'subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n' >ext
            openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile ext -out $name.crt -days 2
        done
        openssl req -x509 -newkey rsa:2048 -nodes -keyout other.key -out other.crt -subj /CN=other -days 2
        chmod 600 *.key"#;
    let mut shell = Command::new("bash");
    shell.args(["-c", script]).current_dir(folder);
    program::run(shell).expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_are_as_safe_as_the_url_asks() {
    let folder = temporary_directory("certificates");
    certificates(folder.path());
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (key, certificate, authority) = (at("server.key"), at("server.crt"), at("ca.crt"));
    let postgres = Postgres::start(PostgresOptions {
        config: &[("ssl", "on"), ("ssl_key_file", &key), ("ssl_cert_file", &certificate), ("ssl_ca_file", &authority)],
        hba: &[
            "local all scram_user scram-sha-256",
            "local replication scram_user scram-sha-256",
            "hostssl all,replication scram_user all scram-sha-256",
            "hostnossl all,replication scram_user all reject",
            "hostssl all,replication tls_user all cert",
            "host all,replication md5_user all md5",
            "host all,replication clear_user all password",
            "host all,replication nobody all reject",
        ],
        ..PostgresOptions::default()
    });
    postgres.psql(
        "CREATE ROLE scram_user LOGIN REPLICATION PASSWORD 's3cret'; CREATE ROLE tls_user LOGIN REPLICATION; \
         CREATE ROLE clear_user LOGIN REPLICATION PASSWORD 's3cret'; CREATE ROLE plain_user LOGIN; \
         SET password_encryption = 'md5'; CREATE ROLE md5_user LOGIN REPLICATION PASSWORD 's3cret'",
    );
    let url =
        |user: &str, host: &str, more: &str| format!("postgres://{user}@{host}:{}/postgres?{more}", postgres.port());
    let log_in = async |url: String, more: &str| {
        Server::new(&settings(&url, more))?.replication().await.map(|client| client.is_tls())
    };

    // What works, and whether it is encrypted.
    let full = format!("sslmode=verify-full&sslrootcert={authority}");
    let own = format!("sslmode=verify-full&sslrootcert={certificate}");
    let client = format!("&sslcert={}&sslkey={}", at("client.crt"), at("client.key"));
    for (user, host, more, is_tls) in [
        ("scram_user:s3cret", "localhost", full.clone(), true),
        ("scram_user:s3cret", "localhost", format!("{full}&channel_binding=require"), true),
        ("scram_user:s3cret", "localhost", own, true),
        ("scram_user:s3cret", "127.0.0.1", format!("sslmode=verify-ca&sslrootcert={authority}"), true),
        ("scram_user:s3cret", "127.0.0.1", "sslmode=prefer&channel_binding=disable".to_owned(), true),
        ("scram_user:s3cret", "127.0.0.1", "sslmode=allow".to_owned(), true),
        ("tls_user", "localhost", format!("{full}{client}"), true),
        ("clear_user:s3cret", "localhost", full.clone(), true),
        ("postgres", "127.0.0.1", "sslmode=disable".to_owned(), false),
    ] {
        let found = log_in(url(user, host, &more), "").await;
        assert_eq!(
            found.unwrap_or_else(|error| panic!("{user} {host} {more}: {error:?}")),
            is_tls,
            "{user} {host} {more}"
        );
    }
    let socket = postgres.socket_url("scram_user:s3cret");
    assert!(!log_in(socket, "").await.expect("the socket takes the password, too"));
    let md5 = url("md5_user:s3cret", "127.0.0.1", "sslmode=disable");
    assert!(!log_in(md5.clone(), "allow_md5 = true\n").await.expect("md5 is allowed here"));

    // What does not, and what is said.
    for (url, kind, part) in [
        (url("scram_user:wrong", "localhost", &full), Kind::Denied, "password authentication failed"),
        (url("scram_user", "localhost", &full), Kind::Denied, "wants a password, and none is given"),
        (url("scram_user:s3cret", "127.0.0.1", &full), Kind::Denied, "TLS"),
        (
            url("scram_user:s3cret", "localhost", &format!("sslmode=verify-ca&sslrootcert={}", at("other.crt"))),
            Kind::Denied,
            "TLS",
        ),
        (url("tls_user", "localhost", &full), Kind::Denied, "certificate"),
        (url("clear_user:s3cret", "127.0.0.1", "sslmode=disable"), Kind::Denied, "clear text"),
        (md5, Kind::Denied, "md5"),
        (url("nobody", "127.0.0.1", "sslmode=disable"), Kind::Denied, "pg_hba.conf"),
        (url("plain_user", "127.0.0.1", "sslmode=disable"), Kind::Denied, "superuser or replication role"),
        (url("postgres", "127.0.0.1", "sslmode=disable&channel_binding=require"), Kind::Denied, "channel_binding"),
    ] {
        let error = log_in(url.clone(), "").await.expect_err(&url);
        let said = format!("{error:?}");
        assert!(error.kind() == kind && said.contains(part) && !said.contains("s3cret"), "{url}: {said}");
        assert!(error.hint_text().is_some(), "{url}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_may_come_without_a_question_from_17_on() {
    let folder = temporary_directory("certificates");
    certificates(folder.path());
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (key, certificate) = (at("server.key"), at("server.crt"));
    // PyPI's 18 comes without OpenSSL.
    for version in [Version::V16, Version::V17] {
        let config = [("ssl", "on"), ("ssl_key_file", key.as_str()), ("ssl_cert_file", certificate.as_str())];
        let postgres = Postgres::start(PostgresOptions { version, config: &config, ..PostgresOptions::default() });
        let more = format!("sslmode=verify-full&sslrootcert={}&sslnegotiation=direct", at("ca.crt"));
        let url = format!("postgres://postgres@localhost:{}/postgres?{more}", postgres.port());
        match server(&url).replication().await {
            Ok(mut client) => {
                assert!(version == Version::V17 && client.is_tls());
                client.identify().await.expect("it answers");
            }
            Err(error) => {
                assert_eq!(version, Version::V16, "{error:?}");
                let hint = error.hint_text().unwrap_or_default();
                assert!(hint.contains("needs PostgreSQL 17"), "{error:?}");
            }
        }
    }
    // Any other service with that certificate.
    let mut other = Command::new("openssl");
    let port = crate::rig::kafka::free_port();
    other.args(["s_server", "-quiet", "-accept", &port.to_string(), "-cert", &certificate, "-key", &key]);
    let mut other = crate::rig::process::Process::start(other, &folder.path().join("openssl.log"));
    wait_until("openssl to listen", PATIENCE, || {
        assert!(other.ended().is_none());
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=require&sslnegotiation=direct");
    let error = refused(server(&url).replication().await);
    assert!(error.kind() == Kind::Denied && error.to_string().contains("does not say"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_of_several_servers_is_found() {
    let primary = Postgres::start(PostgresOptions::default());
    let standby = primary.standby(PostgresOptions::default());
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", standby.port(), primary.port());
    let url = |kind: &str| format!("postgres://postgres@{hosts}/postgres?target_session_attrs={kind}");
    let found = async |kind: &str| server(&url(kind)).replication().await.map(|client| client.shown().to_owned());
    let [standby_at, primary_at] = [&standby, &primary].map(|server| format!("127.0.0.1:{}", server.port()));
    for (kind, expected) in
        [("any", &standby_at), ("primary", &primary_at), ("read-write", &primary_at), ("prefer-standby", &standby_at)]
    {
        assert_eq!(&found(kind).await.expect("one fits"), expected, "{kind}");
    }
    primary.kill();
    let error = refused(found("read-write").await);
    assert!(error.is_transient() && error.to_string().contains(&primary_at), "{error}");
    assert_eq!(found("prefer-standby").await.expect("the standby lives"), standby_at);
    standby.promote();
    assert_eq!(found("primary").await.expect("it is one now"), standby_at);
}

#[test]
fn check_says_what_is_missing() {
    let postgres = Postgres::start(PostgresOptions {
        config: &[("max_replication_slots", "1"), ("wal_level", "logical")],
        hba: &["host all,replication scram_user all scram-sha-256"],
        ..PostgresOptions::default()
    });
    postgres.psql("CREATE ROLE plain_user LOGIN; CREATE ROLE scram_user LOGIN REPLICATION PASSWORD 's3cret'");
    let home = Home::new();
    let check = |url: &str, more: &str, environment: &[(&str, &str)]| check(&home, url, more, environment);
    let said = check(&postgres.url("postgres"), "", &[]).expect(0).stdout;
    assert!(said.contains("ok     postgres") && said.contains("slot tidelog will be created"), "{said}");
    assert!(said.contains(&postgres.psql("SELECT system_identifier FROM pg_control_system()")), "{said}");

    let expect = |url: &str, more: &str, parts: &[&str]| {
        let output = check(url, more, &[]);
        assert_ne!(output.status, Some(0), "{}", output.stdout);
        for part in parts {
            assert!(output.stdout.contains(part), "{part:?} is not in\n{}{}", output.stdout, output.stderr);
        }
    };
    expect(&postgres.url("plain_user"), "", &["must be superuser or replication role", "REPLICATION"]);
    expect(&postgres.url("absent"), "", &["role \"absent\" does not exist"]);
    expect(&postgres.url("scram_user:wrong"), "", &["password authentication failed", "PGPASSWORD"]);
    expect(&postgres.url("postgres"), "create_slot = false\n", &["no such slot", "postgres.create_slot = true"]);
    postgres.psql("SELECT pg_create_logical_replication_slot('dbz', 'pgoutput')");
    expect(&postgres.url("postgres"), "", &["no slot is left: 1 of max_replication_slots = 1", "drop a slot"]);
    expect(&postgres.url("postgres"), "slot = \"dbz\"\n", &["which is a logical slot (pgoutput)"]);

    // A URL that does not parse is repeated by nobody: nobody knows which part of it is the password.
    let rest = format!("127.0.0.1:{}/postgres", postgres.port());
    let malformed = [
        format!("postgres://scram_user:s3c/ret@{rest}"),
        format!("postgres://scram_user:s3c?ret@{rest}"),
        format!("postgres://scram_user:s3c%ret@{rest}"),
        format!("postgres:/scram_user:s3cret@{rest}"),
        format!("scram_user:s3cret@{rest}"),
        "host=127.0.0.1 user=scram_user password='s3cret dbname=postgres".to_owned(),
        "host=127.0.0.1 user=scram_user password s3cret".to_owned(),
    ];
    for url in &malformed {
        home.write("malformed.toml", &configured(&home, url, ""));
        for args in [&["check"][..], &["check", "--connect"], &["backup"]] {
            let said = home.run(&[&["-c", "malformed.toml"][..], args].concat());
            let all = format!("{}{}", said.stdout, said.stderr);
            assert!(
                said.status != Some(0) && !all.contains("s3c") && !all.contains("ret@"),
                "{args:?} of {url}: {all}"
            );
        }
    }

    // A password from where libpq's users keep it.
    let passfile = home.write("pgpass", "*:*:*:scram_user:s3cret\n");
    std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(0o600)).expect("its rights can be set");
    let passfile = passfile.display().to_string();
    let slot = "slot = \"dbz\"\n";
    for environment in [("PGPASSFILE", passfile.as_str()), ("PGPASSWORD", "s3cret")] {
        let said = check(&postgres.url("scram_user"), slot, &[environment]).stdout;
        assert!(said.contains("which is a logical slot"), "{environment:?} lets us in: {said}");
    }
    postgres.stop();
    expect(&postgres.url("postgres"), "", &["cannot reach 127.0.0.1", "Connection refused"]);
}

#[test]
fn check_refuses_a_server_that_writes_too_little() {
    for (config, part) in [
        (&[("wal_level", "minimal"), ("max_wal_senders", "0")], "wal_level is minimal"),
        (&[("wal_level", "replica"), ("max_wal_senders", "0")], "max_wal_senders is 0"),
    ] {
        let postgres = Postgres::start(PostgresOptions { config, ..PostgresOptions::default() });
        let said = check(&Home::new(), &postgres.url("postgres"), "", &[]).expect(1).stdout;
        assert!(said.contains(part) && said.contains("do: set "), "{said}");
    }
}

#[test]
fn no_password_is_printed_where_a_login_is_refused() {
    let postgres = Postgres::start(PostgresOptions {
        hba: &["host all,replication scram_user all scram-sha-256"],
        ..PostgresOptions::default()
    });
    postgres.psql("CREATE ROLE scram_user LOGIN REPLICATION PASSWORD 'another'");
    let port = postgres.port();
    for url in [
        format!("postgres://scram_user:hunter2%40x@127.0.0.1:{port}/postgres"),
        format!("host=127.0.0.1 port={port} user=scram_user password='hunter2 x' dbname=postgres"),
    ] {
        let home = Home::new();
        let (archive, spool) = (home.path().join("archive"), home.path().join("spool"));
        let archive = format!("[archive]\nurl = \"file://{}\"\nspool_dir = {spool:?}\n", archive.display());
        home.write("tidelog.toml", &format!("{archive}[postgres]\nurl = {url:?}\n"));
        let is_silent = |said: &str| {
            assert!(said.contains("password authentication failed"), "{said}");
            assert!(!said.contains("hunter2"), "{said}");
        };
        for args in [&["check", "--connect"][..], &["backup"]] {
            let said = home.run(&[&["-c", "tidelog.toml"], args].concat());
            assert_ne!(said.status, Some(0), "{args:?}");
            is_silent(&format!("{}{}", said.stdout, said.stderr));
        }
        let mut service = home.start(&["-c", "tidelog.toml", "run"]);
        wait_until("the service to be refused", Duration::from_secs(60), || {
            !service.is_running() || service.output().contains("password authentication failed")
        });
        is_silent(&service.output());
        service.kill();
    }
}

fn configured(home: &Home, url: &str, more: &str) -> String {
    let spool = home.path().join("spool").display().to_string();
    format!("[archive]\nurl = \"memory://\"\nspool_dir = {spool:?}\n[postgres]\nurl = {url:?}\n{more}")
}

/// `tidelog check --connect` with this `[postgres]`.
fn check(home: &Home, url: &str, more: &str, environment: &[(&str, &str)]) -> program::Output {
    home.write("tidelog.toml", &configured(home, url, more));
    let mut command = home.command(&["check", "--connect", "-c", "tidelog.toml"]);
    command.envs(environment.iter().copied());
    program::run(command)
}

//! The server of our own over a restored data directory: it opens, says why it does not, and is never left behind.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use tidelog::recover::server::{Open, Server, Start};

use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::wait_until;

const PATIENCE: Duration = Duration::from_secs(60);

/// A stopped server, and how one of our own is started over its data.
fn place(settings: &[(&str, &str)]) -> (Postgres, Start) {
    let postgres = Postgres::start(PostgresOptions::default());
    postgres.psql("CREATE TABLE t AS SELECT generate_series(1, 7) AS id");
    postgres.stop();
    let folder = postgres.data_dir().parent().expect("a directory").to_owned();
    // Where this is root, the server runs as another user.
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("its own directory");
    let bin_dir = Version::Debian.program("postgres").parent().expect("a directory").to_owned();
    let start = Start {
        bin_dir: fs::canonicalize(bin_dir).expect("it is there"),
        data: postgres.data_dir().to_owned(),
        socket: folder.join("socket"),
        port: 5432,
        listen: String::new(),
        log: folder.join("own.log"),
        settings: settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        outlives: false,
    };
    (postgres, start)
}

fn process(data: &Path) -> String {
    let text = fs::read_to_string(data.join("postmaster.pid")).expect("it runs");
    text.lines().next().expect("a number").to_owned()
}

fn is_gone(process: &str) -> bool {
    !Path::new("/proc").join(process).exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_opens_as_no_root_and_is_stopped_with_a_checkpoint() {
    let (_postgres, start) = place(&[]);
    let data = start.data.clone();
    let mut server = Server::start(start).expect("it starts");
    let reached = server.opened(Open::ForWriting, "postgres").await.expect("it opens");
    assert_eq!((reached.timeline, reached.replayed), (1, None), "it had nothing to recover");
    let mut sql = server.at("postgres", "postgres").expect("a place").sql().await.expect("a connection");
    let rows = sql.query("SELECT count(*), current_setting('listen_addresses') FROM t", "count").await.expect("rows");
    assert_eq!(rows, [[Some("7".to_owned()), Some(String::new())]]);
    let process = process(&data);
    let runs_as = fs::metadata(Path::new("/proc").join(&process)).expect("it runs").uid();
    assert!(runs_as != 0 && fs::metadata(&data).expect("there").uid() == runs_as, "{runs_as}");
    drop(sql);
    server.stop().await.expect("it stops");
    assert!(is_gone(&process) && !data.join("postmaster.pid").exists());
    let log = fs::read_to_string(data.parent().expect("a directory").join("own.log")).expect("a log");
    assert!(log.contains("database system is shut down"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_why_it_does_not_open_with_the_end_of_its_log() {
    let (_postgres, start) = place(&[("shared_preload_libraries", "not_there")]);
    let mut server = Server::start(start).expect("it starts");
    let error = server.opened(Open::ForWriting, "postgres").await.expect_err("no such library").to_string();
    assert!(error.contains("ended before it was open (exit status: 1)") && error.contains("not_there"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_logs_in_must_be_known_to_it() {
    let (_postgres, start) = place(&[]);
    let mut server = Server::start(start).expect("it starts");
    let error = server.opened(Open::ForWriting, "nobody_here").await.expect_err("no such role").to_string();
    assert!(error.contains("nobody_here"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_dropped_is_gone_unless_it_is_to_outlive() {
    let (_postgres, start) = place(&[]);
    let data = start.data.clone();
    let mut server = Server::start(start.clone()).expect("it starts");
    server.opened(Open::ForWriting, "postgres").await.expect("it opens");
    let first = process(&data);
    drop(server);
    assert!(is_gone(&first), "an immediate shutdown was waited for");
    let mut server = Server::start(Start { outlives: true, ..start.clone() }).expect("it starts");
    server.opened(Open::ForWriting, "postgres").await.expect("it opens after a crash");
    let second = process(&data);
    drop(server);
    // That thread ends, and would have taken the server with it.
    let other = Server::start(Start { socket: start.socket.with_file_name("other"), ..start });
    let mut other = other.expect("it starts");
    let error = other.opened(Open::ForWriting, "postgres").await.expect_err("one runs there").to_string();
    assert!(error.contains("lock file \"postmaster.pid\" already exists"), "{error}");
    assert!(!is_gone(&second));
    let stop = std::process::Command::new("kill").args(["-QUIT", &second]).status();
    assert!(stop.expect("it runs").success());
    wait_until("the server to end", PATIENCE, || !data.join("postmaster.pid").exists());
}

#[test]
fn a_socket_that_cannot_be_is_refused_before_anything_is_made() {
    let (_postgres, start) = place(&[]);
    let socket = start.socket.join("x".repeat(120));
    let error = Server::start(Start { socket: socket.clone(), ..start }).err().expect("too long");
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("too long for a socket") && !socket.exists(), "{error}");
}

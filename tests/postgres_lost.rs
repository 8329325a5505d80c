//! A server that is lost for good under full load: what its clients were told against what comes back.
//!
//! ```text
//!   pgbench ─► server, killed, its directory deleted           the log of pgbench: what was committed, client by client
//!                │                                                                    │
//!                └► tidelog run ─► archive ─► restore-postgres ─► a server ─► the same rows?
//! ```
//!
//! `cargo test --test main -- --nocapture postgres_lost` prints how much was lost.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::postgres_restore::{Place, markers, wait_recovered};
use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::program::Home;
use crate::rig::wait_until;

/// For a machine that does other work, too.
const PATIENCE: Duration = Duration::from_secs(120);
const STOP: Duration = Duration::from_secs(40);

/// As fast as it goes, every client counts its own transactions.
const LOAD: &str = "\\set n :n + 1\nINSERT INTO marks VALUES (:client_id, :n, repeat('x', 100));\n";

const CLIENTS: &str = "8";

/// What one client was told, or what is there of it.
type ByClient<T> = BTreeMap<u32, T>;

/// What is missing after a restore.
#[derive(Debug)]
struct Lost {
    /// Commits that a client was told of.
    told: usize,
    /// How many of them did not come back.
    missing: usize,
    /// Seconds from the first of these to the last commit that any client was told of.
    seconds: f64,
}

impl Lost {
    fn tell(&self, with: &str) {
        let Self { told, missing, seconds } = self;
        eprintln!(
            "{with}: {missing} of {told} commits that clients were told of are lost, those of the last {seconds:.3} s"
        );
    }
}

/// Loses a server that tidelog archives with `ack`, and restores it.
fn lose(ack: &str) -> Lost {
    let server = Postgres::start(PostgresOptions::default());
    server.psql("CREATE TABLE marks (client int, n bigint, filler text)");
    let home = Home::new();
    let (path, url) = (home.path().display(), server.url("postgres"));
    let config = format!(
        "[archive]\nurl = \"file://{path}/archive\"\nspool_dir = \"{path}/spool\"\n[postgres]\nurl = \"{url}\"\nack = \"{ack}\"\n"
    );
    home.write("tidelog.toml", &config);
    let mut program = home.start(&["-c", "tidelog.toml", "run"]);
    wait_until("tidelog to stream", PATIENCE, || {
        program.assert_running();
        server.psql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "1"
    });
    home.run(&["-c", "tidelog.toml", "backup"]).expect(0);
    if ack == "spool" {
        server.psql("ALTER SYSTEM SET synchronous_standby_names = 'tidelog'");
        server.reload();
        wait_until("tidelog to be the synchronous standby", PATIENCE, || {
            server.psql("SELECT string_agg(sync_state, ',') FROM pg_stat_replication") == "sync"
        });
    }
    let (script, prefix) = (home.write("load.sql", LOAD), home.path().join("told"));
    let words = ["-n", "-c", CLIENTS, "-j", "2", "-T", "600", "-D", "n=0", "-l"].map(str::to_owned);
    let own = ["-f".to_owned(), script.display().to_string(), format!("--log-prefix={}", prefix.display())];
    let words: Vec<&str> = words.iter().chain(&own).map(String::as_str).collect();
    let mut load = server.pgbench_start(&words);
    wait_until("a few thousand commits", PATIENCE, || {
        assert!(load.ended().is_none(), "{}", load.output());
        server.psql("SELECT count(*) FROM marks").parse::<u64>().expect("a number") > 4_000
    });
    server.kill();
    assert!(load.wait(PATIENCE).is_some(), "its clients have lost their server");
    let data = server.data_dir().to_owned();
    drop(server);
    assert!(!data.exists(), "its directory goes, too");
    program.terminate(STOP);

    let into = home.path().join("restored");
    home.run(&["-c", "tidelog.toml", "restore-postgres", "--into", &into.display().to_string()]).expect(0);
    let restored = Postgres::adopt(&into, PostgresOptions::default());
    restored.wait_ready();
    wait_until("the end of the recovery", PATIENCE, || restored.psql("SELECT pg_is_in_recovery()") == "f");
    let there = restored.psql("SELECT client, max(n), count(*) FROM marks GROUP BY client");
    compare(&told(&home), &there)
}

/// The times, in seconds since 1970, at which each client was told of its commits, one after the other.
fn told(home: &Home) -> ByClient<Vec<f64>> {
    let mut told = ByClient::<Vec<f64>>::new();
    for file in std::fs::read_dir(home.path()).expect("the directory").flatten() {
        if !file.file_name().to_string_lossy().starts_with("told.") {
            continue;
        }
        let log = std::fs::read_to_string(file.path()).expect("a log of pgbench");
        for line in log.lines() {
            // client, transaction, latency, script, seconds, microseconds
            let columns: Vec<&str> = line.split(' ').collect();
            let number = |index: usize| columns[index].parse::<f64>().expect("a number");
            told.entry(number(0) as u32).or_default().push(number(4) + number(5) / 1e6);
        }
    }
    told
}

/// Holds the rows that came back, `client|greatest|count`, against what was told.
fn compare(told: &ByClient<Vec<f64>>, there: &str) -> Lost {
    let mut came: ByClient<usize> = BTreeMap::new();
    for line in there.lines() {
        let columns: Vec<usize> = line.split('|').map(|column| column.parse().expect("a number")).collect();
        assert_eq!(columns[1], columns[2], "of client {} nothing is missing in between", columns[0]);
        came.insert(columns[0] as u32, columns[2]);
    }
    let last = told.values().flatten().copied().fold(0.0, f64::max);
    let (mut missing, mut first) = (0, last);
    for (client, times) in told {
        let came = came.get(client).copied().unwrap_or_default();
        assert!(came <= times.len() + 1, "client {client} was told of {} commits, and {came} are there", times.len());
        missing += times.len().saturating_sub(came);
        first = times.get(came).copied().unwrap_or(last).min(first);
    }
    let told = told.values().map(Vec::len).sum();
    assert!(told > 4_000, "{told}");
    Lost { told, missing, seconds: last - first }
}

#[test]
fn with_a_synchronous_spool_every_commit_that_a_client_saw_comes_back() {
    let lost = lose("spool");
    lost.tell("ack = \"spool\", synchronous");
    assert_eq!(lost.missing, 0, "{lost:?}");
}

#[test]
fn without_at_most_the_last_seconds_are_lost() {
    let lost = lose("archive");
    lost.tell("ack = \"archive\"");
    assert!(lost.seconds < 5.0, "{lost:?}");
}

#[test]
fn a_server_shuts_down_although_the_archive_is_away_and_nothing_is_lost() {
    for version in [Version::V13, Version::Debian, Version::V18] {
        let place = Place::new(version);
        place.mark(1);
        place.back_up();
        place.wait_archived();
        let (archive, away) = (place.home.path().join("archive"), place.home.path().join("away"));
        std::fs::rename(&archive, &away).expect("it goes away");
        std::fs::write(&archive, "nothing can be made here").expect("written");
        place.mark(2);
        let begun = std::time::Instant::now();
        // Panics where it waits for the archiver.
        match version {
            Version::Debian => place.postgres.stop_smart(),
            _ => place.postgres.stop(),
        }
        eprintln!("{version:?}: down after {:?}", begun.elapsed());
        place.program().as_mut().expect("it archives").assert_running();
        // The process that had it all in its spool is gone, too.
        place.program().take().expect("it archives").kill();
        std::fs::remove_file(&archive).expect("removed");
        std::fs::rename(&away, &archive).expect("it comes back");
        place.postgres.restart();
        place.archive(&place.postgres, "");
        place.mark(3);
        place.wait_archived();
        let listing = place.tidelog(&["ls", "--json"]).expect(0).json();
        assert_eq!(listing["streams"][0]["gaps"], serde_json::json!([]), "{version:?}: {listing}");
        let postgres = place.adopt(&place.restore("restored", &[]), version);
        wait_recovered(&postgres);
        assert_eq!(markers(&postgres), "3|3", "{version:?}");
    }
}

//! A slot that was lost, with real servers: what it did not deliver comes out of the archive by the connector itself, each change once, and
//! the connector goes on at the primary.
//!
//! ```text
//!   clients ─► PostgreSQL ─► Debezium ─► topics        connector stopped, slot dropped, WAL recycled, clients go on
//!                  └─ WAL ─► tidelog run ─► archive ─► scratch standby ─► Debezium ─► the same topics        killed at each step
//! ```

use std::time::Duration;

use serde_json::Value;

use crate::cdc::LOGICAL;
use crate::http::Service;
use crate::recover::{assert_once, command, counted};
use crate::rig::clients::{Clients, SCHEMA, TABLES};
use crate::rig::connect::{Connect, shared_worker};
use crate::rig::debezium::{Capture, assert_same_rows, fold, tables};
use crate::rig::kafka::{Kafka, free_port, shared};
use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::program::{self, Output};
use crate::rig::topics::PATIENCE;
use crate::rig::wait_until;
use crate::site::Settings;

/// A server that recycles its WAL as soon as it may.
fn settings(naptime: &'static str) -> Vec<(&'static str, &'static str)> {
    let small = [("min_wal_size", "2MB"), ("max_wal_size", "4MB"), ("autovacuum_naptime", naptime)];
    LOGICAL.into_iter().chain(small).collect()
}

/// A captured and archived database, and the clients that write to it.
struct Shop {
    service: Service,
    version: Version,
    postgres: Postgres,
    capture: Capture<'static>,
    clients: Option<Clients>,
    /// The connector's config, as Connect has it.
    config: Value,
    snapshot: usize,
}

impl Shop {
    fn start(version: Version, naptime: &'static str) -> Shop {
        let (kafka, worker) = (shared(), shared_worker());
        let config = settings(naptime);
        let options = PostgresOptions { version, config: &config, initdb: &["--wal-segsize=1"], ..Default::default() };
        let postgres = Postgres::start(options);
        postgres.psql(SCHEMA);
        let capture = Capture::start(&postgres, worker, &[]);
        capture.caught_up(&postgres, kafka);
        let settings = Settings { topics: &[&format!("^{}[.]", capture.prefix)], ..Settings::default() };
        let more = format!("[postgres]\nurl = {:?}\nmax_age = \"300ms\"\n", postgres.url("postgres"));
        let service = Service::start(kafka, &settings, &more);
        let clients = Clients::start(&postgres, 1, 4, 21);
        let config = worker.server.get(&format!("/connectors/{}/config", capture.name)).json();
        let shop = Shop { service, version, postgres, capture, clients: Some(clients), config, snapshot: 0 };
        shop.commits(20);
        shop.service.site.tidelog(&["backup"]).expect(0);
        // Each logs the transactions that run: a slot of a standby needs some to begin.
        for _ in 0..5 {
            shop.postgres.psql("CHECKPOINT");
            shop.commits(8);
        }
        shop.capture.caught_up(&shop.postgres, kafka);
        let snapshot = counted(kafka, &shop.capture.prefix, "r");
        Shop { snapshot, ..shop }
    }

    /// Waits for so many more commits of the clients.
    fn commits(&self, more: u32) {
        let count =
            || self.postgres.psql("SELECT coalesce(sum(committed), 0) FROM ledger").parse::<u32>().expect("a number");
        let before = count();
        wait_until("more commits", PATIENCE, || count() >= before + more);
    }

    /// Stops the connector and drops its slot; the clients go on for at least so many commits, until the WAL that it wants is gone. The
    /// planner's statistics are cleaned up meanwhile, by which a standby's slot would be lost.
    fn lose(&self, commits: u32, cleans: bool) {
        self.capture.stop();
        let slot = &self.capture.slot;
        let wanted = self.postgres.psql(&format!(
            "SELECT pg_walfile_name(confirmed_flush_lsn) FROM pg_replication_slots WHERE slot_name = '{slot}'"
        ));
        wait_until("the slot to be free", PATIENCE, || {
            self.postgres.try_psql(&format!("SELECT pg_drop_replication_slot('{slot}')")).status == Some(0)
        });
        self.commits(commits);
        wait_until("its WAL to be recycled", PATIENCE, || {
            if cleans {
                self.postgres.psql("ANALYZE");
                self.postgres.psql("VACUUM pg_statistic");
            }
            self.postgres.psql("SELECT pg_switch_wal()");
            self.postgres.psql("CHECKPOINT");
            !self.postgres.wal_dir().join(&wanted).exists()
        });
    }

    fn pipeline(&self, worker: &Connect) {
        let bin_dir = self.version.program("postgres").canonicalize().expect("it is there");
        let into = self.service.site.home().path().join("scratch");
        let text = format!(
            "[postgres]\nurl = {:?}\n[connect]\nurl = {:?}\n\
             [scratch]\ninto = {:?}\nbin_dir = {:?}\nport = {}\nlisten = \"127.0.0.1\"\n[scratch.settings]\nfsync = \"off\"\n\
             [[connector]]\nname = {:?}\n[connector.config]\n\"database.hostname\" = \"127.0.0.1\"\n",
            self.postgres.url("postgres"),
            worker.url(),
            into.display().to_string(),
            bin_dir.parent().expect("a directory").display().to_string(),
            free_port(),
            self.capture.name,
        );
        self.service.site.home().write("pipeline.toml", &text);
    }

    fn command(&self, args: &[&str]) -> std::process::Command {
        let all = ["slot", "--connector", &self.capture.name, "--pipeline", "pipeline.toml", "--json"];
        command(&self.service, &[&all, args].concat())
    }

    fn repair(&self, args: &[&str]) -> Output {
        program::run(self.command(args))
    }

    /// The clients end; all that they have committed is in the topics, once, and nothing is left behind.
    fn ends_whole(mut self, kafka: &Kafka, worker: &Connect) {
        self.commits(10);
        let known = self.clients.take().expect("they run").stop();
        self.capture.caught_up(&self.postgres, kafka);
        let rows = tables(&self.postgres, &TABLES);
        assert_same_rows("the clients", &known.rows(&self.postgres, 1), &rows);
        assert_same_rows("the topics", &fold(kafka, &self.capture.prefix, &TABLES), &rows);
        assert_once(kafka, &self.capture.prefix);
        assert_eq!(counted(kafka, &self.capture.prefix, "r"), self.snapshot, "a snapshot was made again");
        let config = worker.server.get(&format!("/connectors/{}/config", self.capture.name)).json();
        assert_eq!(config, self.config, "its config is not as it was");
        for left in ["scratch", "scratch.recover"] {
            assert!(!self.service.site.home().path().join(left).exists(), "{left} is left behind");
        }
        let slots = "SELECT string_agg(slot_name, ',') FROM pg_replication_slots WHERE slot_type = 'logical'";
        assert_eq!(self.postgres.psql(slots), self.capture.slot);
        let again = self.repair(&[]).expect(0).json();
        assert_eq!((&again["way"], &again["ok"]), (&"nothing".into(), &true.into()), "{again}");
        self.service.program.assert_running();
    }
}

/// Brings it back while the clients go on.
fn comes_back(version: Version, naptime: &'static str, commits: u32) {
    let (kafka, worker) = (shared(), shared_worker());
    let shop = Shop::start(version, naptime);
    shop.pipeline(worker);
    let nothing = shop.repair(&[]).expect(0).json();
    assert_eq!((&nothing["way"], nothing["steps"].as_array().map(Vec::len)), (&"nothing".into(), Some(0)), "{nothing}");

    shop.lose(commits, true);
    let plan = shop.repair(&["--dry-run"]).expect(0).json();
    assert_eq!((&plan["way"], &plan["slot_state"]), (&"standby".into(), &"is not there".into()), "{plan}");
    assert!(plan["missed"]["commits"].as_u64() >= Some(commits.into()), "{plan}");
    assert!(plan["missed"]["first"]["xid"].is_u64() && plan["missed"]["holes"] == Value::Array(vec![]), "{plan}");
    assert!(plan["conflicts"]["harmless"].as_u64() > Some(0) && plan["conflicts"]["real"] == 0, "{plan}");
    assert!(!plan.to_string().contains("hunter2"), "a secret is shown: {plan}");
    assert!(!shop.service.site.home().path().join("scratch.recover").exists(), "a dry run made something");

    let among_others = shop.repair(&["--journal", "."]).expect(2);
    assert!(among_others.stderr.contains("the journal would lie beside"), "{among_others:?}");

    let report = shop.repair(&[]).expect(0).json();
    assert_eq!((&report["ok"], &report["differences"]), (&true.into(), &Value::Array(vec![])), "{report}");
    let read = report["steps"][4]["proof"].as_str().expect("a proof");
    assert!(read.contains("its offset is written down"), "{report}");
    assert!(report["missed"]["commits"].as_u64() >= plan["missed"]["commits"].as_u64(), "{report}");
    shop.ends_whole(kafka, worker);
}

#[test]
fn what_a_lost_slot_did_not_deliver_comes_out_of_the_archive_once() {
    comes_back(Version::V17, "1s", 60);
}

#[test]
fn a_repair_that_is_killed_wherever_it_writes_goes_on() {
    let (kafka, worker) = (shared(), shared_worker());
    let shop = Shop::start(Version::V16, "60s");
    shop.pipeline(worker);
    shop.lose(40, true);
    let mut kills = 0;
    let report = loop {
        let mut command = shop.command(&[]);
        command.env("TIDELOG_FAILPOINTS", format!("recover.save=kill@{}", 1 + kills % 3));
        let output = program::run(command);
        if output.status == Some(0) {
            break output.json();
        }
        assert!(output.stderr.contains("failpoint recover.save"), "{output:?}");
        kills += 1;
        assert!(kills < 30, "it comes to no end");
    };
    assert!(kills > 5, "{kills}");
    assert_eq!(report["ok"], true, "{report}");
    shop.ends_whole(kafka, worker);
}

/// Five minutes of what autovacuum does by itself: `cargo test --test main recover_slot::five_minutes -- --ignored`.
#[test]
#[ignore = "each version takes eight minutes"]
fn five_minutes_with_autovacuum_as_it_is_come_back() {
    for version in [Version::V16, Version::V17, Version::V18] {
        let (kafka, worker) = (shared(), shared_worker());
        let shop = Shop::start(version, "60s");
        shop.pipeline(worker);
        let begun = std::time::Instant::now();
        shop.lose(100, false);
        while begun.elapsed() < Duration::from_secs(300) {
            shop.commits(50);
        }
        let report = shop.repair(&[]).expect(0).json();
        assert_eq!(report["ok"], true, "{report}");
        println!("{version:?}: {report}");
        shop.ends_whole(kafka, worker);
    }
}

//! A slot that was lost, with real servers: what it did not deliver comes out of the archive by the connector itself, each change once, and
//! the connector goes on at the primary.
//!
//! ```text
//!   clients ─► PostgreSQL ─► Debezium ─► topics        connector stopped, slot dropped, WAL recycled, clients go on
//!                  └─ WAL ─► tidelog run ─► archive ─► scratch standby ─► Debezium ─► the same topics        killed at each step
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::cdc::LOGICAL;
use crate::http::Service;
use crate::recover::{assert_once, command, counted};
use crate::rig::clients::{Clients, SCHEMA, TABLES};
use crate::rig::connect::{Connect, shared_worker};
use crate::rig::debezium::{Capture, assert_same_rows, changes, fold, tables};
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
        Shop::start_with(version, naptime, "", &[])
    }

    /// One with more tables, and settings of the connector.
    fn start_with(version: Version, naptime: &'static str, more_tables: &str, more: &[(&str, &str)]) -> Shop {
        let (kafka, worker) = (shared(), shared_worker());
        let config = settings(naptime);
        let options = PostgresOptions { version, config: &config, initdb: &["--wal-segsize=1"], ..Default::default() };
        let postgres = Postgres::start(options);
        postgres.psql(SCHEMA);
        postgres.psql(more_tables);
        let capture = Capture::start(&postgres, worker, more);
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

    /// Stops the connector, and lets the server invalidate its slot.
    fn invalidate(&self, commits: u32) {
        self.capture.stop();
        let limit = |value: &str| {
            self.postgres.psql(&format!("ALTER SYSTEM SET max_slot_wal_keep_size = {value}"));
            self.postgres.psql("SELECT pg_reload_conf()");
        };
        limit("'1MB'");
        self.commits(commits);
        let status = format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{}'", self.capture.slot);
        wait_until("its slot to be lost", PATIENCE, || {
            self.postgres.psql("SELECT pg_switch_wal()");
            self.postgres.psql("CHECKPOINT");
            self.commits(5);
            self.postgres.psql(&status) == "lost"
        });
        limit("-1");
    }

    fn pipeline(&self, worker: &Connect) {
        self.pipeline_with(worker, "");
    }

    fn pipeline_with(&self, worker: &Connect, marker: &str) {
        let bin_dir = self.version.program("postgres").canonicalize().expect("it is there");
        let into = self.service.site.home().path().join("scratch");
        let text = format!(
            "[postgres]\nurl = {:?}\n[connect]\nurl = {:?}\n\
             [scratch]\ninto = {:?}\nbin_dir = {:?}\nport = {}\nlisten = \"127.0.0.1\"\n[scratch.settings]\nfsync = \"off\"\n\
             [[connector]]\nname = {:?}\n{marker}[connector.config]\n\"database.hostname\" = \"127.0.0.1\"\n",
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

/// More tables: one that nobody changes, one without a key of which equal rows are told apart by their number alone, one whose unique
/// values change places and of which a column is worked out, a partitioned one, and one that is truncated.
const MORE: &str = "
    CREATE TABLE quiet (id bigint PRIMARY KEY, note text);
    INSERT INTO quiet SELECT n, 'q' || n FROM generate_series(1, 40) n;
    CREATE TABLE bag (n bigint, note text);
    ALTER TABLE bag REPLICA IDENTITY FULL;
    INSERT INTO bag SELECT n % 3, 'b' FROM generate_series(1, 12) n;
    CREATE TABLE odd (id text PRIMARY KEY, n bigint UNIQUE, twice bigint GENERATED ALWAYS AS (n * 2) STORED);
    INSERT INTO odd SELECT 'k' || n, n FROM generate_series(1, 6) n;
    CREATE TABLE parts (id bigint PRIMARY KEY, note text) PARTITION BY RANGE (id);
    CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (100);
    CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (100) TO (1000);
    INSERT INTO parts SELECT n * 40, 'p' FROM generate_series(1, 10) n;
    CREATE TABLE emptied (id bigint PRIMARY KEY, note text);
    INSERT INTO emptied SELECT n, 'e' FROM generate_series(1, 5) n;";

/// What happens to them while nothing is read.
const CHANGES: &str = "
    DELETE FROM bag WHERE ctid = (SELECT ctid FROM bag WHERE n = 0 ORDER BY ctid LIMIT 1);
    INSERT INTO bag VALUES (1, 'b'), (1, 'b'), (7, NULL);
    BEGIN; UPDATE odd SET n = -n; UPDATE odd SET n = 7 + n; COMMIT;
    UPDATE odd SET id = 'K2' WHERE id = 'k2';
    UPDATE parts SET id = id + 10, note = 'moved' WHERE id IN (80, 400);
    UPDATE parts SET id = 500 WHERE id = 40;
    DELETE FROM parts WHERE id = 160;
    TRUNCATE emptied; INSERT INTO emptied VALUES (3, 'again');
    ALTER TABLE odd ADD COLUMN later bigint NOT NULL DEFAULT 5;
    INSERT INTO odd (id, n) VALUES ('k9', 90);
    CREATE TABLE young (id bigint PRIMARY KEY, note text);
    INSERT INTO young SELECT n, 'y' FROM generate_series(1, 3) n; DELETE FROM young WHERE id = 2;
    CREATE TABLE brief (id bigint PRIMARY KEY); INSERT INTO brief VALUES (1); DELETE FROM brief;";

/// Tables with keys of [`MORE`], of which topics and tables are compared.
const KEYED: [&str; 6] = ["quiet", "odd", "parts_low", "parts_high", "emptied", "young"];

/// How often each row stands in a topic without keys, after what was deleted.
fn bag(kafka: &Kafka, topic: &str) -> BTreeMap<String, i64> {
    let mut rows = BTreeMap::new();
    for change in changes(&kafka.consume_all(topic)) {
        for (image, by) in [("before", -1), ("after", 1)] {
            if change[image].is_object() {
                *rows.entry(change[image].to_string()).or_insert(0) += by;
            }
        }
    }
    rows.retain(|_, count| *count != 0);
    rows
}

/// Where no standby decodes: net changes, in the connector's own shape. Killed at each writing, by a row for a marker and with a publication
/// of just what is captured, after the slot was dropped; or in one go, by a message, after it was invalidated.
fn comes_back_net(version: Version, marker: &str, kills: bool) {
    let (kafka, worker) = (shared(), shared_worker());
    let more: &[(&str, &str)] = if kills { &[("publication.autocreate.mode", "filtered")] } else { &[] };
    let shop = Shop::start_with(version, "1s", MORE, more);
    shop.pipeline_with(worker, marker);
    let deleted = || counted(kafka, &shop.capture.prefix, "d");
    let before = deleted();
    match kills {
        true => shop.lose(40, false),
        false => shop.invalidate(40),
    }
    shop.postgres.psql(CHANGES);
    let plan = shop.repair(&["--dry-run"]).expect(0).json();
    assert_eq!((&plan["way"], plan["steps"].as_array().map(Vec::len)), (&"net".into(), Some(10)), "{plan}");
    assert!(plan["why"].as_str().is_some_and(|why| why.contains("does not decode on a standby")), "{plan}");
    let mut killed = 0;
    let report = loop {
        let mut command = shop.command(&[]);
        if kills {
            command.env("TIDELOG_FAILPOINTS", format!("recover.save=kill@{}", 1 + killed % 3));
        }
        let output = program::run(command);
        if output.status == Some(0) {
            break output.json();
        }
        assert!(kills && output.stderr.contains("failpoint recover.save"), "{output:?}");
        killed += 1;
        assert!(killed < 40, "it comes to no end");
    };
    assert_eq!(killed > 8, kills, "{killed}");
    assert_eq!((&report["ok"], &report["differences"]), (&true.into(), &Value::Array(vec![])), "{report}");
    assert!(deleted() > before, "nothing was deleted: {report}");
    // A table that is made later is in no publication of tables that are named.
    let keyed = &KEYED[..if kills { 5 } else { 6 }];
    let mut rows = tables(&shop.postgres, keyed);
    for row in rows.get_mut("odd").expect("it is one of them").values_mut() {
        row.as_object_mut().expect("a row").remove("twice").expect("no connector has it");
    }
    assert_same_rows("more tables", &fold(kafka, &shop.capture.prefix, keyed), &rows);
    let rows =
        shop.postgres.psql("SELECT json_build_object('n', n, 'note', note)::jsonb::text, count(*) FROM bag GROUP BY 1");
    let rows = rows.lines().map(|line| {
        let (row, count) = line.split_once('|').expect("two columns");
        (serde_json::from_str::<Value>(row).expect("JSON").to_string(), count.parse().expect("a number"))
    });
    assert_eq!(bag(kafka, &shop.capture.topic("bag")), rows.collect(), "{report}");
    // Whoever orders by it has what came before, the net changes, and what comes from now on, in that order.
    let changed = report["offset"]["committed"].as_str().map(lsn);
    let topic = shop.capture.topic("parts_high");
    let last = changes(&kafka.consume_all(&topic)).last().and_then(|change| change["source"]["lsn"].as_u64());
    assert!(last > changed && last < report["missed"]["to"].as_str().map(lsn), "{last:?} {report}");
    shop.ends_whole(kafka, worker);
}

/// A position as a number.
fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').expect("a position");
    let part = |text| u64::from_str_radix(text, 16).expect("a position");
    part(high) << 32 | part(low)
}

#[test]
fn net_changes_come_where_no_standby_decodes() {
    comes_back_net(Version::Debian, "", false);
}

#[test]
fn net_changes_that_are_killed_wherever_they_are_written_down_go_on() {
    comes_back_net(Version::V13, "marker = \"INSERT INTO marks (note) VALUES ('{token}')\"\n", true);
}

/// Five minutes of what autovacuum does by itself: `make test-slot`.
fn five_minutes(version: Version) {
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

#[test]
#[ignore = "it takes eight minutes"]
fn five_minutes_come_back_as_net_changes_on_15() {
    five_minutes(Version::Debian);
}

#[test]
#[ignore = "it takes eight minutes"]
fn five_minutes_with_autovacuum_as_it_is_come_back_on_16() {
    five_minutes(Version::V16);
}

#[test]
#[ignore = "it takes eight minutes"]
fn five_minutes_with_autovacuum_as_it_is_come_back_on_17() {
    five_minutes(Version::V17);
}

#[test]
#[ignore = "it takes eight minutes"]
fn five_minutes_with_autovacuum_as_it_is_come_back_on_18() {
    five_minutes(Version::V18);
}

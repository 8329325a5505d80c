//! Recoveries to random moments: two connectors over one database that is written to all the time, its topics as JSON and as Avro; of
//! each moment the rows, the topics, the groups and what the clients saw committed are the same, and the load goes on from there.
//!
//! ```text
//!   clients ─► PostgreSQL 15, 18 ─┬► connector over acct, item ──► topics ─┐
//!     a column more on the way    └► connector over pair, doc ───► topics ─┼─► tidelog run ─► archive
//!                     └─────────────────────── WAL ────────────────────────┘                     │ a moment or a position of the load
//!                                    killed at a step or at any time, and begun again ◄──────────┘ recover --to, into new servers
//! ```
//!
//! `make soak-recover SOAK_SEED=7 SOAK_ROUNDS=10` draws these moments; each shape of topics and each version in turn.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cdc::LOGICAL;
use crate::http::Service;
use crate::recover::{TIME, as_postgres, wait_log_archived};
use crate::rig::clients::{Clients, Known, SCHEMA, TABLES};
use crate::rig::connect::{Connect, shared_worker};
use crate::rig::debezium::{Capture, Tables, assert_same_rows, changes, fold, fold_of, tables};
use crate::rig::kafka::{Kafka, free_port, shared};
use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::program;
use crate::rig::records::Random;
use crate::rig::registry::Registry;
use crate::rig::topics::PATIENCE;
use crate::rig::{unique, wait_for, wait_until};
use crate::site::Settings;
use crate::state::{commit, wait_state};

/// What each connector captures of the clients' tables.
const SHARES: [&[&str]; 2] = [&["acct", "item"], &["pair", "doc"]];

fn number(name: &str, or: u64) -> u64 {
    let text = std::env::var(name).ok().filter(|value| !value.is_empty());
    text.map_or(or, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// A pipeline that was archived under load. Its topics stay as they are from then on.
struct Pipeline {
    service: Service,
    version: Version,
    /// Of topics in Avro: the registry that their ids are of.
    registry: Option<Registry>,
    known: Known,
    /// The name, the prefix and the slot of each connector.
    connectors: Vec<(String, String, String)>,
    /// Moments and positions of the load, from behind the base backup on.
    moments: Vec<(String, String)>,
    /// A consumer group that reads `acct` while it is written to.
    group: String,
    _postgres: Postgres,
}

fn as_strs(settings: &[(String, String)]) -> Vec<(&str, &str)> {
    settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// The settings of a connector of these tables beside those of the rig.
fn settings_of(share: &[&str], registry: Option<&Registry>) -> Vec<(String, String)> {
    let listed: Vec<String> = share.iter().chain(&["marks"]).map(|table| format!("public.{table}")).collect();
    let mut settings = vec![("table.include.list".to_owned(), listed.join(","))];
    if let Some(registry) = registry {
        settings.extend(registry.avro_settings(false));
        // The deserializer cannot read them.
        settings.push(("tombstones.on.delete".into(), "false".into()));
    }
    settings
}

impl Pipeline {
    fn lose(version: Version, is_avro: bool, random: &mut Random) -> Pipeline {
        let (kafka, worker) = (shared(), shared_worker());
        let postgres = Postgres::start(PostgresOptions { version, config: &LOGICAL, ..Default::default() });
        postgres.psql(SCHEMA);
        let registry = is_avro.then(Registry::start);
        let captures: Vec<Capture> = SHARES
            .iter()
            .map(|share| Capture::start(&postgres, worker, &as_strs(&settings_of(share, registry.as_ref()))))
            .collect();
        for capture in &captures {
            capture.caught_up(&postgres, kafka);
        }
        let topics: Vec<String> = captures.iter().map(|capture| format!("^{}[.]", capture.prefix)).collect();
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        let of_registry =
            registry.as_ref().map_or_else(String::new, |of| format!("schema_registry_url = {:?}\n", of.url()));
        let config = format!(
            "[state]\nevery = \"1s\"\ngroups = [\"^reader\"]\nconnect_url = {:?}\n{of_registry}[postgres]\nurl = {:?}\nmax_age = \"300ms\"\n",
            worker.url(),
            postgres.url("postgres"),
        );
        let mut service = Service::start(kafka, &Settings { topics: &topics, ..Settings::default() }, &config);
        wait_state(&mut service, "connectors", "the connectors", |state| {
            captures.iter().all(|capture| state["connectors"][&capture.name].is_object())
        });
        let clients = Clients::start(&postgres, 1, 4, random.next() % 1_000);
        service.site.tidelog(&["backup"]).expect(0);
        let (group, acct) = (unique("reader"), captures[0].topic("acct"));
        wait_until("changes of acct", PATIENCE, || kafka.watermarks(&acct).first().is_some_and(|(_, end)| *end > 3));
        let mut moments = Vec::new();
        for round in 0..24 {
            if round == 9 {
                postgres.psql("ALTER TABLE acct ADD COLUMN extra text");
            }
            let end = kafka.watermarks(&acct)[0].1;
            commit(kafka, &group, &acct, end.saturating_sub(i64::try_from(random.below(8)).expect("small")).max(0), "");
            std::thread::sleep(Duration::from_millis(200 + random.below(1_800)));
            moments.push((postgres.psql(TIME), postgres.psql("SELECT pg_current_wal_lsn()")));
        }
        let known = clients.stop();
        // Twice: the first shows that all before it has come, the second that the connectors are past each moment.
        for capture in captures.iter().chain(&captures) {
            capture.caught_up(&postgres, kafka);
        }
        let names: Vec<String> = captures
            .iter()
            .zip(SHARES)
            .flat_map(|(capture, share)| share.iter().chain(&["marks"]).map(|table| capture.topic(table)))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        service.site.wait_archived(kafka, &names, &mut [&mut service.program]);
        wait_log_archived(&service, &postgres);
        let connectors = captures.iter().map(|of| (of.name.clone(), of.prefix.clone(), of.slot.clone())).collect();
        drop(captures);
        Pipeline { service, version, registry, known, connectors, moments, group, _postgres: postgres }
    }
}

/// One recovery.
struct Round<'a> {
    of: &'a Pipeline,
    number: u64,
    into: PathBuf,
    port: u16,
    /// The registry that the topics' ids are of from now on.
    registry: Option<Registry>,
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        let text = std::fs::read_to_string(self.into.join("postmaster.pid")).unwrap_or_default();
        if let Some(pid) = text.lines().next() {
            drop(Command::new("kill").args(["-QUIT", pid.trim()]).status());
        }
    }
}

impl<'a> Round<'a> {
    fn new(of: &'a Pipeline, number: u64) -> Round<'a> {
        let registry = of.registry.as_ref().map(|_| Registry::start());
        for name in registry.iter().flat_map(|_| ["A", "B", "C"]) {
            let schema = json!({ "type": "record", "name": name, "fields": [] }).to_string();
            let path = format!("/subjects/{name}/versions");
            registry.as_ref().expect("there is one").call("POST", &path, &json!({ "schema": schema }));
        }
        let into = of.service.site.home().path().join(format!("restored-{number}"));
        Round { of, number, into, port: free_port(), registry }
    }

    fn prefix(&self, old: &str) -> String {
        format!("r{}-{old}", self.number)
    }

    fn pipeline(&self, worker: &Connect) -> String {
        let bin_dir = self.of.version.program("postgres").canonicalize().expect("it is there");
        let mut text = format!(
            "[postgres]\ninto = {:?}\nbin_dir = {:?}\nport = {}\n\
             [postgres.settings]\nwal_level = \"logical\"\nlisten_addresses = \"127.0.0.1\"\nfsync = \"off\"\ndynamic_shared_memory_type = \"mmap\"\n\
             [kafka]\nrename = \"^cdc=r{}-cdc\"\ngroups = [{:?}]\n[connect]\nurl = {:?}\n",
            self.into.display().to_string(),
            bin_dir.parent().expect("a directory").display().to_string(),
            self.port,
            self.number,
            self.of.group,
            worker.url(),
        );
        if let Some(registry) = &self.registry {
            text.push_str(&format!("[schema_registry]\nurl = {:?}\n", registry.url()));
        }
        for (name, prefix, _) in &self.of.connectors {
            text.push_str(&format!("[[connector]]\nname = {name:?}\n[connector.config]\n"));
            text.push_str(&format!(
                "\"database.port\" = {}\n\"topic.prefix\" = {:?}\n",
                self.port,
                self.prefix(prefix)
            ));
            for (name, value) in self.registry.iter().flat_map(|registry| registry.avro_settings(false)) {
                text.push_str(&format!("{name:?} = {value:?}\n"));
            }
        }
        let name = format!("pipeline-{}.toml", self.number);
        self.of.service.site.home().write(&name, &text);
        name
    }

    /// Recovers; by lot it is killed before, where it writes its journal or at any time.
    fn recover(&self, to: &str, worker: &Connect, random: &mut Random) -> Value {
        let file = self.pipeline(worker);
        let args = ["-c", "tidelog.toml", "recover", "--pipeline", &file, "--to", to, "--json"];
        let command = || as_postgres(&self.of.service.site, &args);
        match random.below(5) {
            0 => {
                let mut command = command();
                command.env("TIDELOG_FAILPOINTS", format!("recover.save=kill@{}", 2 + random.below(10)));
                let killed = program::run(command);
                eprintln!("  killed at a step: {:?}", killed.stderr.lines().last());
            }
            1 => {
                let time = Duration::from_millis(500 + random.below(15_000));
                let mut child = command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
                std::thread::sleep(time);
                drop(child.kill());
                eprintln!("  killed after {time:?}: {:?}", child.wait().expect("it ends"));
            }
            _ => {}
        }
        program::run(command()).expect(0).json()
    }

    fn captures<'b>(&self, worker: &'b Connect) -> Vec<Capture<'b>> {
        let one = |(name, prefix, slot): &(String, String, String)| {
            let (name, prefix, slot) = (name.clone(), self.prefix(prefix), slot.clone());
            Capture { name, prefix, slot, worker }
        };
        self.of.connectors.iter().map(one).collect()
    }

    /// The rows that the topics come to.
    fn fold(&self, kafka: &Kafka) -> Tables {
        let mut all = Tables::new();
        for ((_, prefix, _), share) in self.of.connectors.iter().zip(SHARES) {
            let prefix = self.prefix(prefix);
            all.extend(match &self.registry {
                None => fold(kafka, &prefix, share),
                Some(registry) => {
                    let of = |table: &&str| {
                        let changes = registry.read_changes(kafka, &format!("{prefix}.public.{table}"));
                        ((*table).to_owned(), fold_of(changes.into_iter()))
                    };
                    share.iter().map(of).collect()
                }
            });
        }
        without_empty(all)
    }

    fn assert_same(&self, what: &str, known: Tables, recovered: &Postgres, kafka: &Kafka) {
        let what = format!("round {}: {what}", self.number);
        let rows = without_empty(tables(recovered, &TABLES));
        assert_same_rows(&format!("{what}: the clients"), &known, &rows);
        assert_same_rows(&format!("{what}: the topics"), &self.fold(kafka), &rows);
    }

    /// The group would read next what it would have read.
    fn assert_group(&self, old: i64, kafka: &Kafka) {
        let topic = format!("{}.public.acct", self.of.connectors[0].1);
        let new = self.prefix(&topic);
        let at = kafka.committed(&self.of.group, &new).get(&0).copied();
        let wanted = usize::try_from(old).expect("an offset");
        let is = |record: &crate::rig::topics::Record| (record.key.clone(), record.timestamp);
        let (was, came) = (kafka.consume_all(&topic), kafka.consume_all(&new));
        // Ids are others in Avro; the times of records are not, nor is their order.
        let times: Vec<_> = came.iter().map(|record| record.timestamp).collect();
        if self.registry.is_none() {
            let next =
                was.iter().filter(|record| record.offset >= old).map(is).find(|one| came.iter().any(|c| is(c) == *one));
            let index =
                next.map_or(came.len(), |next| came.iter().position(|record| is(record) == next).expect("it is there"));
            // Records of the same key and time are told apart by their places alone.
            let found = at.and_then(|at| came.get(usize::try_from(at).ok()?)).map(is);
            assert_eq!(
                (at.is_some(), found),
                (true, came.get(index).map(is)),
                "{new}: {wanted} is now {at:?}, {times:?}"
            );
        } else {
            assert!(
                at.is_some_and(|at| at <= i64::try_from(came.len()).expect("small")),
                "{new}: {wanted} is now {at:?}"
            );
        }
    }
}

/// Rows before the column came have none.
fn without_empty(mut all: Tables) -> Tables {
    for row in all.values_mut().flat_map(BTreeMap::values_mut) {
        let row = row.as_object_mut().expect("a row");
        if row.get("extra").is_some_and(Value::is_null) {
            row.remove("extra");
        }
    }
    all
}

fn play(pipeline: &Pipeline, number: u64, random: &mut Random) {
    let (kafka, worker) = (shared(), shared_worker());
    let (time, lsn) = &pipeline.moments[usize::try_from(random.below(pipeline.moments.len() as u64)).expect("small")];
    let to = if random.below(3) == 0 { lsn } else { time };
    eprintln!("round {number}: {:?}, avro {}, to {to} ({time})", pipeline.version, pipeline.registry.is_some());
    let round = Round::new(pipeline, number);
    let report = round.recover(to, worker, random);
    assert_eq!((&report["ok"], &report["differences"]), (&true.into(), &json!([])), "{report}");
    for connector in report["connectors"].as_array().expect("connectors") {
        assert_eq!(connector["marker_seen"], true, "{report}");
    }
    let socket = round.into.with_file_name(format!("restored-{number}.recover")).join("socket");
    let recovered = Postgres::of_another(pipeline.version, &round.into, (&socket, round.port));
    round.assert_same("recovered", pipeline.known.rows(&recovered, 1), &recovered, kafka);
    // Groups are those of the moment that was asked for, which may lie behind the commit.
    let at = if to == time { to } else { report["commit"]["time"].as_str().expect("a time") };
    let groups = pipeline.service.site.tidelog(&["cat", "--state", "groups", "--at", at]).expect(0).json();
    let committed = &groups["state"][&pipeline.group]["offsets"][format!("{}.public.acct", pipeline.connectors[0].1)];
    if let Some(old) = committed["0"]["offset"].as_i64() {
        round.assert_group(old, kafka);
    }

    let captures = round.captures(worker);
    let counted = |op: &str| -> usize {
        let all =
            captures.iter().zip(SHARES).flat_map(|(capture, share)| share.iter().map(|table| capture.topic(table)));
        all.filter(|topic| round.registry.is_none() && kafka.partitions(topic).is_some())
            .map(|topic| changes(&kafka.consume_all(&topic)).iter().filter(|change| change["op"] == op).count())
            .sum()
    };
    let snapshots = counted("r");
    let clients = Clients::start(&recovered, 101, 3, random.next() % 1_000);
    let committed = "SELECT coalesce(sum(committed), 0) > 20 FROM ledger WHERE client > 100";
    wait_until("commits behind the recovery", PATIENCE, || recovered.psql(committed) == "t");
    let more = clients.stop();
    for capture in &captures {
        capture.caught_up(&recovered, kafka);
    }
    let mut known = pipeline.known.rows(&recovered, 1);
    for (table, more) in more.rows(&recovered, 101) {
        known.get_mut(&table).expect("the same tables").extend(more);
    }
    round.assert_same("afterwards", known, &recovered, kafka);
    assert_eq!(counted("r"), snapshots, "round {number}: a snapshot was made again");
}

#[test]
#[ignore = "takes minutes: make soak-recover"]
fn every_moment_comes_back_whole() {
    let (seed, rounds) = (number("SOAK_SEED", 5), number("SOAK_ROUNDS", 10));
    eprintln!("soak-recover: SOAK_SEED={seed}, {rounds} rounds");
    let shapes = [(Version::Debian, false), (Version::V18, true), (Version::V18, false), (Version::Debian, true)];
    for (of, (version, is_avro)) in (0..).zip(shapes) {
        let mut random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(of));
        let own: Vec<u64> = (0..rounds).filter(|round| round % shapes.len() as u64 == of).collect();
        if own.is_empty() {
            continue;
        }
        let pipeline = Pipeline::lose(version, is_avro, &mut random);
        for round in own {
            play(&pipeline, round, &mut random);
        }
        wait_for("the archiver", PATIENCE, || pipeline.service.server.is_up().then_some(()));
    }
}

//! The whole pipeline brought to one commit, with real servers: what the database has, what its topics come to and what the clients saw
//! committed is the same, then and after the load goes on.
//!
//! ```text
//!   clients ─► PostgreSQL ─► Debezium ─► topics        tidelog run ─► archive
//!                  └───────────── WAL ──────────────────────┘            │ recover --to a moment in the middle
//!   rows = fold of the topics = model of the clients  ◄── a new server, new topics, a new connector ◄┘      killed at each step
//! ```

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::cdc::LOGICAL;
use crate::http::Service;
use crate::recover_strimzi::operate;
use crate::rig::clients::{Clients, Known, SCHEMA, TABLES};
use crate::rig::connect::{Connect, shared_worker};
use crate::rig::debezium::{Capture, assert_same_rows, changes, fold, settings, tables};
use crate::rig::kafka::{Kafka, free_port, shared};
use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::process::spawn;
use crate::rig::program::{self, Output};
use crate::rig::topics::PATIENCE;
use crate::rig::{unique, wait_until};
use crate::site::{Settings, Site};
use crate::state::{commit, wait_state};

/// The steps at which the program is ended here (`tests/crashes.rs` asks).
pub(crate) const STEPS: [&str; 1] = ["recover.save"];

/// A pipeline that was archived under load, and is gone.
pub(crate) struct Lost {
    pub(crate) service: Service,
    pub(crate) version: Version,
    /// The connector, its prefix and its slot.
    pub(crate) name: String,
    pub(crate) prefix: String,
    pub(crate) slot: String,
    /// Where the database is recovered to.
    into: PathBuf,
    port: u16,
    known: Known,
    /// A moment in the middle of the load.
    pub(crate) to: String,
    /// A consumer group that stood at offset 5 of `acct` by then.
    pub(crate) group: String,
    /// The server that was captured.
    old: Postgres,
}

impl Drop for Lost {
    fn drop(&mut self) {
        end_server(&self.into);
    }
}

/// Ends the server over a data directory, if one runs.
pub(crate) fn end_server(data: &Path) {
    let text = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    if let Some(pid) = text.lines().next() {
        drop(Command::new("kill").args(["-QUIT", pid.trim()]).status());
    }
}

/// The server's clock.
pub(crate) const TIME: &str =
    "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";

/// Waits until the archive has the log up to its end now.
pub(crate) fn wait_log_archived(service: &Service, postgres: &Postgres) {
    let end: tidelog::stream::Lsn = postgres.psql("SELECT pg_current_wal_flush_lsn()").parse().expect("an LSN");
    wait_until("the log in the archive", PATIENCE, || {
        let listing = service.site.tidelog(&["ls", "--json"]).expect(0).json();
        let stream =
            listing["streams"].as_array().expect("streams").iter().find(|one| one["kind"] == "postgres").cloned();
        stream.is_some_and(|stream| {
            stream["partitions"][0]["end"]
                .as_str()
                .is_some_and(|at| at.parse().is_ok_and(|at: tidelog::stream::Lsn| at >= end))
        })
    });
}

/// `tidelog` as a user that PostgreSQL runs as.
pub(crate) fn as_postgres(site: &Site, args: &[&str]) -> Command {
    let tidelog = site.home().command(args);
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-user=65534", "--map-group=65534"]).arg(tidelog.get_program());
    command.args(tidelog.get_args()).current_dir(site.home().path());
    for (name, _) in tidelog.get_envs() {
        command.env_remove(name);
    }
    command
}

/// Lets clients write while all is captured and archived; then the connector and the archiver end.
fn lost(version: Version, worker: &'static Connect, more: &[(&str, &str)]) -> Lost {
    let postgres = Postgres::start(PostgresOptions { version, config: &LOGICAL, ..Default::default() });
    postgres.psql(SCHEMA);
    let kafka = shared();
    let capture = Capture::start(&postgres, worker, more);
    // A topic that can be archived.
    capture.caught_up(&postgres, kafka);
    let settings = Settings { topics: &[&format!("^{}[.]", capture.prefix)], ..Settings::default() };
    let config = format!(
        "[state]\nevery = \"1s\"\ngroups = [\"^reader\"]\nconnect_url = {:?}\n[postgres]\nurl = {:?}\nmax_age = \"300ms\"\n",
        worker.url(),
        postgres.url("postgres"),
    );
    let mut service = Service::start(kafka, &settings, &config);
    let name = capture.name.clone();
    wait_state(&mut service, "connectors", "the connector", |state| state["connectors"][&name].is_object());
    service.site.tidelog(&["backup"]).expect(0);
    let clients = Clients::start(&postgres, 1, 4, 11);
    let committed = |more: u32| format!("SELECT coalesce(sum(committed), 0) > {more} FROM ledger");
    // A slot is made where the log says who was running.
    for more in [10, 20, 30, 40] {
        wait_until("some commits", PATIENCE, || postgres.psql(&committed(more)) == "t");
        postgres.psql("CHECKPOINT");
    }
    let logged: tidelog::stream::Lsn = postgres.psql("SELECT pg_current_wal_lsn()").parse().expect("an LSN");
    wait_until("some commits", PATIENCE, || postgres.psql(&committed(60)) == "t");
    let group = unique("reader");
    // The group is kept after the last commit before the moment: the database is the same then, and the group is not.
    let to = while_nobody_commits(&postgres, || {
        commit(kafka, &group, &capture.topic("acct"), 5, "");
        wait_state(&mut service, "groups", "the group", |state| state[&group].is_object());
        wait_state(&mut service, "connectors", "an offset behind that", |state| {
            let offset = &state["connectors"][&name]["offsets"][0]["offset"];
            offset["lsn_commit"].as_u64().is_some_and(|at| at > logged.0)
        });
        postgres.psql(TIME)
    });
    wait_until("more commits", PATIENCE, || postgres.psql(&committed(110)) == "t");
    let known = clients.stop();
    capture.caught_up(&postgres, kafka);
    let (prefix, slot) = (capture.prefix.clone(), capture.slot.clone());
    let names: Vec<String> =
        [&TABLES[..], &["marks", "ledger"]].concat().iter().map(|table| capture.topic(table)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    service.site.wait_archived(kafka, &names, &mut [&mut service.program]);
    wait_log_archived(&service, &postgres);
    drop(capture);
    let into = service.site.home().path().join("restored");
    Lost { service, version, name, prefix, slot, into, port: free_port(), known, to, group, old: postgres }
}

/// Holds up the transactions of all clients before their commits.
fn while_nobody_commits<T>(postgres: &Postgres, work: impl FnOnce() -> T) -> T {
    let mut command = postgres.client("psql");
    command.args(["-X", "-A", "-t", "-q"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut session = spawn(command).expect("psql starts");
    let mut statements = session.stdin.take().expect("its input");
    statements.write_all(b"BEGIN; LOCK TABLE ledger IN EXCLUSIVE MODE;\n\\echo locked\n").expect("psql reads");
    let mut answers = BufReader::new(session.stdout.take().expect("its output"));
    let mut line = String::new();
    answers.read_line(&mut line).expect("psql answers");
    assert_eq!(line.trim(), "locked");
    let done = work();
    drop(statements);
    assert!(session.wait().expect("psql ends").success());
    done
}

impl Lost {
    /// The prefix of the topics that come to be.
    fn new_prefix(&self) -> String {
        format!("new-{}", self.prefix)
    }

    fn pipeline(&self, worker: &Connect, more: &str) -> PathBuf {
        let bin_dir = self.version.program("postgres").canonicalize().expect("it is there");
        let text = format!(
            "[postgres]\ninto = {:?}\nbin_dir = {:?}\nport = {}\n\
             [postgres.settings]\nwal_level = \"logical\"\nlisten_addresses = \"127.0.0.1\"\nfsync = \"off\"\ndynamic_shared_memory_type = \"mmap\"\n\
             [kafka]\nrename = \"^cdc=new-cdc\"\n[connect]\nurl = {:?}\n\
             [[connector]]\nname = {:?}\n{more}[connector.config]\n\"database.port\" = {}\n\"topic.prefix\" = {:?}\n",
            self.into.display().to_string(),
            bin_dir.parent().expect("a directory").display().to_string(),
            self.port,
            worker.url(),
            self.name,
            self.port,
            self.new_prefix(),
        );
        self.service.site.home().write("pipeline.toml", &text)
    }

    fn command(&self, args: &[&str]) -> Command {
        command(&self.service, &[&["--pipeline", "pipeline.toml"], args].concat())
    }

    fn recover(&self, args: &[&str]) -> Output {
        program::run(self.command(args))
    }

    /// The recovered server, which runs by itself.
    fn postgres(&self) -> Postgres {
        let socket = self.into.with_extension("recover").join("socket");
        Postgres::of_another(self.version, &self.into, (&socket, self.port))
    }
}

/// `tidelog recover` as a user that PostgreSQL runs as.
pub(crate) fn command(service: &Service, args: &[&str]) -> Command {
    as_postgres(&service.site, &[&["-c", "tidelog.toml", "recover"], args].concat())
}

fn step<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["steps"].as_array().expect("steps").iter().find(|step| step["step"] == name).expect("the step")
}

/// Rows, topics and the clients' model say the same, and no topic has a row of a snapshot that was not archived.
fn assert_one_commit(what: &str, lost: &Lost, recovered: &Postgres, kafka: &Kafka) {
    let rows = tables(recovered, &TABLES);
    assert_same_rows(&format!("{what}: the clients"), &lost.known.rows(recovered, 1), &rows);
    assert_same_rows(&format!("{what}: the topics"), &fold(kafka, &lost.new_prefix(), &TABLES), &rows);
}

/// How often each change of each table stands in the topics of a prefix, without those of snapshots.
pub(crate) fn counted(kafka: &Kafka, prefix: &str, op: &str) -> usize {
    let topics = TABLES.iter().map(|table| format!("{prefix}.public.{table}"));
    topics
        .filter(|topic| kafka.partitions(topic).is_some())
        .map(|topic| changes(&kafka.consume_all(&topic)).iter().filter(|change| change["op"] == op).count())
        .sum()
}

/// Each change that was streamed stands in its topic once.
pub(crate) fn assert_once(kafka: &Kafka, prefix: &str) {
    for topic in TABLES.iter().map(|table| format!("{prefix}.public.{table}")) {
        let mut seen = std::collections::BTreeSet::new();
        for record in kafka.consume_all(&topic) {
            let Some(value) = &record.value else { continue };
            let change: Value = serde_json::from_slice(value).expect("a change event");
            let source = &change["source"];
            let is = format!("{} {} {} {:?}", source["txId"], source["lsn"], change["op"], record.key);
            assert!(change["op"] == "r" || seen.insert(is.clone()), "{topic}: {is} came twice");
        }
    }
}

/// The load goes on at the recovered server: its changes come to the recovered topics, each once.
fn goes_on(lost: &Lost, recovered: &Postgres, worker: &'static Connect, kafka: &Kafka) {
    let snapshots = counted(kafka, &lost.new_prefix(), "r");
    let capture = Capture { name: lost.name.clone(), prefix: lost.new_prefix(), slot: lost.slot.clone(), worker };
    let clients = Clients::start(recovered, 101, 3, 12);
    let committed = "SELECT coalesce(sum(committed), 0) > 20 FROM ledger WHERE client > 100";
    wait_until("commits behind the recovery", PATIENCE, || recovered.psql(committed) == "t");
    let more = clients.stop();
    capture.caught_up(recovered, kafka);
    let rows = tables(recovered, &TABLES);
    let mut known = lost.known.rows(recovered, 1);
    for (table, more) in more.rows(recovered, 101) {
        known.get_mut(&table).expect("the same tables").extend(more);
    }
    assert_same_rows("afterwards: the clients", &known, &rows);
    assert_same_rows("afterwards: the topics", &fold(kafka, &lost.new_prefix(), &TABLES), &rows);
    assert_eq!(counted(kafka, &lost.new_prefix(), "r"), snapshots, "a snapshot was made again");
    assert_once(kafka, &lost.new_prefix());
}

/// What would lose changes, or take somebody else's place, is refused before anything is made.
fn refuses(lost: &Lost, worker: &Connect) {
    let file = lost.service.site.home().path().join("pipeline.toml");
    let whole = std::fs::read_to_string(&file).expect("the pipeline file");
    let says = |text: &str, part: &str| {
        std::fs::write(&file, text).expect("the pipeline file can be written");
        let said = lost.recover(&["--to", &lost.to]).expect(2).stderr;
        assert!(said.contains(part), "{part} is not in: {said}");
        assert!(
            !lost.into.exists() && !lost.into.with_file_name("restored.recover").exists(),
            "{part}: something was made"
        );
    };
    for (never, nearest) in
        [("2001-01-01T00:00:00Z", "archive begins"), ("9999-01-01T00:00:00Z", "end of the archived WAL")]
    {
        let said = lost.recover(&["--to", never]).expect(1).stderr;
        let all =
            ["the nearest moment that every part reaches is", "Postgres from", "topics to", "connectors from", nearest];
        assert!(all.iter().all(|part| said.contains(part)), "{said}");
    }
    let port = format!("\"database.port\" = {}\n", lost.port);
    says(&whole.replace(&port, ""), "it would connect to the server that it was of");
    says(&whole.replace("^cdc=new-cdc", "^cdc=other-cdc"), "what comes from now on would go to");
    says(
        &whole.replace("[connector.config]\n", "[connector.config]\n\"slot.drop.on.stop\" = \"true\"\n"),
        "slot.drop.on.stop would drop its slot",
    );
    says(&whole.replace("/bin\"", "/bin\"\nprot = 1"), "postgres.prot: is not a key; did you mean port?");
    says(&whole.replace("[connect]\n", "acls = true\n[connect]\n"), "the brokers have no authorizer");
    let lines = worker.file("lines", "one\n");
    worker.copy_lines(&lost.name, &lines, &format!("lines-{}", lost.prefix), serde_json::json!({}));
    says(&whole, "already, and it is not stopped");
    worker.call("DELETE", &format!("/connectors/{}", lost.name), &Value::Null);
    std::fs::write(&file, whole).expect("the pipeline file can be written");
}

/// A connector over the recovered server with a slot that is new, and an offset other than where that begins; gives where it does.
fn gone_on_from<'a>(
    recovered: &Postgres,
    worker: &'a Connect,
    offset: impl FnOnce(tidelog::stream::Lsn) -> Value,
) -> (Capture<'a>, tidelog::stream::Lsn) {
    let (name, prefix, slot) = (unique("wrong"), unique("wrong"), unique("wrong").replace('-', "_"));
    let made = format!("SELECT lsn FROM pg_create_logical_replication_slot('{slot}', 'pgoutput')");
    let at = recovered.psql(&made).parse().expect("an LSN");
    let config = settings(recovered, &prefix, &slot);
    let body = json!({ "name": name, "config": config, "initial_state": "STOPPED" });
    worker.call("POST", "/connectors", &body);
    worker.wait_state(&name, "STOPPED");
    let offsets = json!({ "offsets": [{ "partition": { "server": prefix }, "offset": offset(at) }] });
    worker.call("PATCH", &format!("/connectors/{name}/offsets"), &offsets);
    worker.call("PUT", &format!("/connectors/{name}/resume"), &Value::Null);
    (Capture { name, prefix, slot, worker }, at)
}

/// Any other offset than the beginning of the new slot is wrong: with the archived one the connector fails, and with one above the slot
/// it runs, and leaves out what was committed up to there. That is why a recovery sets it, and why it believes nothing but its marker.
fn wrong_ways_fail(lost: &Lost, recovered: &Postgres, worker: &'static Connect, kafka: &Kafka) {
    let args = ["cat", "--state", "connectors", "--at", &lost.to];
    let archived = lost.service.site.tidelog(&args).expect(0).json();
    let archived = archived["state"]["connectors"][&lost.name]["offsets"][0]["offset"].clone();
    assert!(archived["lsn_proc"].is_u64(), "{archived}");
    let (old, _) = gone_on_from(recovered, worker, |_| archived);
    let (above, slot) = gone_on_from(recovered, worker, |slot| json!({ "lsn": slot.0 + (1 << 20), "ts_usec": 1 }));
    let status = |capture: &Capture<'_>| worker.server.get(&format!("/connectors/{}/status", capture.name)).json();
    wait_until("the connector with the archived offset to fail", PATIENCE, || {
        status(&old)["tasks"][0]["trace"].as_str().is_some_and(|why| why.contains("no longer available on the server"))
    });
    worker.wait_state(&above.name, "RUNNING");
    recovered.psql("INSERT INTO marks (note) VALUES ('below')");
    let end: tidelog::stream::Lsn = recovered.psql("SELECT pg_current_wal_insert_lsn()").parse().expect("an LSN");
    assert!(end.0 < slot.0 + (1 << 20), "the row has to lie below the offset");
    recovered.psql("SELECT pg_logical_emit_message(false, '', repeat('x', 2 << 20))");
    above.caught_up(recovered, kafka);
    let marks = changes(&kafka.consume_all(&above.topic("marks")));
    let has_below = marks.iter().any(|change| change["after"]["note"] == "below");
    assert!(!has_below && status(&above)["tasks"][0]["state"] == "RUNNING", "{marks:?}");
    let is_there = recovered.psql("SELECT count(*) FROM marks WHERE note = 'below'");
    assert_eq!(is_there, "1", "it was committed, and no word is said of it");
}

#[test]
fn a_pipeline_comes_back_at_one_commit_and_goes_on() {
    let (kafka, worker) = (shared(), shared_worker());
    let mut lost = lost(Version::Debian, worker, &[]);
    lost.pipeline(worker, "");
    let to = lost.to.clone();
    let plan = lost.recover(&["--to", &to, "--dry-run", "--json"]).expect(0).json();
    assert_eq!((&plan["dry_run"], &step(&plan, "slots")["state"]), (&true.into(), &"planned".into()), "{plan}");
    assert!(!lost.into.exists(), "a dry run made something");
    let expected = |step: &Value| step["expected_seconds"].as_f64();
    let steps = plan["steps"].as_array().expect("steps");
    assert!(steps.iter().all(|step| expected(step).is_some() == (step["state"] == "planned")), "{plan}");
    let total: f64 = steps.iter().filter_map(expected).sum();
    assert!(total > 1.0 && plan["seconds"].as_f64().is_some_and(|all| (all - total).abs() < 0.001), "{plan}");

    refuses(&lost, worker);
    crate::drill_pipeline::drills(&lost);

    let report = lost.recover(&["--to", &to, "--json"]).expect(0).json();
    assert_eq!((&report["ok"], &report["differences"]), (&true.into(), &Value::Array(vec![])), "{report}");
    assert_eq!(report["connectors"][0]["marker_seen"], true, "{report}");
    assert!(
        report["seconds"].as_f64().is_some_and(|all| all > step(&report, "postgres")["seconds"].as_f64().expect("s"))
    );
    let fold = step(&report, "fold")["proof"].as_str().expect("a proof").to_owned();
    // The four of the clients, the ledger and the marks, with all of their columns.
    assert!(fold.starts_with("6 tables, ") && fold.ends_with(" and 17 columns the same"), "{fold}");
    let recovered = lost.postgres();
    assert_one_commit("recovered", &lost, &recovered, kafka);
    goes_on(&lost, &recovered, worker, kafka);
    wrong_ways_fail(&lost, &recovered, worker, kafka);

    // The same command finds nothing to do, and another one does not take its place.
    assert_eq!(lost.recover(&["--to", &to, "--json"]).expect(0).json()["ok"], true);
    let said = lost.recover(&["--to", "-1s", "--json"]).expect(2).stderr;
    assert!(said.contains("was begun with --to"), "{said}");
    lost.service.program.assert_running();
}

#[test]
fn a_recovery_that_is_killed_wherever_it_writes_goes_on() {
    let (kafka, worker) = (shared(), shared_worker());
    let lost = lost(Version::V18, worker, &[]);
    crate::drill_slot::drills(&lost);
    lost.pipeline(worker, "");
    let mut kills = 0;
    let report = loop {
        let mut command = lost.command(&["--to", &lost.to, "--json"]);
        // Each run writes down one thing more than the one before.
        command.env("TIDELOG_FAILPOINTS", "recover.save=kill@2");
        let output = program::run(command);
        if output.status == Some(0) {
            break output.json();
        }
        assert!(output.stderr.contains("failpoint recover.save"), "{output:?}");
        kills += 1;
        assert!(kills < 40, "it comes to no end");
    };
    assert!(kills > 7, "{kills}");
    assert_eq!((&report["ok"], &report["connectors"][0]["marker_seen"]), (&true.into(), &true.into()), "{report}");
    let recovered = lost.postgres();
    assert_one_commit("killed", &lost, &recovered, kafka);
    goes_on(&lost, &recovered, worker, kafka);
    in_place(lost, worker, kafka);
}

/// The same once more with the topics where they are: what they hold beyond the moment is taken back, once more after a kill, and whoever
/// has read it comes to the rows at the commit.
fn in_place(mut lost: Lost, worker: &'static Connect, kafka: &Kafka) {
    end_server(&lost.into);
    lost.into = lost.into.with_file_name("in-place");
    let port = std::mem::replace(&mut lost.port, free_port());
    let file = lost.service.site.home().path().join("pipeline.toml");
    let text =
        std::fs::read_to_string(&file).expect("the pipeline file").replace(&port.to_string(), &lost.port.to_string());
    let text = text.replace("/restored\"", "/in-place\"").replace("rename = \"^cdc=new-cdc\"\n", "");
    std::fs::write(&file, text.replace(&lost.new_prefix(), &lost.prefix)).expect("written");
    let args = ["--to", &lost.to.clone(), "--in-place", "--compensate", "--json"];
    let lines = worker.file("lines", "one\n");
    worker.copy_lines(&lost.name, &lines, &format!("lines-{}", lost.prefix), json!({}));
    let said = lost.recover(&[&args[..], &["--yes"]].concat()).expect(2).stderr;
    assert!(said.contains("already, and it is not stopped"), "{said}");
    let only = [&args[..], &["--only", "topics", "--yes"]].concat();
    assert!(lost.recover(&only).expect(2).stderr.contains("still runs at"));
    worker.call("DELETE", &format!("/connectors/{}", lost.name), &Value::Null);
    assert!(!lost.into.with_extension("recover").exists(), "something was made");

    let acct = format!("{}.public.acct", lost.prefix);
    let ended = kafka.watermarks(&acct)[0].1;
    let before = fold(kafka, &lost.prefix, &TABLES);
    let mut command = lost.command(&args);
    // All was sent, and it is not written down yet.
    command.env("TIDELOG_FAILPOINTS", "recover.save=kill@12");
    let killed = program::run(command);
    assert!(killed.stderr.contains("failpoint recover.save"), "{killed:?}");
    assert!(kafka.watermarks(&acct)[0].1 > ended, "it was killed before anything was sent");
    let report = lost.recover(&args).expect(0).json();
    assert_eq!((&report["ok"], &report["differences"]), (&true.into(), &json!([])), "{report}");
    let proof = step(&report, "topics")["proof"].as_str().expect("a proof").to_owned();
    assert!(proof.contains("beyond the commit were taken back") && !proof.starts_with("0 "), "{proof}");
    let recovered = lost.postgres();
    let (rows, topics) = (tables(&recovered, &TABLES), fold(kafka, &lost.prefix, &TABLES));
    assert_same_rows("in place: the clients", &lost.known.rows(&recovered, 1), &rows);
    assert_same_rows("in place: the topics", &topics, &rows);
    assert_ne!(before, topics, "the topics held nothing beyond the commit");
    assert_eq!(kafka.committed(&lost.group, &acct).get(&0), Some(&5), "groups stay where they are");
}

#[test]
fn a_server_that_was_restored_by_other_means_is_gone_on_with_and_what_is_not_known_is_said() {
    let (kafka, worker) = (shared(), shared_worker());
    let mut lost = lost(Version::V17, worker, &[("slot.failover", "true")]);
    lost.pipeline(worker, "");
    let plan = lost.recover(&["--to", &lost.to, "--dry-run", "--json"]).expect(0).json();
    let end = plan["commit"]["end"].as_str().expect("a position").to_owned();
    let into = lost.into.display().to_string();
    lost.service.site.tidelog(&["restore-postgres", "--into", &into, "--to-lsn", &end]).expect(0);
    let restored =
        Postgres::adopt(&lost.into, PostgresOptions { version: Version::V17, config: &LOGICAL, ..Default::default() });
    restored.wait_ready();
    wait_until("the recovery to end", PATIENCE, || restored.psql("SELECT pg_is_in_recovery()") == "f");

    let there = |url: &str, port: u16| {
        let text = format!(
            "[postgres]\nurl = {url:?}\n[kafka]\nrename = \"^cdc=new-cdc\"\ngroups = [{:?}]\n[strimzi]\nconnect = \"workers\"\n[[connector]]\nname = {:?}\n\
             [connector.config]\n\"database.port\" = {port}\n\"topic.prefix\" = {:?}\n",
            lost.group,
            lost.name,
            lost.new_prefix(),
        );
        lost.service.site.home().write("pipeline.toml", &text);
    };
    // Not the one that was captured, whatever it answers.
    there(&lost.old.url("postgres"), 1);
    let said = lost.recover(&["--to", &lost.to, "--json"]).expect(1);
    assert!(said.stdout.contains("its timeline is the first"), "{said:?}");
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical'";
    assert_eq!((restored.psql(slots), lost.old.psql(slots)), ("0".to_owned(), "1".to_owned()));

    there(&restored.url("postgres"), restored.port());
    // Somebody has written to it meanwhile, and that is in no topic.
    restored.psql("INSERT INTO ledger VALUES (999, 0); UPDATE marks SET note = 'another' WHERE id = 1");
    let planned = lost.recover(&["--to", &lost.to, "--json"]).expect(3).json();
    assert!(planned["differences"].to_string().contains("are not made yet: apply "), "{planned}");
    assert_eq!(
        (&step(&planned, "marker")["state"], &step(&planned, "fold")["state"]),
        (&"planned".into(), &"done".into())
    );
    operate(worker, planned["resources"].as_str().expect("resources"), "hunter2");
    let report = lost.recover(&["--to", &lost.to, "--json"]).expect(3).json();
    let differences = report["differences"].as_array().expect("differences");
    let told = |part: &str| differences.iter().any(|one| one.to_string().contains(part));
    let (ledger, marks) = ("public.ledger has ", ".public.marks comes to differ in note");
    assert!(told("was open before its slots") && told(ledger) && told(marks) && differences.len() == 3, "{report}");
    assert_eq!((&report["ok"], &report["connectors"][0]["marker_seen"]), (&false.into(), &true.into()), "{report}");
    let slot = format!("SELECT failover FROM pg_replication_slots WHERE slot_name = '{}'", lost.slot);
    assert_eq!(
        (lost.old.psql(&slot), restored.psql(&slot)),
        ("t".to_owned(), "t".to_owned()),
        "standbys are to have it"
    );
    assert_one_commit("restored by other means", &lost, &restored, kafka);
    let at = kafka.committed(&lost.group, &format!("{}.public.acct", lost.new_prefix()));
    assert_eq!(at.get(&0), Some(&5), "{report}");
    goes_on(&lost, &restored, worker, kafka);
    lost.service.program.assert_running();
}

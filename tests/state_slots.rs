//! Replication slots and publications in the archive, as of any moment, from real servers of all versions; what a user may not see, and a
//! server that is away.

use std::time::Duration;

use serde_json::{Value, json};

use crate::rig::kafka::free_port;
use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::process::tail;
use crate::rig::program::{Home, Program};
use crate::rig::{wait_for, wait_until};

/// For a machine that does other work, too.
const PATIENCE: Duration = Duration::from_secs(120);

const SETTINGS: [(&str, &str); 3] = [("wal_level", "logical"), ("autovacuum", "off"), ("bgwriter_delay", "10s")];

/// A server, and an archiver that keeps its slots.
struct Watched {
    home: Home,
    postgres: Postgres,
    port: u16,
    program: Program,
}

impl Watched {
    fn start(version: Version, user: &str) -> Watched {
        let postgres = Postgres::start(PostgresOptions { version, config: &SETTINGS, ..PostgresOptions::default() });
        postgres.psql("CREATE ROLE streamer LOGIN REPLICATION");
        for database in ["shop", "hidden", "closed"] {
            postgres.psql(&format!("CREATE DATABASE {database}"));
        }
        postgres.psql("REVOKE CONNECT ON DATABASE hidden FROM PUBLIC");
        postgres.allow(&["host closed streamer 127.0.0.1/32 reject"]);
        postgres.reload();
        let (home, port) = (Home::new(), free_port());
        let path = home.path().display();
        home.write(
            "tidelog.toml",
            &format!(
                "[archive]\nurl = \"file://{path}/archive\"\nspool_dir = \"{path}/spool\"\n\
                 [postgres]\nurl = \"{}\"\nmax_age = \"300ms\"\n[state]\nevery = \"1s\"\n[http]\nlisten = \"127.0.0.1:{port}\"\n",
                postgres.url(user)
            ),
        );
        let program = home.start(&["-c", "tidelog.toml", "run"]);
        Watched { home, postgres, port, program }
    }

    fn in_database(&self, database: &str, sql: &str) {
        let mut psql = self.postgres.client("psql");
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]);
        crate::rig::program::run(psql).expect(0);
    }

    fn wait_state(&mut self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut last = String::new();
        let found = wait_for(what, PATIENCE, || {
            self.program.assert_running();
            let output = self.home.run(&["-c", "tidelog.toml", "cat", "--state", "slots"]);
            last.clone_from(&output.stdout);
            let state = (output.status == Some(0)).then(|| output.json()["state"].clone())?;
            is(&state).then_some(state)
        });
        assert!(!found.is_null(), "{last}");
        found
    }

    fn status(&self) -> Value {
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sS", &format!("http://127.0.0.1:{}/api/status", self.port)]);
        crate::rig::program::run(curl).expect(0).json()
    }
}

fn now() -> String {
    crate::state::now()
}

#[test]
fn slots_and_publications_are_told_as_they_were_at_any_moment() {
    for version in Version::ALL {
        let mut watched = Watched::start(version, "postgres");
        watched.in_database("shop", "CREATE TABLE orders (id int PRIMARY KEY, note text, paid bool); CREATE TABLE \"Odd name\" (n int PRIMARY KEY)");
        let is_new = !matches!(version, Version::V13 | Version::V14);
        let tables =
            if is_new { "TABLE orders (id, paid) WHERE (id > 10), \"Odd name\"" } else { "TABLE orders, \"Odd name\"" };
        watched.in_database("shop", &format!("CREATE PUBLICATION chosen FOR {tables} WITH (publish = 'insert, update', publish_via_partition_root = true)"));
        watched.in_database("shop", "CREATE PUBLICATION everything FOR ALL TABLES");
        watched.in_database("shop", "SELECT pg_create_logical_replication_slot('debezium', 'pgoutput')");
        let state = watched.wait_state("the slot and the publications", |state| {
            // One that is being made has no positions yet.
            state["slots"]["debezium"]["confirmed_flush_lsn"].is_string()
                && state["databases"]["shop"]["publications"]["everything"].is_object()
        });
        let slot = &state["slots"]["debezium"];
        let said = watched
            .postgres
            .psql("SELECT restart_lsn, confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'debezium'");
        let own = [&slot["restart_lsn"], &slot["confirmed_flush_lsn"]].map(|lsn| lsn.as_str().expect("an LSN"));
        assert_eq!(own.join("|"), said, "{version:?}");
        assert_eq!(
            [
                &slot["plugin"],
                &slot["slot_type"],
                &slot["database"],
                &slot["active"],
                &slot["temporary"],
                &slot["wal_status"]
            ],
            [&json!("pgoutput"), &json!("logical"), &json!("shop"), &json!(false), &json!(false), &json!("reserved")],
            "{version:?}"
        );
        let major = state["server_version"].as_u64().expect("a version") / 10_000;
        assert_eq!(slot["two_phase"].is_boolean(), major >= 14, "{version:?}: {slot}");
        assert_eq!(slot["failover"].is_boolean(), major >= 17, "{version:?}: {slot}");
        assert!(slot.get("active_pid").is_none() && slot.get("safe_wal_size").is_none(), "they change by themselves");
        assert_eq!(state["slots"]["tidelog"]["slot_type"], "physical");
        // The streams of state beside the log do not make it one of several systems.
        if version == Version::default() {
            watched.home.run(&["-c", "tidelog.toml", "backup"]).expect(0);
        }
        let some = &state["databases"]["shop"]["publications"]["chosen"];
        assert_eq!(
            [
                &some["pubinsert"],
                &some["pubupdate"],
                &some["pubdelete"],
                &some["pubtruncate"],
                &some["pubviaroot"],
                &some["puballtables"],
                &some["owner"]
            ],
            [&json!(true), &json!(true), &json!(false), &json!(false), &json!(true), &json!(false), &json!("postgres")],
            "{version:?}"
        );
        let orders = &some["tables"]["public.orders"];
        if is_new {
            assert_eq!(*orders, json!({ "columns": ["id", "paid"], "row_filter": "(id > 10)" }), "{version:?}");
            assert_eq!(some["tables"]["public.\"Odd name\""], json!({ "columns": null, "row_filter": null }));
        } else {
            assert_eq!(*orders, json!({}), "{version:?}");
        }
        assert_eq!(state["databases"]["shop"]["publications"]["everything"]["puballtables"], true);
        assert_eq!(state["databases"]["postgres"], json!({ "publications": {} }));

        let before = now();
        watched.in_database("shop", "SELECT pg_drop_replication_slot('debezium')");
        watched.in_database("shop", "DROP PUBLICATION everything");
        watched.wait_state("both to be gone", |state| {
            state["slots"].get("debezium").is_none()
                && state["databases"]["shop"]["publications"].get("everything").is_none()
        });
        let tidelog = |args: &[&str]| watched.home.run(&[&["-c", "tidelog.toml"], args].concat()).expect(0);
        let then = tidelog(&["cat", "--state", "slots", "--at", &before]).json()["state"].clone();
        assert_eq!(then["slots"]["debezium"], *slot, "{version:?}");
        let changed = tidelog(&["diff", "--state", "slots", "--from", &before]).stdout;
        assert!(changed.contains("debezium") && changed.contains("everything"), "{changed}");
        let system = watched.postgres.psql("SELECT system_identifier FROM pg_control_system()");
        assert!(tidelog(&["ls", "state"]).stdout.contains(&format!("state/slots/{system}")));
        tidelog(&["verify", "--deep"]);
        watched.program.terminate(Duration::from_secs(40));
    }
}

#[test]
fn what_a_user_may_not_see_is_told_once_with_the_grant() {
    for version in [Version::V13, Version::V18] {
        let mut watched = Watched::start(version, "streamer");
        watched.in_database("shop", "CREATE PUBLICATION all_of_it FOR ALL TABLES");
        watched.in_database("hidden", "CREATE PUBLICATION secret FOR ALL TABLES");
        let state = watched.wait_state("what may be seen", |state| {
            state["databases"]["shop"]["publications"]["all_of_it"].is_object()
        });
        let databases: Vec<&String> = state["databases"].as_object().expect("databases").keys().collect();
        assert_eq!(databases, ["postgres", "shop"], "{version:?}");
        let refused = watched.status()["state"]["refused"].clone();
        let grants = refused.to_string();
        assert!(grants.contains("CONNECT ON DATABASE hidden TO streamer"), "{grants}");
        assert!(grants.contains("publications of the database closed") && grants.contains("pg_hba.conf"), "{grants}");
        let polled = || watched.status()["state"]["kinds"]["slots"]["polled"].as_str().expect("a time").to_owned();
        for _ in 0..3 {
            let last = polled();
            wait_until("the next poll", PATIENCE, || polled() > last);
        }
        let log = watched.program.output();
        let told =
            log.lines().filter(|line| line.contains("database hidden") || line.contains("DATABASE hidden")).count();
        assert_eq!(told, 1, "{version:?}: {}", tail(&log, 30));
        // Granted, it is kept from then on.
        watched.postgres.psql("GRANT CONNECT ON DATABASE hidden TO streamer");
        watched
            .wait_state("what was granted", |state| state["databases"]["hidden"]["publications"]["secret"].is_object());
    }
}

#[test]
fn a_server_that_is_away_is_named_and_its_last_state_stays() {
    let mut watched = Watched::start(Version::Debian, "postgres");
    watched.wait_state("the archiver's own slot", |state| state["slots"]["tidelog"].is_object());
    let fails = |watched: &Watched| {
        let failing = watched.status()["failing"].as_array().expect("what fails").clone();
        failing.iter().any(|failure| failure["task"] == "slot_state" && failure["stops_archiving"] == false)
    };
    watched.postgres.stop();
    wait_until("it to be named", PATIENCE, || fails(&watched));
    let state = watched.wait_state("the last state", |_| true);
    assert!(state["slots"]["tidelog"].is_object());
    watched.postgres.restart();
    wait_until("it to go on", PATIENCE, || !fails(&watched));
    watched.postgres.psql("SELECT pg_create_physical_replication_slot('later')");
    watched.wait_state("what came later", |state| state["slots"]["later"].is_object());
}

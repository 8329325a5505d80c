//! A pipeline of 1 GiB brought back to one commit, with the time of each step: `make bench-recover`, for docs/PERFORMANCE.md.
//!
//! ```text
//!   300,000 rows ─► base backup 0.3 GiB     100,000 changes ─► WAL 0.2 GiB     Debezium ─► a topic of 0.5 GiB
//!                        └───────────────────────── recover ──────────────────────────┘   seconds by step, CPU of the servers beside them
//! ```

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use crate::cdc::LOGICAL;
use crate::http::Service;
use crate::recover::{TIME, command, end_server, wait_log_archived};
use crate::rig::connect::shared_worker;
use crate::rig::debezium::Capture;
use crate::rig::kafka::{free_port, shared};
use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::program;
use crate::rig::wait_until;
use crate::site::Settings;
use crate::state::wait_state;

/// The CPU seconds of the broker and of the Connect worker that this process has started.
fn of_servers() -> (f64, f64) {
    let ours = std::process::id().to_string();
    let (mut broker, mut worker) = (0.0, 0.0);
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let stat = read("stat");
        let Some((_, fields)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<&str> = fields.split(' ').collect();
        let command = read("cmdline");
        if fields[1] != ours || !command.starts_with("java") {
            continue;
        }
        let ticks: f64 = [11, 12].iter().map(|at| fields[*at].parse::<f64>().expect("ticks")).sum();
        let of = if command.contains("ConnectDistributed") { &mut worker } else { &mut broker };
        *of += ticks / 100.0;
    }
    (broker, worker)
}

#[test]
#[ignore = "minutes: make bench-recover"]
fn a_pipeline_of_1_gib_comes_back() {
    let rows: u32 = std::env::var("BENCH_ROWS").map_or(300_000, |rows| rows.parse().expect("a number of rows"));
    let (kafka, worker) = (shared(), shared_worker());
    let config = [LOGICAL[0], ("max_wal_size", "4GB"), ("fsync", "off")];
    let postgres = Postgres::start(PostgresOptions { version: Version::V17, config: &config, ..Default::default() });
    postgres.psql(
        "CREATE TABLE shop (id bigint PRIMARY KEY, n bigint NOT NULL, note text NOT NULL);
         CREATE TABLE marks (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text);",
    );
    let note = "(SELECT string_agg(md5(g::text || ':' || i::text), '') FROM generate_series(1, 27) i)";
    postgres.psql(&format!("INSERT INTO shop SELECT g, 0, {note} FROM generate_series(1, {rows}) g"));
    let capture = Capture::start(&postgres, worker, &[]);
    let (shop, marks) = (capture.topic("shop"), capture.topic("marks"));
    wait_until("the snapshot", Duration::from_secs(600), || {
        kafka.partitions(&shop).is_some() && kafka.watermarks(&shop).first().is_some_and(|at| at.1 >= i64::from(rows))
    });
    capture.caught_up(&postgres, kafka);
    let pattern = format!("^{}[.]", capture.prefix);
    let more = format!(
        "[state]\nevery = \"1s\"\nconnect_url = {:?}\n[postgres]\nurl = {:?}\nmax_age = \"300ms\"\n",
        worker.url(),
        postgres.url("postgres"),
    );
    let mut service = Service::start(kafka, &Settings { topics: &[&pattern], ..Settings::default() }, &more);
    wait_state(&mut service, "connectors", "the connector", |state| state["connectors"][&capture.name].is_object());
    service.site.tidelog(&["backup"]).expect(0);
    let change = |round: u32| {
        postgres.psql(&format!("UPDATE shop SET n = n + 1, note = reverse(note) WHERE id % 300 = {round}"));
    };
    (0..100).for_each(change);
    postgres.psql("DELETE FROM shop WHERE id % 300 = 150");
    let to = postgres.psql(TIME);
    (100..110).for_each(change);
    capture.caught_up(&postgres, kafka);
    service.site.wait_archived(kafka, &[&shop, &marks], &mut [&mut service.program]);
    wait_log_archived(&service, &postgres);
    let (name, prefix) = (capture.name.clone(), capture.prefix.clone());
    drop(capture);
    postgres.stop();

    let (into, port) = (service.site.home().path().join("restored"), free_port());
    let bin_dir = Version::V17.program("postgres").canonicalize().expect("it is there");
    let text = format!(
        "[postgres]\ninto = {:?}\nbin_dir = {:?}\nport = {port}\n\
         [postgres.settings]\nwal_level = \"logical\"\nlisten_addresses = \"127.0.0.1\"\ndynamic_shared_memory_type = \"mmap\"\n\
         [kafka]\nrename = \"^cdc=new-cdc\"\n[connect]\nurl = {:?}\n\
         [[connector]]\nname = {name:?}\n[connector.config]\n\"database.port\" = {port}\n\"topic.prefix\" = \"new-{prefix}\"\n",
        into.display().to_string(),
        bin_dir.parent().expect("a directory").display().to_string(),
        worker.url(),
    );
    service.site.home().write("pipeline.toml", &text);
    let recover = |args: &[&str]| {
        let mut all = command(&service, &[&["--pipeline", "pipeline.toml", "--to", &to, "--json"], args].concat());
        all.env("TIDELOG_LOG", "warn");
        program::run(all).expect(0).json()
    };
    let plan = recover(&["--dry-run"]);
    let before = of_servers();
    let report = recover(&[]);
    let after = of_servers();
    end_server(&into);
    let mut table = String::from("| step | expected, s | took, s | |\n|---|---|---|---|\n");
    let steps = |of: &Value| of["steps"].as_array().expect("steps").clone();
    for (planned, done) in steps(&plan).iter().zip(steps(&report)) {
        let (name, proof) = (&done["step"].as_str().expect("a name"), done["proof"].as_str().expect("a proof"));
        let expected = planned["expected_seconds"].as_f64().map_or_else(String::new, |seconds| format!("{seconds:.1}"));
        let took = done["seconds"].as_f64().expect("seconds");
        writeln!(
            table,
            "| `{name}` | {expected} | {took:.1} | {}; {proof} |",
            planned["proof"].as_str().expect("words")
        )
        .expect("a string");
    }
    let total = |of: &Value, key: &str| steps(of).iter().filter_map(|step| step[key].as_f64()).sum::<f64>();
    writeln!(table, "| all | {:.1} | {:.1} | |", total(&plan, "expected_seconds"), total(&report, "seconds"))
        .expect("a string");
    println!("{table}\nCPU meanwhile: broker {:.1} s, Connect worker {:.1} s", after.0 - before.0, after.1 - before.1);
    assert_eq!((&report["ok"], &report["connectors"][0]["marker_seen"]), (&true.into(), &true.into()), "{report}");
    assert!(rows < 300_000 || total(&report, "seconds") < 120.0, "it took {} s", total(&report, "seconds"));
}

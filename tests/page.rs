//! The status page in a real browser, over a real archiver: Debian's Chromium without a screen, driven by playwright-core,
//! judged by axe-core. What is looked at stands in `tests/page/check.mjs`; nothing that it shows is made up.
//!
//! ```text
//!   Kafka: 6 topics of the last 20 hours ─► archived ─► away; one loses 1,204 records ─► archived on ──┐
//!   Postgres: a slot whose log is removed, one that will lose it, a base backup, commits all the time ──┴─► check.mjs six
//!   the archive's folder of segments is taken away and brought back ────────────────────────────────────────► check.mjs failing
//!   500 topics ─────────────────────────────────────────────────────────────────────────────────────────────► check.mjs many
//! ```
//!
//! `TIDELOG_PICTURES=DIRECTORY cargo test --test main the_page` takes pictures; docs/ shows some of them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::http::{READER, Service, TOKEN, site_with_listener};
use crate::rig::kafka::{Kafka, KafkaOptions};
use crate::rig::postgres::{Postgres, PostgresOptions};
use crate::rig::topics::{Codec, Message, PATIENCE};
use crate::rig::{parts, program, wait_until};
use crate::site::{STOP, Settings};

/// Topics with how many partitions each has and how many records come to a partition.
const SIX: [(&str, i32, i64); 6] = [
    ("cdc.shop.customers", 3, 300),
    ("cdc.shop.order_lines", 6, 900),
    ("cdc.shop.orders", 4, 1_500),
    ("payments", 2, 700),
    ("shipments.events", 1, 120),
    ("web.clicks", 12, 500),
];

/// The one that loses records, and how many.
const GAP: (&str, i64) = ("cdc.shop.orders", 1_204);

/// With those six as many as a large installation has.
const MANY: usize = 500;

const HOUR: i64 = 3_600_000;

#[test]
fn the_page_shows_six_and_five_hundred_topics_a_gap_a_lost_slot_and_a_pause() {
    let kafka = Kafka::start(KafkaOptions::default());
    let postgres = database();
    let names = SIX.map(|(topic, ..)| topic);
    let settings = Settings { topics: &names, ..Settings::default() };
    let more = format!(
        "[retention]\npostgres = \"7d\"\n[postgres]\nurl = {:?}\nmax_age = \"500ms\"\n[postgres.base_backup]\nevery = \"1h\"\n",
        postgres.url("postgres")
    );
    let (site, server) = site_with_listener(&kafka, &settings, &more);
    // What the page and its pictures name is a place and a host of this test alone.
    let home = site.home().path().display().to_string();
    site.reconfigure(&format!("file://{home}/archive"), "file:///srv/tidelog/archive");
    let place = format!(
        "echo tidelog-0 >/proc/sys/kernel/hostname && mount -t tmpfs none /srv && mkdir /srv/tidelog && mount --bind {home} /srv/tidelog"
    );
    let start = || {
        let program = site.start_after(&place);
        site.look_through(program.id());
        program
    };

    let now = tidelog::time::now().timestamp_millis();
    for (topic, partitions, records) in SIX {
        kafka.create_topic(topic, partitions, &[]);
        produce(&kafka, topic, partitions, records, now - 20 * HOUR, now - 9 * HOUR);
    }
    let mut program = start();
    site.wait_archived(&kafka, &names, &mut [&mut program]);
    program.terminate(STOP);
    for (topic, partitions, records) in SIX {
        let lost = if topic == GAP.0 { GAP.1 } else { 0 };
        produce(&kafka, topic, 1, lost, now - 9 * HOUR, now - 8 * HOUR);
        produce(&kafka, topic, partitions, records, now - 8 * HOUR, now);
    }
    kafka.delete_records(GAP.0, 0, 1_500 + GAP.1);

    let program = start();
    let mut service = Service { site, server, program };
    service.wait_ready();
    let done = AtomicBool::new(false);
    let checked = std::thread::scope(|scope| {
        // Whatever ends this scope ends the writers.
        let _end = OnDrop(&done);
        scope.spawn(|| keep_busy(&kafka, &postgres, &done));
        service.site.wait_archived(&kafka, &names, &mut [&mut service.program]);
        wait_until("the database to be recoverable, a slot lost and another near it", PATIENCE * 2, || {
            service.program.assert_running();
            let status = service.server.json("/api/status");
            let slots = status["postgres"]["slots"].as_array().expect("slots");
            let slot = |name: &str| slots.iter().find(|slot| slot["slot"] == name).expect("a slot of ours");
            status["postgres"]["windows"].as_array().is_some_and(|windows| !windows.is_empty())
                && slot("reports")["wal_status"] == "lost"
                && slot("debezium")["seconds_to_loss"].is_number()
        });
        let six = check(&service, "six");

        // The archive's disk is damaged: where the folder of segments was, is a file.
        let home = service.site.home().path();
        let (segments, away) = (home.join("archive/segments"), home.join("away"));
        fs::rename(&segments, &away).expect("the segments are taken away");
        fs::write(&segments, "").expect("a file can be written");
        wait_until("uploads to fail", PATIENCE, || service.server.get("/readyz").body.contains("cannot be uploaded"));
        let failing = check(&service, "failing");
        fs::remove_file(&segments).expect("the file is removed");
        fs::rename(&away, &segments).expect("the segments are brought back");
        service.wait_ready();
        [six, failing]
    });
    assert_eq!(checked, ["the page is sound\n", "the page is sound\n"]);
    service.program.terminate(STOP);

    let all = names_of_many();
    kafka.create_topics(&all[SIX.len()..], 1);
    // The cheaper format: this is about many topics, not about encoding.
    service.site.reconfigure("format = \"parquet\"", "format = \"avro\"");
    service.site.reconfigure(&format!("topics = {names:?}"), "topics = [\"^(cdc|events|payments|shipments|web)\"]");
    let producer = kafka.producer(&[]);
    for (number, topic) in all.iter().enumerate().skip(SIX.len()) {
        let records = 20 + i64::try_from(number % 97).expect("a small number");
        for message in history(1, records, now - (2 + records % 18) * HOUR, now) {
            producer.send(topic, &message);
        }
    }
    producer.flush();
    service.program = service.site.start_after(&place);
    service.site.look_through(service.program.id());
    service.wait_ready();
    let begun = Instant::now();
    wait_until("500 topics to be complete", PATIENCE * 2, || {
        service.program.assert_running();
        let status = service.server.json("/api/status");
        let streams = status["kafka"]["streams"].as_array().expect("streams");
        let complete = streams.iter().filter(|stream| stream["lag_records"] == 0 && stream["records"] != 0);
        complete.count() == MANY
    });
    println!("500 topics were complete after {} s", begun.elapsed().as_secs());
    assert_eq!(check(&service, "many"), "the page is sound\n");
    service.program.terminate(STOP);
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A server with a slot that has lost its log, and one that nobody reads and that has not yet.
fn database() -> Postgres {
    let config = [("wal_level", "logical"), ("max_slot_wal_keep_size", "64MB"), ("autovacuum", "off")];
    let postgres = Postgres::start(PostgresOptions { config: &config, ..PostgresOptions::default() });
    let slot = |name: &str| format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')");
    postgres.psql("create table clicks (n int, said text)");
    postgres.psql(&slot("reports"));
    for _ in 0..6 {
        postgres.psql("insert into clicks values (0, ''); select pg_switch_wal()");
    }
    postgres.psql("checkpoint");
    postgres.psql(&slot("debezium"));
    postgres
}

/// Records come to two topics and commits to the database, a few every moment, until `done`.
fn keep_busy(kafka: &Kafka, postgres: &Postgres, done: &AtomicBool) {
    let producer = kafka.producer(&[]);
    while !done.load(Ordering::Relaxed) {
        for topic in ["web.clicks", "cdc.shop.orders"] {
            for message in history(2, 20, 0, 0) {
                producer.send(topic, &Message { timestamp: None, ..message });
            }
        }
        producer.flush();
        postgres.psql("insert into clicks select n, repeat('click ', 20) from generate_series(1, 200) as n");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// `records` change events for each partition, their timestamps spread evenly over the time.
fn history(partitions: i32, records: i64, from: i64, to: i64) -> Vec<Message> {
    let event = |n: i64, partition: i32| Message {
        timestamp: Some(from + (to - from) * n / records),
        ..Message::new(
            partition,
            &format!("{{\"id\":{n}}}"),
            &format!(
                "{{\"op\":\"u\",\"after\":{{\"id\":{n},\"status\":\"paid\",\"total\":{}}},\"source\":{{\"lsn\":{}}}}}",
                n * 7 % 1_000,
                n * 88
            ),
        )
    };
    (0..records).flat_map(|n| (0..partitions).map(move |partition| event(n, partition))).collect()
}

fn produce(kafka: &Kafka, topic: &str, partitions: i32, records: i64, from: i64, to: i64) {
    kafka.produce(topic, Codec::Lz4, &history(partitions, records, from, to));
}

/// The six, and as many more as make [`MANY`].
fn names_of_many() -> Vec<String> {
    const AREAS: [&str; 4] = ["cdc.shop", "cdc.billing", "cdc.warehouse", "events"];
    const TABLES: [&str; 12] = [
        "orders",
        "customers",
        "invoices",
        "payments",
        "stock",
        "prices",
        "carts",
        "refunds",
        "audit",
        "sessions",
        "returns",
        "suppliers",
    ];
    let more = (SIX.len()..MANY).map(|n| format!("{}.{}_{n:03}", AREAS[n % 4], TABLES[n / 4 % 12]));
    SIX.iter().map(|(topic, ..)| (*topic).to_owned()).chain(more).collect()
}

/// What the browser has to say about a stage of `check.mjs`.
fn check(service: &Service, stage: &str) -> String {
    let mut node = Command::new("node");
    node.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page/check.mjs"))
        .args([&format!("http://{}", service.server.address), stage])
        .env("RIG_PAGE", &parts().page)
        .env("TOKEN", TOKEN)
        .env("READER", READER);
    if let Ok(directory) = std::env::var("TIDELOG_PICTURES") {
        node.env("PICTURES", directory);
    }
    let checked = program::run(node).expect(0);
    assert_eq!(checked.stderr, "");
    checked.stdout
}

//! `replay --to-commit`: of what a real connector wrote, exactly the events of transactions that committed by then.
//!
//! ```text
//!   clients ─► PostgreSQL ─► Debezium ─► topics ─► tidelog run ─► archive ─► replay --to-commit L ─┐
//!                 └──► WAL ──────────────────────────► tidelog run ─► ls --commits ────────────────┤ the same events?
//! ```

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tidelog::stream::Lsn;

use crate::cdc::LOGICAL;
use crate::rig::clients::{Clients, SCHEMA, TABLES};
use crate::rig::connect::shared_worker;
use crate::rig::debezium::{Capture, changes};
use crate::rig::kafka::{Kafka, shared};
use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::topics::{Codec, Message, PATIENCE, Record};
use crate::rig::{unique, wait_until};
use crate::site::{STOP, Settings, Site};

/// Where records stand: topic, partition, offset.
type Places = BTreeSet<(String, i64, i64)>;

/// The ends of commits by xid, as `ls --commits` lists them.
fn commits(site: &Site) -> BTreeMap<u64, u64> {
    let listed = site.tidelog(&["ls", "--commits", "--json"]).expect(0).json();
    let rows = listed["commits"].as_array().expect("commits").clone();
    let commit = |row: Value| {
        let end: Lsn = row["end"].as_str().expect("a position").parse().expect("an LSN");
        (row["xid"].as_u64().expect("an xid"), end.0)
    };
    rows.into_iter().map(commit).collect()
}

/// Which records of a topic are of transactions that committed by `end`, by the xids that they name.
fn expected(topic: &str, records: &[Record], commits: &BTreeMap<u64, u64>, end: u64) -> Places {
    let mut places = Places::new();
    let mut is_in = false;
    for record in records {
        if let Some(value) = &record.value {
            let value: Value = serde_json::from_slice(value).expect("JSON");
            let source = &value["source"];
            is_in = match (source["snapshot"].as_str(), source["txId"].as_u64(), value["id"].as_str()) {
                (Some("false"), Some(xid), _) => commits[&xid] <= end,
                (Some(_), ..) => source["lsn"].as_u64().expect("a position") <= end,
                (None, _, Some(id)) => {
                    commits[&id.split(':').next().and_then(|xid| xid.parse().ok()).expect("an xid")] <= end
                }
                _ => panic!("{topic}: {value}"),
            };
        }
        // A tombstone is where its record is.
        if is_in {
            places.insert((topic.to_owned(), i64::from(record.partition), record.offset));
        }
    }
    places
}

fn lsn(end: u64) -> String {
    Lsn(end).to_string()
}

/// Runs a statement that returns its transaction.
fn xid(postgres: &Postgres, sql: &str) -> u64 {
    postgres.psql(sql).lines().next().and_then(|xid| xid.parse().ok()).expect("an xid")
}

/// A topic whose events of early and late transactions follow each other again and again.
const AGAIN: &str = "again";

/// Writes it, as a connector does that is ended and goes on from an earlier offset, but more often than any does.
fn written_again(kafka: &Kafka, capture: &Capture<'_>) {
    let captured = changes(&kafka.consume_all(&capture.topic("acct")));
    let streamed: Vec<(u64, u64)> = captured
        .iter()
        .filter(|change| change["source"]["snapshot"] == "false")
        .filter_map(|change| Some((change["source"]["txId"].as_u64()?, change["source"]["lsn"].as_u64()?)))
        .collect();
    let (early, late) = (streamed[0], streamed[streamed.len() - 1]);
    let message = |number: usize| {
        let ((xid, lsn), key) = (if number.is_multiple_of(2) { early } else { late }, format!("{{\"id\":{number}}}"));
        let source = json!({ "connector": "postgresql", "name": capture.prefix, "snapshot": "false",
            "sequence": format!("[null,\"{lsn}\"]"), "lsn": lsn, "txId": xid });
        let value = json!({ "before": null, "after": { "id": number }, "source": source, "op": "c" });
        Message::new(0, &key, &value.to_string())
    };
    let topic = capture.topic(AGAIN);
    kafka.create_topic(&topic, 1, &[]);
    kafka.produce(&topic, Codec::None, &(0..60).map(message).collect::<Vec<_>>());
}

struct Archived {
    site: Site,
    prefix: String,
    topics: BTreeMap<String, Vec<Record>>,
    /// Transactions that changed nothing that is published.
    quiet: Vec<u64>,
}

/// Archives what a connector writes of a load with open transactions, rollbacks, deletes, and transactions that it never sees.
fn archived(version: Version, kafka: &Kafka) -> Archived {
    let postgres = Postgres::start(PostgresOptions { version, config: &LOGICAL, ..Default::default() });
    postgres.psql(SCHEMA);
    postgres.psql("CREATE UNLOGGED TABLE quiet (n int)");
    let before = Clients::start(&postgres, 1, 2, 3);
    let capture = Capture::start(&postgres, shared_worker(), &[("provide.transaction.metadata", "true")]);
    let site = Site::new(
        &kafka.bootstrap(),
        &Settings { topics: &[&format!("^{}\\.", capture.prefix)], ..Settings::default() },
    );
    site.reconfigure(
        "[kafka]\n",
        &format!("[postgres]\nurl = \"{}\"\nmax_age = \"300ms\"\n[kafka]\n", postgres.url("postgres")),
    );
    let _program = site.start();
    wait_until("the archiver to stream", PATIENCE, || {
        postgres.psql("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'tidelog' AND active") == "1"
    });
    capture.caught_up(&postgres, kafka);
    let during = Clients::start(&postgres, 11, 4, 5);
    let mut quiet = Vec::new();
    for _ in 0..12 {
        let committed = "SELECT sum(committed) FROM ledger";
        let count = || postgres.psql(committed).parse::<u64>().expect("a number");
        let then = count();
        wait_until("more commits", PATIENCE, || count() > then + 5);
        quiet.push(xid(&postgres, "INSERT INTO quiet VALUES (1) RETURNING txid_current()"));
    }
    let known = (before.stop(), during.stop());
    assert!(known.1.commits() > 50);
    capture.caught_up(&postgres, kafka);
    capture.stop();
    let unseen =
        xid(&postgres, "INSERT INTO marks (note) VALUES ('the connector never sees it') RETURNING txid_current()");
    written_again(kafka, &capture);
    let names = TABLES.iter().chain(&["ledger", "marks", AGAIN]).map(|table| capture.topic(table));
    let names = names.chain([format!("{}.transaction", capture.prefix)]);
    let topics: BTreeMap<String, Vec<Record>> = names
        .filter(|topic| kafka.partitions(topic).is_some())
        .map(|topic| (topic.clone(), kafka.consume_all(&topic)))
        .collect();
    // The last that it has captured: behind it each topic has to be known as complete.
    let marks = changes(&topics[&capture.topic("marks")]);
    let last = marks.last().and_then(|change| change["source"]["txId"].as_u64()).expect("a mark");
    let pattern = format!("^{}", capture.prefix);
    wait_until("the archive to have all of it", PATIENCE, || {
        let ends = commits(&site);
        let (Some(end), true) = (ends.get(&last), ends.contains_key(&unseen)) else { return false };
        let args = ["replay", "--to-commit", &lsn(*end), "--topics", &pattern, "--dry-run", "--json"];
        site.tidelog(&args).status == Some(0)
    });
    Archived { site, prefix: capture.prefix.clone(), topics, quiet }
}

#[test]
fn topics_are_cut_at_any_commit_whether_the_connector_saw_it_or_not() {
    let kafka = shared();
    for version in [Version::Debian, Version::V18] {
        let Archived { site, prefix, topics, quiet } = archived(version, kafka);
        let all: Vec<Value> = topics.values().flat_map(|records| changes(records)).collect();
        let ends = commits(&site);
        let captured: BTreeSet<u64> = all.iter().filter_map(|change| change["source"]["txId"].as_u64()).collect();
        assert!(quiet.iter().all(|xid| !captured.contains(xid)), "the connector must not see these");
        let pattern = format!("^{prefix}");
        let seen: Vec<u64> = captured
            .iter()
            .copied()
            .filter(|xid| ends.contains_key(xid) && *xid > quiet[0] && *xid < quiet[11])
            .collect();
        let others = seen.iter().step_by((seen.len() / 6).max(1)).copied();
        let mut open_at_a_cut = 0;
        for xid in quiet.iter().copied().take(6).chain(others) {
            let end = ends[&xid];
            let expected: Places =
                topics.iter().flat_map(|(topic, records)| expected(topic, records, &ends, end)).collect();
            open_at_a_cut += all
                .iter()
                .filter(|change| {
                    let source = &change["source"];
                    let late =
                        source["txId"].as_u64().and_then(|xid| ends.get(&xid)).is_some_and(|commit| *commit > end);
                    source["snapshot"] == "false" && late && source["lsn"].as_u64().is_some_and(|lsn| lsn < end)
                })
                .count();
            let lines = site
                .tidelog(&["replay", "--to-commit", &lsn(end), "--topics", &pattern, "--to-stdout"])
                .expect(0)
                .json_lines();
            let place = |line: &Value| {
                let number = |name: &str| line[name].as_i64().expect("a number");
                (line["topic"].as_str().expect("a topic").to_owned(), number("partition"), number("offset"))
            };
            let sent: Places = lines.iter().map(place).collect();
            assert_eq!(sent.len(), lines.len(), "nothing twice");
            let (missing, wrong): (Vec<_>, Vec<_>) =
                (expected.difference(&sent).take(3).collect(), sent.difference(&expected).take(3).collect());
            assert!(
                missing.is_empty() && wrong.is_empty(),
                "{version:?}, cut at {xid}, {}: missing {missing:?}, wrong {wrong:?}",
                lsn(end)
            );
            let planned = site
                .tidelog(&["replay", "--to-commit", &lsn(end), "--topics", &pattern, "--dry-run", "--json"])
                .expect(0)
                .json();
            let records = &planned["cut"]["records"];
            assert_eq!(
                (records["in"].as_u64(), records["uncertain"].as_u64()),
                (Some(expected.len() as u64), Some(0)),
                "{planned}"
            );
            assert_eq!(planned["cut"]["xid"], xid);
        }
        assert!(open_at_a_cut > 0, "no transaction was open at any of the cuts");
        into_new_topics(kafka, &site, &topics, (&pattern, &ends, ends[&quiet[3]]));
        nothing_is_assumed(&site, &pattern, &ends);
    }
}

/// The cut sent into topics is the same, and its id goes on with what it was begun with.
fn into_new_topics(
    kafka: &Kafka,
    site: &Site,
    topics: &BTreeMap<String, Vec<Record>>,
    (pattern, ends, end): (&str, &BTreeMap<u64, u64>, u64),
) {
    let (id, copy) = (unique("cut"), unique("copy"));
    let rename = format!("(.*)={copy}.$1");
    let at = lsn(end);
    let args = ["replay", "--to-commit", &at, "--topics", pattern, "--rename", &rename, "--id", &id, "--json"];
    // Killed on the way: the id goes on with the records that it was begun with.
    let slow = site.home().start(&[&["-c", "tidelog.toml"], &args[..], &["--rate", "200/s"]].concat());
    let transactions = topics.keys().find(|topic| topic.ends_with(".transaction")).expect("markers");
    let first = topics.keys().next().expect("topics");
    wait_until("some of it to be sent", PATIENCE, || {
        let topic = format!("{copy}.{first}");
        kafka.partitions(&topic).is_some() && !kafka.consume_all(&topic).is_empty()
    });
    slow.kill();
    assert!(kafka.consume_all(&format!("{copy}.{transactions}")).is_empty(), "it was killed before its end");
    let sent = site.tidelog(&args).expect(0).json();
    for (topic, records) in topics {
        let places = expected(topic, records, ends, end);
        let is_in = |record: &&Record| places.contains(&(topic.clone(), i64::from(record.partition), record.offset));
        let wanted: Vec<_> = records.iter().filter(is_in).map(|record| (&record.key, &record.value)).collect();
        let copied = kafka.consume_all(&format!("{copy}.{topic}"));
        assert_eq!(copied.iter().map(|record| (&record.key, &record.value)).collect::<Vec<_>>(), wanted, "{topic}");
    }
    let again = site.tidelog(&args).expect(0).json();
    assert_eq!(
        (again["records"].as_u64(), again["finished"].as_bool()),
        (Some(0), Some(true)),
        "{sent} and then {again}"
    );
    let other = lsn(*ends.values().find(|other| **other < end).expect("an earlier commit"));
    let args = ["replay", "--to-commit", &other, "--topics", pattern, "--rename", &rename, "--id", &id];
    site.tidelog(&args).expect(2);
}

/// Where nothing shows that the connector came past the cut, that is said, and the exit code says so.
fn nothing_is_assumed(site: &Site, pattern: &str, ends: &BTreeMap<u64, u64>) {
    let last = lsn(ends.values().max().copied().expect("commits"));
    let planned =
        site.tidelog(&["replay", "--to-commit", &last, "--topics", pattern, "--dry-run", "--json"]).expect(3).json();
    let words = planned["cut"]["incomplete"].to_string();
    assert!(words.contains("nothing shows that the connector"), "{planned}");
}

/// A database in which nothing is committed any more: what Connect has written down shows that its connector has sent all of it.
#[test]
fn over_a_quiet_database_an_offset_in_connect_shows_that_all_has_come() {
    let (kafka, worker) = (shared(), shared_worker());
    let postgres = Postgres::start(PostgresOptions { config: &LOGICAL, ..Default::default() });
    postgres.psql(SCHEMA);
    let capture = Capture::start(&postgres, worker, &[("heartbeat.interval.ms", "300")]);
    let pattern = format!("^(__debezium-heartbeat\\.)?{}(\\.|$)", capture.prefix);
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&pattern], ..Settings::default() });
    let of_postgres = format!("[postgres]\nurl = \"{}\"\nmax_age = \"300ms\"\n", postgres.url("postgres"));
    site.reconfigure("[kafka]\n", &format!("{of_postgres}[kafka]\n"));
    let program = site.start();
    wait_until("the archiver to stream", PATIENCE, || {
        postgres.psql("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'tidelog' AND active") == "1"
    });
    capture.caught_up(&postgres, kafka);
    let last = xid(&postgres, "INSERT INTO marks (note) VALUES ('the last') RETURNING txid_current()");
    let topic = capture.topic("marks");
    wait_until("the last change in its topic and in the archive", PATIENCE, || {
        let records = kafka.consume_all(&topic);
        changes(&records).iter().any(|change| change["source"]["txId"] == last)
            && commits(&site).contains_key(&last)
            && site.ls(&topic).first().is_some_and(|stream| stream["records"] == records.len())
    });
    let end = lsn(commits(&site)[&last]);
    let args = ["replay", "--to-commit", &end, "--topics", &pattern, "--dry-run", "--json"];
    let planned = site.tidelog(&args).expect(3).json();
    assert!(planned["cut"]["incomplete"].to_string().contains("heartbeat.interval.ms"), "{planned}");
    program.terminate(STOP);
    site.reconfigure(
        "[kafka]\n",
        &format!("[state]\nevery = \"1s\"\ngroups = [\"none\"]\nconnect_url = {:?}\n[kafka]\n", worker.url()),
    );
    let _program = site.start();
    wait_until("the offset in Connect, and topics that are complete up to it", PATIENCE, || {
        site.tidelog(&args).status == Some(0)
    });
    capture.stop();
}

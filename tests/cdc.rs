//! The harness of everything about change data: a real connector captures what clients of a real database have committed.

use crate::rig::clients::{Clients, SCHEMA, TABLES};
use crate::rig::connect::shared_worker;
use crate::rig::debezium::{Capture, assert_same_rows, changes, fold, tables};
use crate::rig::kafka::shared;
use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::registry::Registry;
use crate::rig::topics::PATIENCE;
use crate::rig::wait_until;

/// What a server that is captured needs.
pub(crate) const LOGICAL: [(&str, &str); 1] = [("wal_level", "logical")];

#[test]
fn a_connector_captures_what_clients_committed() {
    for version in [Version::Debian, Version::V18] {
        let postgres = Postgres::start(PostgresOptions { version, config: &LOGICAL, ..Default::default() });
        postgres.psql(SCHEMA);
        let (kafka, worker) = (shared(), shared_worker());
        let before = Clients::start(&postgres, 1, 3, 7);
        wait_until("some commits", PATIENCE, || {
            postgres.psql("SELECT coalesce(sum(committed), 0) > 50 FROM ledger") == "t"
        });
        let capture = Capture::start(&postgres, worker, &[]);
        let during = Clients::start(&postgres, 11, 3, 8);
        capture.caught_up(&postgres, kafka);
        let (before, during) = (before.stop(), during.stop());
        capture.caught_up(&postgres, kafka);
        assert!(before.commits() > 20 && during.commits() > 5, "{} and {}", before.commits(), during.commits());

        let rows = tables(&postgres, &TABLES);
        let mut known = before.rows(&postgres, 1);
        for (table, more) in during.rows(&postgres, 11) {
            known.get_mut(&table).expect("the same tables").extend(more);
        }
        assert_same_rows("the clients", &known, &rows);
        assert_same_rows("the topics", &fold(kafka, &capture.prefix, &TABLES), &rows);
        let all: Vec<_> = TABLES.iter().flat_map(|table| changes(&kafka.consume_all(&capture.topic(table)))).collect();
        for op in ["r", "c", "u", "d"] {
            assert!(all.iter().any(|change| change["op"] == op), "no change of the kind {op} among {}", all.len());
        }
        capture.stop();
        let slot = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{}'", capture.slot);
        assert_eq!(postgres.psql(&slot), "f");
    }
}

#[test]
fn a_stock_consumer_reads_what_a_connector_writes_as_avro() {
    let postgres = Postgres::start(PostgresOptions { config: &LOGICAL, ..Default::default() });
    postgres.psql(SCHEMA);
    let (kafka, worker, registry) = (shared(), shared_worker(), Registry::start());
    let settings = registry.avro_settings(false);
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let capture = Capture::start(&postgres, worker, &settings);
    let streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    wait_until("the connector to stream", PATIENCE, || postgres.psql(streams) == "1");
    postgres.psql("INSERT INTO acct VALUES (1, 2, 'three'); UPDATE acct SET n = 4; DELETE FROM acct");
    let topic = capture.topic("acct");
    wait_until("its topic", PATIENCE, || kafka.partitions(&topic).is_some());
    let records = kafka.wait_for_records(&topic, 4, PATIENCE);
    assert!(records.iter().all(|record| record.key.as_ref().is_some_and(|key| key[0] == 0)), "{records:?}");
    // The last one is a tombstone, which this deserializer cannot read.
    let lines = registry.read_avro(kafka, &topic, 3);
    assert_eq!(lines.len(), 3, "{lines:?}");
    for (line, op) in lines.iter().zip(["c", "u", "d"]) {
        assert!(line.starts_with("{\"id\": 1}\t") && line.contains(&format!("\"op\": \"{op}\"")), "{line}");
    }
}

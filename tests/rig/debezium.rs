//! A real Debezium connector: what a database commits, captured into topics, and the rows that those topics come to.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::connect::Connect;
use super::kafka::Kafka;
use super::postgres::Postgres;
use super::topics::Record;
use super::{unique, wait_or_tell};

/// A change that was committed is in its topic within this time, on a machine that compiles beside the tests.
const SOON: Duration = Duration::from_secs(120);

/// What the connector sends in place of a large value that did not change.
const UNCHANGED: &str = "__debezium_unavailable_value";

/// Rows by table and key, as JSON.
pub(crate) type Tables = BTreeMap<String, BTreeMap<String, Value>>;

/// A running connector over all tables of a server's schema `public`.
pub(crate) struct Capture<'a> {
    pub(crate) name: String,
    /// The first part of its topics' names.
    pub(crate) prefix: String,
    pub(crate) slot: String,
    pub(crate) worker: &'a Connect,
}

/// The settings of a connector over a server.
pub(crate) fn settings(postgres: &Postgres, prefix: &str, slot: &str) -> Map<String, Value> {
    let settings = json!({
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "tasks.max": "1",
        "plugin.name": "pgoutput",
        "database.hostname": "127.0.0.1",
        "database.port": postgres.port().to_string(),
        "database.user": "postgres",
        "database.password": "hunter2",
        "database.dbname": "postgres",
        "topic.prefix": prefix,
        "slot.name": slot,
        "publication.name": "dbz_publication",
        "table.include.list": "public.*",
        "snapshot.mode": "initial",
        // Without a converter of its own, a connector's settings of one are not looked at.
        "key.converter": "org.apache.kafka.connect.json.JsonConverter",
        "key.converter.schemas.enable": "false",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.schemas.enable": "false",
        "topic.creation.default.replication.factor": "1",
        "topic.creation.default.partitions": "1",
        "poll.interval.ms": "100",
        "errors.max.retries": "0",
    });
    settings.as_object().expect("an object").clone()
}

impl<'a> Capture<'a> {
    /// Makes the connector, with settings over the rig's own, and waits until it runs.
    pub(crate) fn start(postgres: &Postgres, worker: &'a Connect, more: &[(&str, &str)]) -> Capture<'a> {
        let (name, prefix, slot) = (unique("shop"), unique("cdc"), unique("debezium").replace('-', "_"));
        let mut config = settings(postgres, &prefix, &slot);
        config.extend(more.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
        worker.call("POST", "/connectors", &json!({ "name": name, "config": config }));
        worker.wait_state(&name, "RUNNING");
        Capture { name, prefix, slot, worker }
    }

    /// The topic of a table.
    pub(crate) fn topic(&self, table: &str) -> String {
        format!("{}.public.{table}", self.prefix)
    }

    /// Waits until what is committed by now has come to its topic: a row written now has, and the order is that of commits.
    pub(crate) fn caught_up(&self, postgres: &Postgres, kafka: &Kafka) {
        let mark = unique("mark");
        postgres.psql(&format!("INSERT INTO marks (note) VALUES ('{mark}')"));
        let topic = self.topic("marks");
        // Text stands as it is in JSON and in Avro.
        let holds = |record: &Record| {
            record.value.as_ref().is_some_and(|value| value.windows(mark.len()).any(|part| part == mark.as_bytes()))
        };
        let there = || kafka.partitions(&topic).is_some() && kafka.consume_all(&topic).iter().any(holds);
        let status = || self.worker.server.get(&format!("/connectors/{}/status", self.name)).body;
        wait_or_tell(&format!("{mark} in {topic}"), SOON, || there().then_some(()), status);
    }

    /// Stops it for good: it keeps its slot.
    pub(crate) fn stop(&self) {
        self.worker.call("PUT", &format!("/connectors/{}/stop", self.name), &json!({}));
        self.worker.wait_state(&self.name, "STOPPED");
    }
}

impl Drop for Capture<'_> {
    /// The worker is shared: a connector whose server is gone would fail beside the others for ever.
    fn drop(&mut self) {
        if self.worker.server.is_up() {
            self.worker.server.send("DELETE", &format!("/connectors/{}", self.name), "");
        }
    }
}

/// The changes of a topic in the order of its offsets, tombstones left out. JSON without schemas.
pub(crate) fn changes(records: &[Record]) -> Vec<Value> {
    let values = records.iter().filter_map(|record| record.value.as_deref());
    values.map(|value| serde_json::from_slice(value).expect("a change event in JSON")).collect()
}

/// The rows that the topics of tables come to when their changes are applied in order.
pub(crate) fn fold(kafka: &Kafka, prefix: &str, tables: &[&str]) -> Tables {
    let rows = tables.iter().map(|table| {
        let topic = format!("{prefix}.public.{table}");
        let records = kafka.partitions(&topic).map(|_| kafka.consume_all(&topic)).unwrap_or_default();
        let text = |bytes: Option<&Vec<u8>>| String::from_utf8(bytes?.clone()).ok();
        let both = |record: &Record| Some((text(record.key.as_ref())?, text(record.value.as_ref())?));
        ((*table).to_owned(), fold_of(records.iter().filter_map(both)))
    });
    rows.collect()
}

/// The rows that changes come to, each with its key, in JSON.
pub(crate) fn fold_of(changes: impl Iterator<Item = (String, String)>) -> BTreeMap<String, Value> {
    let mut rows = BTreeMap::new();
    for (key, change) in changes {
        let parse = |text: &str| serde_json::from_str::<Value>(text).expect("JSON of a connector");
        let (key, change) = (parse(&key).to_string(), parse(&change));
        if change["op"] == "d" {
            rows.remove(&key);
            continue;
        }
        let mut row = change["after"].clone();
        let kept: &Value = rows.get(&key).unwrap_or(&Value::Null);
        for (column, value) in row.as_object_mut().expect("a row") {
            if value == UNCHANGED {
                *value = kept[column].clone();
            }
        }
        rows.insert(key, row);
    }
    rows
}

/// The rows of tables of a server, by their primary keys, in the shape of [`fold`].
pub(crate) fn tables(postgres: &Postgres, names: &[&str]) -> Tables {
    let rows = names.iter().map(|table| {
        let key = postgres.psql(&format!(
            "SELECT string_agg(quote_literal(a.attname) || ', x.' || quote_ident(a.attname), ', ' ORDER BY k.at)
             FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(column_number, at), pg_attribute a
             WHERE i.indrelid = '{table}'::regclass AND i.indisprimary
               AND a.attrelid = i.indrelid AND a.attnum = k.column_number"
        ));
        let sql = format!("SELECT json_build_object({key})::text || E'\\t' || to_jsonb(x)::text FROM {table} x");
        let lines = postgres.psql(&sql);
        let row = |line: &str| {
            let (key, row) = line.split_once('\t').expect("a key and a row");
            let parse = |text: &str| serde_json::from_str::<Value>(text).expect("JSON of Postgres");
            (parse(key).to_string(), parse(row))
        };
        ((*table).to_owned(), lines.lines().map(row).collect())
    });
    rows.collect()
}

/// Panics with the first rows that differ.
pub(crate) fn assert_same_rows(what: &str, actual: &Tables, expected: &Tables) {
    for (table, expected) in expected {
        let actual = &actual[table];
        let keys: std::collections::BTreeSet<_> = actual.keys().chain(expected.keys()).collect();
        let differing: Vec<_> = keys.into_iter().filter(|key| actual.get(*key) != expected.get(*key)).collect();
        let shown: Vec<_> = differing.iter().take(3).map(|key| (key, actual.get(*key), expected.get(*key))).collect();
        assert!(
            differing.is_empty(),
            "{what}: {table} has {} rows, {} are expected, {} differ: {shown:?}",
            actual.len(),
            expected.len(),
            differing.len()
        );
    }
}

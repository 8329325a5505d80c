//! Topics in Avro brought back beside a registry that has other ids: a stock consumer reads every record.

use serde_json::{Value, json};

use crate::cdc::LOGICAL;
use crate::http::Service;
use crate::recover::TIME;
use crate::rig::clients::SCHEMA;
use crate::rig::connect::shared_worker;
use crate::rig::debezium::Capture;
use crate::rig::kafka::shared;
use crate::rig::postgres::{Postgres, PostgresOptions};
use crate::rig::registry::Registry;
use crate::rig::topics::PATIENCE;
use crate::rig::wait_until;
use crate::site::Settings;
use crate::state::wait_state;

#[test]
fn a_stock_consumer_reads_what_was_brought_back_beside_other_ids() {
    let postgres = Postgres::start(PostgresOptions { config: &LOGICAL, ..Default::default() });
    postgres.psql(SCHEMA);
    let (kafka, worker, registry) = (shared(), shared_worker(), Registry::start());
    for in_headers in [false, true] {
        let settings = registry.avro_settings(in_headers);
        let settings: Vec<(&str, &str)> =
            settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let capture = Capture::start(&postgres, worker, &settings);
        wait_until("the connector to stream", PATIENCE, || {
            let sql = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{}'", capture.slot);
            postgres.psql(&sql) == "t"
        });
        postgres.psql("INSERT INTO acct SELECT g, 0, 'n' FROM generate_series(1, 30) g");
        postgres.psql("UPDATE acct SET n = 4; DELETE FROM acct");
        let topic = capture.topic("acct");
        wait_until("its topic", PATIENCE, || kafka.partitions(&topic).is_some());
        // The snapshot may have seen the first ones. Each deletion has a tombstone, which the deserializer of ids in prefixes cannot read.
        let records = kafka.wait_for_records(&topic, 60 + 30 + 30 - 30, PATIENCE);
        let config = format!(
            "[state]\nevery = \"1s\"\ngroups = [\"none\"]\nschema_registry_url = {:?}\n[postgres]\nurl = {:?}\nmax_age = \"300ms\"\n",
            registry.url(),
            postgres.url("postgres"),
        );
        let settings = Settings { topics: &[&format!("^{}[.]", capture.prefix)], ..Settings::default() };
        let mut service = Service::start(kafka, &settings, &config);
        let subject = format!("{topic}-value");
        wait_state(&mut service, "schemas", "the subject", |state| state["subjects"][&subject].is_object());
        service.site.tidelog(&["backup"]).expect(0);
        service.site.wait_archived(kafka, &[&topic], &mut [&mut service.program]);
        let to = postgres.psql(TIME);
        postgres.psql("INSERT INTO marks (note) VALUES ('behind')");

        let other = Registry::start();
        for name in ["A", "B", "C", "D", "E"] {
            let schema = json!({ "type": "record", "name": name, "fields": [] }).to_string();
            other.call("POST", &format!("/subjects/{name}/versions"), &json!({ "schema": schema }));
        }
        let pipeline = format!(
            "[kafka]\nrename = \"^cdc=new-cdc\"\ntopics = [\"^{}[.]\"]\n[schema_registry]\nurl = {:?}\n",
            capture.prefix,
            other.url()
        );
        let pipeline = service.site.home().write("pipeline.toml", &pipeline).display().to_string();
        let args = ["recover", "--pipeline", &pipeline, "--to", &to, "--json"];
        wait_until("the log in the archive", PATIENCE, || {
            service.site.tidelog(&[&args[..], &["--dry-run"]].concat()).status == Some(0)
        });
        let report: Value = service.site.tidelog(&args).json();
        let renamed = format!("new-{topic}");
        let came = kafka.consume_all(&renamed);
        assert_eq!(came.len(), records.len(), "{report}");
        let differ = records
            .iter()
            .zip(&came)
            .filter(|(was, is)| (&was.key, &was.value, &was.headers) != (&is.key, &is.value, &is.headers));
        assert_eq!(differ.count(), came.len(), "no record has another id");
        let readable = records.iter().position(|record| record.value.is_none()).expect("a tombstone");
        assert_eq!(other.read_avro(kafka, &renamed, readable), registry.read_avro(kafka, &topic, readable));
    }
}

//! Fidelity: what real Kafka holds, archived in both formats, is equal record for record when it is replayed, and when
//! somebody else's Parquet and Avro readers read the archive.
//!
//! ```text
//!   topic ─┬─► archive, Parquet ─┬─► replay ─► another topic ─┐
//!          │                     └─► pyarrow, DuckDB ─────────┤
//!          ├─► archive, Avro ────┬─► replay ─► another topic ─┤ equal?
//!          │                     └─► fastavro ────────────────┤
//!          └───────────────────────────────────────────────────┘
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use futures::executor::block_on;
use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};

use crate::rig::compare::{Contents, assert_same, contents};
use crate::rig::kafka::{Kafka, KafkaOptions, free_port, java, shared};
use crate::rig::process::temporary_directory;
use crate::rig::topics::{Codec, End, Isolation, Message, PATIENCE, Record};
use crate::rig::{program, python, records, unique, wait_until};
use crate::site::{STOP, Settings, Site};

const FORMATS: [&str; 2] = ["parquet", "avro"];

/// What a reader that is not ours finds in the archive's objects of a topic, by partition.
pub(crate) fn read_by(reader: &str, site: &Site, topic: &str) -> BTreeMap<i32, Contents> {
    let files = site.files(topic);
    let urls: Vec<&str> = files.iter().map(|file| file["url"].as_str().expect("a URL")).collect();
    let answer = python::run(include_str!("data/readers.py"), &[&[reader], urls.as_slice()].concat());
    let found: BTreeMap<i32, (u64, String)> = serde_json::from_str(&answer).expect("the script prints JSON");
    found.into_iter().map(|(partition, (records, sha256))| (partition, Contents { records, sha256 })).collect()
}

fn with_records(mut contents: BTreeMap<i32, Contents>) -> BTreeMap<i32, Contents> {
    contents.retain(|_, contents| contents.records > 0);
    contents
}

/// Archives the topics in a format, and compares a replay and what other readers say with what Kafka holds.
fn archive_and_compare(kafka: &Kafka, format: &str, topics: &[(&str, &BTreeMap<i32, Contents>)]) {
    let names: Vec<&str> = topics.iter().map(|(topic, _)| *topic).collect();
    let site =
        Site::new(&kafka.bootstrap(), &Settings { topics: &names, format, max_age: "2s", ..Settings::default() });
    site.archive(kafka, &names);
    let report = site.assert_sound();
    let records: u64 = topics.iter().flat_map(|(_, contents)| contents.values()).map(|contents| contents.records).sum();
    assert_eq!(report["records"], records, "{report}");
    assert_eq!((&report["orphans"], &report["gaps"]), (&0.into(), &serde_json::json!([])), "{report}");
    let readers: &[&str] = if format == "parquet" { &["pyarrow", "duckdb"] } else { &["fastavro"] };
    for &(topic, expected) in topics {
        for &reader in readers {
            let found = read_by(reader, &site, topic);
            assert_eq!(found, with_records(expected.clone()), "{topic} as {reader} reads it");
        }
        let target = unique(&format!("{topic}-{format}"));
        site.replay(topic, &target, &[]);
        if contents(kafka, &target) != *expected {
            assert_same((kafka, topic), (kafka, &target));
            panic!("{target} differs from what {topic} held before");
        }
        kafka.delete_topic(&target);
    }
}

fn archive_in_both_formats(kafka: &Kafka, topics: &[(&str, &BTreeMap<i32, Contents>)]) {
    thread::scope(|scope| {
        for format in FORMATS {
            scope.spawn(move || archive_and_compare(kafka, format, topics));
        }
    });
}

#[test]
fn a_million_odd_records_come_back_equal() {
    let (kafka, topic) = (shared(), unique("million"));
    kafka.create_topic(&topic, 12, &[]);
    records::load(kafka, &topic, 12, 1_000_000, 1);
    let expected = contents(kafka, &topic);
    assert_eq!(expected.values().map(|contents| contents.records).sum::<u64>(), 1_000_000);
    archive_in_both_formats(kafka, &[(&topic, &expected)]);
    kafka.delete_topic(&topic);
}

#[test]
fn topics_of_every_kind_come_back_equal() {
    let kafka = shared();
    let topics = ["appended", "transactions", "compacted"].map(unique);
    let [appended, transactions, compacted] = &topics;
    kafka.create_topic(appended, 3, &[("message.timestamp.type", "LogAppendTime")]);
    records::load(kafka, appended, 3, 20_000, 2);
    load_transactions(kafka, transactions);
    load_compacted(kafka, compacted);
    let held = topics.each_ref().map(|topic| contents(kafka, topic));
    let all: Vec<(&str, &BTreeMap<i32, Contents>)> = topics.iter().map(String::as_str).zip(&held).collect();
    archive_in_both_formats(kafka, &all);
    for topic in &topics {
        kafka.delete_topic(topic);
    }
}

/// Committed, aborted and plain records in turn; at the end of each partition lies a marker, which is no record.
fn load_transactions(kafka: &Kafka, topic: &str) {
    kafka.create_topic(topic, 3, &[]);
    let mut made = 0;
    let mut messages = |word: &str| -> Vec<Message> {
        let numbers = (made..made + 300).collect::<Vec<i32>>();
        made += 300;
        numbers.into_iter().map(|n| Message::new(n % 3, &format!("key-{n}"), &format!("{word} {n}"))).collect()
    };
    for _ in 0..3 {
        kafka.produce_transaction(topic, &messages("committed"), End::Commit);
        kafka.produce_transaction(topic, &messages("aborted"), End::Abort);
        kafka.produce(topic, Codec::Lz4, &messages("plain"));
        kafka.produce_transaction(topic, &messages("aborted"), End::Abort);
    }
    let committed = contents(kafka, topic).values().map(|contents| contents.records).sum::<u64>();
    let offsets = kafka.watermarks(topic).iter().map(|(_, end)| *end).sum::<i64>();
    assert_eq!(committed, 1800);
    assert!(offsets >= 3600 + 9 * 3, "{offsets} offsets, markers and aborted records included");
}

/// A log with holes: the cleaner of the broker has removed records from it, and is then switched off.
pub(crate) fn load_compacted(kafka: &Kafka, topic: &str) {
    let configs = [("cleanup.policy", "compact"), ("segment.ms", "50"), ("min.cleanable.dirty.ratio", "0.01")];
    kafka.create_topic(topic, 2, &configs);
    let message = |n: i32, key: String| {
        let value = (n % 17 != 0).then(|| format!("value {n}").into_bytes());
        Message { partition: Some(n % 2), key: Some(key.into_bytes()), value, ..Message::default() }
    };
    // A third of the keys comes once and stays, so that the holes lie between records.
    let key = |n: i32| if n % 3 == 0 { format!("once {n}") } else { format!("again {}", n % 40) };
    let messages: Vec<Message> = (0..3000).map(|n| message(n, key(n))).collect();
    kafka.produce(topic, Codec::Zstd, &messages);
    let mut more = 3000;
    wait_until("the cleaner to make holes in every partition", PATIENCE, || {
        // A record later than segment.ms closes the segment before it; only closed ones are cleaned.
        kafka.produce(topic, Codec::None, &[message(more, key(more)), message(more + 1, key(more + 1))]);
        more += 2;
        let left = contents(kafka, topic);
        left.values().zip(kafka.watermarks(topic)).all(|(contents, (_, end))| contents.records < end.unsigned_abs() / 2)
    });
    let off = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("cleanup.policy", "delete");
    let options = AdminOptions::new().request_timeout(Some(PATIENCE));
    let answers = block_on(kafka.admin().alter_configs([&off], &options)).expect("the broker answers");
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    // A round of the cleaner that was under way ends within its own time.
    let mut before = contents(kafka, topic);
    wait_until("the cleaner to have ended", PATIENCE, || {
        thread::sleep(Duration::from_millis(700)); // longer than the rig's log.cleaner.backoff.ms
        let now = contents(kafka, topic);
        std::mem::replace(&mut before, now.clone()) == now
    });
}

// ---- TLS and SASL

/// A broker whose second listener wants TLS and a password (SCRAM-SHA-512), the user that has it, and where a third one wants TLS and
/// a certificate.
fn secured(folder: &Path, user: &str, password: &str) -> (Kafka, String, String) {
    let script = r#"
        set -eu
        openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -subj /CN=ca -days 2
        openssl req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=broker
        printf 'subjectAltName=IP:127.0.0.1\n' >ext
        openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile ext -out server.crt -days 2
        cat server.key server.crt >server.pem
        openssl req -x509 -newkey rsa:2048 -nodes -keyout other.key -out other.crt -subj /CN=other -days 2
        for name in first second; do
            openssl req -newkey rsa:2048 -nodes -keyout $name.key -out $name.csr -subj /CN=$name
            openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out $name.crt -days 2
            openssl pkcs8 -topk8 -in $name.key -passout pass:of-the-key -out $name.locked
            openssl pkcs12 -export -in $name.crt -inkey $name.key -passout pass:of-the-store -out $name.p12
        done"#;
    let mut shell = Command::new("bash");
    shell.args(["-c", script]).current_dir(folder);
    program::run(shell).expect(0);
    let [address, mutual] = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
    let login = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    let properties = [
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL,MUTUAL:SSL"),
        ("sasl.enabled.mechanisms", "SCRAM-SHA-512"),
        ("listener.name.secure.scram-sha-512.sasl.jaas.config", login),
        ("ssl.keystore.type", "PEM"),
        ("ssl.keystore.location", &folder.join("server.pem").display().to_string()),
        ("ssl.truststore.type", "PEM"),
        ("ssl.truststore.location", &folder.join("ca.crt").display().to_string()),
        ("listener.name.mutual.ssl.client.auth", "required"),
        // The second client's certificate may join no group: who one is follows from the certificate.
        ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
        ("super.users", "User:ANONYMOUS;User:archiver;User:CN=first"),
    ];
    let kafka = Kafka::start(KafkaOptions {
        properties: properties.map(|(name, value)| (name, value.to_owned())).to_vec(),
        listener: Some(format!("SECURE://{address},MUTUAL://{mutual}")),
        ..KafkaOptions::default()
    });
    let mut add = java();
    add.args(["kafka.admin.ConfigCommand", "--bootstrap-server", &kafka.bootstrap(), "--alter"])
        .args(["--entity-type", "users", "--entity-name", user])
        .args(["--add-config", &format!("SCRAM-SHA-512=[password={password}]")]);
    program::run(add).expect(0);
    (kafka, address, mutual)
}

#[test]
fn a_cluster_that_wants_tls_and_a_password_is_archived_and_replayed_into() {
    let folder = temporary_directory("secured");
    let (kafka, address, mutual) = secured(folder.path(), "archiver", "a secret, of course");
    let topic = unique("secured");
    kafka.create_topic(&topic, 2, &[]);
    let messages: Vec<Message> = (0..100).map(|n| Message::new(n % 2, "key", &format!("record {n}"))).collect();
    kafka.produce(&topic, Codec::Lz4, &messages);
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("password"), "a secret, of course\n").expect("the password can be written");
    let authority = path("ca.crt");
    let properties = [
        ("security.protocol", "SASL_SSL"),
        ("sasl.mechanisms", "SCRAM-SHA-512"),
        ("sasl.username", "archiver"),
        ("ssl.ca.location", &authority),
    ];
    let site = Site::new(&address, &Settings { topics: &[&topic], properties: &properties, ..Settings::default() });
    let from_file = format!("\"sasl.password\" = {{ file = {:?} }}\n\"sasl.username\"", path("password"));
    site.reconfigure("\"sasl.username\"", &from_file);
    site.tidelog(&["check", "--connect"]).expect(0);
    site.archive(&kafka, &[&topic]);
    let held = kafka.consume_all(&topic);
    site.assert_holds(&topic, 0, &held);

    // Replays: by the configuration, and into the cluster that a file of properties describes.
    let (back, other) = (format!("{topic}.back"), format!("{topic}.other"));
    assert_eq!(site.replay(&topic, &back, &[])["records"], 100);
    let described = format!(
        "bootstrap.servers={address}\nsecurity.protocol=SASL_SSL\nsasl.mechanisms=SCRAM-SHA-512\nsasl.username=archiver\nsasl.password=a secret, of course\nssl.ca.location={authority}\n"
    );
    std::fs::write(path("into.properties"), described).expect("the file can be written");
    assert_eq!(site.replay(&topic, &other, &["--into-config", &path("into.properties")])["records"], 100);
    for copy in [back, other] {
        let values = |records: Vec<Record>| records.into_iter().map(|record| record.value).collect::<Vec<_>>();
        assert_eq!(values(kafka.consume(&copy, Isolation::Committed)), values(held.clone()), "{copy}");
    }

    // What is wrong is told, and the password never.
    std::fs::write(path("password"), "another one").expect("the password can be written");
    let refused = |words: &str| {
        let output = site.tidelog(&["check", "--connect"]);
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(output.status == Some(1) && said.contains(words) && !said.contains("another one"), "{said}");
    };
    refused("uthentication");
    site.reconfigure("ca.crt", "other.crt");
    refused("certificate");

    a_certificate_opens_the_third_listener(folder.path(), &kafka, &mutual, (&topic, &held));
}

/// A client certificate as each form that librdkafka takes; what is wrong with one is told; another one at the next start.
fn a_certificate_opens_the_third_listener(
    folder: &Path,
    kafka: &Kafka,
    address: &str,
    (topic, held): (&str, &[Record]),
) {
    let path = |name: &str| folder.join(name).display().to_string();
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).expect("it can be read");
    let forms: [&[(&str, String)]; 4] = [
        &[("ssl.certificate.location", path("first.crt")), ("ssl.key.location", path("first.key"))],
        &[
            ("ssl.certificate.location", path("first.crt")),
            ("ssl.key.location", path("first.locked")),
            ("ssl.key.password", "of-the-key".to_owned()),
        ],
        &[
            ("ssl.certificate.pem", text("first.crt")),
            ("ssl.key.pem", text("first.locked")),
            ("ssl.key.password", "of-the-key".to_owned()),
        ],
        &[("ssl.keystore.location", path("first.p12")), ("ssl.keystore.password", "of-the-store".to_owned())],
    ];
    let site = |form: &[(&str, String)]| {
        let authority = path("ca.crt");
        let mut properties = vec![("security.protocol", "SSL"), ("ssl.ca.location", &authority)];
        properties.extend(form.iter().map(|(name, value)| (*name, value.as_str())));
        Site::new(address, &Settings { topics: &[topic], properties: &properties, ..Settings::default() })
    };
    for form in forms {
        let site = site(form);
        site.tidelog(&["check", "--connect"]).expect(0);
        site.archive(kafka, &[topic]);
        site.assert_holds(topic, 0, held);
    }
    let wrong: [(&[(&str, String)], i32, &str); 3] = [
        (&[], 1, "certificate"),
        (
            &[
                ("ssl.certificate.location", path("first.crt")),
                ("ssl.key.location", path("first.locked")),
                ("ssl.key.password", "of-another-key".to_owned()),
            ],
            2,
            "ssl.key.location",
        ),
        (&[("ssl.certificate.location", path("second.crt")), ("ssl.key.location", path("second.key"))], 1, "uthoriz"),
    ];
    for (form, status, words) in wrong {
        let output = site(form).tidelog(&["check", "--connect"]);
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(output.status == Some(status) && said.contains(words), "{status} {words}: {said}");
        assert!(!said.contains("of-another-key"), "{said}");
    }

    // The files are replaced while it runs: it goes on with what it has read, and takes the new ones at its next start.
    for (own, of) in [("own.crt", "second.crt"), ("own.key", "second.key")] {
        std::fs::copy(folder.join(of), folder.join(own)).expect("copied");
    }
    let renewed = site(&[("ssl.certificate.location", path("own.crt")), ("ssl.key.location", path("own.key"))]);
    renewed.tidelog(&["check", "--connect"]).expect(1);
    for (own, of) in [("own.crt", "first.crt"), ("own.key", "first.key")] {
        std::fs::copy(folder.join(of), folder.join(own)).expect("copied");
    }
    let mut program = renewed.start();
    renewed.wait_archived(kafka, &[topic], &mut [&mut program]);
    for own in ["own.crt", "own.key"] {
        std::fs::remove_file(folder.join(own)).expect("removed");
    }
    kafka.restart(1);
    let messages: Vec<Message> = (100..200).map(|n| Message::new(n % 2, "key", &format!("record {n}"))).collect();
    kafka.produce(topic, Codec::None, &messages);
    renewed.wait_archived(kafka, &[topic], &mut [&mut program]);
    program.terminate(STOP);
    renewed.assert_holds(topic, 0, &kafka.consume_all(topic));
}

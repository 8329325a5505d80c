//! The rig's own tests: a comparison is only worth what the rig under it is.

use std::process::Command;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use rdkafka::Timestamp;

use super::bad_store::BadStore;
use super::kafka::{Kafka, KafkaOptions, shared};
use super::program::{self, Home, Program};
use super::records::{self, Generator};
use super::s3::{Bucket, moto, s3s_fs};
use super::topics::{Codec, End, Isolation, Message, PATIENCE};
use super::{compare, python, unique, wait_until};

fn odd_messages() -> Vec<Message> {
    let header = |name: &str, value: Option<&[u8]>| (name.to_owned(), value.map(<[u8]>::to_vec));
    vec![
        Message { partition: Some(0), timestamp: Some(1_600_000_000_000), ..Message::default() },
        Message { partition: Some(1), key: Some(vec![]), value: Some(vec![]), ..Message::new(1, "", "") },
        Message {
            partition: Some(0),
            timestamp: Some(1_500_000_000_000),
            key: Some(vec![0xff, 0x00, 0xfe]),
            value: None,
            headers: vec![
                header("a", Some(b"1")),
                header("a", Some(b"")),
                header("a", None),
                header("", Some(&[0xc3, 0x28])),
                header("ключ", None),
            ],
        },
        Message::new(1, "key", "value"),
    ]
}

#[test]
fn every_codec_keeps_every_byte() {
    let kafka = shared();
    for codec in Codec::ALL {
        let topic = unique("codec");
        kafka.create_topic(&topic, 2, &[]);
        kafka.produce(&topic, codec, &odd_messages());
        let records = kafka.consume_all(&topic);
        let mut sent = odd_messages();
        sent.sort_by_key(|message| message.partition);
        assert_eq!(records.len(), sent.len());
        for (at, (record, message)) in records.iter().zip(&sent).enumerate() {
            assert_eq!(Some(record.partition), message.partition);
            assert_eq!(record.offset, i64::try_from(at % 2).expect("small"));
            assert_eq!((&record.key, &record.value), (&message.key, &message.value));
            assert_eq!(record.headers, message.headers);
            if let Some(timestamp) = message.timestamp {
                assert_eq!(record.timestamp, Timestamp::CreateTime(timestamp));
            }
        }
    }
}

#[test]
fn isolation_shows_or_hides_aborted_records() {
    let kafka = shared();
    let topic = unique("transactions");
    kafka.create_topic(&topic, 1, &[]);
    kafka.produce_transaction(&topic, &[Message::new(0, "k", "aborted")], End::Abort);
    kafka.produce_transaction(&topic, &[Message::new(0, "k", "committed")], End::Commit);
    let committed = kafka.consume_all(&topic);
    assert_eq!(committed.len(), 1);
    assert_eq!((committed[0].offset, committed[0].value.as_deref()), (2, Some(&b"committed"[..])));
    assert_eq!(kafka.consume(&topic, Isolation::Uncommitted).len(), 2);
    assert_eq!(kafka.watermarks(&topic), [(0, 4)]);
}

#[test]
fn topics_grow_shrink_and_go() {
    let kafka = shared();
    let topic = unique("generation");
    kafka.create_topic(&topic, 1, &[("message.timestamp.type", "LogAppendTime")]);
    kafka.grow_topic(&topic, 3);
    assert_eq!(kafka.partitions(&topic), Some(3));
    kafka.produce(&topic, Codec::None, &[Message::new(2, "k", "1"), Message::new(2, "k", "2")]);
    kafka.delete_records(&topic, 2, 1);
    assert_eq!(kafka.watermarks(&topic), [(0, 0), (0, 0), (1, 2)]);
    let left = kafka.wait_for_records(&topic, 1, PATIENCE);
    assert_eq!(left[0].offset, 1);
    assert!(matches!(left[0].timestamp, Timestamp::LogAppendTime(_)));
    assert!(kafka.committed("nobody", &topic).is_empty());
    kafka.delete_topic(&topic);
    assert_eq!(kafka.partitions(&topic), None);
}

#[test]
fn a_broker_that_is_killed_or_stopped_comes_back_with_its_data() {
    let kafka = Kafka::start(KafkaOptions { properties: vec![("num.partitions", "3".into())], ..Default::default() });
    kafka.create_topic("kept", 1, &[]);
    kafka.produce("kept", Codec::Zstd, &[Message::new(0, "k", "before")]);
    let address = kafka.bootstrap();
    kafka.kill(1);
    assert!(!kafka.is_running(1));
    kafka.restart(1);
    assert_eq!(kafka.bootstrap(), address);
    assert_eq!(kafka.consume_all("kept").len(), 1);
    kafka.stop(1);
    assert!(!kafka.is_running(1));
    kafka.restart(1);
    kafka.freeze(1);
    kafka.thaw(1);
    kafka.produce("kept", Codec::None, &[Message::new(0, "k", "after")]);
    assert_eq!(kafka.consume_all("kept").len(), 2);
}

#[test]
fn three_brokers_outlive_one() {
    let kafka = Kafka::start(KafkaOptions { brokers: 3, ..Default::default() });
    kafka.create_topic("replicated", 6, &[]);
    let messages: Vec<Message> = (0..6).map(|partition| Message::new(partition, "k", "v")).collect();
    kafka.produce("replicated", Codec::Lz4, &messages);
    kafka.kill(3);
    kafka.produce("replicated", Codec::Lz4, &messages);
    wait_until("new leaders", PATIENCE, || kafka.partitions("replicated") == Some(6));
    assert_eq!(kafka.consume_all("replicated").len(), 12);
    kafka.restart(3);
    assert_eq!(kafka.consume_all("replicated").len(), 12);
}

#[test]
#[should_panic(expected = "Unknown configuration")]
fn a_broker_that_cannot_start_tells_why() {
    let properties = vec![("process.roles", "Unknown configuration".to_owned())];
    Kafka::start(KafkaOptions { brokers: 1, properties, ..Default::default() });
}

#[test]
fn python_has_its_packages() {
    let script = "import sys, duckdb, pyarrow, fastavro, confluent_kafka; print(duckdb.sql('select 6 * 7').fetchall()[0][0], sys.argv[1:])";
    assert_eq!(python::run(script, &["a", "b"]), "42 ['a', 'b']\n");
}

async fn put_and_get(bucket: &Bucket) {
    let mut builder = AmazonS3Builder::new().with_url(bucket.url());
    for (key, value) in bucket.options() {
        builder = builder.with_config(key.parse::<AmazonS3ConfigKey>().expect("a known option"), value);
    }
    let store = builder.build().expect("the options are complete");
    let key = Path::from("a/b");
    let create = || store.put_opts(&key, PutPayload::from_static(b"x"), PutMode::Create.into());
    create().await.expect("the first create succeeds");
    let second = create().await.expect_err("the second create fails");
    assert!(matches!(second, object_store::Error::AlreadyExists { .. }), "{second}");
    let bytes = store.get(&key).await.expect("it is there").bytes().await.expect("it can be read");
    assert_eq!(&bytes[..], b"x");
}

#[tokio::test]
async fn both_object_stores_keep_and_refuse() {
    put_and_get(&moto()).await;
    let bucket = s3s_fs();
    put_and_get(&bucket).await;
    assert!(bucket.files().expect("s3s-fs has files").join("a/b").exists());
}

#[test]
fn a_topic_equals_its_copy_and_differs_by_one_byte() {
    let kafka = shared();
    let [topic, copy, other] = ["odd", "copy", "other"].map(unique);
    for name in [&topic, &copy, &other] {
        kafka.create_topic(name, 3, &[]);
    }
    records::load(kafka, &topic, 3, 5_000, 7);
    records::load(kafka, &copy, 3, 5_000, 7);
    assert_eq!(compare::assert_same((kafka, &topic), (kafka, &copy)), 5_000);

    let mut changed = kafka.consume_all(&topic);
    let at = changed.iter().rposition(|record| record.value.as_ref().is_some_and(|value| !value.is_empty()));
    changed[at.expect("some record has a value")].value.as_mut().expect("it has")[0] ^= 1;
    let messages: Vec<Message> = changed.into_iter().map(Message::from).collect();
    kafka.produce(&other, Codec::Zstd, &messages);
    let difference = compare::compare((kafka, &topic), (kafka, &other)).expect_err("they differ");
    assert!(difference.contains("partition 2 of") && difference.contains("in the other"), "{difference}");
}

#[test]
fn odd_records_are_odd_and_the_same_again() {
    let make = |seed| -> Vec<Message> { Generator::new(seed, 12).take(20_000).collect() };
    let messages = make(1);
    assert!(messages == make(1) && messages != make(2));
    let some = |what: &str, is: &dyn Fn(&Message) -> bool| assert!(messages.iter().any(is), "no record has {what}");
    let empty = |bytes: &Option<Vec<u8>>| bytes.as_ref().is_some_and(Vec::is_empty);
    some("neither key nor value", &|m| m.key.is_none() && m.value.is_none());
    some("a key and no value", &|m| m.key.is_some() && m.value.is_none());
    some("an empty key", &|m| empty(&m.key));
    some("an empty value", &|m| empty(&m.value));
    some("a value that is no text", &|m| m.value.as_ref().is_some_and(|v| std::str::from_utf8(v).is_err()));
    some("80 KB", &|m| m.value.as_ref().is_some_and(|v| v.len() == 80_000));
    some("Confluent's magic byte", &|m| m.value.as_ref().is_some_and(|v| v.starts_with(&[0, 0, 0, 0])));
    some("a null header", &|m| m.headers.iter().any(|(_, value)| value.is_none()));
    some("a header twice", &|m| m.headers.len() == 2 && m.headers[0].0 == m.headers[1].0);
    assert!(!messages.is_sorted_by_key(|message| message.timestamp));
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[test]
fn the_program_runs_in_its_home() {
    let home = Home::with_config("# empty\n");
    assert_eq!(std::fs::read_to_string(home.path().join("tidelog.toml")).expect("the config"), "# empty\n");
    home.run(&["--version"]).expect(0);
    assert_eq!(home.start(&["--version"]).wait(PATIENCE), 0);
}

#[test]
fn outputs_stay_apart_and_are_parsed() {
    let output = program::run(shell("echo '{\"a\":1}'; echo no >&2; exit 3")).expect(3);
    assert_eq!(output.json(), serde_json::json!({"a": 1}));
    assert_eq!(output.json_lines(), [serde_json::json!({"a": 1})]);
    assert_eq!(output.stderr, "no\n");
}

#[test]
fn programs_are_frozen_thawed_terminated_and_killed() {
    let home = Home::new();
    let log = home.write("log", "");
    let script = "trap 'exit 0' TERM; while :; do echo on; sleep 0.02; done";
    let mut program = Program::start(shell(script), &log);
    let lines = |program: &Program| program.output().lines().count();
    let goes_on = |program: &Program| {
        let before = lines(program);
        wait_until("the program to go on", PATIENCE, || lines(program) > before);
    };
    goes_on(&program);
    program.freeze();
    wait_until("the program to stand still", PATIENCE, || {
        let before = lines(&program);
        std::thread::sleep(Duration::from_millis(200));
        lines(&program) == before
    });
    program.assert_running();
    program.thaw();
    goes_on(&program);
    program.terminate(PATIENCE);
    let mut other = Program::start(shell(script), &log);
    assert!(other.is_running());
    other.kill();
}

#[test]
#[should_panic(expected = "the program ended")]
fn a_program_that_ended_is_noticed() {
    let home = Home::new();
    let mut program = Program::start(shell("exit 1"), &home.write("log", ""));
    wait_until("the end", PATIENCE, || {
        program.assert_running();
        false
    });
}

#[test]
fn a_bad_store_keeps_its_objects_where_the_disk_would_and_disturbs() {
    let (home, bad) = (Home::new(), BadStore::default());
    let path = home.path().display();
    let config = format!(
        "[archive]\nurl = \"file://{path}/archive\"\nspool_dir = \"{path}/spool\"\n[kafka]\n\
         bootstrap_servers = \"b:1\"\ntopics = [\"a\"]\n"
    );
    let placed = bad.put_behind(home.path(), &config);
    assert!(placed.contains("url = \"s3://archive\"") && !placed.contains("file://"), "{placed}");
    let file = home.write("bad.toml", &placed);
    let config = tidelog::config::Config::load(&file).expect("it is a configuration");
    let store = tidelog::store::Store::open(&config.archive).expect("it opens");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let keys: Vec<Path> = (0..40).map(|n| Path::from(format!("folder/{n}"))).collect();
    runtime.block_on(async {
        futures::future::join_all(keys.iter().map(async |key| {
            store.create(key, key.to_string().into()).await.expect("created");
            assert_eq!(store.get(key).await.expect("read").expect("it is there"), key.to_string());
        }))
        .await;
    });
    for key in &keys {
        let object = std::fs::read_to_string(home.path().join("archive").join(key.as_ref()));
        assert_eq!(object.expect("a file"), key.to_string());
    }
    assert!(bad.disturbed() > 4, "{} requests met a fault", bad.disturbed());
}

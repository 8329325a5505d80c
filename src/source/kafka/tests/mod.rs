//! The consumer and the cluster view against librdkafka's own mock cluster.

mod reader;

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::OwnedHeaders;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

pub(crate) use self::reader::config;
use self::reader::{Reader, Seen, at};
use super::{Cluster, Consumer, Event, Message, OffsetAt, TopicPartition};
use crate::config::{Isolation, Kafka, Segment, Start, TopicPattern};
use crate::error::Kind;
use crate::record::TimestampType;
use crate::stream::Format;

/// A mock cluster with one producer.
struct Mock {
    cluster: MockCluster<'static, DefaultProducerContext>,
    producer: BaseProducer,
}

impl Mock {
    fn new() -> Self {
        let cluster = MockCluster::new(1).unwrap();
        let producer = ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).create().unwrap();
        Self { cluster, producer }
    }

    fn topic(&self, name: &str, partitions: i32) {
        self.cluster.create_topic(name, partitions, 1).unwrap();
    }

    fn config(&self, topics: &[&str]) -> Kafka {
        // The mock coordinator waits three seconds for first members, and later ones nearly a session. A shorter session
        // than the first would end while its member waits.
        let quick = [
            ("session.timeout.ms", "3500"),
            ("heartbeat.interval.ms", "200"),
            ("topic.metadata.refresh.interval.ms", "500"),
        ];
        config(&self.cluster.bootstrap_servers(), topics, &quick)
    }

    /// Sends records with the values `values` to one partition, one request each, so that they are fetched one by one.
    fn send(&self, topic: &str, partition: i32, values: std::ops::Range<i64>) {
        for value in values {
            let value = value.to_string();
            self.producer.send(BaseRecord::<(), str>::to(topic).partition(partition).payload(&value)).unwrap();
        }
        self.producer.flush(Duration::from_secs(10)).unwrap();
    }
}

#[test]
fn records_come_exactly_as_they_were_sent() {
    let mock = Mock::new();
    mock.topic("a", 1);
    let headers = OwnedHeaders::new()
        .insert(rdkafka::message::Header { key: "h", value: Some("1") })
        .insert(rdkafka::message::Header { key: "", value: Some("") })
        .insert(rdkafka::message::Header { key: "h", value: None::<&str> });
    let base = || BaseRecord::<[u8], [u8]>::to("a").partition(0);
    mock.producer
        .send(base().timestamp(1_700_000_000_123).key(&b"k\x00\xff"[..]).payload(&b"v"[..]).headers(headers))
        .unwrap();
    mock.producer.send(base().timestamp(5).key(&b""[..]).payload(&b""[..])).unwrap();
    mock.producer.send(base().timestamp(7)).unwrap();
    mock.producer.flush(Duration::from_secs(10)).unwrap();

    let mut reader = Reader::new(&mock.config(&["a"]));
    reader.until("end of partition", |reader| reader.ends.get(&at("a", 0)) == Some(&3));
    let seen = &reader.seen[&at("a", 0)];
    let bytes = |text: &[u8]| Some(text.to_vec());
    let plain = |offset, timestamp, bytes: Option<Vec<u8>>| Seen {
        offset,
        timestamp,
        timestamp_type: TimestampType::Create,
        key: bytes.clone(),
        value: bytes,
        headers: vec![],
    };
    let first = Seen {
        offset: 0,
        timestamp: 1_700_000_000_123,
        timestamp_type: TimestampType::Create,
        key: bytes(b"k\x00\xff"),
        value: bytes(b"v"),
        headers: vec![(b"h".to_vec(), bytes(b"1")), (vec![], bytes(b"")), (b"h".to_vec(), None)],
    };
    assert_eq!(*seen, [first, plain(1, 5, bytes(b"")), plain(2, 7, None)]);
}

#[test]
fn a_record_behind_the_end_is_not_skipped_by_a_pause() {
    let mock = Mock::new();
    mock.topic("a", 1);
    mock.send("a", 0, 0..3);
    let mut reader = Reader::new(&mock.config(&["a"]));
    let a = at("a", 0);
    reader.until("end", |reader| reader.ends.get(&a) == Some(&3));
    reader.consumer.pause(std::slice::from_ref(&a)).unwrap();
    mock.send("a", 0, 3..6);
    reader.rest(Duration::from_millis(300));
    assert_eq!(reader.offsets(&a), [0, 1, 2], "nothing comes while it is paused");
    reader.consumer.resume(&[(a.clone(), 3)]).unwrap();
    reader.until("end after the pause", |reader| reader.ends.get(&a) == Some(&6));
    assert_eq!(reader.offsets(&a), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_record_behind_the_end_is_not_skipped_by_a_rebalance() {
    let mock = Mock::new();
    mock.topic("a", 4);
    (0..4).for_each(|partition| mock.send("a", partition, 0..3));
    let mut first = Reader::new(&mock.config(&["a"]));
    first.until("ends", |reader| reader.ends.len() == 4);
    let mut second = Reader::new(&mock.config(&["a"]));
    second.positions = (0..4).map(|partition| (at("a", partition), 3)).collect();
    // librdkafka pauses and resumes what the first member keeps.
    first.until("rebalance", |first| {
        second.poll();
        first.owned.len() == 2 && second.owned.len() == 2
    });
    assert!(first.owned.is_disjoint(&second.owned));
    (0..4).for_each(|partition| mock.send("a", partition, 3..5));
    let at_end = |reader: &Reader| reader.owned.iter().all(|at| reader.ends.get(at) == Some(&5));
    first.until("ends of both", |first| {
        second.poll();
        at_end(first) && at_end(&second)
    });
    for kept in &first.owned {
        assert_eq!(first.offsets(kept), [0, 1, 2, 3, 4], "{kept}");
    }
    for moved in &second.owned {
        assert_eq!(second.offsets(moved), [3, 4], "{moved}");
        assert_eq!(first.offsets(moved), [0, 1, 2], "{moved}");
    }
    let out_of_range = |event: &Event| matches!(event, Event::OutOfRange { .. });
    assert!(!first.events.iter().any(out_of_range), "a fetch behind the end is no loss: {:?}", first.events);
    // The second leaves: the first takes over at once, each partition where the other stood.
    first.positions.append(&mut second.positions);
    second.consumer.close(Duration::from_secs(10)).unwrap();
    (0..4).for_each(|partition| mock.send("a", partition, 5..6));
    first.until("all ends", |reader| reader.owned.len() == 4 && reader.ends.values().all(|end| *end == 6));
    for kept in &first.owned {
        let offsets = first.offsets(kept);
        assert_eq!(offsets.last(), Some(&5), "{kept}");
        assert!(offsets.is_sorted_by(|a, b| a < b), "{kept}: {offsets:?}");
    }
}

#[test]
fn a_member_that_stalls_is_told_that_its_partitions_are_lost() {
    let mock = Mock::new();
    mock.topic("a", 1);
    mock.send("a", 0, 0..3);
    let mut config = mock.config(&["a"]);
    config.properties.insert("max.poll.interval.ms".into(), "3500".into());
    let only = at("a", 0);
    let mut stalled = Reader::new(&config);
    stalled.until("end", |reader| reader.ends.get(&only) == Some(&3));
    let mut other = Reader::new(&mock.config(&["a"]));
    other.positions.insert(only.clone(), 3);
    other.until("the partition", |reader| reader.owned.contains(&only));
    let lost =
        |event: &Event| matches!(event, Event::Revoked { lost: true, partitions } if partitions[..] == [at("a", 0)]);
    stalled.until("loss", |reader| {
        other.poll();
        reader.events.iter().any(lost)
    });
    mock.send("a", 0, 3..5);
    other.until("end", |reader| {
        stalled.poll();
        reader.ends.get(&only) == Some(&5)
    });
    assert_eq!(other.offsets(&only), [3, 4]);
    assert_eq!(stalled.offsets(&only), [0, 1, 2]);
}

#[test]
fn a_commit_that_fails_is_told() {
    let mock = Mock::new();
    mock.topic("a", 1);
    let mut reader = Reader::new(&mock.config(&["a"]));
    reader.until("end", |reader| reader.ends.len() == 1);
    let denied = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED];
    mock.cluster.request_errors(RDKafkaApiKey::OffsetCommit, &denied);
    reader.consumer.commit(&[(at("a", 0), 0)]).unwrap();
    let failed = |event: &Event| matches!(event, Event::Fault { error, fatal: false } if error.kind() == Kind::Denied);
    reader.until("fault", |reader| reader.events.iter().any(failed));
}

#[test]
fn an_eager_group_works_too() {
    let mock = Mock::new();
    mock.topic("a", 2);
    (0..2).for_each(|partition| mock.send("a", partition, 0..10));
    let mut config = mock.config(&["a"]);
    config.properties.insert("partition.assignment.strategy".into(), "range".into());
    let mut first = Reader::new(&config);
    first.until("ends", |reader| reader.ends.len() == 2);
    let mut second = Reader::new(&config);
    second.positions = first.positions.clone();
    first.until("rebalance", |first| {
        second.poll();
        first.owned.len() == 1 && second.owned.len() == 1
    });
    (0..2).for_each(|partition| mock.send("a", partition, 10..12));
    first.until("ends", |first| {
        second.poll();
        [first, &second].iter().all(|reader| reader.owned.iter().all(|at| reader.ends.get(at) == Some(&12)))
    });
    let kept = first.owned.first().unwrap().clone();
    assert_eq!(first.offsets(&kept), (0..12).collect::<Vec<_>>());
    let moved = second.owned.first().unwrap().clone();
    assert_eq!(second.offsets(&moved), [10, 11]);
}

#[test]
fn an_offset_that_the_broker_does_not_have_is_told_and_the_caller_goes_on_elsewhere() {
    let mock = Mock::new();
    mock.topic("a", 2);
    (0..2).for_each(|partition| mock.send("a", partition, 0..10));
    let mut reader = Reader::new(&mock.config(&["a"]));
    let (far, near) = (at("a", 0), at("a", 1));
    reader.positions.insert(far.clone(), 1_000);
    let is_far = |event: &Event| matches!(event, Event::OutOfRange { at, offset: 1_000 } if *at == far);
    reader.until("out of range", |reader| reader.events.iter().any(is_far));
    reader.until("the other one's end", |reader| reader.ends.get(&near) == Some(&10));
    reader.consumer.seek(&[(far.clone(), 6)]).unwrap();
    reader.until("end", |reader| reader.ends.get(&far) == Some(&10));
    assert_eq!(reader.offsets(&far), [6, 7, 8, 9]);
    assert_eq!(reader.offsets(&near), (0..10).collect::<Vec<_>>());
    // A fetcher that runs is moved, too.
    reader.consumer.seek(&[(far.clone(), 0)]).unwrap();
    reader.until("second end", |reader| reader.offsets(&far).len() == 14);
    assert_eq!(reader.offsets(&far)[4..], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn nothing_old_comes_after_a_seek_or_an_unassign() {
    let mock = Mock::new();
    mock.topic("a", 1);
    mock.send("a", 0, 0..500);
    let a = at("a", 0);
    let mut reader = Reader::new(&mock.config(&["a"]));
    reader.until("first records", |reader| !reader.offsets(&a).is_empty());
    for round in 0..20 {
        let mark = reader.offsets(&a).len();
        let target = i64::from(round) * 7;
        reader.consumer.seek(&[(a.clone(), target)]).unwrap();
        reader.until("records", |reader| reader.offsets(&a).len() > mark);
        let after = &reader.offsets(&a)[mark..];
        assert_eq!(after, (target..target + after.len() as i64).collect::<Vec<_>>(), "round {round}");
    }
    reader.consumer.unassign(std::slice::from_ref(&a)).unwrap();
    let mark = reader.offsets(&a).len();
    reader.rest(Duration::from_millis(300));
    assert_eq!(reader.offsets(&a).len(), mark);
    // It is still this member's, so it can be read again; the pause of its earlier generation is forgotten.
    reader.consumer.assign(&[(a.clone(), 490)]).unwrap();
    reader.consumer.pause(std::slice::from_ref(&a)).unwrap();
    reader.consumer.unassign(std::slice::from_ref(&a)).unwrap();
    reader.consumer.assign(&[(a.clone(), 490)]).unwrap();
    reader.until("the end", |reader| reader.ends.get(&a) == Some(&500));
    assert_eq!(reader.offsets(&a)[mark..], (490..500).collect::<Vec<_>>());
}

#[test]
fn a_regex_takes_new_topics_and_leaves_the_excluded_ones() {
    let mock = Mock::new();
    ["cdc.a", "cdc.audit", "other", "cdc.x9"].iter().for_each(|topic| mock.topic(topic, 1));
    let mut config = mock.config(&["^cdc\\."]);
    // The second cannot be said in POSIX: the group assigns the topic, the consumer leaves it alone.
    config.exclude =
        vec![TopicPattern::Name("cdc.audit".into()), TopicPattern::Regex(regex::Regex::new(r"^cdc\.x\d").unwrap())];
    let mut reader = Reader::new(&config);
    reader.until("first topic", |reader| reader.owned.contains(&at("cdc.a", 0)));
    mock.topic("cdc.new", 2);
    reader.until("new topic", |reader| reader.owned.contains(&at("cdc.new", 1)));
    let names: BTreeSet<&str> = reader.owned.iter().map(|at| &*at.topic).collect();
    assert_eq!(names, BTreeSet::from(["cdc.a", "cdc.new"]));
}

#[test]
fn a_topic_that_is_not_there_is_told_and_awaited() {
    let mock = Mock::new();
    let mut config = mock.config(&["late"]);
    config.properties.insert("allow.auto.create.topics".into(), "false".into());
    mock.cluster.topic_error("late", RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).unwrap();
    let mut reader = Reader::new(&config);
    let missing = |event: &Event| matches!(event, Event::TopicError { topic, error } if &**topic == "late" && error.kind() == Kind::NotFound);
    reader.until("topic error", |reader| reader.events.iter().any(missing));
    mock.cluster.topic_error("late", RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
    reader.until("topic", |reader| reader.owned.contains(&at("late", 0)));
}

#[test]
fn a_commit_is_there_for_others_to_read() {
    let mock = Mock::new();
    mock.topic("a", 1);
    mock.send("a", 0, 0..5);
    let mut reader = Reader::new(&mock.config(&["a"]));
    reader.until("end", |reader| reader.ends.len() == 1);
    reader.consumer.commit(&[]).unwrap();
    reader.consumer.commit(&[(at("a", 0), 4)]).unwrap();
    reader.consumer.close(Duration::from_secs(10)).unwrap();
    let other: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", mock.cluster.bootstrap_servers())
        .set("group.id", "tidelog")
        .create()
        .unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition("a", 0);
    let committed = other.committed_offsets(list, Duration::from_secs(10)).unwrap();
    assert_eq!(committed.elements()[0].offset(), rdkafka::Offset::Offset(4));
}

#[test]
fn brokers_that_are_down_are_told_and_reading_goes_on_when_they_are_back() {
    let mock = Mock::new();
    mock.topic("a", 1);
    mock.send("a", 0, 0..5);
    let mut reader = Reader::new(&mock.config(&["a"]));
    reader.until("end", |reader| reader.ends.get(&at("a", 0)) == Some(&5));
    mock.cluster.broker_down(1).unwrap();
    reader.until("brokers down", |reader| reader.events.iter().any(|event| matches!(event, Event::AllBrokersDown)));
    mock.cluster.broker_up(1).unwrap();
    mock.send("a", 0, 5..8);
    reader.until("end after the outage", |reader| reader.ends.get(&at("a", 0)) == Some(&8));
    assert_eq!(reader.offsets(&at("a", 0)), (0..8).collect::<Vec<_>>());
}

#[test]
fn a_wrong_property_is_named_and_its_value_is_not_shown() {
    let wrong = |name: &str, value: &str| {
        let error = Consumer::new(&config("localhost:1", &["a"], &[(name, value)])).err().unwrap();
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.to_string().starts_with(&format!("kafka.properties.{name}: ")), "{error}");
        assert!(error.hint_text().is_some());
        assert!(!error.to_string().contains("hunter2"), "{error}");
    };
    wrong("no.such.property", "hunter2");
    wrong("session.timeout.ms", "hunter2");
    wrong("security.protocol", "hunter2");
    let conflict = config("localhost:1", &["a"], &[("group.protocol", "consumer"), ("session.timeout.ms", "6000")]);
    let error = Consumer::new(&conflict).err().unwrap();
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.to_string().contains("session.timeout.ms"), "{error}");
}

#[tokio::test]
async fn the_cluster_tells_topics_and_offsets() {
    let mock = Mock::new();
    mock.topic("a", 3);
    mock.send("a", 1, 0..5);
    let cluster = Cluster::new(&mock.config(&["a"])).unwrap();
    assert_eq!(cluster.ping().await.unwrap(), 1);
    assert_eq!(cluster.topics().await.unwrap(), ["a"]);
    let asked = at("a", 1);
    for (which, expected) in [(OffsetAt::Earliest, 0), (OffsetAt::Latest, 5)] {
        let listed = cluster.list_offsets(std::slice::from_ref(&asked), which, Isolation::ReadCommitted).await.unwrap();
        let [(at, offset)] = &listed[..] else { panic!("{listed:?}") };
        assert_eq!((at, offset.as_ref().unwrap()), (&asked, &Some(expected)));
    }
    assert!(cluster.describe(&[]).await.unwrap().is_empty());
    assert!(cluster.list_offsets(&[], OffsetAt::Latest, Isolation::ReadCommitted).await.unwrap().is_empty());
    let described = cluster.describe(&["a".into(), "a".into()]).await.unwrap();
    assert_eq!(described["a"].as_ref().unwrap().partitions, 3);
}

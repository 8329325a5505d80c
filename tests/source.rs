//! Kafka in, against real brokers: what librdkafka's mock cluster cannot do (transactions, topic ids, offsets by time,
//! the brokers' own assignor, topics that go and come back).

#[path = "../src/source/kafka/tests/reader.rs"]
pub(crate) mod reader;

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use tidelog::config::{Isolation, Kafka, Segment, Start, TopicPattern};
use tidelog::error::Kind;
use tidelog::record::TimestampType;
use tidelog::source::kafka::{Cluster, Consumer, EpochAt, Event, Message, OffsetAt, Resume, TopicPartition};
use tidelog::stream::Format;

use self::reader::{Reader, at};
use crate::rig::kafka::{Kafka as Broker, KafkaOptions, java, shared};
use crate::rig::topics::{Codec, End, Message as Sent, PATIENCE};
use crate::rig::unique;

/// A configuration of a group of its own, quick to see new topics.
fn config(broker: &Broker, topics: &[&str], more: &[(&str, &str)]) -> Kafka {
    let mut properties = vec![("topic.metadata.refresh.interval.ms", "500")];
    properties.extend(more);
    let mut config = reader::config(&broker.bootstrap(), topics, &properties);
    config.group_id = unique("group");
    config
}

/// `count` messages of a partition.
fn messages(partition: i32, count: usize) -> Vec<Sent> {
    (0..count).map(|number| Sent::new(partition, "key", &number.to_string())).collect()
}

fn ended(reader: &Reader, at: &TopicPartition, end: i64) -> bool {
    reader.ends.get(at) == Some(&end)
}

#[test]
fn an_end_lies_behind_control_records_and_aborted_data() {
    let broker = shared();
    let topic = unique("transactions");
    broker.create_topic(&topic, 2, &[]);
    broker.produce_transaction(&topic, &messages(0, 3), End::Commit); // 0, 1, 2 and a marker
    broker.produce_transaction(&topic, &messages(0, 2), End::Abort); // 4, 5 and a marker
    broker.produce_transaction(&topic, &messages(1, 5), End::Abort); // nothing but what was aborted

    let (mixed, aborted) = (at(&topic, 0), at(&topic, 1));
    let mut committed = Reader::new(&config(broker, &[&topic], &[]));
    committed.until("ends", |reader| ended(reader, &mixed, 7) && ended(reader, &aborted, 6));
    assert_eq!(committed.offsets(&mixed), [0, 1, 2]);
    assert!(committed.offsets(&aborted).is_empty());

    let mut all = config(broker, &[&topic], &[]);
    all.isolation = Isolation::ReadUncommitted;
    let mut all = Reader::new(&all);
    all.until("ends", |reader| ended(reader, &mixed, 7) && ended(reader, &aborted, 6));
    assert_eq!(all.offsets(&mixed), [0, 1, 2, 4, 5]);
    assert_eq!(all.offsets(&aborted), [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn an_open_transaction_holds_the_end_where_it_begins() {
    let broker = shared();
    let topic = unique("open");
    broker.create_topic(&topic, 1, &[]);
    broker.produce(&topic, Codec::None, &messages(0, 2));
    let producer: BaseProducer = broker.config().set("transactional.id", &topic).create().unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    for _ in 0..3 {
        producer.send(BaseRecord::<(), str>::to(&topic).partition(0).payload("open")).unwrap();
    }
    producer.flush(PATIENCE).unwrap();

    let only = at(&topic, 0);
    let settings = config(broker, &[&topic], &[]);
    let cluster = Cluster::new(&settings).unwrap();
    let latest = |isolation| {
        let (cluster, only) = (cluster.clone(), only.clone());
        async move {
            let mut listed = cluster.list_offsets(&[only], OffsetAt::Latest, isolation).await.unwrap();
            listed.remove(0).1.unwrap()
        }
    };
    assert_eq!(latest(Isolation::ReadCommitted).await, Some(2));
    assert_eq!(latest(Isolation::ReadUncommitted).await, Some(5));
    let mut reader = Reader::new(&settings);
    reader.until("the last stable offset", |reader| ended(reader, &only, 2));
    reader.rest(Duration::from_millis(300));
    assert_eq!(reader.offsets(&only), [0, 1]);
    producer.commit_transaction(PATIENCE).unwrap();
    reader.until("the end", |reader| ended(reader, &only, 6));
    assert_eq!(reader.offsets(&only), [0, 1, 2, 3, 4]);
}

#[test]
fn every_codec_and_both_kinds_of_timestamp_come_through() {
    let broker = shared();
    let (created, appended) = (unique("created"), unique("appended"));
    broker.create_topic(&created, 1, &[]);
    broker.create_topic(&appended, 1, &[("message.timestamp.type", "LogAppendTime")]);
    let sent = Sent {
        timestamp: Some(1_600_000_000_000),
        headers: vec![("a".into(), Some(vec![])), ("a".into(), None), ("".into(), Some(vec![0xc3, 0x28]))],
        ..Sent::new(0, "\u{0}key", "")
    };
    for codec in Codec::ALL {
        broker.produce(&created, codec, std::slice::from_ref(&sent));
        broker.produce(&appended, codec, std::slice::from_ref(&sent));
    }
    let count = i64::try_from(Codec::ALL.len()).unwrap();
    let mut reader = Reader::new(&config(broker, &[&created, &appended], &[]));
    reader.until("ends", |reader| ended(reader, &at(&created, 0), count) && ended(reader, &at(&appended, 0), count));
    for one in &reader.seen[&at(&created, 0)] {
        assert_eq!((one.timestamp_type, one.timestamp), (TimestampType::Create, 1_600_000_000_000));
        assert_eq!((one.key.as_deref(), one.value.as_deref()), (Some(&b"\0key"[..]), Some(&b""[..])));
        let headers = vec![(b"a".to_vec(), Some(vec![])), (b"a".to_vec(), None), (vec![], Some(vec![0xc3, 0x28]))];
        assert_eq!(one.headers, headers);
    }
    for one in &reader.seen[&at(&appended, 0)] {
        assert_eq!(one.timestamp_type, TimestampType::LogAppend);
        assert!(one.timestamp > 1_700_000_000_000);
    }
    assert_eq!(reader.epochs, BTreeSet::from([0]));
}

#[tokio::test]
async fn a_topic_id_is_what_kafkas_tools_print_and_changes_with_a_new_generation() {
    let broker = shared();
    let (topic, absent) = (unique("described"), unique("absent"));
    broker.create_topic(&topic, 7, &[]);
    let cluster = Cluster::new(&config(broker, &[&topic], &[])).unwrap();
    assert_eq!(cluster.ping().await.unwrap(), 1);
    assert!(cluster.topics().await.unwrap().contains(&topic));
    let described = cluster.describe(&[topic.clone(), absent.clone()]).await.unwrap();
    assert_eq!(described.keys().collect::<Vec<_>>(), [&topic], "what does not exist is absent");
    let described = described[&topic].as_ref().unwrap();
    assert_eq!(described.partitions, 7);
    let id = described.id.clone().unwrap();
    let tool = java()
        .args(["org.apache.kafka.tools.TopicCommand", "--describe", "--topic", &topic])
        .args(["--bootstrap-server", &broker.bootstrap()])
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&tool.stdout);
    assert!(printed.contains(&format!("TopicId: {id}\t")), "{id}: {printed}{}", String::from_utf8_lossy(&tool.stderr));
    broker.delete_topic(&topic);
    assert!(cluster.describe(std::slice::from_ref(&topic)).await.unwrap().is_empty());
    broker.create_topic(&topic, 2, &[]);
    let again = cluster.describe(std::slice::from_ref(&topic)).await.unwrap();
    let again = again[&topic].as_ref().unwrap();
    assert_eq!(again.partitions, 2);
    assert_ne!(again.id, Some(id));
}

#[tokio::test]
async fn offsets_are_found_by_time_and_a_partition_that_is_not_there_spoils_nothing() {
    let broker = shared();
    let topic = unique("listed");
    broker.create_topic(&topic, 2, &[]);
    let timed = |time| Sent { timestamp: Some(time), ..Sent::new(0, "k", "v") };
    broker.produce(&topic, Codec::None, &[1_000, 3_000, 2_000, 4_000].map(timed));
    broker.delete_records(&topic, 0, 1);
    let cluster = Cluster::new(&config(broker, &[&topic], &[])).unwrap();
    let (full, empty, missing) = (at(&topic, 0), at(&topic, 1), at(&topic, 9));
    let find = async |partition: &TopicPartition, which| {
        let asked = [partition.clone()];
        let mut listed = cluster.list_offsets(&asked, which, Isolation::ReadCommitted).await.unwrap();
        let (found, offset) = listed.remove(0);
        assert_eq!((found, listed.len()), (partition.clone(), 0));
        offset.unwrap()
    };
    assert_eq!(find(&full, OffsetAt::Earliest).await, Some(1));
    assert_eq!(find(&full, OffsetAt::Latest).await, Some(4));
    assert_eq!(find(&full, OffsetAt::Timestamp(2_500)).await, Some(1));
    assert_eq!(find(&full, OffsetAt::Timestamp(3_001)).await, Some(3));
    assert_eq!(find(&full, OffsetAt::Timestamp(4_001)).await, None, "no record is so young");
    assert_eq!(find(&empty, OffsetAt::Timestamp(0)).await, None);
    assert_eq!(find(&empty, OffsetAt::Latest).await, Some(0));
    let asked = [full.clone(), missing.clone()];
    let listed = cluster.list_offsets(&asked, OffsetAt::Latest, Isolation::ReadCommitted).await.unwrap();
    for (partition, offset) in listed {
        match offset {
            Ok(offset) => assert_eq!((partition, offset), (full.clone(), Some(4))),
            Err(error) => assert_eq!((partition, error.kind()), (missing.clone(), Kind::NotFound), "{error}"),
        }
    }
}

/// Two members share partitions, records are appended at the ends, and one member leaves: each record comes once, to
/// whoever has its partition.
fn two_members(broker: &Broker, more: &[(&str, &str)]) {
    let prefix = unique("shared");
    let topic = format!("{prefix}.a");
    broker.create_topic(&topic, 4, &[]);
    let append = |count| (0..4).for_each(|partition| broker.produce(&topic, Codec::None, &messages(partition, count)));
    append(3);
    let settings = config(broker, &[&format!("^{prefix}\\.")], more);
    let mut first = Reader::new(&settings);
    first.until("ends", |reader| reader.ends.len() == 4 && reader.ends.values().all(|end| *end == 3));
    let mut second = Reader::new(&settings);
    second.positions = first.positions.clone();
    first.until("two members", |first| {
        second.poll();
        first.owned.len() == 2 && second.owned.len() == 2
    });
    assert!(first.owned.is_disjoint(&second.owned));
    append(2);
    let at_end = |reader: &Reader| reader.owned.iter().all(|at| ended(reader, at, 5));
    first.until("ends of both", |first| {
        second.poll();
        at_end(first) && at_end(&second)
    });
    for kept in &first.owned {
        assert_eq!(first.offsets(kept), [0, 1, 2, 3, 4], "{kept}");
    }
    for moved in &second.owned {
        assert_eq!(first.offsets(moved), [0, 1, 2], "{moved}");
        assert_eq!(second.offsets(moved), [3, 4], "{moved}");
    }
    let no_loss = |event: &Event| !matches!(event, Event::OutOfRange { .. } | Event::Truncated { .. });
    assert!(first.events.iter().chain(&second.events).all(no_loss), "{:?} {:?}", first.events, second.events);
    first.positions.append(&mut second.positions);
    second.consumer.close(PATIENCE).expect("the second leaves");
    first.until("all partitions", |reader| reader.owned.len() == 4);
    append(1);
    // A new topic and new partitions, while it runs.
    let late = format!("{prefix}.late");
    broker.create_topic(&late, 1, &[]);
    broker.produce(&late, Codec::None, &messages(0, 2));
    broker.grow_topic(&topic, 5);
    broker.produce(&topic, Codec::None, &messages(4, 2));
    first.until("what is new", |reader| {
        (0..4).all(|partition| ended(reader, &at(&topic, partition), 6))
            && ended(reader, &at(&late, 0), 2)
            && ended(reader, &at(&topic, 4), 2)
    });
    for (kept, seen) in &first.seen {
        assert!(seen.is_sorted_by(|a, b| a.offset < b.offset), "{kept}: {:?}", first.offsets(kept));
    }
    first.consumer.close(PATIENCE).expect("the first leaves");
}

#[test]
fn members_share_topics_of_a_regex() {
    two_members(shared(), &[]);
}

#[test]
fn members_share_topics_of_a_regex_where_the_brokers_assign() {
    two_members(shared(), &[("group.protocol", "consumer")]);
}

#[test]
fn excluded_topics_are_never_read() {
    let broker = shared();
    for protocol in ["classic", "consumer"] {
        let prefix = unique("excluding");
        for name in ["a", "audit", "x9"] {
            broker.create_topic(&format!("{prefix}.{name}"), 1, &[]);
        }
        let mut settings = config(broker, &[&format!("^{prefix}")], &[("group.protocol", protocol)]);
        let digits = regex::Regex::new(&format!("^{prefix}\\.x\\d")).unwrap();
        settings.exclude = vec![TopicPattern::Name(format!("{prefix}.audit")), TopicPattern::Regex(digits)];
        let mut reader = Reader::new(&settings);
        reader.until("the topic", |reader| ended(reader, &at(&format!("{prefix}.a"), 0), 0));
        broker.create_topic(&format!("{prefix}.b"), 1, &[]);
        reader.until("the new topic", |reader| reader.owned.len() == 2);
        assert_eq!(reader.owned, BTreeSet::from(["a", "b"].map(|name| at(&format!("{prefix}.{name}"), 0))));
        reader.consumer.close(PATIENCE).unwrap();
    }
}

#[test]
fn what_retention_removed_is_out_of_range() {
    let broker = shared();
    let topic = unique("retention");
    broker.create_topic(&topic, 1, &[]);
    broker.produce(&topic, Codec::None, &messages(0, 10));
    broker.delete_records(&topic, 0, 6);
    let only = at(&topic, 0);
    let mut reader = Reader::new(&config(broker, &[&topic], &[]));
    reader.positions.insert(only.clone(), 2);
    let lost = |event: &Event| matches!(event, Event::OutOfRange { at, offset: 2 } if *at == only);
    reader.until("out of range", |reader| reader.events.iter().any(lost));
    reader.consumer.seek(&[(only.clone(), 6)]).unwrap();
    reader.until("the end", |reader| ended(reader, &only, 10));
    assert_eq!(reader.offsets(&only), [6, 7, 8, 9]);
    // While it is paused, too.
    reader.consumer.pause(std::slice::from_ref(&only)).unwrap();
    broker.produce(&topic, Codec::None, &messages(0, 10));
    broker.delete_records(&topic, 0, 15);
    reader.consumer.resume(&[(only.clone(), 10)]).unwrap();
    let lost = |event: &Event| matches!(event, Event::OutOfRange { at, offset: 10 } if *at == only);
    reader.until("out of range after the pause", |reader| reader.events.iter().any(lost));
}

/// What the broker says of an epoch was asked about where a partition was read before, and comes when it is read elsewhere.
#[test]
fn an_answer_about_where_a_partition_was_read_before_is_no_cut() {
    let broker = Broker::start(KafkaOptions::default());
    let topic = unique("asked-before");
    broker.create_topic(&topic, 1, &[]);
    broker.produce(&topic, Codec::None, &messages(0, 10));
    broker.stop(1);
    broker.restart(1);
    broker.produce(&topic, Codec::None, &messages(0, 10));
    let only = at(&topic, 0);
    let mut reader = Reader::new(&config(&broker, &[&topic], &[]));
    reader.until("the end", |reader| ended(reader, &only, 20));
    let [before, after]: [i32; 2] = Vec::from_iter(reader.epochs.clone()).try_into().expect("two epochs");
    let from = |next, leader_epoch| {
        let last = Some(EpochAt { offset: next - 1, leader_epoch });
        [(only.clone(), Resume { next, last })]
    };
    broker.freeze(1);
    for (next, epoch) in [(5, before), (20, after)] {
        reader.consumer.seek(&from(next, epoch)).unwrap();
        (0..30).for_each(|_| reader.poll());
    }
    broker.thaw(1);
    broker.produce(&topic, Codec::None, &messages(0, 5));
    reader.until("what came since", |reader| ended(reader, &only, 25));
    let cut = |event: &&Event| matches!(event, Event::Truncated { .. });
    assert_eq!(reader.events.iter().filter(cut).count(), 0);
    assert_eq!(reader.offsets(&only), (0..25).collect::<Vec<i64>>());
}

#[tokio::test]
async fn a_new_generation_of_a_topic_is_known_by_its_id() {
    let broker = shared();
    for protocol in ["classic", "consumer"] {
        let topic = unique("reborn");
        broker.create_topic(&topic, 1, &[]);
        broker.produce(&topic, Codec::None, &messages(0, 5));
        let only = at(&topic, 0);
        let settings = config(broker, &[&topic], &[("group.protocol", protocol)]);
        let cluster = Cluster::new(&settings).unwrap();
        let id = async || {
            let described = cluster.describe(std::slice::from_ref(&topic)).await.unwrap().remove(&topic);
            described.and_then(|topic| topic.unwrap().id)
        };
        let first_id = id().await;
        let mut reader = Reader::new(&settings);
        reader.until("the end", |reader| ended(reader, &only, 5));
        // A topic that is away for long enough is revoked, and assigned again when it is back.
        broker.delete_topic(&topic);
        reader.until("revocation", |reader| reader.owned.is_empty());
        assert_eq!(id().await, None);
        reader.positions.clear();
        broker.create_topic(&topic, 1, &[]);
        broker.produce(&topic, Codec::None, &messages(0, 3));
        reader.until("the new end", |reader| ended(reader, &only, 3));
        assert_eq!(reader.offsets(&only), [0, 1, 2, 3, 4, 0, 1, 2]);
        let second_id = id().await;
        // One that comes back at once and grows fast is read on without a word (a FIXME in rdkafka_topic.c): only its id
        // tells, asked for after the records came.
        reader.consumer.pause(std::slice::from_ref(&only)).unwrap();
        broker.delete_topic(&topic);
        broker.create_topic(&topic, 1, &[]);
        broker.produce(&topic, Codec::None, &messages(0, 10));
        if !reader.owned.is_empty() {
            reader.consumer.resume(&[(only.clone(), 3)]).unwrap();
        }
        reader.until("records of the third generation", |reader| ended(reader, &only, 10));
        let ids = BTreeSet::from([first_id, second_id, id().await]);
        assert_eq!(ids.len(), 3, "{ids:?}");
        assert!(!ids.contains(&None));
    }
}

#[test]
fn a_thousand_partitions_are_read_to_their_ends() {
    let broker = shared();
    let topic = unique("wide");
    broker.create_topic(&topic, 1_000, &[]);
    let all: Vec<Sent> = (0..1_000).flat_map(|partition| messages(partition, 2)).collect();
    broker.produce(&topic, Codec::Lz4, &all);
    let mut reader = Reader::new(&config(broker, &[&topic], &[]));
    reader.until("all ends", |reader| reader.ends.len() == 1_000 && reader.ends.values().all(|end| *end == 2));
    assert!((0..1_000).all(|partition| reader.offsets(&at(&topic, partition)) == [0, 1]));
    broker.produce(&topic, Codec::Lz4, &all);
    reader.until("all new ends", |reader| reader.ends.values().all(|end| *end == 4));
    assert!((0..1_000).all(|partition| reader.offsets(&at(&topic, partition)) == [0, 1, 2, 3]));
    let all: Vec<_> = (0..1_000).map(|partition| at(&topic, partition)).collect();
    reader.consumer.pause(&all).unwrap();
    let positions: Vec<_> = all.iter().map(|at| (at.clone(), 3)).collect();
    reader.consumer.resume(&positions).unwrap();
    reader.until("the last records again", |reader| all.iter().all(|at| reader.offsets(at) == [0, 1, 2, 3, 3]));
}

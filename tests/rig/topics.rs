//! Topics and records of a cluster as a test sees them: made, filled, read back exactly.
//!
//! Everything blocks and panics with what the broker said: a test has nothing to decide about a rig that fails. Times
//! out when nothing moves for [`PATIENCE`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::executor::block_on;
use rdkafka::admin::{AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{Offset, Timestamp, TopicPartitionList};

use super::kafka::Kafka;
use super::{unique, wait_for, wait_until};

/// How long a healthy broker may take for anything on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A record to be produced. Header names are text: librdkafka's safe interface knows no other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// `None`: by the key, as the default partitioner has it
    pub(crate) partition: Option<i32>,
    /// milliseconds; `None`: now. librdkafka takes 0 for now, too.
    pub(crate) timestamp: Option<i64>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Message {
    /// A message of a partition with text as key and value, and nothing else.
    pub(crate) fn new(partition: i32, key: &str, value: &str) -> Message {
        Message { partition: Some(partition), key: Some(key.into()), value: Some(value.into()), ..Message::default() }
    }
}

/// A record as it was consumed; equality is what the project means by "byte for byte".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp: Timestamp,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    pub(crate) fn of(message: &BorrowedMessage<'_>) -> Record {
        let headers = message.headers().map(|headers| {
            headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
        });
        Record {
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.unwrap_or_default(),
        }
    }
}

impl From<Record> for Message {
    /// What has to be produced to get the record again.
    fn from(record: Record) -> Message {
        let Record { partition, timestamp, key, value, headers, .. } = record;
        Message { partition: Some(partition), timestamp: timestamp.to_millis(), key, value, headers }
    }
}

/// What a producer compresses with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl Codec {
    pub(crate) const ALL: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

    /// The value of `compression.type`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Gzip => "gzip",
            Codec::Snappy => "snappy",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }
}

/// How a transaction of [`Kafka::produce_transaction`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Commit,
    Abort,
}

/// Which records a consumer sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    Committed,
    Uncommitted,
}

// ---- topics

impl Kafka {
    /// Creates a topic, replicated as widely as the cluster allows up to 3, and waits until every partition has a leader.
    pub(crate) fn create_topic(&self, name: &str, partitions: i32, configs: &[(&str, &str)]) {
        let replicas = i32::try_from(self.brokers().min(3)).expect("three at most");
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replicas));
        for (key, value) in configs {
            topic = topic.set(key, value);
        }
        let answer = block_on(self.admin().create_topics([&topic], &admin_options()));
        one_answer(answer.map(|mut results| results.remove(0)), &format!("create topic {name}"));
        self.wait_for_partitions(name, partitions);
    }

    /// Creates many topics of one replica with one request, and waits until each partition has a leader.
    pub(crate) fn create_topics(&self, names: &[String], partitions: i32) {
        let topics: Vec<NewTopic<'_>> =
            names.iter().map(|name| NewTopic::new(name, partitions, TopicReplication::Fixed(1))).collect();
        let answers = block_on(self.admin().create_topics(&topics, &admin_options())).expect("the cluster answers");
        for answer in answers {
            one_answer(Ok(answer), "create topics");
        }
        for name in names {
            self.wait_for_partitions(name, partitions);
        }
    }

    /// Creates a topic with a partition for each of `brokers`, which alone has it, and waits until each has a leader.
    pub(crate) fn create_topic_on(&self, name: &str, brokers: &[i32]) {
        let assignment: Vec<&[i32]> = brokers.iter().map(std::slice::from_ref).collect();
        let partitions = i32::try_from(brokers.len()).expect("a count of partitions");
        let topic =
            NewTopic::new(name, partitions, TopicReplication::Variable(&assignment)).set("min.insync.replicas", "1");
        let answer = block_on(self.admin().create_topics([&topic], &admin_options()));
        one_answer(answer.map(|mut results| results.remove(0)), &format!("create topic {name}"));
        self.wait_for_partitions(name, partitions);
    }

    /// Creates a topic whose partitions lie on these brokers each, and waits until each has a leader.
    pub(crate) fn create_topic_assigned(&self, name: &str, assignment: &[&[i32]], configs: &[(&str, &str)]) {
        let partitions = i32::try_from(assignment.len()).expect("a count of partitions");
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Variable(assignment));
        for (key, value) in configs {
            topic = topic.set(key, value);
        }
        let answer = block_on(self.admin().create_topics([&topic], &admin_options()));
        one_answer(answer.map(|mut results| results.remove(0)), &format!("create topic {name}"));
        self.wait_for_partitions(name, partitions);
    }

    /// Raises the number of partitions of a topic to `partitions`.
    pub(crate) fn grow_topic(&self, name: &str, partitions: i32) {
        let wanted = NewPartitions::new(name, usize::try_from(partitions).expect("a count of partitions"));
        let answer = block_on(self.admin().create_partitions([&wanted], &admin_options()));
        one_answer(answer.map(|mut results| results.remove(0)), &format!("grow topic {name}"));
        self.wait_for_partitions(name, partitions);
    }

    /// Deletes a topic and waits until the cluster has forgotten it.
    pub(crate) fn delete_topic(&self, name: &str) {
        let answer = block_on(self.admin().delete_topics(&[name], &admin_options()));
        one_answer(answer.map(|mut results| results.remove(0)), &format!("delete topic {name}"));
        wait_until(&format!("topic {name} to be gone"), PATIENCE, || self.partitions(name).is_none());
    }

    /// Deletes a consumer group that has no member, with all that it has committed.
    pub(crate) fn delete_group(&self, group: &str) {
        let answer = block_on(self.admin().delete_groups(&[group], &admin_options()));
        one_answer(answer.map(|mut results| results.remove(0)), &format!("delete group {group}"));
    }

    /// Removes the records of a partition below offset `before`, as retention would.
    pub(crate) fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(before)).expect("an offset");
        let answer = block_on(self.admin().delete_records(&list, &admin_options()));
        let results = answer.unwrap_or_else(|error| panic!("delete records of {topic}: {error}"));
        for result in results.elements() {
            result.error().unwrap_or_else(|error| panic!("delete records of {topic}: {error}"));
        }
    }

    /// How many partitions a topic has, when all of them have a leader; `None` when there is no such topic.
    pub(crate) fn partitions(&self, topic: &str) -> Option<i32> {
        let metadata = self.admin().inner().fetch_metadata(Some(topic), PATIENCE).expect("the cluster answers");
        let topic = metadata.topics().first().filter(|topic| topic.error().is_none())?;
        let led = topic.partitions().iter().filter(|partition| partition.leader() >= 0).count();
        (led == topic.partitions().len()).then(|| i32::try_from(led).expect("a count of partitions"))
    }

    /// Whether every replica of a topic has what its leader has.
    pub(crate) fn in_sync(&self, topic: &str) -> bool {
        let metadata = self.admin().inner().fetch_metadata(Some(topic), PATIENCE).expect("the cluster answers");
        let whole = |partition: &rdkafka::metadata::MetadataPartition| {
            partition.leader() >= 0 && partition.isr().len() == partition.replicas().len()
        };
        metadata.topics().first().is_some_and(|topic| topic.partitions().iter().all(whole))
    }

    fn wait_for_partitions(&self, topic: &str, count: i32) {
        let what = format!("{count} partitions of topic {topic}");
        wait_until(&what, PATIENCE, || self.partitions(topic) == Some(count));
    }

    /// The first offset and the end of each partition, in order of partitions. Right behind an election a broker may be asked that
    /// leads no more.
    pub(crate) fn watermarks(&self, topic: &str) -> Vec<(i64, i64)> {
        let partitions = self.partitions(topic).unwrap_or_else(|| panic!("there is no topic {topic}"));
        let fetch = |partition| self.admin().inner().fetch_watermarks(topic, partition, PATIENCE).ok();
        let answer = |partition| {
            wait_for(&format!("the leader of partition {partition} of {topic}"), PATIENCE, || fetch(partition))
        };
        (0..partitions).map(answer).collect()
    }

    /// How many members a group has, if its coordinator says.
    pub(crate) fn members(&self, group: &str) -> Option<usize> {
        let list = self.admin().inner().fetch_group_list(Some(group), PATIENCE).ok()?;
        list.groups().first().map(|group| group.members().len())
    }

    /// What a group has committed for a topic, by partition.
    pub(crate) fn committed(&self, group: &str, topic: &str) -> BTreeMap<i32, i64> {
        let consumer: BaseConsumer = self.config().set("group.id", group).create().expect("a consumer can be made");
        let mut wanted = TopicPartitionList::new();
        let partitions = self.partitions(topic).unwrap_or_else(|| panic!("there is no topic {topic}"));
        wanted.add_partition_range(topic, 0, partitions - 1);
        // A group that nobody has used yet has no coordinator at first.
        let answer = || consumer.committed_offsets(wanted.clone(), PATIENCE).ok();
        let list = wait_for(&format!("the coordinator of {group}"), PATIENCE, answer);
        let known = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match element.offset() {
            Offset::Offset(offset) => Some((element.partition(), offset)),
            _ => None,
        };
        list.elements().iter().filter_map(known).collect()
    }
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE))
}

fn one_answer(answer: Result<Result<String, (String, RDKafkaErrorCode)>, KafkaError>, what: &str) {
    match answer {
        Ok(Ok(_)) => {}
        // The client asks again when a connection breaks; no two tests use one name.
        Ok(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) if what.starts_with("create topic") => {}
        Ok(Err((_, code))) => panic!("{what}: {code}"),
        Err(error) => panic!("{what}: {error}"),
    }
}

// ---- in

/// A producer that a test keeps, also in a thread of its own. Idempotent: a broker that goes away and comes back makes no
/// record twice and no order wrong.
pub(crate) struct Producer {
    inner: ThreadedProducer<Deliveries>,
}

/// Remembers the first record that the broker did not take.
#[derive(Clone, Default)]
struct Deliveries {
    failure: Arc<Mutex<Option<String>>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, message)) = result {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert_with(|| format!("partition {}: {error}", message.partition()));
        }
    }
}

impl Producer {
    fn new(config: &mut ClientConfig) -> Producer {
        config.set("enable.idempotence", "true").set("queue.buffering.max.kbytes", "65536");
        let inner = config.create_with_context(Deliveries::default());
        Producer { inner: inner.expect("a producer can be made with these properties") }
    }

    /// Queues a record; waits while the queue is full.
    pub(crate) fn send(&self, topic: &str, message: &Message) {
        let mut record = BaseRecord::<[u8], [u8]>::to(topic);
        record.partition = message.partition;
        record.timestamp = message.timestamp;
        record.key = message.key.as_deref();
        record.payload = message.value.as_deref();
        if !message.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(message.headers.len());
            record.headers =
                Some(message.headers.iter().fold(headers, |headers, (name, value)| {
                    headers.insert(Header { key: name, value: value.as_deref() })
                }));
        }
        let start = Instant::now();
        while let Err((error, again)) = self.inner.send(record) {
            let full = error == KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
            assert!(full && start.elapsed() < PATIENCE, "produce to {topic}: {error}");
            std::thread::sleep(Duration::from_millis(2));
            record = again;
        }
    }

    /// Waits until the broker has taken all; panics with the first record that it did not take.
    pub(crate) fn flush(&self) {
        self.inner.flush(PATIENCE).unwrap_or_else(|error| panic!("flush: {error}"));
        let failure = self.inner.context().failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        assert!(failure.is_none(), "a record was not delivered: {}", failure.unwrap_or_default());
    }
}

impl Kafka {
    /// A producer with these librdkafka properties.
    pub(crate) fn producer(&self, properties: &[(&str, &str)]) -> Producer {
        let mut config = self.config();
        for (name, value) in properties {
            config.set(*name, *value);
        }
        Producer::new(&mut config)
    }

    /// Produces all and waits until the broker has them.
    pub(crate) fn produce(&self, topic: &str, codec: Codec, messages: &[Message]) {
        let producer = self.producer(&[("compression.type", codec.name())]);
        for message in messages {
            producer.send(topic, message);
        }
        producer.flush();
    }

    /// Produces all in a transaction that stays open until `work` is done, and then commits it.
    pub(crate) fn while_open<T>(&self, topic: &str, messages: &[Message], work: impl FnOnce() -> T) -> T {
        let id = unique("transaction");
        let producer = self.producer(&[("transactional.id", &id), ("transaction.timeout.ms", "300000")]);
        producer.inner.init_transactions(PATIENCE).expect("transactions can be had");
        producer.inner.begin_transaction().expect("a transaction can begin");
        for message in messages {
            producer.send(topic, message);
        }
        producer.flush();
        let done = work();
        producer.inner.commit_transaction(PATIENCE).expect("the transaction commits");
        done
    }

    /// Produces all in one transaction. An aborted one is on the broker's disk too, followed by its marker.
    pub(crate) fn produce_transaction(&self, topic: &str, messages: &[Message], end: End) {
        let id = unique("transaction");
        let producer = self.producer(&[("transactional.id", &id)]);
        producer.inner.init_transactions(PATIENCE).expect("transactions can be had");
        producer.inner.begin_transaction().expect("a transaction can begin");
        for message in messages {
            producer.send(topic, message);
        }
        // abort_transaction purges what is not yet sent: an abort that never reached the broker would test nothing.
        producer.flush();
        match end {
            End::Commit => producer.inner.commit_transaction(PATIENCE).expect("the transaction commits"),
            End::Abort => producer.inner.abort_transaction(PATIENCE).expect("the transaction aborts"),
        }
    }
}

// ---- out

impl Kafka {
    /// Every committed record of a topic up to its end now, in order of partition and offset.
    pub(crate) fn consume_all(&self, topic: &str) -> Vec<Record> {
        self.consume(topic, Isolation::Committed)
    }

    /// Every record that `isolation` shows up to the topic's end now, in order of partition and offset.
    pub(crate) fn consume(&self, topic: &str, isolation: Isolation) -> Vec<Record> {
        let mut records = Vec::new();
        self.visit(topic, isolation, |message| records.push(Record::of(message)));
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    /// The committed records of one partition, one by one, up to its end now.
    pub(crate) fn read_partition(&self, topic: &str, partition: i32) -> impl Iterator<Item = Record> {
        let mut scan = Scan::start(self, topic, [partition].into(), Isolation::Committed);
        std::iter::from_fn(move || scan.step(Record::of))
    }

    /// Calls `visit` with every record up to the topic's end now: in order within a partition, partitions mixed.
    pub(crate) fn visit(&self, topic: &str, isolation: Isolation, mut visit: impl FnMut(&BorrowedMessage<'_>)) {
        let partitions = self.partitions(topic).unwrap_or_else(|| panic!("there is no topic {topic}"));
        let mut scan = Scan::start(self, topic, (0..partitions).collect(), isolation);
        while scan.step(&mut visit).is_some() {}
    }

    /// Waits until a topic shows at least `count` committed records, and gives all that it shows.
    pub(crate) fn wait_for_records(&self, topic: &str, count: usize, timeout: Duration) -> Vec<Record> {
        let what = format!("{count} records in {topic}");
        wait_for(&what, timeout, || Some(self.consume_all(topic)).filter(|records| records.len() >= count))
    }
}

/// Reading some partitions of a topic from their first record to their end.
struct Scan {
    consumer: BaseConsumer,
    topic: String,
    /// whose end is not yet reached
    open: BTreeSet<i32>,
}

impl Scan {
    fn start(kafka: &Kafka, topic: &str, partitions: BTreeSet<i32>, isolation: Isolation) -> Scan {
        let isolation = match isolation {
            Isolation::Committed => "read_committed",
            Isolation::Uncommitted => "read_uncommitted",
        };
        let mut config = kafka.config();
        config
            .set("group.id", "rig")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("check.crcs", "true")
            .set("queued.max.messages.kbytes", "16384")
            .set("isolation.level", isolation);
        let consumer: BaseConsumer = config.create().expect("a consumer can be made");
        let mut assignment = TopicPartitionList::new();
        for &partition in &partitions {
            assignment.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset");
        }
        consumer.assign(&assignment).expect("partitions can be assigned");
        Scan { consumer, topic: topic.to_owned(), open: partitions }
    }

    /// What `visit` makes of the next record; `None` when all partitions have ended.
    fn step<T>(&mut self, mut visit: impl FnMut(&BorrowedMessage<'_>) -> T) -> Option<T> {
        let mut moved = Instant::now();
        while !self.open.is_empty() {
            match self.consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) if self.open.contains(&message.partition()) => return Some(visit(&message)),
                // It was written after the end had been seen.
                Some(Ok(_)) => {}
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.open.remove(&partition);
                    moved = Instant::now();
                }
                // librdkafka goes on by itself, or the deadline below ends it.
                Some(Err(error)) => eprintln!("rig: reading {}: {error}", self.topic),
                None => {}
            }
            assert!(
                moved.elapsed() < PATIENCE,
                "{}: the end of partitions {:?} was not reached",
                self.topic,
                self.open
            );
        }
        None
    }
}

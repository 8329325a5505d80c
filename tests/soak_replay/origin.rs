//! What is archived: topics with everything that makes records odd, and the list of what was produced into them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};

use crate::rig::kafka::{Kafka, shared};
use crate::rig::program::Program;
use crate::rig::records::Random;
use crate::rig::topics::{Codec, End, Message, PATIENCE};
use crate::rig::{unique, wait_until};
use crate::site::{STOP, Settings, Site};

const MINUTE: u64 = 60_000;
const DAY: u64 = 24 * 60 * MINUTE;

/// A record, and where the broker put it.
#[derive(Clone, Debug)]
pub(super) struct Produced {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) message: Message,
}

/// A generation of a topic: what was committed to it and archived before it was lost, by partition and offset.
#[derive(Clone, Debug)]
pub(super) struct Generation {
    pub(super) partitions: i32,
    pub(super) records: Vec<Produced>,
}

/// An archive, and what was produced.
pub(super) struct Origin {
    pub(super) site: Site,
    /// The generations of each topic, the oldest first.
    pub(super) topics: BTreeMap<String, Vec<Generation>>,
}

impl Origin {
    /// Produces into a few topics of the shared broker while they are archived, and stops.
    pub(super) fn fill(random: &mut Random) -> Origin {
        let kafka = shared();
        let names: Vec<String> = (0..2 + random.below(2)).map(|_| unique("soak-origin")).collect();
        let listed: Vec<&str> = names.iter().map(String::as_str).collect();
        let format = if random.below(2) == 0 { "parquet" } else { "avro" };
        let settings =
            Settings { topics: &listed, format, max_records: 200 + random.below(2_000), ..Settings::default() };
        let site = Site::new(&kafka.bootstrap(), &settings);
        let mut filling = Filling { kafka, site: &site, archiver: Some(site.start()), random, number: 0 };
        let topics = names.iter().map(|name| (name.clone(), filling.topic(name))).collect();
        filling.stop();
        let origin = Origin { site, topics };
        eprintln!("soak-replay: archived {}, {format}", origin.described());
        origin
    }

    fn described(&self) -> String {
        let generation = |generation: &Generation| {
            format!("{} records over {} partitions", generation.records.len(), generation.partitions)
        };
        let topic = |(name, generations): (&String, &Vec<Generation>)| {
            format!("{name}: {}", generations.iter().map(generation).collect::<Vec<_>>().join(", then "))
        };
        self.topics.iter().map(topic).collect::<Vec<_>>().join("; ")
    }
}

struct Filling<'a> {
    kafka: &'a Kafka,
    site: &'a Site,
    archiver: Option<Program>,
    random: &'a mut Random,
    number: u64,
}

impl Filling<'_> {
    fn start(&mut self) {
        self.archiver = Some(self.site.start());
    }

    fn stop(&mut self) {
        if let Some(archiver) = self.archiver.take() {
            archiver.terminate(STOP);
        }
    }

    fn topic(&mut self, name: &str) -> Vec<Generation> {
        let count = 1 + self.random.below(3);
        let mut generations = Vec::new();
        for number in 0..count {
            if number > 0 {
                self.kafka.delete_topic(name);
            }
            generations.push(self.generation(name, generations.len() + 1));
        }
        generations
    }

    /// One generation of a topic, the `count`th, archived as far as retention let it be.
    fn generation(&mut self, name: &str, count: usize) -> Generation {
        let partitions = 1 + i32::try_from(self.random.below(5)).expect("small");
        // Timestamps lie ahead by days, which brokers refuse by default.
        let any = i64::MAX.to_string();
        self.kafka.create_topic(name, partitions, &[("message.timestamp.after.max.ms", &any)]);
        let used = self.used(partitions);
        let mut records: Vec<Produced> = Vec::new();
        for _ in 0..2 + self.random.below(4) {
            records.extend(self.batch(name, &used));
        }
        records.extend(self.last_of_each(name, &used));
        self.archived(name, count);
        if self.random.below(3) == 0 {
            records.extend(self.half_lost(name, &used));
            self.archived(name, count);
        }
        records.sort_by_key(|record| (record.partition, record.offset));
        Generation { partitions, records }
    }

    /// The partitions that are written to; often one stays empty.
    fn used(&mut self, partitions: i32) -> Vec<i32> {
        let empty = (partitions > 1 && self.random.below(2) == 0)
            .then(|| i32::try_from(self.random.below(partitions.unsigned_abs().into())).expect("small"));
        (0..partitions).filter(|partition| Some(*partition) != empty).collect()
    }

    /// Waits until everything is archived, in the generation of this number.
    fn archived(&mut self, name: &str, count: usize) {
        let archiver = self.archiver.as_mut().expect("an archiver runs");
        wait_until("the topic's new generation to be archived", Duration::from_secs(120), || {
            archiver.assert_running();
            self.site.ls(name).len() >= count
        });
        self.site.wait_archived(self.kafka, &[name], &mut [archiver]);
    }

    /// Records of which retention takes some before they are archived.
    fn half_lost(&mut self, name: &str, used: &[i32]) -> Vec<Produced> {
        self.stop();
        let mut records = self.batch(name, used);
        records.extend(self.last_of_each(name, used));
        let victim = used[self.index(used.len())];
        let offsets: Vec<i64> = records.iter().filter(|one| one.partition == victim).map(|one| one.offset).collect();
        let before = offsets[self.index(offsets.len())];
        self.kafka.delete_records(name, victim, before);
        records.retain(|one| one.partition != victim || one.offset >= before);
        self.start();
        records
    }

    /// Some records of one producer with one codec, in a transaction or not; an aborted one gives none.
    fn batch(&mut self, name: &str, used: &[i32]) -> Vec<Produced> {
        let mut messages: Vec<Message> = (0..30 + self.random.below(300)).map(|_| self.message(used)).collect();
        let codec = Codec::ALL[self.index(Codec::ALL.len())];
        if self.random.below(3) == 0 {
            messages.push(self.large(used, codec));
        }
        let end = [None, None, Some(End::Commit), Some(End::Abort)][self.index(4)];
        produce(self.kafka, name, codec, messages, end)
    }

    /// One more record for each partition: behind the last marker of a transaction nothing would show how far all is
    /// archived.
    fn last_of_each(&mut self, name: &str, used: &[i32]) -> Vec<Produced> {
        let messages = used.iter().map(|partition| self.message(&[*partition])).collect();
        produce(self.kafka, name, Codec::None, messages, None)
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.random.below(length as u64)).expect("an index fits")
    }

    fn message(&mut self, used: &[i32]) -> Message {
        self.number += 1;
        let partition = used[self.index(used.len())];
        Message {
            partition: Some(partition),
            timestamp: Some(self.timestamp()),
            key: self.key(),
            value: self.value(),
            headers: self.headers(),
        }
    }

    /// Zeros that the broker takes compressed only, or bytes that do not compress.
    fn large(&mut self, used: &[i32], codec: Codec) -> Message {
        let zeros = codec != Codec::None && self.random.below(3) > 0;
        let value = if zeros { vec![0; 3_000_000] } else { self.random.bytes(300_000) };
        Message { value: Some(value), ..self.message(used) }
    }

    fn key(&mut self) -> Option<Vec<u8>> {
        match self.random.below(12) {
            0 => None,
            1 => Some(Vec::new()),
            2 => Some(self.random.bytes(8)),
            _ => Some(format!("key {}", self.random.below(60)).into_bytes()),
        }
    }

    fn value(&mut self) -> Option<Vec<u8>> {
        match self.random.below(16) {
            0 | 1 => None,
            2 => Some(Vec::new()),
            3 => {
                let length = self.random.below(2_000);
                Some(self.random.bytes(length))
            }
            _ => Some(format!("number {} {:0>100}", self.number, self.number.wrapping_mul(7_919)).into_bytes()),
        }
    }

    fn headers(&mut self) -> Vec<(String, Option<Vec<u8>>)> {
        const NAMES: [&str; 4] = ["trace", "trace", "größe", ""];
        let count = [0, 0, 0, 1, 4][self.index(5)];
        let one = |random: &mut Random| {
            let name = NAMES[usize::try_from(random.below(4)).expect("small")].to_owned();
            let value =
                [None, Some(Vec::new()), Some(b"v".to_vec())][usize::try_from(random.below(3)).expect("small")].clone();
            (name, value)
        };
        (0..count).map(|_| one(self.random)).collect()
    }

    /// Mostly two hours old and a little out of order; some are late by up to 20 days, some ahead by up to 3. None lies
    /// within an hour of now on the far side, so that "now" may move while a round is played.
    fn timestamp(&mut self) -> i64 {
        let now = u64::try_from(tidelog::time::now().timestamp_millis()).expect("after 1970");
        let usual = now - 120 * MINUTE + self.number * 50 - self.random.below(10 * MINUTE);
        let time = match self.random.below(100) {
            0..85 => usual,
            85..95 => usual - self.random.below(20 * DAY),
            _ => now + 120 * MINUTE + self.random.below(3 * DAY),
        };
        i64::try_from(time).expect("milliseconds fit")
    }
}

/// Remembers where the broker put each record.
#[derive(Clone, Default)]
struct Reports(Arc<Mutex<BTreeMap<usize, Result<i64, String>>>>);

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        let told = match result {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error.to_string()),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(index, told);
    }
}

/// Produces all, and gives what was committed with its offsets.
fn produce(kafka: &Kafka, topic: &str, codec: Codec, messages: Vec<Message>, end: Option<End>) -> Vec<Produced> {
    let reports = Reports::default();
    let mut config = kafka.config();
    config
        .set("enable.idempotence", "true")
        .set("compression.type", codec.name())
        .set("message.max.bytes", "8000000")
        .set("linger.ms", "20");
    if end.is_some() {
        config.set("transactional.id", unique("soak-origin"));
    }
    let producer: ThreadedProducer<Reports> = config.create_with_context(reports.clone()).expect("a producer");
    if end.is_some() {
        producer.init_transactions(PATIENCE).expect("transactions can be had");
        producer.begin_transaction().expect("a transaction can begin");
    }
    for (index, message) in messages.iter().enumerate() {
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, index);
        record.partition = message.partition;
        record.timestamp = message.timestamp;
        record.key = message.key.as_deref();
        record.payload = message.value.as_deref();
        if !message.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(message.headers.len());
            let add = |headers: OwnedHeaders, (name, value): &(String, Option<Vec<u8>>)| {
                headers.insert(Header { key: name, value: value.as_deref() })
            };
            record.headers = Some(message.headers.iter().fold(headers, add));
        }
        producer.send(record).unwrap_or_else(|(error, _)| panic!("produce to {topic}: {error}"));
    }
    producer.flush(PATIENCE).expect("all records arrive");
    match end {
        Some(End::Commit) => producer.commit_transaction(PATIENCE).expect("the transaction commits"),
        Some(End::Abort) => producer.abort_transaction(PATIENCE).expect("the transaction aborts"),
        None => {}
    }
    let offsets = std::mem::take(&mut *reports.0.lock().unwrap_or_else(PoisonError::into_inner));
    if end == Some(End::Abort) {
        return Vec::new();
    }
    let at = |(index, message): (usize, Message)| {
        let offset = offsets.get(&index).cloned().unwrap_or_else(|| Err("no report".to_owned()));
        let offset = offset.unwrap_or_else(|error| panic!("record {index} of {topic}: {error}"));
        Produced { partition: message.partition.expect("it was chosen"), offset, message }
    };
    let produced: Vec<Produced> = messages.into_iter().enumerate().map(at).collect();
    let distinct: BTreeSet<(i32, i64)> = produced.iter().map(|one| (one.partition, one.offset)).collect();
    assert_eq!(distinct.len(), produced.len(), "every record has an offset of its own");
    produced
}

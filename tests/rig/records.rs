//! Odd records by the million, the same for the same seed.
//!
//! ```text
//!   seed ─► Random (splitmix64) ─► Generator ─► Message … ─► load(): a run of them with each codec ─► topic
//!                                     ▲
//!                 tests/data/debezium.jsonl: real change events, JSON and Confluent-framed Avro
//! ```
//!
//! Of a thousand records about 600 are change events; the others are what breaks archives: null and empty keys and values
//! in every pairing, tombstones, bytes that are no UTF-8, headers that repeat, are null or empty, timestamps that
//! jump back by minutes and days, and now and then 80 KB of value.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::kafka::Kafka;
use super::topics::{Codec, Message};

/// splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014): a test that fails says
/// its seed and can be run again.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// `length` bytes of any value.
    pub(crate) fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("an index fits")
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.index(of.len())]
    }
}

struct Event {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
}

/// An endless row of odd messages for a topic of some partitions.
pub(crate) struct Generator {
    random: Random,
    events: Vec<Event>,
    partitions: u64,
    made: u64,
}

/// 2024-01-01T00:00:00Z. Far enough back that no jump reaches the future, which a broker refuses.
const FIRST_TIMESTAMP: i64 = 1_704_067_200_000;
const MINUTE: u64 = 60_000;
const DAY: u64 = 24 * 60 * MINUTE;

impl Generator {
    pub(crate) fn new(seed: u64, partitions: i32) -> Generator {
        let partitions = u64::try_from(partitions).expect("a count of partitions");
        Generator { random: Random::new(seed), events: sample(), partitions, made: 0 }
    }

    fn message(&mut self) -> Message {
        let (key, value) = self.key_and_value();
        let partition = i32::try_from(self.random.below(self.partitions)).expect("a partition fits");
        let message = Message {
            partition: Some(partition),
            timestamp: Some(self.timestamp()),
            key,
            value,
            headers: self.headers(),
        };
        self.made += 1;
        message
    }

    fn key_and_value(&mut self) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let short = Some(format!("key-{}", self.random.below(1000)).into_bytes());
        match self.random.below(1000) {
            0..600 => self.event(),
            600..650 => (short, None),
            650..680 => (None, self.event().1),
            680..700 => (Some(vec![]), Some(vec![])),
            700..715 => (None, None),
            715..730 => (Some(vec![]), None),
            730..745 => (None, Some(vec![])),
            745..820 => {
                let length = self.random.below(300);
                (Some(self.random.bytes(8)), Some(self.random.bytes(length)))
            }
            820..850 => (short, Some(b"caf\xe9 in Latin-1, \x00 and \xf0\x28\x8c\x28".to_vec())),
            850..999 => (short, Some(format!("text {}, naïve, 日本", self.made).into_bytes())),
            _ => {
                // Half that compresses, half that does not.
                let mut value = self.random.bytes(40_000);
                value.resize(80_000, b'x');
                (short, Some(value))
            }
        }
    }

    /// A change event of the sample. One with a JSON envelope gets a number of its own.
    fn event(&mut self) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let event = self.random.pick(&self.events);
        let numbered = |value: &[u8]| match value.strip_prefix(b"{") {
            Some(rest) => [format!("{{\"number\":{},", self.made).as_bytes(), rest].concat(),
            None => value.to_vec(),
        };
        (event.key.clone(), event.value.as_deref().map(numbered))
    }

    fn timestamp(&mut self) -> i64 {
        // 10 ms a record, as from many producers with clocks and delays of their own.
        let back = match self.random.below(1000) {
            0..500 => 0,
            500..990 => self.random.below(10 * MINUTE),
            _ => self.random.below(30 * DAY),
        };
        let forward = 30 * DAY + self.made * 10 - back;
        FIRST_TIMESTAMP + i64::try_from(forward).expect("milliseconds fit")
    }

    fn headers(&mut self) -> Vec<(String, Option<Vec<u8>>)> {
        // Few names, so that they often repeat within a record.
        const NAMES: [&str; 5] = ["trace", "trace", "content-type", "größe", ""];
        let count = *self.random.pick(&[0, 0, 0, 1, 2, 6]);
        (0..count).map(|_| (NAMES[self.random.index(NAMES.len())].to_owned(), self.header_value())).collect()
    }

    fn header_value(&mut self) -> Option<Vec<u8>> {
        match self.random.below(4) {
            0 => None,
            1 => Some(vec![]),
            2 => Some(self.random.bytes(16)),
            _ => Some(b"application/json".to_vec()),
        }
    }
}

impl Iterator for Generator {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        Some(self.message())
    }
}

fn sample() -> Vec<Event> {
    let field = |event: &Value, name: &str| {
        let text = event[name].as_str().map(|text| text.as_bytes().to_vec());
        let encoded = event[format!("{name}_b64")].as_str();
        text.or(encoded.map(|encoded| STANDARD.decode(encoded).expect("base64 in the sample")))
    };
    let lines = include_str!("../data/debezium.jsonl").lines();
    let events = lines.map(|line| serde_json::from_str(line).expect("JSON in the sample"));
    events.map(|event: Value| Event { key: field(&event, "key"), value: field(&event, "value") }).collect()
}

/// Produces `count` odd records of `seed` over the `partitions` of `topic`, a fifth of them with each codec.
pub(crate) fn load(kafka: &Kafka, topic: &str, partitions: i32, count: u64, seed: u64) {
    let mut messages = Generator::new(seed, partitions);
    let codecs = Codec::ALL.len() as u64;
    for (codec, before) in Codec::ALL.into_iter().zip(0..) {
        let share = count * (before + 1) / codecs - count * before / codecs;
        let producer = kafka.producer(&[("compression.type", codec.name()), ("linger.ms", "20")]);
        for message in messages.by_ref().take(usize::try_from(share).expect("a count fits")) {
            producer.send(topic, &message);
        }
        // One codec after the other: what a partition holds is in the generator's order.
        producer.flush();
    }
}

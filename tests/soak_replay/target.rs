//! What a round is sent into: topics that are created by the replay or were there before, some of which would lose, change
//! or refuse records; and whether that has to be said before the first record.

use std::collections::BTreeMap;

use crate::replay::{Shape, found};
use crate::rig::kafka::{Kafka, KafkaOptions, java};
use crate::rig::program;
use crate::rig::records::Random;

const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60 * MINUTE;

/// What brokers do by default, of which each cluster draws some: topics that a replay creates must not care.
const DEFAULTS: [(&str, &str); 11] = [
    ("log.retention.bytes", "300000"),
    ("log.retention.ms", "60000"),
    ("log.cleanup.policy", "compact"),
    ("log.message.timestamp.type", "LogAppendTime"),
    ("log.message.timestamp.after.max.ms", "1000"),
    ("log.message.timestamp.before.max.ms", "60000"),
    ("message.max.bytes", "200000"),
    ("log.segment.bytes", "1048576"),
    ("compression.type", "uncompressed"),
    ("log.cleaner.min.cleanable.ratio", "0.01"),
    ("log.index.interval.bytes", "1"),
];

/// The cluster that records are sent to.
pub(super) struct Cluster {
    pub(super) kafka: Kafka,
}

impl Cluster {
    /// Starts one with some defaults that would take records from a topic.
    pub(super) fn start(random: &mut Random) -> Cluster {
        let drawn: Vec<_> = DEFAULTS.into_iter().filter(|_| random.below(2) == 0).collect();
        let properties = drawn.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
        eprintln!("soak-replay: a target cluster with {properties:?}");
        Cluster { kafka: Kafka::start(KafkaOptions { properties, ..KafkaOptions::default() }) }
    }

    /// Limits what a replay's client may produce, or takes the limit away.
    pub(super) fn quota(&self, bytes: Option<u64>) {
        let mut command = java();
        command.args(["kafka.admin.ConfigCommand", "--bootstrap-server", &self.kafka.bootstrap(), "--alter"]);
        match bytes {
            Some(bytes) => command.args(["--add-config", &format!("producer_byte_rate={bytes}")]),
            None => command.args(["--delete-config", "producer_byte_rate"]),
        };
        command.args(["--entity-type", "clients", "--entity-name", "tidelog"]);
        program::run(command).expect(0);
    }

    /// What a topic holds; a topic that is not there holds nothing. Records of [`FOREIGN`] keys are left out.
    pub(super) fn holds(&self, topic: &str) -> Vec<Shape> {
        if self.kafka.partitions(topic).is_none() {
            return Vec::new();
        }
        let mut all = found(&self.kafka, topic);
        all.retain(|(_, _, key, ..)| key.as_deref() != Some(FOREIGN.as_bytes()));
        all
    }
}

/// The key of records that somebody else writes into a target topic.
pub(super) const FOREIGN: &str = "somebody else's";

/// What a target topic is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Character {
    /// It is not there.
    Created,
    /// It keeps what it is sent, and has so many more partitions than the source.
    Plain(i32),
    /// It has one partition.
    Narrow,
    RetentionTime,
    RetentionSize,
    Compacted,
    LogAppendTime,
    /// Timestamps may lie a day back and an hour ahead.
    Limits,
    /// Batches of 100 kB.
    SmallBatches,
    /// More replicas have to be in step than there are.
    InSync,
}

/// A target topic of a round.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) topic: String,
    character: Character,
    partitions: i32,
}

/// Whether a replay into a topic has to be refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Taken,
    /// By a message with these words.
    Refused(&'static str),
    /// Either: the plan knows only bounds there.
    Either(&'static str),
}

impl Target {
    /// Draws what `topic` is like, the source of which has `partitions`, and makes it so. Unless it is `kind`, it may be one
    /// that loses or refuses records.
    pub(super) fn draw(random: &mut Random, cluster: &Cluster, (topic, partitions): (&str, i32), kind: bool) -> Target {
        let character = match random.below(if kind { 10 } else { 19 }) {
            0..6 => Character::Created,
            6..10 => Character::Plain(i32::try_from(random.below(3)).expect("small")),
            10 => Character::Narrow,
            11 => Character::RetentionTime,
            12 => Character::RetentionSize,
            13 | 14 => Character::Compacted,
            15 => Character::LogAppendTime,
            16 => Character::Limits,
            17 => Character::SmallBatches,
            _ => Character::InSync,
        };
        let partitions = match character {
            Character::Plain(more) => partitions + more,
            Character::Narrow => 1,
            _ => partitions,
        };
        let target = Target { topic: topic.to_owned(), character, partitions };
        target.make(cluster);
        target
    }

    /// Creates the topic, unless that is left to the replay.
    pub(super) fn make(&self, cluster: &Cluster) {
        let any = i64::MAX.to_string();
        let mut config = BTreeMap::from([
            ("cleanup.policy", "delete"),
            ("compression.type", "producer"),
            ("max.message.bytes", "1048588"),
            ("message.timestamp.after.max.ms", any.as_str()),
            ("message.timestamp.before.max.ms", any.as_str()),
            ("message.timestamp.type", "CreateTime"),
            ("retention.bytes", "-1"),
            ("retention.ms", "-1"),
            ("segment.bytes", "104857600"),
        ]);
        let changed: &[(&str, &str)] = match self.character {
            Character::Created => return,
            Character::Plain(_) | Character::Narrow => &[],
            Character::RetentionTime => &[("retention.ms", "3600000")],
            Character::RetentionSize => &[("retention.bytes", "20000"), ("segment.bytes", "1048576")],
            Character::Compacted => &[("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0.01")],
            Character::LogAppendTime => &[("message.timestamp.type", "LogAppendTime")],
            Character::Limits => {
                &[("message.timestamp.before.max.ms", "86400000"), ("message.timestamp.after.max.ms", "3600000")]
            }
            Character::SmallBatches => &[("max.message.bytes", "100000")],
            Character::InSync => &[("min.insync.replicas", "2")],
        };
        config.extend(changed.iter().copied());
        let config: Vec<(&str, &str)> = config.into_iter().collect();
        cluster.kafka.create_topic(&self.topic, self.partitions, &config);
    }

    /// Makes the topic again as a replay would, had it done so.
    pub(super) fn make_again(&self, cluster: &Cluster) {
        match self.character {
            Character::Created => cluster.kafka.create_topic(&self.topic, self.partitions, &[]),
            _ => self.make(cluster),
        }
    }

    /// Whether it takes everything and keeps it, whatever is sent.
    pub(super) fn is_kind(&self) -> bool {
        matches!(self.character, Character::Created | Character::Plain(_))
    }

    /// Whether a replay of `wanted`, out of `bounds` of which the plan may know no better, has to be refused. `yes` is said.
    pub(super) fn fate(&self, wanted: &[Shape], bounds: &[Shape], yes: bool) -> Fate {
        let now = tidelog::time::now().timestamp_millis();
        let (words, is_bad): (&str, Box<dyn Fn(&Shape) -> bool>) = match self.character {
            Character::Created | Character::Plain(_) => return Fate::Taken,
            Character::Narrow => ("partitions", Box::new(|shape| shape.0 > 0)),
            Character::RetentionTime if yes => return Fate::Taken,
            Character::RetentionTime => ("keeps records for", Box::new(move |shape| time(shape) < now - 61 * MINUTE)),
            Character::RetentionSize if yes => return Fate::Taken,
            Character::RetentionSize => return self.too_much(wanted),
            Character::Compacted => ("compacted", Box::new(move |shape| !yes || shape.2.is_none())),
            Character::LogAppendTime if yes => return Fate::Taken,
            Character::LogAppendTime => ("LogAppendTime", Box::new(|_| true)),
            Character::Limits => {
                ("refuses timestamps", Box::new(move |shape| !(now - DAY..now + 60 * MINUTE).contains(&time(shape))))
            }
            Character::SmallBatches => {
                ("max.message.bytes", Box::new(|shape| !shrinks(shape) && size(shape) > 100_000))
            }
            Character::InSync => ("min.insync.replicas", Box::new(|_| true)),
        };
        if wanted.iter().any(&is_bad) {
            return Fate::Refused(words);
        }
        // What is read record by record has no bounds to be wrong about, but for the last moment of a limit.
        let exact = matches!(self.character, Character::Compacted | Character::SmallBatches | Character::Limits);
        if (!exact || wanted.is_empty()) && bounds.iter().any(is_bad) { Fate::Either(words) } else { Fate::Taken }
    }

    fn too_much(&self, wanted: &[Shape]) -> Fate {
        const WORDS: &str = "keeps 20000 bytes";
        let mut bytes: BTreeMap<i32, usize> = BTreeMap::new();
        for shape in wanted {
            *bytes.entry(shape.0).or_default() += size(shape);
        }
        // A part of a segment is estimated by its share of records, so that only much more than the limit is sure.
        let most = bytes.into_values().max().unwrap_or(0);
        if most > 1_000_000 { Fate::Refused(WORDS) } else { Fate::Either(WORDS) }
    }

    /// What is wrong with what the topic holds, if anything: `found` for `wanted`.
    pub(super) fn wrong(&self, found: &[Shape], wanted: &[Shape]) -> Option<String> {
        let untimed = |shapes: &[Shape]| -> Vec<Shape> {
            shapes
                .iter()
                .map(|shape| {
                    (shape.0, rdkafka::Timestamp::NotAvailable, shape.2.clone(), shape.3.clone(), shape.4.clone())
                })
                .collect()
        };
        let missing = match self.character {
            Character::LogAppendTime => {
                (untimed(found) != untimed(wanted)).then(|| first_difference(&untimed(found), &untimed(wanted)))
            }
            Character::RetentionTime | Character::RetentionSize => {
                by_partition(found, wanted, |found, wanted| wanted.ends_with(found))
            }
            Character::Compacted => by_partition(found, wanted, compacted),
            _ => (found != wanted).then(|| first_difference(found, wanted)),
        };
        missing.map(|what| {
            format!(
                "{} ({:?}): {} records found, {} wanted; {what}",
                self.topic,
                self.character,
                found.len(),
                wanted.len()
            )
        })
    }
}

/// The first partition whose records are not as `right` has it.
fn by_partition(found: &[Shape], wanted: &[Shape], right: impl Fn(&[Shape], &[Shape]) -> bool) -> Option<String> {
    let of = |shapes: &[Shape], partition: i32| -> Vec<Shape> {
        shapes.iter().filter(|shape| shape.0 == partition).cloned().collect()
    };
    let last = found.iter().chain(wanted).map(|shape| shape.0).max()?;
    let wrong = |partition: &i32| !right(&of(found, *partition), &of(wanted, *partition));
    (0..=last).find(wrong).map(|partition| format!("partition {partition} differs"))
}

/// Whether `found` is what a compaction may leave of `wanted`: in order, with the last record of each key, be it not a
/// tombstone.
fn compacted(found: &[Shape], wanted: &[Shape]) -> bool {
    let mut rest = wanted.iter();
    let in_order = found.iter().all(|one| rest.any(|other| other == one));
    let last = |shapes: &[Shape]| -> BTreeMap<Option<Vec<u8>>, Shape> {
        shapes.iter().map(|shape| (shape.2.clone(), shape.clone())).collect()
    };
    let kept = last(found);
    in_order && last(wanted).into_iter().all(|(key, shape)| shape.3.is_none() || kept.get(&key) == Some(&shape))
}

fn first_difference(found: &[Shape], wanted: &[Shape]) -> String {
    let short = |shape: Option<&Shape>| {
        shape.map_or("nothing".to_owned(), |(partition, time, key, value, headers)| {
            let bytes = |bytes: &Option<Vec<u8>>| {
                bytes
                    .as_ref()
                    .map_or("null".to_owned(), |bytes| bytes[..bytes.len().min(60)].escape_ascii().to_string())
            };
            format!(
                "partition {partition}, {time:?}, key {}, value {}, {} headers",
                bytes(key),
                bytes(value),
                headers.len()
            )
        })
    };
    let at = found.iter().zip(wanted).take_while(|(one, other)| one == other).count();
    format!("record {at} is {} and has to be {}", short(found.get(at)), short(wanted.get(at)))
}

fn time(shape: &Shape) -> i64 {
    shape.1.to_millis().expect("every record has one")
}

fn size(shape: &Shape) -> usize {
    shape.2.as_ref().map_or(0, Vec::len) + shape.3.as_ref().map_or(0, Vec::len)
}

/// Whether a value is the zeros that any codec makes small.
fn shrinks(shape: &Shape) -> bool {
    shape.3.as_ref().is_some_and(|value| value.len() > 1_000_000)
}

//! The topics of a run, each for what happens to it, and what operators do to them.

use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::executor::block_on;
use rdkafka::admin::{AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::producer::{Producer as _, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use tidelog::config::Isolation;
use tidelog::source::kafka::OffsetAt;

use super::feed::Reports;
use super::world::World;

/// How long the cluster may take for a change of a topic, with a broker that has just come back.
const CHANGE: Duration = Duration::from_secs(90);

/// No record is on its way for longer.
const DELIVERY: Duration = Duration::from_secs(60);

/// What happens to a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Character {
    /// It gets more partitions and loses old records, and is written in transactions.
    Grown,
    /// It is deleted and created again.
    Recreated,
    /// Its replicas are two, and one that is not in sync may lead.
    Unclean,
    /// The broker removes its records after seconds.
    Brief,
}

impl Character {
    pub(super) const ALL: [Character; 4] =
        [Character::Grown, Character::Recreated, Character::Unclean, Character::Brief];

    pub(super) fn topic(self) -> &'static str {
        match self {
            Character::Grown => "soak.grown",
            Character::Recreated => "soak.recreated",
            Character::Unclean => "soak.unclean",
            Character::Brief => "soak.brief",
        }
    }

    /// How many partitions it begins with.
    pub(super) fn partitions(self) -> i32 {
        match self {
            Character::Unclean => 4,
            _ => 2,
        }
    }

    fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Character::Grown | Character::Recreated => &[],
            Character::Unclean => &[("unclean.leader.election.enable", "true"), ("min.insync.replicas", "1")],
            Character::Brief => &[("retention.ms", "20000"), ("segment.ms", "5000")],
        }
    }
}

/// Which brokers have the partitions of a topic of [`Character::Unclean`]: an election cuts two of them.
pub(super) const PAIRS: [[i32; 2]; 4] = [[1, 2], [2, 1], [2, 3], [3, 2]];

/// A topic as it is fed.
#[derive(Default)]
pub(super) struct Feeding {
    pub(super) incarnation: usize,
    pub(super) partitions: i32,
    /// None while nothing is to be sent.
    pub(super) producer: Option<ThreadedProducer<Reports>>,
}

pub(super) struct Topic {
    pub(super) name: &'static str,
    pub(super) character: Character,
    /// Read by who sends, written by who changes the topic.
    pub(super) feeding: RwLock<Feeding>,
    /// Odd while what is true of the topic changes.
    changes: AtomicU64,
}

impl Topic {
    pub(super) fn new(character: Character) -> Topic {
        Topic { name: character.topic(), character, feeding: RwLock::default(), changes: AtomicU64::new(0) }
    }

    /// How often the topic has changed; none while it does.
    pub(super) fn changes(&self) -> Option<u64> {
        let changes = self.changes.load(Ordering::SeqCst);
        (changes.is_multiple_of(2)).then_some(changes)
    }

    /// The topic changes until this is dropped.
    pub(super) fn changing(&self) -> impl Drop + '_ {
        struct Changing<'a>(&'a AtomicU64);
        impl Drop for Changing<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        self.changes.fetch_add(1, Ordering::SeqCst);
        Changing(&self.changes)
    }

    /// The present incarnation and how many partitions it has.
    pub(super) fn present(&self) -> (usize, i32) {
        let feeding = self.feeding.read().expect("no thread panics with it");
        (feeding.incarnation, feeding.partitions)
    }

    /// Sends nothing any more, and waits until it is known what has become of everything that was sent.
    pub(super) fn pause(&self) {
        let producer = self.feeding.write().expect("no thread panics with it").producer.take();
        if let Some(producer) = producer {
            // Each record has a report by then: message.timeout.ms.
            producer.flush(DELIVERY + Duration::from_secs(30)).expect("every record is reported");
        }
    }

    /// Sends on, with a producer that knows nothing of the log before.
    pub(super) fn resume(&self, world: &World) {
        let producer = world
            .kafka
            .config()
            .set("enable.idempotence", "true")
            .set("linger.ms", "20")
            .set("topic.metadata.refresh.interval.ms", "1000")
            .set("message.timeout.ms", DELIVERY.as_millis().to_string())
            .create_with_context(Reports::new(&world.ledger))
            .expect("a producer");
        self.feeding.write().expect("no thread panics with it").producer = Some(producer);
    }

    /// Creates it, and begins to feed it.
    pub(super) fn create(&self, world: &World, partitions: i32) {
        let assignment: Vec<&[i32]> = PAIRS.iter().map(|pair| pair.as_slice()).collect();
        let replication = match self.character {
            Character::Unclean => TopicReplication::Variable(&assignment),
            _ => TopicReplication::Fixed(3),
        };
        let mut topic = NewTopic::new(self.name, partitions, replication);
        for (key, value) in self.character.settings() {
            topic = topic.set(key, value);
        }
        let start = Instant::now();
        let info = loop {
            // That it exists is an answer to an attempt of which no answer came.
            let answer = block_on(world.kafka.admin().create_topics([&topic], &options()));
            let new = |id: &String| world.ledger.books().by_topic_id(id).is_none();
            let known = world.describe(self.name).ok().flatten();
            if let Some(info) = known.filter(|info| info.partitions == partitions && info.id.as_ref().is_some_and(new))
            {
                break info;
            }
            assert!(start.elapsed() < CHANGE, "create {}: {answer:?}", self.name);
            std::thread::sleep(Duration::from_millis(100));
        };
        let id = info.id.expect("brokers of today have ids");
        let incarnation = world.ledger.begin(self.name, &id);
        world.journal.note(format!("{} created with {partitions} partitions, {id}", self.name));
        {
            let mut feeding = self.feeding.write().expect("no thread panics with it");
            feeding.incarnation = incarnation;
            feeding.partitions = partitions;
        }
        self.resume(world);
    }

    /// Deletes it and creates it again.
    pub(super) fn recreate(&self, world: &World, partitions: i32) {
        let _changing = self.changing();
        self.pause();
        self.learn_all_starts(world);
        let (incarnation, _) = self.present();
        world.ledger.books().incarnations[incarnation].ended = true;
        let start = Instant::now();
        loop {
            let answer = block_on(world.kafka.admin().delete_topics(&[self.name], &options()));
            if matches!(world.describe(self.name), Ok(None)) {
                break;
            }
            assert!(start.elapsed() < CHANGE, "delete {}: {answer:?}", self.name);
            std::thread::sleep(Duration::from_millis(100));
        }
        world.journal.note(format!("{} deleted", self.name));
        self.create(world, partitions);
    }

    /// Gives it more partitions.
    pub(super) fn grow(&self, world: &World, partitions: i32) {
        let wanted = NewPartitions::new(self.name, usize::try_from(partitions).expect("a count"));
        let start = Instant::now();
        loop {
            let answer = block_on(world.kafka.admin().create_partitions([&wanted], &options()));
            if matches!(world.describe(self.name), Ok(Some(info)) if info.partitions == partitions) {
                break;
            }
            assert!(start.elapsed() < CHANGE, "grow {}: {answer:?}", self.name);
            std::thread::sleep(Duration::from_millis(100));
        }
        self.feeding.write().expect("no thread panics with it").partitions = partitions;
        world.journal.note(format!("{} grown to {partitions} partitions", self.name));
    }

    /// Removes the records of a partition below `before`, as retention does.
    pub(super) fn delete_records(&self, world: &World, partition: i32, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(self.name, partition, Offset::Offset(before)).expect("an offset");
        let answer = block_on(world.kafka.admin().delete_records(&list, &options()));
        let refused = answer.err().map_or(String::new(), |error| format!(" (refused: {error})"));
        world.journal.note(format!("{} partition {partition}: removed before {before}{refused}", self.name));
    }

    /// Asks where the logs begin: what lies before is gone. False where not all of them told.
    pub(super) fn learn_starts(&self, world: &World) -> bool {
        let (incarnation, partitions) = self.present();
        let starts = world.offsets(self.name, partitions, OffsetAt::Earliest, Isolation::ReadUncommitted);
        for (partition, start) in &starts {
            world.ledger.starts_at(incarnation, *partition, *start);
        }
        starts.len() == partitions.unsigned_abs() as usize
    }

    /// Asks until all have told.
    pub(super) fn learn_all_starts(&self, world: &World) {
        let start = Instant::now();
        while !self.learn_starts(world) {
            assert!(start.elapsed() < CHANGE, "nobody tells where the logs of {} begin", self.name);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(Duration::from_secs(20))).request_timeout(Some(Duration::from_secs(20)))
}

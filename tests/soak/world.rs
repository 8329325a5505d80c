//! What a run consists of: brokers, topics, archivers, the archive, and what is known of all of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tidelog::config::Isolation;
use tidelog::error::Result;
use tidelog::source::kafka::{Cluster, OffsetAt, TopicInfo, TopicPartition};
use tokio::runtime::Runtime;

use super::archivers::Archivers;
use super::journal::Journal;
use super::ledger::Ledger;
use super::topics::{Character, Topic};
use super::variable;
use crate::rig::kafka::{Kafka, KafkaOptions};
use crate::rig::process::tail;
use crate::rig::program;
use crate::rig::records::Random;
use crate::site::{Settings, Site};
use crate::source::reader;

/// How long a broker may take to answer; in the midst of an election nobody does.
const ANSWER: Duration = Duration::from_secs(5);

pub(super) struct World {
    pub(super) kafka: Kafka,
    pub(super) site: Site,
    pub(super) archivers: Archivers,
    pub(super) topics: Vec<Topic>,
    pub(super) journal: Journal,
    pub(super) ledger: Arc<Ledger>,
    /// The group's protocol and the like, in words.
    pub(super) setting: String,
    cluster: Cluster,
    runtime: Runtime,
    quiet: AtomicBool,
    over: AtomicBool,
}

/// What the seed decides of the archivers.
struct Variant {
    protocol: &'static str,
    refresh: &'static str,
    avro: Vec<&'static str>,
}

impl Variant {
    fn draw(seed: u64) -> Variant {
        let mut random = Random::new(seed);
        let protocol = ["classic", "consumer"][index(&mut random, 2)];
        let refresh = ["1000", "2000", "10000"][index(&mut random, 3)];
        let avro = Character::ALL.map(Character::topic).into_iter().filter(|_| random.below(2) == 0).collect();
        Variant { protocol, refresh, avro }
    }
}

/// An index below `length`.
pub(super) fn index(random: &mut Random, length: usize) -> usize {
    usize::try_from(random.below(length as u64)).expect("an index fits")
}

impl World {
    pub(super) fn new(seed: u64, journal: Journal) -> World {
        let kafka = Kafka::start(KafkaOptions {
            brokers: 3,
            properties: [
                ("broker.heartbeat.interval.ms", "500"),
                ("broker.session.timeout.ms", "6000"),
                ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "1000"),
            ]
            .map(|(name, value)| (name, value.to_owned()))
            .to_vec(),
            ..KafkaOptions::default()
        });
        let variant = Variant::draw(seed);
        let timeouts: &[(&str, &str)] = match variant.protocol {
            "classic" => &[("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "1000")],
            _ => &[("group.protocol", "consumer")],
        };
        let site = Site::new(
            &kafka.bootstrap(),
            &Settings { topics: &["^soak[.]"], max_age: "1500ms", properties: timeouts, ..Settings::default() },
        );
        site.reconfigure("interval.ms\" = \"1000\"", &format!("interval.ms\" = {:?}", variant.refresh));
        let setting = format!(
            "group protocol {}, topics looked at every {} ms, Avro for {:?}",
            variant.protocol, variant.refresh, variant.avro
        );
        let runtime = Runtime::new().expect("a runtime");
        let cluster = {
            let _inside = runtime.enter();
            let settings = reader::config(&kafka.bootstrap(), &[], &[("reconnect.backoff.max.ms", "500")]);
            Cluster::new(&settings).expect("an admin client").within(ANSWER)
        };
        let world = World {
            archivers: Archivers::new(&site, &variant.avro),
            topics: Character::ALL.map(Topic::new).into(),
            ledger: Arc::new(Ledger::default()),
            quiet: AtomicBool::new(false),
            over: AtomicBool::new(false),
            kafka,
            site,
            journal,
            setting,
            cluster,
            runtime,
        };
        world.topics.iter().for_each(|topic| topic.create(&world, topic.character.partitions()));
        world.archivers.start_all(&world);
        world
    }

    /// Whether the threads are to end: all is done, or something is wrong.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || self.journal.is_faulty()
    }

    /// Nothing more is to be sent.
    pub(super) fn be_quiet(&self) {
        self.quiet.store(true, Ordering::Relaxed);
    }

    /// Whether nothing more is to be sent.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }

    /// Ends the threads when it is dropped.
    pub(super) fn ends_with_this(&self) -> impl Drop + '_ {
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        End(&self.over)
    }

    /// Sleeps, unless the run is over before.
    pub(super) fn rest(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_over() && Instant::now() < until {
            thread::sleep(Duration::from_millis(20).min(time));
        }
    }

    /// Waits for a condition; a fault, and false, if it does not come to be within `timeout`.
    pub(super) fn wait(&self, what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
        let start = Instant::now();
        while !condition() {
            if start.elapsed() > timeout {
                self.journal.fault(format!("waited {} s in vain for {what}", timeout.as_secs()));
                return false;
            }
            if self.is_over() {
                return false;
            }
            thread::sleep(Duration::from_millis(100));
        }
        true
    }

    /// Runs a part; a panic of it (the rig's, mostly) is a fault like any other.
    pub(super) fn guarded(&self, part: &str, work: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            self.journal.fault(format!("{part}: {}", text.unwrap_or_default()));
        }
    }

    /// The topic by that name as the brokers know it; none if there is none.
    pub(super) fn describe(&self, topic: &str) -> Result<Option<TopicInfo>> {
        let names = [topic.to_owned()];
        let mut described = self.runtime.block_on(self.cluster.describe(&names))?;
        described.remove(topic).transpose()
    }

    /// Where partitions of a topic begin or end; those that nobody tells of are left out.
    pub(super) fn offsets(&self, topic: &str, partitions: i32, at: OffsetAt, isolation: Isolation) -> Vec<(i32, i64)> {
        let name: Arc<str> = topic.into();
        let wanted: Vec<TopicPartition> =
            (0..partitions).map(|partition| TopicPartition { topic: Arc::clone(&name), partition }).collect();
        let listed = self.runtime.block_on(self.cluster.list_offsets(&wanted, at, isolation)).unwrap_or_default();
        let known = listed.into_iter().filter_map(|(at, offset)| Some((at.partition, offset.ok()??)));
        known.collect()
    }

    /// Panics with the schedule and everything else that helps, if something is wrong.
    pub(super) fn conclude(self) {
        let faults = self.journal.faults();
        if faults.is_empty() {
            self.journal.note(self.summary());
            if variable("SOAK_KEEP").is_some() {
                self.keep();
            }
            return;
        }
        let kept = self.keep();
        let said: Vec<String> = self.archivers.outputs().iter().map(|output| tail(output, 15)).collect();
        panic!(
            "the soak of seed {} found {} faults; the first:\n{}\n\nthe schedule:\n{}\n\nthe archivers said at last:\n{}\n\nlogs and archive are in {}",
            self.journal.seed,
            faults.len(),
            faults[0],
            self.journal.text(),
            said.join("\n--\n"),
            kept.display()
        );
    }

    fn summary(&self) -> String {
        let books = self.ledger.books();
        let acknowledged = books.sent.iter().filter(|sent| sent.acknowledged.is_some()).count();
        let lost: usize = books.incarnations.iter().flat_map(|one| one.logs.values()).map(|log| log.lost.len()).sum();
        let elections: usize = books.incarnations.iter().map(|one| one.elections).sum();
        let said = self.archivers.outputs().join("\n");
        let silent = said.matches("nothing comes of a partition").count();
        format!(
            "held: {} records sent, {acknowledged} acknowledged, {} transactions, {} incarnations of {} topics, {elections} unclean elections that took {lost} records, {silent} silent partitions started again",
            books.sent.len(),
            books.outcomes.len(),
            books.incarnations.len(),
            self.topics.len()
        )
    }

    /// Copies what is of use afterwards out of the scratch directory, which goes with the process.
    fn keep(&self) -> PathBuf {
        let folder = variable("SOAK_KEEP").map_or_else(
            || std::env::temp_dir().join(format!("tidelog-soak-{}-{}", self.journal.seed, std::process::id())),
            PathBuf::from,
        );
        std::fs::create_dir_all(&folder).expect("a directory can be made");
        std::fs::write(folder.join("schedule"), self.journal.text()).expect("the schedule can be written");
        let mut copy = std::process::Command::new("cp");
        copy.arg("-a").arg(self.site.home().path()).arg(&folder);
        let copied = program::run(copy);
        if copied.status != Some(0) {
            eprintln!("soak: not all was copied: {}", copied.stderr);
        }
        for broker in 1..=self.kafka.brokers() {
            let to = folder.join(format!("broker-{broker}.log"));
            std::fs::write(to, self.kafka.log(broker)).expect("a broker's log can be written");
        }
        folder
    }
}

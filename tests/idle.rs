//! Idle is not free: what an archiver in which nothing happens asks of its store, however much lies there, and whatever is away.
//!
//! ```text
//!   topics that went through generations, or lack a leader ─► tidelog run ─► proxy, which counts ─► moto
//! ```

use std::thread;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use object_store::path::Path;
use tidelog::store::Store;

use crate::rig::kafka::{Kafka, KafkaOptions, shared};
use crate::rig::program::Program;
use crate::rig::s3::{Bucket, moto};
use crate::rig::s3_proxy::Proxy;
use crate::rig::topics::{Codec, Message};
use crate::rig::{unique, wait_until};
use crate::site::{STOP, Settings, Site};
use crate::store_faults::store_with;

const MINUTE: Duration = Duration::from_secs(60);

/// An archiver's place in a bucket, whose requests are counted.
struct Counted {
    bucket: Bucket,
    proxy: Proxy,
    site: Site,
}

/// What was asked of the store.
#[derive(Debug)]
struct Asked {
    writes: usize,
    /// Objects that were read, and listings.
    reads: usize,
    /// Of them those about chains.
    of_chains: usize,
}

impl Counted {
    fn new(kafka: &Kafka, topics: &[&str]) -> Counted {
        let (mut bucket, site) = (moto(), Site::new(&kafka.bootstrap(), &Settings { topics, ..Settings::default() }));
        let proxy = Proxy::before(&mut bucket);
        site.archive_in(&bucket);
        Counted { bucket, proxy, site }
    }

    fn asked(&self) -> Asked {
        Asked {
            writes: self.proxy.came("^(PUT|POST|DELETE) "),
            reads: self.proxy.came("^(GET|HEAD) "),
            of_chains: self.proxy.came("^(GET|HEAD) .*manifest"),
        }
    }

    /// What is asked in a minute in which nobody else asks.
    fn in_a_minute(&self, program: &mut Program) -> Asked {
        let (before, start) = (self.asked(), Instant::now());
        while start.elapsed() < MINUTE {
            program.assert_running();
            thread::sleep(Duration::from_millis(500));
        }
        let now = self.asked();
        let asked = Asked {
            writes: now.writes - before.writes,
            reads: now.reads - before.reads,
            of_chains: now.of_chains - before.of_chains,
        };
        eprintln!("in a minute: {asked:?}");
        asked
    }

    /// Waits until a topic is complete through a time.
    fn wait_complete(&self, topic: &str, through: DateTime<Utc>, program: &mut Program) {
        wait_until(&format!("{topic} to be complete through {through}"), 3 * MINUTE, || {
            program.assert_running();
            let known =
                self.site.ls(topic).last().and_then(|stream| stream["complete_through"].as_str().map(str::to_owned));
            known.is_some_and(|known| DateTime::parse_from_rfc3339(&known).expect("RFC 3339") >= through)
        });
    }

    /// All that is claimed of topics.
    fn coverage(&self) -> String {
        let store: Store = store_with(&self.bucket, &[]);
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let mut text = String::new();
            for object in store.list(&Path::from("archive/coverage/kafka")).await.expect("the folder") {
                let bytes = store.get(&object.location).await.expect("an answer").expect("an object");
                text += std::str::from_utf8(&bytes).expect("text");
            }
            text
        })
    }
}

fn messages(count: i32, partitions: i32) -> Vec<Message> {
    (0..count).map(|n| Message::new(n % partitions, "key", &format!("record {n}"))).collect()
}

#[test]
fn an_idle_minute_costs_the_same_after_topics_went_through_many_generations() {
    let (kafka, steady) = (shared(), unique("steady"));
    let ended = [0, 1, 2, 3].map(|n| unique(&format!("ended-{n}")));
    let topics: Vec<&str> = [&steady].into_iter().chain(&ended).map(String::as_str).collect();
    kafka.create_topic(&steady, 3, &[]);
    kafka.produce(&steady, Codec::None, &messages(30, 3));
    let counted = Counted::new(kafka, &topics);
    let mut program = counted.site.start();
    for generation in 0..5 {
        for topic in &ended {
            kafka.create_topic(topic, 3, &[]);
            kafka.produce(topic, Codec::None, &messages(30, 3));
        }
        wait_until(&format!("generation {generation} to be archived"), 3 * MINUTE, || {
            program.assert_running();
            ended.iter().all(|topic| {
                let streams = counted.site.ls(topic);
                streams.len() > generation && streams[generation]["records"] == 30
            })
        });
        ended.iter().for_each(|topic| kafka.delete_topic(topic));
    }
    // The group has let go of what is gone.
    counted.wait_complete(&steady, tidelog::time::now() + TimeDelta::seconds(15), &mut program);
    let asked = counted.in_a_minute(&mut program);
    // As of an archive in which no generation has ended (complete::an_idle_archiver…); the minute may begin just before a write.
    assert!(asked.writes <= 5 && asked.reads <= 8, "{asked:?}");
    counted.wait_complete(&steady, tidelog::time::now() - TimeDelta::seconds(22), &mut program);
    let claimed = counted.coverage();
    assert!(claimed.contains(&steady), "{claimed}");
    for topic in &ended {
        for generation in 0..4 {
            assert!(
                !claimed.contains(&format!("{topic}.{generation}")),
                "an ended generation is written on: {claimed}"
            );
        }
    }
    program.terminate(STOP);
}

#[test]
fn a_partition_without_a_leader_costs_the_store_nothing() {
    let kafka = Kafka::start(KafkaOptions { brokers: 3, ..KafkaOptions::default() });
    let (split, fresh) = (unique("split"), unique("fresh"));
    let whole: Vec<String> = (0..12).map(|n| unique(&format!("whole-{n}"))).collect();
    let topics: Vec<&str> = [&split, &fresh].into_iter().chain(&whole).map(String::as_str).collect();
    let create = |topic: &str, brokers: &[i32]| {
        kafka.create_topic_on(topic, brokers);
        kafka.produce(topic, Codec::None, &messages(20, i32::try_from(brokers.len()).expect("few")));
    };
    whole.iter().for_each(|topic| create(topic, &[1]));
    create(&split, &[1, 3]);
    let counted = Counted::new(&kafka, &topics);
    counted.site.archive(&kafka, &topics.iter().copied().filter(|topic| *topic != fresh).collect::<Vec<_>>());
    // Of one topic a partition is archived in part, of the other one nothing is known of it.
    create(&fresh, &[1, 3]);
    kafka.stop(3);
    let mut program = counted.site.start();
    counted.wait_complete(&whole[0], tidelog::time::now() + TimeDelta::seconds(10), &mut program);
    wait_until("the partition that has a leader", MINUTE, || counted.site.ends(&fresh) == [(0, 10)].into());
    let asked = counted.in_a_minute(&mut program);
    assert!(asked.writes <= 5 && asked.reads <= 8, "{asked:?}");
    assert!(asked.of_chains <= 4, "the archive is looked at although no broker has told anything new: {asked:?}");
    assert!(program.output().contains("assigned partitions cannot be read yet"), "{}", program.output());
    kafka.restart(3);
    counted.site.wait_archived(&kafka, &topics, &mut [&mut program]);
    counted.wait_complete(&fresh, tidelog::time::now(), &mut program);
    program.terminate(STOP);
}

//! Topics that become others under the same name: deleted and created again with more or fewer partitions, cut by unclean
//! elections, while archivers run, are frozen, or are away. Every record that came is in its generation once, no partition is
//! left behind, and what was read before a fault is never lost to a question about it.

use std::time::Duration;

use serde_json::json;

use crate::http::site_with_listener;
use crate::rig::http::Server;
use crate::rig::kafka::{Kafka, KafkaOptions, shared};
use crate::rig::program::Program;
use crate::rig::topics::{Codec, Message, Record};
use crate::rig::{unique, wait_until};
use crate::site::{STOP, Settings, Site, ends};

const SOON: Duration = Duration::from_secs(60);

fn numbered(numbers: std::ops::Range<i32>, partitions: i32) -> Vec<Message> {
    numbers.map(|n| Message::new(n % partitions, &format!("key-{}", n % 100), &format!("record {n}"))).collect()
}

fn produce(kafka: &Kafka, topic: &str, numbers: std::ops::Range<i32>, partitions: i32) {
    kafka.produce(topic, Codec::None, &numbered(numbers, partitions));
}

fn wait_said(program: &mut Program, words: &str) {
    wait_until(&format!("the program to say {words:?}"), SOON, || {
        program.assert_running();
        program.output().contains(words)
    });
}

/// Waits until the archive has what the topic holds now, in that generation.
fn wait_generation(site: &Site, kafka: &Kafka, topic: &str, generation: u64, programs: &mut [&mut Program]) {
    let wanted = kafka.watermarks(topic);
    let has_all = || {
        programs.iter_mut().for_each(|program| program.assert_running());
        site.ls(topic).pop().is_some_and(|stream| {
            let ends = ends(&stream);
            let has = |(partition, (first, end)): (i32, &(i64, i64))| first == end || ends.get(&partition) >= Some(end);
            stream["generation"] == generation && (0..).zip(&wanted).all(has)
        })
    };
    wait_until(&format!("generation {generation} of {topic} to have {wanted:?}"), SOON, has_all);
}

fn start_of(site: &Site, topic: &str, partition: i64) -> i64 {
    let newest = site.ls(topic).pop().expect("the topic is archived");
    let partitions = newest["partitions"].as_array().expect("partitions").clone();
    let one = partitions.iter().find(|one| one["partition"] == partition).expect("the partition is archived");
    one["start"].as_i64().expect("an offset")
}

// ---- created again

/// Deletes the topic and creates it again at once with other partitions, while `running` archivers look at their topics
/// every two seconds.
fn created_again(name: &str, before: i32, after: i32, running: usize) {
    let (kafka, topic) = (shared(), unique(name));
    kafka.create_topic(&topic, before, &[]);
    produce(kafka, &topic, 0..300, before);
    let old = kafka.consume_all(&topic);
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic], ..Settings::default() });
    site.reconfigure("interval.ms\" = \"1000\"", "interval.ms\" = \"2000\"");
    let mut programs: Vec<Program> = (0..running).map(|_| site.start()).collect();
    wait_generation(&site, kafka, &topic, 0, &mut programs.iter_mut().collect::<Vec<_>>());
    kafka.delete_topic(&topic);
    kafka.create_topic(&topic, after, &[]);
    produce(kafka, &topic, 10_000..10_600, after);
    let new = kafka.consume_all(&topic);
    wait_generation(&site, kafka, &topic, 1, &mut programs.iter_mut().collect::<Vec<_>>());
    produce(kafka, &topic, 20_000..20_100, after);
    wait_generation(&site, kafka, &topic, 1, &mut programs.iter_mut().collect::<Vec<_>>());
    programs.into_iter().for_each(|program| program.terminate(STOP));
    site.assert_sound();
    site.assert_holds(&topic, 0, &old);
    let mut all = kafka.consume_all(&topic);
    assert!(new.iter().all(|record| all.contains(record)));
    all.sort_by_key(|record| (record.partition, record.offset));
    site.assert_holds(&topic, 1, &all);
}

#[test]
fn a_topic_made_again_with_more_partitions_is_archived_whole() {
    created_again("wider", 3, 6, 1);
}

#[test]
fn a_topic_made_again_with_fewer_partitions_is_archived_whole() {
    created_again("narrower", 6, 2, 1);
}

#[test]
fn two_archivers_take_over_a_topic_made_again_with_more_partitions() {
    created_again("shared-wider", 2, 8, 2);
}

/// The topic is another one again before the first change has been seen through.
#[test]
fn a_topic_made_again_three_times_in_a_row_ends_with_every_partition_read() {
    let (kafka, topic) = (shared(), unique("thrice"));
    kafka.create_topic(&topic, 2, &[]);
    produce(kafka, &topic, 0..100, 2);
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic], ..Settings::default() });
    let mut program = site.start();
    wait_generation(&site, kafka, &topic, 0, &mut [&mut program]);
    for partitions in [5, 1, 4] {
        kafka.delete_topic(&topic);
        kafka.create_topic(&topic, partitions, &[]);
        produce(kafka, &topic, 0..400, partitions);
    }
    site.wait_archived(kafka, &[&topic], &mut [&mut program]);
    let newest = u32::try_from(site.ls(&topic).len()).expect("few") - 1;
    program.terminate(STOP);
    site.assert_sound();
    site.assert_holds(&topic, newest, &kafka.consume_all(&topic));
}

// ---- unclean elections

/// Three brokers; the topic's partitions lie on brokers 1 and 2, and either may lead them alone.
struct Cluster {
    kafka: Kafka,
    topic: String,
    site: Site,
    partitions: i32,
}

impl Cluster {
    fn new(name: &str, partitions: i32) -> Cluster {
        let kafka = Kafka::start(KafkaOptions { brokers: 3, ..KafkaOptions::default() });
        let topic = unique(name);
        let replicas: Vec<&[i32]> = (0..partitions).map(|_| &[1, 2][..]).collect();
        let configs = [("unclean.leader.election.enable", "true"), ("min.insync.replicas", "1")];
        kafka.create_topic_assigned(&topic, &replicas, &configs);
        let properties = [("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "1000")];
        let settings = Settings { topics: &[&topic], properties: &properties, ..Settings::default() };
        let site = Site::new(&kafka.bootstrap(), &settings);
        Cluster { kafka, topic, site, partitions }
    }

    fn produce(&self, numbers: std::ops::Range<i32>) {
        produce(&self.kafka, &self.topic, numbers, self.partitions);
    }

    /// Broker 2 misses what comes now.
    fn leave_2_behind(&self) {
        self.kafka.stop(2);
    }

    /// Broker 1 dies, and broker 2 leads with the log that it has; broker 1 comes back and follows.
    fn elect_2(&self) {
        self.kafka.kill(1);
        self.kafka.restart(2);
        self.wait_led();
        self.kafka.restart(1);
        self.wait_led();
    }

    fn wait_led(&self) {
        wait_until("a leader of each partition", SOON, || self.kafka.partitions(&self.topic) == Some(self.partitions));
    }

    fn all(&self) -> Vec<Record> {
        self.kafka.consume_all(&self.topic)
    }
}

fn from(records: &[Record], partition: i32, offset: i64) -> impl Iterator<Item = Record> + '_ {
    records.iter().filter(move |record| record.partition == partition && record.offset >= offset).cloned()
}

/// An archiver that runs sees the cut; the records that only the archive has stay, and the new log's are all there.
#[test]
fn records_lost_by_an_unclean_election_stay_and_the_new_log_is_archived_from_where_it_left() {
    let cluster = Cluster::new("unclean", 1);
    let Cluster { kafka, topic, site, .. } = &cluster;
    cluster.produce(0..100);
    let mut program = site.start();
    wait_generation(site, kafka, topic, 0, &mut [&mut program]);
    cluster.leave_2_behind();
    cluster.produce(100..200);
    wait_generation(site, kafka, topic, 0, &mut [&mut program]);
    let old = cluster.all();
    cluster.elect_2();
    cluster.produce(1000..1250);
    wait_generation(site, kafka, topic, 1, &mut [&mut program]);
    program.terminate(STOP);
    let new = cluster.all();
    assert_eq!((old.len(), new.len()), (200, 350));
    site.assert_sound();
    site.assert_holds(topic, 0, &old);
    assert_eq!(start_of(site, topic, 0), 100, "what both logs have does not come again");
    site.assert_holds(topic, 1, &from(&new, 0, 100).collect::<Vec<_>>());
}

// ---- questions

/// The next offset that the archiver reads of a partition.
fn received(server: &Server, topic: &str, partition: usize) -> Option<i64> {
    let answer = Some(server).filter(|server| server.is_up())?.get(&format!("/api/streams/{topic}"));
    Some(answer).filter(|answer| answer.status == 200)?.json()["partitions"][partition]["next"].as_i64()
}

/// Records wait in memory while the process is frozen, and the broker removes some of those that follow.
#[test]
fn what_was_read_before_retention_struck_is_archived_and_the_gap_begins_behind_it() {
    let (kafka, topic) = (shared(), unique("overtaken"));
    kafka.create_topic(&topic, 1, &[]);
    let settings = Settings { topics: &[&topic], max_age: "60s", ..Settings::default() };
    let (site, server) = site_with_listener(kafka, &settings, "");
    let mut program = site.start();
    wait_said(&mut program, "partitions assigned");
    produce(kafka, &topic, 0..100, 1);
    wait_until("100 records in memory", SOON, || received(&server, &topic, 0) == Some(100));
    program.freeze();
    produce(kafka, &topic, 100..200, 1);
    let all = kafka.consume_all(&topic);
    kafka.delete_records(&topic, 0, 150);
    program.thaw();
    wait_said(&mut program, "the gap is recorded");
    wait_until("what is left to be read", SOON, || received(&server, &topic, 0) == Some(200));
    program.terminate(STOP);
    let gap = json!({ "partition": 0, "start": 100, "end": 150, "reason": "broker_retention" });
    assert_eq!(site.ls(&topic)[0]["gaps"], json!([gap]));
    site.assert_sound();
    let held: Vec<Record> = all.into_iter().filter(|record| !(100..150).contains(&record.offset)).collect();
    site.assert_holds(&topic, 0, &held);
}

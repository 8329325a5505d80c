//! Topics that become others under the same name: deleted and created again with more or fewer partitions, cut by unclean
//! elections, while archivers run, are frozen, or are away. Every record that came is in its generation once, no partition is
//! left behind, and what was read before a fault is never lost to a question about it.

use std::cell::RefCell;
use std::time::Duration;

use serde_json::{Value, json};

use crate::http::site_with_listener;
use crate::rig::http::Server;
use crate::rig::kafka::{Kafka, KafkaOptions, free_port, shared};
use crate::rig::program::Program;
use crate::rig::topics::{Codec, End, Message, Record};
use crate::rig::{unique, wait_or_tell, wait_until};
use crate::site::{STOP, Settings, Site, ends};

const SOON: Duration = Duration::from_secs(180);

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

/// What is archived instead of what was waited for, and what the archivers said.
fn there_is(site: &Site, topic: &str, programs: &[&mut Program]) -> String {
    let said: Vec<String> = programs.iter().map(|program| program.output()).collect();
    format!("ls: {:#?}\n{}", site.ls(topic), said.join("\n---\n"))
}

/// Waits until the archive has what the topic holds now, in that generation.
fn wait_generation(site: &Site, kafka: &Kafka, topic: &str, generation: u64, programs: &mut [&mut Program]) {
    let wanted = kafka.watermarks(topic);
    let has_all = |stream: &Value| {
        let ends = ends(stream);
        let has = |(partition, (first, end)): (i32, &(i64, i64))| first == end || ends.get(&partition) >= Some(end);
        stream["generation"] == generation && (0..).zip(&wanted).all(has)
    };
    let programs = RefCell::new(programs);
    let there = || {
        programs.borrow_mut().iter_mut().for_each(|program| program.assert_running());
        site.ls(topic).pop().filter(has_all)
    };
    wait_or_tell(&format!("generation {generation} of {topic} to have {wanted:?}"), SOON, there, || {
        there_is(site, topic, &programs.borrow())
    });
}

/// Waits until two generations or more have what the topic held, each partition to its end in one of them.
fn wait_archived(site: &Site, topic: &str, wanted: &[(i64, i64)], programs: &mut [&mut Program]) {
    let programs = RefCell::new(programs);
    let there = || {
        programs.borrow_mut().iter_mut().for_each(|program| program.assert_running());
        let all: Vec<_> = site.ls(topic).iter().map(ends).collect();
        let has = |(partition, (_, end)): (i32, &(i64, i64))| all.iter().any(|ends| ends.get(&partition) >= Some(end));
        (all.len() > 1 && (0..).zip(wanted).all(has)).then_some(())
    };
    wait_or_tell(&format!("{wanted:?} of {topic} in two generations"), SOON, there, || {
        there_is(site, topic, &programs.borrow())
    });
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

/// Its leader's epoch begins anew, and librdkafka takes the new log's for outdated: it reads nothing of it until the client is
/// replaced.
#[test]
fn a_topic_made_again_after_an_election_is_read_although_its_epochs_begin_anew() {
    let cluster = Cluster::new("epochs-anew", 1, 0, "500ms");
    let (kafka, topic) = (&cluster.kafka, &cluster.topic);
    cluster.produce(0..100);
    let mut program = cluster.site.start();
    cluster.wait(0, &mut [&mut program]);
    cluster.leave_2_behind();
    kafka.restart(2);
    wait_until("broker 2 to follow", SOON, || kafka.in_sync(topic));
    kafka.stop(1);
    cluster.wait_led();
    cluster.produce(100..200);
    cluster.wait(0, &mut [&mut program]);
    kafka.restart(1);
    let old = cluster.all();
    // It does not see the topic gone.
    program.freeze();
    kafka.delete_topic(topic);
    kafka.create_topic_assigned(topic, &[&[1, 2]], &[]);
    program.thaw();
    cluster.produce(1_000..1_150);
    cluster.wait(1, &mut [&mut program]);
    program.terminate(STOP);
    cluster.site.assert_sound();
    cluster.site.assert_holds(topic, 0, &old);
    cluster.site.assert_holds(topic, 1, &cluster.all());
}

// ---- unclean elections

/// Three brokers. Partitions lie on brokers 1 and 2, and either may lead them alone; `safe` ones behind them on broker 3, to which
/// nothing happens.
pub(crate) struct Cluster {
    kafka: Kafka,
    pub(crate) topic: String,
    pub(crate) site: Site,
    server: Server,
    partitions: i32,
}

impl Cluster {
    pub(crate) fn new(name: &str, cut: usize, safe: usize, max_age: &str) -> Cluster {
        Cluster::led_by(&[1, 2], name, cut, safe, max_age)
    }

    /// The first of `brokers`, which are 1 and 2, leads what is cut.
    fn led_by(brokers: &[i32; 2], name: &str, cut: usize, safe: usize, max_age: &str) -> Cluster {
        let kafka = Kafka::start(KafkaOptions { brokers: 3, ..KafkaOptions::default() });
        let topic = unique(name);
        let mut replicas: Vec<&[i32]> = vec![brokers; cut];
        replicas.extend(vec![&[3, 1][..]; safe]);
        let configs = [("unclean.leader.election.enable", "true"), ("min.insync.replicas", "1")];
        kafka.create_topic_assigned(&topic, &replicas, &configs);
        let properties = [("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "1000")];
        let settings = Settings { topics: &[&topic], properties: &properties, max_age, ..Settings::default() };
        let (site, server) = site_with_listener(&kafka, &settings, "");
        Cluster { kafka, topic, site, server, partitions: i32::try_from(replicas.len()).expect("few") }
    }

    pub(crate) fn produce(&self, numbers: std::ops::Range<i32>) {
        produce(&self.kafka, &self.topic, numbers, self.partitions);
    }

    /// Two archivers that have partitions each, and have archived 400 records.
    fn two_archivers(&self) -> [Program; 2] {
        self.produce(0..400);
        let mut one = self.site.start();
        wait_until("the first to have read its configuration", SOON, || self.server.is_up());
        self.site.reconfigure(&self.server.address, &format!("127.0.0.1:{}", free_port()));
        let mut two = self.site.start();
        wait_said(&mut two, "partitions assigned");
        self.wait(0, &mut [&mut one, &mut two]);
        [one, two]
    }

    /// Broker 2 misses what comes now.
    pub(crate) fn leave_2_behind(&self) {
        self.kafka.stop(2);
        self.wait_led();
    }

    /// Broker 1 dies, and broker 2 leads with the log that it has; broker 1 comes back and follows.
    pub(crate) fn elect_2(&self) {
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

    /// Waits until an archiver has read each partition up to there.
    fn wait_received(&self, next: i64) {
        let all = |partitions: std::ops::Range<usize>| {
            partitions.into_iter().all(|partition| received(&self.server, &self.topic, partition) == Some(next))
        };
        wait_until("records in memory", SOON, || all(0..usize::try_from(self.partitions).expect("few")));
    }

    /// Waits until an archiver has read to the end of each partition, markers included, and all of it is in the archive.
    fn wait_ended(&self, program: &mut Program) {
        wait_generation(&self.site, &self.kafka, &self.topic, 0, &mut [program]);
    }

    pub(crate) fn wait(&self, generation: u64, programs: &mut [&mut Program]) {
        wait_generation(&self.site, &self.kafka, &self.topic, generation, programs);
    }

    /// The first generation has `old`, and the second one what the topic holds from these offsets on, by partition.
    fn assert_generations(&self, old: &[Record], starts: &[i64]) {
        self.site.assert_sound();
        self.site.assert_holds(&self.topic, 0, old);
        let mut new = self.all();
        let start = |record: &Record| starts[usize::try_from(record.partition).expect("a partition")];
        new.retain(|record| record.offset >= start(record));
        self.site.assert_holds(&self.topic, 1, &new);
    }
}

/// An archiver that runs sees the cut; the records that only the archive has stay, and the new log's are all there.
#[test]
fn records_lost_by_an_unclean_election_stay_and_the_new_log_is_archived_from_where_it_left() {
    let cluster = Cluster::new("unclean", 1, 0, "500ms");
    cluster.produce(0..100);
    let mut program = cluster.site.start();
    cluster.wait(0, &mut [&mut program]);
    cluster.leave_2_behind();
    cluster.produce(100..200);
    cluster.wait(0, &mut [&mut program]);
    let old = cluster.all();
    cluster.elect_2();
    cluster.produce(1000..1250);
    cluster.wait(1, &mut [&mut program]);
    program.terminate(STOP);
    assert_eq!((old.len(), cluster.all().len()), (200, 350));
    cluster.assert_generations(&old, &[100]);
}

/// Nobody looked while the log was cut and grew beyond the archived position again: only the leader's epoch tells. The election
/// cuts three partitions at once.
#[test]
fn an_archiver_that_was_away_sees_every_partition_that_an_unclean_election_cut() {
    let cluster = Cluster::new("away", 3, 1, "500ms");
    cluster.produce(0..400);
    let mut program = cluster.site.start();
    cluster.wait(0, &mut [&mut program]);
    cluster.leave_2_behind();
    cluster.produce(400..800);
    cluster.wait(0, &mut [&mut program]);
    program.terminate(STOP);
    let old = cluster.all();
    cluster.elect_2();
    cluster.produce(1000..2000);
    let mut program = cluster.site.start();
    // What comes of the partition that is not cut may be archived before the cuts are found, and then belongs to the first
    // generation.
    let wanted = cluster.kafka.watermarks(&cluster.topic);
    wait_archived(&cluster.site, &cluster.topic, &wanted, &mut [&mut program]);
    program.terminate(STOP);
    let streams = cluster.site.ls(&cluster.topic);
    assert_eq!(streams.len(), 2, "one election, one generation");
    let left = ends(&streams[0])[&3];
    let lost = old.into_iter().filter(|record| record.partition < 3);
    let kept = cluster.all().into_iter().filter(|record| record.partition == 3 && record.offset < left);
    cluster.assert_generations(&lost.chain(kept).collect::<Vec<_>>(), &[100, 100, 100, left]);
}

/// A process that was frozen past its session reads on from the archive like one that was restarted.
#[test]
fn an_archiver_whose_session_timed_out_sees_the_cut() {
    let cluster = Cluster::new("frozen", 1, 0, "500ms");
    cluster.produce(0..100);
    let mut program = cluster.site.start();
    cluster.wait(0, &mut [&mut program]);
    cluster.leave_2_behind();
    cluster.produce(100..200);
    cluster.wait(0, &mut [&mut program]);
    let old = cluster.all();
    program.freeze();
    cluster.elect_2();
    cluster.produce(1000..1250);
    let members = || cluster.kafka.members(&cluster.site.group);
    wait_until("the group to give up the frozen member", SOON, || members() == Some(0));
    program.thaw();
    cluster.wait(1, &mut [&mut program]);
    program.terminate(STOP);
    cluster.assert_generations(&old, &[100]);
}

/// The archiver that sees the cut had nothing of the partition for long: what it knew of it ends far below.
#[test]
fn an_archiver_that_takes_over_a_cut_partition_knows_what_others_have_archived_of_it() {
    let cluster = Cluster::new("taken-over", 1, 3, "500ms");
    let [mut one, mut two] = cluster.two_archivers();
    // Each learns of the other's when both have committed.
    cluster.produce(400..800);
    cluster.wait(0, &mut [&mut one, &mut two]);
    let with_0 = |server: &Server| received(server, &cluster.topic, 0).is_some();
    let (mut stays, mut goes) = if with_0(&cluster.server) { (two, one) } else { (one, two) };
    produce(&cluster.kafka, &cluster.topic, 800..900, 1);
    wait_until("the rest of it to be archived", SOON, || ends(&cluster.site.ls(&cluster.topic)[0])[&0] == 300);
    cluster.leave_2_behind();
    produce(&cluster.kafka, &cluster.topic, 900..1000, 1);
    wait_until("what will be lost to be archived", SOON, || ends(&cluster.site.ls(&cluster.topic)[0])[&0] == 400);
    let old = cluster.all();
    // Nobody reads it until the group has missed the one that does.
    goes.freeze();
    cluster.elect_2();
    goes.kill();
    cluster.produce(2000..2400);
    cluster.wait(1, &mut [&mut stays]);
    stays.terminate(STOP);
    cluster.assert_generations(&old, &[300, 200, 200, 200]);
}

/// A segment holds records that both logs have, and behind them records of an epoch that only the lost one had: the cut is where
/// the epoch begins, not where the segment does.
#[test]
fn a_cut_within_a_segment_is_where_the_epoch_of_the_lost_log_begins() {
    for format in ["parquet", "avro"] {
        let cluster = Cluster::led_by(&[2, 1], "within", 2, 0, "60s");
        cluster.site.reconfigure("format = \"parquet\"", &format!("format = {format:?}"));
        cluster.produce(0..200);
        let program = cluster.site.start();
        cluster.wait_received(100);
        cluster.leave_2_behind();
        cluster.produce(200..400);
        cluster.wait_received(200);
        program.terminate(STOP);
        let old = cluster.all();
        cluster.elect_2();
        cluster.produce(1000..1500);
        cluster.site.reconfigure("60s", "500ms");
        let mut program = cluster.site.start();
        cluster.wait(1, &mut [&mut program]);
        program.terminate(STOP);
        cluster.assert_generations(&old, &[100, 100]);
    }
}

/// What only memory has when the log is cut is archived, too: the brokers do not have it any more.
#[test]
fn records_in_memory_that_an_unclean_election_took_from_the_brokers_are_archived() {
    let cluster = Cluster::new("memory", 2, 0, "60s");
    cluster.produce(0..200);
    let mut program = cluster.site.start();
    cluster.wait_received(100);
    cluster.leave_2_behind();
    cluster.produce(200..400);
    cluster.wait_received(200);
    let old = cluster.all();
    cluster.elect_2();
    cluster.produce(1000..1500);
    wait_said(&mut program, "goes on in another generation");
    program.terminate(STOP);
    cluster.site.reconfigure("60s", "500ms");
    let mut program = cluster.site.start();
    cluster.wait(1, &mut [&mut program]);
    program.terminate(STOP);
    cluster.assert_generations(&old, &[100, 100]);
}

/// One archiver finds the cut in its partition and ends the generation; the other one, which archives partitions that nothing
/// happened to, goes on in the next generation exactly where the ended one ends.
#[test]
fn an_archiver_of_other_partitions_is_fenced_and_follows_into_the_next_generation() {
    let cluster = Cluster::new("fenced", 1, 3, "500ms");
    let [mut one, mut two] = cluster.two_archivers();
    cluster.leave_2_behind();
    cluster.produce(400..800);
    cluster.wait(0, &mut [&mut one, &mut two]);
    let lost: Vec<Record> = cluster.all().into_iter().filter(|record| record.partition == 0).collect();
    cluster.elect_2();
    for round in 0..10 {
        cluster.produce(1000 + round * 100..1100 + round * 100);
    }
    // What was archived of the others before the cut was found is in the first generation: there may be nothing behind it.
    let wanted = cluster.kafka.watermarks(&cluster.topic);
    wait_archived(&cluster.site, &cluster.topic, &wanted, &mut [&mut one, &mut two]);
    one.terminate(STOP);
    two.terminate(STOP);
    let streams = cluster.site.ls(&cluster.topic);
    assert_eq!(streams.len(), 2, "one election, one generation");
    let left = |partition| ends(&streams[0])[&partition];
    let starts = [100, left(1), left(2), left(3)];
    let mut old: Vec<Record> = cluster.all();
    old.retain(|record| {
        let partition = usize::try_from(record.partition).expect("a partition");
        partition > 0 && record.offset < starts[partition]
    });
    let old: Vec<Record> = lost.into_iter().chain(old).collect();
    cluster.assert_generations(&old, &starts);
}

/// Nothing tells an archiver whose partitions are idle that the generation has ended, but what the other one claims: nobody else
/// could say up to when the topic is complete.
#[test]
fn an_archiver_of_idle_partitions_follows_into_the_next_generation() {
    let cluster = Cluster::new("idle", 1, 3, "500ms");
    let [mut one, mut two] = cluster.two_archivers();
    cluster.leave_2_behind();
    produce(&cluster.kafka, &cluster.topic, 400..500, 1);
    cluster.wait(0, &mut [&mut one, &mut two]);
    cluster.elect_2();
    produce(&cluster.kafka, &cluster.topic, 1000..1050, 1);
    let produced = tidelog::time::now();
    let newest = || cluster.site.ls(&cluster.topic).pop().filter(|stream| stream["generation"] == 1);
    let complete = || {
        [&mut one, &mut two].into_iter().for_each(|program| program.assert_running());
        let through = newest()?["complete_through"].as_str().map(chrono::DateTime::parse_from_rfc3339)?;
        (through.expect("RFC 3339") > produced).then_some(())
    };
    let there_is = || format!("{:#?}", cluster.site.ls(&cluster.topic));
    wait_or_tell("the next generation to be complete", SOON, complete, there_is);
    assert_eq!(ends(&newest().expect("it has begun"))[&0], 150);
    one.terminate(STOP);
    two.terminate(STOP);
    cluster.site.assert_sound();
}

/// Markers of transactions lie behind the last record, and another leader may have written them. What retention removed cannot
/// be asked about. None of it is a cut.
#[test]
fn clean_elections_and_markers_and_retention_are_no_cut() {
    let cluster = Cluster::new("clean", 1, 1, "500ms");
    let Cluster { kafka, topic, site, .. } = &cluster;
    let mut all = Vec::new();
    for round in 0..4 {
        kafka.produce_transaction(topic, &numbered(round * 100..round * 100 + 50, 2), End::Commit);
        kafka.produce_transaction(topic, &numbered(round * 100 + 50..round * 100 + 60, 2), End::Abort);
        let mut program = site.start();
        cluster.wait_ended(&mut program);
        // Every other time nobody looks while the leader changes.
        let mut running = Some(program);
        if round % 2 == 0 {
            running.take().expect("it runs").terminate(STOP);
        }
        let broker = usize::try_from(round % 2 + 1).expect("a broker");
        kafka.stop(broker);
        cluster.wait_led();
        kafka.restart(broker);
        wait_until("all replicas to be in sync", SOON, || kafka.in_sync(topic));
        if let Some(mut program) = running {
            kafka.produce_transaction(topic, &numbered(round * 100 + 60..round * 100 + 80, 2), End::Commit);
            cluster.wait_ended(&mut program);
            program.terminate(STOP);
        }
        let held = cluster.all();
        all.extend(held.into_iter().filter(|record| !all.contains(record)).collect::<Vec<_>>());
        if round == 2 {
            kafka.delete_records(topic, 0, kafka.watermarks(topic)[0].1);
        }
    }
    all.sort_by_key(|record| (record.partition, record.offset));
    assert_eq!(site.ls(topic).len(), 1, "a generation began without a reason");
    assert_eq!(site.ls(topic)[0]["gaps"], json!([]));
    site.assert_sound();
    site.assert_holds(topic, 0, &all);
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

/// The store is away while the topic is made again: what was read of the old one waits for it, and the new one is not begun
/// before.
#[test]
fn what_was_read_of_a_topic_that_is_made_again_while_the_store_is_away_is_archived() {
    let (kafka, topic) = (shared(), unique("store-away"));
    kafka.create_topic(&topic, 1, &[]);
    let settings = Settings { topics: &[&topic], max_age: "60s", ..Settings::default() };
    let (site, server) = site_with_listener(kafka, &settings, "");
    let mut program = site.start();
    wait_said(&mut program, "partitions assigned");
    produce(kafka, &topic, 0..100, 1);
    wait_until("100 records in memory", SOON, || received(&server, &topic, 0) == Some(100));
    let old = kafka.consume_all(&topic);
    let [archive, away] = ["archive", "away"].map(|name| site.home().path().join(name));
    std::fs::rename(&archive, &away).expect("the archive can be moved");
    kafka.delete_topic(&topic);
    kafka.create_topic(&topic, 3, &[]);
    produce(kafka, &topic, 10_000..10_090, 3);
    wait_said(&mut program, "is not the one that was opened");
    std::fs::rename(&away, &archive).expect("the archive can be brought back");
    wait_until("all of the new topic to be read", SOON, || {
        (0..3).all(|partition| received(&server, &topic, partition) == Some(30))
    });
    program.terminate(STOP);
    site.assert_sound();
    site.assert_holds(&topic, 0, &old);
    site.assert_holds(&topic, 1, &kafka.consume_all(&topic));
}

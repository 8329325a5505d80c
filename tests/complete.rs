//! What is called complete: `COMPLETE TO` of a topic never lies beyond a record that the archive does not have, never
//! stands still where all is archived, and costs next to nothing while nothing happens.
//!
//! ```text
//!   producer ─► topic, growing ─► tidelog run … frozen, killed, several ─► ls ─► every record acknowledged by COMPLETE TO
//!       └─ when was each acknowledged? ───────────────────────────────────────── lies below an archived end
//! ```

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::rig::http::Server;
use crate::rig::kafka::{Kafka, free_port, shared};
use crate::rig::program::Program;
use crate::rig::topics::{Codec, Message};
use crate::rig::{unique, wait_until};
use crate::site::{STOP, Settings, Site, ends};

/// How long something that a round of the archiver finds out may take.
const SOON: Duration = Duration::from_secs(180);

fn time_of(value: &Value) -> Option<DateTime<Utc>> {
    let time = DateTime::parse_from_rfc3339(value.as_str()?).expect("RFC 3339");
    Some(time.with_timezone(&Utc))
}

/// Up to when the present generation of a topic is complete.
fn complete_to(site: &Site, topic: &str) -> Option<DateTime<Utc>> {
    site.ls(topic).last().and_then(|stream| time_of(&stream["complete_through"]))
}

/// Waits until a topic is known to be complete through a time.
fn wait_complete(site: &Site, topic: &str, through: DateTime<Utc>, programs: &mut [&mut Program]) {
    wait_until(&format!("{topic} to be complete through {through}"), SOON, || {
        programs.iter_mut().for_each(|program| program.assert_running());
        complete_to(site, topic).is_some_and(|known| known >= through)
    });
}

fn numbered(partitions: i32, numbers: std::ops::Range<i32>) -> Vec<Message> {
    numbers.map(|n| Message::new(n % partitions, "key", &format!("record {n}"))).collect()
}

/// What a dry run of a replay up to now warns of.
fn warnings(site: &Site, topic: &str) -> String {
    let args =
        ["replay", "--dry-run", "--json", "--from", "-1d", "--to", "now", "--topics", topic, "--rename", "^.*$=x"];
    site.tidelog(&args).expect(0).json()["warnings"].to_string()
}

// ---- partitions that are added

/// Public reports: FLINK-32019 (partitions found later, read from `latest`), kafka_exporter#28 (a partition that nobody reads).
#[test]
fn a_partition_that_nobody_archives_yet_holds_up_what_is_called_complete() {
    let (kafka, topic, other) = (shared(), unique("added"), unique("added-other"));
    kafka.create_topic(&topic, 2, &[]);
    kafka.create_topic(&other, 1, &[]);
    kafka.produce(&topic, Codec::None, &numbered(2, 0..20));
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic, &other], ..Settings::default() });
    site.reconfigure("[kafka.properties]", "start = \"latest\"\n[kafka.properties]");
    // The group learns of new partitions by its leader's look at the topics: here so rarely that it does not.
    site.reconfigure("interval.ms\" = \"1000\"", "interval.ms\" = \"600000\"");
    let mut program = site.start();
    wait_complete(&site, &topic, tidelog::time::now(), &mut [&mut program]);
    kafka.grow_topic(&topic, 4);
    kafka.produce(&topic, Codec::None, &[Message::new(3, "key", "in a partition that nobody reads yet")]);
    let written = tidelog::time::now();
    // Rounds go on for both topics.
    wait_complete(&site, &other, written + TimeDelta::seconds(12), &mut [&mut program]);
    let known = complete_to(&site, &topic);
    assert!(known.is_some_and(|known| known <= written), "complete to {known:?}, and a record of {written} is missing");
    let warned = warnings(&site, &topic);
    assert!(warned.contains("is complete through"), "{warned}");
    program.terminate(STOP);
    let mut program = site.start();
    wait_complete(&site, &topic, tidelog::time::now(), &mut [&mut program]);
    assert_eq!(
        site.ends(&topic).get(&3),
        Some(&1),
        "an added partition is archived from its first record, whatever kafka.start says"
    );
    program.terminate(STOP);
}

/// When each record was acknowledged.
type Acknowledged = Mutex<BTreeMap<String, DateTime<Utc>>>;

/// Feeds single records into partitions `0..count` in turn, and notes when each was acknowledged.
fn feed(kafka: &Kafka, topic: &str, count: &AtomicI32, going: &AtomicBool, acknowledged: &Acknowledged) {
    let new = || kafka.producer(&[("linger.ms", "0")]);
    let (mut producer, mut known) = (new(), 0);
    for n in 0.. {
        if !going.load(Ordering::Relaxed) {
            break;
        }
        let partitions = count.load(Ordering::Relaxed);
        if partitions != std::mem::replace(&mut known, partitions) {
            // The one before would learn of added partitions by and by.
            producer = new();
        }
        let messages: Vec<Message> =
            (0..partitions).map(|p| Message::new(p, "key", &format!("record {n} of {p}"))).collect();
        messages.iter().for_each(|message| producer.send(topic, message));
        producer.flush();
        let now = tidelog::time::now();
        let mut acknowledged = acknowledged.lock().expect("nobody panics with it");
        for message in messages {
            acknowledged.insert(String::from_utf8(message.value.expect("a value")).expect("text"), now);
        }
        drop(acknowledged);
        thread::sleep(Duration::from_millis(30));
    }
}

/// What `ls` said at some moment: up to when the topic is complete, and where its partitions end.
type Sample = (DateTime<Utc>, BTreeMap<i32, i64>);

fn sample(site: &Site, topic: &str) -> Option<Sample> {
    let stream = site.ls(topic).pop()?;
    Some((time_of(&stream["complete_through"])?, ends(&stream)))
}

fn assert_true(kafka: &Kafka, topic: &str, samples: &[Sample], acknowledged: &Acknowledged) {
    let acknowledged = acknowledged.lock().expect("nobody panics with it");
    let mut records = kafka.consume_all(topic);
    assert!(!samples.is_empty() && records.len() == acknowledged.len());
    let text = |value: &Option<Vec<u8>>| String::from_utf8(value.clone().expect("a value")).expect("text");
    records.sort_by_key(|record| (record.partition, record.offset));
    for (complete, ends) in samples {
        for record in &records {
            let at = acknowledged[&text(&record.value)];
            let archived = ends.get(&record.partition).is_some_and(|end| record.offset < *end);
            assert!(
                archived || at > *complete,
                "complete to {complete}, and offset {} of partition {} was there at {at} and is not archived",
                record.offset,
                record.partition
            );
        }
    }
}

/// Two archivers under load: partitions are added, one archiver is frozen until the group has given its partitions away,
/// and wakes again, the other is killed.
#[test]
fn complete_is_never_ahead_of_what_is_archived_while_partitions_are_added_and_archivers_freeze() {
    let (kafka, topic) = (shared(), unique("growing"));
    kafka.create_topic(&topic, 2, &[]);
    let properties = [("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "500")];
    let settings = Settings { topics: &[&topic], max_age: "3s", properties: &properties, ..Settings::default() };
    let site = Site::new(&kafka.bootstrap(), &settings);
    // New partitions are found late, as in production.
    site.reconfigure("interval.ms\" = \"1000\"", "interval.ms\" = \"15000\"");
    let (count, going, acknowledged) = (AtomicI32::new(2), AtomicBool::new(true), Acknowledged::default());
    let mut samples: Vec<Sample> = Vec::new();
    thread::scope(|scope| {
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(false, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&going);
        scope.spawn(|| feed(kafka, &topic, &count, &going, &acknowledged));
        let (mut a, mut b) = (site.start(), site.start());
        let mut watch = |what: &str, until: &mut dyn FnMut(Option<DateTime<Utc>>) -> bool| {
            let start = Instant::now();
            loop {
                let sample = sample(&site, &topic);
                let known = sample.as_ref().map(|(complete, _)| *complete);
                samples.extend(sample);
                if until(known) {
                    break;
                }
                assert!(start.elapsed() < SOON, "waited in vain for {what}; known: {known:?}");
            }
        };
        let begun = tidelog::time::now();
        watch("both archivers", &mut |known| known.is_some_and(|known| known > begun));
        kafka.grow_topic(&topic, 6);
        count.store(6, Ordering::Relaxed);
        let grown = tidelog::time::now() + TimeDelta::seconds(3);
        watch("the added partitions", &mut |known| known.is_some_and(|known| known > grown));
        a.freeze();
        let frozen = tidelog::time::now();
        watch("the other archiver to take over", &mut |known| {
            known.is_some_and(|known| known > frozen + TimeDelta::seconds(5))
        });
        kafka.grow_topic(&topic, 8);
        count.store(8, Ordering::Relaxed);
        a.thaw();
        let woken = tidelog::time::now();
        watch("the archiver that woke", &mut |known| known.is_some_and(|known| known > woken));
        b.assert_running();
        b.kill();
        let killed = tidelog::time::now();
        watch("the one that is left", &mut |known| known.is_some_and(|known| known > killed + TimeDelta::seconds(5)));
        a.terminate(STOP);
    });
    assert_true(kafka, &topic, &samples, &acknowledged);
}

// ---- clocks

/// What a replica with a clock that is an hour ahead would have written, as this program and as earlier ones write it.
#[test]
fn a_claim_from_the_future_is_not_believed_and_goes_away() {
    let (kafka, topic) = (shared(), unique("future"));
    kafka.create_topic(&topic, 1, &[]);
    kafka.produce(&topic, Codec::None, &numbered(1, 0..10));
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic], ..Settings::default() });
    let mut program = site.start();
    wait_complete(&site, &topic, tidelog::time::now(), &mut [&mut program]);
    program.terminate(STOP);
    let stream = format!("kafka/main/{topic}.0");
    let ahead = (tidelog::time::now() + TimeDelta::hours(1)).to_rfc3339_opts(SecondsFormat::Millis, true);
    let earlier = json!({"format": 1, "writer": "ahead1", "at": ahead,
        "streams": {&stream: {"0": {"offset": 10, "complete_through": ahead}}}});
    let present = json!({"format": 1, "writer": "ahead2", "at": ahead, "streams": {},
        "topics": {&stream: {"counts": [{"partitions": 1, "at": ahead}],
                             "claims": [{"complete_through": ahead, "ends": [[0, [10]]]}]}}});
    let folder = site.home().path().join("archive/coverage/kafka/main");
    for claim in [&earlier, &present] {
        let name = claim["writer"].as_str().expect("a name");
        std::fs::write(folder.join(format!("{name}.json")), claim.to_string()).expect("the claim can be written");
        let known = complete_to(&site, &topic);
        assert!(
            known.is_some_and(|known| known <= tidelog::time::now()),
            "complete to {known:?}, which is yet to come: {claim}"
        );
    }
    kafka.produce(&topic, Codec::None, &numbered(1, 10..20));
    assert!(warnings(&site, &topic).contains("is complete through"), "records of the last seconds are missing");
    let mut program = site.start();
    wait_until("the claims from the future to be removed", SOON, || {
        program.assert_running();
        !folder.join("ahead1.json").exists() && !folder.join("ahead2.json").exists()
    });
    wait_complete(&site, &topic, tidelog::time::now(), &mut [&mut program]);
    program.terminate(STOP);
}

// ---- generations

/// Public reports: kafka-lag-exporter#478 (fails for ever after a topic was created again with fewer partitions).
#[test]
fn a_new_generation_with_fewer_partitions_is_known_to_be_complete_without_a_restart() {
    let (kafka, topic, other) = (shared(), unique("fewer"), unique("fewer-other"));
    kafka.create_topic(&topic, 6, &[]);
    kafka.create_topic(&other, 1, &[]);
    let site =
        Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic, &other], max_age: "15s", ..Settings::default() });
    let mut program = site.start();
    wait_complete(&site, &topic, tidelog::time::now(), &mut [&mut program]);
    kafka.produce(&topic, Codec::None, &numbered(6, 0..600));
    // A round asks for the ends of what is not archived yet.
    wait_complete(&site, &other, tidelog::time::now() + TimeDelta::seconds(1), &mut [&mut program]);
    kafka.delete_topic(&topic);
    kafka.create_topic(&topic, 2, &[]);
    kafka.produce(&topic, Codec::None, &numbered(2, 0..10));
    let created = tidelog::time::now();
    wait_until("the new generation to be complete", SOON, || {
        program.assert_running();
        let newest = site.ls(&topic).pop().expect("the topic");
        newest["generation"] == 1 && time_of(&newest["complete_through"]).is_some_and(|known| known > created)
    });
    let object = newest_coverage(&site);
    assert!(!object.contains(&format!("{topic}.0")), "the generation that ended is still written: {object}");
    program.terminate(STOP);
}

/// The coverage object that was written last.
fn newest_coverage(site: &Site) -> String {
    let folder = std::fs::read_dir(site.home().path().join("archive/coverage/kafka/main")).expect("the folder");
    let files = folder.map(|file| file.expect("a file").path());
    let newest = files.max_by_key(|file| std::fs::metadata(file).and_then(|facts| facts.modified()).ok());
    std::fs::read_to_string(newest.expect("a coverage object")).expect("it can be read")
}

// ---- idle

/// The sum of a counter's series of /metrics with these labels.
fn count(server: &Server, operation: &str) -> u64 {
    let text = server.get("/metrics").body;
    let series = format!("tidelog_store_request_seconds_count{{operation=\"{operation}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or(0)
}

#[test]
fn an_idle_archiver_writes_four_objects_a_minute_and_stays_complete() {
    let (kafka, topic) = (shared(), unique("idle"));
    kafka.create_topic(&topic, 200, &[]);
    kafka.produce(&topic, Codec::None, &numbered(200, 0..1000));
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic], ..Settings::default() });
    let port = free_port();
    site.reconfigure("[archive]", &format!("[http]\nlisten = \"127.0.0.1:{port}\"\n[archive]"));
    let server = Server::new(format!("127.0.0.1:{port}"));
    let mut program = site.start();
    site.wait_archived(kafka, &[&topic], &mut [&mut program]);
    wait_complete(&site, &topic, tidelog::time::now(), &mut [&mut program]);
    let written = || ["put", "create", "upload"].map(|operation| count(&server, operation)).iter().sum::<u64>();
    let looked = || ["list", "get", "head"].map(|operation| count(&server, operation)).iter().sum::<u64>();
    let (start, before, looked_before) = (Instant::now(), written(), looked());
    assert!(before > 0, "the metrics count requests");
    let mut behind = TimeDelta::zero();
    while start.elapsed() < Duration::from_secs(60) {
        program.assert_running();
        behind = behind.max(tidelog::time::now() - complete_to(&site, &topic).expect("complete"));
        thread::sleep(Duration::from_millis(500));
    }
    let (written, looked) = (written() - before, looked() - looked_before);
    eprintln!(
        "idle for a minute: {written} objects written, {looked} reads, at most {behind} behind; {}",
        newest_coverage(&site).len()
    );
    // The minute may begin just before a write.
    assert!(written <= 5, "{written} objects were written in an idle minute");
    assert!(looked <= 8, "{looked} requests were made in an idle minute");
    assert!(behind <= TimeDelta::seconds(22), "COMPLETE TO was {behind} behind");
    assert!(newest_coverage(&site).len() < 2_500, "{}", newest_coverage(&site));
    program.terminate(STOP);
}

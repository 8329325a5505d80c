//! What goes wrong in the world: processes that are killed, frozen and replaced, brokers that are away, disks that are full,
//! topics that come, go and come again, records that the broker removes. Whatever it is, in the end every record is in
//! the archive once, every chain is contiguous, and what is lost for good is told.
//!
//! ```text
//!   feed ─► topic ─► tidelog run … killed, frozen, replaced ─► archive ─► cat ─┐
//!                └──────────────────────────────── consumer ──────────────────┴─ equal?
//! ```

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{SecondsFormat, TimeDelta};
use serde_json::json;

use crate::rig::kafka::{Kafka, KafkaOptions, shared};
use crate::rig::program::{self, Home, Program};
use crate::rig::records::Random;
use crate::rig::topics::{Codec, Message, Record};
use crate::rig::{unique, wait_until};
use crate::site::{STOP, Settings, Site, ends};
use crate::wal::may_mount;

/// How long something that is told, or found out by a timeout of a few seconds, may take.
const SOON: Duration = Duration::from_secs(60);

// ---- records that go on coming

/// Feeds 2,000 records a second into a topic while `work` goes on; all of them are in Kafka when it returns.
fn while_feeding<T>(kafka: &Kafka, topic: &str, partitions: i32, work: impl FnOnce() -> T) -> T {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(false, Ordering::Relaxed);
        }
    }
    let going = AtomicBool::new(true);
    thread::scope(|scope| {
        let feed = || {
            let producer = kafka.producer(&[("linger.ms", "5"), ("compression.type", "lz4")]);
            for round in 0.. {
                if !going.load(Ordering::Relaxed) {
                    break;
                }
                for message in numbered(round * 20..round * 20 + 20, partitions) {
                    producer.send(topic, &message);
                }
                thread::sleep(Duration::from_millis(10));
            }
            producer.flush();
        };
        scope.spawn(feed);
        let _stop = Stop(&going);
        work()
    })
}

/// Records that say their number, over the partitions in turn.
fn numbered(numbers: std::ops::Range<i32>, partitions: i32) -> impl Iterator<Item = Message> {
    numbers.map(move |n| Message::new(n % partitions, &format!("key-{}", n % 100), &format!("record {n}")))
}

fn produce(kafka: &Kafka, topic: &str, numbers: std::ops::Range<i32>, partitions: i32) {
    kafka.produce(topic, Codec::Lz4, &numbered(numbers, partitions).collect::<Vec<_>>());
}

/// Nothing lost, nothing twice, nothing wrong.
fn assert_whole(site: &Site, kafka: &Kafka, topic: &str) {
    site.assert_sound();
    let held = kafka.consume_all(topic);
    assert!(!held.is_empty());
    site.assert_holds(topic, 0, &held);
}

/// How many processes have written objects of a topic: the writer is in the object's name.
fn writers(site: &Site, topic: &str) -> usize {
    let writer = |file: &serde_json::Value| {
        let url = file["url"].as_str().expect("a URL").to_owned();
        url.rsplit('-').nth(1).expect("the writer in an object's name").to_owned()
    };
    site.files(topic).iter().map(writer).collect::<BTreeSet<_>>().len()
}

fn wait_said(program: &mut Program, words: &str) {
    wait_until(&format!("the program to say {words:?}"), SOON, || {
        program.assert_running();
        program.output().contains(words)
    });
}

// ---- processes that die

#[test]
fn killed_twenty_times_nothing_is_lost_and_nothing_comes_twice() {
    let (kafka, busy, quiet) = (shared(), unique("killed"), unique("killed-quiet"));
    kafka.create_topic(&busy, 6, &[]);
    kafka.create_topic(&quiet, 2, &[]);
    produce(kafka, &quiet, 0..100, 2);
    // A static member goes on at once after it was killed: kills hit uploads and checkpoints, not the wait for the group.
    let properties = [("group.instance.id", "one"), ("session.timeout.ms", "6000")];
    let settings = Settings { topics: &[&busy, &quiet], properties: &properties, ..Settings::default() };
    let site = Site::new(&kafka.bootstrap(), &settings);
    let mut random = Random::new(20);
    while_feeding(kafka, &busy, 6, || {
        for _ in 0..20 {
            let mut program = site.start();
            thread::sleep(Duration::from_millis(300 + random.below(4000)));
            program.assert_running();
            program.kill();
        }
    });
    site.archive(kafka, &[&busy, &quiet]);
    assert_whole(&site, kafka, &busy);
    assert_whole(&site, kafka, &quiet);
    let writers = writers(&site, &busy);
    assert!(writers >= 5, "only {writers} of 21 processes had a segment in the archive before they were killed");
    let spool = std::fs::read_dir(site.home().path().join("spool")).expect("the spool");
    let left: Vec<_> = spool.flatten().map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "directories of killed processes in the spool: {left:?}");
}

/// One of `members` that runs, by a seeded choice.
fn any_running(members: &[Option<Program>], random: &mut Random) -> usize {
    let running: Vec<usize> = (0..members.len()).filter(|at| members[*at].is_some()).collect();
    running[usize::try_from(random.below(running.len() as u64)).expect("an index")]
}

/// Three places for processes of one group. Each change starts one where none is, or stops or kills one; in the middle one
/// is frozen until the others have archived its partitions, and goes on.
fn members_come_and_go(properties: &[(&str, &str)], changes: usize, seed: u64) {
    let (kafka, topic) = (shared(), unique("members"));
    kafka.create_topic(&topic, 12, &[]);
    let site = Site::new(
        &kafka.bootstrap(),
        &Settings { topics: &[&topic], properties, max_age: "700ms", ..Settings::default() },
    );
    let mut random = Random::new(seed);
    let mut members: Vec<Option<Program>> = vec![Some(site.start()), Some(site.start()), None];
    while_feeding(kafka, &topic, 12, || {
        for change in 0..changes {
            thread::sleep(Duration::from_millis(500 + random.below(2500)));
            for member in members.iter_mut().flatten() {
                member.assert_running();
            }
            if change == changes / 2 {
                for empty in members.iter_mut().filter(|member| member.is_none()) {
                    *empty = Some(site.start());
                }
                let frozen = any_running(&members, &mut random);
                freeze_past_the_session(kafka, &topic, &site, members[frozen].as_mut().expect("it runs"));
                continue;
            }
            let at = usize::try_from(random.below(3)).expect("an index");
            match members[at].take() {
                None => members[at] = Some(site.start()),
                Some(member) if random.below(2) == 0 => member.kill(),
                Some(member) => member.terminate(STOP),
            }
        }
    });
    if members.iter().all(Option::is_none) {
        members[0] = Some(site.start());
    }
    let mut running: Vec<&mut Program> = members.iter_mut().flatten().collect();
    site.wait_archived(kafka, &[&topic], &mut running);
    for member in members.into_iter().flatten() {
        member.terminate(STOP);
    }
    assert_whole(&site, kafka, &topic);
    kafka.delete_topic(&topic);
}

fn freeze_past_the_session(kafka: &Kafka, topic: &str, site: &Site, program: &mut Program) {
    let ends = || kafka.watermarks(topic).into_iter().map(|(_, end)| end).collect::<Vec<_>>();
    let is_before = |left: &[i64], right: &[i64]| left.iter().zip(right).all(|(left, right)| left < right);
    program.freeze();
    let before = ends();
    wait_until("records in every partition", SOON, || is_before(&before, &ends()));
    let wanted = ends();
    wait_until("others to archive the partitions of a frozen process", SOON, || {
        let archived = site.ends(topic);
        (0..).zip(&wanted).all(|(partition, end)| archived.get(&partition) >= Some(end))
    });
    program.thaw();
}

#[test]
fn members_that_come_and_go_archive_every_record_once() {
    members_come_and_go(&[("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "1000")], 10, 7);
}

#[test]
fn members_of_a_new_protocol_group_archive_every_record_once() {
    members_come_and_go(&[("group.protocol", "consumer")], 5, 8);
}

// ---- start and stop

#[test]
fn a_stop_commits_what_is_open_and_a_start_goes_on_behind_it() {
    let (kafka, topic) = (shared(), unique("stopped"));
    kafka.create_topic(&topic, 3, &[]);
    // Segments are sealed by count alone, and 500 records of each round stay open.
    let settings = Settings { topics: &[&topic], max_age: "1h", max_records: 1000, ..Settings::default() };
    let site = Site::new(&kafka.bootstrap(), &settings);
    let archived = || site.ls(&topic).last().map_or(0, |stream| stream["records"].as_i64().expect("a number"));
    for round in 0..3 {
        produce(kafka, &topic, round * 3500..(round + 1) * 3500, 3);
        let sealed = archived() + 3000;
        let mut program = site.start();
        wait_until("three segments", SOON, || {
            program.assert_running();
            let told = kafka.committed(&site.group, &topic);
            let ends = site.ends(&topic);
            let is_archived = |(partition, offset): (&i32, &i64)| ends.get(partition) >= Some(offset);
            assert!(told.iter().all(is_archived), "the group was told {told:?}, the archive has {ends:?}");
            archived() >= sealed
        });
        let started = Instant::now();
        program.terminate(STOP);
        assert!(started.elapsed() < Duration::from_secs(15), "the stop took {:?}", started.elapsed());
        assert!(archived() > sealed, "the stop committed nothing of what was open");
        assert_eq!(kafka.committed(&site.group, &topic), site.ends(&topic), "what the group was told in the end");
    }
    site.reconfigure("max_age = \"1h\"", "max_age = \"500ms\"");
    site.archive(kafka, &[&topic]);
    assert_whole(&site, kafka, &topic);
}

// ---- brokers and topics

#[test]
fn a_broker_that_is_away_is_waited_for() {
    let (kafka, topic) = (Kafka::start(KafkaOptions::default()), "away");
    kafka.create_topic(topic, 3, &[]);
    produce(&kafka, topic, 0..300, 3);
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[topic], ..Settings::default() });
    kafka.stop(1);
    let checked = site.tidelog(&["check", "--connect"]).expect(1);
    assert!(checked.stdout.contains("FAILED kafka") && checked.stdout.contains("ok     archive"), "{checked:?}");
    let mut program = site.start();
    wait_said(&mut program, "no broker can be reached; waiting");
    kafka.restart(1);
    site.wait_archived(&kafka, &[topic], &mut [&mut program]);
    while_feeding(&kafka, topic, 3, || {
        for _ in 0..2 {
            kafka.kill(1);
            kafka.restart(1);
            produce(&kafka, topic, 0..300, 3);
            site.wait_archived(&kafka, &[topic], &mut [&mut program]);
        }
    });
    site.wait_archived(&kafka, &[topic], &mut [&mut program]);
    program.terminate(STOP);
    site.tidelog(&["check", "--connect"]).expect(0);
    assert_whole(&site, &kafka, topic);
}

#[test]
fn topics_and_partitions_that_appear_later_are_archived() {
    let (kafka, named) = (shared(), unique("later"));
    let family = unique("family");
    let (pattern, first, second) = (format!("^{family}[.]"), format!("{family}.first"), format!("{family}.second"));
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&named, &pattern], ..Settings::default() });
    kafka.create_topic(&first, 1, &[]);
    produce(kafka, &first, 0..100, 1);
    let mut program = site.start();
    wait_said(&mut program, &named);
    wait_said(&mut program, "a topic cannot be read");
    site.wait_archived(kafka, &[&first], &mut [&mut program]);
    for topic in [&named, &second] {
        kafka.create_topic(topic, 2, &[]);
        produce(kafka, topic, 0..100, 2);
    }
    kafka.grow_topic(&first, 3);
    produce(kafka, &first, 100..400, 3);
    site.wait_archived(kafka, &[&first, &named, &second], &mut [&mut program]);
    program.terminate(STOP);
    for topic in [&first, &named, &second] {
        assert_whole(&site, kafka, topic);
    }
}

#[test]
fn records_that_the_broker_removed_are_told_as_a_gap() {
    let (kafka, topic) = (shared(), unique("removed"));
    kafka.create_topic(&topic, 2, &[]);
    produce(kafka, &topic, 0..100, 2);
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic], ..Settings::default() });
    site.archive(kafka, &[&topic]);
    produce(kafka, &topic, 100..200, 2);
    let mut expected = kafka.consume_all(&topic);
    kafka.delete_records(&topic, 0, 70);
    expected.retain(|record| record.partition != 0 || !(50..70).contains(&record.offset));
    site.archive(kafka, &[&topic]);
    produce(kafka, &topic, 200..300, 2);
    expected.extend(kafka.consume_all(&topic).into_iter().filter(|record| record.offset >= 100));
    expected.sort_by_key(|record| (record.partition, record.offset));
    site.archive(kafka, &[&topic]);

    let gap = json!({ "partition": 0, "start": 50, "end": 70, "reason": "broker_retention" });
    assert_eq!(site.ls(&topic)[0]["gaps"], json!([gap]));
    let report = site.assert_sound();
    assert_eq!(report["gaps"][0]["reason"], "broker_retention", "{report}");
    assert_eq!((&report["gaps"][0]["start"], &report["gaps"][0]["end"]), (&json!(50), &json!(70)), "{report}");
    let said = site.tidelog(&["verify"]).expect(0).stdout;
    assert!(said.contains("known gap") && said.contains("50..70"), "{said}");
    site.assert_holds(&topic, 0, &expected);
}

#[test]
fn a_topic_that_is_made_again_is_another_generation() {
    let (kafka, topic) = (shared(), unique("again"));
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic], ..Settings::default() });
    let mut generations: Vec<Vec<Record>> = Vec::new();
    let mut begin = |count: i32| {
        if !generations.is_empty() {
            kafka.delete_topic(&topic);
        }
        kafka.create_topic(&topic, 2, &[]);
        let from = i32::try_from(generations.len()).expect("few") * 10_000;
        produce(kafka, &topic, from..from + count, 2);
        generations.push(kafka.consume_all(&topic));
    };
    begin(100);
    let mut program = site.start();
    site.wait_archived(kafka, &[&topic], &mut [&mut program]);
    // While it runs. The offset after the last archived one exists in the new generation, too.
    begin(300);
    wait_for_generation(&site, kafka, &topic, 1, &mut program);
    // Fewer records than before.
    begin(40);
    wait_for_generation(&site, kafka, &topic, 2, &mut program);
    program.terminate(STOP);
    // While nobody looks.
    begin(500);
    let mut program = site.start();
    wait_for_generation(&site, kafka, &topic, 3, &mut program);
    program.terminate(STOP);

    site.assert_sound();
    let ended: Vec<_> = site.ls(&topic).iter().map(|stream| stream["ended"].clone()).collect();
    assert_eq!(ended, [true, true, true, false], "only the present generation goes on");
    for (generation, records) in (0..).zip(&generations) {
        site.assert_holds(&topic, generation, records);
        let target = unique(&format!("{topic}-generation"));
        site.replay(&topic, &target, &["--generation", &generation.to_string()]);
        let content = |record: &Record| (record.partition, record.timestamp, record.key.clone(), record.value.clone());
        let replayed = kafka.consume_all(&target);
        assert!(replayed.iter().map(content).eq(records.iter().map(content)), "the replay of generation {generation}");
    }
}

/// librdkafka fetches on at the same offset of a topic that was made again: what comes so must not get into the chain of
/// the generation before, and what that one had must not get lost.
#[test]
fn records_of_two_generations_do_not_mix_while_nobody_looks() {
    let (kafka, topic, empty) = (shared(), unique("generations"), unique("generations-empty"));
    kafka.create_topic(&topic, 2, &[]);
    kafka.create_topic(&empty, 1, &[]);
    produce(kafka, &topic, 0..120, 2);
    let old = kafka.consume_all(&topic);
    let site =
        Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic, &empty], max_age: "60s", ..Settings::default() });
    // A client that looks at its topics every second would see that this one is gone.
    site.reconfigure("interval.ms\" = \"1000\"", "interval.ms\" = \"300000\"");
    let mut program = site.start();
    wait_said(&mut program, "partitions assigned");
    // The look at the topics' ids is told by nothing, but what the same rounds say of a topic without records is.
    let later = (tidelog::time::now() + TimeDelta::seconds(12)).to_rfc3339_opts(SecondsFormat::Millis, true);
    wait_until("three looks at the topics' ids", SOON, || {
        program.assert_running();
        let known = site.ls(&empty).pop().map(|stream| stream["complete_through"].clone());
        known.is_some_and(|time| time.as_str().is_some_and(|time| *time > *later))
    });
    program.freeze();
    kafka.delete_topic(&topic);
    kafka.create_topic(&topic, 2, &[]);
    produce(kafka, &topic, 10_000..10_500, 2);
    program.thaw();
    let new = kafka.consume_all(&topic);
    wait_said(&mut program, "the topic has begun another generation");
    program.terminate(STOP);
    site.reconfigure("60s", "500ms");
    let mut program = site.start();
    wait_for_generation(&site, kafka, &topic, 1, &mut program);
    program.terminate(STOP);
    site.assert_sound();
    site.assert_holds(&topic, 0, &old);
    site.assert_holds(&topic, 1, &new);
}

fn wait_for_generation(site: &Site, kafka: &Kafka, topic: &str, generation: u64, program: &mut Program) {
    wait_until(&format!("generation {generation} of {topic}"), SOON, || {
        program.assert_running();
        let newest = site.ls(topic).pop();
        newest.is_some_and(|stream| {
            let marks = kafka.watermarks(topic);
            let ends = ends(&stream);
            stream["generation"] == generation
                && (0..).zip(marks).all(|(partition, (_, end))| ends.get(&partition) == Some(&end))
        })
    });
}

#[test]
fn what_comes_to_an_empty_partition_while_nobody_archives_is_not_passed_over() {
    let (kafka, topic) = (shared(), unique("empty"));
    kafka.create_topic(&topic, 3, &[]);
    produce(kafka, &topic, 0..30, 3);
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic], ..Settings::default() });
    site.reconfigure("[kafka.properties]", "start = \"latest\"\n[kafka.properties]");
    let mut program = site.start();
    wait_said(&mut program, "partitions assigned");
    wait_until("the topic to be known as complete without a record", SOON, || {
        program.assert_running();
        site.ls(&topic).pop().is_some_and(|stream| stream["complete_through"].is_string())
    });
    let first = |n: i32| Message::new(0, "key", &format!("archived at once {n}"));
    kafka.produce(&topic, Codec::None, &(0..5).map(first).collect::<Vec<_>>());
    wait_until("the first partition to be archived", SOON, || site.ends(&topic) == [(0, 15)].into());
    program.terminate(STOP);
    produce(kafka, &topic, 100..130, 3);
    // Of partition 2 the broker removes what nobody has archived.
    kafka.delete_records(&topic, 2, 14);
    let mut program = site.start();
    wait_until("all that came since the beginning", SOON, || {
        program.assert_running();
        site.ends(&topic) == [(0, 25), (1, 20), (2, 20)].into()
    });
    program.terminate(STOP);
    let gaps = site.ls(&topic).pop().expect("the topic")["gaps"].clone();
    let lost = json!([{"partition": 2, "start": 10, "end": 14, "reason": "broker_retention"}]);
    assert_eq!(gaps, lost, "what was lost since the archive began is told");
    site.assert_sound();
    let held: Vec<_> = kafka.consume_all(&topic).into_iter().filter(|record| record.offset >= 10).collect();
    site.assert_holds(&topic, 0, &held);
}

#[test]
fn a_partition_without_a_leader_holds_up_no_other() {
    let kafka = Kafka::start(KafkaOptions { brokers: 3, ..KafkaOptions::default() });
    let (split, whole) = (unique("split"), unique("whole"));
    kafka.create_topic_on(&split, &[1, 3]);
    kafka.create_topic(&whole, 2, &[]);
    produce(&kafka, &split, 0..100, 2);
    produce(&kafka, &whole, 0..100, 2);
    kafka.stop(3);
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&split, &whole], ..Settings::default() });
    let mut program = site.start();
    site.wait_archived(&kafka, &[&whole], &mut [&mut program]);
    wait_said(&mut program, "assigned partitions cannot be read yet");
    wait_until("the partition that has a leader", SOON, || {
        program.assert_running();
        site.ends(&split) == [(0, 50)].into()
    });
    let known = site.ls(&split).pop().expect("the topic")["complete_through"].clone();
    assert!(known.is_null(), "one partition is not archived at all, and the topic is said to be complete to {known}");
    kafka.restart(3);
    site.wait_archived(&kafka, &[&split], &mut [&mut program]);
    program.terminate(STOP);
    assert_whole(&site, &kafka, &split);
    assert_whole(&site, &kafka, &whole);
}

// ---- disks and configuration

/// Records of 100 KB that hardly compress.
fn produce_large(kafka: &Kafka, topic: &str, count: u64) {
    let mut random = Random::new(count);
    let mut value = || STANDARD.encode(random.bytes(75_000));
    let messages: Vec<Message> = (0..count).map(|_| Message::new(0, "large", &value())).collect();
    kafka.produce(topic, Codec::None, &messages);
}

/// Lets tidelog run where `directory` is a disk of 40 MiB of which 38 are taken, waits until it says `words` of the records that
/// have no room, makes room, and sees that all are archived.
fn a_full_disk_is_waited_for(directory: &str, words: &str) {
    let (kafka, topic) = (shared(), unique(&format!("full-{directory}")));
    kafka.create_topic(&topic, 1, &[]);
    produce_large(kafka, &topic, 100);
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic], max_age: "2s", ..Settings::default() });
    let disk = site.home().path().join(directory);
    std::fs::create_dir(&disk).expect("a directory can be made");
    let fill = format!("head -c 38M /dev/zero > {directory}/ballast");
    let mut program = site.start_after(&format!("mount -t tmpfs -o size=40m tmpfs {directory} && {fill}"));
    wait_until("the program to start", SOON, || {
        let output = program.output();
        if output.contains("ermission") || output.contains("not permitted") {
            return true;
        }
        program.assert_running();
        output.contains("archiving")
    });
    if !program.output().contains("archiving") {
        eprintln!("SKIPPED: a disk that is full needs the right to mount one: {}", program.output());
        return;
    }
    wait_said(&mut program, words);
    let ballast = format!("/proc/{}/root{}/ballast", program.id(), disk.display());
    std::fs::remove_file(ballast).expect("the ballast can be removed");
    site.look_through(program.id());
    site.wait_archived(kafka, &[&topic], &mut [&mut program]);
    produce_large(kafka, &topic, 10);
    site.wait_archived(kafka, &[&topic], &mut [&mut program]);
    assert_whole(&site, kafka, &topic);
    program.terminate(STOP);
}

/// A file system that has an error turns itself read-only (`errors=remount-ro`, mount(8)).
#[test]
fn an_archive_disk_that_turns_read_only_is_waited_for() {
    if !may_mount() {
        return;
    }
    let (kafka, topic) = (shared(), unique("turned"));
    kafka.create_topic(&topic, 1, &[]);
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic], ..Settings::default() });
    let disk = site.home().path().join("archive");
    std::fs::create_dir(&disk).expect("a directory can be made");
    let mut program = site.start_after("mount -t tmpfs tmpfs archive");
    wait_said(&mut program, "archiving");
    site.look_through(program.id());
    produce(kafka, &topic, 0..100, 1);
    site.wait_archived(kafka, &[&topic], &mut [&mut program]);
    let remount = |program: &Program, how: &str| {
        let mut mount = Command::new("nsenter");
        mount.args(["-m", "-t", &program.id().to_string(), "mount", "-o", how]).arg(&disk);
        program::run(mount).status == Some(0)
    };
    // Not while a file is open.
    wait_until("the disk to be read-only", SOON, || remount(&program, "remount,ro"));
    produce(kafka, &topic, 100..200, 1);
    wait_said(&mut program, "the archive is read-only for this user: check the mount");
    assert_eq!(site.ends(&topic), [(0, 100)].into());
    assert!(remount(&program, "remount,rw"));
    site.wait_archived(kafka, &[&topic], &mut [&mut program]);
    assert_whole(&site, kafka, &topic);
    program.terminate(STOP);
}

/// A volume that is unmounted leaves an empty directory, or none.
#[test]
fn an_archive_that_is_not_there_for_a_while_is_not_begun_anew() {
    let (kafka, topic) = (shared(), unique("away"));
    kafka.create_topic(&topic, 1, &[]);
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic], ..Settings::default() });
    let mut program = site.start();
    produce(kafka, &topic, 0..100, 1);
    site.wait_archived(kafka, &[&topic], &mut [&mut program]);
    let [archive, away] = ["archive", "away"].map(|name| site.home().path().join(name));
    std::fs::rename(&archive, &away).expect("the archive can be moved");
    produce(kafka, &topic, 100..200, 1);
    let words = "is not the one that was opened";
    wait_said(&mut program, words);
    assert!(!archive.exists(), "the archive was begun anew where there was none");
    std::fs::create_dir(&archive).expect("a directory can be made");
    let told = program.output().matches(words).count();
    wait_until("the empty directory to be refused", SOON, || program.output().matches(words).count() > told + 2);
    std::fs::remove_dir(&archive).expect("nothing was written into the empty directory");
    std::fs::rename(&away, &archive).expect("the archive can be brought back");
    site.wait_archived(kafka, &[&topic], &mut [&mut program]);
    program.terminate(STOP);
    assert_whole(&site, kafka, &topic);
}

#[test]
fn a_spool_disk_that_is_full_is_waited_for() {
    a_full_disk_is_waited_for("spool", "a segment cannot be written to the spool");
}

#[test]
fn an_archive_disk_that_is_full_is_waited_for() {
    a_full_disk_is_waited_for("archive", "a segment cannot be uploaded");
}

#[test]
fn directories_that_cannot_be_had_are_said_at_the_start() {
    for (key, setting) in [("url = \"file://", "archive"), ("spool_dir = \"", "spool")] {
        let site = Site::new("127.0.0.1:1", &Settings { topics: &["any"], ..Settings::default() });
        let file = site.home().write("file", "in the way");
        let path = |of: &std::path::Path| of.display().to_string();
        site.reconfigure(
            &format!("{key}{}/{setting}\"", path(site.home().path())),
            &format!("{key}{}/below\"", path(&file)),
        );
        let said = site.tidelog(&["run"]).expect(1).stderr;
        assert!(said.contains("error: ") && said.contains("file/below") && said.contains("  do "), "{said}");
        let checked = site.tidelog(&["check", "--connect"]).expect(1);
        assert!(checked.stdout.contains(&format!("FAILED {setting}")), "{checked:?}");
    }
}

#[test]
fn mistakes_of_a_configuration_are_told_all_at_once() {
    let home = Home::with_config(
        "[archive]\nurl = \"file:///tmp/unused\"\nspool = \"/tmp/unused\"\n[kafka]\ncluster = \"main\"\n\
         bootstrap_servers = \"localhost:9092\"\ntopics = []\n[kafka.segment]\nformat = \"orc\"\nmax_bytes = \"0\"\n[kafak]\n",
    );
    for command in ["run", "check", "ls"] {
        let said = home.run(&["-c", "tidelog.toml", command]).expect(2).stderr;
        for key in ["archive.spool", "kafka.topics", "kafka.segment.format", "kafka.segment.max_bytes", "kafak"] {
            assert!(said.contains(key), "{command} does not tell what is wrong with {key}:\n{said}");
        }
    }
}

// ---- memory

#[test]
fn a_thousand_partitions_fit_in_a_quarter_of_a_gigabyte() {
    const LIMIT_KIB: u64 = 256 << 10;
    let kafka = Kafka::start(KafkaOptions::default());
    kafka.create_topic("wide", 1000, &[]);
    let others: Vec<String> = (0..5).map(|n| format!("other-{n}")).collect();
    for topic in &others {
        kafka.create_topic(topic, 10, &[]);
    }
    let site = Site::new(
        &kafka.bootstrap(),
        &Settings { topics: &["wide", "^other-"], max_age: "10s", ..Settings::default() },
    );
    let mut random = Random::new(5);
    let producer = kafka.producer(&[("linger.ms", "20"), ("compression.type", "zstd")]);
    let mut send = |count: i32| {
        let text = STANDARD.encode(random.bytes(700));
        for n in 0..count {
            // Runs of ten, so that batches are not of one record.
            let message = |partitions| Message::new(n / 10 % partitions, &format!("key-{n}"), &format!("{n} {text}"));
            producer.send("wide", &message(1000));
            producer.send(&others[usize::try_from(n % 5).expect("an index")], &message(10));
        }
        producer.flush();
    };
    send(20_000); // a backlog
    let mut program = site.start();
    for _ in 0..10 {
        send(2000);
        thread::sleep(Duration::from_millis(500));
        program.assert_running();
    }
    let mut topics: Vec<&str> = others.iter().map(String::as_str).collect();
    topics.push("wide");
    site.wait_archived(&kafka, &topics, &mut [&mut program]);
    let peak = program.peak_kib();
    eprintln!("1,050 partitions: peak RSS {} MiB", peak >> 10);
    assert!(peak <= LIMIT_KIB, "peak RSS is {peak} KiB");
    program.terminate(STOP);
    let report = site.assert_sound();
    assert_eq!(report["records"], 80_000, "{report}");
}

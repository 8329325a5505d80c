//! The identity of a replay: an id means what it meant when it was begun, is finished once, and never sends twice.

use std::time::{Duration, Instant};

use serde_json::json;
use tidelog::stream::Format;

use crate::archive::Record;
use crate::replay::{Archive, base, expected, found, sent_so_far};
use crate::rig::kafka::{Kafka, KafkaOptions, shared};
use crate::rig::program::Program;
use crate::rig::topics::{Codec, Message};
use crate::rig::{compare, program, unique, wait_until};
use crate::site::{STOP, Settings, Site};

const SOON: Duration = Duration::from_secs(60);

fn records(count: i64, partitions: i64) -> Vec<Record> {
    let partition = |n: i64| i32::try_from(n % partitions).expect("small");
    (0..count).map(|n| Record::new(partition(n), n / partitions, base() + n)).collect()
}

fn messages(count: usize) -> Vec<Message> {
    let one = |n: usize| Message::new(i32::try_from(n % 3).expect("small"), &format!("k{n}"), &format!("value {n}"));
    (0..count).map(one).collect()
}

/// A topic in Kafka that an archiver reads, and what the recipe "Rebuild a topic" types.
struct Rebuilt {
    site: Site,
    archiver: Program,
    topic: String,
    id: String,
}

impl Rebuilt {
    fn new(name: &str, count: usize) -> Rebuilt {
        let (kafka, topic, id) = (shared(), unique(name), unique("again"));
        kafka.create_topic(&topic, 3, &[]);
        kafka.produce(&topic, Codec::None, &messages(count));
        let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic], ..Settings::default() });
        let mut archiver = site.start();
        site.wait_archived(kafka, &[&topic], &mut [&mut archiver]);
        kafka.delete_topic(&topic);
        Rebuilt { site, archiver, topic, id }
    }

    fn command(&self) -> Vec<&str> {
        vec!["replay", "--topics", &self.topic, "--from", "2000-01-01T00:00:00Z", "--id", &self.id, "--yes"]
    }

    /// Waits until the copies that are there now are archived, too.
    fn archive_copies(&mut self) {
        self.site.wait_archived(shared(), &[&self.topic], &mut [&mut self.archiver]);
    }
}

#[test]
fn a_rebuilt_topic_is_rebuilt_once_however_often_it_is_typed() {
    let (kafka, mut rebuilt) = (shared(), Rebuilt::new("rebuilt", 300));
    for time in 0..3 {
        let said = rebuilt.site.tidelog(&rebuilt.command()).expect(0).stdout;
        assert!(time == 0 || said.contains("nothing left to send"), "time {time}: {said}");
        rebuilt.archive_copies();
        assert_eq!(kafka.consume_all(&rebuilt.topic).len(), 300, "typed {} times", time + 1);
    }
    let again = rebuilt.site.tidelog(&[&rebuilt.command()[..], &["--json"]].concat()).expect(0).json();
    assert_eq!((&again["records"], &again["finished"]), (&json!(0), &json!(true)), "{again}");
    rebuilt.archiver.terminate(STOP);
}

#[test]
fn a_rebuild_that_was_killed_goes_on_with_what_it_meant_and_not_with_its_own_copies() {
    let (kafka, mut rebuilt) = (shared(), Rebuilt::new("rebuilt-killed", 6_000));
    let command = [&["-c", "tidelog.toml"], &rebuilt.command()[..], &["--rate", "1000/s"]].concat();
    let mut program = rebuilt.site.home().start(&command);
    wait_until("some of it to be committed", SOON, || {
        program.assert_running();
        sent_so_far(kafka, &rebuilt.topic) > 1_000
    });
    program.kill();
    rebuilt.archive_copies();
    rebuilt.site.tidelog(&rebuilt.command()).expect(0);
    let mut values: Vec<_> = kafka.consume_all(&rebuilt.topic).into_iter().map(|record| record.value).collect();
    values.sort_unstable();
    let mut wanted: Vec<_> = messages(6_000).into_iter().map(|message| message.value).collect();
    wanted.sort_unstable();
    assert!(values == wanted, "{} records for 6,000", values.len());
    rebuilt.archiver.terminate(STOP);
}

/// Starts a replay and interrupts it when more than `after` records are committed.
fn interrupted(archive: &Archive, args: &[&str], target: &str, after: usize, kill: bool) {
    let args = [&["-c", "tidelog.toml", "replay"], args, &["--rate", "500/s"]].concat();
    let mut program = archive.home.start(&args);
    wait_until("some of it to be committed", SOON, || {
        program.assert_running();
        sent_so_far(shared(), target) > after
    });
    if kill {
        program.kill();
    } else {
        program.interrupt();
        program.wait(Duration::from_secs(30));
    }
}

#[test]
fn a_group_that_was_lost_is_told_and_what_the_archive_knows_goes_on() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("group-lost"));
    let all = records(4_000, 3);
    archive.fill(&topic, 0, &[(Format::Parquet, all.clone())]);
    let (id, target) = (unique("lost"), format!("{topic}.copy"));
    let group = format!("tidelog-replay-{id}");
    let args = ["--from=-2h", "--topics", &topic, "--rename", "(.*)=$1.copy", "--id", &id];
    interrupted(&archive, &args, &target, 1_000, false);
    kafka.delete_group(&group);
    let said = archive.replay(&args).expect(0).stdout;
    assert!(said.contains("has forgotten how far") && said.contains(&group), "{said}");
    assert_eq!(found(kafka, &target), expected(&all));
    // A finished one needs no group: 300 stay 300.
    kafka.delete_group(&group);
    assert!(archive.replay(&args).expect(0).stdout.contains("nothing left to send"));
    assert_eq!(found(kafka, &target).len(), 4_000);
}

#[test]
fn a_group_that_was_lost_with_records_that_nobody_can_tell_apart_is_refused() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("group-gone"));
    archive.fill(&topic, 0, &[(Format::Parquet, records(4_000, 3))]);
    let (id, target) = (unique("gone"), format!("{topic}.copy"));
    let args = ["--from=-2h", "--topics", &topic, "--rename", "(.*)=$1.copy", "--id", &id];
    interrupted(&archive, &args, &target, 500, true);
    kafka.delete_group(&format!("tidelog-replay-{id}"));
    let before = sent_so_far(kafka, &target);
    let said = archive.replay(&args).expect(1).stderr;
    assert!(said.contains("could send some twice") && said.contains("another --id"), "{said}");
    assert_eq!(sent_so_far(kafka, &target), before, "nothing was sent");
    // Nor is it taken for proof that retention has removed them: what was there cannot be looked at.
    for (partition, (_, end)) in (0..).zip(kafka.watermarks(&target)) {
        kafka.delete_records(&target, partition, end);
    }
    let said = archive.replay(&args).expect(1).stderr;
    assert!(said.contains("or held them") && said.contains("another --id"), "{said}");
    assert_eq!(kafka.consume_all(&target).len(), 0, "nothing was sent");
}

#[test]
fn a_target_topic_that_was_created_again_is_not_taken_for_the_one_before() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("target-again"));
    let all = records(4_000, 3);
    archive.fill(&topic, 0, &[(Format::Parquet, all.clone())]);
    let (id, target) = (unique("again"), format!("{topic}.copy"));
    let args = ["--from=-2h", "--topics", &topic, "--rename", "(.*)=$1.copy", "--id", &id];
    interrupted(&archive, &args, &target, 500, false);
    kafka.delete_topic(&target);
    let said = archive.replay(&args).expect(2).stderr;
    assert!(said.contains(&format!("{target} was deleted since")) && said.contains("another --id"), "{said}");
    kafka.create_topic(&target, 3, &[]);
    let said = archive.replay(&args).expect(2).stderr;
    assert!(said.contains("was deleted and created again"), "{said}");
    assert!(kafka.consume_all(&target).is_empty());
    let other_id = unique("other");
    let other = [&args[..6], &[&other_id]].concat();
    archive.replay(&other).expect(0);
    assert_eq!(found(kafka, &target), expected(&all));
    // Not even a finished replay says that it is done when the target is gone.
    kafka.delete_topic(&target);
    archive.replay(&other).expect(2);
}

/// How long a replay goes on at most once its target is gone: that is asked every five seconds and believed the second time, and
/// the transaction that is open gets ten to end.
const TOLD: Duration = Duration::from_secs(20);

/// What a replay says whose target is gone once `is_time` says so of it; `replace` may make another one. It ends within [`TOLD`],
/// and the same command is refused from then on.
fn gone_while_it_is_filled(
    kafka: &Kafka,
    archive: &Archive,
    (records, tempo): (&[Record], [&str; 2]),
    is_time: impl Fn(&str) -> bool,
    replace: impl Fn(&str),
) -> String {
    let topic = unique("replaced");
    archive.fill(&topic, 0, &[(Format::Parquet, records.to_vec())]);
    let (id, target) = (unique("replaced"), format!("{topic}.copy"));
    let args = ["--from=-2h", "--topics", &topic, "--rename", "(.*)=$1.copy", "--id", &id];
    let typed = [&["-c", "tidelog.toml", "replay"], &args[..], &tempo].concat();
    let mut program = archive.home.start(&typed);
    wait_until("the replay to have come far enough", SOON, || {
        program.assert_running();
        is_time(&target)
    });
    kafka.delete_topic(&target);
    replace(&target);
    // The bound, and as long again for a machine that does other work, too: less than records take to time out.
    let since = Instant::now();
    wait_until("the replay to end", 2 * TOLD, || !program.is_running());
    eprintln!("told after {:?}", since.elapsed());
    let said = program.output();
    assert_eq!(program.wait(SOON), 2, "{said}");
    let again = archive.replay(&args);
    assert_eq!(again.status, Some(2), "{again:?}");
    let said = said + &again.stderr;
    assert!(!said.contains("go on with"), "the same command is refused: {said}");
    assert_eq!(said.matches(&format!("{target} was deleted")).count(), 2, "{said}");
    said
}

/// The same while records come all the time.
fn gone_while_records_come(kafka: &Kafka, archive: &Archive, replace: impl Fn(&str)) -> String {
    let is_time = |target: &str| sent_so_far(kafka, target) > 500;
    gone_while_it_is_filled(kafka, archive, (&records(4_000, 3), ["--rate", "500/s"]), is_time, replace)
}

#[test]
fn a_target_topic_that_is_replaced_while_it_is_filled_is_told() {
    let said = gone_while_records_come(shared(), &Archive::new(), |target| shared().create_topic(target, 3, &[]));
    assert_eq!(said.matches("was deleted and created again").count(), 2, "{said}");
}

#[test]
fn a_target_topic_that_the_brokers_create_again_by_themselves_is_told() {
    let kafka = Kafka::start(KafkaOptions {
        properties: vec![("auto.create.topics.enable", "true".into()), ("num.partitions", "3".into())],
        ..KafkaOptions::default()
    });
    // They do so once the producer asks for it, which it does only where a record was refused.
    gone_while_records_come(&kafka, &Archive::beside(&kafka), |_| {});
}

/// A hundred records at once, and then one every four seconds: transactions begin and end at known times.
fn spaced() -> Vec<Record> {
    let start = base();
    let time = |n: i64| start + if n < 100 { 0 } else { (n - 99) * 4_000 };
    (0..140).map(|n| Record::new(0, n, time(n))).collect()
}

/// No partition of a topic that is gone can be added to a transaction, nor can a position of one be committed: librdkafka asks again,
/// for as long as the transaction may last (`rdkafka_txnmgr.c`).
#[test]
fn a_target_topic_that_is_gone_is_told_before_its_records_time_out() {
    let (kafka, archive) = (shared(), Archive::new());
    // 100 records, and 101 with the end of their transaction.
    for sent in [100, 101] {
        let is_time = |target: &str| sent_so_far(kafka, target) >= sent;
        let said = gone_while_it_is_filled(kafka, &archive, (&spaced(), ["--speed", "1x"]), is_time, |_| {});
        assert!(said.contains("was deleted since"), "{said}");
    }
}

#[test]
fn positions_of_partitions_that_ended_early_outlive_the_brokers_memory() {
    let kafka = Kafka::start(KafkaOptions {
        properties: vec![
            ("offsets.retention.minutes", "1".into()),
            ("offsets.retention.check.interval.ms", "1000".into()),
        ],
        ..KafkaOptions::default()
    });
    let (archive, topic) = (Archive::beside(&kafka), unique("replay-forgets"));
    let start = base();
    let mut all: Vec<Record> = (0..50).map(|n| Record::new(0, n, start + n)).collect();
    // One record a second: partition 0 is done at once, partition 1 lasts.
    all.extend((0..150).map(|n| Record::new(1, n, start + 50 + n * 1_000)));
    archive.fill(&topic, 0, &[(Format::Parquet, all.clone())]);
    let (id, target) = (unique("forgets"), format!("{topic}.copy"));
    let args = ["--from=-2h", "--topics", &topic, "--rename", "(.*)=$1.copy", "--id", &id];
    let mut program = archive.home.start(&[&["-c", "tidelog.toml", "replay"], &args[..], &["--speed", "1x"]].concat());
    wait_until("more than a minute to pass", Duration::from_secs(180), || {
        program.assert_running();
        sent_so_far(&kafka, &target) > 50 + 75
    });
    program.kill();
    archive.replay(&args).expect(0);
    assert_eq!(found(&kafka, &target), expected(&all));
}

#[test]
fn an_archive_that_is_read_only_is_replayed_if_one_says_so() {
    let (kafka, archive, topic) = (shared(), Archive::new(), unique("read-only"));
    let all = records(3_000, 3);
    archive.fill(&topic, 0, &[(Format::Parquet, all.clone())]);
    let (id, target) = (unique("read-only"), format!("{topic}.copy"));
    let replay = |more: &str| {
        let script = format!(
            "mount --bind archive archive && mount -o remount,bind,ro archive && \
             exec $0 -c tidelog.toml replay --from=-2h --topics {topic} --rename '(.*)=$1.copy' --id {id} {more}"
        );
        archive.home.shell(&script)
    };
    program::run(replay("--dry-run")).expect(0);
    let said = program::run(replay("")).expect(1).stderr;
    assert!(said.contains("cannot be written down") && said.contains("--unrecorded"), "{said}");
    assert!(sent_so_far(kafka, &target) == 0);
    let mut program = Program::start(replay("--unrecorded --rate 500/s"), &archive.home.path().join("output"));
    wait_until("some of it to be committed", SOON, || {
        program.assert_running();
        sent_so_far(kafka, &target) > 500
    });
    program.kill();
    program::run(replay("--unrecorded")).expect(0);
    assert!(program::run(replay("--unrecorded")).expect(0).stdout.contains("nothing left to send"));
    assert_eq!(found(kafka, &target), expected(&all));
}

#[test]
fn a_cluster_is_moved_under_load_and_nothing_is_left_behind() {
    let (old, new, topic) = (shared(), Kafka::start(KafkaOptions::default()), unique("moved"));
    old.create_topic(&topic, 3, &[]);
    let site = Site::new(&old.bootstrap(), &Settings { topics: &[&topic], ..Settings::default() });
    let mut archiver = site.start();
    let produce = |round: i64| {
        let now = tidelog::time::now().timestamp_millis();
        // Half are late by up to an hour, one in ten is stamped a minute ahead.
        let lag = |n: i64| if n % 2 == 0 { 0 } else { (n * 7_919) % 3_600_000 };
        let time = |n: i64| if n % 10 == 0 { now + 60_000 } else { now - lag(n) };
        let one = |n: i64| Message {
            timestamp: Some(time(n)),
            ..Message::new(i32::try_from(n % 3).expect("small"), &format!("k{n}"), &format!("round {round} number {n}"))
        };
        old.produce(&topic, Codec::Lz4, &(0..300).map(one).collect::<Vec<_>>());
    };
    let into = new.bootstrap();
    let step = |how: &[&str], id: &str| {
        let args = ["replay", "--topics", &topic, "--into", &into, "--json", "--id", id];
        site.tidelog(&[&args[..], how].concat()).expect(0).json()
    };
    let ids = ["move-1", "move-2", "move-3"].map(unique);
    produce(0);
    site.wait_archived(old, &[&topic], &mut [&mut archiver]);
    // Producers go on while the first and the second part are sent.
    std::thread::scope(|scope| {
        scope.spawn(|| (1..20).for_each(produce));
        step(&["--all"], &ids[0]);
        step(&["--after", &ids[0]], &ids[1]);
    });
    // They have stopped; what the archive is still to get comes in the last part.
    site.wait_archived(old, &[&topic], &mut [&mut archiver]);
    step(&["--after", &ids[1]], &ids[2]);
    assert_eq!(compare::assert_same((old, &topic), (&new, &topic)), 6_000);
    // Typed again, each says that it is finished.
    assert_eq!(step(&["--after", &ids[1]], &ids[2])["records"], 0);
    assert_eq!(step(&["--all"], &ids[0])["records"], 0);
    let ranged =
        ["replay", "--topics", &topic, "--into", &into, "--from=-2h", "--id", "ranged", "--rename", "(.*)=$1.r"];
    site.tidelog(&ranged).expect(0);
    let said = site.tidelog(&[&ranged[..5], &["--rename", "(.*)=$1.r", "--after", "ranged"]].concat()).expect(2);
    assert!(said.stderr.contains("begin with --all"), "{}", said.stderr);
    archiver.terminate(STOP);
}

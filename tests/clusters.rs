//! Three brokers under load while one is killed, all are restarted one after the other, and the disk of one is full: archivers of both
//! group protocols have every record once and in order. And what is large: records of 100 MiB, 5,000 partitions, 1,000 groups.
//!
//! ```text
//!   producer (acks=all) ─► b1 b2 b3 ─┬─► tidelog, classic group ──────┐
//!        never stops       ✗  ↻↻↻ ▓  └─► tidelog, group of KIP-848 ───┴─► archive = what was produced
//! ```
//!
//! They take minutes: `make test-clusters`.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::http::{Service, site_with_listener};
use crate::rig::kafka::{Kafka, KafkaOptions};
use crate::rig::process::{spawn, temporary_directory};
use crate::rig::program::{self, Program};
use crate::rig::topics::{Codec, Message};
use crate::rig::{unique, wait_until};
use crate::site::{STOP, Settings, Site};

const PARTITIONS: i32 = 6;

/// How long a broker of a machine that does other work, too, may take for anything.
const SLOW: Duration = Duration::from_secs(180);

/// A file system of a fixed size, which is gone with this.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf, size: &str) -> Self {
        std::fs::create_dir_all(&at).expect("a directory can be made");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&at);
        program::run(mount).expect(0);
        Self(at)
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut ballast = File::create(self.ballast()).expect("a file");
        while ballast.write_all(&[0; 4096]).is_ok() {}
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

/// Produces records 0, 1, … round the partitions until it is halted, and tells how many.
fn load(kafka: &Kafka, topic: &str, halt: &AtomicBool) -> i32 {
    let producer = kafka.producer(&[("acks", "all"), ("linger.ms", "5")]);
    let mut made = 0;
    while !halt.load(Ordering::Relaxed) {
        producer.send(topic, &Message::new(made % PARTITIONS, "key", &format!("record {made}")));
        made += 1;
        std::thread::sleep(Duration::from_millis(3));
    }
    producer.flush();
    made
}

fn whole(kafka: &Kafka, topic: &str) {
    wait_until("all replicas to be in sync", SLOW, || kafka.in_sync(topic));
}

#[test]
#[ignore = "minutes, and it mounts a disk: make test-clusters"]
fn brokers_that_die_restart_and_fill_their_disk_cost_no_record_and_bring_none_twice() {
    let folder = temporary_directory("disk");
    let disk = Disk::mount(folder.path().join("small"), "128m");
    let properties = vec![
        ("broker.session.timeout.ms", "6000".to_owned()),
        ("broker.heartbeat.interval.ms", "500".to_owned()),
        ("log.index.size.max.bytes", "65536".to_owned()),
    ];
    let kafka =
        Kafka::start(KafkaOptions { brokers: 3, properties, disk: Some(disk.0.clone()), ..KafkaOptions::default() });
    let topic = unique("loaded");
    kafka.create_topic(&topic, PARTITIONS, &[]);
    let site = |properties| {
        Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic], properties, max_age: "1s", ..Settings::default() })
    };
    let sites = [site(&[]), site(&[("group.protocol", "consumer")])];
    let mut programs: Vec<Program> = sites.iter().flat_map(|site| [site.start(), site.start()]).collect();
    let mut all_run = || programs.iter_mut().for_each(Program::assert_running);
    let archived = |what: &str, more: i64| {
        let end = |site: &Site| site.ends(&topic).values().sum::<i64>();
        for site in &sites {
            let before = end(site);
            wait_until(&format!("records {what}"), SLOW, || end(site) > before + more);
        }
    };
    let halt = AtomicBool::new(false);
    let made = std::thread::scope(|scope| {
        let loading = scope.spawn(|| load(&kafka, &topic, &halt));
        archived("of a whole cluster", 200);

        kafka.kill(1);
        archived("with one broker killed", 500);
        kafka.restart(1);
        whole(&kafka, &topic);
        all_run();

        for broker in 1..=3 {
            kafka.stop(broker);
            kafka.restart(broker);
            whole(&kafka, &topic);
        }
        archived("behind a rolling restart", 200);
        all_run();

        disk.fill();
        wait_until("the broker to end for lack of room", SLOW, || !kafka.is_running(3));
        archived("without the broker whose disk is full", 500);
        std::fs::remove_file(disk.ballast()).expect("room");
        kafka.restart(3);
        whole(&kafka, &topic);
        archived("with all again", 200);
        all_run();
        halt.store(true, Ordering::Relaxed);
        loading.join().expect("the producer was never refused")
    });

    // What the brokers have is what was produced; what the archives have is what the brokers have.
    let held = kafka.consume_all(&topic);
    for partition in 0..PARTITIONS {
        let values = held.iter().filter(|record| record.partition == partition);
        let values: Vec<&[u8]> = values.map(|record| record.value.as_deref().expect("a value")).collect();
        let expected = (partition..made).step_by(PARTITIONS.unsigned_abs() as usize).map(|n| format!("record {n}"));
        assert!(values.into_iter().eq(expected.map(String::into_bytes).collect::<Vec<_>>().iter().map(Vec::as_slice)));
    }
    for site in &sites {
        site.wait_archived(&kafka, &[&topic], &mut []);
    }
    programs.into_iter().for_each(|program| program.terminate(STOP));
    for site in &sites {
        site.assert_holds(&topic, 0, &held);
        assert_eq!(site.ls(&topic).len(), 1, "one generation");
        assert_eq!(site.ls(&topic)[0]["gaps"], serde_json::json!([]));
        site.assert_sound();
    }
    eprintln!("{made} records");
}

const RECORD: u64 = 100 << 20;

#[test]
#[ignore = "brokers and clients with a GiB of memory: make test-clusters"]
fn records_of_100_mib_are_archived_and_replayed_within_the_bound_that_is_told() {
    let properties = ["message.max.bytes", "socket.request.max.bytes", "replica.fetch.max.bytes"];
    let properties = properties.map(|name| (name, "110000000".to_owned())).to_vec();
    let kafka = Kafka::start(KafkaOptions { properties, heap: Some("1500m"), ..KafkaOptions::default() });
    let (topic, copy) = (unique("large"), unique("large-copy"));
    for name in [&topic, &copy] {
        kafka.create_topic(name, 1, &[("max.message.bytes", "110000000")]);
    }
    let mut config = kafka.config();
    config.set("message.max.bytes", "110000000").set("queue.buffering.max.kbytes", "250000");
    let producer: BaseProducer = config.create().expect("a producer can be made");
    let mut random = crate::rig::records::Random::new(7);
    for n in 0..3 {
        let mut value = random.bytes(RECORD - 1_000);
        value[0] = n;
        let record = BaseRecord::<(), [u8]>::to(&topic).partition(0).payload(&value);
        producer.send(record).map_err(|(error, _)| error).expect("it has room");
        producer.flush(SLOW).expect("the broker takes it");
    }
    drop(producer);
    let limits = [("receive.message.max.bytes", "110001000")];
    let settings = Settings { topics: &[&topic], properties: &limits, ..Settings::default() };
    let (site, server) = site_with_listener(&kafka, &settings, "");
    site.tidelog(&["check", "--connect"]).expect(0);
    let program = site.start();
    let mut service = Service { site, server, program };
    service.site.wait_archived(&kafka, &[&topic], &mut [&mut service.program]);
    let most = service.program.peak_kib() / 1024;
    service.program.terminate(STOP);
    let site = service.site;
    site.assert_sound();
    let replayed = site.replay(&topic, &copy, &[]);
    assert_eq!(replayed["records"], 3, "{replayed}");
    crate::rig::compare::assert_same((&kafka, &topic), (&kafka, &copy));
    eprintln!("3 records of 100 MiB: the archiver had {most} MiB at most");
    // Of a record at a time: five times its size (docs/OPERATIONS.md, "Memory").
    assert!(most < 60 + 5 * 100, "{most} MiB");
}

/// Whether a record of any topic is counted as archived.
fn is_counted(metrics: &str) -> bool {
    metrics.lines().any(|line| line.starts_with("tidelog_archived_records_total{") && !line.ends_with(" 0"))
}

#[test]
#[ignore = "5,000 partitions on one broker: make test-clusters"]
fn five_thousand_partitions_are_archived_soon_after_the_start_and_cost_little() {
    let kafka = Kafka::start(KafkaOptions { heap: Some("1500m"), ..KafkaOptions::default() });
    let names: Vec<String> = (0..50).map(|n| format!("wide-{n:02}")).collect();
    kafka.create_topics(&names, 100);
    for name in &names {
        let messages: Vec<Message> = (0..100).map(|n| Message::new(n, "key", &format!("record {n}"))).collect();
        kafka.produce(name, Codec::None, &messages);
    }
    let (site, server) =
        site_with_listener(&kafka, &Settings { topics: &["^wide-"], max_age: "5s", ..Settings::default() }, "");
    let begun = Instant::now();
    let program = site.start();
    let mut service = Service { site, server, program };
    let mut first = None;
    wait_until("all to be archived", Duration::from_secs(600), || {
        service.program.assert_running();
        if first.is_none() && service.server.is_up() && is_counted(&service.server.get("/metrics").body) {
            first = Some(begun.elapsed());
        }
        service.server.is_up() && names.iter().all(|name| service.site.ends(name).len() == 100)
    });
    let all = begun.elapsed();
    let asked = Instant::now();
    let metrics = service.server.get("/metrics");
    let took = asked.elapsed();
    let most = service.program.peak_kib() / 1024;
    eprintln!(
        "5,000 partitions: first record {first:?}, all archived {all:?}, /metrics {took:?} ({} bytes), {most} MiB at most",
        metrics.body.len()
    );
    service.program.terminate(STOP);
    service.site.assert_sound();
}

const GROUPS: usize = 1_000;
const POSITIONS: i32 = 50;

/// Commits positions of all groups, some of them at a time.
fn commit_all(kafka: &Kafka, topic: &str) {
    const AT_ONCE: usize = 8;
    let of = |group: usize| {
        let name = format!("group-{group:04}");
        let consumer: BaseConsumer = kafka.config().set("group.id", name).create().expect("a consumer can be made");
        let mut list = TopicPartitionList::new();
        for partition in 0..POSITIONS {
            let mut element = list.add_partition(topic, partition);
            element.set_offset(Offset::Offset(i64::from(partition) + 1)).expect("an offset");
        }
        wait_until("the commit", SLOW, || consumer.commit(&list, CommitMode::Sync).is_ok());
    };
    std::thread::scope(|scope| {
        for first in 0..AT_ONCE {
            let of = &of;
            scope.spawn(move || (first..GROUPS).step_by(AT_ONCE).for_each(of));
        }
    });
}

/// CPU time that a process has used, in seconds (proc(5): fields 14 and 15, in hundredths).
fn cpu(id: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).expect("it runs");
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let fields = fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("ticks"));
    fields.sum::<f64>() / 100.0
}

#[test]
#[ignore = "a minute of commits: make test-clusters"]
fn a_poll_of_1000_groups_of_50_positions_takes_less_than_two_seconds() {
    let kafka = Kafka::start(KafkaOptions { heap: Some("800m"), ..KafkaOptions::default() });
    kafka.create_topic("polled", POSITIONS, &[]);
    commit_all(&kafka, "polled");
    let home = program::Home::new();
    let mut command = home.command(&["state-of-kafka"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = spawn(command).expect("it starts");
    let mut questions = child.stdin.take().expect("its input");
    let mut answers = BufReader::new(child.stdout.take().expect("its output"));
    let mut known: Vec<String> = Vec::new();
    let mut took = Vec::new();
    for poll in 0..8 {
        let question = serde_json::json!({
            "properties": [["bootstrap.servers", kafka.bootstrap()]], "groups": ["^group-"], "exclude_groups": [], "own_group": "tidelog",
            "known_groups": known,
        });
        let (begun, before) = (Instant::now(), cpu(child.id()));
        writeln!(questions, "{question}").expect("it reads");
        let mut line = String::new();
        answers.read_line(&mut line).expect("it answers");
        let answer: serde_json::Value = serde_json::from_str(&line).expect("an answer");
        let groups = answer["groups"]["found"]["state"].as_object().expect("the groups");
        known = groups.keys().cloned().collect();
        let positions = groups.values().map(|group| group["positions"]["polled"].as_object().map_or(0, |of| of.len()));
        assert_eq!((groups.len(), positions.sum::<usize>()), (GROUPS, GROUPS * 50));
        eprintln!("poll {poll}: {:?}, {:.2} s of CPU", begun.elapsed(), cpu(child.id()) - before);
        took.push(begun.elapsed());
    }
    drop(questions);
    child.wait().expect("it ends");
    took.sort_unstable();
    assert!(took[took.len() / 2] < Duration::from_secs(2), "{took:?}");
}

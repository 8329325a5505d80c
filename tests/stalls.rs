//! Ready means that it works: whatever keeps records from the archive is named, with the way out, in `/readyz`, in
//! `/api/status` and in `/metrics`, and is gone from there when it is over.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http::Service;
use crate::rig::kafka::{Kafka, KafkaOptions, shared};
use crate::rig::topics::{Codec, Message};
use crate::rig::{unique, wait_for, wait_until};
use crate::site::{STOP, Settings, Site};

/// How long something that happens within seconds on an idle machine may take.
const SOON: Duration = Duration::from_secs(180);

fn produce(kafka: &Kafka, topic: &str, numbers: std::ops::Range<i32>) {
    let messages: Vec<Message> =
        numbers.map(|n| Message::new(0, &format!("key-{n}"), &format!("record {n}"))).collect();
    kafka.produce(topic, Codec::None, &messages);
}

/// The failing task of `/api/status`, once it is there.
fn failing(service: &mut Service, task: &str) -> Value {
    wait_for(&format!("{task} to fail"), SOON, || {
        service.program.assert_running();
        let status = service.server.json("/api/status");
        status["failing"].as_array().expect("what fails").iter().find(|failing| failing["task"] == task).cloned()
    })
}

/// The directory is away, and a file in its place, while `work` goes on.
fn without(directory: &Path, work: impl FnOnce()) {
    let away = directory.with_extension("away");
    fs::rename(directory, &away).expect("it is taken away");
    fs::write(directory, "").expect("a file can be written");
    work();
    fs::remove_file(directory).expect("the file is removed");
    fs::rename(&away, directory).expect("it is brought back");
}

// ---- every loop that retries reports

#[test]
fn what_fails_and_is_tried_again_is_named_by_its_task_until_it_succeeds() {
    let (kafka, topic) = (Kafka::start(KafkaOptions::default()), unique("stall-tasks"));
    kafka.create_topic(&topic, 1, &[]);
    produce(&kafka, &topic, 0..10);
    let mut service = Service::start(&kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");
    service.site.wait_archived(&kafka, &[&topic], &mut [&mut service.program]);
    let home = service.site.home().path().to_owned();
    let spool =
        fs::read_dir(home.join("spool")).expect("the spool").next().expect("a directory").expect("a name").path();
    let named = |service: &mut Service, task: &str, about: &str| {
        let failure = failing(service, task);
        assert_eq!(
            (failure["about"].as_str(), failure["stops_archiving"].as_bool()),
            (Some(about), Some(true)),
            "{failure}"
        );
        let answer = service.server.get("/readyz");
        assert_eq!(answer.status, 503, "{}", answer.body);
        let reasons = answer.json()["reasons"].to_string();
        assert!(reasons.contains(failure["since"].as_str().expect("a time")), "{reasons} does not tell of {failure}");
        let series = |name: &str| service.metric(&format!("tidelog_task_failing{name}{{task={task:?}}}"));
        assert!(series("").is_some_and(|loops| loops >= 1.0) && series("_since_timestamp_seconds").is_some());
    };
    let mends = |service: &mut Service, task: &str| {
        service.wait_ready();
        let series = |name: &str| service.metric(&format!("tidelog_task_failing{name}{{task={task:?}}}"));
        assert_eq!((series(""), series("_since_timestamp_seconds")), (Some(0.0), None));
    };

    without(&home.join("archive/segments"), || {
        produce(&kafka, &topic, 10..20);
        named(&mut service, "kafka_upload", &topic);
    });
    mends(&mut service, "kafka_upload");
    without(&spool, || {
        produce(&kafka, &topic, 20..30);
        named(&mut service, "kafka_spool", &topic);
    });
    mends(&mut service, "kafka_spool");
    kafka.stop(1);
    named(&mut service, "kafka_ends", "");
    kafka.restart(1);
    mends(&mut service, "kafka_ends");
    service.site.wait_archived(&kafka, &[&topic], &mut [&mut service.program]);
    wait_until("nothing to fail", SOON, || service.server.json("/api/status")["failing"] == serde_json::json!([]));
    service.program.terminate(STOP);
    service.site.assert_holds(&topic, 0, &kafka.consume_all(&topic));
}

// ---- a partition that stands still is named

/// Readiness fails before a partition has stood still for a minute.
const A_MINUTE: Duration = Duration::from_secs(60);

/// The batches of a partition: where each begins in the file, its first offset, and how many bytes it has.
fn batches(log: &[u8]) -> Vec<(usize, i64, usize)> {
    let (mut at, mut found) = (0, Vec::new());
    while at + 12 <= log.len() {
        let base = i64::from_be_bytes(log[at..at + 8].try_into().expect("eight bytes"));
        let length = i32::from_be_bytes(log[at + 8..at + 12].try_into().expect("four bytes"));
        let size = 12 + usize::try_from(length).expect("a length");
        found.push((at, base, size));
        at += size;
    }
    found
}

/// Changes the batch that begins with offset `base`, where the broker keeps it. (DefaultRecordBatch.java: base offset 8, length 4,
/// leader epoch 4, magic 1, crc 4 over everything from the attributes on.) Gives the batch as it was.
fn damage(kafka: &Kafka, topic: &str, partition: i32, base: i64, how: impl FnOnce(&mut [u8])) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let path = kafka.log_file(1, topic, partition);
    let mut log = fs::read(&path).expect("the partition's file");
    let (at, _, size) = batches(&log).into_iter().find(|(_, first, _)| *first == base).expect("the batch");
    let whole = log[at..at + size].to_vec();
    how(&mut log[at..at + size]);
    let file = fs::OpenOptions::new().write(true).open(&path).expect("the file");
    file.write_all_at(&log[at..at + size], at as u64).expect("it is written");
    whole
}

/// The CRC of a batch is right again.
fn seal(batch: &mut [u8]) {
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
}

fn wrong_crc(batch: &mut [u8]) {
    batch[17] ^= 0xff;
}

fn unknown_magic(batch: &mut [u8]) {
    batch[16] = 7;
}

/// A length within a record that leads out of the batch.
fn wrong_length(batch: &mut [u8]) {
    batch[61..65].copy_from_slice(&[0xff, 0xff, 0xff, 0x7f]);
    seal(batch);
}

/// The payload of a compressed batch.
fn broken_payload(batch: &mut [u8]) {
    batch[61..].iter_mut().for_each(|byte| *byte = !*byte);
    seal(batch);
}

/// `counts` batches of so many records each, in a partition.
fn produce_batches(kafka: &Kafka, topic: &str, partition: i32, codec: Codec, counts: &[i32]) {
    for (round, count) in counts.iter().enumerate() {
        let messages: Vec<Message> =
            (0..*count).map(|n| Message::new(partition, &format!("key-{n}"), &format!("record {round} {n}"))).collect();
        let producer = kafka.producer(&[("compression.type", codec.name()), ("linger.ms", "200")]);
        messages.iter().for_each(|message| producer.send(topic, message));
        producer.flush();
    }
}

/// What is wrong with a partition, by `/api/streams/<topic>`.
fn stall(service: &Service, topic: &str, partition: usize) -> Value {
    service.server.json(&format!("/api/streams/{topic}"))["partitions"][partition]["stall"].clone()
}

/// Waits until a partition is told to stand still for `reason`.
fn wait_stall(service: &mut Service, topic: &str, partition: usize, reason: &str) -> Value {
    let what = format!("{topic} partition {partition} to stand still: {reason}");
    wait_for(&what, A_MINUTE, || {
        service.program.assert_running();
        let stall = stall(service, topic, partition);
        (stall["reason"] == reason).then_some(stall)
    })
}

/// Waits until `/readyz` says no for `words`, and looks that it does so in time.
fn wait_unready(service: &mut Service, words: &[&str], since: Instant) {
    let answer = wait_for(&format!("a reason that says {words:?}"), A_MINUTE, || {
        service.program.assert_running();
        let answer = service.server.get("/readyz");
        let reasons = answer.json()["reasons"].to_string();
        (answer.status == 503 && words.iter().all(|word| reasons.contains(word))).then_some(reasons)
    });
    assert!(since.elapsed() < A_MINUTE, "{answer} came after {:?}", since.elapsed());
}

#[test]
fn a_damaged_batch_is_named_in_time_and_never_passed_in_silence() {
    let (kafka, topic) = (Kafka::start(KafkaOptions::default()), unique("stall-damaged"));
    kafka.create_topic(&topic, 5, &[]);
    for partition in 0..5 {
        let codec = if partition == 3 { Codec::Lz4 } else { Codec::None };
        produce_batches(&kafka, &topic, partition, codec, &[10, 20, 30]);
    }
    let damages: [fn(&mut [u8]); 4] = [wrong_crc, unknown_magic, wrong_length, broken_payload];
    let whole = [0, 1, 2, 3].map(|at: usize| damage(&kafka, &topic, at as i32, 10, damages[at]));
    let mut service = Service::start(&kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");
    let since = Instant::now();
    for partition in 0..4 {
        let words = format!("{topic} partition {partition} stands at offset 10");
        wait_unready(&mut service, &[&words, "do: "], since);
    }
    for partition in [0, 3] {
        wait_stall(&mut service, &topic, partition, "unreadable");
    }
    // The sound one has gone on, and nothing was passed over.
    let ends = service.site.ends(&topic);
    assert_eq!(ends, [(0, 10), (1, 10), (2, 10), (3, 10), (4, 60)].into());
    assert_eq!(stall(&service, &topic, 4), Value::Null);
    let stalled: f64 = ["unreadable", "refused", "unknown"]
        .iter()
        .filter_map(|reason| service.metric(&format!("tidelog_stalled_partitions{{reason={reason:?}}}")))
        .sum();
    assert!((stalled - 4.0).abs() < f64::EPSILON, "{stalled}");
    let series = format!("tidelog_stalled_since_timestamp_seconds{{topic={topic:?},partition=\"1\"}}");
    assert!(service.metric(&series).is_some());
    let tasks = service.server.json("/connectors/kafka/status")["tasks"].clone();
    let states: Vec<&Value> = tasks.as_array().expect("tasks").iter().map(|task| &task["state"]).collect();
    assert_eq!(states, ["FAILED", "FAILED", "FAILED", "FAILED", "RUNNING"]);
    let trace = tasks[0]["trace"].as_str().expect("why");
    assert!(trace.contains("stands at offset 10") && trace.contains("CRC32C") && trace.contains("do: "), "{trace}");
    // A whole copy of them, as another leader may have one: nothing is missing.
    for (partition, whole) in (0..).zip(whole) {
        damage(&kafka, &topic, partition, 10, |batch| batch.copy_from_slice(&whole));
    }
    service.site.wait_archived(&kafka, &[&topic], &mut [&mut service.program]);
    service.wait_ready();
    service.program.terminate(STOP);
    service.site.assert_holds(&topic, 0, &kafka.consume_all(&topic));
}

#[test]
fn a_batch_larger_than_the_client_takes_is_named_with_the_property() {
    let (kafka, topic) = (Kafka::start(KafkaOptions::default()), unique("stall-large"));
    kafka.create_topic(&topic, 1, &[]);
    produce(&kafka, &topic, 0..10);
    let properties =
        [("receive.message.max.bytes", "200000"), ("fetch.max.bytes", "100000"), ("message.max.bytes", "100000")];
    let settings = Settings { topics: &[&topic], properties: &properties, ..Settings::default() };
    let mut service = Service::start(&kafka, &settings, "");
    service.site.wait_archived(&kafka, &[&topic], &mut [&mut service.program]);
    let noise: String = (0..60_000).map(|n: u32| format!("{:08x}", n.wrapping_mul(2_654_435_761))).collect();
    kafka.produce(&topic, Codec::None, &[Message::new(0, "large", &noise)]);
    let since = Instant::now();
    wait_unready(&mut service, &["stands at offset 10", "receive.message.max.bytes", "too_large"], since);
    service.program.terminate(STOP);
    service
        .site
        .reconfigure("\"receive.message.max.bytes\" = \"200000\"", "\"receive.message.max.bytes\" = \"2000000\"");
    service.program = service.site.start();
    service.site.wait_archived(&kafka, &[&topic], &mut [&mut service.program]);
    service.wait_ready();
    service.program.terminate(STOP);
}

#[test]
fn an_open_transaction_is_told_as_a_note_and_is_over_with_it() {
    let (kafka, topic) = (shared(), unique("stall-transaction"));
    kafka.create_topic(&topic, 1, &[]);
    produce(kafka, &topic, 0..10);
    let mut service = Service::start(kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");
    service.site.wait_archived(kafka, &[&topic], &mut [&mut service.program]);
    kafka.while_open(&topic, &[Message::new(0, "key", "in the transaction")], || {
        produce(kafka, &topic, 10..20);
        wait_stall(&mut service, &topic, 0, "open_transaction");
        // Longer than what makes another stall a failure.
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(35) {
            let answer = service.server.get("/readyz");
            assert_eq!(answer.status, 200, "{}", answer.body);
            std::thread::sleep(Duration::from_secs(1));
        }
        let notes = service.server.json("/readyz")["notes"].to_string();
        assert!(notes.contains("a transaction is open") && notes.contains(&topic), "{notes}");
        let series = "tidelog_stalled_partitions{reason=\"open_transaction\"}";
        assert_eq!(service.metric(series), Some(1.0));
    });
    service.site.wait_archived(kafka, &[&topic], &mut [&mut service.program]);
    wait_until("nothing to stand still", SOON, || stall(&service, &topic, 0) == Value::Null);
    service.program.terminate(STOP);
}

#[test]
fn a_member_that_another_one_has_fenced_ends_and_says_so() {
    let (kafka, topic) = (shared(), unique("stall-fenced"));
    kafka.create_topic(&topic, 4, &[]);
    let properties = [("group.instance.id", "one")];
    let settings = Settings { topics: &[&topic], properties: &properties, ..Settings::default() };
    let mut service = Service::start(kafka, &settings, "");
    let second = Site::new(&kafka.bootstrap(), &settings);
    second.reconfigure(&second.group, &service.site.group);
    let mut other = second.start();
    let since = Instant::now();
    wait_until("the fenced process to end", A_MINUTE, || {
        other.assert_running();
        !service.program.is_running()
    });
    assert!(since.elapsed() < A_MINUTE);
    let said = service.program.output();
    assert!(said.contains("group.instance.id"), "{said}");
    assert_eq!(service.program.wait(STOP), 1, "its supervisor is to start it again: the other one may be gone by then");
    other.terminate(STOP);
}

//! Ready means that it works: whatever keeps records from the archive is named, with the way out, in `/readyz`, in
//! `/api/status` and in `/metrics`, and is gone from there when it is over.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::Value;
use tidelog::tasks::Task;

use crate::http::{Service, TOKEN};
use crate::loops::is_told;
use crate::rig::kafka::{Kafka, KafkaOptions, shared};
use crate::rig::topics::{Codec, Message, Record};
use crate::rig::{unique, wait_for, wait_until};
use crate::site::{STOP, Settings, Site};

/// How long something that happens within seconds on an idle machine may take.
pub(crate) const SOON: Duration = Duration::from_secs(180);

fn produce(kafka: &Kafka, topic: &str, numbers: std::ops::Range<i32>) {
    let messages: Vec<Message> =
        numbers.map(|n| Message::new(0, &format!("key-{n}"), &format!("record {n}"))).collect();
    kafka.produce(topic, Codec::None, &messages);
}

/// The failing task of `/api/status`, once it is there.
pub(crate) fn failing(service: &mut Service, task: &str) -> Value {
    wait_for(&format!("{task} to fail"), SOON, || {
        service.program.assert_running();
        let status = service.server.json("/api/status");
        status["failing"].as_array().expect("what fails").iter().find(|failing| failing["task"] == task).cloned()
    })
}

/// The directory is away, and a file in its place, while `work` goes on.
pub(crate) fn without(directory: &Path, work: impl FnOnce()) {
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
    let mut spools = fs::read_dir(home.join("spool")).expect("the spool").flatten().map(|entry| entry.path());
    let spool = spools.find(|path| path.is_dir()).expect("a directory");
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
    without(&home.join("archive/manifest/kafka"), || {
        produce(&kafka, &topic, 30..40);
        named(&mut service, "kafka_checkpoint", &topic);
    });
    mends(&mut service, "kafka_checkpoint");
    // What is uploaded while the brokers are away gets its checkpoint without a look at the topic's id, which is told.
    without(&home.join("archive/segments"), || {
        produce(&kafka, &topic, 40..50);
        named(&mut service, "kafka_upload", &topic);
        kafka.stop(1);
        named(&mut service, "kafka_ends", "");
    });
    wait_until("kafka_topic_ids and kafka_watch to be told", SOON, || {
        service.program.assert_running();
        is_told(&service.server, Task::KafkaTopicIds, "without a look")
            && is_told(&service.server, Task::KafkaWatch, "cannot be looked at")
    });
    kafka.restart(1);
    mends(&mut service, "kafka_ends");
    produce(&kafka, &topic, 50..60);
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
    let series = |name: &str| service.metric(&format!("tidelog_{name}{{topic={topic:?},partition=\"1\"}}"));
    assert!(series("stalled_since_timestamp_seconds").is_some());
    // It was never complete, and its lag counts from its assignment.
    assert_eq!(series("complete_through_timestamp_seconds"), Some(0.0));
    assert!(series("lag_seconds").is_some_and(|lag| (10.0..600.0).contains(&lag)), "{:?}", series("lag_seconds"));
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

// ---- what cannot be read is skipped by an order

/// Orders to skip what stands at an offset, and waits until it is done or refused.
fn skip(service: &Service, topic: &str, (partition, offset): (i32, i64)) -> (u16, Value) {
    let path = format!("/connectors/kafka/skip?topic={topic}&partition={partition}&offset={offset}");
    wait_for("the end of an order", SOON, || {
        let answer = service.server.request("POST", &path, &[("Authorization", &format!("Bearer {TOKEN}"))]);
        (answer.status != 202).then(|| (answer.status, answer.json()))
    })
}

/// Waits until a partition stands at an offset, and skips what is there.
fn skip_stall(service: &mut Service, topic: &str, partition: i32, lost: std::ops::Range<i64>) {
    wait_for(&format!("partition {partition} to stand at {}", lost.start), A_MINUTE, || {
        service.program.assert_running();
        let stream = service.server.json(&format!("/api/streams/{topic}"));
        let at = &stream["partitions"][usize::try_from(partition).expect("a number")];
        (at["next"] == lost.start && !at["stall"].is_null()).then_some(())
    });
    let (status, answer) = skip(service, topic, (partition, lost.start));
    let gap = (answer["start"].as_i64(), answer["end"].as_i64(), answer["reason"].as_str());
    assert_eq!((status, gap), (200, (Some(lost.start), Some(lost.end), Some("unreadable"))), "{partition}: {answer}");
}

#[test]
fn what_cannot_be_read_is_skipped_by_an_order_exactly_as_wide_as_it_is() {
    let (kafka, topic) = (Kafka::start(KafkaOptions::default()), unique("stall-skip"));
    kafka.create_topic(&topic, 7, &[]);
    for partition in 0..4 {
        let codec = if partition == 3 { Codec::Lz4 } else { Codec::None };
        produce_batches(&kafka, &topic, partition, codec, &[10, 20, 30]);
    }
    produce_batches(&kafka, &topic, 4, Codec::None, &[10, 20, 30]);
    produce_batches(&kafka, &topic, 5, Codec::None, &[10, 5, 1, 5, 10]);
    produce_batches(&kafka, &topic, 6, Codec::None, &[10]);
    let whole = kafka.consume_all(&topic);
    let lost = [(0, 10..30), (1, 10..30), (2, 10..30), (3, 10..30), (4, 30..60), (5, 10..15), (5, 16..21)];
    let damages: [fn(&mut [u8]); 7] =
        [wrong_crc, unknown_magic, wrong_length, broken_payload, wrong_crc, wrong_crc, unknown_magic];
    for ((partition, lost), how) in lost.iter().zip(damages) {
        damage(&kafka, &topic, *partition, lost.start, how);
    }
    let mut service = Service::start(&kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");

    // Nothing is skipped by an order that is not meant, and none without the token.
    wait_stall(&mut service, &topic, 0, "unreadable");
    let says = |(status, answer): (u16, Value), words: &str| {
        assert!(answer["message"].as_str().is_some_and(|said| said.contains(words)), "{status} {answer}");
        status
    };
    assert_eq!(says(skip(&service, &topic, (0, 9)), "stands at offset 10, not at 9"), 409);
    assert_eq!(says(skip(&service, &topic, (6, 10)), "nothing at offset 10"), 409);
    assert_eq!(says(skip(&service, &topic, (7, 10)), "does not read"), 404);
    assert_eq!(says(skip(&service, "other", (0, 10)), "does not read"), 404);
    let path = format!("/connectors/kafka/skip?topic={topic}&partition=0&offset=10");
    assert_eq!(service.server.request("POST", &path, &[]).status, 401);
    let bearer = format!("Bearer {TOKEN}");
    let without = service.server.request("POST", "/connectors/kafka/skip?topic=a", &[("Authorization", &bearer)]);
    assert_eq!(without.status, 400, "{}", without.body);

    for (partition, lost) in &lost {
        skip_stall(&mut service, &topic, *partition, lost.clone());
    }
    // An order that comes twice is answered as it was, and skips nothing more.
    assert_eq!(skip(&service, &topic, (5, 16)).1["end"], 21);
    // Behind the last batch nothing is lost that comes later.
    produce(&kafka, &topic, 0..10);
    produce_batches(&kafka, &topic, 4, Codec::None, &[10]);
    service.site.wait_archived(&kafka, &[&topic], &mut [&mut service.program]);
    service.wait_ready();
    assert_eq!(service.site.ends(&topic), [(0, 70), (1, 60), (2, 60), (3, 60), (4, 70), (5, 31), (6, 10)].into());
    let series = "tidelog_gaps_total{kind=\"kafka\",reason=\"unreadable\"}";
    assert_eq!(service.metric(series), Some(7.0));
    // The gaps are the archive's: a process that starts later knows that the order is done.
    service.program.terminate(STOP);
    service.program = service.site.start();
    service.wait_ready();
    wait_until("the gap to be known", SOON, || skip(&service, &topic, (5, 10)).1["end"] == 15);
    service.program.terminate(STOP);

    let shown = &service.site.ls(&topic)[0]["gaps"];
    let mut gaps: Vec<_> = shown
        .as_array()
        .expect("gaps")
        .iter()
        .map(|gap| {
            assert_eq!(gap["reason"], "unreadable");
            (
                gap["partition"].as_i64().expect("a partition"),
                gap["start"].as_i64().expect("an offset"),
                gap["end"].as_i64().expect("an offset"),
            )
        })
        .collect();
    gaps.sort_unstable();
    assert_eq!(gaps, lost.map(|(partition, lost)| (i64::from(partition), lost.start, lost.end)));
    let verified = service.site.tidelog(&["verify", "--deep"]).expect(0);
    assert!(format!("{verified:?}").contains("unreadable, skipped by order"), "{verified:?}");
    let plan = service.site.tidelog(&["replay", "--from=-1h", "--to=now", "--dry-run", "--topics", &topic]);
    assert!(format!("{plan:?}").contains("unreadable, skipped by order"), "{plan:?}");
    // Every record that could be read is there, those between two damaged batches, too.
    let readable = |record: &Record| {
        !lost_of(&gaps).any(|(partition, lost)| record.partition == partition && lost.contains(&record.offset))
    };
    let archived = service.site.tidelog(&["cat", "--topic", &topic]).expect(0).json_lines();
    let mut archived: Vec<(i64, i64)> = archived
        .iter()
        .map(|line| (line["partition"].as_i64().expect("a partition"), line["offset"].as_i64().expect("an offset")))
        .collect();
    archived.sort_unstable();
    let mut expected: Vec<(i64, i64)> = whole
        .iter()
        .filter(|record| readable(record))
        .map(|record| (i64::from(record.partition), record.offset))
        .collect();
    expected.extend((60..70).map(|offset| (0, offset)).chain((60..70).map(|offset| (4, offset))));
    expected.sort_unstable();
    assert_eq!(archived, expected);
}

fn lost_of(gaps: &[(i64, i64, i64)]) -> impl Iterator<Item = (i32, std::ops::Range<i64>)> {
    gaps.iter().map(|(partition, start, end)| (i32::try_from(*partition).expect("a partition"), *start..*end))
}

/// One record of so many zeros, compressed to a few kilobytes.
fn produce_zeros(kafka: &Kafka, topic: &str, count: usize) {
    let mut config = kafka.config();
    config.set("compression.type", "zstd").set("message.max.bytes", "200000000");
    let producer: BaseProducer = config.create().expect("a producer");
    let zeros = vec![0; count];
    let record = BaseRecord::<str, [u8]>::to(topic).partition(0).key("zeros").payload(&zeros);
    producer.send(record).expect("it is queued");
    producer.flush(SOON).expect("it is delivered");
}

#[test]
fn what_is_too_large_once_decompressed_is_named_with_the_property_and_skipped_by_its_owner() {
    let (kafka, topic) = (shared(), unique("stall-zeros"));
    kafka.create_topic(&topic, 1, &[]);
    produce(kafka, &topic, 0..10);
    produce_zeros(kafka, &topic, 150_000_000);
    produce(kafka, &topic, 10..20);
    let settings = Settings { topics: &[&topic], ..Settings::default() };
    let mut first = Service::start(kafka, &settings, "");
    let (site, server) = crate::http::site_with_listener(kafka, &settings, "");
    site.reconfigure(&site.group, &first.site.group);
    site.shares_archive_of(&first.site);
    let program = site.start();
    let mut second = Service { site, server, program };
    second.wait_ready();
    wait_until("both to be members", SOON, || kafka.members(&first.site.group) == Some(2));
    let owns = |service: &Service| service.server.get(&format!("/api/streams/{topic}")).status == 200;
    wait_until("one of them to own the partition", SOON, || owns(&first) != owns(&second));
    let (owner, other) = if owns(&first) { (&mut first, &mut second) } else { (&mut second, &mut first) };
    let stall = wait_stall(owner, &topic, 0, "unreadable");
    assert!(stall["hint"].as_str().is_some_and(|hint| hint.contains("receive.message.max.bytes")), "{stall}");
    let (status, answer) = skip(other, &topic, (0, 10));
    assert!(
        status == 404 && answer["message"].as_str().is_some_and(|said| said.contains("ask the one that does")),
        "{answer}"
    );
    skip_stall(owner, &topic, 0, 10..11);
    owner.site.wait_archived(kafka, &[&topic], &mut [&mut owner.program]);
    assert_eq!(owner.site.ls(&topic)[0]["records"], 20);
    first.program.terminate(STOP);
    second.program.terminate(STOP);
}

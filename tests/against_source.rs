//! `verify --against-source` on real brokers: whatever took records from one side is told by its name.
//!
//! What others have met, and what is tried here of it: counts by offsets that hold markers (linkedin/Burrow#651,
//! redpanda-data/redpanda#17983), holes of a compaction that is over (redpanda-data/redpanda#2273) and emptied batches
//! (segmentio/kafka-go#813), records that retention took while a copy was paused and topics that were reset (apache/kafka#22248), a
//! log that begins later while it is read (twmb/franz-go#1416), a log that an unclean election cut and that has grown again
//! (thomhurst/Dekaf#2258), topics that are named or matched and not in the copy (cozystack/cozystack#3580), a cluster
//! that was wiped (itadventurer/kafka-backup#23), events that a connector sent twice (MaterializeInc/materialize#14211).

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use futures::executor::block_on;
use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};
use serde_json::{Value, json};
use tidelog::stream::{Begin, Format, TopicGeneration};
use tokio::runtime::Runtime;

use crate::archive::{self, on_disk};
use crate::connect_check::{Guarded, LOGIN};
use crate::generations::Cluster;
use crate::rig::kafka::{Kafka, free_port, shared};
use crate::rig::topics::{Codec, End, Message, PATIENCE};
use crate::rig::{unique, wait_until};
use crate::site::{STOP, Settings, Site};

fn site(kafka: &Kafka, topics: &[&str]) -> Site {
    Site::new(&kafka.bootstrap(), &Settings { topics, ..Settings::default() })
}

fn numbered(partition: i32, numbers: std::ops::Range<i32>) -> Vec<Message> {
    numbers.map(|n| Message::new(partition, &format!("key-{n}"), &format!("record {n}"))).collect()
}

fn produce(topic: &str, messages: &[Message]) {
    shared().produce(topic, Codec::None, messages);
}

fn set(kafka: &Kafka, topic: &str, settings: &[(&str, &str)]) {
    let change = settings
        .iter()
        .fold(AlterConfig::new(ResourceSpecifier::Topic(topic)), |change, (name, value)| change.set(name, value));
    let options = AdminOptions::new().request_timeout(Some(PATIENCE));
    let answers = block_on(kafka.admin().alter_configs([&change], &options)).expect("the broker answers");
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
}

/// What a comparison of everything says of a topic, and how it ended.
fn compared(site: &Site, topic: &str, status: i32) -> Value {
    let said = site.tidelog(&["verify", "--against-source", "--deep", "--json"]).expect(status).json();
    let topics = said["source"]["topics"].as_array().unwrap_or_else(|| panic!("topics: {said}"));
    topics.iter().find(|row| row["topic"] == topic).unwrap_or_else(|| panic!("{topic}: {said}")).clone()
}

/// How many there are, by name, in records where they are known.
fn counts(row: &Value) -> Value {
    let counts = row["counts"].as_object().expect("counts").iter().map(|(name, count)| {
        let known = if count["records"] == 0 { &count["offsets"] } else { &count["records"] };
        (name.clone(), known.clone())
    });
    Value::Object(counts.collect())
}

fn left(topic: &str, partition: i32) -> usize {
    shared().consume_all(topic).iter().filter(|record| record.partition == partition).count()
}

/// Retention took from partition 1, compaction from partition 0, somebody a segment with the records of partition 2, an aborted
/// transaction and markers lie in partition 3, and seven records are not archived yet.
#[test]
fn what_retention_and_compaction_and_a_deleted_object_took_is_told_by_name() {
    let (kafka, topic) = (shared(), unique("taken"));
    kafka.create_topic(&topic, 4, &[("segment.ms", "50")]);
    let site = site(kafka, &[&topic]);
    let again = |n: i32| Message::new(0, &format!("again {}", n % 10), &format!("value {n}"));
    produce(&topic, &(0..100).map(again).collect::<Vec<_>>());
    let old = |message| Message { timestamp: Some(1_000_000_000_000), ..message };
    produce(&topic, &numbered(1, 0..50).into_iter().map(old).collect::<Vec<_>>());
    site.archive(kafka, &[&topic]);
    produce(&topic, &numbered(2, 0..40));
    site.archive(kafka, &[&topic]);
    let newest = site.files(&topic).into_iter().next_back().expect("a segment");
    assert_eq!(newest["records"], 40, "{newest}");
    kafka.produce_transaction(&topic, &numbered(3, 0..20), End::Commit);
    kafka.produce_transaction(&topic, &numbered(3, 20..30), End::Abort);
    produce(&topic, &[Message::new(0, "closes", "the segment"), Message::new(1, "closes", "the segment")]);
    site.archive(kafka, &[&topic]);
    let whole = compared(&site, &topic, 0);
    assert_eq!((counts(&whole), &whole["compared"]), (json!({}), &json!(212)), "{whole}");

    let taking = [
        ("cleanup.policy", "compact,delete"),
        ("retention.ms", "3600000"),
        ("segment.ms", "50"),
        ("min.cleanable.dirty.ratio", "0.01"),
    ];
    set(kafka, &topic, &taking);
    wait_until(
        "the cleaner to have left one record of each key, and retention to have taken the old ones",
        PATIENCE,
        || left(&topic, 0) == 11 && kafka.watermarks(&topic)[1].0 == 50,
    );
    let object = newest["object"].as_str().or(newest["url"].as_str()).expect("an object").to_owned();
    let file =
        site.home().path().join("archive").join(object.rsplit_once("/archive/").map_or(&*object, |(_, key)| key));
    let aside = site.home().path().join("aside");
    fs::rename(&file, &aside).expect("the segment's object");
    produce(&topic, &numbered(3, 30..37));

    let told = compared(&site, &topic, 3);
    let expected = json!({"expired": 50, "compacted": 90, "damaged": 40, "not_yet": 7});
    assert_eq!((counts(&told), &told["compared"]), (expected, &json!(212 - 180)), "{told}");
    let of = |fate: &str| {
        let findings = told["findings"].as_array().expect("findings");
        findings.iter().find(|found| found["fate"] == fate).unwrap_or_else(|| panic!("{fate}: {told}")).clone()
    };
    let place = |found: Value| (found["partition"].clone(), found["start"].clone(), found["end"].clone());
    assert_eq!(place(of("expired")), (json!(1), json!(0), json!(50)));
    assert_eq!(place(of("damaged")), (json!(2), json!(0), json!(40)));
    assert_eq!(of("damaged")["on_source"], true, "the brokers still have what the archive lost");
    assert_eq!(of("compacted")["partition"], 0);
    let said = site.tidelog(&["verify", "--against-source"]).expect(3);
    for words in [
        "50 records: only in the archive: the source removed them",
        "90 records: only in the archive: compacted on the source",
        "40 records: their segment is damaged or gone",
        "the source has these offsets",
        "7 offsets: not archived yet",
        "missing: 0 records, lost before they were archived: 0 offsets",
    ] {
        assert!(said.stdout.contains(words), "{words}:\n{}", said.stdout);
    }
    // How many there are in all depends on when each was sealed.
    for words in ["1 damaged segment of ", ", 40 records affected"] {
        assert!(said.stderr.contains(words), "{}", said.stderr);
    }

    // The policy of before no longer tells why; nothing is missing for that.
    fs::rename(&aside, &file).expect("it is put back");
    set(kafka, &topic, &[("cleanup.policy", "delete"), ("segment.ms", "50")]);
    let expected = json!({"expired": 50, "unexplained": 90, "not_yet": 7});
    wait_until("the brokers to tell of the new policy", PATIENCE, || counts(&compared(&site, &topic, 0)) == expected);
}

/// An archive that says that it has what it has not: nothing but a comparison can tell.
#[test]
fn records_that_the_archive_only_says_that_it_has_are_missing_and_others_are_different() {
    let (kafka, topic) = (shared(), unique("forged"));
    kafka.create_topic(&topic, 2, &[]);
    let stamped =
        |n: i32| Message { timestamp: Some(1_700_000_000_000), ..Message::new(n % 2, "key", &format!("record {n}")) };
    produce(&topic, &(0..40).map(stamped).collect::<Vec<_>>());
    let site = site(kafka, &[&topic]);
    // What the archiver itself made is where the topic's id is from.
    site.archive(kafka, &[&topic]);
    let begin = fs::read(site.home().path().join(format!("archive/manifest/kafka/main/{topic}.0/{:020}.json", 0)));
    let begin: Value = serde_json::from_slice(&begin.expect("the first entry")).expect("JSON");
    let id = begin["topic_id"].as_str().map(str::to_owned);
    fs::remove_dir_all(site.home().path().join("archive")).expect("the archive");
    fs::create_dir(site.home().path().join("archive")).expect("a new one");
    let record = |n: i32| archive::Record {
        partition: n % 2,
        offset: i64::from(n / 2),
        timestamp: 1_700_000_000_000,
        key: Some(b"key".to_vec()),
        value: Some(format!("record {n}").into_bytes()),
        headers: Vec::new(),
    };
    let mut records: Vec<archive::Record> = (0..40).map(record).collect();
    records.retain(|record| record.partition != 0 || !(5..8).contains(&record.offset));
    // Of partition 1 it says that a batch could not be read, which the brokers have whole now.
    let behind =
        records.iter().filter(|record| record.partition == 1 && record.offset >= 15).cloned().collect::<Vec<_>>();
    records.retain(|record| record.partition == 0 || record.offset < 12);
    let changed = records.iter_mut().find(|record| (record.partition, record.offset) == (1, 9)).expect("a record");
    changed.value = Some(b"another".to_vec());
    Runtime::new().expect("a runtime").block_on(async {
        let store = on_disk(&site.home().path().join("archive"));
        let begin = Begin::topic(id, vec![Some(0); 2]);
        let mut forged = archive::Topic::begun_as(&store, TopicGeneration::new("main", &topic, 0), begin).await;
        forged.append(Format::Parquet, &records).await;
        forged.skip(1, 12..15).await;
        forged.append(Format::Avro, &behind).await;
    });
    assert_eq!(
        site.tidelog(&["verify", "--deep", "--json"]).expect(0).json()["errors"],
        json!([]),
        "by itself it is sound"
    );
    let told = compared(&site, &topic, 3);
    assert_eq!(counts(&told), json!({"missing": 3, "different": 1, "gap": 3}), "{told}");
    let findings = json!([
        {"fate": "gap", "generation": 0, "partition": 1, "start": 12, "end": 15, "records": null, "on_source": true, "detail": "unreadable"},
        {"fate": "missing", "generation": 0, "partition": 0, "start": 5, "end": 8, "records": 3, "on_source": true},
        {"fate": "different", "generation": 0, "partition": 1, "start": 9, "end": 10, "records": 1, "on_source": true},
    ]);
    assert_eq!(told["findings"], findings);
    let said = site.tidelog(&["verify", "--against-source"]).expect(3);
    assert!(said.stderr.contains("3 records missing; 1 record other than the source's"), "{}", said.stderr);
}

/// Retention was faster than a stopped archiver: what is lost is told before any gap is, and the gap by its reason after.
#[test]
fn what_retention_took_before_it_was_archived_is_lost_and_then_a_gap() {
    let (kafka, topic) = (shared(), unique("overtaken"));
    kafka.create_topic(&topic, 1, &[]);
    let site = site(kafka, &[&topic]);
    produce(&topic, &numbered(0, 0..30));
    site.archive(kafka, &[&topic]);
    produce(&topic, &numbered(0, 30..60));
    kafka.delete_records(&topic, 0, 45);
    let told = compared(&site, &topic, 3);
    assert_eq!(counts(&told), json!({"lost": 15, "expired": 30, "not_yet": 15}), "{told}");
    site.archive(kafka, &[&topic]);
    let told = compared(&site, &topic, 0);
    assert_eq!(counts(&told), json!({"gap": 15, "expired": 30}), "{told}");
    let findings = told["findings"].as_array().expect("findings");
    let gap = findings.iter().find(|found| found["fate"] == "gap").expect("a gap");
    assert_eq!((&gap["detail"], &gap["on_source"]), (&json!("broker_retention"), &json!(false)));
}

/// Topics that are gone, were made again, are not archived, or do not exist; a partition that was added; aborted and undecided
/// transactions; events that a connector sent twice.
#[test]
fn topics_that_one_side_does_not_have_are_told_by_name() {
    let kafka = shared();
    let [gone, again, new, nowhere, grown, open] = ["gone", "again", "new", "nowhere", "grown", "open"].map(unique);
    for topic in [&gone, &again, &grown, &open] {
        kafka.create_topic(topic, 1, &[]);
        produce(topic, &numbered(0, 0..20));
    }
    let all = [&gone, &again, &new, &nowhere, &grown, &open].map(String::as_str);
    let site = site(kafka, &all);
    kafka.produce_transaction(&open, &numbered(0, 20..25), End::Abort);
    produce(&grown, &numbered(0, 0..20));
    site.archive(kafka, &[&gone, &again, &grown, &open]);
    kafka.delete_topic(&gone);
    kafka.delete_topic(&again);
    kafka.create_topic(&again, 1, &[]);
    produce(&again, &numbered(0, 0..5));
    kafka.create_topic(&new, 2, &[]);
    produce(&new, &numbered(1, 0..9));
    kafka.grow_topic(&grown, 2);
    produce(&grown, &numbered(1, 0..3));
    let said = kafka.while_open(&open, &numbered(0, 30..34), || {
        site.tidelog(&["verify", "--against-source", "--deep", "--json"]).expect(0).json()
    });
    let row = |topic: &str| {
        let topics = said["source"]["topics"].as_array().expect("topics");
        topics.iter().find(|row| row["topic"] == topic).expect("a row").clone()
    };
    let state = |topic: &str| (row(topic)["state"].clone(), row(topic)["archived"].clone(), counts(&row(topic)));
    assert_eq!(state(&gone), (json!("gone"), json!(20), json!({})));
    assert_eq!(state(&again), (json!("made_again"), json!(20), json!({"not_yet": 5})));
    assert_eq!(state(&new), (json!("not_archived"), json!(0), json!({"not_yet": 9})));
    assert_eq!(state(&nowhere), (json!("nowhere"), json!(0), json!({})));
    assert_eq!(state(&grown), (json!("compared"), json!(40), json!({"not_yet": 3})));
    assert_eq!(state(&open), (json!("compared"), json!(20), json!({"not_yet": 4})));
    assert_eq!((&row(&open)["compared"], &row(&grown)["compared"]), (&json!(20), &json!(40)));
    let totals = &said["source"]["totals"];
    assert_eq!((&totals["not_yet"]["offsets"], &totals["missing"]["records"]), (&json!(21), &json!(0)), "{said}");

    // Once they are archived, what came before stays beside what is there.
    site.archive(kafka, &[&again, &new, &grown]);
    let told = compared(&site, &again, 0);
    assert_eq!((&told["generations"], &told["ended"]), (&json!([1]), &json!([0])), "{told}");
    assert_eq!((&told["compared"], counts(&told)), (&json!(5), json!({})));
}

/// An unclean election that nobody has archived behind, and then somebody has.
#[test]
fn a_log_that_an_unclean_election_cut_is_told_before_and_after_it_is_archived() {
    let cluster = Cluster::new("cut", 1, 0, "500ms");
    cluster.produce(0..100);
    let mut program = cluster.site.start();
    cluster.wait(0, &mut [&mut program]);
    cluster.leave_2_behind();
    cluster.produce(100..200);
    cluster.wait(0, &mut [&mut program]);
    program.terminate(STOP);
    cluster.elect_2();
    let told = compared(&cluster.site, &cluster.topic, 0);
    assert_eq!((counts(&told), &told["compared"]), (json!({"cut": 100}), &json!(100)), "{told}");
    // It grows beyond what is archived: the offsets are there again, and are other records.
    cluster.produce(1000..1250);
    let told = compared(&cluster.site, &cluster.topic, 3);
    assert_eq!(counts(&told), json!({"diverged": 100, "not_yet": 150}), "{told}");
    let mut program = cluster.site.start();
    cluster.wait(1, &mut [&mut program]);
    program.terminate(STOP);
    let told = compared(&cluster.site, &cluster.topic, 0);
    assert_eq!((counts(&told), &told["compared"]), (json!({"cut": 100}), &json!(350)), "{told}");
    assert_eq!(told["generations"], json!([0, 1]));
}

/// Rights that are missing, brokers that do not answer, and another cluster: each is named, and none is taken for a loss.
#[test]
fn a_source_that_refuses_or_does_not_answer_or_is_another_one_is_named() {
    let guarded = Guarded::start();
    let [open, shown, dark] = ["open", "shown", "dark"].map(unique);
    let address = guarded.address.clone();
    let ours =
        Site::new(&guarded.kafka.bootstrap(), &Settings { topics: &[&open, &shown, &dark], ..Settings::default() });
    for topic in [&open, &shown, &dark] {
        guarded.kafka.create_topic(topic, 1, &[]);
        guarded.kafka.produce(topic, Codec::None, &numbered(0, 0..10));
    }
    ours.archive(&guarded.kafka, &[&open, &shown, &dark]);
    let theirs =
        Site::new(&address, &Settings { topics: &[&open, &shown, &dark], properties: &LOGIN, ..Settings::default() });
    theirs.shares_archive_of(&ours);
    guarded.grant("Read", &["--topic", &open]);
    guarded.grant("Describe", &["--topic", &shown]);
    let said = theirs.tidelog(&["verify", "--against-source", "--json"]).expect(1);
    let rows = said.json()["source"]["topics"].as_array().expect("topics").clone();
    let row = |topic: &str| rows.iter().find(|row| row["topic"] == topic).expect("a row");
    assert_eq!((&row(&open)["state"], &row(&open)["compared"]), (&json!("compared"), &json!(10)), "{rows:?}");
    for (topic, lacking) in [(&shown, "grant READ on the topic"), (&dark, "grant READ and DESCRIBE on the topic")] {
        let trouble = &row(topic)["troubles"][0];
        assert_eq!((&row(topic)["state"], &trouble["kind"]), (&json!("unchecked"), &json!("denied")), "{rows:?}");
        assert_eq!(trouble["hint"], lacking, "{trouble}");
    }
    assert!(said.stderr.contains("2 topics could not be compared"), "{}", said.stderr);
    assert_eq!(guarded.kafka.members(&theirs.group), None, "no group is made by it");

    ours.reconfigure(&guarded.kafka.bootstrap(), &shared().bootstrap());
    let said = ours.tidelog(&["verify", "--against-source", "--json"]);
    assert_eq!(said.status, Some(2));
    let error = said.json()["source"]["error"]["detail"].to_string();
    assert!(error.contains("is the Kafka cluster") && said.json()["errors"] == json!([]), "{error}");
    ours.reconfigure(&shared().bootstrap(), &format!("127.0.0.1:{}", free_port()));
    let said = ours.tidelog(&["verify", "--against-source"]).expect(1);
    assert!(said.stdout.contains("could not be compared with"), "{}{}", said.stdout, said.stderr);
    assert!(said.stdout.contains("everything is as its checkpoints say"), "{}", said.stdout);
}

/// Producers, the archiver and retention go on while it is compared, again and again.
#[test]
fn nothing_is_missing_while_records_come_and_are_archived_and_removed() {
    let (kafka, topic) = (shared(), unique("moving"));
    kafka.create_topic(&topic, 2, &[]);
    let site = site(kafka, &[&topic]);
    produce(&topic, &numbered(0, 0..2_000));
    let mut program = site.start();
    site.wait_archived(kafka, &[&topic], &mut [&mut program]);
    let over = AtomicBool::new(false);
    let rounds = thread::scope(|scope| {
        scope.spawn(|| {
            let mut next = 2_000;
            while !over.load(Ordering::Relaxed) {
                let more = [numbered(0, next..next + 200), numbered(1, next..next + 200)].concat();
                produce(&topic, &more);
                next += 200;
                thread::sleep(std::time::Duration::from_millis(50));
            }
        });
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // Only what is archived.
                for (partition, end) in site.ends(&topic) {
                    let (first, _) = kafka.watermarks(&topic)[usize::try_from(partition).expect("a partition")];
                    if end > first + 100 {
                        kafka.delete_records(&topic, partition, end - 100);
                    }
                }
            }
        });
        let rounds: Vec<(Option<i32>, Value)> = (0..6)
            .map(|_| {
                let said = site.tidelog(&["verify", "--against-source", "--deep", "--json"]);
                (said.status, said.json()["source"]["topics"][0].clone())
            })
            .collect();
        over.store(true, Ordering::Relaxed);
        rounds
    });
    for (status, row) in &rounds {
        assert_eq!((status, &row["state"], &row["troubles"]), (&Some(0), &json!("compared"), &json!([])), "{row}");
        let unknown = ["missing", "lost", "different", "diverged", "unexplained", "damaged", "cut"];
        assert!(unknown.iter().all(|name| row["counts"].get(name).is_none()), "{row}");
    }
    assert!(rounds.iter().any(|(_, row)| row["counts"]["expired"]["records"].as_u64() > Some(0)), "{rounds:?}");
    program.terminate(STOP);
}

/// A sample looks at both ends of a large partition and says how much it is.
#[test]
fn a_sample_is_a_part_and_is_told() {
    let (kafka, topic) = (shared(), unique("sampled"));
    kafka.create_topic(&topic, 1, &[]);
    produce(&topic, &numbered(0, 0..20_000));
    let site = Site::new(&kafka.bootstrap(), &Settings { topics: &[&topic], format: "avro", ..Settings::default() });
    site.archive(kafka, &[&topic]);
    let said = site.tidelog(&["verify", "--against-source", "--json"]).expect(0).json();
    let row = &said["source"]["topics"][0];
    assert_eq!((&row["common_offsets"], &row["compared_offsets"]), (&json!(20_000), &json!(8 * 512)), "{row}");
    assert_eq!((&row["compared"], &row["counts"]), (&json!(8 * 512), &json!({})));
    assert_eq!(compared(&site, &topic, 0)["compared"], 20_000);
}

/// What is told of a topic is of one topic: it is deleted and made again while it is compared.
#[test]
fn nothing_is_taken_for_missing_while_a_topic_is_made_again_and_again() {
    let (kafka, topic) = (shared(), unique("again-and-again"));
    let fill = |generation: i32| {
        kafka.create_topic(&topic, 1, &[]);
        let message = |n: i32| Message::new(0, "key", &format!("record {n} of topic {generation}"));
        produce(&topic, &(0..20_000 - generation).map(message).collect::<Vec<_>>());
    };
    fill(0);
    let site = site(kafka, &[&topic]);
    let mut program = site.start();
    site.wait_archived(kafka, &[&topic], &mut [&mut program]);
    let over = AtomicBool::new(false);
    let rounds = thread::scope(|scope| {
        scope.spawn(|| {
            for generation in 1.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                kafka.delete_topic(&topic);
                fill(generation);
                thread::sleep(std::time::Duration::from_millis(700));
            }
        });
        let rounds: Vec<(Option<i32>, Value)> = (0..10)
            .map(|_| {
                let said = site.tidelog(&["verify", "--against-source", "--deep", "--json"]);
                (said.status, said.json()["source"].clone())
            })
            .collect();
        over.store(true, Ordering::Relaxed);
        rounds
    });
    for (status, said) in &rounds {
        assert!(matches!(status, Some(0 | 1)), "{said}");
        let row = &said["topics"][0];
        let wrong = ["missing", "lost", "different", "diverged", "unexplained", "damaged", "cut"];
        assert!(wrong.iter().all(|name| row["counts"].get(name).is_none()), "{row}");
    }
    program.terminate(STOP);
}

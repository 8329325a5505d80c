//! What a store does to single requests: refusals without effect, lost answers, codes that pass, slow links, and a
//! bucket that lost objects. A proxy stands before a real S3 server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and clippy.toml spares only the test functions")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use object_store::path::Path;
use tidelog::config::Archive;
use tidelog::error::Kind;
use tidelog::manifest::{Chain, ChainScan, Change, Outcome, ScanStep, Selection, backups};
use tidelog::store::{Created, Store, layout};
use tidelog::stream::{Begin, Format, Lsn, PartitionRange, SegmentRef, StreamId, System, TopicGeneration, sha256};
use tidelog::tasks::Task;

use crate::archive::{Record, Topic, on_disk};
use crate::http::site_with_listener;
use crate::loops::is_told;
use crate::postgres_again::s3_with;
use crate::rig::kafka::{Kafka, shared};
use crate::rig::postgres::{Postgres, PostgresOptions};
use crate::rig::program::{self, Home};
use crate::rig::s3::{Bucket, locked, moto, s3s_fs};
use crate::rig::s3_proxy::{Fault, Proxy, Rule};
use crate::rig::topics::{Codec, Message};
use crate::rig::{unique, wait_until};
use crate::site::{STOP, Settings, Site};

const CONFLICT: Fault = Fault::Answer(409, "ConditionalRequestConflict");

pub(crate) fn store_with(bucket: &Bucket, more: &[(&str, &str)]) -> Store {
    let mut options: BTreeMap<String, String> =
        bucket.options().iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    options.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    let archive = Archive { url: bucket.url().parse().unwrap(), spool_dir: PathBuf::new(), options };
    Store::open(&archive).unwrap()
}

/// A bucket of moto behind a proxy.
fn behind_proxy() -> (Bucket, Proxy, Store) {
    let mut bucket = moto();
    let proxy = Proxy::before(&mut bucket);
    let store = store_with(&bucket, &[]);
    (bucket, proxy, store)
}

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn orders() -> StreamId {
    TopicGeneration::new("main", "orders", 0).stream()
}

async fn begun(store: &Store) -> Chain {
    Chain::begin(store, &orders(), Begin::topic(Some("id".into()), vec![Some(0)]), "w", now()).await.unwrap()
}

fn change(n: i64) -> Change {
    let range = PartitionRange {
        partition: 0,
        start: n,
        end: n + 1,
        records: 1,
        min_timestamp: Some(n),
        max_timestamp: Some(n),
    };
    let segment = SegmentRef {
        object: layout::segment(orders().topic().unwrap(), now(), "w", n.unsigned_abs(), Format::Parquet).to_string(),
        format: Format::Parquet,
        bytes: 10,
        sha256: sha256(b"the segment"),
        raw_bytes: 100,
        largest_record: 100,
        partitions: vec![range],
        last: Vec::new(),
        generation: 0,
        minimal: None,
    };
    Change { segments: vec![segment], ..Change::default() }
}

async fn grow(chain: &mut Chain, head: u64) {
    while chain.head() < head {
        let next = chain.position(0).map_or(0, |position| position.end);
        let outcome = chain.commit(&change(next), "w", now()).await.unwrap();
        assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
    }
}

async fn damage(store: &Store) -> Vec<String> {
    let mut scan = ChainScan::new(store, &orders()).await.unwrap();
    let mut found = Vec::new();
    while let Some(step) = scan.next().await.unwrap() {
        if let ScanStep::Damaged { error, .. } = step {
            found.push(error.to_string());
        }
    }
    found
}

// Exists, although nothing is there.

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_without_effect_is_tried_again_and_every_outcome_of_a_create_is_told() {
    let (_bucket, proxy, store) = behind_proxy();
    let (key, mine, other) = (Path::from("a/key"), Bytes::from_static(b"mine"), Bytes::from_static(b"other"));
    proxy.add(Rule::new("PUT", "a/key", CONFLICT).times(3));
    assert_eq!(store.create(&key, mine.clone()).await.unwrap(), Created::Yes);
    assert_eq!(store.create(&key, mine.clone()).await.unwrap(), Created::Same);
    assert_eq!(store.create(&key, other).await.unwrap(), Created::Other(mine.clone()));
    // The answer to the first is lost; whoever sends it again finds its own.
    let lost = Path::from("a/lost");
    proxy.add(Rule::new("PUT", "a/lost", Fault::LoseAnswer).times(1));
    assert_eq!(store.create(&lost, mine.clone()).await.unwrap(), Created::Same);
    // Written, and told to be refused.
    let told = Path::from("a/told");
    proxy.add(Rule::new("PUT", "a/told", Fault::AnswerAfter(409, "ConditionalRequestConflict")).times(1));
    assert_eq!(store.create(&told, mine).await.unwrap(), Created::Same);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_for_ever_is_asked_a_few_times_with_pauses() {
    let (_bucket, proxy, store) = behind_proxy();
    proxy.add(Rule::new("PUT", "00000000000000000000.json", CONFLICT));
    let start = Instant::now();
    let begin = Begin::topic(Some("id".into()), vec![Some(0)]);
    let begun = tokio::time::timeout(Duration::from_secs(60), Chain::begin(&store, &orders(), begin, "w", now())).await;
    let error = begun.expect("it ends").unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(error.to_string().contains("00000000000000000000.json is refused as existing"), "{error}");
    let sent = proxy.came("^PUT .*00000000000000000000.json");
    assert!((3..=10).contains(&sent), "{sent} creates in {:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn entry_0_a_page_and_any_entry_survive_a_refusal_without_effect() {
    let (_bucket, proxy, store) = behind_proxy();
    for key in ["orders.0/00000000000000000000.json", "orders.0/pages/", "orders.0/0000000000000000006[0-9].json"] {
        proxy.add(Rule::new("PUT", key, CONFLICT).times(2));
    }
    let mut chain = begun(&store).await;
    grow(&mut chain, 70).await;
    let opened = Chain::open(&store, &orders()).await.unwrap().unwrap();
    assert_eq!((opened.head(), opened.totals().records), (70, 69));
    assert_eq!(opened.select(&Selection::default()).await.unwrap().segments.len(), 69);
    assert_eq!(damage(&store).await, [""; 0]);
}

fn backup() -> backups::Backup {
    let part = backups::Part {
        object: "backups/postgres/system=1/b/backup_manifest.zst".into(),
        bytes: 1,
        stored_bytes: 1,
        sha256: sha256(b"x"),
    };
    backups::Backup {
        format: 1,
        name: "b".into(),
        label: "test".into(),
        system: System { system_id: 1, wal_segment_size: 16 << 20, server_version: 17 },
        timeline: 1,
        start: Lsn(1),
        end: Lsn(2),
        end_timeline: 1,
        started: now(),
        finished: now(),
        is_read_back: true,
        damaged: Vec::new(),
        checksums: None,
        parent: None,
        archives: vec![backups::Archive {
            name: "base.tar".into(),
            tablespace: None,
            parts: vec![part.clone()],
            places: vec![],
            empty: vec![],
        }],
        manifest: part,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_committed_through_a_refusal_without_effect() {
    let (_bucket, proxy, store) = behind_proxy();
    let refused = proxy.add(Rule::new("PUT", "backup.json", CONFLICT).times(2));
    backups::commit(&store, &backup()).await.unwrap();
    assert_eq!((refused.met(), backups::read(&store, 1, "b", None).await.unwrap()), (2, Some(backup())));
    let other = backups::Backup { label: "other".into(), ..backup() };
    assert_eq!(backups::commit(&store, &other).await.unwrap_err().kind(), Kind::Fenced);
}

// What passes is sent again; what does not is told by its code.

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_400_or_403_that_passes_is_sent_again() {
    let (_bucket, proxy, store) = behind_proxy();
    let passing = [
        (400, "ExpiredToken"),
        (400, "RequestTimeout"),
        (400, "SlowDown"),
        (400, "TokenRefreshRequired"),
        (403, "RequestTimeTooSkewed"),
        (409, "OperationAborted"),
        (503, "SlowDown"),
    ];
    for (n, (status, code)) in passing.into_iter().enumerate() {
        let key = Path::from(format!("pass/{n}/object"));
        let met = ["PUT", "GET", "HEAD"].map(|method| {
            let rule = Rule::new(method, &format!("pass/{n}/object"), Fault::Answer(status, code)).times(1);
            // A HEAD has no body and so no code; 400 alone may be anything.
            (status != 409 && (method != "HEAD" || status == 400)).then(|| proxy.add(rule))
        });
        let listed =
            proxy.add(Rule::new("GET", &format!("list-type=2.*pass%2F{n}%2F"), Fault::Answer(status, code)).times(1));
        proxy.add(Rule::new("PUT", &format!("pass/{n}/object"), Fault::Answer(status, code)).times(1));
        store.put(&key, Bytes::from_static(b"x")).await.unwrap_or_else(|error| panic!("{status} {code}: {error}"));
        assert_eq!(store.get(&key).await.unwrap().unwrap(), "x", "{status} {code}");
        assert_eq!(store.size(&key).await.unwrap(), Some(1), "{status} {code}");
        assert_eq!(store.list(&Path::from(format!("pass/{n}"))).await.unwrap().len(), 1, "{status} {code}");
        assert!(
            met.iter().flatten().all(|met| met.met() == 1) && listed.met() == 1,
            "{status} {code}: nothing was met"
        );
    }
    proxy.add(Rule::new("PUT", "tidelog-probe", Fault::Answer(400, "ExpiredToken")).times(2));
    store.probe().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_pass_is_told_at_once_with_its_code() {
    let (_bucket, proxy, store) = behind_proxy();
    for (status, code, kind) in [
        (400, "AuthorizationHeaderMalformed", Kind::Config),
        (403, "SignatureDoesNotMatch", Kind::Denied),
        (403, "AccessDenied", Kind::Denied),
        (403, "QuotaExceeded", Kind::Full),
    ] {
        proxy.clear();
        let met = proxy.add(Rule::new("", "stays/", Fault::Answer(status, code)));
        let error = store.put(&Path::from("stays/object"), Bytes::new()).await.unwrap_err();
        assert_eq!((error.kind(), met.met()), (kind, 1), "{error}");
        assert!(error.hint_text().unwrap().contains(code), "{error:?}");
    }
    proxy.clear();
    proxy.add(Rule::new("", "stays/", Fault::Answer(400, "ExpiredToken")));
    let error = store.get(&Path::from("stays/object")).await.unwrap_err();
    assert_eq!((error.kind(), error.exit_code()), (Kind::Unavailable, 1), "{error}");
    assert!(error.hint_text().unwrap().contains("ExpiredToken: the credentials have expired"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_an_upload_is_sent_again_by_itself() {
    let (_bucket, proxy, store) = behind_proxy();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..20 << 20).map(|n: u32| (n / 251 + n % 253) as u8).collect();
    file.write_all(&bytes).unwrap();
    let met = [(400, "RequestTimeout"), (400, "ExpiredToken"), (503, "SlowDown")]
        .map(|(status, code)| proxy.add(Rule::new("PUT", "partNumber=2", Fault::Answer(status, code)).times(1)));
    proxy.add(Rule::new("PUT", "partNumber=3", Fault::LoseAnswer).times(1));
    let begun = proxy.add(Rule::new("POST", "uploads", Fault::Answer(400, "RequestTimeout")).times(1));
    store.upload(&Path::from("upload/parts"), file.path(), &sha256(&bytes)).await.unwrap();
    assert!(store.get(&Path::from("upload/parts")).await.unwrap().unwrap() == bytes, "the bytes differ");
    assert!(met.iter().all(|met| met.met() == 1) && begun.met() == 1);
    assert_eq!(proxy.came("^PUT .*partNumber=1"), 1, "what was through is not sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_lost_answers_and_broken_reads_are_ridden_out() {
    let (_bucket, proxy, store) = behind_proxy();
    let mut chain = begun(&store).await;
    proxy.add(Rule::new("", "", Fault::Answer(503, "SlowDown")).skip(5).times(4));
    proxy.add(Rule::new("PUT", "orders.0", Fault::LoseAnswer).skip(10).times(3));
    proxy.add(Rule::new("PUT", "orders.0", Fault::AnswerAfter(500, "InternalError")).skip(20).times(2));
    proxy.add(Rule::new("GET", "orders.0/0000", Fault::CutAnswer(40)).skip(1).times(2));
    proxy.add(Rule::new("PUT", "pages/", Fault::Delay(Duration::from_millis(300))).times(1));
    grow(&mut chain, 70).await;
    let opened = Chain::open(&store, &orders()).await.unwrap().unwrap();
    assert_eq!((opened.head(), opened.totals().records), (70, 69));
    assert_eq!(damage(&store).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_lags_is_not_taken_for_the_end_of_a_chain() {
    let (_bucket, proxy, store) = behind_proxy();
    let mut chain = begun(&store).await;
    grow(&mut chain, 70).await;
    let newest = regex::Regex::new("0000000000000000006[0-9].json|00000000000000000070.json").unwrap();
    proxy.add(Rule::new("GET", "list-type=2", Fault::HideKeys(newest)));
    let mut opened = Chain::open(&store, &orders()).await.unwrap().unwrap();
    assert_eq!((opened.head(), opened.totals().records), (70, 69));
    grow(&mut opened, 75).await;
    assert_eq!(Chain::open(&store, &orders()).await.unwrap().unwrap().head(), 75);
}

// A slow link.

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_of_20_mb_gets_through_500_kb_a_second() {
    let (_bucket, proxy, store) = behind_proxy();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&vec![7; 20_000_000]).unwrap();
    proxy.add(Rule::new("", "slow/", Fault::BytesPerSecond(500_000)));
    let start = Instant::now();
    store.upload(&Path::from("slow/segment"), file.path(), &sha256(&vec![7; 20_000_000])).await.unwrap();
    assert!(start.elapsed() > Duration::from_secs(35), "the link was not slow: {:?}", start.elapsed());
    proxy.clear();
    assert_eq!(store.size(&Path::from("slow/segment")).await.unwrap(), Some(20_000_000));
}

#[test]
fn a_segment_of_20_mb_is_read_over_500_kb_a_second() {
    let mut bucket = moto();
    let store = store_with(&bucket, &[]);
    let mut random = crate::rig::records::Random::new(7);
    let mut noise = |bytes: usize| (0..bytes).map(|_| random.below(256) as u8).collect::<Vec<u8>>();
    let records: Vec<Record> =
        (0..20).map(|offset| Record { value: Some(noise(1_000_000)), ..Record::new(0, offset, 1_000) }).collect();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        Topic::begin(&store, "wide", 0).await.append(Format::Parquet, &records).await;
    });
    let proxy = Proxy::before(&mut bucket);
    let slow = proxy.add(Rule::new("GET", "segments/", Fault::BytesPerSecond(500_000)));
    let options: String = bucket.options().iter().map(|(key, value)| format!("{key} = {value:?}\n")).collect();
    let home = Home::with_config(&format!("[archive]\nurl = \"{}\"\n[archive.options]\n{options}", bucket.url()));
    let start = Instant::now();
    let got = home.run(&["-c", "tidelog.toml", "cat", "--topic", "wide"]).expect(0);
    assert!(
        start.elapsed() > Duration::from_secs(35) && slow.met() > 0,
        "the link was not slow: {:?}",
        start.elapsed()
    );
    let values: Vec<String> = got.json_lines().iter().map(|line| line["value"]["base64"].to_string()).collect();
    let sent = records.iter().map(|record| format!("{:?}", STANDARD.encode(record.value.as_deref().unwrap())));
    assert!(values == sent.collect::<Vec<_>>(), "the values differ");
    // Nothing was asked for twice: the link was slow, and no request was given up.
    assert!(proxy.came("^GET .*segments/") as u64 == slow.met(), "{}", slow.met());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_a_store_has_forgotten_is_begun_again() {
    let (_bucket, proxy, store) = behind_proxy();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..20 << 20).map(|n: u32| (n / 251 + n % 253) as u8).collect();
    file.write_all(&bytes).unwrap();
    let (hash, key) = (sha256(&bytes), Path::from("upload/forgotten"));
    for (method, at, fault) in [
        ("PUT", "partNumber=2", Fault::Answer(404, "NoSuchUpload")),
        ("POST", "uploadId=", Fault::Answer(400, "InvalidPart")),
        ("POST", "uploadId=", Fault::Answer(404, "NoSuchUpload")),
        // The store takes the part, and says of it what is another's: it knows better in the end.
        ("PUT", "partNumber=2", Fault::ForeignTag("\"0123456789abcdef0123456789abcdef\"")),
        ("PUT", "partNumber=2", Fault::ForeignTag("</ETag></Part><!--\u{e9}")),
    ] {
        proxy.clear();
        let met = proxy.add(Rule::new(method, at, fault.clone()).times(1));
        let error = store.upload(&key, file.path(), &hash).await.unwrap_err();
        assert!(error.is_transient() && met.met() == 1, "{fault:?}: {error:?}");
        assert_eq!(store.size(&key).await.unwrap(), None, "{fault:?}: nothing is there");
        store.upload(&key, file.path(), &hash).await.unwrap();
        assert!(store.get(&key).await.unwrap().unwrap() == bytes, "the bytes differ");
        store.delete(&key).await.unwrap();
    }
}

// What a store lacks or wants.

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_bulk_delete_says_which_option_helps() {
    let (bucket, proxy, store) = behind_proxy();
    proxy.add(Rule::new("POST", "delete", Fault::Answer(501, "NotImplemented")));
    let error = store.probe().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");
    assert!(error.hint_text().unwrap().contains("aws_disable_bulk_delete"), "{error:?}");
    store_with(&bucket, &[("aws_disable_bulk_delete", "true")]).probe().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_with_object_lock_gets_the_checksums_that_it_wants() {
    for mut bucket in [moto(), s3s_fs()] {
        let proxy = Proxy::before(&mut bucket);
        // As Amazon S3 answers it: "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with
        // Object Lock parameters".
        let locked = Fault::Answer(400, "InvalidRequest");
        proxy.add(Rule::new("PUT", "", locked).without_header("x-amz-checksum-sha256"));
        let error = store_with(&bucket, &[]).put(&Path::from("a"), Bytes::new()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Config, "{error}");
        assert!(error.hint_text().unwrap().contains("aws_checksum_algorithm"), "{error:?}");
        let store = store_with(&bucket, &[("aws_checksum_algorithm", "sha256")]);
        store.probe().await.unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![7; 18 << 20]).unwrap();
        store.upload(&Path::from("parts"), file.path(), &sha256(&vec![7; 18 << 20])).await.unwrap();
        assert_eq!(store.size(&Path::from("parts")).await.unwrap(), Some(18 << 20));
    }
}

#[test]
fn a_profile_that_is_not_read_is_named() {
    let home =
        Home::with_config("[archive]\nurl = \"s3://bucket\"\n[kafka]\nbootstrap_servers = \"b:1\"\ntopics = [\"a\"]\n");
    for (variables, told) in [
        (&[("AWS_PROFILE", "prod")][..], true),
        (&[("AWS_PROFILE", "prod"), ("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")], false),
        (&[], false),
    ] {
        let mut command = home.command(&["-c", "tidelog.toml", "check"]);
        command.envs(variables.iter().copied());
        let output = program::run(command).expect(0);
        assert_eq!(output.stderr.contains("AWS_PROFILE is set and is not read"), told, "{variables:?}: {output:?}");
    }
}

// A bucket that was put back to an earlier state.

/// Sends `count` records to partition 0 and waits until they are archived, in a checkpoint of their own.
fn archive_more(kafka: &Kafka, site: &Site, topic: &str, program: &mut crate::rig::program::Program, count: usize) {
    let messages: Vec<Message> = (0..count).map(|n| Message::new(0, &format!("key {n}"), "value")).collect();
    kafka.produce(topic, Codec::None, &messages);
    site.wait_archived(kafka, &[topic], &mut [program]);
}

/// The entries of the topic's chain as files, in order.
fn entries(site: &Site, topic: &str) -> Vec<PathBuf> {
    let chain = site.home().path().join("archive/manifest/kafka/main").join(format!("{topic}.0"));
    let files = std::fs::read_dir(chain).unwrap().map(|file| file.unwrap().path());
    let mut entries: Vec<PathBuf> = files.filter(|file| file.extension().is_some_and(|end| end == "json")).collect();
    entries.sort();
    entries
}

fn site_of(kafka: &Kafka, topic: &str) -> Site {
    kafka.create_topic(topic, 1, &[]);
    Site::new(&kafka.bootstrap(), &Settings { topics: &[topic], max_age: "200ms", ..Settings::default() })
}

#[test]
fn an_archive_that_went_back_while_it_is_written_is_read_again_from_the_source() {
    let (kafka, topic) = (shared(), unique("went-back"));
    let site = site_of(kafka, &topic);
    let mut program = site.start();
    for _ in 0..5 {
        archive_more(kafka, &site, &topic, &mut program, 20);
    }
    let before = entries(&site, &topic);
    for lost in &before[before.len() - 3..] {
        std::fs::remove_file(lost).unwrap();
    }
    archive_more(kafka, &site, &topic, &mut program, 20);
    let said = program.output();
    program.terminate(STOP);
    assert!(said.contains("the archive went back in time"), "{said}");
    site.assert_holds(&topic, 0, &kafka.consume_all(&topic));
    let report = site.assert_sound();
    assert_eq!((report["records"].as_u64(), &report["gaps"]), (Some(120), &serde_json::json!([])), "{report}");
}

#[test]
fn a_hole_is_told_by_every_reader_and_mended_by_a_command() {
    let (kafka, topic) = (shared(), unique("hole"));
    let site = site_of(kafka, &topic);
    let mut program = site.start();
    for _ in 0..6 {
        archive_more(kafka, &site, &topic, &mut program, 20);
    }
    program.terminate(STOP);
    let before = entries(&site, &topic);
    let above = std::fs::read(before.last().unwrap()).unwrap();
    for lost in &before[before.len() - 4..before.len() - 1] {
        std::fs::remove_file(lost).unwrap();
    }
    let missing = before[before.len() - 4].file_name().unwrap().to_str().unwrap().to_owned();
    let replay = ["replay", "--topics", &topic, "--from", "2000-01-01T00:00:00Z", "--to-stdout"];
    for command in [&["ls"][..], &["cat", "--topic", &topic], &["files"], &["verify"], &replay] {
        let output = site.tidelog(command);
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(said.contains(&format!("{missing} is missing")), "{command:?} says nothing of the hole: {said}");
        output.expect(3);
    }
    let report = site.tidelog(&["verify", "--repair", "--json"]).expect(0).json();
    let aside = report["repaired"][0]["aside"].as_array().unwrap();
    assert_eq!(aside.len(), 1, "{report}");
    let kept = site.home().path().join("archive").join(aside[0].as_str().unwrap());
    assert_eq!(std::fs::read(kept).unwrap(), above, "the entry above the hole is kept");
    site.archive(kafka, &[&topic]);
    site.assert_holds(&topic, 0, &kafka.consume_all(&topic));
    assert_eq!(site.assert_sound()["records"], 120);
}

// The program against a bucket.

#[test]
fn commands_and_the_service_ride_out_answers_that_pass() {
    let (kafka, topic) = (shared(), unique("passing"));
    let site = site_of(kafka, &topic);
    let mut bucket = moto();
    let proxy = Proxy::before(&mut bucket);
    site.archive_in(&bucket);
    let first = proxy.add(Rule::new("PUT", "tidelog-probe", Fault::Answer(400, "ExpiredToken")).times(1));
    proxy.add(Rule::new("PUT", "/archive/segments/", Fault::Answer(400, "RequestTimeout")).times(1));
    proxy.add(Rule::new("PUT", "/archive/manifest/", CONFLICT).times(3));
    let mut program = site.start();
    for _ in 0..3 {
        archive_more(kafka, &site, &topic, &mut program, 20);
    }
    program.terminate(STOP);
    assert_eq!(first.met(), 1, "the first request of the service was answered by the rule");
    for command in [
        &["cat", "--topic", &topic][..],
        &["verify", "--deep"],
        &["ls"],
        &["files"],
        &["replay", "--topics", &topic, "--from", "2000-01-01T00:00:00Z", "--to-stdout"],
    ] {
        proxy.clear();
        let met = [("manifest", 1), ("segments", 1), ("", 3)].map(|(below, skip)| {
            proxy.add(Rule::new("GET", below, Fault::Answer(400, "RequestTimeout")).skip(skip).times(1))
        });
        site.tidelog(command).expect(0);
        assert!(met.iter().any(|met| met.met() > 0), "{command:?} met no fault");
    }
    proxy.clear();
    site.assert_holds(&topic, 0, &kafka.consume_all(&topic));
}

/// What a merge, an expiry, claims and holds ask of a store: to delete, to write over, to create again. The lock keeps the versions,
/// and is in the way of none of it.
#[tokio::test(flavor = "multi_thread")]
async fn object_lock_keeps_every_version_and_is_in_the_way_of_nothing() {
    for mode in ["COMPLIANCE", "GOVERNANCE"] {
        let bucket = locked();
        let script = |what: &str, key: &Path| {
            let args = [what, &bucket.endpoint, &bucket.name, key.as_ref()];
            crate::rig::python::run(include_str!("data/s3_lock.py"), &args)
        };
        let store = store_with(&bucket, &[("aws_checksum_algorithm", "sha256")]);
        store.probe().await.unwrap();
        let (given_up, claims) = (Path::from("segments/given-up"), Path::from("coverage/claims"));
        store.put(&given_up, Bytes::from_static(b"wal")).await.unwrap();
        script(mode, &given_up);
        store.delete(&given_up).await.unwrap();
        assert_eq!((store.get(&given_up).await.unwrap(), store.size(&given_up).await.unwrap()), (None, None));
        assert!(store.list(&Path::from("segments")).await.unwrap().is_empty());
        assert_eq!(store.create(&given_up, Bytes::from_static(b"again")).await.unwrap(), Created::Yes);
        script(mode, &given_up);
        store.delete(&given_up).await.unwrap();
        store.delete(&given_up).await.unwrap();
        for text in [&b"old"[..], b"new"] {
            store.put(&claims, Bytes::from_static(text)).await.unwrap();
            script(mode, &claims);
        }
        assert_eq!(store.get(&claims).await.unwrap().as_deref(), Some(&b"new"[..]));
        for key in [&given_up, &claims] {
            let kept: serde_json::Value = serde_json::from_str(&script("versions", key)).unwrap();
            assert_eq!(kept["refused"], serde_json::json!(["AccessDenied", "AccessDenied"]), "{mode}, {key}: {kept}");
        }
    }
}

/// What a killed process leaves of an upload is taken away by the next service, and nothing of anybody else.
#[test]
fn an_upload_that_was_never_finished_is_aborted_after_a_day_and_nobody_else_s() {
    let (kafka, topic) = (shared(), unique("unfinished"));
    let (site, bucket) = (site_of(kafka, &topic), moto());
    site.archive_in(&bucket);
    let object =
        format!("segments/kafka/cluster=main/topic={topic}/generation=0/date=2026-11-22/160054-4ab14f214525-1.parquet");
    let others =
        [object.clone(), format!("archive/{}", object.replace("4ab14f214525", "..")), "archive/notes.txt".into()];
    for key in others.iter().chain([&format!("archive/{object}")]) {
        bucket.begin_upload(key);
    }
    bucket.begin_upload(&format!("archive/{object}"));
    let listed = |key: &str| bucket.uploads().matches(&format!("<Key>{key}</Key>")).count();
    assert_eq!(listed(&format!("archive/{object}")), 2);
    let program = site.start();
    wait_until("the uploads to be aborted", STOP, || listed(&format!("archive/{object}")) == 0);
    for other in &others {
        assert_eq!(listed(other), 1, "{other} is somebody else's");
    }
    wait_until("it to be told", STOP, || program.output().matches("an upload that was never finished").count() == 2);
    program.terminate(STOP);
}

#[test]
fn what_is_left_of_uploads_is_told_while_it_cannot_be_listed() {
    let (kafka, topic, task) = (shared(), unique("left"), Task::Leftovers);
    kafka.create_topic(&topic, 1, &[]);
    let (site, server) = site_with_listener(kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");
    let mut bucket = moto();
    let proxy = Proxy::before(&mut bucket);
    site.archive_in(&bucket);
    let _away = proxy.add(Rule::new("GET", "[?&]uploads", Fault::Answer(503, "SlowDown")));
    let mut program = site.start();
    wait_until(&format!("{} to be told", task.name()), STOP, || {
        program.assert_running();
        server.is_up() && is_told(&server, task, "killed processes") && server.get("/readyz").status == 200
    });
    assert_eq!(task.name(), "leftover_uploads");
    proxy.clear();
    wait_until("nothing to fail", STOP, || server.json("/api/status")["failing"] == serde_json::json!([]));
    program.terminate(STOP);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_under_way_is_not_aborted_and_a_store_without_them_is_no_trouble() {
    let bucket = moto();
    bucket
        .begin_upload("segments/kafka/cluster=main/topic=t/generation=0/date=2026-11-22/160054-4ab14f214525-1.parquet");
    let store = store_with(&bucket, &[]);
    let begun: DateTime<Utc> = "2010-11-10T20:48:33Z".parse().unwrap();
    assert_eq!(store.abort_uploads(begun).await.unwrap(), 0, "it may be under way");
    assert_eq!(store.abort_uploads(begun + chrono::TimeDelta::seconds(1)).await.unwrap(), 1);
    assert_eq!(store.abort_uploads(begun + chrono::TimeDelta::seconds(1)).await.unwrap(), 0);
    assert_eq!(crate::archive::memory().abort_uploads(begun).await.unwrap(), 0);
    // s3s-fs does not list uploads: it is told, and nothing else.
    let error = store_with(&s3s_fs(), &[]).abort_uploads(begun).await.unwrap_err();
    assert!(error.to_string().contains("uploads") && error.kind() == Kind::Unsupported, "{error:?}");
}

/// What S3 and proxies answer with the status of a success: an archive is not empty for that, and no object damaged.
#[test]
fn an_answer_that_is_none_is_no_empty_archive_and_no_damage() {
    let (kafka, topic) = (shared(), unique("no-listing"));
    let site = site_of(kafka, &topic);
    let mut bucket = moto();
    let proxy = Proxy::before(&mut bucket);
    site.archive_in(&bucket);
    let mut program = site.start();
    archive_more(kafka, &site, &topic, &mut program, 20);
    program.terminate(STOP);
    let passing = proxy.add(Rule::new("GET", "list-type=2", Fault::Answer(200, "InternalError")).times(1));
    assert!(site.tidelog(&["ls"]).expect(0).stdout.contains(&topic));
    assert_eq!(passing.met(), 1);
    proxy.add(Rule::new("GET", "list-type=2", Fault::Answer(200, "AccessDenied")));
    for command in [&["ls"][..], &["verify"], &["files"]] {
        let output = site.tidelog(command).expect(1);
        assert!(output.stderr.contains("AccessDenied"), "{command:?}: {}", output.stderr);
    }
    proxy.clear();
    let cut = proxy.add(Rule::new("GET", "/archive/segments/", Fault::CutAnswer(100)));
    let output = site.tidelog(&["verify"]).expect(1);
    assert!(cut.met() > 0 && output.stderr.contains("1 object could not be checked"), "{}", output.stderr);
    assert!(!output.stdout.contains("cannot be read"), "{}", output.stdout);
}

/// Every sort of fault, again and again.
fn make_bad(proxy: &Proxy) {
    proxy.add(Rule::new("PUT", "", CONFLICT).every(7));
    proxy.add(Rule::new("PUT", "", Fault::LoseAnswer).every(11));
    proxy.add(Rule::new("PUT", "", Fault::AnswerAfter(500, "InternalError")).every(13));
    proxy.add(Rule::new("", "", Fault::Answer(503, "SlowDown")).every(17));
    proxy.add(Rule::new("", "", Fault::Answer(400, "ExpiredToken")).every(19));
    proxy.add(Rule::new("GET", "", Fault::CutAnswer(20)).every(23));
    proxy.add(Rule::new("", "", Fault::Delay(Duration::from_millis(400))).every(29));
}

#[test]
fn a_topic_is_whole_in_a_bad_store_although_the_archiver_is_killed() {
    let (kafka, topic) = (shared(), unique("bad-store"));
    kafka.create_topic(&topic, 1, &[]);
    // The group lets go of a killed member soon.
    let properties = [("session.timeout.ms", "6000")];
    let settings = Settings { topics: &[&topic], max_age: "200ms", properties: &properties, ..Settings::default() };
    let site = Site::new(&kafka.bootstrap(), &settings);
    let mut bucket = moto();
    let proxy = Proxy::before(&mut bucket);
    site.archive_in(&bucket);
    make_bad(&proxy);
    for _ in 0..3 {
        let mut program = site.start();
        for _ in 0..4 {
            archive_more(kafka, &site, &topic, &mut program, 20);
        }
        // What is sent now may be anywhere between the broker and the chain.
        let more: Vec<Message> = (0..20).map(|n| Message::new(0, &format!("killed {n}"), "value")).collect();
        kafka.produce(&topic, Codec::None, &more);
        program.kill();
    }
    site.archive(kafka, &[&topic]);
    site.assert_holds(&topic, 0, &kafka.consume_all(&topic));
    let report = site.tidelog(&["verify", "--deep", "--json"]).expect(0).json();
    assert_eq!((report["records"].as_u64(), &report["gaps"]), (Some(300), &serde_json::json!([])), "{report}");
}

#[test]
fn the_log_of_a_database_is_whole_in_a_bad_store_although_the_archiver_is_killed() {
    let quiet: &[(&str, &str)] = &[("autovacuum", "off"), ("wal_keep_size", "1GB")];
    let postgres = Postgres::start(PostgresOptions { config: quiet, ..Default::default() });
    let (mut bucket, home) = (moto(), Home::new());
    let proxy = Proxy::before(&mut bucket);
    let url = postgres.url("postgres");
    let config = format!("{}[postgres]\nurl = \"{url}\"\nmax_age = \"500ms\"\n", in_bucket(&bucket, &home));
    home.write("tidelog.toml", &config);
    make_bad(&proxy);
    for round in 0..3 {
        let mut program = home.start(&["-c", "tidelog.toml", "run"]);
        postgres.psql(&format!("CREATE TABLE round_{round} AS SELECT generate_series(1, 5000) n"));
        // It ends when the log up to its end is archived.
        home.run(&["-c", "tidelog.toml", "backup"]).expect(0);
        postgres.psql(&format!("INSERT INTO round_{round} SELECT generate_series(1, 50000)"));
        program.assert_running();
        program.kill();
    }
    let program = home.start(&["-c", "tidelog.toml", "run"]);
    home.run(&["-c", "tidelog.toml", "backup"]).expect(0);
    program.terminate(STOP);
    let report = home.run(&["-c", "tidelog.toml", "verify", "--deep", "--json"]).expect(0).json();
    assert_eq!((&report["gaps"], report["backups"].as_u64()), (&serde_json::json!([]), Some(4)), "{report}");
}

/// The section of a configuration that puts the archive into the bucket.
pub(crate) fn in_bucket(bucket: &Bucket, home: &Home) -> String {
    let options: String = bucket.options().iter().map(|(key, value)| format!("{key} = {value:?}\n")).collect();
    let spool = home.path().join("spool");
    format!("[archive]\nurl = {:?}\nspool_dir = {spool:?}\n[archive.options]\n{options}", bucket.url())
}

#[test]
fn a_timeline_and_a_base_backup_survive_refusals_without_effect() {
    let quiet: &[(&str, &str)] = &[("autovacuum", "off"), ("wal_keep_size", "1GB")];
    let first = Postgres::start(PostgresOptions { config: quiet, ..Default::default() });
    let second = first.standby(PostgresOptions { config: quiet, ..Default::default() });
    let (mut bucket, home) = (moto(), Home::new());
    let proxy = Proxy::before(&mut bucket);
    let config = format!(
        "{}[postgres]\nmax_age = \"500ms\"\n\
         url = \"postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?target_session_attrs=read-write\"\n",
        in_bucket(&bucket, &home),
        first.port(),
        second.port()
    );
    home.write("tidelog.toml", &config);
    let mut program = home.start(&["-c", "tidelog.toml", "run"]);
    let part = proxy.add(Rule::new("PUT", "/backups/.*base.tar", Fault::Answer(400, "RequestTimeout")).times(1));
    let commit = proxy.add(Rule::new("PUT", "backup.json", CONFLICT).times(2));
    let history = proxy.add(Rule::new("PUT", "00000002.history", CONFLICT).times(2));
    wait_until("the archive to have begun", Duration::from_secs(60), || proxy.came("^PUT .*/segments/postgres/") > 0);
    home.run(&["-c", "tidelog.toml", "backup"]).expect(0);
    assert_eq!((part.met(), commit.met()), (1, 2), "the backup was refused and committed all the same");

    let end = first.psql("SELECT pg_current_wal_flush_lsn()");
    wait_until("the standby to have everything", Duration::from_secs(60), || {
        second.psql(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'::pg_lsn")) == "t"
    });
    first.kill();
    second.promote();
    second.psql("CREATE TABLE on_timeline_2 (n int)");
    // A backup of the new timeline ends when its log is archived, which follows its history.
    home.run(&["-c", "tidelog.toml", "backup"]).expect(0);
    program.assert_running();
    program.terminate(STOP);
    let store = store_with(&bucket, &[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let objects = runtime.block_on(store.list(&Path::from("segments/postgres"))).unwrap();
    let archived = objects.iter().find(|object| object.location.filename() == Some("00000002.history"));
    let bytes = runtime.block_on(store.get(&archived.expect("the history is archived").location)).unwrap().unwrap();
    assert_eq!(bytes, std::fs::read(second.wal_dir().join("00000002.history")).unwrap());
    assert_eq!(history.met(), 2);
    home.run(&["-c", "tidelog.toml", "verify"]).expect(0);
}

#[test]
fn readers_look_at_many_topics_side_by_side() {
    const TOPICS: u32 = 12;
    const HELD: Duration = Duration::from_secs(5);
    let home = Home::new();
    let archive = home.path().join("archive");
    std::fs::create_dir(&archive).expect("a directory");
    let store = on_disk(&archive);
    tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
        for number in 0..TOPICS {
            let mut topic = Topic::begin(&store, &format!("topic-{number}"), 0).await;
            topic.append(Format::Avro, &[Record::new(0, 0, 1_000)]).await;
        }
    });
    let mut bucket = s3_with(&archive);
    let proxy = Proxy::before(&mut bucket);
    home.write("tidelog.toml", &in_bucket(&bucket, &home));
    for command in [&["ls", "--json"][..], &["replay", "--all", "--to-stdout", "--dry-run"]] {
        proxy.clear();
        let held = proxy.add(Rule::new("GET", "0{19}1\\.json", Fault::Delay(HELD)));
        let begun = Instant::now();
        let said = home.run(&[&["-c", "tidelog.toml"], command].concat()).expect(0);
        assert!(held.met() >= u64::from(TOPICS), "{command:?}: each topic is asked for: {}", held.met());
        assert!(begun.elapsed() < HELD * TOPICS / 2, "{command:?}: one after the other: {:?}", begun.elapsed());
        let said = format!("{}{}", said.stdout, said.stderr);
        assert!((0..TOPICS).all(|number| said.contains(&format!("topic-{number}"))), "{said}");
    }
}

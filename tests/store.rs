//! One conformance suite for every store: a disk, memory, and S3 by two servers of which each checks what the other
//! lets pass.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and clippy.toml spares only the test functions")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::future::join_all;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tidelog::config::Archive;
use tidelog::error::Kind;
use tidelog::manifest::{Chain, ChainScan, Change, Outcome, ScanStep, Selection, streams};
use tidelog::store::{Created, Store, layout};
use tidelog::stream::{Begin, Format, PartitionRange, SegmentRef, TopicGeneration, sha256};

use crate::rig::s3::{Bucket, moto, s3s_fs};

/// What a store can be trusted with.
#[derive(PartialEq)]
enum Creates {
    Atomic,
    /// The server looks whether the key is free and writes then: two writers that meet both win. No archive may lie
    /// there; the rest of it is an S3 server that checks signatures.
    LookThenWrite,
}

fn archive(url: &str, options: &[(&str, String)]) -> Archive {
    let options: BTreeMap<String, String> =
        options.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    Archive { url: url.parse().expect("the URL of a test"), spool_dir: PathBuf::new(), options }
}

fn on_bucket(bucket: &Bucket) -> Store {
    Store::open(&archive(&format!("{}/deep/folder", bucket.url()), &bucket.options())).expect("S3 opens")
}

async fn conforms(store: &Store, creates: Creates) {
    a_key_is_created_once(store).await;
    what_is_put_is_read(store).await;
    listing_is_ordered_and_by_whole_names(store).await;
    uploads_of_any_size_are_whole(store).await;
    deleting_is_final(store).await;
    if creates == Creates::Atomic {
        one_of_many_creators_wins(store).await;
    } else {
        println!("SKIPPED on {}: one_of_many_creators_wins (its conditional put is not atomic)", store.url());
    }
    a_chain_lives_there(store).await;
    the_probe_leaves_nothing(store).await;
}

async fn a_key_is_created_once(store: &Store) {
    let key = Path::from("create/date=2026-11-22/a-1.json");
    assert_eq!(store.get(&key).await.unwrap(), None);
    assert_eq!(store.size(&key).await.unwrap(), None);
    assert_eq!(store.create(&key, Bytes::from_static(b"first")).await.unwrap(), Created::Yes);
    let first = Created::Other(Bytes::from_static(b"first"));
    assert_eq!(store.create(&key, Bytes::from_static(b"second")).await.unwrap(), first);
    assert_eq!(store.create(&key, Bytes::from_static(b"first")).await.unwrap(), Created::Same);
    assert_eq!(store.get(&key).await.unwrap().unwrap(), "first");
    assert_eq!(store.size(&key).await.unwrap(), Some(5));
}

async fn one_of_many_creators_wins(store: &Store) {
    for round in 0..8 {
        let key = Path::from(format!("race/{round}"));
        let creators = (0..12).map(|n| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move { (n, store.create(&key, Bytes::from(format!("writer {n}"))).await.unwrap()) })
        });
        let answers: Vec<(i32, Created)> = join_all(creators).await.into_iter().map(Result::unwrap).collect();
        let winners: Vec<i32> =
            answers.iter().filter(|(_, created)| *created == Created::Yes).map(|(n, _)| *n).collect();
        assert_eq!(winners.len(), 1, "round {round}: {answers:?}");
        assert_eq!(store.get(&key).await.unwrap().unwrap(), format!("writer {}", winners[0]));
    }
}

async fn what_is_put_is_read(store: &Store) {
    let key = Path::from("put/object");
    for bytes in [Bytes::from_static(b"one"), Bytes::new(), Bytes::from(vec![7; 100_000])] {
        store.put(&key, bytes.clone()).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().unwrap(), bytes);
    }
    assert_eq!(store.objects().get_range(&key, 99_990..100_000).await.unwrap(), vec![7; 10]);
}

async fn listing_is_ordered_and_by_whole_names(store: &Store) {
    let keys = ["list/a/1", "list/a/2", "list/a/deeper/3", "list/a.b/4", "list/ab/5", "list/6"];
    for key in keys.iter().rev() {
        store.put(&Path::from(*key), Bytes::from_static(b"x")).await.unwrap();
    }
    let names = |prefix: &'static str| async move {
        let objects = store.list(&Path::from(prefix)).await.unwrap();
        objects.into_iter().map(|object| object.location.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names("list/a").await, ["list/a/1", "list/a/2", "list/a/deeper/3"]);
    let mut all = keys.to_vec();
    all.sort_unstable();
    assert_eq!(names("list").await, all);
    assert_eq!(names("list/nothing").await, [""; 0]);
    let folders = store.list_folders(&Path::from("list")).await.unwrap();
    assert_eq!(folders, ["list/a", "list/a.b", "list/ab"].map(Path::from));
    assert_eq!(store.list_folders(&Path::from("nothing")).await.unwrap(), []);
    assert!(store.any_below(&Path::from("list/a")).await.unwrap());
    assert!(!store.any_below(&Path::from("list/nothing")).await.unwrap());
}

async fn uploads_of_any_size_are_whole(store: &Store) {
    const PART: usize = 8 * 1024 * 1024;
    for size in [0, 1, PART, PART + 1, 3 * PART + 12_345] {
        let bytes: Vec<u8> = (0..size).map(|n| (n / 251 + n % 253) as u8).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        let key = Path::from(format!("upload/{size}"));
        for _ in 0..2 {
            // The second time is a retry after an answer that was lost.
            store.upload(&key, file.path(), &sha256(&bytes)).await.unwrap();
            assert_eq!(store.size(&key).await.unwrap(), Some(size as u64));
        }
        assert!(store.get(&key).await.unwrap().unwrap() == bytes, "{size} bytes differ");
    }
    let missing = store.upload(&Path::from("upload/none"), std::path::Path::new("/nowhere/segment"), "").await;
    assert_eq!(missing.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(store.list(&Path::from("upload")).await.unwrap().len(), 5);
}

async fn deleting_is_final(store: &Store) {
    let key = Path::from("delete/object");
    store.put(&key, Bytes::from_static(b"x")).await.unwrap();
    store.delete(&key).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap(), None);
    store.delete(&key).await.unwrap();
    assert_eq!(store.create(&key, Bytes::from_static(b"again")).await.unwrap(), Created::Yes);
}

async fn the_probe_leaves_nothing(store: &Store) {
    let before = store.list(&Path::default()).await.unwrap().len();
    store.probe().await.unwrap();
    assert_eq!(store.list(&Path::default()).await.unwrap().len(), before);
}

async fn a_chain_lives_there(store: &Store) {
    let now: DateTime<Utc> = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    let stream = TopicGeneration::new("main", "cdc.users", 0).stream();
    let begin = Begin::topic(Some("id".into()), vec![Some(0); 2]);
    let mut a = Chain::begin(store, &stream, begin.clone(), "a", now).await.unwrap();
    let mut b = Chain::begin(store, &stream, begin, "b", now).await.unwrap();
    for n in 0..70 {
        for (partition, chain, writer) in [(0, &mut a, "a"), (1, &mut b, "b")] {
            let range = PartitionRange {
                partition,
                start: n,
                end: n + 1,
                records: 1,
                min_timestamp: Some(n),
                max_timestamp: Some(n),
            };
            let segment = SegmentRef {
                object: layout::segment(stream.topic().unwrap(), now, writer, n.unsigned_abs(), Format::Parquet)
                    .to_string(),
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
            let change = Change { segments: vec![segment], ..Change::default() };
            let outcome = chain.commit(&change, writer, now).await.unwrap();
            assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
        }
    }
    let chain = Chain::open(store, &stream).await.unwrap().unwrap();
    assert_eq!((chain.head(), chain.totals().records), (142, 140));
    let all = chain.select(&Selection::default()).await.unwrap();
    assert_eq!(all.segments.len(), 140);
    assert_eq!(streams(store).await.unwrap(), std::slice::from_ref(&stream));
    let mut scan = ChainScan::new(store, &stream).await.unwrap();
    let mut steps = 0;
    while let Some(step) = scan.next().await.unwrap() {
        assert!(!matches!(step, ScanStep::Damaged { .. }), "{step:?}");
        steps += 1;
    }
    assert_eq!((scan.entries(), steps), (143, 145));
}

#[tokio::test]
async fn memory() {
    conforms(&Store::open(&archive("memory:///", &[])).unwrap(), Creates::Atomic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_below_a_folder() {
    conforms(&Store::open(&archive("memory:///deep/folder", &[])).unwrap(), Creates::Atomic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disk() {
    let directory = tempfile::tempdir().unwrap();
    // The directory is made, also below one with a character that a URL must escape.
    let root = directory.path().join("an archive").join("deep");
    let url = url::Url::from_file_path(&root).unwrap();
    let store = Store::open(&archive(url.as_str(), &[])).unwrap();
    assert!(root.is_dir());
    conforms(&store, Creates::Atomic).await;
}

#[tokio::test]
async fn what_a_crash_leaves_on_the_disk_disturbs_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let url = url::Url::from_file_path(directory.path()).unwrap();
    let store = Store::open(&archive(url.as_str(), &[])).unwrap();
    let chain = directory.path().join("manifest/kafka/main/orders.0");
    std::fs::create_dir_all(&chain).unwrap();
    // A process died while it wrote the first entry: only the staged file is there.
    std::fs::write(chain.join("00000000000000000000.json#1"), b"{\"form").unwrap();
    let stream = TopicGeneration::new("main", "orders", 0).stream();
    assert_eq!(streams(&store).await.unwrap(), []);
    assert!(Chain::open(&store, &stream).await.unwrap().is_none());
    Chain::begin(&store, &stream, Begin::topic(None, vec![Some(0)]), "w", tidelog::time::now()).await.unwrap();
    std::fs::write(chain.join("00000000000000000001.json#7"), b"{\"form").unwrap();
    assert_eq!(Chain::open(&store, &stream).await.unwrap().unwrap().head(), 0);
    assert_eq!(store.list(&Path::default()).await.unwrap().len(), 1);
    assert_eq!(streams(&store).await.unwrap(), [stream]);
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_by_moto() {
    conforms(&on_bucket(&moto()), Creates::Atomic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_by_s3s_fs() {
    let bucket = s3s_fs();
    conforms(&on_bucket(&bucket), Creates::LookThenWrite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_errors_say_what_is_wrong() {
    let bucket = s3s_fs();
    let mut options = bucket.options();
    for option in &mut options {
        if option.0 == "aws_secret_access_key" {
            option.1 = "wrong".into();
        }
    }
    let denied = Store::open(&archive(&bucket.url(), &options)).unwrap().probe().await.unwrap_err();
    assert_eq!(denied.kind(), Kind::Denied, "{denied}");
    assert!(denied.hint_text().unwrap().contains("credentials"));

    // s3s-fs makes a bucket for whoever writes into it.
    let elsewhere = Store::open(&archive("s3://no-such-bucket", &moto().options())).unwrap();
    for missing in [elsewhere.probe().await, elsewhere.get(&Path::from("key")).await.map(drop)] {
        let missing = missing.expect_err("a missing bucket is no empty archive");
        assert_eq!(missing.kind(), Kind::NotFound, "{missing}");
        assert!(missing.hint_text().unwrap().contains("bucket"));
    }
}

//! WAL of `wal_level = minimal` in a chain: who keeps it, until when, and that no program of before calls it recoverable.

use std::collections::BTreeMap;

use super::*;
use crate::error::Kind;
use crate::manifest::entry;
use crate::store::layout;
use crate::stream::invariants::SNAPSHOT_EVERY;
use crate::stream::{Body, Checkpoint, MinimalWal, System};

fn one(partition: i32, first: i64, last: i64) -> MinimalWal {
    MinimalWal { partition, first, last }
}

fn wal(object: &str, (start, end): (i64, i64), minimal: Option<MinimalWal>) -> Change {
    Change { segments: vec![SegmentRef { minimal, ..of_wal(object, 1, start, end) }], ..Change::default() }
}

#[tokio::test]
async fn it_is_kept_over_snapshots_until_it_is_given_up() {
    let store = faultless().store();
    let stream = StreamId::Postgres { system_id: 7 };
    let system = System { system_id: 7, wal_segment_size: 16 << 20, server_version: 15 };
    let mut chain = Chain::begin(&store, &stream, Begin::Postgres(system), "w", at(0)).await.unwrap();
    committed(&mut chain, &wal("a", (0, 64), None), "w").await;
    // The record may have begun in the segment before.
    committed(&mut chain, &wal("b", (64, 128), Some(one(1, 60, 100))), "w").await;
    for number in 0..2 * SNAPSHOT_EVERY.cast_signed() {
        committed(&mut chain, &wal(&format!("c{number}"), (128 + number, 129 + number), None), "w").await;
    }
    let opened = Chain::open(&store, &stream).await.unwrap().unwrap();
    assert_eq!((opened.minimal(), chain.minimal()), (&[one(1, 60, 100)][..], opened.minimal()));
    let entries = store.list(&layout::chain(&stream)).await.unwrap();
    let mut formats = Vec::new();
    for entry in entries {
        let bytes = store.get(&entry.location).await.unwrap().unwrap();
        let Ok(entry) = Checkpoint::parse(&bytes) else { continue };
        formats.push((entry.number, entry.format));
    }
    formats.retain(|(_, format)| *format != 1);
    formats.sort_unstable();
    assert_eq!(formats, [(2, 3), (SNAPSHOT_EVERY, 3), (2 * SNAPSHOT_EVERY, 3)]);
    chain.expire(&BTreeMap::from([(1, 96)]), "e", at(2)).await.unwrap();
    assert_eq!(chain.minimal(), [one(1, 60, 100)], "its last record is still archived");
    chain.expire(&BTreeMap::from([(1, 112)]), "e", at(2)).await.unwrap();
    assert!(chain.minimal().is_empty() && Chain::open(&store, &stream).await.unwrap().unwrap().minimal().is_empty());
}

#[tokio::test]
async fn it_lies_in_its_segment() {
    let store = faultless().store();
    let stream = StreamId::Postgres { system_id: 7 };
    let system = System { system_id: 7, wal_segment_size: 16 << 20, server_version: 15 };
    let mut chain = Chain::begin(&store, &stream, Begin::Postgres(system), "w", at(0)).await.unwrap();
    for odd in [one(2, 5, 6), one(1, 6, 5), one(1, 5, 64), one(1, -1, 5)] {
        let refused = chain.commit(&wal("a", (0, 64), Some(odd)), "w", at(1)).await.unwrap_err();
        assert!(format!("{refused:?}").contains("minimal_is_covered"), "{refused:?}");
    }
}

#[test]
fn the_golden_entry_is_read_and_written_to_the_byte() {
    let bytes = include_bytes!("golden/wal-minimal.json");
    let stream: StreamId = "postgres/7".parse().unwrap();
    let key = layout::entry(&stream, 4);
    let minimal = Some(one(1, 16_777_100, 16_777_300));
    let said = Checkpoint {
        format: 3,
        stream: stream.to_string(),
        number: 4,
        previous: Some(sha256(b"the entry before")),
        writer: "a41c2b9d".into(),
        at: at(4),
        body: Body::Append(wal("d", (16_777_216, 33_554_432), minimal)),
    };
    let read = entry::decode(&stream, 4, key.clone(), bytes).unwrap().checkpoint;
    assert_eq!((&read, read.body.format()), (&said, 3));
    assert_eq!(entry::encode(&said).unwrap(), bytes[..]);
    let newer = String::from_utf8_lossy(bytes).replacen("\"format\":3", "\"format\":6", 1).into_bytes();
    assert_eq!(entry::decode(&stream, 4, key, &newer).unwrap_err().kind(), Kind::Unsupported);
}

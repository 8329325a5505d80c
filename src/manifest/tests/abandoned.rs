//! Timelines that were abandoned: what readers see of them, and that nothing of one generation gets into the next.

use std::collections::BTreeMap;

use super::*;
use crate::error::Kind;
use crate::manifest::{ChainScan, ScanStep, Selection, abandon, entry};
use crate::segment::wal::Switch;
use crate::store::layout;
use crate::stream::{Abandon, Body, Checkpoint, Expire, Expired, Lsn, Merge, Retired, System};

fn postgres() -> StreamId {
    StreamId::Postgres { system_id: 7 }
}

/// A system with timeline 1 up to 50, which timeline 2 left at 40.
async fn archive(store: &Store) -> Chain {
    let system = System { system_id: 7, wal_segment_size: 16 << 20, server_version: 15 };
    let mut chain = Chain::begin(store, &postgres(), Begin::Postgres(system), "w", at(0)).await.unwrap();
    for (object, timeline, start, end) in [("a", 1, 0, 50), ("b", 2, 32, 60), ("c", 2, 60, 64)] {
        committed(&mut chain, &wal(object, (timeline, 0), start, end), "w").await;
    }
    history(store, 2, 0, 40).await;
    chain
}

async fn history(store: &Store, timeline: u32, generation: u32, at: u64) {
    let text = format!("1\t{}\tno reason\n", Lsn(at)).into_bytes();
    store.create(&layout::history(7, timeline, generation), text.into()).await.unwrap();
}

fn wal(object: &str, (timeline, generation): (i32, u32), start: i64, end: i64) -> Change {
    let of = SegmentRef { generation, ..of_wal(object, timeline, start, end) };
    Change { segments: vec![of], ..Change::default() }
}

async fn objects(chain: &Chain) -> Vec<String> {
    let selected = chain.select(&Selection::default()).await.unwrap();
    selected.segments.iter().map(|segment| called(&segment.object)).collect()
}

async fn damage(store: &Store) -> Vec<String> {
    let (mut scan, mut found) = (ChainScan::new(store, &postgres()).await.unwrap(), Vec::new());
    while let Some(step) = scan.next().await.unwrap() {
        if let ScanStep::Damaged { object, error, .. } = step {
            found.push(format!("{object}: {error}"));
        }
    }
    found
}

#[tokio::test]
async fn what_is_abandoned_leads_nowhere_and_its_number_is_free() {
    let store = faultless().store();
    let mut chain = archive(&store).await;
    let mut other = Chain::open(&store, &postgres()).await.unwrap().unwrap();
    let refused = abandon::abandon(&store, &mut chain, (1, false), "x").await.unwrap_err();
    assert!(refused.to_string().contains("timeline 2 of the archive comes from it"), "{refused}");
    let done = abandon::abandon(&store, &mut chain, (2, false), "x").await.unwrap();
    assert_eq!((done.start, done.end, done.generation, done.retired.segments), (32, 64, 0, 2));
    assert_eq!(abandon::abandon(&store, &mut chain, (2, false), "x").await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!((objects(&chain).await, chain.totals().present().segments), (vec!["a".to_owned()], 1));
    let facts = recoverable_facts(&store, &chain).await;
    assert_eq!((facts.newest(), facts.histories.contains_key(&2)), (Some(1), false));
    // Who has not heard of it adds nothing, neither to what was nor to what comes.
    let late = other.commit(&wal("late", (2, 0), 64, 70), "w", at(2)).await.unwrap();
    assert_eq!(late, Outcome::Moved([2].into()));
    let fresh = other.commit(&wal("late", (2, 0), 16, 30), "w", at(2)).await.unwrap();
    assert_eq!(fresh, Outcome::Moved([2].into()));
    committed(&mut other, &wal("d", (2, 1), 16, 48), "w").await;
    history(&store, 2, 1, 20).await;
    chain.refresh().await.unwrap();
    assert_eq!(objects(&chain).await, ["a", "d"]);
    // Whoever gives the command twice means the generation before; the archiver has gone on meanwhile.
    let twice = abandon::abandon(&store, &mut chain, (2, false), "x").await.unwrap_err();
    assert_eq!((twice.kind(), objects(&chain).await.len()), (Kind::Config, 2), "{twice}");
    assert!(twice.to_string().contains("was abandoned on") && twice.hint_text().unwrap().contains("--again"));
    let facts = recoverable_facts(&store, &chain).await;
    assert_eq!(facts.histories[&2], [Switch { timeline: 1, at: Lsn(20) }]);
    assert_eq!(facts.archived[&2], Lsn(16)..Lsn(48));
    let ranges = chain.ranges(&Selection::default()).await.unwrap();
    assert_eq!(ranges.iter().map(|range| range.start).collect::<Vec<_>>(), [0, 16], "no time of a commit of it counts");
    assert_eq!(damage(&store).await, Vec::<String>::new());
    let done = abandon::abandon(&store, &mut chain, (2, true), "x").await.unwrap();
    assert_eq!((done.generation, objects(&chain).await), (1, vec!["a".to_owned()]));
}

async fn recoverable_facts(store: &Store, chain: &Chain) -> path::Facts {
    crate::manifest::recoverable::facts(store, chain, &[]).await.unwrap()
}

#[tokio::test]
async fn a_snapshot_keeps_what_was_abandoned_and_an_older_reader_refuses_it() {
    let store = faultless().store();
    let mut chain = archive(&store).await;
    abandon::abandon(&store, &mut chain, (2, false), "x").await.unwrap();
    let number = chain.head();
    let mut end = 50;
    while chain.head() < 130 {
        committed(&mut chain, &wal(&format!("n{end}"), (1, 0), end, end + 10), "w").await;
        end += 10;
    }
    let opened = Chain::open(&store, &postgres()).await.unwrap().unwrap();
    assert_eq!((opened.generation(2), opened.generation(1), opened.abandoned()), (1, 0, chain.abandoned()));
    assert_eq!(objects(&opened).await.len(), 1 + (end as usize - 50) / 10);
    assert_eq!(damage(&store).await, Vec::<String>::new());
    for (number, format) in [(number - 1, 1), (number, 2), (number + 1, 1), (64, 2), (128, 2)] {
        let bytes = store.get(&layout::entry(&postgres(), number)).await.unwrap().unwrap();
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["format"], format, "entry {number}");
    }
}

#[tokio::test]
async fn objects_of_an_abandoned_timeline_are_told_apart_from_those_of_the_next() {
    let store = faultless().store();
    let mut chain = archive(&store).await;
    // The whole of timeline 2 but its last segment is expired first, up to a position that the next generation comes to.
    chain.expire(&BTreeMap::from([(2, 60)]), "e", at(3)).await.unwrap();
    let done = abandon::abandon(&store, &mut chain, (2, false), "x").await.unwrap();
    committed(&mut chain, &wal("d", (2, 1), 16, 48), "w").await;
    let obsolete = chain.retired(BTreeMap::from([(2, 0..i64::MAX)])).await.unwrap();
    let names = |map: &BTreeMap<String, DateTime<Utc>>| map.keys().map(|key| called(key)).collect::<Vec<_>>();
    assert_eq!(names(&obsolete.retired), ["b"], "nothing of the next generation");
    assert_eq!(names(&obsolete.abandoned), ["b", "c"]);
    assert!(obsolete.abandoned.values().all(|decided| *decided == done.decided));
    for (body, rule) in [
        (expire(2, 0, 16, 32), "generations_are_current"),
        (
            Body::Gap { gaps: vec![Gap { reason: GapReason::ServerRemovedWal, ..gap(2, 48, 50) }] },
            "generations_are_current",
        ),
        (merge(0), "generations_are_current"),
        (abandoned(2, 0, (16, 48)), "generations_are_current"),
        (abandoned(2, 1, (16, 47)), "abandons_position"),
        (abandoned(3, 0, (1, 2)), "abandons_position"),
    ] {
        assert_eq!(chain.progress.accepts(&body).unwrap_err().rule, rule, "{body:?}");
    }
    chain.progress.accepts(&abandoned(2, 1, (16, 48))).unwrap();
    assert_eq!(damage(&store).await, Vec::<String>::new());
}

fn expire(partition: i32, generation: u32, from: i64, before: i64) -> Body {
    Body::Expire(Expire {
        ranges: vec![Expired { partition, from, before, generation }],
        retired: Retired::default(),
        decided: at(3),
    })
}

fn merge(generation: u32) -> Body {
    let one = |object: &str, start, end| wal(object, (2, generation), start, end).segments.remove(0);
    let replaced = [one("x", 16, 20), one("y", 20, 48)];
    Body::Merge(Merge {
        segment: SegmentRef { raw_bytes: 10_000, ..one("m", 16, 48) },
        replaces: replaced.iter().map(|segment| segment.object.clone()).collect(),
        retired: Retired { segments: 2, records: 32, raw_bytes: 10_000, stored_bytes: 2_000 },
        decided: at(3),
    })
}

fn abandoned(partition: i32, generation: u32, (start, end): (i64, i64)) -> Body {
    let (retired, decided) = (Retired::default(), at(4));
    Body::Abandon(Abandon { partition, generation, start, end, backups: Vec::new(), retired, decided })
}

#[test]
fn the_golden_entry_is_read_and_written_to_the_byte() {
    let bytes = include_bytes!("golden/wal-abandon.json");
    let stream: StreamId = "postgres/7291123456789012345".parse().unwrap();
    let key = layout::entry(&stream, 4);
    let read = entry::decode(&stream, 4, key.clone(), bytes).unwrap().checkpoint;
    let retired = Retired { segments: 1, records: 4, raw_bytes: 10_000, stored_bytes: 1_000 };
    let body = Body::Abandon(Abandon {
        partition: 2,
        generation: 0,
        start: 16_777_216,
        end: 33_554_432,
        backups: vec!["20270115T075900Z-a41c2b9d".into()],
        retired,
        decided: at(4),
    });
    let said = Checkpoint {
        format: 2,
        stream: stream.to_string(),
        number: 4,
        previous: Some(sha256(b"the entry before")),
        writer: "a41c2b9d".into(),
        at: at(4),
        body,
    };
    assert_eq!((&read, read.body.format()), (&said, 2));
    assert_eq!(entry::encode(&said).unwrap(), bytes[..]);
    let newer = String::from_utf8_lossy(bytes).replacen("\"format\":2", "\"format\":6", 1).into_bytes();
    assert_eq!(entry::decode(&stream, 4, key, &newer).unwrap_err().kind(), Kind::Unsupported);
}

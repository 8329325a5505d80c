//! The format on disk: golden files of version 1, and bytes that are damaged in any way.

use proptest::prelude::*;

use super::*;
use crate::error::Kind;
use crate::manifest::coverage::{Claim, Count, Coverage, TopicClaims};
use crate::manifest::pack::Pack;
use crate::manifest::unpack::unpack;
use crate::manifest::{entry, page};
use crate::store::layout;
use crate::stream::{Body, Checkpoint, Expire, Expired, Merge, PageRef, Retired, Snapshot, Span, System, Totals};

const ENTRIES: [&[u8]; 5] = [
    include_bytes!("golden/begin.json"),
    include_bytes!("golden/append.json"),
    include_bytes!("golden/gap.json"),
    include_bytes!("golden/snapshot.json"),
    include_bytes!("golden/append-with-gap.json"),
];
const PAGE: &[u8] = include_bytes!("golden/page.json.zst");
const PAGE_ABOVE: &[u8] = include_bytes!("golden/page-of-pages.json.zst");
const COVERAGE: &[u8] = include_bytes!("golden/coverage.json");
const TOPIC_COVERAGE: &[u8] = include_bytes!("golden/coverage-of-topics.json");

/// What the golden entries say.
fn checkpoints() -> Vec<Checkpoint> {
    let empty = PartitionRange { records: 0, min_timestamp: None, max_timestamp: None, ..range(0, 10, 12) };
    let with_gap =
        Change { segments: vec![segment("b", vec![range(0, 20, 21)])], empty: vec![], gaps: vec![gap(1, 4, 5)] };
    let snapshot = Snapshot {
        begin: begin_of("4fDdTkB8RFqHyhpVGkEXjg"),
        positions: vec![PartitionRange { end: 20, ..range(0, 0, 10) }, range(1, 0, 4)],
        totals: totals(),
        pages: vec![page_ref("the page", 0)],
        closed: None,
        last: Vec::new(),
        abandoned: Vec::new(),
        minimal: Vec::new(),
        packed: 0,
        backups: None,
    };
    let bodies = [
        (0, Body::Begin(begin_of("4fDdTkB8RFqHyhpVGkEXjg"))),
        (
            1,
            Body::Append(Change {
                segments: vec![segment("a", vec![range(0, 0, 10), range(1, 0, 4)])],
                empty: vec![empty],
                gaps: vec![],
            }),
        ),
        (2, Body::Gap { gaps: vec![gap(0, 12, 20)] }),
        (64, Body::Snapshot(snapshot)),
        (65, Body::Append(with_gap)),
    ];
    let checkpoint = |(number, body)| Checkpoint {
        format: 1,
        stream: orders().to_string(),
        number,
        previous: (number > 0).then(|| sha256(b"the entry before")),
        writer: "a41c2b9d".into(),
        at: at(i64::try_from(number).unwrap()),
        body,
    };
    bodies.into_iter().map(checkpoint).collect()
}

fn totals() -> Totals {
    Totals {
        segments: 1,
        records: 14,
        raw_bytes: 5000,
        stored_bytes: 1000,
        gaps: 1,
        min_timestamp: Some(0),
        max_timestamp: Some(9),
        ..Totals::default()
    }
}

fn page_ref(bytes: &str, level: u8) -> PageRef {
    PageRef {
        sha256: sha256(bytes.as_bytes()),
        level,
        first: 0,
        last: 63,
        totals: totals(),
        spans: vec![],
        merged: None,
    }
}

fn golden_page(bytes: &[u8], level: u8) -> PageRef {
    let last = if level == 0 { 63 } else { 4095 };
    let mut totals = totals();
    if level == 1 {
        totals = Totals::default();
        (0..64).for_each(|_| totals.add(&page_ref("the page", 0).totals));
    }
    PageRef { sha256: sha256(bytes), level, first: 0, last, totals, spans: vec![], merged: None }
}

#[test]
fn golden_entries_are_read_and_written_to_the_byte() {
    for (bytes, checkpoint) in ENTRIES.into_iter().zip(checkpoints()) {
        let key = layout::entry(&orders(), checkpoint.number);
        assert_eq!(entry::decode(&orders(), checkpoint.number, key, bytes).unwrap().checkpoint, checkpoint);
        assert_eq!(entry::encode(&checkpoint).unwrap(), bytes);
    }
}

#[test]
fn a_golden_pack_is_read_and_bytes_of_it_that_lack_are_told() {
    let (bytes, key) = (include_bytes!("golden/pack.zst"), layout::pack(&orders(), 512));
    let pack = Pack::decode(&orders(), 512, &key, bytes).unwrap();
    assert_eq!(pack.numbers(), 512..1_024);
    for number in pack.numbers() {
        let said = format!("{{\"entry\":{}}}", number - 512);
        let stored = at(0) + chrono::TimeDelta::minutes(i64::try_from(number).unwrap() - 512);
        assert_eq!(pack.entry(number), Some(&(said.into(), stored)));
    }
    assert_eq!((pack.entry(511), pack.entry(1_024), pack.page_names().count()), (None, None, 8));
    assert!(pack.page_names().all(|name| pack.page(name).is_some_and(|page| sha256(page) == name)));
    // What is written is read the same, and unpacks to the same.
    let again = pack.encode(&orders()).unwrap();
    assert_eq!(Pack::decode(&orders(), 512, &key, &again).unwrap(), pack);
    assert_eq!(unpack(&key, &again).unwrap(), unpack(&key, bytes).unwrap());
    let kind = |stream: &StreamId, first: u64, raw: &[u8]| {
        let bytes = zstd::bulk::compress(raw, 1).unwrap();
        Pack::decode(stream, first, &layout::pack(stream, first), &bytes).unwrap_err().kind()
    };
    let raw = unpack(&key, bytes).unwrap();
    assert_eq!(kind(&orders(), 512, &raw[..raw.len() - 1]), Kind::Corrupt);
    assert_eq!(kind(&orders(), 512, &[&raw[..], b"x"].concat()), Kind::Corrupt);
    assert_eq!(kind(&orders(), 1_024, &raw), Kind::Corrupt, "of other entries");
    assert_eq!(kind(&"kafka/main/other.0".parse().unwrap(), 512, &raw), Kind::Corrupt);
    let text = String::from_utf8(raw).unwrap();
    assert_eq!(kind(&orders(), 512, text.replacen("\"format\":1", "\"format\":2", 1).as_bytes()), Kind::Unsupported);
    let longer = text.replacen("\"bytes\":11", "\"bytes\":18446744073709551615", 1);
    assert_eq!(kind(&orders(), 512, longer.as_bytes()), Kind::Corrupt);
    assert_eq!(kind(&orders(), 512, text.replacen("\"bytes\":11", "\"bytes\":12", 1).as_bytes()), Kind::Corrupt);
}

#[test]
fn where_partitions_begin_is_read_and_written_to_the_byte() {
    let bytes = include_bytes!("golden/begin-with-starts.json");
    let key = layout::entry(&orders(), 0);
    let checkpoint = entry::decode(&orders(), 0, key, bytes).unwrap().checkpoint;
    assert_eq!(entry::encode(&checkpoint).unwrap(), bytes[..]);
    let begin = checkpoint.body.begin().unwrap().clone();
    assert_eq!(begin, Begin::topic(Some("4fDdTkB8RFqHyhpVGkEXjg".into()), vec![Some(0), Some(1204), None]));
    let starts: Vec<_> = (0..4).map(|partition| begin.start_of(partition)).collect();
    assert_eq!(starts, [Some(0), Some(1204), None, Some(0)], "a partition that came later is archived as a whole");
    let before_they_were_kept = begin_of("4fDdTkB8RFqHyhpVGkEXjg");
    assert_eq!((before_they_were_kept.start_of(2), before_they_were_kept.start_of(3)), (None, Some(0)));
}

#[test]
fn the_cluster_is_read_and_written_to_the_byte() {
    let bytes = include_bytes!("golden/begin-with-cluster.json");
    let key = layout::entry(&orders(), 0);
    let checkpoint = entry::decode(&orders(), 0, key, bytes).unwrap().checkpoint;
    assert_eq!(entry::encode(&checkpoint).unwrap(), bytes[..]);
    let begin = Begin::topic(Some("4fDdTkB8RFqHyhpVGkEXjg".into()), vec![Some(0), Some(1204), None]);
    let begin = begin.on_cluster(Some("M1zLs4fFQaCFO2J9cWEQYQ".into()));
    assert_eq!(checkpoint.body.begin(), Some(&begin));
    assert_eq!(begin_of("4fDdTkB8RFqHyhpVGkEXjg").cluster_id(), None, "archives of before it was kept say nothing");
}

const OF_WAL: [&[u8]; 4] = [
    include_bytes!("golden/wal-begin.json"),
    include_bytes!("golden/wal-append.json"),
    include_bytes!("golden/wal-merge.json"),
    include_bytes!("golden/wal-expire.json"),
];
const PAGE_OF_WAL: &[u8] = include_bytes!("golden/wal-page.json.zst");

/// What the golden entries of a Postgres system say.
fn checkpoints_of_wal() -> Vec<Checkpoint> {
    let stream = StreamId::Postgres { system_id: 7_291_123_456_789_012_345 };
    let wal = |name: &str, start: i64, end: i64| SegmentRef {
        object: layout::wal_segment(golden_system().system_id, 1, start as u64..end as u64, name, 0).to_string(),
        format: Format::Wal,
        ..segment(name, vec![PartitionRange { records: 2, ..range(1, start, end) }])
    };
    let small = [wal("small-1", 16_777_216, 20_000_000), wal("small-2", 20_000_000, 33_554_432)];
    let merge = Merge {
        segment: SegmentRef {
            partitions: vec![PartitionRange { records: 4, ..range(1, 16_777_216, 33_554_432) }],
            raw_bytes: 10_000,
            ..wal("merged", 16_777_216, 33_554_432)
        },
        replaces: small.iter().map(|segment| segment.object.clone()).collect(),
        retired: Retired::of(&small),
        decided: at(2),
    };
    let expire = Expire {
        ranges: vec![Expired { partition: 1, from: 16_777_216, before: 33_554_432, generation: 0 }],
        retired: Retired::of([&merge.segment]),
        decided: at(3),
    };
    let bodies = [
        Body::Begin(Begin::Postgres(golden_system())),
        Body::Append(Change { segments: small.to_vec(), ..Change::default() }),
        Body::Merge(merge),
        Body::Expire(expire),
    ];
    let checkpoint = |(number, body)| Checkpoint {
        format: 1,
        stream: stream.to_string(),
        number,
        previous: (number > 0).then(|| sha256(b"the entry before")),
        writer: "a41c2b9d".into(),
        at: at(i64::try_from(number).unwrap()),
        body,
    };
    (0..).zip(bodies).map(checkpoint).collect()
}

fn golden_system() -> System {
    System { system_id: 7_291_123_456_789_012_345, wal_segment_size: 16 << 20, server_version: 15 }
}

#[test]
fn golden_entries_of_wal_are_read_and_written_to_the_byte() {
    let stream = StreamId::Postgres { system_id: golden_system().system_id };
    let checkpoints = checkpoints_of_wal();
    for (bytes, checkpoint) in OF_WAL.into_iter().zip(&checkpoints) {
        let key = layout::entry(&stream, checkpoint.number);
        assert_eq!(entry::decode(&stream, checkpoint.number, key, bytes).unwrap().checkpoint, *checkpoint);
        assert_eq!(entry::encode(checkpoint).unwrap(), bytes);
    }
    let bodies: Vec<Body> = checkpoints.into_iter().map(|checkpoint| checkpoint.body).collect();
    let (pages, _) = page::roll(&stream, 64, &[], &bodies).unwrap();
    let reference = PageRef { sha256: sha256(PAGE_OF_WAL), ..pages[0].clone() };
    let read = page::decode(&stream, &reference, &layout::page(&stream, &reference.sha256), PAGE_OF_WAL).unwrap();
    read.lists(Some(&bodies)).unwrap();
    assert_eq!(reference.spans, [Span { partition: 1, start: 16_777_216, end: 33_554_432 }]);
}

#[test]
fn golden_pages_are_read() {
    let bodies: Vec<Body> = checkpoints().into_iter().take(3).map(|checkpoint| checkpoint.body).collect();
    let reference = golden_page(PAGE, 0);
    let key = layout::page(&orders(), &reference.sha256);
    let read = page::decode(&orders(), &reference, &key, PAGE).unwrap();
    read.lists(Some(&bodies)).unwrap();

    let reference = golden_page(PAGE_ABOVE, 1);
    let read = page::decode(&orders(), &reference, &key, PAGE_ABOVE).unwrap();
    assert_eq!(read.pages.len(), 64);
    assert_eq!(read.pages[0], page_ref("the page", 0));
}

#[test]
fn golden_coverage_is_read_and_written_to_the_byte() {
    let mut coverage = Coverage::new("a41c2b9d", at(7));
    coverage.claim(&orders(), 3, Claim { offset: 12, complete_through: at(6) });
    assert_eq!(serde_json::from_slice::<Coverage>(COVERAGE).unwrap(), coverage);
    assert_eq!(serde_json::to_vec(&coverage).unwrap(), COVERAGE);
}

#[test]
fn golden_coverage_of_topics_is_read_and_written_to_the_byte() {
    let claim = |offset, seconds| Claim { offset, complete_through: at(seconds) };
    let claims = [(0, claim(12, 6)), (1, claim(0, 6)), (2, claim(7, 1)), (5, claim(3, 6))];
    let topic = TopicClaims {
        topic_id: Some("4fDdTkB8RFqHyhpVGkEXjg".to_owned()),
        counts: vec![Count { partitions: 3, at: at(1) }, Count { partitions: 6, at: at(4) }],
        claims: claims.into(),
    };
    let mut coverage = Coverage::new("a41c2b9d", at(7));
    coverage.topics.insert(orders().to_string(), topic);
    assert_eq!(serde_json::from_slice::<Coverage>(TOPIC_COVERAGE).unwrap(), coverage);
    assert_eq!(String::from_utf8(serde_json::to_vec(&coverage).unwrap()).unwrap().as_bytes(), TOPIC_COVERAGE);
    // What no program writes and bytes can say: partitions that do not exist, at the end of all numbers.
    let odd = br#"{"claims":[{"complete_through":"2027-01-15T08:00:06Z","ends":[[2147483646,[1,2,3]],[-1,[4]]]}]}"#;
    let read: TopicClaims = serde_json::from_slice(odd).unwrap();
    assert_eq!(read.claims.keys().copied().collect::<Vec<_>>(), [-1, 2_147_483_646, 2_147_483_647]);
}

#[test]
fn keys_are_as_the_format_says() {
    let segment = layout::segment(&generation(), at(0), "a41c2b9d", 7, Format::Avro);
    let keys = [
        (layout::entry(&orders(), 412), "manifest/kafka/main/orders.0/00000000000000000412.json"),
        (layout::page(&orders(), "9b1c"), "manifest/kafka/main/orders.0/pages/9b1c.json.zst"),
        (layout::coverage(&layout::coverages(&orders()), "a41c2b9d"), "coverage/kafka/main/a41c2b9d.json"),
        (layout::history(7, 3, 0), "segments/postgres/system=7/history/00000003.history"),
        (
            layout::wal_segment(7, 1, 0x1600_0000..0x0016_B374_D848, "a41c2b9d", 7),
            "segments/postgres/system=7/timeline=00000001/0000000016000000-00000016B374D848-a41c2b9d-7.wal.zst",
        ),
        (segment, "segments/kafka/cluster=main/topic=orders/generation=0/date=2027-01-15/080000-a41c2b9d-7.avro"),
    ];
    for (key, expected) in keys {
        assert_eq!(key.as_ref(), expected);
        assert_eq!(object_store::path::Path::parse(expected).unwrap(), key);
    }
    let wal = layout::wal_segment(7, 0xAB, 5..0x0016_B374_D848, "a41c-m", 7);
    assert_eq!(layout::wal_segment_range(&wal), Some((0xAB, 5..0x0016_B374_D848)));
    assert_eq!(layout::wal_segment_range(&layout::history(7, 3, 0)), None);
    let number = |name: &str| layout::entry_number(&layout::chain(&orders()).join(name));
    assert_eq!(number("00000000000000000412.json"), Some(412));
    for name in ["412.json", "0000000000000000041x.json", "99999999999999999999.json", "00000000000000000412.json.zst"]
    {
        assert_eq!(number(name), None, "{name}");
    }
}

proptest! {
    #[test]
    fn damaged_bytes_are_an_error_and_never_a_panic(
        which in 0..ENTRIES.len(), at in any::<prop::sample::Index>(), flip in 1..=255_u8, cut in any::<bool>(),
    ) {
        let mut bytes = ENTRIES[which].to_vec();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= flip }
        let number = checkpoints()[which].number;
        let key = layout::entry(&orders(), number);
        match entry::decode(&orders(), number, key, &bytes) {
            // Another value in the same place: the link of the next entry, or the rules, tell it.
            Ok(entry) => {
                prop_assert!(!cut);
                prop_assert_ne!(entry.sha256, sha256(ENTRIES[which]));
                crate::stream::Progress::default().accepts(&entry.checkpoint.body).ok();
            }
            Err(error) => prop_assert!(matches!(error.kind(), Kind::Corrupt | Kind::Unsupported)),
        }
    }

    #[test]
    fn damaged_pages_are_always_found(at in any::<prop::sample::Index>(), flip in 1..=255_u8, hashed in any::<bool>()) {
        let mut bytes = PAGE.to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let mut reference = golden_page(PAGE, 0);
        if hashed {
            // Even when the hash fits, nothing panics.
            reference.sha256 = sha256(&bytes);
        }
        let key = layout::page(&orders(), &reference.sha256);
        let read = page::decode(&orders(), &reference, &key, &bytes);
        prop_assert!(hashed || read.unwrap_err().kind() == Kind::Corrupt);
    }
}

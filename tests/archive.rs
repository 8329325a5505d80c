//! Archives that a test writes itself, record by record, through the library: what a reader is tested on without a broker
//! and without the archiver.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use tempfile::TempDir;
use tidelog::manifest::{Chain, Change, Outcome, Selection};
use tidelog::record::{Block, Header, TimestampType};
use tidelog::segment::{Encoding, Merging, SegmentInfo, SegmentWriter};
use tidelog::store::{Created, Store, layout};
use tidelog::stream::{Begin, Format, Gap, GapReason, Merge, Retired, TopicGeneration};

use crate::rig::process::temporary_directory;

/// A record to be archived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Record {
    /// A record with text as key and value.
    pub(crate) fn new(partition: i32, offset: i64, timestamp: i64) -> Record {
        let (key, value) = (format!("k{offset}"), format!("partition {partition} offset {offset}"));
        Record { partition, offset, timestamp, key: Some(key.into()), value: Some(value.into()), headers: Vec::new() }
    }
}

/// One generation of a topic that grows.
pub(crate) struct Topic {
    store: Store,
    generation: TopicGeneration,
    chain: Chain,
    spool: TempDir,
    segments: u64,
}

/// A store in memory.
pub(crate) fn memory() -> Store {
    let archive = tidelog::config::Archive {
        url: "memory:///".parse().expect("a URL"),
        spool_dir: std::path::PathBuf::new(),
        options: std::collections::BTreeMap::new(),
    };
    Store::open(&archive).expect("memory opens")
}

/// A store in a local directory.
pub(crate) fn on_disk(directory: &std::path::Path) -> Store {
    let archive = tidelog::config::Archive {
        url: url::Url::from_directory_path(directory).expect("an absolute path"),
        spool_dir: std::path::PathBuf::new(),
        options: std::collections::BTreeMap::new(),
    };
    Store::open(&archive).expect("a directory opens")
}

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_795_334_712_345).expect("a time")
}

impl Topic {
    /// Begins the topic's generation.
    pub(crate) async fn begin(store: &Store, topic: &str, generation: u32) -> Topic {
        Topic::begin_with(store, topic, generation, 1).await
    }

    /// Begins the generation of a topic of so many partitions.
    pub(crate) async fn begin_with(store: &Store, topic: &str, generation: u32, partitions: usize) -> Topic {
        let generation = TopicGeneration::new("main", topic, generation);
        let begin = Begin::topic(Some(format!("id-{generation}")), vec![Some(0); partitions]);
        Topic::begun_as(store, generation, begin).await
    }

    /// Begins a generation of which the first entry says just this.
    pub(crate) async fn begun_as(store: &Store, generation: TopicGeneration, begin: Begin) -> Topic {
        let chain = Chain::begin(store, &generation.stream(), begin, "test", now()).await.expect("a chain begins");
        Topic { store: store.clone(), generation, chain, spool: temporary_directory("spool"), segments: 0 }
    }

    /// Archives records (of each partition in offset order) as one segment, committed; each partition's range goes on
    /// from where it ended to behind its last record. Gives the segment's object.
    pub(crate) async fn append(&mut self, format: Format, records: &[Record]) -> String {
        self.segments += 1;
        let path = self.spool.path().join(self.segments.to_string());
        let info =
            SegmentInfo { stream: self.generation.clone(), topic_id: None, writer: "test".into(), created: now() };
        let mut writer = SegmentWriter::create(&path, info, Encoding { format, zstd_level: 1 }).expect("a spool file");
        let mut blocks: Vec<Block> = Vec::new();
        let mut ranges: Vec<(i32, i64, i64)> = Vec::new();
        for record in records {
            let partition = record.partition;
            if !blocks.iter().any(|block| block.partition() == partition) {
                blocks.push(Block::new(partition, 64));
                ranges.push((partition, self.chain.position(partition).map_or(record.offset, |at| at.end), 0));
            }
            let block = blocks.iter_mut().find(|block| block.partition() == partition).expect("it is there");
            let headers = record.headers.iter().map(|(name, value)| Header { name, value: value.as_deref() });
            let (key, value) = (record.key.as_deref(), record.value.as_deref());
            block.push(record.offset, record.timestamp, TimestampType::Create, 0, key, value, headers);
            ranges.iter_mut().filter(|range| range.0 == partition).for_each(|range| range.2 = record.offset + 1);
        }
        writer.write(blocks).expect("blocks are encoded");
        ranges.sort_unstable();
        let sealed = writer.finish(&ranges).expect("a segment is sealed");
        let object = layout::segment(&self.generation, now(), "test", self.segments, format);
        self.store.upload(&object, &path, &sealed.sha256).await.expect("a segment is stored");
        let change = Change { segments: vec![sealed.to_ref(object.to_string())], ..Change::default() };
        match self.chain.commit(&change, "test", now()).await.expect("a change is committed") {
            Outcome::Committed { .. } => object.to_string(),
            other => panic!("nobody else writes, and yet {other:?}"),
        }
    }

    /// Records that offsets could not be read.
    pub(crate) async fn skip(&mut self, partition: i32, range: std::ops::Range<i64>) {
        let (start, end) = (range.start, range.end);
        let gap = Gap { partition, start, end, reason: GapReason::Unreadable, found: now(), generation: 0 };
        let change = Change { gaps: vec![gap], ..Change::default() };
        let committed = self.chain.commit(&change, "test", now()).await.expect("a change is committed");
        assert!(matches!(committed, Outcome::Committed { .. }), "{committed:?}");
    }

    /// Stores an object beside the segments that no checkpoint names.
    pub(crate) async fn orphan(&self) {
        let key = layout::segment(&self.generation, now(), "killed", 1, Format::Avro);
        let created = self.store.create(&key, Bytes::from_static(b"unfinished")).await.expect("an object is stored");
        assert_eq!(created, Created::Yes);
    }

    /// The number of the chain's last entry.
    pub(crate) fn head(&self) -> u64 {
        self.chain.head()
    }

    /// Goes on with a chain that somebody else has gone on with.
    pub(crate) async fn reopen(&mut self) {
        let chain = Chain::open(&self.store, &self.generation.stream()).await.expect("a sound chain");
        self.chain = chain.expect("it has begun");
    }

    /// Puts one segment in the place of all that are there, by an entry that is as old as the segments are.
    pub(crate) async fn merge(&mut self) {
        let segments = self.chain.select(&Selection::default()).await.expect("they are listed").segments;
        let path = self.spool.path().join("merged");
        let info =
            SegmentInfo { stream: self.generation.clone(), topic_id: None, writer: "merger".into(), created: now() };
        let encoding = Encoding { format: segments[0].format, zstd_level: 1 };
        let mut merging = Merging::create(&path, info, encoding).expect("a spool file");
        for segment in &segments {
            let bytes = self.store.get(&layout::object(&segment.object).expect("a key")).await.expect("an answer");
            let mut reader = merging.open(bytes.expect("it is there"), segment).await.expect("it is sound");
            while let Some(block) = reader.next().await.expect("it is sound") {
                merging.add(block);
            }
        }
        let sealed = merging.finish().expect("a segment is sealed");
        let object = layout::segment(&self.generation, now(), "merger", 1, sealed.format);
        self.store.upload(&object, &path, &sealed.sha256).await.expect("a segment is stored");
        let merge = Merge {
            segment: sealed.to_ref(object.to_string()),
            replaces: segments.iter().map(|segment| segment.object.clone()).collect(),
            retired: Retired::of(&segments),
            decided: now(),
        };
        assert!(self.chain.merge(&merge, "merger", now()).await.expect("an answer"), "nobody else writes");
    }
}

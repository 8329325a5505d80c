//! The records of one partition from both sides, held against each other offset by offset.
//!
//! ```text
//! segments ─► reader ─► blocks ─┐
//!                               ├─► by offset: only there, only here, in both ─► the ledger
//! brokers ─► client ─► blocks ──┘
//! ```
//! One block of each side is held.

use std::collections::HashSet;
use std::ops::Range;

use crate::error::{Error, Kind, Result};
use crate::record::{Block, Record};
use crate::segment::{Filter, SegmentReader};
use crate::source::kafka::{Came, RangeReader, TopicPartition};
use crate::store::{Store, layout};
use crate::stream::SegmentRef;

/// What stands at one offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stands {
    /// In both, and the same.
    Same,
    /// In both, and another record of the same log.
    Different,
    /// In both, of logs that parted.
    Diverged,
    /// In the archive alone.
    Archive,
    /// In the archive alone: the source removed it from its beginning on while records were compared.
    Removed,
    /// In the source alone.
    Source,
    /// In the source; the archive's segment cannot be read.
    Dark,
}

/// Records of one partition, in the order of their offsets.
struct Rows {
    block: Option<Block>,
    next: usize,
}

impl Rows {
    const NONE: Self = Self { block: None, next: 0 };

    fn take(&mut self, block: Block) {
        (self.block, self.next) = (Some(block), 0);
    }

    fn first(&self) -> Option<Record<'_>> {
        self.block.as_ref()?.get(self.next)
    }
}

/// What the archive has: the segments of one partition, one after the other.
pub(super) struct Archive<'a> {
    pub(super) store: &'a Store,
    /// In the order of their ranges.
    pub(super) segments: Vec<&'a SegmentRef>,
    /// The objects that are known to be damaged.
    pub(super) damaged: &'a HashSet<String>,
    pub(super) partition: i32,
    pub(super) range: Range<i64>,
}

/// A segment that could not be read while records were compared.
pub(super) struct Broken {
    pub(super) object: String,
    pub(super) range: Range<i64>,
    pub(super) error: Error,
}

/// The archive's side while it is read.
struct Reading<'a> {
    archive: Archive<'a>,
    rows: Rows,
    reader: Option<(&'a SegmentRef, SegmentReader)>,
    upcoming: usize,
    /// The offset after the last record that came.
    reached: i64,
    /// Ranges whose segments cannot be read.
    dark: Vec<Range<i64>>,
    broken: Vec<Broken>,
}

impl<'a> Reading<'a> {
    fn new(archive: Archive<'a>) -> Self {
        Self {
            reached: archive.range.start,
            archive,
            rows: Rows::NONE,
            reader: None,
            upcoming: 0,
            dark: Vec::new(),
            broken: Vec::new(),
        }
    }

    fn of(segment: &SegmentRef, partition: i32) -> Range<i64> {
        let range = segment.partitions.iter().find(|range| range.partition == partition);
        range.map_or(0..0, |range| range.start..range.end)
    }

    /// Makes the next record ready, if there is one.
    async fn fill(&mut self) -> Result<()> {
        while self.rows.first().is_none() {
            if let Some((segment, mut reader)) = self.reader.take() {
                match reader.next().await {
                    Ok(Some(block)) => {
                        self.rows.take(block);
                        self.reader = Some((segment, reader));
                    }
                    Ok(None) => {}
                    Err(error) => self.broke(segment, error)?,
                }
                continue;
            }
            let Some(segment) = self.archive.segments.get(self.upcoming).copied() else { return Ok(()) };
            self.upcoming += 1;
            if self.archive.damaged.contains(&segment.object) {
                self.dark.push(Self::of(segment, self.archive.partition));
                continue;
            }
            match self.open(segment).await {
                Ok(reader) => self.reader = Some((segment, reader)),
                Err(error) => self.broke(segment, error)?,
            }
        }
        Ok(())
    }

    async fn open(&self, segment: &'a SegmentRef) -> Result<SegmentReader> {
        let wanted = [(self.archive.partition, self.archive.range.clone())].into();
        let filter = Filter { partitions: Some(wanted), timestamps: None, with_key: None };
        let object = layout::object(&segment.object)?;
        SegmentReader::open(self.archive.store.objects(), &object, segment.bytes, segment.format, filter).await
    }

    fn broke(&mut self, segment: &SegmentRef, error: Error) -> Result<()> {
        if matches!(error.kind(), Kind::Unavailable | Kind::Internal) {
            return Err(error);
        }
        let of = Self::of(segment, self.archive.partition);
        let range = of.start.max(self.reached).max(self.archive.range.start)..of.end.min(self.archive.range.end);
        self.dark.push(range.clone());
        self.broken.push(Broken { object: segment.object.clone(), range, error });
        Ok(())
    }
}

/// What a comparison came to, beside what was told of each offset: segments that turned out to be unreadable.
pub(super) type Unreadable = Vec<Broken>;

/// Compares the records of a partition in the archive's range with what `reader` gets, and tells of every offset at which either
/// side has one, in their order. `low` asks the brokers where the log begins. The client is gone after an error.
///
/// # Errors
/// One of the sides does not answer, or the source refuses.
pub(super) async fn compare(
    archive: Archive<'_>,
    reader: &mut Option<RangeReader>,
    at: &TopicPartition,
    low: impl AsyncFn() -> Result<i64>,
    mut tell: impl FnMut(i64, Stands),
) -> Result<Unreadable> {
    let range = archive.range.clone();
    let mut ours = Reading::new(archive);
    let mut theirs = Source { at, rows: Rows::NONE, range: range.clone(), low: i64::MIN, ended: range.is_empty() };
    if let Some(reader) = reader.as_mut().filter(|_| !theirs.ended) {
        reader.start(at, range)?;
    }
    loop {
        ours.fill().await?;
        theirs.fill(reader, &low).await?;
        let (offset, stands) = match (ours.rows.first(), theirs.rows.first()) {
            (None, None) => return Ok(ours.broken),
            (Some(ours), Some(theirs)) if ours.offset == theirs.offset => (ours.offset, both(&ours, &theirs)),
            (Some(ours), theirs) if theirs.is_none_or(|theirs| ours.offset < theirs.offset) => {
                (ours.offset, Stands::Archive)
            }
            (_, Some(theirs)) => (theirs.offset, Stands::Source),
            (Some(ours), None) => (ours.offset, Stands::Archive),
        };
        if stands != Stands::Source {
            ours.rows.next += 1;
            ours.reached = offset + 1;
        }
        if stands != Stands::Archive {
            theirs.rows.next += 1;
        }
        let stands = match stands {
            Stands::Archive if offset < theirs.low => Stands::Removed,
            Stands::Source if ours.dark.iter().any(|range| range.contains(&offset)) => Stands::Dark,
            stands => stands,
        };
        tell(offset, stands);
    }
}

/// The source's side.
struct Source<'a> {
    at: &'a TopicPartition,
    rows: Rows,
    /// What is still to come.
    range: Range<i64>,
    /// Where the log begins, once records were removed while it was read.
    low: i64,
    ended: bool,
}

impl Source<'_> {
    /// Makes the next record ready, if there is one.
    async fn fill(&mut self, client: &mut Option<RangeReader>, low: &impl AsyncFn() -> Result<i64>) -> Result<()> {
        while self.rows.first().is_none() && !self.ended {
            let reader = client.take().ok_or_else(|| Error::new(Kind::Internal, "the client of the source is gone"))?;
            let (mut reader, came) = reader.next().await?;
            match came {
                Came::Records(block) => {
                    self.range.start = block.last_offset().map_or(self.range.start, |last| last + 1);
                    self.rows.take(block);
                }
                Came::End => self.ended = true,
                Came::OutOfRange => {
                    let (begins, next) = (low().await?, self.range.start);
                    if begins <= next {
                        let message = format!("{}: its log was cut while it was read, at offset {next}", self.at);
                        return Err(Error::new(Kind::Unavailable, message)
                            .hint("an election or a deletion was under way: verify again"));
                    }
                    self.low = begins;
                    self.range.start = begins.min(self.range.end);
                    self.ended = self.range.is_empty();
                    if !self.ended {
                        reader.start(self.at, self.range.clone())?;
                    }
                }
            }
            *client = Some(reader);
        }
        Ok(())
    }
}

/// Within one log an offset has one epoch, whatever compaction leaves of its batch (KIP-101).
fn both(ours: &Record<'_>, theirs: &Record<'_>) -> Stands {
    let same = (ours.timestamp, ours.timestamp_type, ours.key, ours.value)
        == (theirs.timestamp, theirs.timestamp_type, theirs.key, theirs.value)
        && ours.headers().eq(theirs.headers());
    let parted = ours.leader_epoch >= 0 && theirs.leader_epoch >= 0 && ours.leader_epoch != theirs.leader_epoch;
    match (same, parted) {
        (true, _) => Stands::Same,
        (false, true) => Stands::Diverged,
        (false, false) => Stands::Different,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Duration;

    use chrono::DateTime;
    use rdkafka::ClientConfig;
    use rdkafka::error::{KafkaError, RDKafkaErrorCode};
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

    use super::*;
    use crate::config::Isolation;
    use crate::record::TimestampType;
    use crate::segment::{Encoding, SegmentInfo, SegmentWriter};
    use crate::source::kafka::{Cluster, OffsetAt, tests::config};
    use crate::stream::{Format, TopicGeneration};

    const TIME: i64 = 1_700_000_000_000;

    fn value(offset: i64) -> Vec<u8> {
        format!("{offset:01000}").into_bytes()
    }

    /// A segment of one partition with a record at each offset.
    async fn segment(store: &Store, offsets: Range<i64>) -> SegmentRef {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, generation) = (directory.path().join("spool"), TopicGeneration::new("main", "a", 0));
        let created = DateTime::from_timestamp_millis(TIME).expect("a time");
        let info = SegmentInfo { stream: generation.clone(), topic_id: None, writer: "w".into(), created };
        let encoding = Encoding { format: Format::Parquet, zstd_level: 1 };
        let mut writer = SegmentWriter::create(&path, info, encoding).expect("a spool file");
        let mut block = Block::new(0, 0);
        for offset in offsets.clone() {
            block.push(offset, TIME, TimestampType::Create, -1, None, Some(&value(offset)), std::iter::empty());
        }
        writer.write(vec![block]).expect("encoded");
        let sealed = writer.finish(&[(0, offsets.start, offsets.end)]).expect("sealed");
        let object = layout::segment(&generation, created, "w", offsets.start.unsigned_abs(), Format::Parquet);
        store.upload(&object, &path, &sealed.sha256).await.expect("stored");
        sealed.to_ref(object.to_string())
    }

    /// The log begins later than it did when its ends were asked for, and an object has gone since it was verified: what is only
    /// archived then was removed, and what only the source has there is of the segment that is gone.
    #[tokio::test]
    async fn what_goes_on_either_side_while_records_are_compared_is_told_as_that() {
        let mock = MockCluster::new(1).expect("a mock cluster");
        mock.create_topic("a", 1, 1).expect("a topic");
        let kafka = config(&mock.bootstrap_servers(), &["a"], &[]);
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", mock.bootstrap_servers()).create().expect("a producer");
        // A partition of a mock cluster keeps 5 MiB.
        for offset in 0..8_000 {
            let value = value(offset);
            let mut record = BaseRecord::<(), [u8]>::to("a").partition(0).timestamp(TIME).payload(&value);
            while let Err((error, again)) = producer.send(record) {
                assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
                producer.poll(Duration::from_millis(10));
                record = again;
            }
        }
        producer.flush(Duration::from_secs(30)).expect("all were taken");
        let cluster = Cluster::new(&kafka).expect("a client");
        let at = TopicPartition::new("a", 0);
        let low = async || {
            let listed =
                cluster.list_offsets(std::slice::from_ref(&at), OffsetAt::Earliest, Isolation::ReadUncommitted).await?;
            Ok(listed.into_iter().next().and_then(|(_, offset)| offset.ok().flatten()).unwrap_or(-1))
        };
        let begins = low().await.expect("an answer");
        assert!((1..6_000).contains(&begins), "{begins}");

        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        let segments = [segment(&store, 0..6_000).await, segment(&store, 6_000..8_000).await];
        store.delete(&layout::object(&segments[1].object).expect("a key")).await.expect("deleted");
        let mut counts: BTreeMap<String, i64> = BTreeMap::new();
        let archive = Archive {
            store: &store,
            segments: segments.iter().collect(),
            damaged: &HashSet::new(),
            partition: 0,
            range: 0..8_000,
        };
        let mut reader = Some(RangeReader::new(&kafka).expect("a client"));
        let broken = compare(archive, &mut reader, &at, low, |_, stands| {
            *counts.entry(format!("{stands:?}")).or_default() += 1;
        });
        let broken = broken.await.expect("both sides answer");
        let expected = [("Dark", 2_000), ("Removed", begins), ("Same", 6_000 - begins)];
        assert_eq!(counts, expected.map(|(name, count)| (name.to_owned(), count)).into());
        let ranges: Vec<_> = broken.iter().map(|broken| (&*broken.object, broken.range.clone())).collect();
        assert_eq!(ranges, [(&*segments[1].object, 6_000..8_000)]);
    }
}

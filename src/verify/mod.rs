//! Whether the archive still is what its checkpoints say.
//!
//! Every chain is scanned from its first entry ([`ChainScan`] checks links, numbers, pages and rules); every segment that an
//! entry names is looked for, hashed as a stream, and asked for its own facts; `deep` also decodes every record. Damage
//! is collected, not thrown: one bad object hides no other. Objects below `segments/` that no checkpoint names are
//! orphans: what a writer leaves that was killed or lost a race, and no error. Objects that a merge or an expiry has
//! retired may be there or not. The WAL of a Postgres system is checked in [`wal`], its base backups by their parts.

mod backups;
mod complete;
mod meanwhile;
pub mod source;
mod wal;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest::coverage::Unknown;
use crate::manifest::{self, ChainScan, ScanStep};
use crate::record::Block;
use crate::segment::{Filter, SegmentReader};
use crate::store::{Store, layout};
use crate::stream::{Body, Format, Gap, PartitionRange, SegmentRef, StreamId, System, TopicGeneration, total};

/// Segments that are checked side by side: a store far away answers several at once, and decoding uses several cores.
const CHECKS_AT_ONCE: usize = 4;

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Chains.
    pub streams: u64,
    /// Segments that their entries name.
    pub segments: u64,
    /// Records within, as the checkpoints say.
    pub records: u64,
    /// Bytes of the segments, as the checkpoints say.
    pub bytes: u64,
    /// What is not as it should be, by stream.
    pub errors: Vec<Damage>,
    /// What is lost for good, and known to be.
    pub gaps: Vec<(StreamId, Gap)>,
    /// Segment objects that no checkpoint names.
    pub orphans: u64,
    /// Base backups.
    pub backups: u64,
    /// Base backups that were begun and do not count, or were expired: how many.
    pub leftovers: u64,
    /// The size of their objects.
    pub leftover_bytes: u64,
    /// Up to when each topic is complete, in its newest generation, or why that is not known.
    pub complete: Vec<(TopicGeneration, Result<DateTime<Utc>, Unknown>)>,
}

/// One object that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Damage {
    /// The stream whose chain names the object.
    pub stream: StreamId,
    /// The object.
    pub object: String,
    /// What sort of damage it is.
    pub kind: DamageKind,
    /// What is wrong, with numbers.
    pub detail: String,
    /// What the object should hold: partition, first offset, offset after the last, records.
    pub ranges: Vec<(i32, i64, i64, u64)>,
}

/// A sort of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DamageKind {
    /// An entry or a page of a chain is missing, damaged or against a rule.
    Chain,
    /// A segment's object does not exist.
    Missing,
    /// A segment's bytes are not those that were written.
    Changed,
    /// A segment's bytes cannot be decoded.
    Unreadable,
    /// A segment's records are not what its checkpoint says.
    Contradiction,
    /// The store gave no answer that an object can be judged by, although it answers for others: no damage that is known of.
    Unchecked,
}

impl DamageKind {
    /// What an error tells of an object: `damage`, unless the store did not answer.
    fn of(error: &Error, damage: Self) -> Self {
        if error.is_transient() { Self::Unchecked } else { damage }
    }

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chain => "chain",
            Self::Missing => "missing",
            Self::Changed => "changed",
            Self::Unreadable => "unreadable",
            Self::Contradiction => "contradiction",
            Self::Unchecked => "unchecked",
        }
    }

    /// What the reader can do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Chain | Self::Missing | Self::Changed => {
                "restore the object from a copy of the archive or an older version of it"
            }
            Self::Unreadable | Self::Contradiction => {
                "restore the object from a copy of the archive; if the copy is the same, keep it and report this as a bug"
            }
            Self::Unchecked => {
                "look after the store and what lies between it and tidelog, and verify again: the object may be sound"
            }
        }
    }
}

/// How far a verification has come, for a progress bar on another thread.
#[derive(Debug, Default)]
pub struct Seen {
    total: AtomicU64,
    done: AtomicU64,
}

impl Seen {
    /// Bytes of all segment objects; 0 until they are counted.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Bytes of the segments that are checked.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

/// Checks the whole archive, the records themselves too if `deep`.
///
/// # Errors
/// Only what keeps it from looking, such as a store that does not answer. Damage is in the [`Report`].
pub async fn verify(store: &Store, deep: bool, seen: &Arc<Seen>) -> Result<Report> {
    // Before the chains: a segment that comes meanwhile is then neither listed nor missed.
    let objects = store.list(&layout::segments()).await?;
    seen.total.store(total(objects.iter().map(|object| object.size)), Ordering::Relaxed);
    let mut work = Work {
        store,
        deep,
        seen,
        report: Report::default(),
        named: HashSet::new(),
        checks: JoinSet::new(),
        retired: wal::Retired::default(),
        scans: Vec::new(),
        missing: Vec::new(),
    };
    let streams = manifest::streams(store).await?;
    for stream in streams.iter().cloned() {
        let looked = work.stream(&stream).await;
        if let Err(error) = manifest::isolated(store, looked).await? {
            let object = layout::chain(&stream).to_string();
            let (kind, detail) = (DamageKind::of(&error, DamageKind::Chain), error.to_string());
            work.report.errors.push(Damage { stream, object, kind, detail, ranges: Vec::new() });
        }
    }
    while !work.checks.is_empty() {
        work.finish_one().await?;
    }
    for (system, checks) in std::mem::take(&mut work.scans) {
        let damages = wal::scan(system, checks).await?;
        // What cannot be read at all was told when it was hashed.
        let told: HashSet<&str> = work.report.errors.iter().map(|told| told.object.as_str()).collect();
        let damages: Vec<Damage> =
            damages.into_iter().filter(|damage| !told.contains(damage.object.as_str())).collect();
        work.report.errors.extend(damages);
    }
    work.look_again().await?;
    let Work { mut report, named, .. } = work;
    let orphan = |key: &Path| !named.contains(key.as_ref()) && !layout::is_history(key);
    report.orphans = objects.iter().filter(|object| orphan(&object.location)).count() as u64;
    report.errors.sort();
    report.complete = complete::of(store, &streams, crate::time::now()).await?;
    Ok(report)
}

struct Work<'a> {
    store: &'a Store,
    deep: bool,
    seen: &'a Arc<Seen>,
    report: Report,
    /// The objects that entries name.
    named: HashSet<String>,
    checks: JoinSet<Result<Option<(Damage, SegmentRef)>>>,
    /// What the stream at hand no longer needs.
    retired: wal::Retired,
    /// The WAL that is to be scanned, by system.
    scans: Vec<(System, Vec<Check>)>,
    /// Segments whose objects are not there.
    missing: Vec<SegmentRef>,
}

impl Work<'_> {
    async fn stream(&mut self, stream: &StreamId) -> Result<()> {
        self.report.streams += 1;
        self.retired = wal::Retired::default();
        // Of most topics nothing was expired: they need no second scan.
        let expires = match stream.topic() {
            Some(_) => match manifest::Chain::open(self.store, stream).await {
                Ok(chain) => chain.is_some_and(|chain| !chain.totals().retired.is_nothing()),
                Err(error) if error.is_transient() => return Err(error),
                // The scan tells what is wrong with it.
                Err(_) => true,
            },
            None => true,
        };
        if expires {
            self.retired = wal::Retired::of(self.store, stream).await?;
        }
        if let StreamId::Postgres { system_id } = stream {
            self.scans.extend(self.retired.system.map(|system| (system, Vec::new())).filter(|_| self.deep));
            self.backups(stream, *system_id).await?;
        }
        let mut scan = ChainScan::new(self.store, stream).await?;
        while let Some(step) = scan.next().await? {
            match step {
                ScanStep::Entry { checkpoint, .. } => self.body(stream, checkpoint.number, checkpoint.body).await?,
                ScanStep::Page { .. } => {}
                ScanStep::Damaged { object, error, .. } => {
                    let (stream, object) = (stream.clone(), object.to_string());
                    let (kind, detail) = (DamageKind::Chain, error.to_string());
                    self.report.errors.push(Damage { stream, object, kind, detail, ranges: Vec::new() });
                }
            }
        }
        Ok(())
    }

    async fn body(&mut self, stream: &StreamId, number: u64, body: Body) -> Result<()> {
        self.report.gaps.extend(body.gaps().iter().map(|gap| (stream.clone(), gap.clone())));
        let segments = match body {
            Body::Append(change) => change.segments,
            Body::Merge(merge) => vec![merge.segment],
            _ => Vec::new(),
        };
        for segment in segments {
            self.segment(stream, number, segment).await?;
        }
        Ok(())
    }

    async fn segment(&mut self, stream: &StreamId, number: u64, segment: SegmentRef) -> Result<()> {
        self.named.insert(segment.object.clone());
        let wal = segment.format == Format::Wal;
        if self.retired.has(&segment) {
            return Ok(());
        }
        self.report.segments += 1;
        self.report.records = total([self.report.records, segment.records()]);
        self.report.bytes = total([self.report.bytes, segment.bytes]);
        while self.checks.len() >= CHECKS_AT_ONCE {
            self.finish_one().await?;
        }
        let check = Check { store: self.store.clone(), stream: stream.clone(), number, segment };
        if let Some((_, checks)) = self.scans.last_mut().filter(|_| wal) {
            checks.push(check.clone());
        }
        let (deep, seen) = (self.deep, Arc::clone(self.seen));
        self.checks.spawn(async move {
            let found = check.run(deep).await;
            seen.done.fetch_add(check.segment.bytes, Ordering::Relaxed);
            Ok(found?.map(|damage| (damage, check.segment)))
        });
        Ok(())
    }

    async fn finish_one(&mut self) -> Result<()> {
        if let Some(found) = self.checks.join_next().await {
            let found = found.or_err(Kind::Internal, || "the check of a segment failed".to_owned())??;
            let Some((damage, segment)) = found else { return Ok(()) };
            self.missing.extend((damage.kind == DamageKind::Missing).then_some(segment));
            self.report.errors.push(damage);
        }
        Ok(())
    }
}

/// One segment to look at.
#[derive(Clone)]
struct Check {
    store: Store,
    stream: StreamId,
    /// The entry that names it.
    number: u64,
    segment: SegmentRef,
}

impl Check {
    async fn run(&self, deep: bool) -> Result<Option<Damage>> {
        match self.look(deep).await {
            Ok(()) => Ok(None),
            Err(Finding::Damage(kind, detail)) => Ok(Some(self.damage(kind, detail))),
            Err(Finding::Trouble(error)) => match manifest::isolated(&self.store, Err(error)).await? {
                Ok(()) => Ok(None),
                Err(error) => Ok(Some(self.damage(DamageKind::of(&error, DamageKind::Unreadable), error.to_string()))),
            },
        }
    }

    fn damage(&self, kind: DamageKind, detail: String) -> Damage {
        let ranges = self.segment.partitions.iter().map(|at| (at.partition, at.start, at.end, at.records)).collect();
        Damage { stream: self.stream.clone(), object: self.segment.object.clone(), kind, detail, ranges }
    }

    async fn look(&self, deep: bool) -> Result<(), Finding> {
        let key = layout::object(&self.segment.object).map_err(Finding::of)?;
        let named = format!("the checkpoint {:020}", self.number);
        let Some(size) = self.store.size(&key).await.map_err(Finding::of)? else {
            return Err(Finding::Damage(DamageKind::Missing, format!("the object does not exist, {named} names it")));
        };
        if size != self.segment.bytes {
            let detail = format!("it has {size} bytes, {named} says {}", self.segment.bytes);
            return Err(Finding::Damage(DamageKind::Changed, detail));
        }
        let sha256 = self.hash(&key).await.map_err(Finding::of)?;
        if sha256 != self.segment.sha256 {
            let detail = format!("its sha256 is {sha256}, {named} says {}", self.segment.sha256);
            return Err(Finding::Damage(DamageKind::Changed, detail));
        }
        let segment = &self.segment;
        if let StreamId::Postgres { system_id } = self.stream {
            return wal::facts_agree(&self.store, system_id, segment).await;
        }
        if self.stream.state().is_some() {
            return self.version_agrees(&key).await;
        }
        let mut reader =
            SegmentReader::open(self.store.objects(), &key, segment.bytes, segment.format, Filter::default())
                .await
                .map_err(Finding::of)?;
        self.facts_agree(&reader).map_err(|detail| Finding::Damage(DamageKind::Contradiction, detail))?;
        if deep {
            let mut counted = Counted::default();
            while let Some(block) = reader.next().await.map_err(Finding::of)? {
                counted.block(segment, &block).map_err(|detail| Finding::Damage(DamageKind::Contradiction, detail))?;
            }
            counted.agrees(segment).map_err(|detail| Finding::Damage(DamageKind::Contradiction, detail))?;
        }
        Ok(())
    }

    /// A version of a state document is one, of its stream, and as long as the checkpoint says.
    async fn version_agrees(&self, key: &Path) -> Result<(), Finding> {
        let bytes = self.store.get(key).await.map_err(Finding::of)?.unwrap_or_default();
        let document = manifest::state::open(&self.stream, key, &bytes).map_err(Finding::of)?;
        let start = self.segment.partitions.first().map_or(0, |range| range.start.unsigned_abs());
        let named = matches!(layout::Name::parse(&self.segment.object), Ok(layout::Name::State { version, .. }) if version == start);
        if document.len() as u64 == self.segment.raw_bytes && named {
            return Ok(());
        }
        let detail = format!(
            "it is {} bytes long unpacked, and the checkpoint {:020} names it as version {start} of {} bytes",
            document.len(),
            self.number,
            self.segment.raw_bytes
        );
        Err(Finding::Damage(DamageKind::Contradiction, detail))
    }

    async fn hash(&self, key: &Path) -> Result<String> {
        let failed = || format!("cannot read {key}");
        let object = self.store.objects().get(key).await.or_err(Kind::Unavailable, failed)?;
        let mut bytes = object.into_stream();
        let mut hash = Sha256::new();
        while let Some(piece) = bytes.next().await {
            hash.update(piece.or_err(Kind::Unavailable, failed)?);
        }
        Ok(format!("{:x}", hash.finalize()))
    }

    /// The file's metadata repeats the checkpoint's facts.
    fn facts_agree(&self, reader: &SegmentReader) -> Result<(), String> {
        let facts = reader.facts();
        if self.stream.topic() != Some(&facts.stream) {
            return Err(format!("its metadata says that it belongs to {}", facts.stream));
        }
        if facts.partitions != self.segment.partitions {
            return Err(format!(
                "its metadata names other ranges ({}) than the checkpoint {:020} ({})",
                ranges(&facts.partitions),
                self.number,
                ranges(&self.segment.partitions)
            ));
        }
        let said = [
            ("bytes of records", facts.raw_bytes, self.segment.raw_bytes),
            ("bytes in its largest record", facts.largest_record, self.segment.largest_record),
        ];
        match said.iter().find(|(_, file, checkpoint)| file != checkpoint) {
            Some((what, file, checkpoint)) => {
                Err(format!("its metadata says {file} {what}, the checkpoint says {checkpoint}"))
            }
            None => Ok(()),
        }
    }
}

fn ranges(partitions: &[PartitionRange]) -> String {
    let one = |at: &PartitionRange| format!("{}: {}..{}", at.partition, at.start, at.end);
    partitions.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// What the decoded records of one segment add up to.
#[derive(Default)]
struct Counted {
    partitions: BTreeMap<i32, Rows>,
    raw_bytes: u64,
    largest: u64,
}

struct Rows {
    records: u64,
    last: i64,
    min: i64,
    max: i64,
}

impl Counted {
    fn block(&mut self, segment: &SegmentRef, block: &Block) -> Result<(), String> {
        let partition = block.partition();
        let Some(range) = segment.partitions.iter().find(|range| range.partition == partition) else {
            return Err(format!("it holds records of partition {partition}, which its checkpoint does not name"));
        };
        for record in block.iter() {
            if !(range.start..range.end).contains(&record.offset) {
                return Err(format!(
                    "partition {partition}: offset {} lies outside {}..{}",
                    record.offset, range.start, range.end
                ));
            }
            let fresh = Rows { records: 0, last: i64::MIN, min: i64::MAX, max: i64::MIN };
            let rows = self.partitions.entry(partition).or_insert(fresh);
            if record.offset <= rows.last {
                return Err(format!(
                    "partition {partition}: offset {} stands after offset {}",
                    record.offset, rows.last
                ));
            }
            rows.records += 1;
            rows.last = record.offset;
            rows.min = rows.min.min(record.timestamp);
            rows.max = rows.max.max(record.timestamp);
            self.raw_bytes += record.size();
            self.largest = self.largest.max(record.size());
        }
        Ok(())
    }

    fn agrees(&self, segment: &SegmentRef) -> Result<(), String> {
        for range in &segment.partitions {
            let rows = self.partitions.get(&range.partition);
            let records = rows.map_or(0, |rows| rows.records);
            if records != range.records {
                return Err(format!(
                    "partition {} holds {records} records, its checkpoint says {}",
                    range.partition, range.records
                ));
            }
            let times = rows.map(|rows| (rows.min, rows.max));
            if times != range.min_timestamp.zip(range.max_timestamp) {
                return Err(format!(
                    "partition {} holds timestamps {times:?}, its checkpoint says {:?}",
                    range.partition,
                    range.min_timestamp.zip(range.max_timestamp)
                ));
            }
        }
        if (self.raw_bytes, self.largest) != (segment.raw_bytes, segment.largest_record) {
            return Err(format!(
                "its records have {} bytes and the largest {}, its checkpoint says {} and {}",
                self.raw_bytes, self.largest, segment.raw_bytes, segment.largest_record
            ));
        }
        Ok(())
    }
}

/// Why a look at a segment ended early.
enum Finding {
    Damage(DamageKind, String),
    Trouble(Error),
}

impl Finding {
    /// Bytes that cannot be decoded, or an object that vanished, are damage; a store that does not answer is not.
    fn of(error: Error) -> Self {
        match error.kind() {
            Kind::Corrupt | Kind::Unsupported | Kind::Denied => Self::Damage(DamageKind::Unreadable, error.to_string()),
            Kind::NotFound | Kind::Incomplete => Self::Damage(DamageKind::Missing, error.to_string()),
            _ => Self::Trouble(error),
        }
    }
}

impl Report {
    /// Segments that are damaged or missing.
    pub fn damaged_segments(&self) -> u64 {
        self.objects(|kind| !matches!(kind, DamageKind::Chain | DamageKind::Unchecked))
    }

    /// Objects of which nothing is known, since the store did not answer.
    pub fn unchecked(&self) -> u64 {
        self.objects(|kind| kind == DamageKind::Unchecked)
    }

    fn objects(&self, of: impl Fn(DamageKind) -> bool) -> u64 {
        let objects: BTreeSet<_> =
            self.errors.iter().filter(|damage| of(damage.kind)).map(|damage| &damage.object).collect();
        objects.len() as u64
    }

    /// Records in them, as their checkpoints say.
    pub fn damaged_records(&self) -> u64 {
        let damaged = self.errors.iter().filter(|damage| damage.kind != DamageKind::Unchecked);
        total(damaged.flat_map(|damage| &damage.ranges).map(|(_, _, _, records)| *records))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::TimestampType;
    use crate::stream::Format;

    #[tokio::test]
    async fn versions_of_state_that_were_expired_are_not_missed_and_the_others_are() {
        use crate::manifest::state::{By, append, document, retention};
        use crate::stream::{Begin, StateKind, StateOf};

        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        let at = |seconds| chrono::DateTime::from_timestamp(1_700_000_000 + seconds, 0).expect("a time");
        let of = StateOf { kind: StateKind::Topics, scope: "main".into() };
        let begin = Begin::State { state: StateKind::Topics, cluster_id: None };
        let stream = StreamId::State(of.clone());
        let mut chain = manifest::Chain::begin(&store, &stream, begin, "w", at(0)).await.expect("it begins");
        for number in 0..3_i64 {
            let document = document(&of, &number).expect("JSON");
            let by = By { writer: "w", n: number.unsigned_abs(), at: at(number * 10) };
            assert!(append(&mut chain, number, &document, by).await.expect("stored"));
        }
        retention::expire(&mut chain, at(15), ("e", at(20))).await.expect("expired");
        assert_eq!(retention::delete_expired(&store, &chain, at(9_000)).await.expect("deleted"), 1);
        let seen = Arc::new(Seen::default());
        let look = || verify(&store, true, &seen);
        let sound = look().await.expect("the store answers");
        assert_eq!((sound.errors.len(), sound.segments, sound.orphans), (0, 2, 0), "{:?}", sound.errors);
        store.delete(&layout::state_version(&of, 1, "w", 1)).await.expect("deleted");
        let damaged = look().await.expect("the store answers");
        assert_eq!(damaged.errors.iter().map(|damage| damage.kind).collect::<Vec<_>>(), [DamageKind::Missing]);
    }

    #[tokio::test]
    async fn what_is_expired_and_deleted_while_it_is_verified_is_not_missed() {
        use crate::manifest::state::{By, append, document, retention};
        use crate::stream::{Begin, StateKind, StateOf};

        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        let at = |seconds| chrono::DateTime::from_timestamp(1_700_000_000 + seconds, 0).expect("a time");
        let of = StateOf { kind: StateKind::Topics, scope: "main".into() };
        let stream = StreamId::State(of.clone());
        let begin = Begin::State { state: StateKind::Topics, cluster_id: None };
        let mut chain = manifest::Chain::begin(&store, &stream, begin, "w", at(0)).await.expect("it begins");
        for number in 0..3_i64 {
            let document = document(&of, &number).expect("JSON");
            let by = By { writer: "w", n: number.unsigned_abs(), at: at(number * 10) };
            assert!(append(&mut chain, number, &document, by).await.expect("stored"));
        }
        store.delete(&layout::state_version(&of, 2, "w", 2)).await.expect("deleted");
        // On one thread the chain is read before anything that was spawned, and that before the segments are looked at.
        let meanwhile = store.clone();
        let expires = tokio::spawn(async move {
            retention::expire(&mut chain, at(15), ("e", at(20))).await.expect("expired");
            retention::delete_expired(&meanwhile, &chain, at(9_000)).await.expect("deleted")
        });
        let report = verify(&store, true, &Arc::new(Seen::default())).await.expect("the store answers");
        assert_eq!(report.segments, 3, "the chain was read before");
        assert_eq!(expires.await.expect("done"), 1);
        let missing: Vec<&str> = report.errors.iter().map(|damage| damage.object.as_str()).collect();
        assert_eq!(missing, [layout::state_version(&of, 2, "w", 2).as_ref()], "and what is still needed is");
    }

    /// Offsets 10 and 12 at 500 and 400, of 8 bytes each.
    fn block(partition: i32, offsets: [i64; 2]) -> Block {
        let mut block = Block::new(partition, 64);
        for (offset, timestamp) in offsets.into_iter().zip([500, 400]) {
            let (key, value) = (Some(b"key".as_slice()), Some(b"value".as_slice()));
            block.push(offset, timestamp, TimestampType::Create, 0, key, value, std::iter::empty());
        }
        block
    }

    fn segment() -> SegmentRef {
        let (min_timestamp, max_timestamp) = (Some(400), Some(500));
        SegmentRef {
            object: String::new(),
            format: Format::Avro,
            bytes: 1,
            sha256: String::new(),
            raw_bytes: 16,
            largest_record: 8,
            partitions: vec![PartitionRange {
                partition: 3,
                start: 10,
                end: 14,
                records: 2,
                min_timestamp,
                max_timestamp,
            }],
            last: Vec::new(),
            generation: 0,
            minimal: None,
        }
    }

    fn found(segment: &SegmentRef, block: &Block) -> Result<(), String> {
        let mut counted = Counted::default();
        counted.block(segment, block)?;
        counted.agrees(segment)
    }

    #[test]
    fn records_are_held_against_their_checkpoint() {
        assert_eq!(found(&segment(), &block(3, [10, 12])), Ok(()));
        let says = |block: Block, change: fn(&mut SegmentRef)| {
            let mut segment = segment();
            change(&mut segment);
            found(&segment, &block).expect_err("a contradiction")
        };
        assert!(says(block(4, [10, 12]), |_| {}).contains("partition 4, which its checkpoint does not name"));
        assert!(says(block(3, [10, 14]), |_| {}).contains("offset 14 lies outside 10..14"));
        assert!(says(block(3, [12, 12]), |_| {}).contains("offset 12 stands after offset 12"));
        assert!(says(block(3, [10, 12]), |of| of.partitions[0].records = 3).contains("holds 2 records"));
        assert!(says(block(3, [10, 12]), |of| of.partitions[0].min_timestamp = Some(399)).contains("timestamps"));
        assert!(says(block(3, [10, 12]), |of| of.raw_bytes = 17).contains("have 16 bytes"));
    }
}

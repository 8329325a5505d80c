//! From the spool into the archive: the only task of this process that adds WAL to the stream's chain.
//!
//! ```text
//!  spool ─► cut: 16 MiB, or less by age ─► scan (pages, CRCs, commits) ─► compress ─► upload ─► checkpoint ─► release
//!           in order                       in order                       up to 3 at once      1 a second     the spool
//! ```
//!
//! What is cut is always the next range of its timeline, so the chain grows without a hole. Where the receiver found
//! that the server has no more what comes next, the range up to where it goes on is committed as a gap.

use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use futures::future::RemoteHandle;
use futures::stream::FuturesOrdered;
use futures::{FutureExt as _, StreamExt as _};
use object_store::path::Path;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::buffers::Buffer;
use super::count::{Counters, Reason};
use super::scan::{self, WalScan};
use super::shared::Shared;
use super::spool::Extent;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::maintenance::wal::Block;
use crate::manifest::origin::goes_on_elsewhere;
use crate::manifest::{Chain, Change, Outcome};
use crate::pipeline::checkpointer::Checkpointer;
use crate::pipeline::shutdown;
use crate::segment::wal::{MOST_BYTES, Seen, WalFacts, seal};
use crate::store::layout;
use crate::stream::{Gap, GapReason, Lsn, SegmentRef};
use crate::tasks::Task;
use crate::tasks::backoff::Backoff;

/// With nothing more to do nothing is waited for, but for this: the chain must not grow faster than anybody reads it.
const BETWEEN_LAST_CHECKPOINTS: Duration = Duration::from_millis(200);

/// What is reported of a checkpoint that fails.
const NOT_WRITTEN: &str = "a checkpoint of WAL cannot be written";

/// The spool is looked at this often at the most: it changes with every commit, which should not have to share a
/// processor with somebody who wakes up for it.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Segments that are compressed and uploaded at a time: one is compressed while others are on their way.
const SEGMENTS_AT_ONCE: usize = 3;

/// The task that archives.
pub(super) struct Archiver {
    shared: Arc<Shared>,
    checkpoints: Checkpointer,
    max_age: Duration,
    /// Complete blocks of 16 MiB that lie in several segments.
    merges: mpsc::UnboundedSender<Block>,
    /// The next range begins here.
    cut: Option<(u32, Lsn)>,
    scan: Option<WalScan>,
    /// Since when bytes wait that do not fill a segment yet.
    since: Option<Instant>,
    /// They end with the archiver.
    jobs: FuturesOrdered<RemoteHandle<Result<SegmentRef>>>,
    ready: Vec<SegmentRef>,
    /// Another process was faster, and memory held what comes next.
    overtaken: bool,
    counters: Counters,
}

/// How the archiver ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Everything is archived.
    Done,
    /// Another process was faster, and what this one held in memory is gone: it has to be received again.
    Overtaken,
}

/// What is to be done next.
enum Work {
    Segment {
        timeline: u32,
        start: Lsn,
        end: Lsn,
        reason: Reason,
    },
    Gap {
        timeline: u32,
        start: Lsn,
        end: Lsn,
    },
    /// Nothing before this moment, or before more comes.
    Wait(Option<Instant>),
}

impl Archiver {
    pub(super) fn new(
        shared: Arc<Shared>,
        chain: Chain,
        max_age: Duration,
        merges: mpsc::UnboundedSender<Block>,
    ) -> Self {
        let task = (Task::WalCheckpoint, "".into());
        let checkpoints = Checkpointer::new(chain, &shared.writer, &shared.status.tasks, task);
        Self {
            shared,
            checkpoints,
            max_age,
            merges,
            cut: None,
            scan: None,
            since: None,
            jobs: FuturesOrdered::new(),
            ready: Vec::new(),
            overtaken: false,
            counters: Counters::new(),
        }
    }

    /// Archives what comes into the spool until `stop` turns true and everything is archived.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] for bytes that are no WAL: the spool was cut before them, and they have to be received again.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<Ended> {
        let mut changes = self.shared.spool.changes();
        self.tell_positions();
        loop {
            let stopping = *stop.borrow();
            let mut wait = None;
            while !self.overtaken && self.jobs.len() < SEGMENTS_AT_ONCE {
                match self.next_work(stopping)? {
                    Work::Segment { timeline, start, end, reason } => {
                        self.begin_segment(timeline, start, end).await?;
                        self.counters.sealed(reason);
                    }
                    Work::Gap { timeline, start, end } if self.is_idle() => self.commit_gap(timeline, start, end).await,
                    Work::Gap { .. } => break,
                    Work::Wait(until) => {
                        wait = until;
                        break;
                    }
                }
            }
            if self.overtaken {
                return Ok(Ended::Overtaken);
            }
            if self.is_idle() {
                if stopping && wait.is_none() {
                    return Ok(Ended::Done);
                }
                self.shared.buffers.shrink();
            }
            let checkpoint = match self.jobs.is_empty() {
                true => self.checkpoints.next_within(BETWEEN_LAST_CHECKPOINTS),
                false => self.checkpoints.next(),
            };
            let look = Instant::now() + BETWEEN_LOOKS;
            let changed = async {
                sleep_until(look).await;
                changes.changed().await
            };
            tokio::select! {
                biased;
                Some(job) = self.jobs.next() => {
                    self.ready.push(job?);
                }
                () = sleep_until(checkpoint), if !self.ready.is_empty() => self.commit().await,
                () = self.shared.spool.full() => {}
                () = self.shared.look_again.notified() => self.look_again().await,
                changed = changed => changed.or_err(Kind::Internal, || "the spool of WAL is gone".into())?,
                () = sleep_until(wait.unwrap_or_else(Instant::now)), if wait.is_some() => {}
                () = shutdown::requested(&mut stop), if !stopping => {}
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.ready.is_empty()
    }

    /// What follows the last range that was cut.
    fn next_work(&mut self, hurry: bool) -> Result<Work> {
        let extents = self.shared.spool.extents();
        let Some((timeline, at)) = self.place(&extents)? else { return Ok(Work::Wait(None)) };
        let mut available = at;
        for extent in extents.iter().filter(|extent| extent.timeline == timeline) {
            if extent.start <= available && extent.safe > available {
                available = extent.safe;
            }
        }
        let next = extents.iter().find(|extent| (extent.timeline, extent.start) > (timeline, available));
        let full = Lsn((at.0 + 1).next_multiple_of(MOST_BYTES));
        if available >= full {
            self.since = None;
            return Ok(Work::Segment { timeline, start: at, end: full, reason: Reason::Size });
        }
        if available > at {
            let due = *self.since.get_or_insert_with(Instant::now) + self.max_age;
            // Nothing more comes of a timeline that was left, or before a gap.
            let over = next.is_some_and(|next| next.timeline > timeline || next.after_gap);
            let reason = if over {
                Reason::End
            } else if hurry {
                Reason::Stop
            } else if Instant::now() >= due {
                Reason::Age
            } else {
                return Ok(Work::Wait(Some(due)));
            };
            self.since = None;
            return Ok(Work::Segment { timeline, start: at, end: available, reason });
        }
        self.since = None;
        match next {
            Some(next) if next.timeline == timeline && next.after_gap => {
                Ok(Work::Gap { timeline, start: at, end: next.start })
            }
            Some(next) if next.timeline > timeline => {
                self.cut = Some((next.timeline, self.begins(next)?));
                self.scan = None;
                self.next_work(hurry)
            }
            _ => Ok(Work::Wait(None)),
        }
    }

    /// Where the next range begins; none before anything was received.
    fn place(&mut self, extents: &[Extent]) -> Result<Option<(u32, Lsn)>> {
        if self.cut.is_none()
            && let Some(first) = extents.first()
        {
            self.cut = Some((first.timeline, self.begins(first)?));
        }
        Ok(self.cut)
    }

    /// Where a timeline goes on whose first bytes in the spool are `extent`.
    fn begins(&self, extent: &Extent) -> Result<Lsn> {
        let Some(position) = self.checkpoints.chain().position(extent.timeline.cast_signed()) else {
            return Ok(extent.start);
        };
        let archived = Lsn::at(position.end);
        if archived < extent.start && !extent.after_gap {
            let message = format!(
                "the archive has timeline {} up to {archived}, and the spool goes on at {}",
                extent.timeline, extent.start
            );
            return Err(Error::new(Kind::Incomplete, message).hint(
                "files of the spool are missing: put them back, or move the spool's directory away to receive again",
            ));
        }
        Ok(archived)
    }

    /// Looks at the bytes of the next segment, and has it encoded and uploaded.
    async fn begin_segment(&mut self, timeline: u32, start: Lsn, end: Lsn) -> Result<()> {
        let mut scan = match self.scan.take().filter(|scan| scan.is_at(timeline, start)) {
            Some(scan) => scan,
            None => scan::resume(&self.shared, self.checkpoints.chain(), timeline, start).await?,
        };
        let shared = Arc::clone(&self.shared);
        let scanned = tokio::task::spawn_blocking(move || {
            let scanned = scan.over(&shared, start, end);
            (scan, scanned)
        });
        let (scan, scanned) = scanned.await.or_err(Kind::Internal, || "the scan of WAL was aborted".into())?;
        let (wal, seen) = match scanned {
            Ok(scanned) => scanned,
            Err(error) if error.kind() == Kind::Corrupt => {
                let keep = scan.verified().map_or(start, |verified| verified.max(start));
                self.shared.spool.cut(timeline, keep)?;
                let archived =
                    self.checkpoints.chain().position(timeline.cast_signed()).map(|position| Lsn::at(position.end));
                if archived == Some(start) && keep == start {
                    let server = self.shared.status.now().server;
                    return Err(goes_on_elsewhere(timeline, start, server).source(error));
                }
                return Err(error.context(format_args!("WAL of timeline {timeline} in the spool")));
            }
            Err(error) => return Err(error),
        };
        if seen.minimal.is_some() {
            tracing::error!(
                timeline,
                %start,
                %end,
                "the server ran with wal_level = minimal: Postgres recovers nothing over that, and a new base backup is asked for"
            );
            self.ask_for_backup(format!("the server ran with wal_level = minimal before {end}"));
        }
        self.scan = Some(scan);
        self.cut = Some((timeline, end));
        let (system, writer) = (self.shared.system, &self.shared.writer);
        let number = self.shared.next_number();
        let generation = self.checkpoints.chain().generation(timeline.cast_signed());
        let job = Job {
            generation,
            shared: Arc::clone(&self.shared),
            key: layout::wal_segment(system.system_id, timeline, start.0..end.0, writer, number),
            facts: WalFacts::new(system, timeline, start..end, writer, crate::time::now()),
            wal,
            seen,
        };
        let (job, segment) = job.run().remote_handle();
        tokio::spawn(job);
        self.jobs.push_back(segment);
        Ok(())
    }

    /// Puts a checkpoint over the segments that are ready.
    async fn commit(&mut self) {
        let change = Change { segments: std::mem::take(&mut self.ready), ..Change::default() };
        match self.checkpoints.commit(&change, NOT_WRITTEN).await {
            Outcome::Committed { number } => {
                tracing::debug!(stream = %self.checkpoints.chain().stream(), checkpoint = number, segments = change.segments.len(), "committed");
                self.shared.status.note(|now| {
                    now.segments += change.segments.len() as u64;
                    now.raw_bytes += change.segments.iter().map(|segment| segment.raw_bytes).sum::<u64>();
                    now.stored_bytes += change.segments.iter().map(|segment| segment.bytes).sum::<u64>();
                    let last = change.segments.iter().filter_map(SegmentRef::max_timestamp).max();
                    now.last_commit = now.last_commit.max(last.and_then(DateTime::from_timestamp_millis));
                });
                for segment in &change.segments {
                    tracing::debug!(
                        object = segment.object,
                        raw_bytes = segment.raw_bytes,
                        bytes = segment.bytes,
                        "archived a segment"
                    );
                    self.counters.archived(segment);
                    self.ask_for_merge(segment);
                }
            }
            Outcome::Moved(timelines) => {
                tracing::warn!(stream = %self.checkpoints.chain().stream(), ?timelines, "another process has archived this WAL; going on behind it");
                self.counters.conflicts.increment(1);
                self.start_over().await;
            }
            // Only the chain of a topic's generation is ever ended.
            Outcome::Closed => self.start_over().await,
        }
        self.tell_positions();
    }

    /// A block of 16 MiB is complete: if it lies in several segments, they can become one.
    fn ask_for_merge(&self, segment: &SegmentRef) {
        let Some(range) = segment.partitions.first() else { return };
        let (start, end) = (Lsn::at(range.start), Lsn::at(range.end));
        if end.0.is_multiple_of(MOST_BYTES) && !start.0.is_multiple_of(MOST_BYTES) {
            let block = Block { timeline: range.partition, start: Lsn(end.0 - MOST_BYTES).position(), end: range.end };
            if self.merges.send(block).is_err() {
                tracing::debug!("the maintenance has ended");
            }
        }
    }

    async fn commit_gap(&mut self, timeline: u32, start: Lsn, end: Lsn) {
        let gap = Gap {
            partition: timeline.cast_signed(),
            start: start.position(),
            end: end.position(),
            reason: GapReason::ServerRemovedWal,
            found: crate::time::now(),
            generation: self.checkpoints.chain().generation(timeline.cast_signed()),
        };
        let change = Change { gaps: vec![gap], ..Change::default() };
        match self.checkpoints.append(&change, NOT_WRITTEN).await {
            Outcome::Committed { .. } => {
                self.counters.gaps.increment(1);
                self.shared.status.note(|now| now.gaps += 1);
                tracing::error!(
                    timeline,
                    %start,
                    %end,
                    bytes = end - start,
                    "WAL is lost: the server removed it before it was archived; the gap is recorded, and a new base backup is asked for"
                );
                self.ask_for_backup(format!("WAL of timeline {timeline} from {start} to {end} is lost"));
                self.cut = Some((timeline, end));
                self.scan = None;
            }
            Outcome::Moved(_) | Outcome::Closed => self.start_over().await,
        }
        self.tell_positions();
    }

    fn ask_for_backup(&self, why: String) {
        // One that waits already is enough.
        if self.shared.backups.try_send(why).is_err() {
            tracing::debug!("a base backup is asked for already");
        }
    }

    /// Looks whether a timeline was abandoned meanwhile: then everything begins again from what the chain says.
    async fn look_again(&mut self) {
        match self.checkpoints.refresh().await {
            Ok(()) => self.overtaken |= self.shared.is_overtaken_by(self.checkpoints.chain()),
            Err(error) => tracing::debug!(%error, "the chain cannot be looked at again"),
        }
    }

    /// Another process has come further: what was cut is dropped, and the chain says where to go on.
    async fn start_over(&mut self) {
        while self.jobs.next().await.is_some() {}
        self.ready.clear();
        self.scan = None;
        self.overtaken = self.shared.spool.forget() || self.shared.is_overtaken_by(self.checkpoints.chain());
        if let Some((timeline, at)) = self.cut {
            let archived =
                self.checkpoints.chain().position(timeline.cast_signed()).map(|position| Lsn::at(position.end));
            self.cut = Some((timeline, archived.unwrap_or(at)));
        }
    }

    /// Tells the receiver how far the archive is, and frees the spool.
    fn tell_positions(&self) {
        let positions: Vec<_> = self.checkpoints.chain().positions().copied().collect();
        let ends = || positions.iter().map(|position| (position.partition.cast_unsigned(), Lsn::at(position.end)));
        self.shared.spool.release(ends().collect());
        if let Some((timeline, end)) = ends().next_back() {
            self.shared.status.durable_to(timeline, end);
        }
        self.shared.archived.send_replace(positions);
    }
}

/// One segment on its way from the spool into the store.
struct Job {
    /// Which generation of its timeline it belongs to.
    generation: u32,
    shared: Arc<Shared>,
    key: Path,
    facts: WalFacts,
    wal: Buffer,
    seen: Seen,
}

impl Job {
    /// Uploads until it succeeds: the spool keeps the bytes.
    async fn run(self) -> Result<SegmentRef> {
        let Self { generation, shared, key, facts, wal, seen } = self;
        let (of, level) = (key.clone(), shared.zstd_level);
        let sealed = tokio::task::spawn_blocking(move || seal(&of, &facts, &wal, &seen, level));
        let (mut segment, object) =
            sealed.await.or_err(Kind::Internal, || "the encoding of WAL was aborted".into())??;
        segment.generation = generation;
        let mut backoff = Backoff::new(shared.status.tasks.reporter(Task::WalUpload, ""));
        while let Err(error) = shared.store.put(&key, object.clone()).await {
            backoff.wait_after("a segment of WAL cannot be uploaded", error).await;
        }
        Ok(segment)
    }
}

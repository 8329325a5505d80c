//! The records of a plan, in the order in which they are sent.
//!
//! ```text
//! plan ─► segments ─► reader ─► blocks ─┬─ in order ────────────────────► runs ─► pace ─► channel ─► sink
//!                                       └─ one cursor a partition, merged ─┘
//! ```
//! Without `--speed` the segments are read one after the other, the next one opened while the last is read. With it the
//! partitions have to keep step with each other, so each has a cursor of its own, and the cursor that is furthest behind
//! goes next. Either way a partition's records come by offset, the older life of a topic first: a record whose timestamp
//! lies before that of the one before it goes right after it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::pace::Pace;
use super::plan::{Plan, matching};
use crate::error::Result;
use crate::record::{Block, Record};
use crate::segment::{Filter, SegmentReader};
use crate::store::{Store, layout};

/// How many segments are open at once: the one that is read, and the next.
const OPEN_SEGMENTS: usize = 2;

/// Neighbouring records of one partition.
#[derive(Debug)]
pub(super) struct Run {
    /// The part of the plan that they belong to.
    pub(super) part: usize,
    /// The block that holds them.
    pub(super) block: Arc<Block>,
    /// Which of its records they are.
    pub(super) rows: Range<usize>,
}

impl Run {
    /// The records, in offset order.
    pub(super) fn records(&self) -> impl Iterator<Item = Record<'_>> {
        self.rows.clone().filter_map(|row| self.block.get(row))
    }

    fn piece(&self, rows: Range<usize>) -> Self {
        Self { part: self.part, block: Arc::clone(&self.block), rows }
    }

    /// The timestamp of the record in `row`.
    fn timestamp(&self, row: usize) -> i64 {
        self.block.get(row).map_or(i64::MIN, |record| record.timestamp)
    }
}

/// What a sink is told.
#[derive(Debug)]
pub(super) enum Step {
    /// Here are records.
    Send(Run),
    /// That was the whole plan. A channel that closes without it was cut short.
    Complete,
}

/// Sends the plan's records to `out`, no faster than `pace` allows, until they are all sent or nobody listens.
pub(super) async fn pump(mut feed: Feed, mut pace: Pace, out: mpsc::Sender<Step>) -> Result<()> {
    let mut clock = i64::MIN;
    while let Some(run) = feed.next().await? {
        if pace.is_free() {
            if out.send(Step::Send(run)).await.is_err() {
                return Ok(());
            }
            continue;
        }
        let mut first = run.rows.start;
        for (row, record) in run.rows.clone().zip(run.records()) {
            clock = clock.max(record.timestamp);
            if let Some(moment) = pace.wait_until(Instant::now(), clock) {
                if first < row && out.send(Step::Send(run.piece(first..row))).await.is_err() {
                    return Ok(());
                }
                first = row;
                sleep_until(moment).await;
            }
            pace.sent(Instant::now(), record.size(), clock);
        }
        if out.send(Step::Send(run.piece(first..run.rows.end))).await.is_err() {
            return Ok(());
        }
    }
    // A sink that has seen enough is gone by now, and that is no error.
    out.send(Step::Complete).await.or(Ok(()))
}

/// Where the next run comes from.
pub(super) enum Feed {
    /// Segment after segment.
    InOrder(InOrder),
    /// The partitions side by side, by timestamp.
    Merged(Merged),
}

impl Feed {
    /// The records of `plan`, partition by partition or, if `by_time`, merged by timestamp.
    pub(super) fn new(store: &Store, plan: &Arc<Plan>, by_time: bool) -> Self {
        if by_time { Self::Merged(Merged::new(store, plan)) } else { Self::InOrder(InOrder::new(store, plan)) }
    }

    /// The next run; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Run>> {
        match self {
            Self::InOrder(feed) => feed.next().await,
            Self::Merged(feed) => feed.next().await,
        }
    }
}

/// Opens segment number `segment` of part number `part`, for the rows that the plan wants of it or, if `partition` is
/// given, of that partition alone.
async fn open(
    store: &Store,
    plan: &Plan,
    part: usize,
    segment: usize,
    partition: Option<i32>,
) -> Result<SegmentReader> {
    let wanted = &plan.parts[part];
    let segment = &wanted.segments[segment];
    let ranges = segment.partitions.iter().filter(|range| partition.is_none_or(|only| range.partition == only));
    // The rows of a segment are those of its checkpoint's ranges, so the filter need not look beyond them.
    let ranges =
        ranges.filter_map(|range| matching(range, &wanted.filter).map(|rows| (range.partition, rows.start..rows.end)));
    let filter = Filter { partitions: Some(ranges.collect()), timestamps: wanted.filter.timestamps.clone() };
    let object = layout::object(&segment.object)?;
    SegmentReader::open(store.objects(), &object, segment.bytes, segment.format, filter).await
}

/// The segments of a plan, one after the other.
pub(super) struct InOrder {
    opening: BoxStream<'static, Result<(usize, SegmentReader)>>,
    current: Option<(usize, SegmentReader)>,
}

impl InOrder {
    fn new(store: &Store, plan: &Arc<Plan>) -> Self {
        let (store, plan) = (store.clone(), Arc::clone(plan));
        let order: Vec<(usize, usize)> = (0..plan.parts.len())
            .flat_map(|part| (0..plan.parts[part].segments.len()).map(move |segment| (part, segment)))
            .collect();
        let opening = stream::iter(order).map(move |(part, segment)| {
            let (store, plan) = (store.clone(), Arc::clone(&plan));
            async move { Ok((part, open(&store, &plan, part, segment, None).await?)) }
        });
        Self { opening: opening.buffered(OPEN_SEGMENTS).boxed(), current: None }
    }

    async fn next(&mut self) -> Result<Option<Run>> {
        loop {
            if let Some((part, reader)) = &mut self.current {
                if let Some(block) = reader.next().await? {
                    let rows = 0..block.len();
                    return Ok(Some(Run { part: *part, block: Arc::new(block), rows }));
                }
                self.current = None;
            }
            match self.opening.next().await {
                Some(opened) => self.current = Some(opened?),
                None => return Ok(None),
            }
        }
    }
}

/// The partitions of a plan side by side, the one that is furthest behind in record time first.
pub(super) struct Merged {
    store: Store,
    plan: Arc<Plan>,
    cursors: Vec<Cursor>,
    /// The time at which each cursor that is not at its end goes on, or a bound of it.
    queue: BinaryHeap<Reverse<(i64, usize)>>,
}

/// Segments to come: the numbers of part and segment, and the least timestamp within.
type Way = VecDeque<(usize, usize, i64)>;

/// One target partition's way through its segments.
struct Cursor {
    partition: i32,
    segments: Way,
    reader: Option<(usize, SegmentReader)>,
    loaded: Option<Run>,
    /// The greatest timestamp that went by: a partition's time never falls.
    clock: i64,
}

impl Merged {
    fn new(store: &Store, plan: &Arc<Plan>) -> Self {
        let mut ways: BTreeMap<(&str, i32), Way> = BTreeMap::new();
        for (part_number, part) in plan.parts.iter().enumerate() {
            for (segment_number, segment) in part.segments.iter().enumerate() {
                for planned in segment.partitions.iter().filter_map(|range| matching(range, &part.filter)) {
                    let way = ways.entry((&part.target, planned.partition)).or_default();
                    way.push_back((part_number, segment_number, planned.min_timestamp));
                }
            }
        }
        let cursors: Vec<Cursor> = ways
            .into_iter()
            .map(|((_, partition), segments)| Cursor {
                partition,
                segments,
                reader: None,
                loaded: None,
                clock: i64::MIN,
            })
            .collect();
        let queue =
            cursors.iter().enumerate().filter_map(|(index, cursor)| Some(Reverse((cursor.time()?, index)))).collect();
        Self { store: store.clone(), plan: Arc::clone(plan), cursors, queue }
    }

    async fn next(&mut self) -> Result<Option<Run>> {
        while let Some(Reverse((_, index))) = self.queue.pop() {
            let until = self.queue.peek().map_or(i64::MAX, |Reverse((time, _))| *time);
            let cursor = &mut self.cursors[index];
            // What stands in the queue for a cursor that has yet to open its segment is only a bound.
            let run = if cursor.loaded.is_some() { cursor.take(until) } else { None };
            if run.is_none() {
                cursor.load(&self.store, &self.plan).await?;
            }
            if let Some(time) = cursor.time() {
                self.queue.push(Reverse((time, index)));
            }
            if run.is_some() {
                return Ok(run);
            }
        }
        Ok(None)
    }
}

impl Cursor {
    /// The time at which the cursor goes on, or a bound of it while that is not known; none at the end.
    fn time(&self) -> Option<i64> {
        let next = match (&self.loaded, &self.reader, self.segments.front()) {
            (Some(run), _, _) => run.timestamp(run.rows.start),
            (None, Some(_), _) => i64::MIN,
            (None, None, Some((_, _, least))) => *least,
            (None, None, None) => return None,
        };
        Some(next.max(self.clock))
    }

    /// Reads on until there is a record or the end.
    async fn load(&mut self, store: &Store, plan: &Plan) -> Result<()> {
        loop {
            if let Some((part, reader)) = &mut self.reader {
                if let Some(block) = reader.next().await? {
                    if block.is_empty() {
                        continue;
                    }
                    let rows = 0..block.len();
                    self.loaded = Some(Run { part: *part, block: Arc::new(block), rows });
                    return Ok(());
                }
                self.reader = None;
            }
            let Some((part, segment, _)) = self.segments.pop_front() else { return Ok(()) };
            self.reader = Some((part, open(store, plan, part, segment, Some(self.partition)).await?));
        }
    }

    /// The loaded records up to the time `until`: at least one if the first is due by then.
    fn take(&mut self, until: i64) -> Option<Run> {
        let run = self.loaded.take()?;
        let mut end = run.rows.start;
        while end < run.rows.end {
            let time = run.timestamp(end).max(self.clock);
            if time > until {
                break;
            }
            self.clock = time;
            end += 1;
        }
        if end < run.rows.end {
            self.loaded = Some(run.piece(end..run.rows.end));
        }
        (end > run.rows.start).then(|| run.piece(run.rows.start..end))
    }
}

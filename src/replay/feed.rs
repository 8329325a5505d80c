//! The records of a plan, in the order in which they are sent.
//!
//! ```text
//! plan ─► segments ─► reader ─► blocks ─┬─ in order ────────────────────► runs ─► pace ─► channel ─► sink
//!                                       └─ one cursor a partition, merged ─┘
//! ```
//! Without `--speed` the segments are read one after the other, the next one opened while the last is read. With it the
//! partitions have to keep step with each other, so each has a cursor of its own, and the cursor that is furthest behind
//! goes next. Either way a partition's records come by offset, the older generation of a topic first: a record whose timestamp
//! lies before that of the one before it goes right after it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::chosen::Kept;
use super::damage::{Stop, Stops, of_segment};
use super::matching::matching;
use super::pace::Pace;
use super::plan::Plan;
use crate::error::{Error, Result};
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

    /// The pieces of it that are kept.
    fn chosen(&self, kept: Option<&Kept>) -> Vec<Self> {
        let is_kept = |row: usize| {
            let offset = self.block.get(row).map(|record| record.offset);
            kept.zip(offset).is_some_and(|(kept, offset)| kept.has(offset))
        };
        let mut pieces: Vec<Range<usize>> = Vec::new();
        for row in self.rows.clone().filter(|row| is_kept(*row)) {
            match pieces.last_mut() {
                Some(last) if last.end == row => last.end = row + 1,
                _ => pieces.push(row..row + 1),
            }
        }
        pieces.into_iter().map(|rows| self.piece(rows)).collect()
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
    Complete(Ended),
}

/// What a feed says at its end.
#[derive(Debug)]
pub(super) struct Ended {
    /// What could not be read.
    pub(super) stops: Vec<Stop>,
    /// The segments that were read whole for one key, because they have no filters of keys.
    pub(super) read_whole: u64,
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
    out.send(Step::Complete(feed.ended())).await.or(Ok(()))
}

/// Where the next run comes from.
pub(super) struct Feed {
    from: From,
    plan: Arc<Plan>,
    /// What is kept of the last run and was not given yet.
    pieces: VecDeque<Run>,
}

enum From {
    /// Segment after segment.
    InOrder(InOrder),
    /// The partitions side by side, by timestamp.
    Merged(Merged),
}

impl Feed {
    /// The records of `plan`, partition by partition or, if `by_time`, merged by timestamp.
    pub(super) fn new(store: &Store, plan: &Arc<Plan>, by_time: bool) -> Self {
        let from =
            if by_time { From::Merged(Merged::new(store, plan)) } else { From::InOrder(InOrder::new(store, plan)) };
        Self { from, plan: Arc::clone(plan), pieces: VecDeque::new() }
    }

    /// The next run of records that are sent; none at the end.
    ///
    /// # Errors
    /// The store's own: a segment that cannot be read only stops its partitions.
    pub(super) async fn next(&mut self) -> Result<Option<Run>> {
        loop {
            if let Some(run) = self.pieces.pop_front() {
                return Ok(Some(run));
            }
            let next = match &mut self.from {
                From::InOrder(feed) => feed.next().await?,
                From::Merged(feed) => feed.next().await?,
            };
            let Some(run) = next else { return Ok(None) };
            match &self.plan.parts[run.part].kept {
                None => return Ok(Some(run)),
                Some(kept) => self.pieces.extend(run.chosen(kept.get(&run.block.partition()))),
            }
        }
    }

    /// Returns what is to be told at the end.
    pub(super) fn ended(&mut self) -> Ended {
        match &mut self.from {
            From::InOrder(feed) => Ended { stops: feed.stops.take(), read_whole: feed.read_whole },
            From::Merged(feed) => Ended { stops: feed.stops.take(), read_whole: 0 },
        }
    }
}

/// A segment of a plan, or one partition of it.
#[derive(Debug, Clone, Copy)]
struct Piece {
    part: usize,
    segment: usize,
    partition: Option<i32>,
    /// The first offset of the partition that was not given yet.
    from: i64,
}

impl Piece {
    /// The rows that the plan wants of it, by partition.
    fn rows(self, plan: &Plan) -> BTreeMap<i32, Range<i64>> {
        let wanted = &plan.parts[self.part];
        let ranges = wanted.segments[self.segment].partitions.iter();
        let ranges = ranges.filter(|range| self.partition.is_none_or(|only| range.partition == only));
        // The rows of a segment are those of its checkpoint's ranges, so the filter need not look beyond them.
        let rows = ranges.filter_map(|range| matching(range, &wanted.filter));
        rows.map(|rows| (rows.partition, rows.start.max(self.from)..rows.end)).collect()
    }

    /// Opens it for these rows alone.
    async fn open(self, store: &Store, plan: &Plan) -> Result<SegmentReader> {
        let wanted = &plan.parts[self.part];
        let segment = &wanted.segments[self.segment];
        let filter = Filter { partitions: Some(self.rows(plan)), ..wanted.filter.clone() };
        let object = layout::object(&segment.object)?;
        SegmentReader::open(store.objects(), &object, segment.bytes, segment.format, filter).await
    }

    /// A partition of it that stops for `error`, before `from` or the first row that is wanted.
    fn stop(self, plan: &Plan, partition: i32, from: i64, error: &Error) -> Stop {
        let segment = &plan.parts[self.part].segments[self.segment];
        let rows = self.rows(plan).remove(&partition).unwrap_or(from..from);
        let (object, why) = (segment.object.clone(), error.to_string());
        Stop { part: self.part, partition, from: from.max(rows.start), to: rows.end, object, why, kind: error.kind() }
    }
}

/// A segment that is read, and how far it was given, by partition.
struct Reading {
    piece: Piece,
    reader: SegmentReader,
    given: BTreeMap<i32, i64>,
}

/// The segments of a plan, one after the other.
pub(super) struct InOrder {
    store: Store,
    plan: Arc<Plan>,
    opening: BoxStream<'static, (Piece, Result<SegmentReader>)>,
    current: Option<Reading>,
    /// Partitions of a segment that cannot be read as a whole, each to be tried by itself.
    alone: VecDeque<Piece>,
    stops: Stops,
    read_whole: u64,
}

impl InOrder {
    fn new(store: &Store, plan: &Arc<Plan>) -> Self {
        let order: Vec<Piece> = (0..plan.parts.len())
            .flat_map(|part| {
                let segments = 0..plan.parts[part].segments.len();
                segments.map(move |segment| Piece { part, segment, partition: None, from: i64::MIN })
            })
            .collect();
        let (for_stream, for_plan) = (store.clone(), Arc::clone(plan));
        let opening = stream::iter(order).map(move |piece| {
            let (store, plan) = (for_stream.clone(), Arc::clone(&for_plan));
            async move { (piece, piece.open(&store, &plan).await) }
        });
        let opening = opening.buffered(OPEN_SEGMENTS).boxed();
        let (store, plan) = (store.clone(), Arc::clone(plan));
        Self { store, plan, opening, current: None, alone: VecDeque::new(), stops: Stops::default(), read_whole: 0 }
    }

    async fn next(&mut self) -> Result<Option<Run>> {
        loop {
            if let Some(reading) = &mut self.current {
                let part = reading.piece.part;
                match reading.reader.next().await {
                    Ok(Some(block)) => {
                        if self.stops.has(&self.plan, part, block.partition()) {
                            continue;
                        }
                        if let Some(last) = block.get(block.len().saturating_sub(1)) {
                            reading.given.insert(block.partition(), last.offset + 1);
                        }
                        let rows = 0..block.len();
                        return Ok(Some(Run { part, block: Arc::new(block), rows }));
                    }
                    Ok(None) => self.current = None,
                    Err(error) => {
                        let (piece, given) = (reading.piece, std::mem::take(&mut reading.given));
                        self.current = None;
                        self.stop(piece, &given, of_segment(error)?);
                    }
                }
                continue;
            }
            let opened = match self.alone.pop_front() {
                Some(piece) => Some((piece, piece.open(&self.store, &self.plan).await)),
                None => self.opening.next().await,
            };
            match opened {
                Some((piece, Ok(reader))) => {
                    let for_a_key = self.plan.parts[piece.part].filter.with_key.is_some();
                    self.read_whole += u64::from(for_a_key && piece.partition.is_none() && !reader.has_key_filters());
                    self.current = Some(Reading { piece, reader, given: BTreeMap::new() });
                }
                Some((piece, Err(error))) => self.stop(piece, &BTreeMap::new(), of_segment(error)?),
                None => return Ok(None),
            }
        }
    }

    /// A piece that cannot be read on: its partitions are tried one by one, and one alone stops.
    fn stop(&mut self, piece: Piece, given: &BTreeMap<i32, i64>, error: Error) {
        for (partition, rows) in piece.rows(&self.plan) {
            let from = given.get(&partition).copied().unwrap_or(rows.start);
            if self.stops.has(&self.plan, piece.part, partition) || from >= rows.end {
                continue;
            }
            match piece.partition {
                None => self.alone.push_back(Piece { partition: Some(partition), from, ..piece }),
                Some(_) => self.stops.add(&self.plan, piece.stop(&self.plan, partition, from, &error)),
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
    stops: Stops,
}

/// Segments to come: the numbers of part and segment, and the least timestamp within.
type Way = VecDeque<(usize, usize, i64)>;

/// One target partition's way through its segments.
struct Cursor {
    partition: i32,
    segments: Way,
    reader: Option<(Piece, SegmentReader)>,
    loaded: Option<Run>,
    /// The greatest timestamp that went by: a partition's time never falls.
    clock: i64,
    /// The offset after the last record that was read, in the generation of the topic that is read.
    next: (usize, i64),
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
                next: (0, i64::MIN),
            })
            .collect();
        let queue =
            cursors.iter().enumerate().filter_map(|(index, cursor)| Some(Reverse((cursor.time()?, index)))).collect();
        Self { store: store.clone(), plan: Arc::clone(plan), cursors, queue, stops: Stops::default() }
    }

    async fn next(&mut self) -> Result<Option<Run>> {
        while let Some(Reverse((_, index))) = self.queue.pop() {
            let until = self.queue.peek().map_or(i64::MAX, |Reverse((time, _))| *time);
            let cursor = &mut self.cursors[index];
            // What stands in the queue for a cursor that has yet to open its segment is only a bound.
            let run = if cursor.loaded.is_some() { cursor.take(until) } else { None };
            if run.is_none()
                && let Some(stop) = cursor.load(&self.store, &self.plan).await?
            {
                self.stops.add(&self.plan, stop);
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

    /// Reads on until there is a record or the end, which what cannot be read is, too: then it is told.
    async fn load(&mut self, store: &Store, plan: &Plan) -> Result<Option<Stop>> {
        loop {
            if let Some((piece, reader)) = &mut self.reader {
                let piece = *piece;
                match reader.next().await {
                    Ok(Some(block)) => {
                        let Some(last) = block.get(block.len().saturating_sub(1)) else { continue };
                        self.next = (piece.part, last.offset + 1);
                        let rows = 0..block.len();
                        self.loaded = Some(Run { part: piece.part, block: Arc::new(block), rows });
                        return Ok(None);
                    }
                    Ok(None) => self.reader = None,
                    Err(error) => return self.end(plan, piece, error).map(Some),
                }
            }
            let Some((part, segment, _)) = self.segments.pop_front() else { return Ok(None) };
            let piece = Piece { part, segment, partition: Some(self.partition), from: i64::MIN };
            match piece.open(store, plan).await {
                Ok(reader) => self.reader = Some((piece, reader)),
                Err(error) => return self.end(plan, piece, error).map(Some),
            }
        }
    }

    fn end(&mut self, plan: &Plan, piece: Piece, error: Error) -> Result<Stop> {
        let error = of_segment(error)?;
        (self.reader, self.segments) = (None, Way::new());
        let (part, next) = self.next;
        let from = if part == piece.part { next } else { i64::MIN };
        Ok(piece.stop(plan, self.partition, from, &error))
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

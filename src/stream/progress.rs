//! How far a stream has come: what all entries of a chain up to one of them add up to.
//!
//! Entries flow in one by one, in the order of their numbers; out comes, for each partition, the range that is archived
//! without a hole, and the totals. A writer and a reader use the same sum, and a snapshot is nothing but this sum
//! written down, so that they can be compared.

use std::collections::BTreeMap;

use super::invariants::{self, Violation};
use super::minimal::{self, MinimalWal};
use super::{
    Abandon, BackupRef, Body, Close, CountedBackup, CountedBackups, Gap, LastRecord, PartitionRange, Snapshot, Totals,
};

/// The sum of a chain's entries up to one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    positions: BTreeMap<i32, PartitionRange>,
    totals: Totals,
    closed: Option<Close>,
    last: BTreeMap<i32, LastRecord>,
    abandoned: Vec<Abandon>,
    /// The base backups that count; none before the first one was entered.
    backups: Option<CountedBackups>,
    minimal: Vec<MinimalWal>,
}

impl Progress {
    /// The sum that a snapshot wrote down.
    pub fn from_snapshot(snapshot: &Snapshot) -> Self {
        let positions = snapshot.positions.iter().map(|range| (range.partition, *range)).collect();
        let last = snapshot.last.iter().map(|last| (last.partition, *last)).collect();
        let abandoned = snapshot.abandoned.clone();
        let backups = snapshot.backups.as_ref().map(|listed| listed.iter().map(BackupRef::counted).collect());
        let (totals, closed, minimal) = (snapshot.totals, snapshot.closed.clone(), snapshot.minimal.clone());
        Self { positions, totals, closed, last, abandoned, backups, minimal }
    }

    /// What is archived of `partition`: from its first offset to the next one to read.
    pub fn position(&self, partition: i32) -> Option<&PartitionRange> {
        self.positions.get(&partition)
    }

    /// What is archived of each partition, in their order.
    pub fn positions(&self) -> impl ExactSizeIterator<Item = &PartitionRange> {
        self.positions.values()
    }

    /// What the entries add up to.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The last archived record of a partition, if its leader's epoch is known and nothing was lost behind it.
    pub fn last_record(&self, partition: i32) -> Option<LastRecord> {
        self.last.get(&partition).copied()
    }

    /// [`Progress::last_record`] of each partition that has one.
    pub fn last_records(&self) -> impl Iterator<Item = &LastRecord> {
        self.last.values()
    }

    /// Whether the sum that a snapshot wrote down is this one. A writer that knows no leader epochs writes none, and one that does not
    /// know what incremental base backups build on does not either.
    pub fn is_written_as(&self, written: &Self) -> bool {
        (&self.positions, &self.totals, &self.closed) == (&written.positions, &written.totals, &written.closed)
            && (&self.abandoned, &self.minimal) == (&written.abandoned, &written.minimal)
            && are_the_same(self.backups(), written.backups())
            && (written.last.is_empty() || self.last == written.last)
    }

    /// That the generation has ended, if it has.
    pub fn closed(&self) -> Option<&Close> {
        self.closed.as_ref()
    }

    /// The timelines that were abandoned, in the order of their entries.
    pub fn abandoned(&self) -> &[Abandon] {
        &self.abandoned
    }

    /// The base backups that count. None before the first one was entered: then all that are there count.
    pub fn backups(&self) -> Option<&CountedBackups> {
        self.backups.as_ref()
    }

    /// Where the server went on with `wal_level = minimal` in what is archived, by timeline and position.
    pub fn minimal(&self) -> &[MinimalWal] {
        &self.minimal
    }

    /// Which generation of a timeline is archived now, from 0.
    pub fn generation(&self, partition: i32) -> u32 {
        let before = self.abandoned.iter().filter(|abandon| abandon.partition == partition);
        before.map(|abandon| abandon.generation.saturating_add(1)).max().unwrap_or(0)
    }

    /// Whether `body` may follow: its ranges are sound, and each starts where its partition ended.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn accepts(&self, body: &Body) -> Result<(), Violation> {
        invariants::body_is_sound(body)?;
        invariants::nothing_moves_after_close(self, body)?;
        invariants::generations_are_current(self, body)?;
        body.abandon().map_or(Ok(()), |abandon| invariants::abandons_position(self, abandon))?;
        body.entered().map_or(Ok(()), |entered| invariants::backups_fit(self, entered))?;
        body.close().map_or(Ok(()), |close| invariants::cuts_within_position(self, close))?;
        if let Some(merge) = body.merge() {
            invariants::merge_within_position(self, merge)?;
        }
        for expired in body.expire().into_iter().flat_map(|expire| &expire.ranges) {
            invariants::expires_forward(self, expired)?;
        }
        let mut reached: Option<PartitionRange> = None;
        for range in body.ranges() {
            let before = match reached {
                Some(last) if last.partition == range.partition => Some(last),
                _ => self.position(range.partition).copied(),
            };
            invariants::starts_where_partition_ended(before.as_ref(), &range)?;
            reached = Some(range);
        }
        Ok(())
    }

    /// Adds `body`, which [`Progress::accepts`] it. A snapshot adds nothing: it repeats the sum.
    pub fn add(&mut self, body: &Body) {
        for range in body.ranges() {
            self.positions.entry(range.partition).and_modify(|position| position.extend(&range)).or_insert(range);
        }
        for segment in body.segments() {
            for range in segment.partitions.iter().filter(|range| range.records > 0) {
                self.last.remove(&range.partition);
            }
            self.last.extend(segment.last.iter().map(|last| (last.partition, *last)));
            segment.minimal.into_iter().for_each(|added| minimal::add(&mut self.minimal, added));
        }
        for gap in body.gaps() {
            // What was removed may have been of another epoch, and nobody can ask for what lies before it.
            self.last.retain(|partition, last| *partition != gap.partition || last.offset >= gap.end);
        }
        for expired in body.expire().into_iter().flat_map(|expire| &expire.ranges) {
            if let Some(position) = self.positions.get_mut(&expired.partition) {
                position.start = expired.before;
            }
            self.minimal.retain(|one| one.partition != expired.partition || one.last >= expired.before);
        }
        if let Some(abandon) = body.abandon() {
            self.positions.remove(&abandon.partition);
            self.minimal.retain(|one| one.partition != abandon.partition);
            self.abandoned.push(abandon.clone());
        }
        if let Some(entered) = body.entered() {
            let backups = self.backups.get_or_insert_default();
            entered.removed.iter().for_each(|name| drop(backups.remove(name)));
            backups.extend(entered.added.iter().map(BackupRef::counted));
        }
        if let Some(close) = body.close() {
            self.closed = Some(close.clone());
        }
        self.totals.add(&Totals::of(body.segments(), body.gaps()));
        body.merge().into_iter().for_each(|merge| self.totals.add(&Totals::of_merge(merge)));
        body.expire().into_iter().for_each(|expire| self.totals.add(&Totals::of_expire(expire)));
        body.abandon().into_iter().for_each(|abandon| self.totals.add(&Totals::of_abandon(abandon)));
    }
}

/// Whether these are the same base backups, as far as both know what they build on.
fn are_the_same(one: Option<&CountedBackups>, other: Option<&CountedBackups>) -> bool {
    let is_same = |((name, one), (named, other)): ((&String, &CountedBackup), (&String, &CountedBackup))| {
        let parents = one.parent.as_ref().zip(other.parent.as_ref());
        (name, &one.sha256) == (named, &other.sha256) && parents.is_none_or(|(one, other)| one == other)
    };
    match (one, other) {
        (Some(one), Some(other)) => one.len() == other.len() && one.iter().zip(other).all(is_same),
        (one, other) => one.is_none() && other.is_none(),
    }
}

impl Gap {
    /// The lost range, which has no record.
    pub fn range(&self) -> PartitionRange {
        let Self { partition, start, end, .. } = *self;
        PartitionRange { partition, start, end, records: 0, min_timestamp: None, max_timestamp: None }
    }
}

impl PartitionRange {
    /// Appends `next`, which starts where `self` ends, or behind what has no record.
    pub fn extend(&mut self, next: &Self) {
        self.end = next.end;
        self.records = self.records.saturating_add(next.records);
        self.min_timestamp = least(self.min_timestamp, next.min_timestamp);
        self.max_timestamp = self.max_timestamp.max(next.max_timestamp);
    }
}

impl Totals {
    /// What these segments and gaps add up to.
    pub fn of(segments: &[super::SegmentRef], gaps: &[super::Gap]) -> Self {
        let mut totals = Self { gaps: gaps.len() as u64, ..Self::default() };
        for segment in segments {
            totals.add(&Self {
                segments: 1,
                records: segment.records(),
                raw_bytes: segment.raw_bytes,
                stored_bytes: segment.bytes,
                gaps: 0,
                min_timestamp: segment.min_timestamp(),
                max_timestamp: segment.max_timestamp(),
                retired: super::Retired::default(),
            });
        }
        totals
    }

    /// What a merge adds: its segment, and that others are retired.
    pub fn of_merge(merge: &super::Merge) -> Self {
        Self { retired: merge.retired, ..Self::of(std::slice::from_ref(&merge.segment), &[]) }
    }

    /// What an expiry adds: that segments are retired.
    pub fn of_expire(expire: &super::Expire) -> Self {
        Self { retired: expire.retired, ..Self::default() }
    }

    /// What the end of a generation of a timeline adds: that its segments are retired.
    pub fn of_abandon(abandon: &Abandon) -> Self {
        Self { retired: abandon.retired, ..Self::default() }
    }

    /// What is there now: the sums without what is retired. Gaps and timestamps stay.
    #[must_use]
    pub fn present(&self) -> Self {
        let super::Retired { segments, records, raw_bytes, stored_bytes } = self.retired;
        Self {
            segments: self.segments.saturating_sub(segments),
            records: self.records.saturating_sub(records),
            raw_bytes: self.raw_bytes.saturating_sub(raw_bytes),
            stored_bytes: self.stored_bytes.saturating_sub(stored_bytes),
            retired: super::Retired::default(),
            ..*self
        }
    }

    /// Adds `other`. Sums stop at the greatest number instead of overflowing: they may come from damaged bytes.
    pub fn add(&mut self, other: &Self) {
        self.segments = self.segments.saturating_add(other.segments);
        self.records = self.records.saturating_add(other.records);
        self.raw_bytes = self.raw_bytes.saturating_add(other.raw_bytes);
        self.stored_bytes = self.stored_bytes.saturating_add(other.stored_bytes);
        self.gaps = self.gaps.saturating_add(other.gaps);
        self.retired.add(&other.retired);
        self.min_timestamp = least(self.min_timestamp, other.min_timestamp);
        self.max_timestamp = self.max_timestamp.max(other.max_timestamp);
    }
}

/// The lesser of two timestamps, of which either may be absent.
fn least(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

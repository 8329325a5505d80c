//! Rows that a reader decoded become blocks: filtered, cut where the partition changes, and held against what the
//! segment says about itself.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use super::facts::SegmentFacts;
use super::filter::{Filter, Wanted};
use crate::error::{Error, Kind, Result};
use crate::record::{Block, Header, TimestampType};

/// A block is handed out when it has grown to this.
const BLOCK: u64 = 1 << 20;

/// Or when it has so many rows, which may have no bytes.
const ROWS: usize = 1 << 16;

/// What a row says beside its bytes.
#[derive(Clone, Copy)]
pub(super) struct RowMeta {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) timestamp: i64,
    pub(super) timestamp_type: TimestampType,
    pub(super) leader_epoch: i32,
}

/// Builds the blocks of one read.
pub(super) struct Assembler {
    filter: Filter,
    /// By partition: the offsets that may still come, and how many records came.
    open: BTreeMap<i32, (Range<i64>, u64)>,
    /// The records that must have come at the end, by partition; none if a filter leaves some out.
    expected: Option<Vec<(i32, u64)>>,
    building: Option<Block>,
    ready: VecDeque<Block>,
}

impl Assembler {
    pub(super) fn new(facts: &SegmentFacts, filter: Filter) -> Self {
        let whole = filter.of_segment(&facts.partitions) == Wanted::All;
        let expected = whole.then(|| facts.partitions.iter().map(|range| (range.partition, range.records)).collect());
        let open = facts.partitions.iter().map(|range| (range.partition, (range.start..range.end, 0))).collect();
        Self { filter, open, expected, building: None, ready: VecDeque::new() }
    }

    /// Returns whether the filter leaves out nothing of what the segment says it holds.
    pub(super) fn wants_all(&self) -> bool {
        self.expected.is_some()
    }

    /// Notes that some of what the segment holds is not read.
    pub(super) fn leave_out(&mut self) {
        self.expected = None;
    }

    /// Returns whether a row is wanted. It is checked against the segment's facts, wanted or not.
    pub(super) fn wants(&mut self, row: &RowMeta) -> Result<bool> {
        let RowMeta { partition, offset, .. } = *row;
        match self.open.get_mut(&partition) {
            Some((offsets, records)) if offsets.contains(&offset) => {
                offsets.start = offset.saturating_add(1);
                *records += 1;
            }
            Some((offsets, _)) => {
                let message = format!(
                    "it has offset {offset} of partition {partition} where {}..{} may follow",
                    offsets.start, offsets.end
                );
                return Err(Error::new(Kind::Corrupt, message));
            }
            None => {
                let message = format!("it has a record of partition {partition}, which its ranges do not name");
                return Err(Error::new(Kind::Corrupt, message));
            }
        }
        Ok(self.filter.matches(partition, offset, row.timestamp))
    }

    /// Takes in a row that is wanted.
    pub(super) fn push<'h>(
        &mut self,
        row: RowMeta,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl Iterator<Item = Header<'h>>,
    ) {
        let fits = self
            .building
            .as_ref()
            .is_some_and(|block| block.partition() == row.partition && block.raw_bytes() < BLOCK && block.len() < ROWS);
        if !fits {
            self.cut();
        }
        let block = self.building.get_or_insert_with(|| Block::new(row.partition, 0));
        block.push(row.offset, row.timestamp, row.timestamp_type, row.leader_epoch, key, value, headers);
    }

    /// Makes what is there ready.
    pub(super) fn cut(&mut self) {
        self.ready.extend(self.building.take());
    }

    /// Returns whether a block is ready: more rows can wait, for a few bytes may be many of them.
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next block that is ready.
    pub(super) fn next(&mut self) -> Option<Block> {
        self.ready.pop_front()
    }

    /// Called after the last row: whether all came that the segment says it holds.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.cut();
        for (partition, records) in self.expected.iter().flatten() {
            let came = self.open.get(partition).map_or(0, |(_, came)| *came);
            if came != *records {
                let message = format!("it holds {came} records of partition {partition}, and says {records}");
                return Err(Error::new(Kind::Corrupt, message));
            }
        }
        Ok(())
    }
}

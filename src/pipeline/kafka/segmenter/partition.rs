//! One partition of a segmenter.

use crate::record::Block;

/// What a partition that is not taken waits for. Each is an answer that is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pipeline::kafka) enum Wait {
    /// Why the broker does not have its next offset.
    OutOfRange,
    /// Whether its log was cut below what is archived.
    Truncated,
    /// Where the archive stands, after a segment could not be written to the spool.
    Position,
    /// The checkpoint of a gap over what cannot be read.
    Skip,
    /// The end of the generation.
    NextGeneration,
    /// The group wants it back.
    Leaving,
}

/// One partition of a segmenter.
#[derive(Debug)]
pub(super) struct OpenPartition {
    /// Where the open segment's range begins.
    pub(super) start: i64,
    /// The offset that the consumer is to bring next.
    pub(super) next: i64,
    /// The offset after the last record that came.
    pub(super) rows_end: i64,
    /// The offset up to which checkpoints cover the partition.
    pub(super) committed: i64,
    /// Segments up to this number are from before the partition was last begun again; that they were dropped says nothing
    /// about what came since.
    pub(super) again_after: u64,
    /// What it waits for: what comes meanwhile is dropped.
    pub(super) held: Option<Wait>,
    /// The broker has given something of it since the position was taken from the archive: its log reaches there, and was
    /// not cut before.
    pub(super) heard: bool,
    /// Whether the consumer's fetching is paused.
    pub(super) paused: bool,
    pub(super) block: Option<Block>,
    pub(super) block_bytes: usize,
}

/// How far a partition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pipeline::kafka) struct Reached {
    /// Checkpoints cover everything below.
    pub(in crate::pipeline::kafka) covered: i64,
    /// All records below are archived; offsets from `covered` on have none.
    pub(in crate::pipeline::kafka) archived: i64,
    /// The consumer has brought everything below.
    pub(in crate::pipeline::kafka) received: i64,
}

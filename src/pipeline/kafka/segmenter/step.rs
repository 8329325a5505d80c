//! What a segmenter has the encoder do.

use crate::pipeline::kafka::messages::Question;
use crate::pipeline::kafka::seal_reason::SealReason;
use crate::record::Block;
use crate::segment::{Sealed, SegmentWriter};

/// What the encoder is to do next for a segmenter.
pub(in crate::pipeline::kafka) struct EncodeStep {
    pub(in crate::pipeline::kafka) blocks: Vec<Block>,
    /// What the blocks hold of the memory budget.
    pub(in crate::pipeline::kafka) memory: usize,
    pub(in crate::pipeline::kafka) finish: Option<Finish>,
    /// Asked of the committer once everything before it is there: it goes the way of the records, so it cannot overtake them.
    pub(in crate::pipeline::kafka) question: Option<Question>,
}

/// The end of a segment.
pub(in crate::pipeline::kafka) struct Finish {
    pub(in crate::pipeline::kafka) seq: u64,
    pub(in crate::pipeline::kafka) reason: SealReason,
    pub(in crate::pipeline::kafka) ranges: Vec<(i32, i64, i64)>,
    /// Whether the segment holds a record at all; one without needs no object.
    pub(in crate::pipeline::kafka) has_rows: bool,
}

/// What an encoder gives back.
pub(in crate::pipeline::kafka) enum Encoded {
    /// A row group was written; more will follow.
    Open(SegmentWriter),
    /// The segment is whole.
    Sealed(Sealed),
}

//! How much is asked of a store at a time.

/// How many objects are read at a time. It hides the round trips of a cloud store; a local one is fast anyway.
pub(super) const READS_AT_ONCE: usize = 32;

/// How many streams are looked at side by side, each of which asks for a few objects one after the other.
pub const STREAMS_AT_ONCE: usize = 16;

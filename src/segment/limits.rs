//! Bounds that writers and readers of both formats share.

/// The most bytes that a reader takes at once, stored or unpacked: a block of Avro, a row group of Parquet. Zeros compress without
/// end, so that nothing can be concluded from what is stored.
pub(super) const MOST_AT_ONCE: u64 = 512 << 20;

/// The most headers of a record; each takes two bytes of it at the least.
pub(super) const MOST_HEADERS: usize = 1 << 22;

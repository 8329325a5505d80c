//! How large an object may be, by the name that its key gives it: the only place that says it.
//!
//! Whoever can write into a bucket decides how large its objects are, and what they say of each other. So a reader knows
//! beforehand what the most is, for what it takes as well as for what that unpacks to, and a writer keeps to the same: nothing
//! is stored that could not be read. `docs/FORMAT.md` repeats the table.

use object_store::path::Path;

use super::layout;
use crate::error::{Error, Kind, Result};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What an object is, and the most bytes that it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// In words, with its article.
    pub what: &'static str,
    /// The most bytes.
    pub most: u64,
}

const fn bound(what: &'static str, most: u64) -> Bound {
    Bound { what, most }
}

/// A snapshot of 60,000 partitions has 16 MiB; a reader asks for 16 entries at a time.
const ENTRY: Bound = bound("an entry of a chain", 16 * MIB);
/// 64 entries, compressed.
const PAGE: Bound = bound("a page of a chain", 64 * MIB);
/// 512 entries and 8 pages, 8 MiB before they are compressed.
const PACK: Bound = bound("a pack of a chain", 16 * MIB);
/// One claim a partition: 250,000 of them.
const COVERAGE: Bound = bound("an object of coverage", 32 * MIB);
/// A line for each timeline before it: 10,000 promotions.
const HISTORY: Bound = bound("the history of a timeline", MIB);
const HOLD: Bound = bound("a hold", 64 * KIB);
const DRILL: Bound = bound("the result of a drill", 64 * KIB);
/// 100,000 names.
const DRILL_MADE: Bound = bound("what a drill has made", 8 * MIB);
/// What a replay reads of each partition: 500,000 of them.
const READS: Bound = bound("a hold of a replay", 64 * MIB);
/// 16 MiB of WAL that does not compress, with its facts.
const WAL: Bound = bound("a segment of WAL", 32 * MIB);
/// 500,000 positions, or the settings of 100,000 topics, compressed.
const STATE: Bound = bound("a version of a state document", 32 * MIB);
/// 250 bytes for each part of 24 MiB: a database of 25 TB.
const BACKUP: Bound = bound("a backup.json", 256 * MIB);
/// 24 MiB that do not compress.
const BACKUP_PART: Bound = bound("a part of a base backup", 32 * MIB);
/// Compressed, at least 40 bytes a file.
const BACKUP_MANIFEST: Bound = bound("the manifest of a base backup", GIB);
/// What is said of each partition: 500,000 of them.
const REPLAY: Bound = bound("an object of a replay", 64 * MIB);
/// Segments of records are larger, and are read in pieces.
const OTHER: Bound = bound("an object that is read whole", 64 * MIB);

/// Returns what `key` may have.
pub fn of(key: &Path) -> Bound {
    let name = key.filename().unwrap_or_default();
    match key.parts().next().as_ref().map(AsRef::as_ref) {
        Some("manifest") if name.ends_with(".json.zst") => PAGE,
        Some("manifest") if name.ends_with(".zst") => PACK,
        Some("manifest") => ENTRY,
        Some("coverage") => COVERAGE,
        Some("holds") if key.as_ref().starts_with("holds/kafka/") => READS,
        Some("holds") => HOLD,
        Some("drills") if key.as_ref().starts_with("drills/made/") => DRILL_MADE,
        Some("drills") => DRILL,
        Some("replays") => REPLAY,
        Some("segments") if layout::is_history(key) => HISTORY,
        Some("segments") if name.ends_with(".wal.zst") => WAL,
        Some("segments") if name.ends_with(".json.zst") => STATE,
        Some("backups") if name.starts_with("backup_manifest.") => BACKUP_MANIFEST,
        Some("backups") if name.ends_with(".zst") => BACKUP_PART,
        Some("backups") => BACKUP,
        _ => OTHER,
    }
}

/// The most that a page unpacks to, and with it what a reader needs for one: 64 entries of a topic of 10,000 partitions, or of
/// a smaller one [`MOST_TIMES`] what is stored.
const PAGE_UNPACKED: u64 = 128 * MIB;

/// The most that a pack unpacks to: 8 MiB of entries and pages, and what is said of them.
const PACK_UNPACKED: u64 = 16 * MIB;

/// The most that a part of a base backup unpacks to; 24 MiB are written. Zeros compress without end, so nothing is concluded
/// from its size.
const PART_UNPACKED: u64 = 32 * MIB;

/// The most that the manifest of a base backup unpacks to: 20 million files. It is read as it is unpacked.
const MANIFEST_UNPACKED: u64 = 4 * GIB;

/// The most that a version of a state document unpacks to: 1,000,000 positions. Many that are alike compress to a thousandth, so
/// nothing is concluded from its size.
pub const STATE_UNPACKED: u64 = 64 * MIB;

/// Text with names, numbers and hashes in it compresses to a twentieth at best, lists of empty files to a seventieth.
const MOST_TIMES: u64 = 200;

/// The most that `stored` bytes of the object `key` may unpack to.
pub fn unpacked(key: &Path, stored: usize) -> u64 {
    let by_size = MIB.saturating_add((stored as u64).saturating_mul(MOST_TIMES));
    match of(key) {
        PAGE => by_size.min(PAGE_UNPACKED),
        PACK => by_size.min(PACK_UNPACKED),
        BACKUP_MANIFEST => by_size.min(MANIFEST_UNPACKED),
        STATE => STATE_UNPACKED,
        _ => PART_UNPACKED,
    }
}

/// Whether `key` may have as many bytes as somebody says of it.
///
/// # Errors
/// [`Kind::Corrupt`] if not.
pub fn is_possible(key: &Path, size: u64) -> Result<()> {
    let Bound { what, most } = of(key);
    if size > most { Err(too_large(key, what, (size, most))) } else { Ok(()) }
}

/// The error for an object of `size` bytes where `most` are expected.
pub(super) fn too_large(key: &Path, what: &str, (size, most): (u64, u64)) -> Error {
    let message = format!("{key} has {size} bytes, and {what} has {most} at the most");
    Error::new(Kind::Corrupt, message)
        .hint("restore the object from a copy of the archive; one that tidelog did not write can be deleted")
}

/// The error for an object that unpacks to more than it may.
pub fn unpacks_to_too_much(object: &str, most: u64) -> Error {
    Error::new(Kind::Corrupt, format!("{object} unpacks to more than the {most} bytes that it may have"))
        .hint("restore the object from a copy of the archive; `tidelog verify` lists all damage")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{StateKind, StateOf, StreamId};

    #[test]
    fn every_kind_of_object_has_its_bound() {
        let stream: StreamId = "kafka/main/manifest.zst.0".parse().expect("a stream");
        let folder = layout::topic_coverages("main");
        for (key, bound) in [
            (layout::entry(&stream, 7), ENTRY),
            (layout::aside(&stream, 7, "ab"), ENTRY),
            (layout::page(&stream, "ab"), PAGE),
            (layout::pack(&stream, 512), PACK),
            (layout::coverage(&folder, "w"), COVERAGE),
            (layout::history(7, 2, 0), HISTORY),
            (layout::history(7, 2, 1), HISTORY),
            (layout::wal_segment(7, 1, 0..16, "w", 1), WAL),
            (layout::state_version(&StateOf { kind: StateKind::Acls, scope: "main".into() }, 1, "w", 1), STATE),
            (layout::hold(7, "x"), HOLD),
            (layout::holds(7).join("clock"), HOLD),
            (layout::backup_commit(7, "b"), BACKUP),
            (layout::backup_part(7, "b", layout::BACKUP_REMOVED), BACKUP),
            (layout::backup_part(7, "b", "base.tar.0000001.zst"), BACKUP_PART),
            (layout::backup_part(7, "b", "backup_manifest.zst"), BACKUP_MANIFEST),
            (layout::replay_plan("r"), REPLAY),
            (Path::from("tidelog-probe-1"), OTHER),
        ] {
            assert_eq!(of(&key), bound, "{key}");
        }
    }

    #[test]
    fn what_unpacks_is_bounded_by_what_is_stored() {
        let page = Path::from("manifest/kafka/main/orders.0/pages/ab.json.zst");
        assert_eq!([0, 66_000, 60_000_000].map(|stored| unpacked(&page, stored)), [MIB, MIB + 13_200_000, 128 * MIB]);
        let part = layout::backup_part(7, "b", "base.tar.0000001.zst");
        assert_eq!(unpacked(&part, 100), 32 * MIB, "zeros compress without end");
    }
}

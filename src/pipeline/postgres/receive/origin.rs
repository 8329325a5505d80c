//! Whether the server is the one that is archived: its timelines must have come about as the archived ones did, and its log must
//! reach as far as the archive.
//!
//! ```text
//!   archive   1 ├──────┬─ ─                 another standby was promoted to 2, at another place      histories differ
//!             2        └────────►
//!   server    1 ├──────────┬─ ─             an older copy of the data directory was put back         the server's log ends too soon
//!             2            └────►           … and has written on                                     the WAL does not go on there
//! ```

use crate::error::{Error, Kind, Result};
use crate::segment::wal::Switch;
use crate::stream::Lsn;

/// The way out where such a server is to stay. What it wrote on a timeline that the archive has otherwise cannot go into the same
/// archive: a recovery along it would put the bytes of two servers together.
const OWN_ARCHIVE: &str = "give it an archive of its own (archive.url and archive.spool_dir), and take a base backup: the old archive stays as it is";

/// The server's way to a timeline must be the one that is archived of it. `own` is the history of a later one, or its own.
///
/// # Errors
/// [`Kind::Unavailable`] for another one: another server may answer the next time.
pub(super) fn same_history(timeline: u32, own: &[Switch], archived: &[Switch]) -> Result<()> {
    let own: Vec<Switch> = own.iter().copied().take_while(|switch| switch.timeline < timeline).collect();
    if own == archived {
        return Ok(());
    }
    let shown = |switches: &[Switch]| {
        let words = switches.iter().map(|switch| format!("timeline {} at {}", switch.timeline, switch.at));
        words.collect::<Vec<_>>().join(", ")
    };
    let message = format!(
        "timeline {timeline} of the server left {}, and the archived timeline {timeline} left {}: two servers were promoted to the same timeline, and this one is not the one that is archived",
        shown(&own),
        shown(archived)
    );
    Err(Error::new(Kind::Unavailable, message)
        .hint(format!("point postgres.url at the server that is archived; if this one is to stay, {OWN_ARCHIVE}")))
}

/// The server's log must reach where receiving goes on.
///
/// # Errors
/// [`Kind::Unavailable`] where it ends before: a standby may lag.
pub(super) fn reaches(timeline: u32, flush: Lsn, start: Lsn) -> Result<()> {
    if flush >= start {
        return Ok(());
    }
    let message = format!(
        "the server's log ends at {flush} on timeline {timeline}, and the archive has it up to {start}: it is an older copy of the server that is archived, or a standby that lags"
    );
    Err(Error::new(Kind::Unavailable, message).hint(format!(
        "a standby catches up by itself; point postgres.url at the server that is archived, or, if an older copy is to stay, {OWN_ARCHIVE}"
    )))
}

/// The server is on a timeline before the newest that is archived.
pub(super) fn left_behind(current: u32, newer: u32) -> Error {
    let message = format!("the server is on timeline {current}, and timeline {newer} is archived already");
    Error::new(Kind::Unavailable, message).hint(format!(
        "if the server was left behind, point postgres.url at the one that was promoted; if timeline {newer} was archived by mistake (a copy that was restored to try something), {OWN_ARCHIVE}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(switches: &[(u32, u64)]) -> Vec<Switch> {
        switches.iter().map(|(timeline, at)| Switch { timeline: *timeline, at: Lsn(*at) }).collect()
    }

    #[test]
    fn another_promotion_to_the_same_timeline_is_told_apart() {
        same_history(2, &history(&[(1, 100)]), &history(&[(1, 100)])).expect("the same");
        same_history(2, &history(&[(1, 100), (2, 200)]), &history(&[(1, 100)])).expect("the way to an earlier one");
        let error = same_history(2, &history(&[(1, 120), (2, 200)]), &history(&[(1, 100)])).expect_err("another");
        assert!(
            error.to_string().contains("left timeline 1 at 0/78") && error.to_string().contains("at 0/64"),
            "{error}"
        );
        assert!(same_history(3, &history(&[(1, 100)]), &history(&[(1, 100), (2, 200)])).is_err());
    }
}

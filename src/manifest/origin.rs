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

/// The ways out where such a server is to stay. What it wrote on a timeline that the archive has otherwise cannot follow that: a
/// recovery along it would put the bytes of two servers together.
fn ways_out(timeline: u32) -> String {
    format!(
        "to archive this server all the same, type `tidelog timeline abandon {timeline}` (what is archived of timeline {timeline} leads nowhere then, and a new base backup is due), or give it an archive of its own (archive.url and archive.spool_dir)"
    )
}

/// Returns what is wrong and the ways out, in one sentence: it is all that `/readyz` says.
fn does_not_fit(kind: Kind, message: &str, timeline: u32) -> Error {
    Error::new(kind, format!("{message}; {}", ways_out(timeline)))
        .hint("if this is the wrong server, point postgres.url at the one that is archived; meanwhile the slot keeps WAL on the server's disk")
}

/// The server's way to a timeline must be the one that is archived of it. `own` is the history of a later one, or its own;
/// `end` is where the archive of it ends, if it has any.
///
/// # Errors
/// [`Kind::Unavailable`] for another one: another server may answer the next time.
pub(crate) fn same_history(timeline: u32, own: &[Switch], archived: &[Switch], end: Option<Lsn>) -> Result<()> {
    let own: Vec<Switch> = own.iter().copied().take_while(|switch| switch.timeline < timeline).collect();
    if own == archived {
        return Ok(());
    }
    let shown = |switches: &[Switch]| {
        let words = switches.iter().map(|switch| format!("timeline {} at {}", switch.timeline, switch.at));
        words.collect::<Vec<_>>().join(", ")
    };
    let upto = end.map_or(String::new(), |end| format!(" and is archived up to {end}"));
    let message = format!(
        "timeline {timeline} of the server left {}, and the archived timeline {timeline} left {}{upto}: two servers were promoted to the same timeline, and this one is not the one that is archived",
        shown(&own),
        shown(archived)
    );
    Err(does_not_fit(Kind::Unavailable, &message, timeline))
}

/// The server's log must reach where receiving goes on.
///
/// # Errors
/// [`Kind::Unavailable`] where it ends before: a standby may lag.
pub(crate) fn reaches(timeline: u32, flush: Lsn, start: Lsn) -> Result<()> {
    if flush >= start {
        return Ok(());
    }
    let message = format!(
        "the server's log ends at {flush} on timeline {timeline}, and the archive has it up to {start}: it is an older copy of the server that is archived, or a standby that lags and catches up by itself"
    );
    Err(does_not_fit(Kind::Unavailable, &message, timeline))
}

/// The server is on a timeline before the newest that is archived.
pub(crate) fn left_behind((current, flush): (u32, Lsn), (newer, end): (u32, Lsn)) -> Error {
    let message = format!(
        "the server is on timeline {current} with its log up to {flush}, and timeline {newer} is archived already up to {end}: the server was left behind by one that was promoted, or timeline {newer} was archived by mistake (a copy that was restored to try something)"
    );
    does_not_fit(Kind::Unavailable, &message, newer)
}

/// The first bytes behind the archive's end are not what follows it.
pub(crate) fn goes_on_elsewhere(timeline: u32, end: Lsn, server: Lsn) -> Error {
    let message = format!(
        "the server's WAL of timeline {timeline}, which it has up to {server}, does not go on where the archive ends, at {end}: an older copy of the server that is archived was put back and has written on, or another server has the same timeline"
    );
    does_not_fit(Kind::Corrupt, &message, timeline)
}

/// The log of a server that has sent a base backup is another than the archived one.
pub(crate) fn differs(timeline: u32, at: Lsn) -> Error {
    let message = format!(
        "the server's WAL of timeline {timeline} is another than the archived one from {at} on, so what is archived cannot follow a base backup of it: an older copy of the server that is archived was put back and has written on, or another server has the same timeline"
    );
    does_not_fit(Kind::Unavailable, &message, timeline)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(switches: &[(u32, u64)]) -> Vec<Switch> {
        switches.iter().map(|(timeline, at)| Switch { timeline: *timeline, at: Lsn(*at) }).collect()
    }

    #[test]
    fn another_promotion_to_the_same_timeline_is_told_apart() {
        same_history(2, &history(&[(1, 100)]), &history(&[(1, 100)]), None).expect("the same");
        same_history(2, &history(&[(1, 100), (2, 200)]), &history(&[(1, 100)]), None)
            .expect("the way to an earlier one");
        let (own, archived) = (history(&[(1, 120), (2, 200)]), history(&[(1, 100)]));
        let error = same_history(2, &own, &archived, Some(Lsn(0x90))).expect_err("another");
        assert!(
            error.to_string().contains("left timeline 1 at 0/78")
                && error.to_string().contains("at 0/64 and is archived up to 0/90"),
            "{error}"
        );
        assert!(same_history(3, &history(&[(1, 100)]), &history(&[(1, 100), (2, 200)]), None).is_err());
    }
}

//! Up to when the archive of WAL is complete, worked out of what the server says of its log's end and of how far the archive is.
//!
//! ```text
//!   server    at 12:00:05 my log ends at 0/200 ──┐
//!                                                ├─► once the archive is at 0/200: complete through 12:00:04
//!   archive   everything up to 0/200 ────────────┘
//! ```

use std::collections::VecDeque;

use chrono::{DateTime, TimeDelta, Utc};

use crate::stream::Lsn;

/// Ends of WAL that wait until the archive has reached them. With one a second, enough for a store that is away for
/// an hour; when there are more, the oldest stay, for they come true first.
const MOST_WAITING: usize = 3_600;

/// Two ends of WAL are noted at least this far apart.
const BETWEEN_ENDS: TimeDelta = TimeDelta::seconds(1);

/// A commit is in the log this long after the time that it carries, unless a disk hangs.
const COMMITS_WITHIN: TimeDelta = TimeDelta::seconds(1);

/// What is known of the end of the server's log, and what follows for the archive.
#[derive(Debug, Default)]
pub(super) struct Completeness {
    /// The end of the server's WAL that is known, on the timeline that is received.
    known: Lsn,
    on: Option<u32>,
    /// The greatest end that the server has named.
    server: Lsn,
    /// The last keepalive, if no WAL has come since.
    sign: Option<(DateTime<Utc>, Lsn)>,
    /// How far the archive is, and on which timeline.
    durable: Lsn,
    durable_on: Option<u32>,
    /// Up to when which timeline is complete, since the archive has come to a place on it.
    complete: Option<(Option<u32>, Lsn, DateTime<Utc>)>,
    /// When the server's WAL ended where.
    ends: VecDeque<(DateTime<Utc>, Lsn)>,
}

impl Completeness {
    /// The greatest end of its log that the server has named.
    pub(super) fn server(&self) -> Lsn {
        self.server
    }

    /// The timeline on which the archive is.
    pub(super) fn durable_on(&self) -> Option<u32> {
        self.durable_on
    }

    /// Returns up to when which timeline is complete, once the archive has come to a place on it.
    pub(super) fn through(&self) -> Option<(u32, Lsn, DateTime<Utc>)> {
        let (timeline, end, through) = self.complete?;
        Some((timeline?, end, through))
    }

    /// A connection begins: what was said last on another one is no answer to its first keepalive.
    pub(super) fn begins(&mut self) {
        self.sign = None;
    }

    /// The server's WAL ended at `end` as it sent a piece of it, by its own clock.
    ///
    /// It looks where its log ends, reads the piece, and takes the time last (`XLogSendPhysical`, walsender.c); a commit
    /// takes its own time before it is in the log. What came in between is allowed for.
    pub(super) fn server_ends(&mut self, timeline: Option<u32>, end: Lsn, at: DateTime<Utc>) {
        self.sign = None;
        self.ended(timeline, end, at - COMMITS_WITHIN);
    }

    /// The server has sent its WAL up to `end`, by a keepalive. That it has no more is known when the next one says the same
    /// (`WalSndKeepalive`, walsender.c), asked for after the first one came: between the two it has looked. What was not in
    /// the log yet is allowed for as in [`Completeness::server_ends`].
    pub(super) fn server_has_sent(&mut self, timeline: Option<u32>, end: Lsn, at: DateTime<Utc>) {
        let before = self.sign.replace((at, end));
        if let Some((before, _)) = before.filter(|(_, same)| *same == end) {
            self.ended(timeline, end, before.min(at - COMMITS_WITHIN));
        }
    }

    /// The archive has come to `durable` on a timeline.
    pub(super) fn durable_to(&mut self, timeline: u32, durable: Lsn) {
        (self.durable, self.durable_on) = (durable, Some(timeline));
        self.follow();
    }

    fn ended(&mut self, timeline: Option<u32>, end: Lsn, at: DateTime<Utc>) {
        if self.on != timeline {
            // The new timeline may never come to where the old one ended.
            (self.on, self.known) = (timeline, Lsn(0));
            self.ends.clear();
        }
        if end < self.known {
            return;
        }
        self.known = end;
        self.server = self.server.max(end);
        let due = self.ends.back().is_none_or(|(last, _)| at - *last >= BETWEEN_ENDS);
        if due && self.ends.len() < MOST_WAITING {
            self.ends.push_back((at, end));
        }
        self.follow();
    }

    fn follow(&mut self) {
        if self.durable_on != self.on {
            return;
        }
        while let Some((at, end)) = self.ends.front().copied().filter(|(_, end)| *end <= self.durable) {
            self.complete = Some((self.on, end, at));
            self.ends.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(completeness: &Completeness) -> Option<DateTime<Utc>> {
        completeness.through().map(|(_, _, through)| through)
    }

    #[test]
    fn what_the_server_had_is_complete_once_the_archive_has_reached_it() {
        let mut completeness = Completeness::default();
        let at = |seconds: i64| DateTime::from_timestamp(1_800_000_000 + seconds, 0).expect("a time");
        completeness.server_ends(Some(1), Lsn(100), at(1));
        completeness.server_ends(Some(1), Lsn(150), at(1) + TimeDelta::milliseconds(10));
        completeness.server_ends(Some(1), Lsn(200), at(6));
        completeness.durable_to(1, Lsn(199));
        assert_eq!(through(&completeness), Some(at(0)));
        completeness.durable_to(1, Lsn(200));
        assert_eq!(through(&completeness), Some(at(5)));
        completeness.server_has_sent(Some(1), Lsn(200), at(10));
        assert_eq!(through(&completeness), Some(at(5)), "there may be more that it has not sent");
        completeness.server_has_sent(Some(1), Lsn(200), at(11));
        assert_eq!(through(&completeness), Some(at(10)), "there was no more");
        completeness.server_ends(Some(1), Lsn(900), at(12));
        for seconds in [13, 14] {
            completeness.server_has_sent(Some(1), Lsn(300), at(seconds));
        }
        completeness.durable_to(1, Lsn(300));
        assert_eq!(through(&completeness), Some(at(10)), "it had sent that much, and had more");
        completeness.server_ends(Some(2), Lsn(310), at(21));
        completeness.durable_to(1, Lsn(400));
        assert_eq!(through(&completeness), Some(at(10)), "that is of the timeline before");
        completeness.durable_to(2, Lsn(310));
        assert_eq!(through(&completeness), Some(at(20)), "the new timeline is complete");
    }

    #[test]
    fn a_keepalive_needs_one_that_confirms_it() {
        let mut completeness = Completeness::default();
        let at = |ms: i64| DateTime::from_timestamp_millis(1_800_000_000_000 + ms).expect("a time");
        completeness.durable_to(1, Lsn(100));
        completeness.server_has_sent(Some(1), Lsn(100), at(0));
        completeness.begins();
        completeness.server_has_sent(Some(1), Lsn(100), at(5_000));
        assert_eq!(completeness.through(), None, "the other connection broke, and there may be more");
        completeness.server_has_sent(Some(1), Lsn(100), at(5_010));
        assert_eq!(completeness.through(), Some((1, Lsn(100), at(4_010))), "a commit may be on its way into the log");
        completeness.server_has_sent(Some(1), Lsn(100), at(9_000));
        assert_eq!(completeness.through(), Some((1, Lsn(100), at(5_010))));
        completeness.server_ends(Some(2), Lsn(300), at(20_000));
        completeness.durable_to(2, Lsn(200));
        assert_eq!(completeness.through(), Some((1, Lsn(100), at(5_010))), "nothing is known of the new timeline");
    }
}

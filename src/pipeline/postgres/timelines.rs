//! Which timeline to receive, and from where: the server's own history decides the way, the archive and the spool decide
//! how far it has been gone.

use std::collections::BTreeMap;

use crate::segment::wal::Switch;
use crate::stream::Lsn;

/// Where receiving goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Next {
    pub(super) timeline: u32,
    pub(super) start: Lsn,
    /// Where the server left that timeline; none for the one that it is on.
    pub(super) switch: Option<Lsn>,
    /// WAL of that timeline that is archived and lies behind the switch: of a server that has diverged.
    pub(super) beyond: Option<Lsn>,
}

/// The next range to receive. `history` are the timelines that the server's `current` one comes from, `known` is how far
/// each timeline is archived or spooled, and a WAL file has `file` bytes.
///
/// The newest timeline of the way that is known is followed to its end, then the ones behind it, each from the beginning
/// of the WAL file in which it left its parent: the server has that file whole. None if nothing on the way is known.
pub(super) fn next(history: &[Switch], current: u32, known: &BTreeMap<u32, Lsn>, file: u64) -> Option<Next> {
    let path: Vec<(u32, Option<Lsn>)> =
        history.iter().map(|switch| (switch.timeline, Some(switch.at))).chain([(current, None)]).collect();
    let newest = path.iter().rposition(|(timeline, _)| known.contains_key(timeline))?;
    let (timeline, switch) = path[newest];
    let end = known[&timeline];
    let Some(switch) = switch.filter(|switch| end >= *switch) else {
        return Some(Next { timeline, start: end, switch, beyond: None });
    };
    let (timeline, next_switch) = *path.get(newest + 1)?;
    let start = Lsn(switch.0 / file * file);
    Some(Next { timeline, start, switch: next_switch, beyond: (end > switch).then_some(end) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: u64 = 100;

    fn way(history: &[(u32, u64)], current: u32, known: &[(u32, u64)]) -> Option<(u32, u64, Option<u64>, bool)> {
        let history: Vec<Switch> =
            history.iter().map(|(timeline, at)| Switch { timeline: *timeline, at: Lsn(*at) }).collect();
        let known = known.iter().map(|(timeline, end)| (*timeline, Lsn(*end))).collect();
        let next = next(&history, current, &known, FILE)?;
        Some((next.timeline, next.start.0, next.switch.map(|lsn| lsn.0), next.beyond.is_some()))
    }

    #[test]
    fn each_timeline_is_followed_to_its_end_and_then_the_next_one() {
        assert_eq!(way(&[], 1, &[(1, 250)]), Some((1, 250, None, false)));
        let history = [(1, 520), (2, 780)];
        assert_eq!(way(&history, 3, &[(1, 250)]), Some((1, 250, Some(520), false)));
        assert_eq!(way(&history, 3, &[(1, 520)]), Some((2, 500, Some(780), false)));
        assert_eq!(way(&history, 3, &[(1, 520), (2, 500)]), Some((2, 500, Some(780), false)));
        assert_eq!(way(&history, 3, &[(1, 520), (2, 780)]), Some((3, 700, None, false)));
        assert_eq!(way(&history, 3, &[(1, 520), (2, 780), (3, 999)]), Some((3, 999, None, false)));
    }

    #[test]
    fn what_another_server_wrote_behind_the_switch_is_left_alone() {
        assert_eq!(way(&[(1, 520)], 2, &[(1, 600)]), Some((2, 500, None, true)));
        // Timeline 2 was a dead end: the server went from 1 to 3.
        assert_eq!(way(&[(1, 700)], 3, &[(1, 520), (2, 640)]), Some((1, 520, Some(700), false)));
        assert_eq!(way(&[], 4, &[(1, 520)]), None);
    }
}

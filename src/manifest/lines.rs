//! What base backups build on: a full one on nothing, an incremental one on another.
//!
//! ```text
//!   full ◄── incremental ◄── incremental        a line; it lacks something if one of them is not there or was abandoned
//! ```
//!
//! Whoever can write the bucket decides how many there are and how long their lines: all lines together cost one look at each backup.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use crate::stream::Lsn;

/// What a path needs to know of a base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Its name.
    pub name: String,
    /// The timeline of `start`.
    pub timeline: u32,
    /// A recovery needs the WAL from here …
    pub start: Lsn,
    /// The timeline of `end`.
    pub end_timeline: u32,
    /// … and at least up to here.
    pub end: Lsn,
    /// When it was finished, by the clock of the archiver. It tells how old a backup is, and never what lies before it.
    pub finished: DateTime<Utc>,
    /// Whether the server found bad pages in it: it leads where nothing else does, and retention expires no other for it.
    pub is_damaged: bool,
    /// Whether it went with a timeline that was abandoned: it leads nowhere.
    pub is_abandoned: bool,
    /// The name of the one that it builds on, if it is incremental: it leads nowhere without that.
    pub parent: Option<String>,
}

/// What each of some backups builds on, by their indices.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    /// The one that it builds on, if it builds on one that is there.
    parents: Vec<Option<usize>>,
    /// The name of the first of those that it builds on that is not there, or was abandoned.
    lacks: Vec<Option<String>>,
}

impl Lines {
    pub(super) fn of(backups: &[Taken]) -> Self {
        let names: BTreeMap<&str, usize> = backups.iter().map(|taken| taken.name.as_str()).zip(0..).collect();
        let named = |taken: &Taken| taken.parent.as_ref().and_then(|parent| names.get(parent.as_str()).copied());
        let mut lines = Self { parents: backups.iter().map(named).collect(), lacks: vec![None; backups.len()] };
        let mut is_known = vec![false; backups.len()];
        for index in 0..backups.len() {
            // What is on the way here: nothing that the program writes goes round.
            let (mut way, mut on_way, mut at) = (Vec::new(), BTreeSet::new(), index);
            let mut lack = loop {
                if is_known[at] {
                    break lines.lacks[at].clone();
                }
                if !on_way.insert(at) {
                    break backups[at].parent.clone();
                }
                way.push(at);
                match (lines.parents[at], &backups[at].parent) {
                    (Some(parent), _) => at = parent,
                    (None, missing) => break missing.clone(),
                }
            };
            // From the oldest on: what is not there is told, or else the nearest that was abandoned.
            for &at in way.iter().rev() {
                let parent = lines.parents[at].map(|parent| &backups[parent]);
                let is_missing = lack.as_ref().is_some_and(|name| !names.contains_key(name.as_str()));
                if let Some(parent) = parent.filter(|parent| parent.is_abandoned && !is_missing) {
                    lack = Some(parent.name.clone());
                }
                lines.lacks[at].clone_from(&lack);
                is_known[at] = true;
            }
        }
        lines
    }

    /// The name of what a backup builds on and is not there, or was abandoned; none if nothing.
    pub fn lack(&self, index: usize) -> Option<&str> {
        self.lacks.get(index)?.as_deref()
    }

    /// A backup that lacks nothing, with those that it builds on, the full one first.
    pub(super) fn of_one(&self, index: usize) -> Vec<usize> {
        let next = |at: &usize| self.parents.get(*at).copied().flatten();
        let mut line: Vec<usize> = std::iter::successors(Some(index), next).take(self.parents.len()).collect();
        line.reverse();
        line
    }

    /// These, and all that they build on.
    pub(super) fn with_ancestors(&self, of: impl Iterator<Item = usize>) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        for index in of {
            let mut at = Some(index);
            while let Some(index) = at.filter(|at| found.insert(*at)) {
                at = self.parents.get(index).copied().flatten();
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(name: &str, parent: Option<&str>, is_abandoned: bool) -> Taken {
        Taken {
            name: name.into(),
            timeline: 1,
            start: Lsn(1),
            end_timeline: 1,
            end: Lsn(2),
            finished: DateTime::UNIX_EPOCH,
            is_damaged: false,
            is_abandoned,
            parent: parent.map(str::to_owned),
        }
    }

    #[test]
    fn a_line_lacks_what_is_missing_before_what_was_abandoned_and_never_goes_round() {
        let backups = [
            taken("c", Some("b"), false),
            taken("b", Some("a"), false),
            taken("a", None, false),
            taken("z", Some("y"), false),
            taken("y", Some("x"), true),
            taken("q", Some("p"), false),
            taken("p", Some("o"), true),
            taken("o", None, false),
            taken("r1", Some("r2"), false),
            taken("r2", Some("r1"), false),
            taken("r3", Some("r1"), false),
        ];
        let lines = Lines::of(&backups);
        let lacks: Vec<_> = (0..backups.len()).map(|index| lines.lack(index)).collect();
        assert_eq!(lacks[..8], [None, None, None, Some("x"), Some("x"), Some("p"), None, None]);
        assert!(lacks[8..].iter().all(Option::is_some), "{lacks:?}");
        assert_eq!(lines.of_one(0), [2, 1, 0]);
        assert_eq!(lines.with_ancestors([0, 9].into_iter()), [0, 1, 2, 8, 9].into());
    }

    /// A scan of each line by itself takes fifty million steps.
    #[test]
    fn a_line_of_ten_thousand_costs_a_look_at_each() {
        let name = |number: usize| format!("n{number}");
        let backups: Vec<Taken> =
            (0..10_000).rev().map(|at: usize| taken(&name(at), Some(&name(at.wrapping_sub(1))), false)).collect();
        let begun = std::time::Instant::now();
        let lines = Lines::of(&backups);
        let lack = name(0_usize.wrapping_sub(1));
        assert!((0..backups.len()).all(|index| lines.lack(index) == Some(lack.as_str())));
        assert_eq!(lines.with_ancestors(0..backups.len()).len(), 10_000);
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    }
}

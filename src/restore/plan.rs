//! Which base backup leads to a moment, along which timelines, and whether the archive has all the WAL in between.
//!
//! ```text
//!   timeline 1  ├──backup──────────┬─ ─ ─            path to timeline 3: 1 up to its switch to 2, 2 up to its switch
//!   timeline 2                     └──────┬─ ─       to 3, 3 up to where its archive ends
//!   timeline 3                            └──backup────── target
//! ```
//!
//! The newest backup before the target is taken: the less WAL has to be replayed, the sooner Postgres is back.

use std::ops::Range;

use chrono::{DateTime, Utc};

use super::log::Log;
use super::stop::{Stop, last_record};
use crate::error::{Error, Kind, Result};
use crate::manifest::backups::Backup;
use crate::manifest::{Selection, coverage};
use crate::store::{Store, layout};
use crate::stream::{Lsn, StreamId};
use crate::time;

/// Where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// The end of what is archived when Postgres comes there.
    Latest,
    /// The end of what is archived now.
    Present,
    /// Every transaction that committed up to this time, in ms since 1970.
    Time(i64),
    /// Everything up to this position.
    Lsn(Lsn),
}

/// A restore that can be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What is unpacked.
    pub backup: Backup,
    /// What was asked for. It is never [`Goal::Present`], but the position that this is.
    pub goal: Goal,
    /// Where Postgres is told to stop.
    pub stop: Stop,
    /// The timeline that it follows.
    pub timeline: u32,
}

/// A stretch of one timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) timeline: u32,
    pub(super) lsns: Range<Lsn>,
}

/// Makes a plan, or says what is the nearest that can be reached.
///
/// # Errors
/// [`Kind::NotFound`] for a target before the first backup or after the last WAL, [`Kind::Incomplete`] for one behind
/// WAL that is lost.
pub async fn plan(
    store: &Store,
    log: &Log,
    backups: &[Backup],
    goal: Goal,
    (timeline, name): (Option<u32>, Option<&str>),
) -> Result<Plan> {
    let timeline = timeline.or_else(|| log.timelines().max());
    let timeline = timeline.ok_or_else(|| Error::new(Kind::NotFound, "the archive holds no WAL yet"))?;
    let path = path(log, timeline).await?;
    let end = path.last().map(|stretch| stretch.lsns.end).unwrap_or_default();
    let goal = if goal == Goal::Present { Goal::Lsn(end) } else { goal };
    let until = within_reach(store, log, &path, goal).await?;
    let is_before = |backup: &Backup| match goal {
        Goal::Latest | Goal::Present => true,
        Goal::Time(ms) => backup.finished.timestamp_millis() <= ms,
        Goal::Lsn(lsn) => backup.end <= lsn,
    };
    let fitting =
        |backup: &&Backup| name.is_none_or(|name| backup.name == name) && is_before(backup) && lies_on(&path, backup);
    let Some(backup) = backups.iter().rev().find(fitting) else {
        return Err(no_backup(backups, &path, goal, name));
    };
    if backup.end > end {
        let message = format!(
            "the base backup {} is not complete: it needs WAL up to {}, and the archive ends at {end}",
            backup.name, backup.end
        );
        return Err(
            Error::new(Kind::Incomplete, message).hint("wait until `tidelog run` has archived it, or use --backup")
        );
    }
    without_gap(log, &path, backup, until.unwrap_or(end)).await?;
    let stop = match (goal, until) {
        (Goal::Latest, _) => Stop::End,
        (Goal::Time(ms), Some(_)) => Stop::Time(ms),
        _ => Stop::After(last_record(log, &path, backup.start, until.unwrap_or(end)).await?),
    };
    Ok(Plan { backup: backup.clone(), goal, stop, timeline })
}

/// The stretches that lead to the end of `timeline`.
async fn path(log: &Log, timeline: u32) -> Result<Vec<Stretch>> {
    let mut path = Vec::new();
    let mut start = Lsn(0);
    for switch in log.ancestors(timeline).await? {
        path.push(Stretch { timeline: switch.timeline, lsns: start..switch.at });
        start = switch.at;
    }
    let archived = log.range(timeline).ok_or_else(|| {
        let known: Vec<String> = log.timelines().map(|timeline| timeline.to_string()).collect();
        Error::new(Kind::NotFound, format!("the archive holds no WAL of timeline {timeline}"))
            .hint(format!("it holds timelines {}", known.join(", ")))
    })?;
    path.push(Stretch { timeline, lsns: start..archived.end.max(start) });
    Ok(path)
}

/// Whether the backup was taken on the way.
fn lies_on(path: &[Stretch], backup: &Backup) -> bool {
    path.iter().any(|stretch| {
        let is_last = path.last() == Some(stretch);
        stretch.timeline == backup.timeline
            && stretch.lsns.start <= backup.start
            // Whether a backup at the very end is complete is told apart from whether it lies on the path.
            && (is_last || backup.end <= stretch.lsns.end)
    })
}

/// How far the WAL is needed for a goal that the archive reaches; none: to its end.
async fn within_reach(store: &Store, log: &Log, path: &[Stretch], goal: Goal) -> Result<Option<Lsn>> {
    let end = path.last().map(|stretch| stretch.lsns.end).unwrap_or_default();
    let ms = match goal {
        Goal::Latest | Goal::Present => return Ok(None),
        Goal::Lsn(lsn) if lsn <= end => return Ok(Some(lsn)),
        Goal::Lsn(lsn) => {
            let message = format!("{lsn} lies after the end of the archived WAL, {end}");
            return Err(Error::new(Kind::NotFound, message).hint("the nearest that can be reached is --to latest"));
        }
        Goal::Time(ms) => ms,
    };
    // Of a commit within the very same millisecond Postgres knows whether it comes later.
    for least in [ms.saturating_add(1), ms] {
        let later = first_commit(log, path, least).await?;
        if later.is_some() {
            return Ok(later);
        }
    }
    let complete = complete_through(store, log, path).await?;
    if complete.is_some_and(|complete| ms <= complete.timestamp_millis()) {
        // Nothing that is archived was committed later, and nothing that was committed by then is missing.
        return Ok(None);
    }
    let known = complete.map_or_else(|| "an unknown time".to_owned(), time::utc);
    let message =
        format!("{} lies after the end of the archived WAL, which is complete up to {known}", time::rfc3339(ms));
    Err(Error::new(Kind::NotFound, message).hint(
        "the nearest that can be reached is --to latest; a moment that has just passed can be once `tidelog ls` says that the log is complete up to it, which takes some seconds",
    ))
}

/// The end of the first segment with a commit at `least` ms since 1970 or later.
async fn first_commit(log: &Log, path: &[Stretch], least: i64) -> Result<Option<Lsn>> {
    let partitions = path.iter().map(|stretch| {
        let range = stretch.lsns.start.position()..stretch.lsns.end.position();
        (stretch.timeline.cast_signed(), range)
    });
    let selection = Selection { timestamps: Some(least..i64::MAX), partitions: Some(partitions.collect()) };
    let found = log.chain().select(&selection).await?.segments;
    let ranges = found.iter().flat_map(|segment| &segment.partitions);
    Ok(ranges
        .filter(|range| range.max_timestamp.is_some_and(|last| last >= least))
        .map(|range| Lsn::at(range.end))
        .min())
}

/// Up to when the archive is complete on the way's last timeline: what is known of another one says nothing about it.
async fn complete_through(store: &Store, log: &Log, path: &[Stretch]) -> Result<Option<DateTime<Utc>>> {
    let stream = StreamId::Postgres { system_id: log.system().system_id };
    let claims = coverage::load_all(store, &layout::coverages(&stream)).await?;
    claims.tell_unreadable();
    let coverages = claims.known;
    let last = path.last().map(|stretch| stretch.timeline.cast_signed());
    let complete = coverage::complete_through(&coverages, log.chain());
    Ok(last.and_then(|timeline| complete.get(&timeline)).copied())
}

/// Looks for what is lost between a backup and the goal.
async fn without_gap(log: &Log, path: &[Stretch], backup: &Backup, until: Lsn) -> Result<()> {
    for stretch in path.iter().skip_while(|stretch| stretch.timeline != backup.timeline) {
        let wanted = stretch.lsns.start.max(backup.start)..stretch.lsns.end.min(until);
        if wanted.start >= wanted.end {
            continue;
        }
        let archived = log.range(stretch.timeline).unwrap_or_default();
        if archived.start > wanted.start || archived.end < wanted.end {
            let message = format!(
                "WAL of timeline {} from {} to {} is needed, and the archive has {} to {}",
                stretch.timeline, wanted.start, wanted.end, archived.start, archived.end
            );
            return Err(
                Error::new(Kind::Incomplete, message).hint("choose another moment, or another backup with --backup")
            );
        }
        if let Some(gap) = log.select(stretch.timeline, &wanted).await?.gaps.first() {
            let (start, end) = (Lsn::at(gap.start), Lsn::at(gap.end));
            let message = format!(
                "WAL from {start} to {end} is lost ({}); from the base backup {} nothing after it can be recovered",
                gap.reason.words(),
                backup.name
            );
            return Err(Error::new(Kind::Incomplete, message).hint(format!(
                "--to-lsn {start} is the last moment before it; a backup taken after it leads further"
            )));
        }
    }
    Ok(())
}

fn no_backup(backups: &[Backup], path: &[Stretch], goal: Goal, name: Option<&str>) -> Error {
    if let Some(name) = name {
        let known: Vec<&str> = backups.iter().map(|backup| backup.name.as_str()).collect();
        return Error::new(Kind::NotFound, format!("no base backup {name} leads to this target"))
            .hint(format!("the archive has {}", known.join(", ")));
    }
    match backups.iter().find(|backup| lies_on(path, backup)) {
        None => Error::new(Kind::NotFound, "the archive has no base backup on this timeline")
            .hint("take one with `tidelog backup`, or name another --timeline"),
        Some(first) => {
            let shown = match goal {
                Goal::Time(ms) => time::rfc3339(ms),
                Goal::Lsn(lsn) => lsn.to_string(),
                Goal::Latest | Goal::Present => "the end".to_owned(),
            };
            let nearest = format!("--to-time {} or --to-lsn {}", time::utc(first.finished), first.end);
            Error::new(Kind::NotFound, format!("{shown} lies before the end of the first base backup"))
                .hint(format!("the nearest that can be reached is {nearest}"))
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::manifest::backups::Part;
    use crate::stream::System;

    pub(in crate::restore) fn backup(name: &str, timeline: u32, start: u64, end: u64) -> Backup {
        let part = Part { object: String::new(), bytes: 0, stored_bytes: 0, sha256: String::new() };
        let time = DateTime::from_timestamp_millis(1_000).expect("a time");
        Backup {
            format: 1,
            name: name.to_owned(),
            label: String::new(),
            system: System { system_id: 1, wal_segment_size: 16 << 20, server_version: 15 },
            timeline,
            start: Lsn(start),
            end: Lsn(end),
            end_timeline: timeline,
            started: time,
            finished: time,
            archives: Vec::new(),
            manifest: part,
        }
    }

    #[test]
    fn a_backup_beyond_the_switch_leads_nowhere() {
        let stretch = |timeline, lsns: Range<u64>| Stretch { timeline, lsns: Lsn(lsns.start)..Lsn(lsns.end) };
        let path = [stretch(1, 0..100), stretch(3, 100..200)];
        assert!(lies_on(&path, &backup("a", 1, 10, 100)));
        assert!(!lies_on(&path, &backup("a", 1, 90, 101)), "it ends after the switch");
        assert!(!lies_on(&path, &backup("a", 2, 10, 20)), "another timeline");
        assert!(lies_on(&path, &backup("a", 3, 150, 250)), "its WAL may still come");
        assert!(!lies_on(&path, &backup("a", 3, 50, 60)), "before the timeline began");
    }
}

//! Which base backup leads to a target, and where Postgres is told to stop.
//!
//! ```text
//!   asked ─► way (which timelines) ─► position of the target, by the WAL's own records ─► path (which backup) ─► stop
//!             manifest::path            search                                             manifest::path
//! ```
//!
//! Whether a backup lies before a target is a matter of positions: the time at which it was finished is by the clock of
//! whatever machine took it, and says nothing about the server's commits.

use std::ops::Range;

pub use super::asked::{Asked, Goal};
use super::log::Log;
use super::refusal::{Ground, no_way};
use super::search::{first_since, last_that};
use super::stop::{Stop, last_record};
use crate::error::{Error, Kind, Result};
use crate::manifest::backups::Backup;
use crate::manifest::found::Brief;
use crate::manifest::path::Way;
use crate::manifest::recoverable;
use crate::segment::wal::{Ended, LONG_HEADER, PAGE, SHORT_HEADER, What};
use crate::store::Store;
use crate::stream::{CountedBackups, Lsn};

/// A restore that can be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What is unpacked.
    pub backup: Backup,
    /// If that is incremental, all that it builds on, the full one first.
    pub parents: Vec<Backup>,
    /// What was asked for. It is never [`Goal::Present`], but the position that this is.
    pub goal: Goal,
    /// Where Postgres is told to stop.
    pub stop: Stop,
    /// The timeline that it follows.
    pub timeline: u32,
    /// The timelines that lead there.
    pub way: Way,
    /// The log that is replayed, as far as it is archived now.
    pub lsns: Range<Lsn>,
    /// The last entry of the chain that the plan stands on: an archive that has fewer is an older copy.
    pub entry: u64,
}

impl Plan {
    /// All that is unpacked, the full backup first.
    pub fn backups(&self) -> impl Iterator<Item = &Backup> {
        self.parents.iter().chain([&self.backup])
    }

    /// Returns how many bytes of archives are unpacked.
    pub fn bytes(&self) -> u64 {
        self.backups().fold(0, |sum, backup| sum.saturating_add(backup.bytes()))
    }

    /// Returns how many bytes of log are replayed.
    pub fn log_bytes(&self) -> u64 {
        self.lsns.end - self.lsns.start
    }
}

/// A target on its way.
struct Target {
    /// Everything up to here comes back.
    position: Lsn,
    /// Where Postgres stops.
    aim: Aim,
}

/// Where Postgres is to stop for a target, before it is known which backup it starts from.
enum Aim {
    /// Just there.
    At(Stop),
    /// After the last record that is whole there.
    Whole,
    /// Before any effect of the transaction whose end begins there.
    BeforeTransaction,
}

/// Makes a plan, or says what is the nearest that can be reached.
///
/// # Errors
/// [`Kind::NotFound`] for a target before the first backup or after the last WAL, [`Kind::Incomplete`] for one behind
/// WAL that is lost.
pub async fn plan(store: &Store, log: &Log, backups: &[Brief], asked: &Asked) -> Result<Plan> {
    let facts = recoverable::facts(store, log.chain(), backups).await?;
    let ground = Ground { store, log, facts: &facts, asked };
    let timeline = asked.timeline.or_else(|| facts.newest());
    let timeline = timeline.ok_or_else(|| Error::new(Kind::NotFound, "the archive holds no WAL yet"))?;
    let way = facts.way(timeline).map_err(|lack| no_way(log, &lack))?;
    let goal = if asked.goal == Goal::Present { Goal::Lsn(way.end()) } else { asked.goal.clone() };
    let target = ground.locate(&way, &goal).await?;
    let reach = match facts.path(&way, target.position, asked.backup.as_deref()) {
        Ok(reach) => reach,
        Err(lack) => return Err(ground.no_path(&way, lack).await?),
    };
    if let Goal::Time(us) = goal {
        // What was committed before the archive begins, or in a hole of it, may be in the backup, and later than the target.
        let known = recoverable::known_after(log.chain(), &facts, &way, reach.from).await?;
        if known.is_none_or(|known| us.div_euclid(1_000) <= known) {
            return Err(ground.not_known(&way).await?);
        }
    }
    let whole = match target.aim {
        Aim::At(_) | Aim::Whole => target.position,
        Aim::BeforeTransaction => {
            let took_effect = |ended: &Ended| matches!(ended.what, What::Commit(_) | What::Abort(_) | What::Prepare);
            let last = last_that(log, &way, reach.from..target.position, took_effect).await?;
            last.map_or(reach.from, |last| last.end)
        }
    };
    let stop = match target.aim {
        Aim::At(stop) => stop,
        Aim::Whole | Aim::BeforeTransaction => Stop::After(last_record(log, &way, reach.start, whole).await?),
    };
    let line = facts.line(reach.backup).map_err(|lack| no_way(log, &lack))?;
    let mut parents = Vec::with_capacity(line.len());
    for backup in line.into_iter().filter_map(|index| backups.get(index)) {
        parents.push(backup.whole(store).await?);
    }
    let backup = parents.pop().ok_or_else(|| Error::new(Kind::Internal, "the plan names no base backup"))?;
    build_on_each_other(log.chain().backups(), parents.iter().chain([&backup]))?;
    let lsns = reach.start..target.position.max(reach.start);
    Ok(Plan { backup, parents, goal, stop, timeline, way, lsns, entry: log.chain().head() })
}

/// Each of these builds on the one before it, as the chain has that one.
fn build_on_each_other<'a>(entered: Option<&CountedBackups>, line: impl Iterator<Item = &'a Backup>) -> Result<()> {
    for (backup, parent) in line.filter_map(|backup| Some((backup, backup.parent.as_ref()?))) {
        if let Some(entered) = entered
            && entered.get(&parent.name).map(|counted| &counted.sha256) != Some(&parent.sha256)
        {
            let message =
                format!("the base backup {} builds on another {} than the archive holds", backup.name, parent.name);
            return Err(
                Error::new(Kind::Corrupt, message).hint("name another one with --backup: `restore-postgres --list`")
            );
        }
    }
    Ok(())
}

/// The last position at which a record can end that does not end at `lsn` itself. Postgres tells the end of a record with what
/// fills it up to a multiple of 8, and where a page ends as the first place on the next one.
fn before(lsn: Lsn, file: u64) -> Lsn {
    let header = if (lsn.0 - lsn.0 % PAGE).is_multiple_of(file.max(1)) { LONG_HEADER } else { SHORT_HEADER };
    let lsn = if lsn.0 % PAGE <= header { lsn.0 - lsn.0 % PAGE } else { lsn.0 };
    Lsn(lsn.saturating_sub(1) / 8 * 8)
}

impl Ground<'_> {
    /// Returns where the target lies.
    async fn locate(&self, way: &Way, goal: &Goal) -> Result<Target> {
        match goal {
            Goal::Latest | Goal::Present => Ok(Target { position: way.end(), aim: Aim::At(Stop::End) }),
            Goal::Lsn(lsn) if self.asked.exclusive => {
                Ok(Target { position: before(*lsn, self.facts.file), aim: Aim::Whole })
            }
            Goal::Lsn(lsn) => Ok(Target { position: *lsn, aim: Aim::Whole }),
            Goal::Time(us) => self.locate_time(way, *us).await,
            Goal::Name(name) => {
                let is = |ended: &Ended| matches!(&ended.what, What::RestorePoint(found) if found == name);
                self.locate_record(way, is).await
            }
            Goal::Xid(xid) => {
                let is = |ended: &Ended| matches!(&ended.what, What::Commit(found) | What::Abort(found) if found.xid == *xid);
                self.locate_record(way, is).await
            }
        }
    }

    /// A time lies before the first transaction that ended later.
    async fn locate_time(&self, way: &Way, us: i64) -> Result<Target> {
        let log = self.log;
        let later = first_since(log, way, us.saturating_add(i64::from(!self.asked.exclusive))).await?;
        if let Some(later) = later {
            return Ok(Target { position: later.start, aim: Aim::BeforeTransaction });
        }
        let complete = recoverable::complete_through(self.store, log.chain(), way).await?;
        let complete = complete.map(|complete| complete.timestamp_millis());
        if complete.is_some_and(|complete| us <= complete.saturating_mul(1_000)) {
            // Nothing that is archived was committed later, and nothing that was committed by then is missing.
            return Ok(Target { position: way.end(), aim: Aim::Whole });
        }
        Err(self.not_complete(way, complete).await?)
    }

    /// A record lies where it is found: newest first, in what can be recovered.
    async fn locate_record(&self, way: &Way, is: impl Fn(&Ended) -> bool + Copy) -> Result<Target> {
        for span in self.facts.spans(way).iter().rev() {
            if let Some(found) = last_that(self.log, way, span.from..span.until, is).await? {
                return Ok(match self.asked.exclusive {
                    false => Target { position: found.end, aim: Aim::At(Stop::After(found.start)) },
                    true if matches!(found.what, What::RestorePoint(_)) => {
                        Target { position: found.start, aim: Aim::Whole }
                    }
                    true => Target { position: found.start, aim: Aim::BeforeTransaction },
                });
            }
        }
        let message = format!("{} is not in the WAL that can be recovered", self.target());
        Err(Error::new(Kind::NotFound, message).hint(self.nearest(way).await?))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use chrono::DateTime;

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
            is_read_back: true,
            damaged: Vec::new(),
            checksums: None,
            parent: None,
            archives: Vec::new(),
            manifest: part,
        }
    }

    /// A plan that stops there.
    pub(in crate::restore) fn planned(stop: Stop) -> Plan {
        let facts = crate::manifest::path::Facts {
            file: 16 << 20,
            archived: [(3, Lsn(0)..Lsn(0x20))].into(),
            histories: [(3, Vec::new())].into(),
            ..Default::default()
        };
        let way = facts.way(3).expect("a way");
        Plan {
            backup: backup("b", 1, 1, 2),
            parents: Vec::new(),
            goal: Goal::Latest,
            stop,
            timeline: 3,
            way,
            lsns: Lsn(0)..Lsn(0x20),
            entry: 7,
        }
    }

    #[test]
    fn a_record_ends_with_what_fills_it_up() {
        let file = 16 << 20;
        assert_eq!(
            (before(Lsn(8_192 * 5 + 800), file), before(Lsn(8_192 * 5 + 797), file)),
            (Lsn(8_192 * 5 + 792), Lsn(8_192 * 5 + 792))
        );
        assert_eq!(
            before(Lsn(8_192 * 5 + 24), file),
            Lsn(8_192 * 5 - 8),
            "the first place of a page is the end of the one before"
        );
        assert_eq!(before(Lsn(file + 40), file), Lsn(file - 8));
        assert_eq!(before(Lsn(0), file), Lsn(0));
    }
}

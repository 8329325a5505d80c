//! Why a target cannot be reached, and the nearest that can.

use super::asked::{Asked, Goal};
use super::log::Log;
use crate::error::{Error, Kind, Result};
use crate::manifest::found::MOST_NAMED;
use crate::manifest::path::{Facts, Lack, Limit, Reach, Way};
use crate::manifest::recoverable::{Window, windows_on};
use crate::store::Store;
use crate::stream::Lsn;
use crate::time;

/// What decides about a target.
pub(super) struct Ground<'a> {
    pub(super) store: &'a Store,
    pub(super) log: &'a Log,
    pub(super) facts: &'a Facts,
    pub(super) asked: &'a Asked,
}

/// There is no way to the timeline that is to be followed.
pub(super) fn no_way(log: &Log, lack: &Lack) -> Error {
    let known: Vec<String> = log.timelines().map(|timeline| timeline.to_string()).collect();
    let known = format!("it holds timelines {}", known.join(", "));
    match lack {
        Lack::History(timeline) => {
            let message = format!("the archive has no readable history of timeline {timeline}");
            Error::new(Kind::NotFound, message).hint(format!("name another timeline with --timeline: {known}"))
        }
        Lack::Timeline(timeline) => {
            Error::new(Kind::NotFound, format!("the archive holds no WAL of timeline {timeline}")).hint(known)
        }
        Lack::Parent { backup, parent } => {
            let message = format!(
                "the base backup {backup} is incremental, and {parent}, which it builds on, is missing or cannot be read"
            );
            Error::new(Kind::Corrupt, message).hint(
                "restore its backup.json from a copy of the archive (`tidelog verify` names it), or leave --backup out: others may lead there",
            )
        }
        _ => Error::new(Kind::NotFound, "the archive holds no WAL yet"),
    }
}

impl Ground<'_> {
    /// No backup leads to the target.
    pub(super) async fn no_path(&self, way: &Way, lack: Lack) -> Result<Error> {
        let target = self.target();
        let nearest = self.nearest(way).await?;
        let name = self.asked.backup.as_deref();
        Ok(match (lack, name) {
            (Lack::Backup, Some(name)) => {
                // The newest of them: there may be thousands.
                let all = self.facts.backups.iter().rev();
                let known: Vec<&str> = all.map(|backup| backup.name.as_str()).take(MOST_NAMED).collect();
                let others = match self.facts.backups.len() - known.len() {
                    0 => String::new(),
                    others => format!(", and {others} older ones"),
                };
                Error::new(Kind::NotFound, format!("no base backup {name} leads to timeline {}", way.timeline()))
                    .hint(format!("the archive has {}{others}", known.join(", ")))
            }
            (Lack::Backup, None) => Error::new(Kind::NotFound, "the archive has no base backup on this timeline")
                .hint(format!("take one with `tidelog backup`, or name another --timeline{}", self.others(way))),
            (Lack::TooEarly(_), Some(name)) => {
                Error::new(Kind::NotFound, format!("{target} lies before the end of the base backup {name}"))
                    .hint(format!("without --backup an earlier one is looked for; {nearest}"))
            }
            (Lack::TooEarly(_), None) => {
                Error::new(Kind::NotFound, format!("{target} lies before the end of the first base backup"))
                    .hint(nearest)
            }
            (Lack::TooLate(end), _) => {
                Error::new(Kind::NotFound, format!("{target} lies after the end of the archived WAL, {end}"))
                    .hint("the nearest that can be reached is --to latest")
            }
            (Lack::Torn(reach), _) => self.torn(&reach, &nearest),
            (lack, _) => no_way(self.log, &lack),
        })
    }

    /// The WAL after a backup has a hole before the target.
    fn torn(&self, reach: &Reach, nearest: &str) -> Error {
        let name = &self.facts.backups[reach.backup].name;
        let message = match &reach.limit {
            Limit::End => format!(
                "the base backup {name} is not complete: it needs WAL up to {}, and the archive ends at {}",
                reach.from, reach.until
            ),
            Limit::Gap(gap) => format!(
                "WAL from {} to {} is lost ({}); from the base backup {name} nothing after it can be recovered",
                Lsn::at(gap.start),
                Lsn::at(gap.end),
                gap.reason.words(),
            ),
            Limit::Minimal(at) => format!(
                "the server ran with wal_level = minimal from {at} on, and Postgres recovers nothing over that; from the base backup {name} nothing after it can be recovered"
            ),
            Limit::Missing { timeline, from } => {
                let archived = self.log.range(*timeline).unwrap_or_default();
                format!(
                    "from the base backup {name} WAL of timeline {timeline} from {from} on is needed, and the archive has {} to {}",
                    archived.start, archived.end
                )
            }
        };
        let error = Error::new(Kind::Incomplete, message);
        match reach.limit {
            Limit::End => error.hint("wait until `tidelog run` has archived it, or use another backup with --backup"),
            _ => error.hint(format!("{nearest}; a backup taken after what is missing leads further")),
        }
    }

    /// A time after which nothing is archived, and up to which the archive is not known to be complete.
    pub(super) async fn not_complete(&self, way: &Way, complete: Option<i64>) -> Result<Error> {
        let known = complete.map_or_else(|| "an unknown time".to_owned(), time::rfc3339);
        let message =
            format!("{} lies after the end of the archived WAL, which is complete up to {known}", self.target());
        if let Err(lack) = self.facts.path(way, way.end(), None) {
            // However complete it will be.
            return self.no_path(way, lack).await;
        }
        let others = self.others(way);
        Ok(Error::new(Kind::NotFound, message).hint(format!(
            "the nearest that can be reached is --to latest; a moment that has just passed can be once `tidelog ls` says that the log is complete up to it, which takes some seconds{others}"
        )))
    }

    /// A time before the first transaction that is archived, at all or after a hole.
    pub(super) async fn not_known(&self, way: &Way) -> Result<Error> {
        let message = format!(
            "{} lies before the first transaction that is archived, at all or behind what is lost: what the base backup holds may be later",
            self.target()
        );
        Ok(Error::new(Kind::NotFound, message).hint(self.nearest(way).await?))
    }

    /// The target, as it was asked for.
    pub(super) fn target(&self) -> String {
        match &self.asked.goal {
            Goal::Time(us) => time::rfc3339_micros(*us),
            Goal::Lsn(lsn) => lsn.to_string(),
            Goal::Name(name) => format!("the restore point {name:?}"),
            Goal::Xid(xid) => format!("transaction {xid}"),
            Goal::Latest | Goal::Present => "the end".to_owned(),
        }
    }

    /// What can be reached on the way, nearest to the target first.
    pub(super) async fn nearest(&self, way: &Way) -> Result<String> {
        let windows = windows_on(self.store, self.log.chain(), self.facts, way).await?;
        let spans = self.facts.spans(way);
        let mut known: Vec<String> = Vec::new();
        for span in &spans {
            let window = windows.iter().find(|window| window.start == span.from);
            let times =
                |window: &Window| format!(" (--to-time {} to {})", time::utc(window.from), time::utc(window.to));
            let times = window.map(times).unwrap_or_default();
            known.push(format!("--to-lsn {} to {}{times}", span.from, span.until));
        }
        let others = self.others(way);
        Ok(match known.as_slice() {
            [] => format!("nothing can be reached on timeline {} yet: take a base backup{others}", way.timeline()),
            known => format!("the nearest that can be reached is within {}{others}", known.join(", or ")),
        })
    }

    /// The other timelines that have something to offer.
    fn others(&self, way: &Way) -> String {
        let leads = |timeline: &u32| {
            *timeline != way.timeline() && self.facts.way(*timeline).is_ok_and(|way| !self.facts.spans(&way).is_empty())
        };
        let others: Vec<String> =
            self.log.timelines().filter(leads).map(|timeline| format!("--timeline {timeline}")).collect();
        if others.is_empty() { String::new() } else { format!("; also looked for can be with {}", others.join(", ")) }
    }
}

//! What a recovery will do outside of its data directory, and what it will need, read in the log before Postgres is started.
//!
//! `CREATE TABLESPACE` is logged with its absolute path, and replayed with it: the directory of that path is emptied and filled, also
//! where it is that of the server which wrote the log ("Caveats" of "Continuous Archiving and Point-in-Time Recovery" in PostgreSQL's
//! manual; `create_tablespace_directories`, commands/tablespace.c). Nothing in the new directory can redirect that, so it is refused.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::log::Log;
use super::plan::Plan;
use super::search::scan;
use super::wal_name::WalName;
use crate::error::{Error, Kind, Result};
use crate::manifest::path::Stretch;
use crate::segment::wal::{Limits, What};
use crate::stream::Lsn;

/// What the log of a recovery holds that concerns more than its data directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Foreseen {
    /// The places of tablespaces that it makes, by their numbers.
    pub tablespaces: BTreeMap<u32, PathBuf>,
    /// Whether it makes tablespaces in place, which lie in the data directory.
    pub in_place: bool,
    /// The highest limits that the server was started with.
    pub limits: Limits,
    /// Where the server first went on with `wal_level = minimal`.
    pub minimal: Option<Lsn>,
}

/// Reads the log that a plan will replay. `done` counts its bytes, of [`Plan::log_bytes`].
///
/// # Errors
/// WAL that is missing or damaged, or written with `wal_level = minimal`: the recovery would stop there.
pub async fn foresee(log: &Log, plan: &Plan, done: &AtomicU64) -> Result<Foreseen> {
    let mut foreseen = Foreseen::default();
    for stretch in plan.way.stretches() {
        let lsns = stretch.lsns.start.max(plan.lsns.start)..stretch.lsns.end.min(plan.lsns.end);
        if lsns.start < lsns.end {
            foreseen.read(log, stretch, &lsns).await?;
            done.fetch_add(lsns.end - lsns.start, Ordering::Relaxed);
        }
    }
    foreseen.is_recoverable()?;
    Ok(foreseen)
}

/// Looks at a file of WAL that was archived after the restore was planned.
///
/// # Errors
/// [`Kind::Incomplete`] for one that makes a tablespace: Postgres must not get it.
pub(super) async fn look_at(log: &Log, name: WalName) -> Result<()> {
    let size = u64::from(log.system().wal_segment_size);
    let (start, timeline) = (name.start(size)?, name.timeline());
    let archived = log.range(timeline).unwrap_or_default();
    let planned = log.is_looked_through().filter(|planned| *planned < (start + size).min(archived.end));
    let Some(planned) = planned else { return Ok(()) };
    let begins = log.ancestors(timeline).await?.last().map_or(Lsn(0), |origin| origin.at);
    let stretch = Stretch { timeline, lsns: begins..archived.end, file: Lsn(begins.0 / size * size) };
    let lsns = start.max(planned).max(archived.start)..(start + size).min(archived.end);
    let mut foreseen = Foreseen::default();
    foreseen.read(log, &stretch, &lsns).await?;
    foreseen.is_recoverable()?;
    match foreseen.tablespaces.values().next() {
        None => Ok(()),
        Some(place) => {
            let message = format!(
                "since the restore was planned a tablespace was made at {}, and the recovery would write there",
                place.display()
            );
            Err(Error::new(Kind::Incomplete, message)
                .hint(format!("restore again, to a position before it: --to-lsn {planned}")))
        }
    }
}

impl Foreseen {
    /// Postgres ends a recovery that comes to where less was written than it needs.
    fn is_recoverable(&self) -> Result<()> {
        let Some(at) = self.minimal else { return Ok(()) };
        Err(Error::new(
            Kind::Incomplete,
            format!("the server ran with wal_level = minimal from {at} on, and Postgres recovers nothing over that"),
        )
        .hint(format!("recover to before it, with --to-lsn {at}, or from a base backup that was taken after it")))
    }

    async fn read(&mut self, log: &Log, stretch: &Stretch, lsns: &Range<Lsn>) -> Result<()> {
        scan(log, stretch, lsns, |ended| {
            match &ended.what {
                What::MinimalWal => self.minimal = self.minimal.or(Some(ended.start)),
                What::Limits(limits) => self.limits = self.limits.max(*limits),
                What::Tablespace { path, .. } if path.is_empty() => self.in_place = true,
                What::Tablespace { oid, path } => drop(self.tablespaces.insert(*oid, path.into())),
                What::Commit(_) | What::Abort(_) | What::Prepare | What::RestorePoint(_) | What::OfSlots(_) => {}
            }
            ControlFlow::Continue(())
        })
        .await
    }
}

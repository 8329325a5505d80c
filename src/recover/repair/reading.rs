//! The connector reads from the scratch standby, until all has come.
//!
//! ```text
//!   marker in its topic ─► the standby was read, and nobody read from the new slot ─► stop ─► Connect has the marker's offset
//! ```
//!
//! A topic keeps the order of one partition alone: another one may stall, with what came before the marker still on the way. Connect writes
//! an offset down only once all before it is acknowledged, so that decides.

use std::time::{Duration, Instant};

use super::journal::Mark;
use super::position::Position;
use super::prepare::Prepared;
use super::primary::is_touched;
use super::standby::Standby;
use crate::error::{Error, Kind, Result};
use crate::recover::connectors::{self, WORKERS};
use crate::recover::marker::{self, Ends};
use crate::replay::kafka::Connection;
use crate::restore::patiently;
use crate::source::rest::operate::State;
use crate::stream::Lsn;

/// How long the connector may read without anything moving.
const STANDS_STILL: Duration = Duration::from_secs(300);

/// How long a marker is looked for at a time.
const TURN: Duration = Duration::from_secs(15);

/// How long a connector that runs may take to be at its slot.
const CONNECTS: Duration = Duration::from_secs(90);

/// How long the cluster may take to acknowledge what was sent, and Connect to write the offset down (`offset.flush.interval.ms`: 60 s).
const ACKNOWLEDGED: Duration = Duration::from_secs(180);

const LOOK: Duration = Duration::from_secs(1);

/// A connector that reads from the scratch standby.
pub(super) struct Reading<'a> {
    pub(super) prepared: &'a Prepared,
    pub(super) standby: &'a Standby<'a>,
    pub(super) to: &'a Connection,
    /// Where the topics ended before the marker.
    pub(super) ends: &'a Ends,
    pub(super) mark: &'a Mark,
    /// Where the marker's commit ends.
    pub(super) gate: Lsn,
    /// Where the slots of the standby and of the primary begin.
    pub(super) slots: (Lsn, Lsn),
}

/// Whether anything moves: a large transaction, or many that it does not capture, move no offset.
type Progress = (Option<Position>, (Option<Lsn>, Option<Lsn>));

impl Reading<'_> {
    /// Lets the connector read until the marker has come, and stops it; gives the topic, and how often it was begun again.
    ///
    /// # Errors
    /// A slot of the standby that is lost, a connector that fails again and again, one that reads elsewhere, and
    /// [`Kind::Incomplete`] where not all is acknowledged.
    pub(super) async fn to_the_end(&self) -> Result<(String, u32)> {
        let (workers, there) = (&self.prepared.workers, &self.prepared.scratch);
        let (topic, mut restarts) = self.until_marked().await?;
        self.came_from_the_standby().await?;
        connectors::stop(workers, there).await?;
        if !self.has_all().await? {
            // What was not acknowledged when it was stopped is sent again.
            restarts += 1;
            connectors::run(workers, there).await?;
            let begun = Instant::now();
            while !self.has_all().await? && begun.elapsed() < ACKNOWLEDGED {
                tokio::time::sleep(LOOK).await;
            }
            connectors::stop(workers, there).await?;
            if !self.has_all().await? {
                let message =
                    format!("the marker came to {topic}, and not all that was read before it is acknowledged");
                return Err(Error::new(Kind::Incomplete, message)
                    .hint("look whether all partitions of its topics have a leader, and run this again"));
            }
        }
        Ok((topic, restarts))
    }

    async fn until_marked(&self) -> Result<(String, u32)> {
        let (workers, there) = (&self.prepared.workers, &self.prepared.scratch);
        let (mut stands, mut since) = (None::<Progress>, Instant::now());
        let (mut restarts, mut attempts) = (0, 0);
        let mut from = self.ends.clone();
        if self.has_all().await? && self.standby.is_read(self.slots.0).await? {
            // An earlier run was ended behind its end: a connector that is begun again sends the last once more. Where the server has forgotten
            // in a crash how far it was read, that is what shows it.
            return marker::seen(self.to, there, (&mut from, &self.mark.token), TURN).await.map(|topic| (topic, 0));
        }
        loop {
            let state = patiently(WORKERS, || workers.state(&there.name)).await?;
            restarts += u32::from(stands.is_some() && state.as_ref().is_some_and(State::has_failed));
            if let Err(error) = connectors::run(workers, there).await {
                if let Some(why) = self.standby.slot_is_lost().await? {
                    return Err(error.context(&why));
                }
                (restarts, attempts) = (restarts + 1, attempts + 1);
                if attempts == 3 {
                    return Err(error);
                }
                continue;
            }
            match marker::seen(self.to, there, (&mut from, &self.mark.token), TURN).await {
                Err(error) if error.kind() == Kind::Incomplete && since.elapsed() < STANDS_STILL => {}
                seen => return seen.map(|topic| (topic, restarts)),
            }
            if let Some(why) = self.standby.slot_is_lost().await? {
                let message = format!("the connector has not read all that was missed: {why}");
                return Err(
                    Error::new(Kind::Unsupported, message).hint("look at server.log beside the scratch directory")
                );
            }
            let now = Some((self.position().await?, self.standby.progress().await));
            if now != stands {
                (stands, since) = (now, Instant::now());
            }
        }
    }

    async fn position(&self) -> Result<Option<Position>> {
        let (workers, there) = (&self.prepared.workers, &self.prepared.scratch);
        let offsets = patiently(WORKERS, || workers.offsets(&there.name)).await?;
        Ok(Position::of(&there.name, &there.prefixes.1, &offsets).ok())
    }

    /// Whether all up to the marker is acknowledged.
    async fn has_all(&self) -> Result<bool> {
        Ok(self.position().await?.is_some_and(|position| position.has_brought(self.mark.xid, self.gate)))
    }

    /// Refuses a marker that has come from the primary: what lies before its new slot is not there.
    async fn came_from_the_standby(&self) -> Result<()> {
        let own = &self.prepared.own;
        let (of_standby, of_primary) = self.slots;
        let elsewhere = |why: &str| {
            let message = format!("the marker has come, and {why}: {} reads from another server", own.name);
            Error::new(Kind::Fenced, message)
                .hint("look at \"database.hostname\" and \"database.port\" in [connector.config]: what was missed is not in its topics")
        };
        let mut sql = self.prepared.primary.server.sql().await?;
        if is_touched(&mut sql, own.slot(), of_primary).await? == Some(true) {
            return Err(elsewhere("the new slot on the primary was read from"));
        }
        let begun = Instant::now();
        while !self.standby.is_read(of_standby).await? {
            if begun.elapsed() > CONNECTS {
                return Err(elsewhere("the slot of the standby was not read from"));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

//! The scratch server of net changes: once at the marker, to be read, and once at the offset, to be changed (see `net`).

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::journal::{Journal, Net};
use super::leftovers::rows_of;
use super::lost::oldest_running;
use super::net::captured::session;
use super::net::changes::{Changes, Counts, Stage, stage};
use super::net::end;
use super::position::Position;
use super::prepare::Prepared;
use super::primary::made_slot;
use super::standby::Standby;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::recover::database::{Restore, raise};
use crate::recover::fold;
use crate::recover::server::{Server as Started, give, make_private};
use crate::recover::slots::{self, one};
use crate::replay::kafka::Connection;
use crate::restore::commits::Commits;
use crate::restore::postgres::LogSource;
use crate::restore::{Log, PATIENCE, limits_of, patiently};
use crate::source::postgres::Server;
use crate::store::Store;
use crate::stream::Lsn;

/// What it takes to make such a server.
pub(super) struct Comparing<'a> {
    pub(super) store: &'a Store,
    pub(super) config: &'a Config,
    pub(super) prepared: &'a Prepared,
    pub(super) standby: &'a Standby<'a>,
}

/// A server that was made, what its log needs, and how it was made, in words.
pub(super) type Made = (Started, Vec<(String, u32)>, String);

impl Comparing<'_> {
    /// Makes a server that has replayed all up to a position, and no more; what an earlier run has made is removed.
    ///
    /// # Errors
    /// Those of a restore, and a server that does not come to the position.
    pub(super) async fn make_at(&self, journal: &Journal, until: Lsn) -> Result<Made> {
        self.standby.remove()?;
        let (system_id, timeline) = (journal.system_id, journal.timeline);
        let log = patiently(PATIENCE, || Log::open(self.store, Some(system_id))).await?.patient();
        let restore = Restore::planned(self.store, &log, (timeline, until), None).await?;
        let made = self.standby.made();
        restore.check(&made, false)?;
        let fetching = LogSource::of(&self.config.archive, true)?.gated();
        let (_, foreseen) = restore.bring(self.store, (&log, &made), fetching, &journal.id).await?;
        let limits = limits_of(&self.standby.scratch.into, &foreseen)?;
        let limits: Vec<_> = limits.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        self.standby.gate(until, &Default::default())?;
        let server = self.standby.start(&limits, &self.prepared.primary.server, true).await?;
        self.standby.replays(until).await?;
        Ok((server, limits, restore.words()))
    }

    /// Reads the captured tables at the marker, and removes the server.
    ///
    /// # Errors
    /// A plugin of which it is not known what it captures, and those of the server.
    pub(super) async fn read_end(
        &self,
        journal: &Journal,
        (offset, gate): (Lsn, Lsn),
        compares: bool,
    ) -> Result<(Net, String)> {
        let from = self.oldest_running(journal, offset).await?;
        let (server, _, words) = self.make_at(journal, gate).await?;
        let of = self.standby.of;
        let folder = rows_of(self.standby.folder);
        end::remove(&folder);
        private_for(&self.standby.scratch.into, &folder)?;
        let at = self.standby.at(of.database())?;
        let tables = end::read(&at, of.publication(), (from, &folder)).await?;
        let counted = if compares { fold::count(self.store, self.config, &at, of).await? } else { Vec::new() };
        server.stop().await?;
        self.standby.remove()?;
        let words = format!("{} tables were read at {gate}, out of {words}", tables.len());
        Ok((Net { tables, counted, ..journal.net.clone() }, words))
    }

    /// The oldest transaction that may have run at the offset, by the log.
    async fn oldest_running(&self, journal: &Journal, offset: Lsn) -> Result<Option<u32>> {
        let log = patiently(PATIENCE, || Log::open(self.store, Some(journal.system_id))).await?.patient();
        let restore = Restore::planned(self.store, &log, (journal.timeline, offset), None).await?;
        let commits = Commits::open(self.store, &log, Some(journal.timeline)).await?;
        oldest_running(&commits, restore.log_start()..offset).await
    }

    /// Makes the server at the offset; gives the oldest transaction that runs there, which nobody knows any more once it is promoted.
    ///
    /// # Errors
    /// Those of [`Comparing::make_at`].
    pub(super) async fn make_start(&self, journal: &Journal, offset: Lsn) -> Result<(Made, u32)> {
        let made = self.make_at(journal, offset).await?;
        let mut sql = self.standby.at(self.standby.of.database())?.sql().await?;
        let oldest =
            one(&mut sql, "SELECT pg_snapshot_xmin(pg_current_snapshot())", "ask which transactions run").await?;
        let oldest = oldest.and_then(|oldest| oldest.parse::<u64>().ok());
        let oldest = oldest.and_then(|oldest| u32::try_from(oldest & u64::from(u32::MAX)).ok());
        let untold = || Error::new(Kind::Internal, "the scratch server does not tell which transactions run");
        Ok((made, oldest.ok_or_else(untold)?))
    }

    /// Promotes the server at the offset, makes the slot of the connector there, and changes the tables; what an earlier run has done is
    /// not done again. Gives where the slot begins.
    ///
    /// # Errors
    /// A table that cannot be changed, or is not as it is at the marker afterwards.
    pub(super) async fn change(
        &self,
        journal: &mut Journal,
        to: &Connection,
        save: impl Fn(&Journal) -> Result<()>,
    ) -> Result<(Lsn, String, Vec<String>)> {
        let of = self.standby.of;
        let server = self.standby.at(of.database())?;
        let mut sql = server.sql().await?;
        if one(&mut sql, "SELECT pg_is_in_recovery()", "ask whether it recovers").await?.as_deref() == Some("t") {
            sql.query("SELECT pg_promote(true, 300)", "promote the scratch server").await?;
        }
        self.end_prepared().await?;
        let (slot, notes) = self.apply(&server, journal, (to, &save)).await?;
        let end = one(&mut session(&server).await?, "SELECT pg_current_wal_insert_lsn()", "ask how far it is").await?;
        let end = end.and_then(|end| end.parse::<Lsn>().ok());
        let end = end.ok_or_else(|| Error::new(Kind::Internal, "the scratch server tells no position"))?;
        if let Some(mark) = journal.net.mark.as_mut().filter(|mark| mark.1 == Lsn(u64::MAX)) {
            mark.1 = end;
        }
        let counts = journal.net.counts.map(|(deleted, updated, inserted)| {
            format!("{deleted} rows deleted, {updated} updated, {inserted} inserted")
        });
        let words = format!(
            "{}: {} tables have the rows that they have at the marker",
            counts.unwrap_or_default(),
            journal.net.tables.len()
        );
        Ok((slot, words, notes))
    }

    /// Does what is left to do of it; gives where the slot begins, and what is to be known.
    async fn apply(
        &self,
        server: &Server,
        journal: &mut Journal,
        (to, save): (&Connection, &impl Fn(&Journal) -> Result<()>),
    ) -> Result<(Lsn, Vec<String>)> {
        let (of, mut sql) = (self.standby.of, server.sql().await?);
        let token = journal.mark.clone().map(|mark| mark.token).unwrap_or_default();
        let tables = journal.net.tables.clone();
        let changes = Changes {
            tables: &tables,
            from: journal.net.from.unwrap_or_default(),
            token: of.marker.as_ref().map(|_| token.as_str()),
        };
        let now = stage(&mut sql).await?;
        let is_done = journal.net.mark.is_some() && now == Stage::Before;
        let mut notes = Vec::new();
        if !is_done && matches!(now, Stage::Before | Stage::Unloaded) {
            // Once they are changed, what was sent is deleted by then.
            let is_first = now == Stage::Before;
            let sent = if is_first { self.sent(journal, to).await? } else { Vec::new() };
            let told = changes.load(server, (of.publication(), &rows_of(self.standby.folder)), &sent).await?;
            notes = told.0;
            if is_first {
                journal.net.unmade = told.1;
            }
        }
        let slot = match made_slot(&mut sql, of.slot()).await? {
            Some(at) => at,
            None => {
                // What comes has to lie behind all that was sent, of a transaction that was sent in part, too.
                if let Some(position) = journal.position.filter(Position::is_within) {
                    raise(server, position.processed).await?;
                }
                slots::create(&mut sql, of).await?
            }
        };
        if is_done {
            return Ok((slot, notes));
        }
        if stage(&mut sql).await? == Stage::Loaded {
            let kept = changes.change(server, |Counts { deleted, updated, inserted }, differences| {
                (journal.net.counts, journal.net.differences) = (Some((deleted, updated, inserted)), differences);
                save(journal)
            });
            kept.await?;
        }
        let marked = changes.mark(server, &token, |xid| {
            journal.net.mark = Some((xid, Lsn(u64::MAX)));
            save(journal)
        });
        marked.await?;
        Ok((slot, notes))
    }

    /// What the connector has sent beyond its offset's last whole commit, by table.
    async fn sent(&self, journal: &Journal, to: &Connection) -> Result<Vec<fold::Sent>> {
        /// By so much clocks may differ, and what was sent may have waited.
        const SLACK: i64 = 6 * 3_600_000;
        let offset = journal.net.offset.as_ref();
        let since = offset.and_then(|offset| offset.get("ts_usec")?.as_i64()).filter(|at| *at > 0);
        let since = since.map(|at| at / 1_000 - SLACK);
        let seen = journal.position.unwrap_or(self.prepared.position).committed;
        let tables = journal.net.tables.iter().map(|one| (one.table.schema.as_str(), one.table.name.as_str()));
        let tables: Vec<_> = tables.collect();
        fold::sent_since(self.store, (&self.prepared.own, &tables), to, (since, seen.0)).await
    }

    /// Rolls back what was prepared at the offset: no slot can be made before it ends, and it was not sent.
    async fn end_prepared(&self) -> Result<()> {
        let mut sql = self.standby.at(self.standby.of.database())?.sql().await?;
        let asked = "SELECT gid, database FROM pg_prepared_xacts";
        for row in sql.query(asked, "look for prepared transactions").await? {
            let [Some(gid), Some(database)] = row.as_slice() else { continue };
            let ends = format!("ROLLBACK PREPARED {}", slots::literal(gid));
            self.standby.at(database)?.sql().await?.query(&ends, "roll back a prepared transaction").await?;
        }
        Ok(())
    }
}

/// Makes a directory into which the server over a data directory writes, and nobody else.
fn private_for(data: &Path, folder: &Path) -> Result<()> {
    make_private(folder)?;
    let facts = |place: &Path| {
        fs::metadata(place).map_err(|source| Error::io(source, format!("cannot look at {}", place.display())))
    };
    if facts(Path::new("/proc/self"))?.uid() == 0 {
        let owner = facts(data)?;
        give(folder, (owner.uid(), owner.gid()))?;
    }
    Ok(())
}

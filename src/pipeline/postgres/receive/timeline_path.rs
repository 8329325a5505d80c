//! Picks the next timeline and the start LSN: follows the server's timeline history and resumes from the archive. WAL that the
//! server has already removed becomes a gap.

use std::collections::BTreeMap;

use super::receiver::{Ended, Receiver};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest::origin::{left_behind, same_history};
use crate::pipeline::postgres::timelines::{self, Next};
use crate::segment::wal::{Switch, parse_history};
use crate::source::postgres::Replication;
use crate::store::Created;
use crate::stream::Lsn;

impl Receiver {
    /// The timelines that `current` comes from; its history and those of its ancestors are archived first.
    pub(super) async fn histories(&self, replication: &mut Replication, current: u32) -> Result<Vec<Switch>> {
        if current == 1 {
            return Ok(Vec::new());
        }
        // The server's own history decides, and what is archived must not be another server's.
        let switches = parse_history(current, &replication.timeline_history(current).await?)?;
        same_history(current, &switches, &self.history(replication, current).await?, self.known_end(current))?;
        for ancestor in switches.iter().map(|switch| switch.timeline).filter(|timeline| *timeline > 1) {
            // A restore along this path can do without; a server may have lost the file.
            match self.history(replication, ancestor).await {
                Ok(archived) => same_history(ancestor, &switches, &archived, self.known_end(ancestor))?,
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => {
                    tracing::warn!(timeline = ancestor, %error, "the history of an earlier timeline cannot be archived");
                }
            }
        }
        Ok(switches)
    }

    async fn history(&self, replication: &mut Replication, timeline: u32) -> Result<Vec<Switch>> {
        let key = self.shared.history_key(timeline);
        let (store, of) = (self.shared.store.clone(), key.clone());
        if let Some(text) = self.apart(async move { store.get(&of).await }).await? {
            return parse_history(timeline, &text);
        }
        let text = replication.timeline_history(timeline).await?;
        let switches = parse_history(timeline, &text)?;
        let store = self.shared.store.clone();
        match self.apart(async move { store.create(&key, text).await }).await? {
            Created::Yes => tracing::info!(timeline, "archived the history of a timeline"),
            Created::Same => {}
            // The archive's history decides, as it does for whoever finds it there at once.
            Created::Other(archived) => return parse_history(timeline, &archived),
        }
        Ok(switches)
    }

    /// Returns up to where a timeline is archived.
    fn known_end(&self, timeline: u32) -> Option<Lsn> {
        let archived = self.shared.archived.borrow();
        let of_it = archived.iter().find(|position| position.partition == timeline.cast_signed());
        of_it.map(|position| Lsn::at(position.end))
    }

    /// Does something where the store's connections live.
    async fn apart<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        self.others.spawn(work).await.or_err(Kind::Internal, || "a request to the store was aborted".into())?
    }

    /// Returns what to receive next.
    pub(super) fn next(&self, history: &[Switch], current: u32, flush: Lsn) -> Result<Next> {
        let file = u64::from(self.shared.system.wal_segment_size);
        let mut known: BTreeMap<u32, Lsn> = BTreeMap::new();
        for position in &*self.shared.archived.borrow() {
            known.insert(position.partition.cast_unsigned(), Lsn::at(position.end));
        }
        for extent in self.shared.spool.extents() {
            let end = known.entry(extent.timeline).or_insert(extent.safe);
            *end = (*end).max(extent.safe);
        }
        if let Some((newer, end)) = known.last_key_value().filter(|(newest, _)| **newest > current) {
            return Err(left_behind((current, flush), (*newer, *end)));
        }
        let Some(next) = timelines::next(history, current, &known, file) else {
            if !known.is_empty() {
                tracing::warn!(
                    timeline = current,
                    "no archived timeline leads to the server's; it begins a history of its own"
                );
            }
            // The file that the server is writing is the first of the archive: it has it whole.
            let start = Lsn(flush.0 / file * file);
            return Ok(Next { timeline: current, start, switch: None, beyond: None });
        };
        if let Some(end) = next.beyond {
            tracing::warn!(timeline = next.timeline, %end, "archived WAL past the switch point belongs to a diverged server");
        }
        Ok(next)
    }

    /// The server has no more what comes next. A slot that was lost is created again; if that does not help, the other servers that
    /// `postgres.url` names are asked, each of them. If none has it, the range up to what the server has is given up: the
    /// archiver records it as a gap. All of it is decided with the one server that said so.
    pub(super) async fn removed(&mut self, next: &Next, error: Error, host: &str) -> Result<Ended> {
        tracing::error!(timeline = next.timeline, start = %next.start, host, %error, "the server has removed WAL that is not archived");
        let server = self.server.only(host);
        let mut sql = server.sql().await?;
        let slots = sql.slots().await?;
        let own = slots.slots.iter().find(|slot| slot.name == self.config.slot);
        if self.config.create_slot && own.is_some_and(|slot| slot.is_lost()) {
            let mut replication = server.replication().await?;
            replication.drop_slot(&self.config.slot).await?;
            replication.create_slot(&self.config.slot).await?;
            tracing::warn!(slot = self.config.slot, "the lost slot was created again");
            return Ok(Ended::GoOn);
        }
        let file = u64::from(self.shared.system.wal_segment_size);
        let kept = own.and_then(|slot| slot.restart).map(|kept| Lsn(kept.0 / file * file));
        let listed = format!(
            "SELECT min(name) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{{24}}$' AND left(name, 8) = '{:08X}'",
            next.timeline
        );
        let oldest = match sql.query(&listed, "list the WAL files").await {
            Ok(rows) => rows.into_iter().flatten().next().flatten().and_then(|name| self.file_start(&name)),
            // Whoever was not granted it may not list them. What the slot keeps is there for sure, but there may be more.
            Err(listing) if listing.kind() == Kind::Denied => {
                tracing::warn!(error = %listing, hint = "GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_waldir() TO the role of postgres.url, in the database of postgres.url", "the oldest WAL file of the server is not known");
                kept.filter(|_| next.switch.is_none())
            }
            Err(listing) => return Err(listing),
        };
        match oldest.or(next.switch).filter(|start| *start > next.start) {
            Some(start) => {
                if let Some(detour) = self.detour(next, host, start).await? {
                    self.detour = Some(detour);
                    return Ok(Ended::GoOn);
                }
                self.begin_file(next.timeline, start, true, start).await?;
                Ok(Ended::GoOn)
            }
            // It was there when we looked again.
            None => {
                Err(Error::new(Kind::Unavailable, "the WAL that was said to be removed may be there again")
                    .source(error))
            }
        }
    }

    /// Returns where a WAL file begins, by its name (`XLogFromFileName`, xlog_internal.h).
    fn file_start(&self, name: &str) -> Option<Lsn> {
        let file = u64::from(self.shared.system.wal_segment_size);
        let part = |range| u64::from_str_radix(name.get(range)?, 16).ok();
        Some(Lsn((part(8..16)? << 32) + part(16..24)? * file))
    }
}

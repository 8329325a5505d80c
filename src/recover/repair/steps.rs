//! A repair at work: its steps (see `run`).

use std::time::Instant;

use super::journal::{Journal, Mark};
use super::leftovers::clear_folder;
use super::lost::{conflicts, elsewhere, missed};
use super::marking::archived;
use super::position::{Position, offset_of};
use super::prepare::Prepared;
use super::primary::{SlotState, advance, drop_slot, slot_state};
use super::reading::Reading;
use super::report::Report;
use super::settings::{noted, put_back};
use super::standby::Standby;
use super::way::Way;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::recover::connectors::{self, WORKERS};
use crate::recover::database::Restore;
use crate::recover::journal::{Done, Folder, Proof};
use crate::recover::marker;
use crate::recover::report::State;
use crate::recover::server::Server as Started;
use crate::recover::slots;
use crate::replay::kafka::Connection;
use crate::restore::commits::Commits;
use crate::restore::postgres::LogSource;
use crate::restore::{Log, PATIENCE, limits_of, patiently};
use crate::source::rest::operate::State as Connected;
use crate::store::{Store, layout};
use crate::stream::Lsn;

/// The steps, in their order.
const STEPS: [&str; 8] = ["stop", "slot", "mark", "standby", "read", "handover", "marker", "remove"];

/// The steps of net changes.
const OF_NET: [&str; 10] = ["stop", "slot", "mark", "end", "start", "changes", "read", "handover", "marker", "remove"];

/// The steps of a way.
pub(super) fn steps_of(way: &Way) -> &'static [&'static str] {
    if *way == Way::Net { &OF_NET } else { &STEPS }
}

/// A repair at work.
pub(super) struct Repair<'a> {
    pub(super) store: &'a Store,
    pub(super) config: &'a Config,
    pub(super) prepared: &'a Prepared,
    pub(super) standby: Standby<'a>,
    pub(super) to: Connection,
    pub(super) folder: Folder,
    pub(super) journal: Journal,
    /// Whether topics are compared with their tables.
    pub(super) compares: bool,
    /// The standby's server, while this process runs one.
    pub(super) server: Option<Started>,
}

impl Repair<'_> {
    /// Takes the steps that are not done; gives what it has failed with.
    ///
    /// # Errors
    /// A journal that cannot be written.
    pub(super) async fn steps(&mut self, report: &mut Report) -> Result<Option<Error>> {
        let mut failed = None;
        for step in steps_of(&self.journal.way).iter().copied() {
            if let Some(done) = self.journal.steps.get(step) {
                report.done(step, done);
                continue;
            }
            if failed.is_some() {
                report.not_done(step, State::Skipped, "a step before it failed".to_owned());
                continue;
            }
            let begun = Instant::now();
            match self.take(step).await {
                Ok(Proof { words, differences, notes }) => {
                    let done = Done { seconds: begun.elapsed().as_secs_f64(), proof: words, differences, notes };
                    report.done(step, &done);
                    self.journal.steps.insert(step.to_owned(), done);
                    self.save()?;
                }
                Err(error) => {
                    report.not_done(step, State::Failed, error.to_string());
                    failed = Some(error);
                }
            }
        }
        Ok(failed)
    }

    async fn take(&mut self, step: &str) -> Result<Proof> {
        match step {
            "stop" => self.stop().await,
            "slot" => self.slot().await,
            "mark" => self.mark().await,
            "standby" => self.make_standby().await,
            "end" => self.end().await,
            "start" => self.start().await,
            "changes" => self.changes().await,
            "read" => self.read().await,
            "handover" => self.hand_over().await,
            "marker" => self.marker().await,
            _ => self.remove().await,
        }
    }

    pub(super) fn save(&self) -> Result<()> {
        self.folder.save(&self.journal)
    }

    async fn stop(&mut self) -> Result<Proof> {
        let own = &self.prepared.own;
        connectors::stop(&self.prepared.workers, own).await?;
        let offsets = patiently(WORKERS, || self.prepared.workers.offsets(&own.name)).await?;
        let position = Position::of(&own.name, &own.prefixes.1, &offsets)?;
        let before = self.prepared.position;
        let mut sql = self.prepared.primary.server.sql().await?;
        // Without a slot it has read nothing: then it only wrote down what it had sent before.
        let has_read = slot_state(&mut sql, own, before).await? != self.prepared.slot
            || matches!(self.prepared.slot, SlotState::Later(_));
        if position.committed != before.committed && has_read {
            let message = format!(
                "its offset went from {} to {} while its slot was made again: what was missed before the new slot lies in between",
                before.committed, position.committed
            );
            clear_folder(&self.folder.path)?;
            return Err(Error::new(Kind::Fenced, message).hint(format!(
                "give it the offset {{\"lsn\": {}}} again while it is stopped (PATCH …/offsets), drop its slot, and run this again",
                before.committed.0
            )));
        }
        self.journal.position = Some(position);
        self.journal.net.offset = offset_of(&own.prefixes.1, &offsets);
        Ok(format!("all commits up to {} were sent", position.committed).into())
    }

    pub(super) fn position(&self) -> Position {
        self.journal.position.unwrap_or(self.prepared.position)
    }

    async fn slot(&mut self) -> Result<Proof> {
        let own = &self.prepared.own;
        let mut sql = self.prepared.primary.server.sql().await?;
        let state = slot_state(&mut sql, own, self.position()).await?;
        let (is_ours, mut dropped) = (self.journal.makes_slot, "");
        let at = match state {
            SlotState::Later(at) if is_ours => at,
            SlotState::Sound => {
                let message = format!("the slot {} has come back, with all that the connector wants", own.slot());
                return Err(Error::new(Kind::Fenced, message).hint("let the connector run"));
            }
            state => {
                if state != SlotState::Missing {
                    dropped = ", in place of the one that was lost";
                    drop_slot(&mut sql, own.slot()).await?;
                }
                self.journal.makes_slot = true;
                self.save()?;
                slots::create(&mut sql, own).await?
            }
        };
        self.journal.slot = Some(at);
        Ok(format!("{} begins at {at}{dropped}", own.slot()).into())
    }

    async fn mark(&mut self) -> Result<Proof> {
        let of = &self.prepared.scratch;
        let mut notes = Vec::new();
        if of.marker.is_none() && marker::make_topic(&self.to, of).await? {
            notes.push(format!("the topic {} is new: the markers of {} come to it", marker::messages(of), of.name));
        }
        if self.journal.ends.is_none() {
            self.journal.ends = Some(marker::ends(&self.to, of).await?);
            self.save()?;
        }
        let mark = match self.journal.mark.clone() {
            Some(mark) => mark,
            None => {
                let mark = self.write_mark().await?;
                self.journal.mark = Some(mark.clone());
                self.save()?;
                mark
            }
        };
        let slot = self.journal.slot.unwrap_or_default();
        let (end, at) =
            Box::pin(archived(self.store, (self.journal.system_id, self.journal.timeline), &mark, slot)).await?;
        self.journal.gate = Some((end, at));
        let words = match self.foreseen(slot, end).await {
            Err(error) if matches!(error.kind(), Kind::Incomplete | Kind::Unsupported) => {
                return Err(Box::pin(self.take_back(error)).await);
            }
            words => words?,
        };
        Ok(Proof {
            words: format!("its commit ends at {end}, and is in the archive; {words}"),
            differences: Vec::new(),
            notes,
        })
    }

    /// Writes a marker of which the token was written down before.
    async fn write_mark(&mut self) -> Result<Mark> {
        let token = self.journal.next_token();
        self.save()?;
        let xid = slots::write_marker(&self.prepared.primary.server, &self.prepared.scratch, &token).await?;
        Ok(Mark { token, xid })
    }

    /// Looks once more at all of the log that the standby will get, and counts what was missed.
    async fn foreseen(&mut self, slot: Lsn, end: Lsn) -> Result<String> {
        let primary = &self.prepared.primary;
        let log = patiently(PATIENCE, || Log::open(self.store, Some(self.journal.system_id))).await?.patient();
        let commits = Commits::open(self.store, &log, Some(self.journal.timeline)).await?;
        let committed = self.position().committed;
        let began = log.ancestors(self.journal.timeline).await?.last().map(|left| left.at);
        if let Some(why) = elsewhere(&commits, began, committed).await? {
            return Err(Error::new(Kind::Unsupported, why).hint("let the connector begin with a snapshot"));
        }
        let missed = missed(&commits, committed..slot, primary.database).await?;
        if let Some(hole) = missed.holes.first() {
            return Err(Error::new(
                Kind::Incomplete,
                format!("the archive has not all of the log behind its offset: {hole}"),
            ));
        }
        let words = format!("{} commits were missed up to the new slot", missed.commits);
        self.journal.missed = Some(missed);
        if self.journal.way == Way::Net {
            return Ok(words);
        }
        let found = conflicts(&commits, &self.journal.anchor, end, (primary.database, &primary.harmless)).await?;
        if let Some(first) = found.first_real {
            let message = format!(
                "a clean-up of the catalog with the file {} at {} would take the slot of a standby away",
                first.relation, first.lsn
            );
            return Err(Error::new(Kind::Unsupported, message).hint("let the connector begin with a snapshot"));
        }
        Ok(words)
    }

    async fn make_standby(&mut self) -> Result<Proof> {
        let gate = self.gate()?.0;
        let primary = &self.prepared.primary;
        if self.journal.restores {
            // Of an earlier run: it may stand behind the place where its slot has to be made.
            connectors::stop(&self.prepared.workers, &self.prepared.scratch).await?;
            self.standby.remove()?;
        }
        self.journal.restores = true;
        self.save()?;
        let log = patiently(PATIENCE, || Log::open(self.store, Some(self.journal.system_id))).await?.patient();
        let backup = Some(self.journal.anchor.backup.clone());
        let restore = Restore::planned(self.store, &log, (self.journal.timeline, gate), backup).await?;
        let made = self.standby.made();
        restore.check(&made, false)?;
        let fetching = LogSource::of(&self.config.archive, true)?.gated();
        let (_, foreseen) = restore.bring(self.store, (&log, &made), fetching, &self.journal.id).await?;
        let limits = limits_of(&self.standby.scratch.into, &foreseen)?;
        self.journal.limits = limits.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        self.standby.gate(self.journal.anchor.gate, &primary.harmless)?;
        self.server = Some(self.standby.start(&self.journal.limits, &primary.server, false).await?);
        let from = self.standby.make_slot(&self.journal.anchor, gate, &primary.harmless).await?;
        let committed = self.position().committed;
        if from > committed {
            let message =
                format!("the slot of the standby decodes from {from}, and what was missed begins at {committed}");
            let error = Error::new(Kind::Unsupported, message)
                .hint("its base backup lies too near, and nothing was read: run this again");
            return Err(Box::pin(self.take_back(error)).await);
        }
        self.journal.decodes_from = Some(from);
        Ok(format!("{}; its slot decodes from {from}, before {committed}", restore.words()).into())
    }

    pub(super) fn gate(&self) -> Result<(Lsn, i64)> {
        self.journal.gate.ok_or_else(|| Error::new(Kind::Internal, "no marker was written"))
    }

    /// Starts the standby, if this run has not.
    pub(super) async fn serve(&mut self) -> Result<()> {
        if self.server.is_none() {
            let (primary, is_changed) = (&self.prepared.primary.server, self.journal.way == Way::Net);
            self.server = Some(self.standby.start(&self.journal.limits, primary, is_changed).await?);
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<Proof> {
        if let Err(error) = self.serve().await {
            // A primary that is away says nothing of it.
            if error.kind() == Kind::Unsupported {
                self.make_standby_again().await?;
            }
            return Err(error);
        }
        let (workers, own, there) = (&self.prepared.workers, &self.prepared.own, &self.prepared.scratch);
        let was_stopped = self.prepared.state.as_ref().is_some_and(Connected::is_stopped);
        self.journal.restarts += u32::from(self.journal.reads && !was_stopped);
        self.journal.reads = true;
        // A run with another pipeline file has other keys to put back.
        self.journal.changed = Some(noted(self.journal.changed.take(), own, there));
        self.save()?;
        patiently(WORKERS, || workers.configure(&there.name, &there.config)).await?;
        let (topic, restarts) = match Box::pin(self.to_the_end()).await {
            Ok(read) => read,
            Err(error) => {
                if matches!(self.standby.slot_is_lost().await, Ok(Some(_))) {
                    self.make_standby_again().await?;
                }
                return Err(error);
            }
        };
        self.journal.restarts += restarts;
        let compared = self.compared().await?;
        let mut differences = match self.journal.restarts {
            0 => Vec::new(),
            times => vec![format!(
                "the connector was begun again {times} times while it read: what it had sent by then, and was not acknowledged, may have come again"
            )],
        };
        differences.extend(compared.differences);
        let and = if compared.words.is_empty() { "" } else { "; " };
        let words = format!(
            "the marker came to {topic}, and its offset is written down: all that was committed before it has come{and}{}",
            compared.words
        );
        Ok(Proof { words, differences, notes: compared.notes })
    }

    async fn to_the_end(&self) -> Result<(String, u32)> {
        let nothing = || Error::new(Kind::Internal, "no marker was written");
        let Journal { mark, ends, decodes_from, slot, net, .. } = &self.journal;
        let mark = mark.as_ref().ok_or_else(nothing)?;
        // The changes have a marker of their own, with the same text.
        let of_net = net.mark.map(|(xid, end)| (Mark { xid, ..mark.clone() }, end));
        let (mark, gate) = of_net.unwrap_or((mark.clone(), self.gate()?.0));
        let reading = Reading {
            prepared: self.prepared,
            standby: &self.standby,
            to: &self.to,
            ends: ends.as_ref().ok_or_else(nothing)?,
            mark: &mark,
            gate,
            slots: (decodes_from.unwrap_or_default(), slot.unwrap_or_default()),
        };
        reading.to_the_end().await
    }

    async fn hand_over(&mut self) -> Result<Proof> {
        let (workers, own) = (&self.prepared.workers, &self.prepared.own);
        let (end, at) = self.gate()?;
        if !self.journal.has_offset {
            connectors::stop(workers, own).await?;
            let mut sql = self.prepared.primary.server.sql().await?;
            let state = slot_state(&mut sql, own, self.position()).await?;
            if matches!(state, SlotState::Missing | SlotState::Lost) {
                let message = format!(
                    "the new slot {} {}: what comes behind the marker is missed again",
                    own.slot(),
                    state.words()
                );
                let error = Error::new(Kind::Fenced, message)
                    .hint("run this again: it begins anew from what has been read; does max_slot_wal_keep_size suffice meanwhile?");
                if self.journal.net.is_told {
                    // All up to the marker has been read: what was deleted since is at neither end otherwise.
                    connectors::go_on_from(workers, own, end, at).await?;
                    self.journal.net.is_told = false;
                    self.save()?;
                }
                return Err(Box::pin(self.take_back(error)).await);
            }
            advance(&mut sql, own.slot(), end).await?;
            connectors::go_on_from(workers, own, end, at).await?;
            self.own_config().await?;
            self.journal.has_offset = true;
            self.save()?;
        }
        self.own_config().await?;
        connectors::run(workers, own).await?;
        Ok(format!("slot and offset stand at {end}, its config is as it was, and it runs").into())
    }

    /// Gives the connector the config back that it had.
    pub(super) async fn own_config(&self) -> Result<()> {
        let (workers, own) = (&self.prepared.workers, &self.prepared.own);
        let Some(its) = patiently(WORKERS, || workers.config(&own.name)).await? else {
            return Err(Error::new(Kind::Fenced, format!("the connector {} is gone", own.name)));
        };
        let mut wanted = its.clone();
        put_back(&mut wanted, self.journal.changed.as_ref().unwrap_or(&Default::default()));
        if wanted == its {
            return Ok(());
        }
        patiently(WORKERS, || workers.configure(&own.name, &wanted)).await
    }

    async fn marker(&mut self) -> Result<Proof> {
        if self.journal.after.is_none() {
            self.journal.after = Some(self.write_mark().await?);
            self.save()?;
        }
        let of = &self.prepared.scratch;
        let ends = self.journal.ends.clone().unwrap_or_default();
        let after = self.journal.after.clone().map(|mark| mark.token).unwrap_or_default();
        let topic = marker::seen(&self.to, of, (&mut ends.clone(), &after), marker::COMES).await?;
        let before = self.journal.mark.clone().map(|mark| mark.token).unwrap_or_default();
        let times = marker::times(&self.to, of, (&ends, &before)).await?;
        let differences = match times {
            1 => Vec::new(),
            times => vec![format!(
                "the marker before the handover is {times} times in the topics: its transaction, and perhaps those before it, came again"
            )],
        };
        Ok(Proof {
            words: format!("it came to {topic} from the primary, and the one before it is there once"),
            differences,
            notes: Vec::new(),
        })
    }

    pub(super) async fn remove(&mut self) -> Result<Proof> {
        if let Some(server) = self.server.take() {
            server.stop().await?;
        }
        self.standby.remove()?;
        let hold = layout::hold(self.journal.system_id, &self.journal.id);
        if let Err(error) = self.store.delete(&hold).await {
            tracing::warn!(%error, name = self.journal.id, "the hold of this repair cannot be removed: retention waits for it for hours");
        }
        Ok(format!("{} is gone", self.standby.scratch.into.display()).into())
    }
}

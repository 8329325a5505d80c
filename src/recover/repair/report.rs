//! What the repair of a slot says: what was missed, which way brings it back, and each step with its proof.

use serde::Serialize;

use super::lost::{CommitShown, Conflicts, Missed};
use super::position::Position;
use super::prepare::Prepared;
use super::way::Way;
use crate::error::{Error, Kind, Result};
use crate::recover::journal::Done;
use crate::recover::report::{State, StepShown};

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The connector.
    pub connector: String,
    /// Its slot.
    pub slot: String,
    /// What has become of that, in words.
    pub slot_state: String,
    /// Where the connector stood.
    pub offset: Position,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// The version of the primary as `server_version_num` has it.
    pub server_version: u32,
    /// What consumers missed: up to the end of the archive, and once it is made, up to the new slot.
    pub missed: Missed,
    /// The base backup from which the standby is made.
    pub backup: Option<String>,
    /// Clean-ups of catalogs that a standby's slot would come upon.
    pub conflicts: Conflicts,
    /// Which way is taken.
    pub way: Way,
    /// Why.
    pub why: String,
    /// The steps, in their order.
    pub steps: Vec<StepShown>,
    /// What is not as it should be, or not known.
    pub differences: Vec<String>,
    /// Whether all is done and proven, without a difference, or nothing was to be done.
    pub ok: bool,
    /// What is to be known besides.
    pub notes: Vec<String>,
}

impl Report {
    /// That of a repair of which no step is shown yet.
    pub fn new(prepared: &Prepared, dry_run: bool) -> Self {
        let journal = prepared.journal.as_ref();
        let missed = journal.and_then(|journal| journal.missed.clone()).unwrap_or_else(|| prepared.missed.clone());
        Self {
            connector: prepared.own.name.clone(),
            slot: prepared.own.slot().to_owned(),
            slot_state: prepared.slot.words(),
            offset: prepared.position,
            dry_run,
            server_version: prepared.primary.version,
            missed,
            backup: journal.map(|journal| journal.anchor.backup.clone()),
            conflicts: prepared.conflicts.clone(),
            way: prepared.chosen.way.clone(),
            why: prepared.chosen.why.clone(),
            steps: Vec::new(),
            differences: Vec::new(),
            ok: false,
            notes: prepared.notes.clone(),
        }
    }

    /// Adds a step that is done.
    pub fn done(&mut self, step: &'static str, done: &Done) {
        let Done { seconds, proof, differences, notes } = done;
        let (seconds, proof) = (*seconds, proof.clone());
        self.steps.push(StepShown { step, state: State::Done, seconds, expected_seconds: None, proof });
        self.differences.extend(differences.iter().cloned());
        self.notes.extend(notes.iter().cloned());
    }

    /// Adds one that is not.
    pub fn not_done(&mut self, step: &'static str, state: State, proof: String) {
        self.steps.push(StepShown { step, state, seconds: 0.0, expected_seconds: None, proof });
    }

    /// Closes it.
    pub fn close(&mut self) {
        let is_done = self.steps.iter().all(|step| step.state == State::Done) && self.differences.is_empty();
        self.ok = !self.dry_run && is_done && self.way != Way::None;
    }

    /// Whether all is done and proven.
    ///
    /// # Errors
    /// [`Kind::Incomplete`] where there are differences.
    pub fn verdict(&self) -> Result<()> {
        match self.differences.first() {
            Some(first) if !self.dry_run => {
                let message = format!("all steps are done, with {} difference(s): {first}", self.differences.len());
                Err(Error::new(Kind::Incomplete, message).hint("each is listed above, with what to look at"))
            }
            _ => Ok(()),
        }
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let heading = if self.dry_run { "Plan (nothing is done)" } else { "Repair" };
        let mut text = format!("{heading} of the slot {} of the connector {}\n", self.slot, self.connector);
        let mut line = |word: &str, words: &str| text.push_str(&format!("  {word:<9} {words}\n"));
        line("slot", &self.slot_state);
        let within = if self.offset.is_within() {
            format!(", and of the next one up to {}", self.offset.processed)
        } else {
            String::new()
        };
        line("offset", &format!("all commits up to {} were sent{within}", self.offset.committed));
        let Missed { from, to, commits, first, last, holes } = &self.missed;
        line("missed", &format!("{commits} commits of its database between {from} and {to}"));
        for (word, commit) in [("first", first), ("last", last)] {
            if let Some(CommitShown { lsn, end, xid, time }) = commit {
                line(word, &format!("transaction {xid} of {time}, {lsn} to {end}"));
            }
        }
        line("log", &if holes.is_empty() { "the archive has all of it".to_owned() } else { holes.join("; ") });
        let way = match self.way {
            Way::Nothing => "nothing is to be done",
            Way::Standby => "the connector itself reads it from a scratch standby",
            Way::Net => "net changes: the connector itself reads from a scratch server what differs between both ends",
            Way::None => "NONE",
        };
        line("way", &format!("{way}: {}", self.why));
        for step in &self.steps {
            let (state, seconds) = match step.state {
                State::Planned => ("to do", String::new()),
                State::Done => ("done", format!(" ({:.1} s)", step.seconds)),
                State::Skipped => ("left out", String::new()),
                State::Failed => ("FAILED", String::new()),
            };
            line(step.step, &format!("{state}{seconds}: {}", step.proof));
        }
        self.differences.iter().for_each(|difference| line("differs", difference));
        self.notes.iter().for_each(|note| line("note", note));
        text
    }
}

//! What a recovery says at its end, whichever way it ended: each step with its proof, and what is not as it was or not known.

use std::path::Path;

use serde::Serialize;

use super::journal::{Commit, Done, Journal, Records};
use crate::error::{Error, Kind, Result};
use crate::stream::Lsn;
use crate::time;

/// Where a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is to be done.
    Planned,
    /// It is done, now or by an earlier run.
    Done,
    /// It was not asked for, or its part is not in the pipeline file.
    Skipped,
    /// It is not done.
    Failed,
}

/// A step as it is shown.
#[derive(Debug, Serialize)]
pub struct StepShown {
    /// Its name.
    pub step: &'static str,
    /// Where it is.
    pub state: State,
    /// How long it took.
    pub seconds: f64,
    /// How long it will take, of one that is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_seconds: Option<f64>,
    /// What shows that it is done, or why it is not.
    pub proof: String,
}

/// The commit as it is shown.
#[derive(Debug, Serialize)]
pub struct CommitShown {
    /// Where its record begins, and where it ends.
    pub lsn: Lsn,
    /// See above.
    pub end: Lsn,
    /// Its transaction.
    pub xid: u32,
    /// When it was.
    pub time: String,
}

impl From<&Commit> for CommitShown {
    fn from(commit: &Commit) -> Self {
        Self { lsn: commit.lsn, end: commit.end, xid: commit.xid, time: time::rfc3339_micros(commit.at) }
    }
}

/// A connector as it is shown.
#[derive(Debug, Serialize)]
pub struct ConnectorShown {
    /// Its name.
    pub name: String,
    /// Its slot.
    pub slot: String,
    /// Where that begins.
    pub lsn: Option<Lsn>,
    /// Where the connector is: `running`, `stopped` (it has its offset), `planned`.
    pub state: &'static str,
    /// Whether the row, or message, that was written after the recovery came to its topic.
    pub marker_seen: bool,
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `--to`, as it was typed.
    pub to: String,
    /// What that has come to.
    pub commit: CommitShown,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// The steps, in their order.
    pub steps: Vec<StepShown>,
    /// What was sent of archived records.
    pub records: Option<Records>,
    /// What became of consumer groups.
    pub groups: Vec<serde_json::Value>,
    /// The connectors.
    pub connectors: Vec<ConnectorShown>,
    /// What is not as it was, or not known.
    pub differences: Vec<String>,
    /// How long all of it took, or will take if nothing was done.
    pub seconds: f64,
    /// Whether all that was asked for is done and proven, without a difference.
    pub ok: bool,
    /// What is to be known besides.
    pub notes: Vec<String>,
    /// The connectors as resources that are to be applied (YAML).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<String>,
}

impl Report {
    /// That of a recovery of which nothing is shown yet.
    pub fn new(to: &str, commit: &Commit, dry_run: bool) -> Self {
        Self {
            to: to.to_owned(),
            commit: commit.into(),
            dry_run,
            steps: Vec::new(),
            records: None,
            groups: Vec::new(),
            connectors: Vec::new(),
            differences: Vec::new(),
            seconds: 0.0,
            ok: false,
            notes: Vec::new(),
            resources: None,
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

    /// Adds one that is to be done.
    pub fn planned(&mut self, step: &'static str, (expected, proof): (f64, String)) {
        let state = State::Planned;
        self.steps.push(StepShown { step, state, seconds: 0.0, expected_seconds: Some(expected), proof });
    }

    /// Adds one that waits until somebody has applied the connectors' resources.
    pub fn not_applied(&mut self, step: &'static str, resources: &Path) {
        let words = format!("its connectors are to be applied first: {}", resources.display());
        self.not_done(step, State::Planned, words);
        self.differences.push(format!(
            "the connectors are not made yet: apply {}, and run the same command again: it looks for their markers",
            resources.display()
        ));
    }

    /// Closes it.
    pub fn close(&mut self, journal: &Journal) {
        self.records = journal.records;
        self.groups.clone_from(&journal.groups);
        let took = |step: &StepShown| step.expected_seconds.filter(|_| self.dry_run).unwrap_or(step.seconds);
        self.seconds = self.steps.iter().map(took).sum();
        let has_failed = self.steps.iter().any(|step| step.state == State::Failed);
        self.ok = !has_failed && !self.dry_run && self.differences.is_empty();
    }

    /// Whether all is done and proven.
    ///
    /// # Errors
    /// [`Kind::Incomplete`] where there are differences.
    pub fn verdict(&self) -> Result<()> {
        if self.differences.is_empty() || self.dry_run {
            return Ok(());
        }
        let count = self.differences.len();
        let message = format!(
            "all steps are done, with {count} difference{}: {}",
            if count == 1 { "" } else { "s" },
            self.differences[0]
        );
        Err(Error::new(Kind::Incomplete, message).hint("each is listed above, with what to look at"))
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let CommitShown { lsn, end, xid, time } = &self.commit;
        let heading = if self.dry_run { "Plan (nothing is done)" } else { "Recovery" };
        let mut text = format!("{heading} to {}\n  commit    transaction {xid} of {time}, {lsn} to {end}\n", self.to);
        for step in &self.steps {
            let state = match step.state {
                State::Planned => "to do",
                State::Done => "done",
                State::Skipped => "left out",
                State::Failed => "FAILED",
            };
            let seconds = match (step.state, step.expected_seconds) {
                (State::Done, _) => format!(" ({:.1} s)", step.seconds),
                (_, Some(expected)) => format!(" (about {expected:.0} s)"),
                _ => String::new(),
            };
            text.push_str(&format!("  {:<9} {state}{seconds}: {}\n", step.step, step.proof));
        }
        let about = if self.dry_run { "about " } else { "" };
        text.push_str(&format!("  time      {about}{:.0} s\n", self.seconds));
        if let Some(Records { within, out, uncertain }) = self.records {
            text.push_str(&format!(
                "  records   {within} sent, {out} of later transactions left out, {uncertain} uncertain\n"
            ));
        }
        for ConnectorShown { name, slot, lsn, state, marker_seen } in &self.connectors {
            let lsn = lsn.map_or_else(|| "not made yet".to_owned(), |lsn| lsn.to_string());
            let seen = if *marker_seen { ", marker seen" } else { "" };
            text.push_str(&format!("  connector {name}: {state}, slot {slot} from {lsn}{seen}\n"));
        }
        for (word, lines) in [("differs", &self.differences), ("note", &self.notes)] {
            for line in lines {
                text.push_str(&format!("  {word:<9} {line}\n"));
            }
        }
        if let Some(resources) = &self.resources {
            text.push_str(&format!("\n{resources}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_done_without_a_difference_is_well() {
        let commit = Commit { lsn: Lsn(0x10), end: Lsn(0x20), xid: 7, at: 0, timeline: 1, system_id: 1 };
        let journal = Journal::begin("now", "p", commit.clone()).expect("a journal");
        let done =
            |differences: Vec<String>| Done { seconds: 1.0, proof: "p".to_owned(), differences, notes: Vec::new() };
        let report = |change: &dyn Fn(&mut Report)| {
            let mut report = Report::new("now", &commit, false);
            change(&mut report);
            report.close(&journal);
            report
        };
        assert!(report(&|report| report.done("postgres", &done(vec![]))).ok);
        let differs = report(&|report| report.done("postgres", &done(vec!["x".to_owned()])));
        assert!(!differs.ok && differs.verdict().expect_err("it differs").exit_code() == 3);
        assert!(!report(&|report| report.not_done("slots", State::Failed, "why".to_owned())).ok);
        let json = serde_json::to_value(&differs).expect("JSON");
        assert_eq!(json["commit"]["end"], "0/20");
        assert_eq!((&json["steps"][0]["state"], &json["differences"][0]), (&"done".into(), &"x".into()));
    }
}

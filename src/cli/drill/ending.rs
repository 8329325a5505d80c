//! How drills are asked for and told.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::human;
use crate::cli::output::{print, print_json};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::escape::one_line;
use crate::recover::drill::Report;

/// The seed that is given, or a random one.
pub(super) fn seed(given: Option<u64>) -> Result<u64> {
    if let Some(seed) = given {
        return Ok(seed);
    }
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::new(Kind::Unavailable, format!("the system gives no random bytes: {error}")))?;
    Ok(u32::from_le_bytes(bytes).into())
}

/// The directory below which a drill works.
pub(super) fn scratch(given: Option<&PathBuf>) -> PathBuf {
    given.cloned().or_else(|| std::env::var_os("TMPDIR").map(PathBuf::from)).unwrap_or("/var/tmp".into())
}

/// Waits until the process is told to stop; says so, and what became of what was made.
pub(super) async fn stopped(what: &str) -> Error {
    let listen = |kind| signal(kind).map_err(|source| Error::io(source, "cannot listen for signals"));
    let (mut terminate, mut interrupt) = match (listen(SignalKind::terminate()), listen(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => return error,
    };
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    Error::new(Kind::Interrupted, format!("the drill was stopped; {what}"))
}

/// A drill that has ended, as it is told.
pub(super) struct Told {
    /// Its report.
    pub(super) json: Value,
    /// The same for people.
    pub(super) text: String,
    /// Its exit code, as an error.
    pub(super) verdict: Result<()>,
}

impl Told {
    /// Tells of a drill.
    ///
    /// # Errors
    /// A report that is no JSON.
    pub(super) fn of<T: Serialize>(
        (report, error): (&Report<T>, Option<Error>),
        text: impl FnOnce(&Report<T>) -> String,
    ) -> Result<Self> {
        let json = serde_json::to_value(report).or_err(Kind::Internal, || "cannot write a report".to_owned())?;
        let (text, findings) = (whole(report, &text(report)), report.findings.len() as u64);
        Ok(Self { json, text, verdict: verdict(findings, error) })
    }

    /// Prints it, and ends the command.
    ///
    /// # Errors
    /// Its exit code.
    pub(super) fn end(self, json: bool) -> Result<()> {
        if json {
            print_json(&self.json)?
        } else {
            print(&self.text)?
        }
        self.verdict
    }
}

/// The exit code of a drill: 3 where it has found something, that of the error where it could not be carried out.
fn verdict(findings: u64, error: Option<Error>) -> Result<()> {
    match (findings, error) {
        (0, None) => Ok(()),
        (0, Some(error)) => Err(error),
        (count, error) => {
            let error = error.map(|error| format!("; and {error}")).unwrap_or_default();
            Err(Error::new(Kind::Incomplete, format!("the drill has {}{error}", human::many(count, "finding"))))
        }
    }
}

/// The text of a report: what was found, what was tried, what was left out, how it ended.
fn whole<T>(report: &Report<T>, about: &str) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        text += &format!(
            "found: {}\n  in       {}\n  because  {}\n",
            one_line(&finding.about),
            finding.part.name(),
            one_line(&finding.detail)
        );
    }
    text += about;
    report.skipped.iter().for_each(|skipped| text += &format!("left out: {skipped}\n"));
    text += match (report.ok, report.findings.is_empty()) {
        (true, _) => "the drill passed\n",
        (false, true) => "the drill was not carried out to its end: nothing is known\n",
        (false, false) => "the drill did not pass\n",
    };
    text
}

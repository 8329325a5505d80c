//! `tidelog ls --commits`: what the database committed, and where each commit ends.

use std::fmt::Write as _;
use std::ops::ControlFlow;

use serde::Serialize;

use super::chosen;
use crate::cli::{human, output};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::manifest;
use crate::restore::Log;
use crate::restore::commits::{Commits, Hole, Moment, Wanted};
use crate::segment::wal::{Cleanup, Ended, Running, SlotRecord, Transaction, What};
use crate::store::Store;
use crate::stream::{Lsn, StreamId};
use crate::time;

/// Which commits are listed.
#[derive(Debug, clap::Args)]
pub(super) struct CommitsArgs {
    /// List the commits of the Postgres log instead of streams, in its order: xid, time, and the position where the commit ends
    #[arg(long)]
    pub(super) commits: bool,
    /// Only commits at or after this time (RFC 3339, now, -90m, -2h, -7d), or with a record behind this position (16/B374D848)
    #[arg(long, value_name = "TIME|LSN", allow_hyphen_values = true, requires = "commits")]
    from: Option<String>,
    /// Only commits before this time, or that end at this position or before it
    #[arg(long, value_name = "TIME|LSN", allow_hyphen_values = true, requires = "commits")]
    to: Option<String>,
    /// Only the last commit at or before this time or position: the one that a recovery to it ends with
    #[arg(long, value_name = "TIME|LSN", allow_hyphen_values = true, requires = "commits", conflicts_with_all = ["from", "to", "slot_records"])]
    at: Option<String>,
    /// The timeline to follow [default: the newest]
    #[arg(long, value_name = "N", requires = "commits")]
    timeline: Option<u32>,
    /// List among them what decides whether a logical slot of a standby lives: running transactions, and cleanups of catalogs
    #[arg(long, requires = "commits")]
    slot_records: bool,
}

/// Output is handed on in pieces of this size.
const PIECE: usize = 64 << 10;

/// A record, as JSON has it.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Row<'a> {
    Commit {
        xid: u32,
        /// Where its record begins, and where it ends.
        lsn: Lsn,
        end: Lsn,
        time: String,
        #[serde(skip_serializing_if = "<[u32]>::is_empty")]
        subxids: &'a [u32],
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        prepared: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        database: Option<u32>,
    },
    RunningXacts {
        lsn: Lsn,
        end: Lsn,
        running: u32,
        next_xid: u32,
        oldest_running_xid: u32,
        latest_completed_xid: u32,
        overflowed: bool,
    },
    CatalogCleanup {
        lsn: Lsn,
        end: Lsn,
        horizon: u32,
        database: u32,
        relation: u32,
    },
}

impl<'a> Row<'a> {
    fn of(ended: &'a Ended) -> Option<Self> {
        let (lsn, end) = (ended.start, ended.end_with_padding());
        Some(match &ended.what {
            What::Commit(Transaction { xid, subxids, is_prepared, database }) => Self::Commit {
                xid: *xid,
                lsn,
                end,
                time: time::rfc3339_micros(ended.at),
                subxids,
                prepared: *is_prepared,
                database: *database,
            },
            What::OfSlots(SlotRecord::Running(running)) => {
                let Running { running, next_xid, oldest_running_xid, latest_completed_xid, is_overflowed } = *running;
                let overflowed = is_overflowed;
                Self::RunningXacts { lsn, end, running, next_xid, oldest_running_xid, latest_completed_xid, overflowed }
            }
            What::OfSlots(SlotRecord::Cleanup(Cleanup { horizon, database, relation })) => {
                Self::CatalogCleanup { lsn, end, horizon: *horizon, database: *database, relation: *relation }
            }
            _ => return None,
        })
    }

    /// The row as a line for people.
    fn write_line(&self, into: &mut String) -> std::fmt::Result {
        match self {
            Self::Commit { xid, lsn, end, time, subxids, prepared, .. } => {
                let mut notes = Vec::new();
                if *prepared {
                    notes.push("was prepared".to_owned());
                }
                if !subxids.is_empty() {
                    notes.push(human::many(subxids.len() as u64, "subtransaction"));
                }
                let end = end.to_string();
                let line = format!("{xid:>10}  {time:<27}  {end:<17}  {:<17}  {}", lsn.to_string(), notes.join(", "));
                writeln!(into, "{}", line.trim_end())
            }
            Self::RunningXacts { lsn, end, running, next_xid, oldest_running_xid, .. } => {
                let (end, lsn) = (end.to_string(), lsn.to_string());
                let running = human::many(u64::from(*running), "running transaction");
                writeln!(
                    into,
                    "{:>10}  {:<27}  {end:<17}  {lsn:<17}  {running}, oldest {oldest_running_xid}, next {next_xid}",
                    "–", "–"
                )
            }
            Self::CatalogCleanup { lsn, end, horizon, database, relation } => {
                let (end, lsn) = (end.to_string(), lsn.to_string());
                writeln!(
                    into,
                    "{:>10}  {:<27}  {end:<17}  {lsn:<17}  catalog cleanup up to xid {horizon}: file {relation} of database {database}",
                    "–", "–"
                )
            }
        }
    }
}

#[derive(Debug, Serialize)]
struct Archived {
    start: Lsn,
    end: Lsn,
}

#[derive(Debug, Serialize)]
struct GapRow {
    timeline: u32,
    start: Lsn,
    end: Lsn,
    reason: &'static str,
}

/// What stands before the commits.
#[derive(Debug, Serialize)]
struct Head {
    stream: String,
    timeline: u32,
    /// What of the way to the timeline is archived, gaps included.
    archived: Archived,
    complete_through: Option<String>,
    gaps: Vec<GapRow>,
}

/// A bound as it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    Time(i64),
    Lsn(Lsn),
}

impl Bound {
    /// `up`: a time finer than a microsecond is rounded up.
    fn parse(text: &str, option: &str, up: bool) -> Result<Self> {
        let named = |error: Error| error.context(option);
        if text.contains('/') {
            return text.parse().map(Self::Lsn).map_err(named);
        }
        time::parse_micros(text, time::now(), up).map(Self::Time).map_err(named)
    }
}

/// Runs the command.
pub(super) async fn run(args: &CommitsArgs, streams: &[String], is_json: bool, store: &Store) -> Result<()> {
    let at = args.at.as_deref().map(|text| Bound::parse(text, "--at", false)).transpose()?;
    let (from, to) = bounds(args)?;
    let log = Log::open(store, system(store, streams).await?).await?;
    let commits = Commits::open(store, &log, args.timeline).await?;
    if let Some(at) = at {
        let moment = match at {
            Bound::Time(us) => Moment::Time(us),
            Bound::Lsn(lsn) => Moment::Lsn(lsn),
        };
        let found = commits.last(moment).await?;
        let mut printer = Printer::begin(is_json, &head(&log, &commits, &[]).await?)?;
        printer.add(&found)?;
        return printer.end(None);
    }
    let wanted = wanted(from, to);
    let holes = commits.holes(&wanted).await?;
    let mut printer = Printer::begin(is_json, &head(&log, &commits, &holes).await?)?;
    let mut printed = Ok(());
    let walked = commits
        .each(&wanted, args.slot_records, |ended| {
            match printer.add(ended) {
                Ok(true) => return ControlFlow::Continue(()),
                Ok(false) => {}
                Err(error) => printed = Err(error),
            }
            ControlFlow::Break(())
        })
        .await;
    printed?;
    printer.end(walked.as_ref().err())?;
    walked?;
    tell_of_what_is_not_known(&commits, &holes, (from, to))
}

/// The system of which the log is meant.
async fn system(store: &Store, streams: &[String]) -> Result<Option<u64>> {
    if streams.is_empty() {
        return Ok(None);
    }
    let chosen = chosen(manifest::streams(store).await?, streams)?;
    match chosen.as_slice() {
        [StreamId::Postgres { system_id }] => Ok(Some(*system_id)),
        _ => Err(Error::new(Kind::Config, "--commits lists those of one Postgres log")
            .hint("name it as `tidelog ls` prints it: postgres/<system id>")),
    }
}

fn bounds(args: &CommitsArgs) -> Result<(Option<Bound>, Option<Bound>)> {
    let parse =
        |text: &Option<String>, option| text.as_deref().map(|text| Bound::parse(text, option, true)).transpose();
    let (from, to) = (parse(&args.from, "--from")?, parse(&args.to, "--to")?);
    let is_empty = match (from, to) {
        (Some(Bound::Time(from)), Some(Bound::Time(to))) => from >= to,
        (Some(Bound::Lsn(from)), Some(Bound::Lsn(to))) => from >= to,
        _ => false,
    };
    if is_empty {
        return Err(Error::new(Kind::Config, "--from does not lie before --to")
            .hint("commits are taken with from <= time < to, or with from <= record and end <= to"));
    }
    Ok((from, to))
}

fn wanted(from: Option<Bound>, to: Option<Bound>) -> Wanted {
    let mut wanted = Wanted { lsns: Lsn(0)..Lsn(u64::MAX), times: i64::MIN..i64::MAX };
    match from {
        Some(Bound::Time(us)) => wanted.times.start = us,
        Some(Bound::Lsn(lsn)) => wanted.lsns.start = lsn,
        None => {}
    }
    match to {
        Some(Bound::Time(us)) => wanted.times.end = us,
        Some(Bound::Lsn(lsn)) => wanted.lsns.end = lsn,
        None => {}
    }
    wanted
}

async fn head(log: &Log, commits: &Commits<'_>, holes: &[Hole]) -> Result<Head> {
    let stream = StreamId::Postgres { system_id: log.system().system_id }.to_string();
    let archived = commits.archived();
    let gap = |hole: &Hole| GapRow {
        timeline: hole.timeline,
        start: hole.lsns.start,
        end: hole.lsns.end,
        reason: hole.reason,
    };
    Ok(Head {
        stream,
        timeline: commits.timeline(),
        archived: Archived { start: archived.start, end: archived.end },
        complete_through: commits.complete_through().await?.map(time::rfc3339),
        gaps: holes.iter().map(gap).collect(),
    })
}

/// Says what of the range the archive does not have.
///
/// # Errors
/// [`Kind::Incomplete`] if there is any.
fn tell_of_what_is_not_known(
    commits: &Commits<'_>,
    holes: &[Hole],
    (from, to): (Option<Bound>, Option<Bound>),
) -> Result<()> {
    let archived = commits.archived();
    let mut lacks: Vec<String> = Vec::new();
    if let Some(Bound::Lsn(lsn)) = from
        && lsn < archived.start
    {
        lacks.push(format!("WAL from {lsn} to {} is not archived: the archive begins there", archived.start));
    }
    let gap = |hole: &Hole| {
        let (timeline, start, end) = (hole.timeline, hole.lsns.start, hole.lsns.end);
        format!(
            "WAL of timeline {timeline} from {start} to {end} is lost ({}): what was committed there is not known",
            hole.words
        )
    };
    lacks.extend(holes.iter().map(gap));
    for bound in [from, to] {
        if let Some(Bound::Lsn(lsn)) = bound
            && lsn > archived.end
        {
            lacks.push(format!("{lsn} lies behind the end of the archived WAL, {}", archived.end));
        }
    }
    if lacks.is_empty() {
        return Ok(());
    }
    for lack in &lacks {
        output::tell(&format!("error: {lack}"));
    }
    Err(Error::new(Kind::Incomplete, "the archive does not have all of the range; what it has is listed")
        .hint("`tidelog ls` shows what is archived"))
}

/// Prints rows as they come: there may be millions.
struct Printer {
    is_json: bool,
    text: String,
    count: u64,
}

impl Printer {
    fn begin(is_json: bool, head: &Head) -> Result<Self> {
        let mut text = String::with_capacity(PIECE + 1024);
        if is_json {
            text = json(head)?;
            // The rows and what comes behind them belong to the same object.
            text.truncate(text.len() - 1);
            text.push_str(",\"commits\":[");
        } else {
            text.push_str(&format!("{:>10}  {:<27}  {:<17}  {}\n", "XID", "COMMITTED", "END", "RECORD"));
        }
        Ok(Self { is_json, text, count: 0 })
    }

    /// Adds a row; false if nobody reads any more.
    fn add(&mut self, ended: &Ended) -> Result<bool> {
        let Some(row) = Row::of(ended) else { return Ok(true) };
        if self.is_json {
            self.text.push_str(if self.count == 0 { "\n" } else { ",\n" });
            self.text.push_str(&json(&row)?);
        } else {
            row.write_line(&mut self.text).or_err(Kind::Internal, || "cannot write a row".to_owned())?;
        }
        self.count += 1;
        if self.text.len() < PIECE {
            return Ok(true);
        }
        output::print_on(&std::mem::take(&mut self.text))
    }

    /// Prints what is left; `error` is what ended it early.
    fn end(mut self, error: Option<&Error>) -> Result<()> {
        if self.is_json {
            let error = error.map(|error| json(&error.to_string())).transpose()?;
            let error = error.map(|error| format!(",\"error\":{error}")).unwrap_or_default();
            self.text.push_str(&format!("\n],\"count\":{}{error}}}\n", self.count));
        }
        output::print_on(&self.text).map(drop)
    }
}

fn json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).or_err(Kind::Internal, || "cannot write a row as JSON".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_a_time_or_a_position() {
        assert_eq!(Bound::parse("0/10", "--to", true).expect("an LSN"), Bound::Lsn(Lsn(16)));
        let finer = "1970-01-01T00:00:00.0000011Z";
        assert_eq!(Bound::parse(finer, "--to", true).expect("a time"), Bound::Time(2));
        assert_eq!(Bound::parse(finer, "--at", false).expect("a time"), Bound::Time(1));
        for wrong in ["0/", "x", "16/B374D84800", ""] {
            let error = Bound::parse(wrong, "--to", true).expect_err(wrong);
            assert_eq!(error.exit_code(), 2, "{wrong}");
            assert!(error.to_string().starts_with("--to: "), "{error}");
        }
    }

    #[test]
    fn rows_say_what_there_is_to_say() {
        let commit = |what| Ended { start: Lsn(0x40), end: Lsn(0x65), at: 1_000_001, what };
        let plain = commit(What::Commit(Transaction { xid: 7, ..Transaction::default() }));
        let shown = json(&Row::of(&plain).expect("a row")).expect("JSON");
        assert_eq!(
            shown,
            r#"{"kind":"commit","xid":7,"lsn":"0/40","end":"0/68","time":"1970-01-01T00:00:01.000001Z"}"#
        );
        let more = Transaction { xid: 7, subxids: vec![8, 9], is_prepared: true, database: Some(5) };
        let more = commit(What::Commit(more));
        let row = Row::of(&more).expect("a row");
        let shown = json(&row).expect("JSON");
        assert!(shown.ends_with(r#""subxids":[8,9],"prepared":true,"database":5}"#), "{shown}");
        let mut line = String::new();
        row.write_line(&mut line).expect("a line");
        assert!(line.ends_with("was prepared, 2 subtransactions\n") && line.contains("  0/68  "), "{line}");
        assert!(Row::of(&commit(What::Abort(Transaction::default()))).is_none());
    }
}

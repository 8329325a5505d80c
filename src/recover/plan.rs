//! What a recovery would do, step by step, in words.

use super::connector::Connector;
use super::journal::Journal;
use super::prepare::{Asked, Part, Prepared};
use super::report::{ConnectorShown, Report, State};
use super::step::Step;
use super::topics;
use crate::config::Config;
use crate::error::Result;
use crate::store::Store;
use crate::stream::Lsn;

/// Behind what is known of the branch that was left: somebody may have read a little more than was archived.
const MARGIN: u64 = 64 << 20;

/// Says what would be done.
///
/// # Errors
/// What the target of the topics has against it.
pub async fn plan(store: &Store, config: &Config, asked: &Asked, prepared: &Prepared) -> Result<Report> {
    let mut report = Report::new(&asked.to, &prepared.journal.commit, true);
    for step in Step::ALL {
        let name = step.name();
        match (prepared.journal.steps.get(name), left_out(step, asked, &prepared.connectors)) {
            (Some(done), _) => report.done(name, done),
            (None, Some(why)) => report.not_done(name, State::Skipped, why.to_owned()),
            (None, None) => {
                let words = match step {
                    Step::Topics => topics::words(store, config, asked, prepared).await?,
                    _ => words(step, asked, prepared),
                };
                report.not_done(name, State::Planned, words);
            }
        }
    }
    report.notes.extend(prepared.notes.iter().cloned());
    report.connectors = shown(&prepared.connectors, &prepared.journal);
    report.close(&prepared.journal);
    Ok(report)
}

/// Why a step is not taken; none if it is.
pub(super) fn left_out(step: Step, asked: &Asked, connectors: &[Connector]) -> Option<&'static str> {
    let part = match step {
        Step::Postgres | Step::Open => Part::Postgres,
        Step::Raise | Step::Slots => Part::Slots,
        Step::Registry => Part::Registry,
        Step::Topics | Step::Fold => Part::Topics,
        Step::Connectors | Step::Marker => Part::Connectors,
    };
    if !asked.wants(part) {
        return Some("its part is not in the pipeline file, or not asked for");
    }
    if step == Step::Open && asked.made().is_none() {
        return Some("the server is there already");
    }
    if step == Step::Fold && !asked.wants(Part::Slots) {
        return Some("the tables are not counted: the database is not part of this run");
    }
    if step == Step::Fold && asked.pipeline.postgres.as_ref().is_some_and(|postgres| !postgres.compare) {
        return Some("the pipeline file says compare = false");
    }
    let has_none = connectors.is_empty() && (step == Step::Fold || matches!(part, Part::Slots | Part::Connectors));
    has_none.then_some("there is no connector to bring back")
}

fn words(step: Step, asked: &Asked, prepared: &Prepared) -> String {
    let end = prepared.journal.commit.end;
    match (step, asked.made()) {
        (Step::Postgres, Some(made)) => {
            let what = prepared.restore.as_ref().map_or_else(String::new, |restore| restore.words());
            format!("{what} into {}, to just {end}", made.into.display())
        }
        (Step::Postgres, None) => format!("look whether the server stands at {end}"),
        (Step::Raise, _) => format!("its log moved to {}", raised_to(prepared)),
        (Step::Slots, _) => format!("{} made, a marker behind each", many(prepared.connectors.len(), "slot")),
        (Step::Open, made) => format!("the server at port {}", made.map_or(0, |made| made.port)),
        (Step::Registry, _) => "the archived subjects registered, with their ids".to_owned(),
        (Step::Topics, _) => String::new(),
        (Step::Fold, _) => "each captured table compared with the rows that its topic comes to".to_owned(),
        (Step::Connectors, _) => format!("{} made without running", many(prepared.connectors.len(), "connector")),
        (Step::Marker, _) => "they run, and their markers come to their topics".to_owned(),
    }
}

/// To where the log is raised: behind all that is known of the branch that was left.
pub(super) fn raised_to(prepared: &Prepared) -> Lsn {
    let log = &prepared.log;
    let archived = log.timelines().filter_map(|timeline| log.range(timeline)).map(|range| range.end).max();
    let furthest = archived.max(prepared.furthest.map(Lsn)).unwrap_or(prepared.journal.commit.end);
    let file = u64::from(log.system().wal_segment_size).max(1);
    Lsn((furthest + MARGIN).0.next_multiple_of(file))
}

/// The connectors as they are shown.
pub(super) fn shown(connectors: &[Connector], journal: &Journal) -> Vec<ConnectorShown> {
    let one = |of: &Connector| {
        let known = journal.connectors.get(&of.name).cloned().unwrap_or_default();
        let state = match (known.marker_seen, known.has_offset) {
            (true, _) => "running",
            (false, true) => "stopped",
            (false, false) => "planned",
        };
        let (name, slot) = (of.name.clone(), of.slot().to_owned());
        ConnectorShown { name, slot, lsn: known.slot, state, marker_seen: known.marker_seen }
    };
    connectors.iter().map(one).collect()
}

pub(super) fn many(count: usize, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

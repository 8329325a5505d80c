//! What a recovery would do, step by step, in words.

use super::archived;
use super::connector::Connector;
use super::database::Restore;
use super::expected::{Sizes, seconds};
use super::journal::Journal;
use super::may_begin::may_begin;
use super::prepare::{Asked, Part, Prepared};
use super::report::{ConnectorShown, Report, State};
use super::step::Step;
use super::words::many;
use super::{in_place, topics};
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
    may_begin(config, asked, prepared).await?;
    let mut report = Report::new(&asked.to, &prepared.journal.commit, true);
    let is_to_do = |step: Step| {
        !prepared.journal.steps.contains_key(step.name()) && left_out(step, asked, &prepared.connectors).is_none()
    };
    let mut sizes = sizes(prepared);
    let mut of_topics = String::new();
    let mut records = prepared.journal.records.unwrap_or_default();
    if is_to_do(Step::Topics) {
        (of_topics, records, sizes.bytes) = match asked.in_place {
            true => in_place::planned(store, config, asked, (&prepared.connectors, &prepared.journal)).await?,
            false => topics::planned(store, config, asked, prepared).await?,
        };
    }
    (sizes.records, sizes.sent) = (records.within + records.out, records.within);
    if let (true, Some(server)) = (is_to_do(Step::Registry), &asked.pipeline.schema_registry) {
        let (archived, _) = archived::subjects(store, config, server, prepared.journal.moment()).await?;
        sizes.versions = archived.subjects.values().map(|subject| subject.versions.len() as u64).sum();
    }
    for step in Step::ALL {
        let name = step.name();
        match (prepared.journal.steps.get(name), left_out(step, asked, &prepared.connectors)) {
            (Some(done), _) => report.done(name, done),
            (None, Some(why)) => report.not_done(name, State::Skipped, why.to_owned()),
            (None, None) => {
                let words = match step {
                    Step::Topics => of_topics.clone(),
                    _ => words(step, asked, prepared),
                };
                report.planned(name, (seconds(step, &sizes), words));
            }
        }
    }
    report.notes.extend(prepared.notes.iter().cloned());
    report.notes.push(RECKONED.to_owned());
    report.connectors = shown(&prepared.connectors, &prepared.journal);
    report.close(&prepared.journal);
    Ok(report)
}

/// What is to be known of the seconds in a plan.
const RECKONED: &str = "the seconds are reckoned from the sizes, at rates as of two cores, a local disk and all servers \
                        beside each other: a slower store, link or server takes longer";

fn sizes(prepared: &Prepared) -> Sizes {
    let (base, log) = prepared.restore.as_ref().map_or((0, 0), Restore::sizes);
    let raised = raised_to(prepared).0.saturating_sub(prepared.journal.commit.end.0);
    Sizes { base, log, raised, connectors: prepared.connectors.len() as u64, ..Sizes::default() }
}

/// Why a step is not taken; none if it is.
pub(super) fn left_out(step: Step, asked: &Asked, connectors: &[Connector]) -> Option<&'static str> {
    let part = match step {
        Step::Postgres | Step::Open => Part::Postgres,
        Step::Raise | Step::Slots => Part::Slots,
        Step::Registry => Part::Registry,
        Step::Acls | Step::Topics | Step::Fold => Part::Topics,
        Step::Connectors | Step::Marker => Part::Connectors,
    };
    if !asked.wants(part) {
        return Some("its part is not in the pipeline file, or not asked for");
    }
    if step == Step::Acls && !asked.pipeline.kafka.as_ref().is_some_and(|kafka| kafka.acls) {
        return Some("the pipeline file does not say acls = true");
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
        (Step::Acls, _) => "the archived access control lists made, where they are not there".to_owned(),
        (Step::Topics, _) => String::new(),
        (Step::Fold, _) => "each captured table compared with the rows that its topic comes to".to_owned(),
        (Step::Connectors, _) if asked.pipeline.strimzi.is_some() => {
            format!("{} written as resources for Strimzi", many(prepared.connectors.len(), "connector"))
        }
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

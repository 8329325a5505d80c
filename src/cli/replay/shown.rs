//! What a replay shows: the plan for people, and the result for people and machines.

use std::collections::BTreeSet;

use serde::Serialize;

use super::cut::{CutShown, ToCommit};
use super::groups;
use super::settings::{self, TopicSettings};
use crate::cli::human;
use crate::escape::one_line;
use crate::replay::groups::{Groups, GroupsShown};
use crate::replay::{self, Plan, Prepared, Query, Tally, Tempo};
use crate::time;

/// What is printed as JSON.
#[derive(Debug, Default, Serialize)]
pub(super) struct Outcome {
    pub(super) replay_id: String,
    pub(super) dry_run: bool,
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// False in a plan whose numbers are upper bounds.
    pub(super) exact: bool,
    pub(super) segments: usize,
    pub(super) seconds: f64,
    /// How long --speed and --rate make it take at the least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expected_seconds: Option<f64>,
    /// Whether the whole replay is done, by this run and those before it.
    pub(super) finished: bool,
    pub(super) partitions: Vec<OutcomePartition>,
    pub(super) warnings: Vec<String>,
    /// The commit, and what of the topics belongs to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cut: Option<CutShown>,
    /// The settings of the topics that it created, once all is sent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) settings: Vec<TopicSettings>,
    /// What became of consumer groups, or would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) groups: Option<GroupsShown>,
    /// How many of the last warnings came of the sending.
    #[serde(skip)]
    pub(super) late: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct OutcomePartition {
    topic: String,
    partition: i32,
    target_topic: String,
    generation: u32,
    start: i64,
    end: i64,
    records: u64,
}

impl Outcome {
    /// What a run has come to.
    pub(super) fn done(&mut self, done: &replay::Outcome, bootstrap: &str) {
        self.warnings.clone_from(&done.warnings);
        self.seconds = done.seconds;
        self.finished = done.finished;
        self.settings = done.settings.iter().map(|settled| TopicSettings::new(settled, bootstrap)).collect();
        self.groups.clone_from(&done.groups);
        if let Some((plan, tally)) = &done.sent {
            self.sent(plan, tally);
        }
    }

    /// What a sink reports.
    fn sent(&mut self, plan: &Plan, tally: &Tally) {
        self.records = tally.records;
        self.bytes = tally.bytes;
        self.exact = true;
        let before = self.warnings.len();
        if tally.moved_timestamps > 0 {
            self.warnings.push(format!(
                "{} with the timestamp 0 (1970-01-01T00:00:00.000Z) went with 1 ms more: the client takes 0 for now",
                human::many(tally.moved_timestamps, "record")
            ));
        }
        self.warnings.extend(replay::told(plan, &tally.stops));
        self.late = self.warnings.len() - before;
        self.partitions = tally
            .partitions
            .iter()
            .map(|(&(part, partition), &(start, end, records))| {
                let part = &plan.parts[part];
                OutcomePartition {
                    topic: part.stream.topic.clone(),
                    partition,
                    target_topic: part.target.clone(),
                    generation: part.stream.number,
                    start,
                    end,
                    records,
                }
            })
            .collect();
    }

    pub(super) fn text(&self) -> String {
        let (records, bytes) = (human::many(self.records, "record"), human::bytes(self.bytes));
        let rate = self.records as f64 / self.seconds.max(0.001);
        let mut text = format!("sent {records}, {bytes}, in {:.1} s ({:.0} records/s)\n", self.seconds, rate);
        text.extend(
            self.warnings.iter().rev().take(self.late).rev().map(|warning| format!("warning: {}\n", one_line(warning))),
        );
        text + &self.end_text()
    }

    /// What was done with topics and groups after the last record.
    pub(super) fn end_text(&self) -> String {
        let settings: String = self.settings.iter().map(TopicSettings::text).collect();
        settings + &self.groups.as_ref().map_or(String::new(), groups::text)
    }
}

/// What a dry run prints as JSON.
pub(super) fn planned_result(replay: &Prepared, cut: Option<&ToCommit>, tempo: Tempo) -> Outcome {
    let (records, exact) = replay.plan.records();
    let partitions = replay.plan.parts.iter().flat_map(|part| {
        part.partitions.iter().map(|planned| OutcomePartition {
            topic: part.stream.topic.clone(),
            partition: planned.partition,
            target_topic: part.target.clone(),
            generation: part.stream.number,
            start: planned.start,
            end: planned.end,
            records: planned.records,
        })
    });
    Outcome {
        replay_id: replay.id.clone(),
        dry_run: true,
        records,
        bytes: replay.plan.bytes(),
        exact,
        segments: replay.plan.segments(),
        seconds: 0.0,
        expected_seconds: tempo.least_time(&replay.plan).map(|time| time.as_secs_f64()),
        finished: replay.finished().is_some(),
        partitions: partitions.collect(),
        warnings: replay.findings.told(),
        cut: cut.map(ToCommit::shown),
        settings: Vec::new(),
        groups: replay.groups.as_ref().map(Groups::shown),
        late: 0,
    }
}

/// The plan for people.
pub(super) fn plan_text(replay: &Prepared, cut: Option<&ToCommit>, dry_run: bool, tempo: Tempo) -> String {
    let heading =
        if dry_run { format!("Plan {}  (nothing is sent)", replay.id) } else { format!("Replay {}", replay.id) };
    let meant = if replay.finished().is_some() { &replay.whole } else { &replay.plan };
    let mut text = format!("{heading}\n{}", extent(meant, &replay.query));
    text.extend(cut.map(ToCommit::text));
    if let Some(finished) = replay.finished() {
        text.push_str(&format!("  finished  {}: nothing is left to send\n", time::utc(finished.at)));
    } else if replay.whole.records() != replay.plan.records() {
        text.push_str("  goes on   an earlier run of this id has sent the records before these\n");
    }
    if !replay.plan.parts.is_empty() {
        text.push_str(&format!("  to        {}: {}\n", replay.target.bootstrap(), targets(replay)));
    }
    let planned = |create| settings::planned(create, replay.settings, replay.target.bootstrap());
    for line in replay.findings.create.iter().filter_map(planned) {
        text.push_str(&format!("  settings  {}\n", one_line(&line)));
    }
    for line in settings::pending(replay.journal.made.as_ref(), replay.settings, replay.target.bootstrap()) {
        text.push_str(&format!("  settings  {}\n", one_line(&line)));
    }
    if let Some(time) = tempo.least_time(&replay.plan).map(|time| time.as_secs()).filter(|seconds| *seconds > 0) {
        let time = humantime::format_duration(std::time::Duration::from_secs(time));
        text.push_str(&format!("  takes     {time} at this pace\n"));
    }
    if let Some(groups) = replay.groups.as_ref().filter(|_| dry_run) {
        text.push_str(&groups::text(&groups.shown()));
    }
    for warning in &replay.findings.told() {
        text.push_str(&format!("  warning   {}\n", one_line(warning)));
    }
    if dry_run && replay.findings.problems.is_empty() {
        let go_on =
            format!("Run the same command without --dry-run, or with --id {} to be able to resume it.\n", replay.id);
        text.push_str(&go_on);
    }
    text
}

fn targets(replay: &Prepared) -> String {
    let new = replay.findings.create.iter().map(|topic| {
        let partitions = human::many(u64::from(topic.partitions.unsigned_abs()), "partition");
        format!("{} ({partitions}, will be created with {})", topic.topic, topic.settings())
    });
    let old = replay.findings.existing.iter().map(|(topic, partitions)| {
        format!("{topic} ({}, exists)", human::many(u64::from(partitions.unsigned_abs()), "partition"))
    });
    new.chain(old).collect::<Vec<_>>().join(", ")
}

/// What a plan reads, in two lines.
pub(super) fn extent(plan: &Plan, query: &Query) -> String {
    let by_time = query.timestamps.as_ref().map(|range| {
        let from = if range.start == i64::MIN { String::new() } else { format!("{} ≤ ", time::rfc3339(range.start)) };
        format!("{from}timestamp < {}, by record time", time::rfc3339(range.end))
    });
    let by_offset = query.offsets.map(|offsets| format!("offsets {offsets}"));
    let mut range: Vec<String> = by_time.into_iter().chain(by_offset).collect();
    if range.is_empty() {
        range.push("everything that is archived now, or since the replay before".to_owned());
    }
    let (records, exact) = plan.records();
    let topics: BTreeSet<&str> = plan.parts.iter().map(|part| part.stream.topic.as_str()).collect();
    format!(
        "  range     {}\n  from      {} of {}, {}{}, {}{} ({} stored)\n",
        range.join(" and "),
        human::many(plan.segments() as u64, "segment"),
        human::many(topics.len() as u64, "topic"),
        if exact { "" } else { "at most " },
        human::many(records, "record"),
        if exact { "" } else { "about " },
        human::bytes(plan.bytes()),
        human::bytes(plan.stored_bytes()),
    )
}

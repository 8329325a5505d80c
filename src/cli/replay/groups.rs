//! `--groups`: which consumer groups are put where, planned before the first record and done after the last.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::Args;
use crate::config::TopicPattern;
use crate::error::{Error, Kind, Result};
use crate::escape::one_line;
use crate::replay::groups::{self, Answer, Archived, GroupResult, Moved, State};
use crate::replay::journal::Journal;
use crate::replay::kafka::Target;
use crate::replay::{Partitions, Plan, topic_pattern};
use crate::store::Store;
use crate::time;

/// What is to become of groups.
pub(super) struct Groups {
    at: DateTime<Utc>,
    archived: Archived,
    partitions: Option<Partitions>,
    moved: Vec<Moved>,
}

/// Groups as they are printed.
#[derive(Debug, Serialize)]
pub(super) struct GroupsShown {
    /// As of when they are wanted.
    as_of: String,
    /// When they were found so.
    found: String,
    groups: Vec<GroupShown>,
}

#[derive(Debug, Serialize)]
struct GroupShown {
    #[serde(flatten)]
    result: GroupResult,
    positions: Vec<Moved>,
}

/// A replay as far as groups ask for it.
#[derive(Clone, Copy)]
pub(super) struct Of<'a> {
    pub(super) journal: &'a Journal,
    pub(super) anew: bool,
    pub(super) whole: &'a Plan,
    pub(super) partitions: Option<&'a Partitions>,
    /// The end of its range.
    pub(super) end: DateTime<Utc>,
}

/// Works out what is to become of groups, and says what is in the way.
///
/// # Errors
/// Groups that are not kept or not meant, a replay without a map, and what of the archive cannot be read.
pub(super) async fn plan(
    args: &Args,
    store: &Store,
    target: &Target,
    of: Of<'_>,
    now: DateTime<Utc>,
) -> Result<Option<(Groups, Vec<String>)>> {
    let Some(begun) = of.journal.begun.as_ref().filter(|_| !args.groups.is_empty()) else { return Ok(None) };
    if !of.anew && !begun.maps {
        let message = format!(
            "the replay {} was begun without --groups, so nobody knows which offset a record got",
            begun.replay
        );
        return Err(Error::new(Kind::Config, message)
            .hint("leave --groups away, or choose another --id and send everything again with it"));
    }
    let wanted: Vec<TopicPattern> = args
        .groups
        .iter()
        .map(|text| topic_pattern(text))
        .collect::<Result<_>>()
        .map_err(|error| error.context("--groups"))?;
    let at = as_of(args, begun.at, of.end)?;
    let Some(cluster) = cluster_of(of.whole)? else { return Ok(None) };
    let archived = groups::as_of(store, cluster, &wanted, (at, now)).await?;
    let finished = of.journal.finished.is_some();
    let history = groups::history(store, of.journal).await?;
    groups::whole_history(&history)?;
    let moved = groups::translate(store, &history, &archived, of.partitions, finished).await?;
    let set = |one: &&Moved| one.answer != Answer::NotReplayed;
    if !moved.iter().any(|one| set(&one)) {
        let names: Vec<&str> = archived.groups.keys().map(String::as_str).collect();
        let message = format!("none of these groups has a position in what is replayed: {}", names.join(", "));
        return Err(Error::new(Kind::NotFound, message).hint("leave --groups away, or name other groups or topics"));
    }
    let mut names: Vec<&String> = moved.iter().filter(set).map(|one| &one.group).collect();
    names.dedup();
    let live = if finished { Vec::new() } else { groups::live_groups(target, names.into_iter()).await? };
    Ok(Some((Groups { at, archived, partitions: of.partitions.cloned(), moved }, live)))
}

/// Returns the one cluster that a plan is of; none of a plan of nothing.
fn cluster_of(plan: &Plan) -> Result<Option<&str>> {
    let mut clusters: Vec<&str> = plan.parts.iter().map(|part| part.stream.cluster.as_str()).collect();
    clusters.dedup();
    match clusters.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        _ => Err(Error::new(Kind::Config, "--groups of several clusters at once cannot be told apart")
            .hint("name one in the configuration: kafka.cluster")),
    }
}

/// As of when groups are wanted. A time that moves with the clock is one before the replay was begun, so that the same command means the
/// same again.
fn as_of(args: &Args, begun: DateTime<Utc>, end: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let Some(text) = &args.groups_at else { return Ok(end) };
    let at = time::parse(text, begun).map_err(|error| error.context("--groups-at"))?;
    match DateTime::from_timestamp_millis(at) {
        Some(at) if at <= time::now() => Ok(at),
        _ => Err(Error::new(Kind::Config, format!("--groups-at {} lies ahead of now", time::rfc3339(at)))
            .hint("name a time that has passed")),
    }
}

impl Groups {
    /// What the user should know of groups that are left alone.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.archived.warnings.clone()
    }

    /// Puts the groups where they were: the replay is finished.
    pub(super) async fn put(mut self, store: &Store, target: &Target) -> Result<GroupsShown> {
        let journal = Journal::load(store, &target.id).await?;
        let history = groups::history(store, &journal).await?;
        self.moved = groups::translate(store, &history, &self.archived, self.partitions.as_ref(), true).await?;
        let results = groups::put(store, target, self.at, &self.moved).await?;
        Ok(self.with(results))
    }

    /// What would be done.
    pub(super) fn shown(&self) -> GroupsShown {
        let mut names: Vec<&String> = self.moved.iter().map(|one| &one.group).collect();
        names.dedup();
        let state = |group: &str| {
            let nothing =
                self.moved.iter().filter(|one| one.group == group).all(|one| one.answer == Answer::NotReplayed);
            if nothing { State::Nothing } else { State::Planned }
        };
        let results =
            names.into_iter().map(|group| GroupResult { group: group.clone(), state: state(group), why: None });
        self.with(results.collect())
    }

    fn with(&self, results: Vec<GroupResult>) -> GroupsShown {
        let one = |result: GroupResult| {
            let of = self.moved.iter().filter(|one| one.group == result.group);
            GroupShown { positions: of.cloned().collect(), result }
        };
        GroupsShown {
            as_of: time::utc(self.at),
            found: time::utc(self.archived.at),
            groups: results.into_iter().map(one).collect(),
        }
    }
}

impl GroupsShown {
    /// For people, a line for each partition.
    pub(super) fn text(&self) -> String {
        let mut text = format!("groups as of {}, found so at {}\n", self.as_of, self.found);
        for GroupShown { result, positions } in &self.groups {
            let why = result.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
            text.push_str(&format!("  {}\n", one_line(&format!("{} {}{why}", result.group, words(result.state)))));
            for position in positions {
                text.push_str(&format!("    {}\n", one_line(&line(position))));
            }
        }
        text
    }

    /// Whether all groups are where they were.
    ///
    /// # Errors
    /// [`Kind::Incomplete`] where one is not.
    pub(super) fn verdict(&self) -> Result<()> {
        let unknown = |group: &GroupShown| group.positions.iter().any(|one| one.answer == Answer::Unknown);
        let is_not = |state| matches!(state, State::Refused | State::Moved | State::Failed);
        let names =
            |groups: Vec<&GroupShown>| groups.iter().map(|one| one.result.group.clone()).collect::<Vec<_>>().join(", ");
        let not: Vec<&GroupShown> = self.groups.iter().filter(|one| is_not(one.result.state)).collect();
        let unknown: Vec<&GroupShown> = self.groups.iter().filter(|one| unknown(one)).collect();
        let message = match (not.is_empty(), unknown.is_empty()) {
            (true, true) => return Ok(()),
            (false, _) => format!("all is replayed, but these groups are not where they were: {}", names(not)),
            (true, false) => {
                format!("all is replayed, but positions of these groups are not known: {}", names(unknown))
            }
        };
        Err(Error::new(Kind::Incomplete, message).hint(
            "the reasons are printed above; the same command tries again, and puts no group back that reads on already",
        ))
    }
}

fn words(state: State) -> &'static str {
    match state {
        State::Planned => "will be put where it was",
        State::Set => "is where it was",
        State::AlreadySet => "was put where it was by an earlier run, and is left alone",
        State::Nothing => "has no position in what is replayed",
        State::Refused => "is left alone",
        State::Moved => "was moved by somebody meanwhile, and is left alone",
        State::Failed => "is not set",
    }
}

fn line(position: &Moved) -> String {
    let Moved { topic, partition, old, record, new, answer, .. } = position;
    let to = position.target_topic.as_deref().unwrap_or(topic);
    let place = match (new, record) {
        _ if matches!(answer, Answer::NotReplayed | Answer::Unknown) => String::new(),
        (Some(new), _) => format!(" -> {new} of {to}"),
        (None, Some(record)) => format!(" -> the record {record}, whose offset in {to} is known once it is sent"),
        (None, None) => format!(" -> after all that is sent to {to}"),
    };
    let words = answer.words();
    let words = if words.is_empty() { String::new() } else { format!(" ({words})") };
    format!("{topic} {partition}: {old}{place}{words}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(new: Option<i64>, record: Option<i64>, answer: Answer) -> Moved {
        Moved {
            group: "g".to_owned(),
            topic: "orders".to_owned(),
            partition: 3,
            target_topic: Some("copy".to_owned()),
            old: 120,
            record,
            new,
            answer,
            metadata: None,
        }
    }

    #[test]
    fn a_line_says_from_where_to_where_or_why_not() {
        for (position, told) in [
            (moved(Some(9), Some(121), Answer::Exact), "orders 3: 120 -> 9 of copy"),
            (
                moved(None, Some(121), Answer::Exact),
                "orders 3: 120 -> the record 121, whose offset in copy is known once it is sent",
            ),
            (
                moved(None, None, Answer::End),
                "orders 3: 120 -> after all that is sent to copy (it had read everything)",
            ),
            (moved(None, None, Answer::NotReplayed), "orders 3: 120 (not in this replay: left alone)"),
        ] {
            assert_eq!(line(&position), told);
        }
    }

    #[test]
    fn whoever_is_not_where_it_was_is_named_and_the_others_are_no_failure() {
        let shown = |state, answer| GroupsShown {
            as_of: String::new(),
            found: String::new(),
            groups: vec![GroupShown {
                result: GroupResult { group: "g".to_owned(), state, why: None },
                positions: vec![moved(None, None, answer)],
            }],
        };
        for state in [State::Set, State::AlreadySet, State::Nothing, State::Planned] {
            assert!(shown(state, Answer::Skips).verdict().is_ok());
            assert!(shown(state, Answer::Unknown).verdict().is_err());
        }
        for state in [State::Refused, State::Moved, State::Failed] {
            let error = shown(state, Answer::Exact).verdict().expect_err("it is not where it was");
            assert!(error.exit_code() == 3 && error.to_string().ends_with(": g"), "{error}");
        }
    }
}

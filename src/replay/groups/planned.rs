//! Which consumer groups are put where, planned before the first record and done after the last.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::archived::{Archived, as_of};
use super::next::Answer;
use super::replayed::{history, whole_history};
use super::set::{GroupResult, State, live_groups, put};
use super::translate::{Moved, translate};
use crate::config::TopicPattern;
use crate::error::{Error, Kind, Result};
use crate::replay::journal::Journal;
use crate::replay::kafka::Target;
use crate::replay::plan::Plan;
use crate::replay::request::GroupsWanted;
use crate::replay::select::{Partitions, topic_pattern};
use crate::store::Store;
use crate::time;

/// What is to become of groups.
#[derive(Debug)]
pub struct Groups {
    at: DateTime<Utc>,
    archived: Archived,
    partitions: Option<Partitions>,
    moved: Vec<Moved>,
}

/// Groups as they are printed.
#[derive(Debug, Clone, Serialize)]
pub struct GroupsShown {
    /// As of when they are wanted.
    pub as_of: String,
    /// When they were found so.
    pub found: String,
    /// Each of them.
    pub groups: Vec<GroupShown>,
}

/// A group as it is printed.
#[derive(Debug, Clone, Serialize)]
pub struct GroupShown {
    /// What became of it.
    #[serde(flatten)]
    pub result: GroupResult,
    /// What becomes of its positions.
    pub positions: Vec<Moved>,
}

/// A replay as far as groups ask for it.
#[derive(Clone, Copy)]
pub(in crate::replay) struct Of<'a> {
    pub(in crate::replay) journal: &'a Journal,
    pub(in crate::replay) anew: bool,
    pub(in crate::replay) whole: &'a Plan,
    pub(in crate::replay) partitions: Option<&'a Partitions>,
    /// The end of its range.
    pub(in crate::replay) end: DateTime<Utc>,
}

/// Works out what is to become of groups, and says what is in the way.
///
/// # Errors
/// Groups that are not kept or not meant, a replay without a map, and what of the archive cannot be read.
pub(in crate::replay) async fn plan(
    wanted: Option<&GroupsWanted>,
    store: &Store,
    target: &Target,
    of: Of<'_>,
    now: DateTime<Utc>,
) -> Result<Option<(Groups, Vec<String>)>> {
    let (Some(begun), Some(asked)) = (&of.journal.begun, wanted) else { return Ok(None) };
    if !of.anew && !begun.maps {
        let message = format!(
            "the replay {} was begun without --groups, so nobody knows which offset a record got",
            begun.replay
        );
        return Err(Error::new(Kind::Config, message)
            .hint("leave --groups away, or choose another --id and send everything again with it"));
    }
    let wanted: Vec<TopicPattern> = asked
        .groups
        .iter()
        .map(|text| topic_pattern(text))
        .collect::<Result<_>>()
        .map_err(|error| error.context("--groups"))?;
    let at = wanted_at(asked, (begun.at, of.end), now)?;
    let Some(cluster) = cluster_of(of.whole)? else { return Ok(None) };
    let archived = as_of(store, cluster, &wanted, (at, now)).await?;
    let finished = of.journal.finished.is_some();
    let history = history(store, of.journal).await?;
    whole_history(&history)?;
    let moved = translate(store, &history, &archived, of.partitions, finished).await?;
    let set = |one: &&Moved| one.answer != Answer::NotReplayed;
    if !moved.iter().any(|one| set(&one)) {
        let names: Vec<&str> = archived.groups.keys().map(String::as_str).collect();
        let message = format!("none of these groups has a position in what is replayed: {}", names.join(", "));
        return Err(Error::new(Kind::NotFound, message).hint("leave --groups away, or name other groups or topics"));
    }
    let mut names: Vec<&String> = moved.iter().filter(set).map(|one| &one.group).collect();
    names.dedup();
    let live = if finished { Vec::new() } else { live_groups(target, names.into_iter()).await? };
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
fn wanted_at(
    asked: &GroupsWanted,
    (begun, end): (DateTime<Utc>, DateTime<Utc>),
    now: DateTime<Utc>,
) -> Result<DateTime<Utc>> {
    let Some(text) = &asked.at else { return Ok(end) };
    let at = time::parse(text, begun).map_err(|error| error.context("--groups-at"))?;
    match DateTime::from_timestamp_millis(at) {
        Some(at) if at <= now => Ok(at),
        _ => Err(Error::new(Kind::Config, format!("--groups-at {} lies ahead of now", time::rfc3339(at)))
            .hint("name a time that has passed")),
    }
}

impl Groups {
    /// What the user should know of groups that are left alone.
    pub(in crate::replay) fn warnings(&self) -> Vec<String> {
        self.archived.warnings.clone()
    }

    /// Puts the groups where they were: the replay is finished.
    pub(in crate::replay) async fn put(mut self, store: &Store, target: &Target) -> Result<GroupsShown> {
        let journal = Journal::load(store, &target.id).await?;
        let history = history(store, &journal).await?;
        self.moved = translate(store, &history, &self.archived, self.partitions.as_ref(), true).await?;
        let results = put(store, target, self.at, &self.moved).await?;
        Ok(self.with(results))
    }

    /// What would be done.
    pub fn shown(&self) -> GroupsShown {
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
    /// Whether all groups are where they were.
    ///
    /// # Errors
    /// [`Kind::Incomplete`] where one is not.
    pub fn verdict(&self) -> Result<()> {
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

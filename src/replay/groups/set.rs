//! Puts groups where they were, once each.
//!
//! What is to be done with a group, and where it was before, is written down first (`replays/<id>/groups.json`). So a run that goes
//! on knows a group that it has put there from one that somebody has moved since: who reads on from there is not put back.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::translate::Moved;
use crate::error::{Error, Kind, Result};
use crate::replay::journal;
use crate::replay::kafka::{Position, Target};
use crate::replay::offset_map::At;
use crate::store::{Store, layout};
use crate::stream::FORMAT_VERSION;

/// What became of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It will be put there by the replay, or would be.
    Planned,
    /// It is where it was.
    Set,
    /// An earlier run has put it there; where it is now is its own business.
    AlreadySet,
    /// It has no position in what is replayed.
    Nothing,
    /// It has members.
    Refused,
    /// Somebody has moved it since this replay began to set it.
    Moved,
    /// The target does not let it be set.
    Failed,
}

/// A group, and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct GroupResult {
    /// Its name.
    pub group: String,
    /// What became of it.
    pub state: State,
    /// Why, where it is not where it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What a replay sets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    format: u32,
    replay: String,
    groups: BTreeMap<String, WrittenGroup>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct WrittenGroup {
    /// As of when.
    at: DateTime<Utc>,
    /// Whether it was put there.
    done: bool,
    positions: Vec<WrittenPosition>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct WrittenPosition {
    topic: String,
    partition: i32,
    /// Where the group was; none where it had no position.
    old: Option<i64>,
    new: i64,
}

/// Puts the groups of `moved` where they were at `at`, one after the other. What is in the way of one is in the way of no other.
///
/// # Errors
/// The store's.
pub async fn put(store: &Store, target: &Target, at: DateTime<Utc>, moved: &[Moved]) -> Result<Vec<GroupResult>> {
    let key = layout::replay_groups(&target.id);
    let mut written: Written = journal::read(store, &key).await?.unwrap_or_default();
    (written.format, written.replay) = (FORMAT_VERSION, target.id.clone());
    let mut groups: BTreeMap<&str, BTreeMap<At, Position>> = BTreeMap::new();
    for one in moved {
        let of = groups.entry(one.group.as_str()).or_default();
        if let (Some(topic), Some(offset)) = (&one.target_topic, one.new) {
            of.insert((topic.clone(), one.partition), Position { offset, metadata: one.metadata.clone() });
        }
    }
    let mut results = Vec::with_capacity(groups.len());
    for (group, positions) in groups {
        let (state, why) = match one(store, target, (group, at), &positions, &mut written).await {
            Ok(state) => (state, None),
            Err(error) if error.kind() == Kind::Fenced => (State::Refused, Some(error)),
            Err(error) => (State::Failed, Some(error)),
        };
        let why = why.map(|error| match error.hint_text() {
            Some(hint) => format!("{error}; {hint}"),
            None => error.to_string(),
        });
        let why = why.or_else(|| {
            (state == State::Moved).then(|| "it is neither where it was before nor where it was to be".to_owned())
        });
        results.push(GroupResult { group: group.to_owned(), state, why });
    }
    Ok(results)
}

async fn one(
    store: &Store,
    target: &Target,
    (group, at): (&str, DateTime<Utc>),
    positions: &BTreeMap<At, Position>,
    written: &mut Written,
) -> Result<State> {
    if positions.is_empty() {
        return Ok(State::Nothing);
    }
    let partitions: Vec<At> = positions.keys().cloned().collect();
    let now = target.positions(group, &partitions).await?;
    match written.groups.get(group).map_or(Step::Begin, |before| before.step(&now, positions)) {
        Step::Leave(state) => return Ok(state),
        Step::Done => {}
        step => {
            let members = target.members(group).await?;
            if !members.is_empty() {
                return Err(live(group, &members));
            }
            if step == Step::Begin {
                written.groups.insert(group.to_owned(), WrittenGroup::new(at, &now, positions));
                written.save(store).await?;
            }
            target.put_positions(group, positions.clone()).await?;
        }
    }
    if let Some(one) = written.groups.get_mut(group) {
        one.done = true;
    }
    written.save(store).await?;
    Ok(State::Set)
}

/// A group that somebody reads with.
fn live(group: &str, members: &[String]) -> Error {
    let message = format!("the group {group} has members: {}", members.join(", "));
    Error::new(Kind::Fenced, message).hint("stop them, and run the same command again")
}

/// Names the groups of `moved` that have members.
pub async fn live_groups(target: &Target, groups: impl Iterator<Item = &String>) -> Result<Vec<String>> {
    let mut live = Vec::new();
    for group in groups {
        let members = target.members(group).await?;
        if !members.is_empty() {
            live.push(format!("the group {group} has members on the target: {}; stop them first", members.join(", ")));
        }
    }
    Ok(live)
}

/// What is to be done with a group.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Write down what is to be done, and do it.
    Begin,
    /// It is written down: do it.
    Again,
    /// It is done, and not written down as such.
    Done,
    /// Leave it.
    Leave(State),
}

impl WrittenGroup {
    fn new(at: DateTime<Utc>, now: &BTreeMap<At, i64>, positions: &BTreeMap<At, Position>) -> Self {
        let one = |(of, position): (&At, &Position)| WrittenPosition {
            topic: of.0.clone(),
            partition: of.1,
            old: now.get(of).copied(),
            new: position.offset,
        };
        Self { at, done: false, positions: positions.iter().map(one).collect() }
    }

    /// What a run that goes on does with a group that is at `now` and is to be put to `wanted`.
    fn step(&self, now: &BTreeMap<At, i64>, wanted: &BTreeMap<At, Position>) -> Step {
        let at = |one: &WrittenPosition| (one.topic.clone(), one.partition);
        let same = self.positions.len() == wanted.len()
            && self.positions.iter().all(|one| wanted.get(&at(one)).is_some_and(|wanted| wanted.offset == one.new));
        let is = |which: fn(&WrittenPosition) -> Option<i64>| {
            self.positions.iter().all(|one| now.get(&at(one)).copied() == which(one))
        };
        match (same, self.done) {
            // It is asked to be elsewhere now, or was deleted.
            (false, true) => Step::Begin,
            (true, true) if now.is_empty() => Step::Begin,
            (true, true) => Step::Leave(State::AlreadySet),
            (true, false) if is(|one| Some(one.new)) => Step::Done,
            (true, false) if is(|one| one.old) => Step::Again,
            (false, false) if is(|one| one.old) || is(|one| Some(one.new)) => Step::Begin,
            (_, false) => Step::Leave(State::Moved),
        }
    }
}

impl Written {
    async fn save(&self, store: &Store) -> Result<()> {
        store.put(&layout::replay_groups(&self.replay), journal::json(self)?).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(offsets: &[(i32, i64)]) -> BTreeMap<At, i64> {
        offsets.iter().map(|(partition, offset)| (("t".to_owned(), *partition), *offset)).collect()
    }

    #[test]
    fn who_reads_on_is_not_put_back_and_a_run_that_was_killed_goes_on() {
        let wanted = |offsets: &[(i32, i64)]| -> BTreeMap<At, Position> {
            of(offsets).into_iter().map(|(at, offset)| (at, Position { offset, metadata: None })).collect()
        };
        let to = wanted(&[(0, 5), (1, 7)]);
        let begun = WrittenGroup::new(DateTime::UNIX_EPOCH, &of(&[(0, 1)]), &to);
        for (now, step) in [
            (&[(0, 1)][..], Step::Again),
            (&[(0, 5), (1, 7)], Step::Done),
            (&[(0, 6), (1, 7)], Step::Leave(State::Moved)),
            (&[(0, 5)], Step::Leave(State::Moved)),
        ] {
            assert_eq!(begun.step(&of(now), &to), step, "{now:?}");
        }
        let done = WrittenGroup { done: true, ..begun.clone() };
        for (now, step) in [
            (&[(0, 5), (1, 7)][..], Step::Leave(State::AlreadySet)),
            (&[(0, 9), (1, 7)], Step::Leave(State::AlreadySet)),
            (&[], Step::Begin),
        ] {
            assert_eq!(done.step(&of(now), &to), step, "{now:?}");
        }
        let other = wanted(&[(0, 2)]);
        assert_eq!(done.step(&of(&[(0, 9)]), &other), Step::Begin, "another time was asked for");
        assert_eq!(begun.step(&of(&[(0, 9)]), &other), Step::Leave(State::Moved));
    }
}

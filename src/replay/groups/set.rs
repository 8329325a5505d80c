//! Puts groups where they were, once each.
//!
//! What is to be done with a group, and where it was before, is written down first (`replays/<id>/groups.json`). So a run that goes
//! on knows a group that it has put there from one that somebody has moved since: who reads on from there is not put back.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use futures::stream::{self, StreamExt as _};
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

/// So many groups are asked for and put at a time: each has a client of its own, which looks for its coordinator first.
const AT_ONCE: usize = 16;

/// Where a group is to be.
type Wanted = BTreeMap<At, Position>;

/// Puts the groups of `moved` where they were at `at`. What is in the way of one is in the way of no other.
///
/// # Errors
/// The store's.
pub async fn put(store: &Store, target: &Target, at: DateTime<Utc>, moved: &[Moved]) -> Result<Vec<GroupResult>> {
    let key = layout::replay_groups(&target.id);
    let mut written: Written = journal::read(store, &key).await?.unwrap_or_default();
    (written.format, written.replay) = (FORMAT_VERSION, target.id.clone());
    let mut groups: BTreeMap<&str, Wanted> = BTreeMap::new();
    for one in moved {
        let of = groups.entry(one.group.as_str()).or_default();
        if let (Some(topic), Some(offset)) = (&one.target_topic, one.new) {
            of.insert((topic.clone(), one.partition), Position { offset, metadata: one.metadata.clone() });
        }
    }
    let groups: Vec<(&str, Wanted)> = groups.into_iter().collect();
    let mut results = Vec::with_capacity(groups.len());
    for some in groups.chunks(AT_ONCE) {
        results.extend(put_some(store, target, at, some, &mut written).await);
    }
    Ok(results)
}

/// Puts some groups: looks at each, writes down what is to be done with them, does it, and writes that down.
async fn put_some(
    store: &Store,
    target: &Target,
    at: DateTime<Utc>,
    some: &[(&str, Wanted)],
    written: &mut Written,
) -> Vec<GroupResult> {
    let looks = stream::iter(some).map(|(group, wanted)| look(target, group, wanted, written.groups.get(*group)));
    let looked: Vec<Result<(Step, BTreeMap<At, i64>)>> = looks.buffered(AT_ONCE).collect().await;
    let mut begins = false;
    for ((group, wanted), one) in some.iter().zip(&looked) {
        if let Ok((Step::Begin, now)) = one {
            written.groups.insert((*group).to_owned(), WrittenGroup::new(at, now, wanted));
            begins = true;
        }
    }
    let noted = if begins { written.save(store).await.map_err(|error| why(&error)) } else { Ok(()) };
    let puts = stream::iter(some.iter().zip(looked)).map(|((group, wanted), looked)| async {
        let (state, why) = one(target, (group, wanted), looked, noted.as_ref().err()).await;
        GroupResult { group: (*group).to_owned(), state, why }
    });
    let mut results: Vec<GroupResult> = puts.buffered(AT_ONCE).collect().await;
    for result in results.iter().filter(|result| result.state == State::Set) {
        if let Some(one) = written.groups.get_mut(&result.group) {
            one.done = true;
        }
    }
    let mut set = results.iter_mut().filter(|result| result.state == State::Set).peekable();
    if set.peek().is_some()
        && let Err(error) = written.save(store).await
    {
        set.for_each(|result| (result.state, result.why) = (State::Failed, Some(why(&error))));
    }
    results
}

/// What is to be done with a group, and where it is. An error where it has members.
async fn look(
    target: &Target,
    group: &str,
    wanted: &Wanted,
    before: Option<&WrittenGroup>,
) -> Result<(Step, BTreeMap<At, i64>)> {
    if wanted.is_empty() {
        return Ok((Step::Leave(State::Nothing), BTreeMap::new()));
    }
    let partitions: Vec<At> = wanted.keys().cloned().collect();
    let now = target.positions(group, &partitions).await?;
    let step = before.map_or(Step::Begin, |before| before.step(&now, wanted));
    if matches!(step, Step::Begin | Step::Again) {
        let members = target.members(group).await?;
        if !members.is_empty() {
            return Err(live(group, &members));
        }
    }
    Ok((step, now))
}

/// Does with one group what is to be done, unless that could not be written down, and says why it is not where it was.
async fn one(
    target: &Target,
    (group, wanted): (&str, &Wanted),
    looked: Result<(Step, BTreeMap<At, i64>)>,
    unwritten: Option<&String>,
) -> (State, Option<String>) {
    let put = match (looked, unwritten) {
        (Ok((Step::Leave(State::Moved), _)), _) => {
            return (State::Moved, Some("it is neither where it was before nor where it was to be".to_owned()));
        }
        (Ok((Step::Leave(state), _)), _) => return (state, None),
        (Ok((Step::Done, _)), _) => Ok(()),
        (Ok(_), Some(unwritten)) => return (State::Failed, Some(unwritten.clone())),
        (Ok(_), None) => target.put_positions(group, wanted.clone()).await,
        (Err(error), _) => Err(error),
    };
    match put {
        Ok(()) => (State::Set, None),
        Err(error) if error.kind() == Kind::Fenced => (State::Refused, Some(why(&error))),
        Err(error) => (State::Failed, Some(why(&error))),
    }
}

/// An error with what to do about it.
fn why(error: &Error) -> String {
    match error.hint_text() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

/// A group that somebody reads with.
fn live(group: &str, members: &[String]) -> Error {
    let message = format!("the group {group} has members: {}", members.join(", "));
    Error::new(Kind::Fenced, message).hint("stop them, and run the same command again")
}

/// Names the groups of `moved` that have members.
pub async fn live_groups<'a>(target: &Target, groups: impl Iterator<Item = &'a String>) -> Result<Vec<String>> {
    let mut live = Vec::new();
    let members = |group: &'a String| async move { (group, target.members(group).await) };
    let mut told = std::pin::pin!(stream::iter(groups).map(members).buffered(AT_ONCE));
    while let Some((group, members)) = told.next().await {
        let members = members?;
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

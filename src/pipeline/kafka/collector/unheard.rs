//! Partitions that are read and of which nothing comes, not even that they are at their end: they are started again, and where
//! that does not help, with another client.
//!
//! A partition that is read at a position says within seconds what it has there: a record, its end, or why not. One that stays
//! silent has no fetcher, or no leader; to start it again helps the first, and does the second no harm.
//!
//! One that the brokers answer for all the same is stuck in librdkafka: of a topic that is deleted and created again between two
//! looks it keeps the leader's epoch, and takes the new log's, which begin at 0, for outdated (`rd_kafka_toppar_leader_update`,
//! rdkafka_topic.c, 2.12.1): it fetches from a leader or with an epoch that there is not any more, and tells nobody. Only
//! another client forgets that.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::source::kafka::TopicPartition;

/// How long a partition may be silent, and twice as long after each start.
const SILENT: Duration = Duration::from_secs(15);
const SILENT_AT_MOST: Duration = Duration::from_secs(240);

/// A client that was replaced in vain is not replaced again for so long, and twice as long after each time: the whole group
/// notices.
const REPLACED: Duration = Duration::from_secs(120);
const REPLACED_AT_MOST: Duration = Duration::from_secs(3600);

/// A silent partition.
#[derive(Debug, Clone, Copy)]
struct Silent {
    /// Since when it is silent, or when it was started last.
    since: Instant,
    /// How long it may be.
    wait: Duration,
    /// It was started again in vain.
    started: bool,
    /// The brokers have said something of it since.
    answered: bool,
}

/// What is to be done about silent partitions.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// These are to be started again.
    Start(Vec<TopicPartition>),
    /// The client is stuck: it is to be replaced, for the sake of this one.
    Replace(TopicPartition),
}

/// The partitions of which nothing comes.
#[derive(Default)]
pub(super) struct Unheard {
    silent: BTreeMap<TopicPartition, Silent>,
    /// When the client was replaced, and how long it stays.
    replaced: Option<(Instant, Duration)>,
}

impl Unheard {
    /// Takes all that are silent now, and says what is to be done about them.
    pub(super) fn due(&mut self, silent: impl Iterator<Item = TopicPartition>, now: Instant) -> Due {
        let mut before = std::mem::take(&mut self.silent);
        let mut due = Vec::new();
        let mut stuck = None;
        for at in silent {
            let new = Silent { since: now, wait: SILENT, started: false, answered: false };
            let mut one = before.remove(&at).unwrap_or(new);
            let silent = now.duration_since(one.since);
            if one.started && one.answered && silent >= SILENT && stuck.is_none() {
                stuck = Some(at.clone());
            }
            if silent >= one.wait {
                due.push(at.clone());
                one = Silent { since: now, wait: (one.wait * 2).min(SILENT_AT_MOST), started: true, answered: false };
            }
            self.silent.insert(at, one);
        }
        let may_replace = self.replaced.is_none_or(|(last, stays)| now.duration_since(last) >= stays);
        match stuck.filter(|_| may_replace) {
            Some(at) => {
                let stays = self.replaced.map_or(REPLACED, |(_, stays)| (stays * 2).min(REPLACED_AT_MOST));
                *self = Self { replaced: Some((now, stays)), silent: BTreeMap::new() };
                Due::Replace(at)
            }
            None if due.is_empty() => Due::Nothing,
            None => Due::Start(due),
        }
    }

    /// The brokers answered a question about a partition: it has a leader.
    pub(super) fn is_answered(&mut self, at: &TopicPartition) {
        if let Some(silent) = self.silent.get_mut(at) {
            silent.answered = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(due: Due) -> Vec<TopicPartition> {
        match due {
            Due::Nothing => Vec::new(),
            Due::Start(partitions) => partitions,
            Due::Replace(at) => panic!("replaced for {at}"),
        }
    }

    #[test]
    fn what_stays_silent_is_started_again_less_and_less_often() {
        let (mut unheard, start) = (Unheard::default(), Instant::now());
        let (a, b) = (TopicPartition::new("a", 0), TopicPartition::new("b", 1));
        let mut all = Vec::new();
        for second in 0..100 {
            // One of them is heard after ten seconds, and silent again later.
            let silent = [Some(&a), (!(10..20).contains(&second)).then_some(&b)];
            let due = unheard.due(silent.into_iter().flatten().cloned(), start + Duration::from_secs(second));
            all.extend(started(due).into_iter().map(|at| (second, at.topic.to_string())));
        }
        let all: Vec<(u64, &str)> = all.iter().map(|(second, topic)| (*second, &**topic)).collect();
        assert_eq!(all, [(15, "a"), (35, "b"), (45, "a"), (65, "b")]);
        assert_eq!(unheard.due(std::iter::empty(), start), Due::Nothing);
        assert!(unheard.silent.is_empty());
    }

    #[test]
    fn a_client_that_is_stuck_is_replaced_less_and_less_often() {
        let (mut unheard, start) = (Unheard::default(), Instant::now());
        let stuck = TopicPartition::new("a", 0);
        let leaderless = TopicPartition::new("b", 0);
        let mut replaced = Vec::new();
        for second in 0..1_000 {
            let silent = [stuck.clone(), leaderless.clone()];
            unheard.is_answered(&stuck);
            if let Due::Replace(at) = unheard.due(silent.into_iter(), start + Duration::from_secs(second)) {
                replaced.push((second, at));
            }
        }
        assert_eq!(replaced, [(30, stuck.clone()), (151, stuck.clone()), (392, stuck.clone()), (873, stuck)]);
    }
}

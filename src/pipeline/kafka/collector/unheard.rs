//! Partitions that are read and of which nothing comes, not even that they are at their end: they are started again.
//!
//! A partition that is read at a position says within seconds what it has there: a record, its end, or why not. One that stays
//! silent has no fetcher, or no leader; to start it again helps the first, and does the second no harm.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Collector;
use crate::error::Result;
use crate::source::kafka::TopicPartition;

/// How long a partition may be silent, and twice as long after each start.
const SILENT: Duration = Duration::from_secs(15);
const SILENT_AT_MOST: Duration = Duration::from_secs(240);

/// Since when partitions are silent or were started, and how long they may be.
#[derive(Default)]
pub(super) struct Unheard(BTreeMap<TopicPartition, (Instant, Duration)>);

impl Unheard {
    /// Takes all that are silent now, and gives those that are to be started.
    fn due(&mut self, silent: impl Iterator<Item = TopicPartition>, now: Instant) -> Vec<TopicPartition> {
        let mut before = std::mem::take(&mut self.0);
        let mut due = Vec::new();
        for at in silent {
            let (since, wait) = before.remove(&at).unwrap_or((now, SILENT));
            if now.duration_since(since) >= wait {
                due.push(at.clone());
                self.0.insert(at, (now, (wait * 2).min(SILENT_AT_MOST)));
            } else {
                self.0.insert(at, (since, wait));
            }
        }
        due
    }
}

impl Collector {
    /// Starts what has been silent for too long.
    pub(super) fn start_unheard(&mut self, now: Instant) -> Result<()> {
        let lanes = self.current.iter().filter_map(|(topic, id)| Some((topic, self.lanes.get(id)?)));
        let silent = lanes.flat_map(|(topic, lane)| {
            lane.unheard().map(|partition| TopicPartition { topic: Arc::clone(topic), partition })
        });
        let due = self.unheard.due(silent, now);
        if due.is_empty() { Ok(()) } else { self.consumer.start_again(&due) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_silent_is_started_again_less_and_less_often() {
        let (mut unheard, start) = (Unheard::default(), Instant::now());
        let (a, b) = (TopicPartition::new("a", 0), TopicPartition::new("b", 1));
        let mut started = Vec::new();
        for second in 0..100 {
            // One of them is heard after ten seconds, and silent again later.
            let silent = [Some(&a), (!(10..20).contains(&second)).then_some(&b)];
            let due = unheard.due(silent.into_iter().flatten().cloned(), start + Duration::from_secs(second));
            started.extend(due.into_iter().map(|at| (second, at.topic.to_string())));
        }
        let started: Vec<(u64, &str)> = started.iter().map(|(second, topic)| (*second, &**topic)).collect();
        assert_eq!(started, [(15, "a"), (35, "b"), (45, "a"), (65, "b")]);
        assert!(unheard.due(std::iter::empty(), start).is_empty() && unheard.0.is_empty());
    }
}

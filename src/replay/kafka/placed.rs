//! Where the target put what was sent: delivery reports become runs of records that lie side by side.
//!
//! Reports come by the batch, and a batch is of one partition; so the partition of the last report is nearly always that of the next.

use std::collections::BTreeMap;

use crate::replay::offset_map::{At, SentRun, UNTOLD};

/// The runs of the open transaction. Which generation they are of nobody has said yet.
#[derive(Debug, Default)]
pub(super) struct Placed {
    /// The partition of the last report.
    current: Option<(At, Vec<SentRun>)>,
    others: BTreeMap<At, Vec<SentRun>>,
}

impl Placed {
    /// A record has arrived.
    pub(super) fn add(&mut self, topic: &str, partition: i32, source: i64, target: i64) {
        let target = if target < 0 { UNTOLD } else { target };
        match &mut self.current {
            Some((at, runs)) if at.1 == partition && at.0 == topic => put(runs, source, target),
            _ => {
                let at = (topic.to_owned(), partition);
                let mut runs = self.others.remove(&at).unwrap_or_default();
                put(&mut runs, source, target);
                if let Some((before, of_before)) = self.current.replace((at, runs)) {
                    self.others.insert(before, of_before);
                }
            }
        }
    }

    /// What has arrived since it was asked last, in the order of the source.
    pub(super) fn take(&mut self) -> BTreeMap<At, Vec<SentRun>> {
        let mut all = std::mem::take(&mut self.others);
        all.extend(self.current.take());
        all.values_mut().for_each(|runs| runs.sort_by_key(|run| run.first));
        all
    }
}

fn put(runs: &mut Vec<SentRun>, source: i64, target: i64) {
    if !runs.last_mut().is_some_and(|run| run.takes(source, target)) {
        runs.push(SentRun::of(0, source, target));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_batches_that_take_turns_are_one_run_a_stretch() {
        let mut placed = Placed::default();
        for (topic, partition, source, target) in
            [("a", 0, 5, 0), ("a", 0, 7, 1), ("a", 1, 5, 9), ("a", 0, 8, 2), ("a", 0, 9, 4), ("b", 0, 1, -1001)]
        {
            placed.add(topic, partition, source, target);
        }
        let taken = placed.take();
        let of = |topic: &str, partition| &taken[&(topic.to_owned(), partition)];
        let run = |first, last, target, records| SentRun { generation: 0, first, last, target, records };
        assert_eq!(of("a", 0), &[run(5, 8, 0, 3), run(9, 9, 4, 1)]);
        assert_eq!(of("a", 1), &[run(5, 5, 9, 1)]);
        assert_eq!(of("b", 0), &[run(1, 1, UNTOLD, 1)]);
        assert!(placed.take().is_empty());
    }
}

//! What a segmenter shows of its topic beside its positions: what the archive holds of it, what fails, how fast it goes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};

use super::count::TopicCounters;
use super::messages::SeenPartition;
use super::stalls;
use super::status::{GapSpan, PartitionStatus};
use crate::stream::{PartitionRange, Totals};
use crate::tasks::Reporter;

/// Rates are taken over this many samples, of which there is one a second.
const SAMPLES: usize = 10;

/// A topic with more gaps than this shows the newest.
pub(super) const MOST_GAPS: usize = 50;

/// One topic as it is shown.
pub(super) struct Shown {
    pub(super) label: Arc<str>,
    pub(super) counters: TopicCounters,
    pub(super) totals: Totals,
    pub(super) gaps: Arc<[GapSpan]>,
    /// Whether steps of its segments fail.
    pub(super) encoding: Reporter,
    pub(super) pace: Pace,
    /// Which partitions stand still.
    pub(super) still: stalls::Watch,
    seen: BTreeMap<i32, (Option<i64>, Option<DateTime<Utc>>)>,
    /// Up to when the topic is complete.
    pub(super) complete_through: Option<DateTime<Utc>>,
}

impl Shown {
    pub(super) fn new(label: Arc<str>, totals: Totals, encoding: Reporter) -> Self {
        let counters = TopicCounters::new(&label);
        let (gaps, pace, seen) = (Arc::new([]), Pace::default(), BTreeMap::new());
        let still = stalls::Watch::default();
        Self { label, counters, totals, gaps, encoding, pace, still, seen, complete_through: None }
    }

    /// Takes in where a partition ends and how far it is complete.
    pub(super) fn see(&mut self, seen: &SeenPartition) {
        let (end, complete) = self.seen.entry(seen.at.partition).or_default();
        *end = seen.end.or(*end);
        *complete = seen.complete_through;
        self.still.is_untold(seen.at.partition, seen.untold.clone());
    }

    /// What was seen of a partition is another's matter now.
    pub(super) fn forget(&mut self, partition: i32) {
        self.seen.remove(&partition);
        self.still.forget(partition);
    }

    /// Fills in what was seen of a partition.
    pub(super) fn fill(&self, status: &mut PartitionStatus) {
        if let Some((end, complete)) = self.seen.get(&status.partition) {
            (status.end, status.complete_through) = (*end, *complete);
        }
    }

    /// Adds gaps, each once; the newest stay.
    pub(super) fn add_gaps(&mut self, new: Vec<GapSpan>) {
        let mut gaps: Vec<GapSpan> = self.gaps.iter().cloned().chain(new).collect();
        gaps.sort_by_key(|gap| (gap.found, gap.partition, gap.start));
        gaps.dedup_by_key(|gap| (gap.partition, gap.start));
        self.gaps = gaps.split_off(gaps.len().saturating_sub(MOST_GAPS)).into();
    }
}

impl Shown {
    /// Takes in what was archived of a partition: the records that follow a gap say until when the lost ones were written.
    pub(super) fn follow(&mut self, range: &PartitionRange) {
        let Some(after) = range.min_timestamp else { return };
        let follows = |gap: &GapSpan| {
            gap.partition == range.partition && gap.to == gap.found && (range.start..range.end).contains(&gap.end)
        };
        if self.gaps.iter().any(follows) {
            let ended = |gap: &GapSpan| {
                let to = after.min(gap.found);
                GapSpan { to, from: gap.from.map(|from| from.min(to)), ..gap.clone() }
            };
            self.gaps = self.gaps.iter().map(|gap| if follows(gap) { ended(gap) } else { gap.clone() }).collect();
        }
    }
}

/// How fast records come.
#[derive(Default)]
pub(super) struct Pace {
    samples: VecDeque<(Instant, u64, u64)>,
}

impl Pace {
    /// Takes a sample of two sums that only grow, and gives how much each has grown a second.
    pub(super) fn sample(&mut self, now: Instant, records: u64, bytes: u64) -> (f64, f64) {
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((now, records, bytes));
        let Some((then, records_then, bytes_then)) = self.samples.front() else { return (0.0, 0.0) };
        let seconds = now.duration_since(*then).as_secs_f64();
        if seconds <= 0.0 {
            return (0.0, 0.0);
        }
        let rate = |grown: u64| grown as f64 / seconds;
        (rate(records.saturating_sub(*records_then)), rate(bytes.saturating_sub(*bytes_then)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tasks::{Task, Tasks};

    /// Returns what a topic shows of which nothing is known.
    pub(in crate::pipeline::kafka) fn shown() -> Shown {
        let reporter = Arc::<Tasks>::default().reporter(Task::KafkaSpool, "a");
        Shown::new("a".into(), Totals::default(), reporter)
    }

    #[test]
    fn the_pace_is_that_of_the_last_ten_seconds() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        assert_eq!(pace.sample(at(0), 100, 0), (0.0, 0.0));
        assert_eq!(pace.sample(at(1), 150, 10), (50.0, 10.0));
        for second in 2..=20 {
            pace.sample(at(second), 150, 10);
        }
        assert_eq!(pace.sample(at(21), 250, 10), (10.0, 0.0));
        assert_eq!(pace.sample(at(22), 0, 0), (0.0, 0.0), "a sum that fell is no negative rate");
    }

    #[test]
    fn a_gap_ends_where_the_next_records_begin() {
        let gap = GapSpan {
            partition: 1,
            start: 10,
            end: 30,
            reason: "broker_retention",
            from: Some(2_000),
            to: 9_000,
            found: 9_000,
        };
        let range = |partition, start, min| PartitionRange {
            partition,
            start,
            end: start + 10,
            records: 10,
            min_timestamp: min,
            max_timestamp: min,
        };
        let mut shown = shown();
        shown.add_gaps(vec![gap]);
        for other in [range(0, 30, Some(1)), range(1, 0, Some(1)), range(1, 30, None)] {
            shown.follow(&other);
            assert_eq!(shown.gaps[0].to, 9_000, "{other:?}");
        }
        shown.follow(&range(1, 30, Some(5_000)));
        assert_eq!((shown.gaps[0].from, shown.gaps[0].to), (Some(2_000), 5_000));
        shown.follow(&range(1, 30, Some(4_000)));
        assert_eq!(shown.gaps[0].to, 5_000, "once it is known, it is known");
    }

    #[test]
    fn gaps_come_once_and_the_newest_stay() {
        let gap = |start: i64| GapSpan {
            partition: 0,
            start,
            end: start + 1,
            reason: "broker_retention",
            from: None,
            to: start,
            found: start,
        };
        let mut shown = shown();
        shown.add_gaps(vec![gap(3), gap(1)]);
        shown.add_gaps((1..=60).map(gap).collect());
        assert_eq!(shown.gaps.len(), MOST_GAPS);
        assert_eq!((shown.gaps[0].start, shown.gaps[MOST_GAPS - 1].start), (11, 60));
    }
}

//! Which partitions stand still although there are records to read, or are archived as far as is known and not known to be
//! complete, and why.
//!
//! ```text
//!   coverage ── where partitions end ──┐
//!   librdkafka ── errors, faults ──────┼──► Watch of a topic, once a second ──► judge ──► PartitionStatus::stall
//!   question ── last stable offsets ───┘
//! ```
//!
//! A partition is behind when its end on the broker lies beyond the offset that is read next. It stands still from the
//! moment at which it is behind and does not move. Why is told by the first fact that explains it; where none does, it is
//! told all the same. One of which everything is archived up to its end, as far as that is known, is claimed to be complete
//! in the next round; where it is not, the reason is told, too: without a claim the topic has no `COMPLETE TO`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::mpsc;

use super::messages::TaskEvent;
use super::shared::Shared;
use super::status::{Cause, PartitionStatus, Stall};
use crate::config::Isolation;
use crate::error::{Error, Kind};
use crate::source::kafka::{OffsetAt, TopicPartition};

/// From when on a partition that stands still is shown.
const SHOWN_AFTER: TimeDelta = TimeDelta::seconds(10);

/// From when on it is shown that nothing is claimed of a partition: rounds are 15 s apart where nothing happens.
const UNCLAIMED_AFTER: TimeDelta = TimeDelta::seconds(30);

/// What librdkafka said of the connection explains a partition that has stood still since for this long.
const FAULT_LASTS: TimeDelta = TimeDelta::minutes(10);

/// What librdkafka said.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) at: DateTime<Utc>,
    pub(super) kind: Kind,
    pub(super) text: Arc<str>,
    pub(super) hint: Option<Arc<str>>,
}

impl Refusal {
    pub(super) fn of(error: &Error) -> Self {
        let hint = error.hint_text().map(Arc::from);
        Self { at: crate::time::now(), kind: error.kind(), text: error.to_string().into(), hint }
    }
}

/// What holds for all partitions of a segmenter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Around<'a> {
    /// Somebody wants nothing to be read.
    pub(super) paused: bool,
    /// The memory budget is used up.
    pub(super) memory_full: bool,
    /// The topic has as many finished segments as it may, because the store does not take them.
    pub(super) backed_up: bool,
    /// The brokers do not say where anything ends: that is told for itself.
    pub(super) no_ends: bool,
    /// What was said last of the connection to a broker.
    pub(super) fault: Option<&'a Refusal>,
}

/// What is known of one partition.
#[derive(Debug, Clone)]
struct Still {
    next: i64,
    /// Since when it is behind and has not moved; none while it goes on.
    since: Option<DateTime<Utc>>,
    /// What was said of it since it last moved.
    refused: Option<Refusal>,
    /// The last stable offset, as it was told since it stands still.
    stable: Option<i64>,
}

/// What is known of the claims of one partition, whether it goes on or not.
#[derive(Debug, Clone, Default)]
struct Claims {
    complete_through: Option<DateTime<Utc>>,
    /// Since when it is archived as far as is known, and nothing more has been claimed of it.
    since: Option<DateTime<Utc>>,
    /// Why the last round said nothing of it.
    untold: Option<Arc<str>>,
}

impl Claims {
    fn look(&mut self, status: &PartitionStatus, around: Around<'_>, now: DateTime<Utc>) {
        let is_archived = !status.held && status.end.is_none_or(|end| status.archived >= end);
        let is_due = is_archived && !around.paused && !around.no_ends;
        let is_same = self.complete_through == status.complete_through;
        self.since = (is_due && is_same).then(|| self.since.unwrap_or(now));
        self.complete_through = status.complete_through;
    }

    fn judge(&self, now: DateTime<Utc>) -> Option<Stall> {
        let since = self.since.filter(|since| now - *since >= UNCLAIMED_AFTER)?;
        let cause = Cause::Unclaimed;
        let text = self.untold.clone().unwrap_or_else(|| cause.text().into());
        Some(Stall { cause, since, text, hint: cause.hint().into() })
    }
}

/// The partitions of a topic.
#[derive(Debug, Default)]
pub(super) struct Watch {
    partitions: BTreeMap<i32, Still>,
    claims: BTreeMap<i32, Claims>,
    /// What was said of the topic as a whole since one of its partitions moved.
    refused: Option<Refusal>,
}

impl Watch {
    /// A partition cannot be read now.
    pub(super) fn refuse(&mut self, partition: i32, refusal: Refusal) {
        if let Some(still) = self.partitions.get_mut(&partition) {
            still.refused = Some(refusal);
        }
    }

    /// The topic cannot be read now.
    pub(super) fn refuse_all(&mut self, refusal: Refusal) {
        self.refused = Some(refusal);
    }

    /// Takes in up to where everything is decided.
    pub(super) fn is_stable_to(&mut self, partition: i32, offset: i64) {
        if let Some(still) = self.partitions.get_mut(&partition) {
            still.stable = Some(offset);
        }
    }

    /// Takes in why a round said nothing of a partition, if it did not.
    pub(super) fn is_untold(&mut self, partition: i32, why: Option<Arc<str>>) {
        self.claims.entry(partition).or_default().untold = why;
    }

    /// What was known of a partition is another's matter now.
    pub(super) fn forget(&mut self, partition: i32) {
        self.partitions.remove(&partition);
        self.claims.remove(&partition);
    }

    /// Looks whether partitions go on, and says of those that do not why.
    pub(super) fn look(&mut self, partitions: &mut [PartitionStatus], around: Around<'_>, now: DateTime<Utc>) {
        for status in partitions.iter_mut() {
            let new = Still { next: status.next, since: None, refused: None, stable: None };
            let still = self.partitions.entry(status.partition).or_insert(new);
            if still.next != status.next {
                *still = Still { next: status.next, since: None, refused: None, stable: None };
                self.refused = None;
            }
            let has_more = status.held || status.end.is_none_or(|end| status.next < end);
            still.since = (has_more && !around.paused).then(|| still.since.unwrap_or(now));
            self.claims.entry(status.partition).or_default().look(status, around, now);
        }
        for status in partitions {
            let Some(still) = self.partitions.get(&status.partition) else { continue };
            let claims = self.claims.get(&status.partition);
            let unclaimed = || claims.and_then(|claims| claims.judge(now));
            status.stall = judge(status, still, self.refused.as_ref(), around, now).or_else(unclaimed);
        }
    }

    /// The partitions that stand still, for which nobody has said why.
    pub(super) fn unexplained(&self, now: DateTime<Utc>) -> impl Iterator<Item = i32> {
        let asked = move |still: &Still| still.since.is_some_and(|since| now - since >= SHOWN_AFTER / 2);
        self.partitions.iter().filter(move |(_, still)| asked(still)).map(|(partition, _)| *partition)
    }
}

/// Returns why a partition stands still, if it has for long enough.
fn judge(
    status: &PartitionStatus,
    still: &Still,
    of_topic: Option<&Refusal>,
    around: Around<'_>,
    now: DateTime<Utc>,
) -> Option<Stall> {
    let since = still.since.filter(|since| now - *since >= SHOWN_AFTER)?;
    let said = still.refused.as_ref().or(of_topic);
    let fault = around.fault.filter(|fault| now - fault.at < FAULT_LASTS);
    let stable = still.stable.filter(|stable| *stable <= status.next && status.end.is_some_and(|end| *stable < end));
    let (cause, said) = match (said, fault) {
        _ if around.backed_up => (Cause::Store, None),
        _ if around.memory_full => (Cause::Memory, None),
        _ if status.held => (Cause::Position, None),
        (Some(said), _) => (cause_of(said), Some(said)),
        _ if status.end.is_none() => (Cause::NoEnd, None),
        _ if stable.is_some() => (Cause::OpenTransaction, None),
        (None, Some(fault)) => (cause_of(fault), Some(fault)),
        (None, None) => (Cause::Unknown, None),
    };
    let text = said.map_or_else(|| cause.text().into(), |said| Arc::clone(&said.text));
    let hint = match said.and_then(|said| said.hint.clone()) {
        Some(hint) => hint,
        None => cause.hint().into(),
    };
    Some(Stall { cause, since, text, hint })
}

fn cause_of(said: &Refusal) -> Cause {
    match said.kind {
        _ if said.text.contains("receive.message.max.bytes") || said.text.contains("MSG_SIZE_TOO_LARGE") => {
            Cause::TooLarge
        }
        Kind::Corrupt | Kind::Unsupported => Cause::Unreadable,
        Kind::Denied => Cause::Denied,
        _ => Cause::Refused,
    }
}

/// How long the brokers may take to say up to where everything is decided.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Asks for the last stable offsets of partitions that stand still, until the collector ends. What is not answered is asked
/// again while they do.
pub(super) async fn answer(shared: Arc<Shared>, mut questions: mpsc::Receiver<Vec<TopicPartition>>) {
    let cluster = shared.cluster.within(ANSWER_WITHIN);
    while let Some(partitions) = questions.recv().await {
        match cluster.list_offsets(&partitions, OffsetAt::Latest, Isolation::ReadCommitted).await {
            Ok(listed) => {
                let known = listed.into_iter().filter_map(|(at, offset)| Some((at, offset.ok()??)));
                shared.send(TaskEvent::Stable(known.collect()));
            }
            // That the brokers do not answer is told by those that ask for the ends.
            Err(error) => tracing::debug!(%error, "the last stable offsets are not known"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CALM: Around<'static> =
        Around { paused: false, memory_full: false, backed_up: false, no_ends: false, fault: None };

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_000_000 + seconds, 0).expect("a time")
    }

    fn partition(next: i64, end: Option<i64>) -> PartitionStatus {
        PartitionStatus {
            partition: 0,
            committed: next,
            archived: next,
            next,
            end,
            complete_through: None,
            held: false,
            stall: None,
        }
    }

    fn refusal(kind: Kind, text: &str, seconds: i64) -> Refusal {
        Refusal { at: at(seconds), kind, text: text.into(), hint: None }
    }

    fn look(watch: &mut Watch, status: PartitionStatus, around: Around<'_>, seconds: i64) -> Option<Stall> {
        let mut all = [status];
        watch.look(&mut all, around, at(seconds));
        let [status] = all;
        status.stall
    }

    #[test]
    fn a_partition_stands_still_from_when_it_is_behind_and_not_from_its_last_record() {
        let mut watch = Watch::default();
        assert_eq!(look(&mut watch, partition(10, Some(10)), CALM, 0), None);
        assert_eq!(look(&mut watch, partition(10, Some(11)), CALM, 3_600), None, "a quiet topic got a record just now");
        assert_eq!(look(&mut watch, partition(10, Some(11)), CALM, 3_609), None);
        let stall = look(&mut watch, partition(10, Some(11)), CALM, 3_610).expect("it stands still");
        assert_eq!((stall.cause, stall.since), (Cause::Unknown, at(3_600)));
        assert_eq!(look(&mut watch, partition(11, Some(20)), CALM, 3_611), None, "it has moved");
        assert_eq!(look(&mut watch, partition(11, Some(20)), CALM, 3_620), None);
        assert!(look(&mut watch, partition(11, Some(20)), CALM, 3_621).is_some());
    }

    #[test]
    fn the_first_fact_that_explains_it_is_the_cause() {
        let fault = refusal(Kind::Corrupt, "Invalid response size: increase receive.message.max.bytes (BAD_MSG)", 0);
        let away = Around { fault: Some(&fault), ..CALM };
        let causes = |watch: &mut Watch, status: &PartitionStatus, around| {
            look(watch, status.clone(), around, 0);
            look(watch, status.clone(), around, 10).map(|stall| stall.cause)
        };
        let behind = partition(10, Some(20));
        let mut watch = Watch::default();
        assert_eq!(causes(&mut watch, &behind, CALM), Some(Cause::Unknown));
        assert_eq!(causes(&mut watch, &behind, away), Some(Cause::TooLarge));
        assert_eq!(causes(&mut watch, &behind, Around { backed_up: true, ..away }), Some(Cause::Store));
        assert_eq!(causes(&mut watch, &behind, Around { memory_full: true, ..away }), Some(Cause::Memory));
        assert_eq!(causes(&mut watch, &PartitionStatus { held: true, ..behind.clone() }, CALM), Some(Cause::Position));
        assert_eq!(causes(&mut watch, &partition(10, None), CALM), Some(Cause::NoEnd));
        watch.is_stable_to(0, 15);
        assert_eq!(
            causes(&mut watch, &behind, CALM),
            Some(Cause::Unknown),
            "there is something to read before the transaction"
        );
        watch.is_stable_to(0, 10);
        assert_eq!(causes(&mut watch, &behind, away), Some(Cause::OpenTransaction));
        watch.refuse_all(refusal(Kind::Denied, "no right", 5));
        assert_eq!(causes(&mut watch, &behind, CALM), Some(Cause::Denied));
        for (kind, cause) in [
            (Kind::Corrupt, Cause::Unreadable),
            (Kind::Unsupported, Cause::Unreadable),
            (Kind::Denied, Cause::Denied),
            (Kind::Unavailable, Cause::Refused),
        ] {
            watch.refuse(0, refusal(kind, "no", 5));
            assert_eq!(causes(&mut watch, &behind, away), Some(cause));
        }
        assert_eq!(causes(&mut watch, &partition(11, Some(20)), CALM), Some(Cause::Unknown), "what was said is over");
    }

    #[test]
    fn a_pause_is_no_stall_and_an_old_fault_explains_nothing() {
        let mut watch = Watch::default();
        let paused = Around { paused: true, ..CALM };
        for seconds in [0, 100] {
            assert_eq!(look(&mut watch, partition(10, Some(20)), paused, seconds), None);
        }
        let fault = refusal(Kind::Unavailable, "the broker went away", -600);
        look(&mut watch, partition(10, Some(20)), CALM, 200);
        let around = Around { fault: Some(&fault), ..CALM };
        assert_eq!(
            look(&mut watch, partition(10, Some(20)), around, 210).map(|stall| stall.cause),
            Some(Cause::Unknown)
        );
    }

    #[test]
    fn what_is_archived_to_its_end_and_not_claimed_is_told_with_the_reason() {
        let claimed = |next, complete: Option<i64>| PartitionStatus {
            complete_through: complete.map(at),
            ..partition(next, Some(10))
        };
        let told = |stall: Option<Stall>| stall.map(|stall| (stall.cause, stall.since, stall.text.to_string()));
        let text = Cause::Unclaimed.text().to_owned();
        let mut watch = Watch::default();
        for seconds in 0..30 {
            assert_eq!(look(&mut watch, claimed(10, None), CALM, seconds), None, "{seconds}");
        }
        let unclaimed = look(&mut watch, claimed(10, None), CALM, 30);
        assert!(unclaimed.as_ref().is_some_and(|stall| !stall.is_failure(at(59)) && stall.is_failure(at(60))));
        assert_eq!(told(unclaimed), Some((Cause::Unclaimed, at(0), text)));
        watch.is_untold(0, Some("no leader".into()));
        let said = "no leader".to_owned();
        assert_eq!(told(look(&mut watch, claimed(11, None), CALM, 31)), Some((Cause::Unclaimed, at(0), said)));
        assert_eq!(look(&mut watch, claimed(12, Some(31)), CALM, 32), None, "it is claimed");
        for seconds in 33..62 {
            assert_eq!(look(&mut watch, claimed(seconds, Some(31)), CALM, seconds), None, "{seconds}");
        }
        let stall = look(&mut watch, claimed(70, Some(31)), CALM, 63);
        assert_eq!(stall.map(|stall| stall.since), Some(at(33)), "records that come do not hide it");
        for other in [claimed(9, Some(31)), PartitionStatus { held: true, ..claimed(10, Some(31)) }] {
            let found = look(&mut watch, other, CALM, 64);
            assert!(found.is_none_or(|stall| stall.cause != Cause::Unclaimed), "what is not archived is not claimed");
        }
        let away = Around { no_ends: true, ..CALM };
        for seconds in [100, 200] {
            assert_eq!(look(&mut watch, claimed(10, Some(31)), away, seconds), None, "that is told for itself");
        }
    }

    proptest! {
        /// Whatever is said and whatever is around it: behind and not moved for long enough is told, by its beginning.
        #[test]
        fn nothing_hides_a_partition_that_stands_still(
            steps in prop::collection::vec((0_i64..3, prop::option::of(0_i64..6), any::<bool>(), 0_u8..6), 1..60),
        ) {
            let mut watch = Watch::default();
            let (mut next, mut since) = (0, None);
            let fault = refusal(Kind::Unavailable, "away", 0);
            for (seconds, (moved, end, held, around)) in (0_i64..).step_by(4).zip(steps) {
                next += i64::from(moved == 2);
                let end = end.map(|more| next + more);
                let around = Around {
                    paused: around == 1,
                    memory_full: around == 2,
                    backed_up: around == 3,
                    no_ends: false,
                    fault: (around == 4).then_some(&fault),
                };
                if around.paused || moved == 2 {
                    since = None;
                }
                let behind = held || end.is_none_or(|end| next < end);
                since = (behind && !around.paused).then(|| since.unwrap_or(at(seconds)));
                let stall = look(&mut watch, PartitionStatus { held, ..partition(next, end) }, around, seconds);
                let expected = since.filter(|since| at(seconds) - *since >= SHOWN_AFTER);
                let stall = stall.filter(|stall| stall.cause != Cause::Unclaimed);
                prop_assert_eq!(stall.map(|stall| stall.since), expected);
            }
        }
    }
}

//! A segmenter without a consumer: ranges, ages, failures, partitions that leave, pauses.

use super::*;

/// A segmenter of two partitions.
fn segmenter() -> Segmenter {
    numbered(SegmenterId(0))
}

/// The same, with an id.
pub(in crate::pipeline::kafka) fn numbered(id: SegmenterId) -> Segmenter {
    let settings = config::Segment {
        format: crate::stream::Format::Avro,
        zstd_level: 1,
        max_bytes: 1 << 20,
        max_records: 1000,
        max_age: Duration::from_secs(60),
    };
    let mut segmenter = Segmenter::new(
        id,
        ("orders".into(), TopicGeneration::new("main", "orders", 0)),
        None,
        settings,
        crate::pipeline::kafka::shown::tests::shown(),
    );
    segmenter.add(0, 100);
    segmenter.add(2, 7);
    segmenter
}

/// The ranges that the next step ends, if it ends a segment.
fn sealed(segmenter: &mut Segmenter) -> Option<Vec<(i32, i64, i64)>> {
    let (step, _) = segmenter.next_step(Instant::now())?;
    segmenter.step_done(step.memory, None);
    Some(step.finish?.ranges)
}

fn covered(partition: i32, start: i64, end: i64) -> PartitionRange {
    PartitionRange { partition, start, end, records: 0, min_timestamp: None, max_timestamp: None }
}

#[test]
fn ranges_of_segments_follow_each_other() {
    let (mut segmenter, now) = (segmenter(), Instant::now());
    segmenter.advance(0, 120, now);
    segmenter.seal(SealReason::Age);
    segmenter.advance(0, 110, now);
    segmenter.advance(2, 9, now);
    segmenter.advance(0, 121, now);
    segmenter.seal(SealReason::Age);
    segmenter.seal(SealReason::Age);
    assert_eq!(sealed(&mut segmenter), Some(vec![(0, 100, 120)]));
    assert_eq!(sealed(&mut segmenter), Some(vec![(0, 120, 121), (2, 7, 9)]));
    assert_eq!(sealed(&mut segmenter), None);
    assert_eq!(segmenter.sealed(), 2);
}

#[test]
fn a_segment_is_as_old_as_the_first_that_came_into_it() {
    let (mut segmenter, now) = (segmenter(), Instant::now());
    segmenter.seal_if_old(now + Duration::from_secs(600));
    assert_eq!(segmenter.sealed(), 0);
    segmenter.advance(0, 101, now);
    segmenter.advance(0, 102, now + Duration::from_secs(59));
    segmenter.seal_if_old(now + Duration::from_secs(59));
    assert_eq!(segmenter.sealed(), 0);
    segmenter.seal_if_old(now + Duration::from_secs(60));
    assert_eq!(segmenter.sealed(), 1);
    assert!(!segmenter.is_idle());
    assert_eq!(sealed(&mut segmenter), Some(vec![(0, 100, 102)]));
    segmenter.covered(1, &[covered(0, 100, 102)]);
    assert!(segmenter.is_idle());
}

#[test]
fn one_step_at_a_time_is_under_way_and_none_before_the_end_of_a_pause() {
    let (mut segmenter, now) = (segmenter(), Instant::now());
    for end in [101, 102] {
        segmenter.advance(0, end, now);
        segmenter.seal(SealReason::Age);
    }
    let (step, _) = segmenter.next_step(now).expect("a step");
    assert!(segmenter.next_step(now).is_none() && !segmenter.is_ready(now));
    segmenter.start_over(now + RETRY_AFTER);
    assert_eq!(step.finish.expect("an end").seq, 1);
    segmenter.reposition(0, 100);
    segmenter.advance(0, 101, now);
    segmenter.seal(SealReason::Age);
    assert!(segmenter.next_step(now).is_none() && !segmenter.is_ready(now));
    assert!(segmenter.is_ready(now + RETRY_AFTER) && segmenter.next_step(now + RETRY_AFTER).is_some());
}

#[test]
fn what_failed_is_held_until_its_position_is_known_and_then_read_again() {
    let (mut segmenter, now) = (segmenter(), Instant::now());
    segmenter.advance(0, 150, now);
    segmenter.seal(SealReason::Age);
    segmenter.start_over(now);
    segmenter.advance(0, 160, now);
    segmenter.seal(SealReason::Age);
    assert_eq!((segmenter.sealed(), sealed(&mut segmenter)), (1, None), "held partitions take nothing");
    assert_eq!(segmenter.committed_offsets(), [(0, 100), (2, 7)]);
    segmenter.reposition(0, 100);
    segmenter.advance(0, 130, now);
    segmenter.advance(2, 9, now);
    segmenter.seal(SealReason::Age);
    assert_eq!(sealed(&mut segmenter), Some(vec![(0, 100, 130)]));
}

#[test]
fn a_dropped_segment_matters_once() {
    let (mut segmenter, now) = (segmenter(), Instant::now());
    for end in [110, 120] {
        segmenter.advance(0, end, now);
        segmenter.seal(SealReason::Age);
    }
    assert!(segmenter.misses(0, 1));
    segmenter.reposition(0, 100);
    assert!(!segmenter.misses(0, 1) && !segmenter.misses(0, 2), "segments before the new beginning");
    segmenter.advance(0, 110, now);
    segmenter.seal(SealReason::Age);
    assert!(segmenter.misses(0, 3));
    assert!(!segmenter.misses(1, 3), "a partition that the lane does not carry");
    segmenter.remove(0);
    segmenter.add(0, 110);
    assert!(!segmenter.misses(0, 3), "a partition that came back was read from the archive's position");
}

#[test]
fn a_partition_that_leaves_takes_nothing_and_is_not_begun_anew() {
    let (mut segmenter, now) = (segmenter(), Instant::now());
    segmenter.advance(0, 110, now);
    segmenter.seal(SealReason::Revoked);
    segmenter.hold(0, Wait::Leaving);
    segmenter.reposition(0, 105);
    segmenter.advance(0, 120, now);
    segmenter.seal(SealReason::Age);
    assert_eq!(sealed(&mut segmenter), Some(vec![(0, 100, 110)]));
    assert_eq!(sealed(&mut segmenter), None);
    segmenter.remove(0);
    assert_eq!(segmenter.partitions(), [2]);
}

#[test]
fn fetching_pauses_while_the_store_is_behind_and_goes_on_where_it_stopped() {
    let (mut segmenter, now) = (segmenter(), Instant::now());
    let mut end = 100;
    for _ in 0..MOST_WAITING {
        assert_eq!(segmenter.reconcile(false), (vec![], vec![]));
        end += 1;
        segmenter.advance(0, end, now);
        segmenter.seal(SealReason::Size);
    }
    assert!(segmenter.is_backed_up());
    assert_eq!(segmenter.reconcile(false), (vec![0, 2], vec![]));
    assert_eq!(segmenter.reconcile(false), (vec![], vec![]));
    segmenter.covered(1, &[covered(0, 100, 101)]);
    assert_eq!(segmenter.reconcile(false), (vec![], vec![]), "it waits until half of them are committed");
    segmenter.covered(MOST_WAITING / 2, &[]);
    assert_eq!(segmenter.reconcile(false), (vec![], vec![(0, end), (2, 7)]));
    segmenter.hold(2, Wait::OutOfRange);
    assert_eq!(segmenter.reconcile(false), (vec![2], vec![]));
    assert_eq!(segmenter.reconcile(true), (vec![0], vec![]));
    segmenter.reposition(2, 5);
    assert_eq!(segmenter.reconcile(false), (vec![], vec![(0, end), (2, 5)]));
}

#[test]
fn coverage_reaches_over_offsets_without_records_only() {
    let (mut segmenter, now) = (segmenter(), Instant::now());
    segmenter.advance(0, 130, now);
    let reached = |segmenter: &Segmenter| segmenter.reached().collect::<Vec<_>>();
    assert_eq!(reached(&segmenter).len(), 1, "the broker has said nothing of partition 2");
    segmenter.advance(2, 7, now);
    let idle = (2, Reached { covered: 7, archived: 7, received: 7 });
    assert_eq!(reached(&segmenter), [(0, Reached { covered: 100, archived: 130, received: 130 }), idle]);
    segmenter.hold(0, Wait::OutOfRange);
    assert_eq!(reached(&segmenter), [idle], "nothing is known of a held partition");
}

/// The number or the question of each step, in the order in which the committer gets them.
fn steps(segmenter: &mut Segmenter) -> Vec<Result<u64, Question>> {
    let mut found = Vec::new();
    while let Some((step, _)) = segmenter.next_step(Instant::now()) {
        segmenter.step_done(step.memory, None);
        found.extend(step.finish.map(|finish| Ok(finish.seq)));
        found.extend(step.question.map(Err));
    }
    found
}

#[test]
fn a_question_stands_behind_all_that_came_before_it() {
    let (mut segmenter, now) = (segmenter(), Instant::now());
    segmenter.advance(0, 110, now);
    segmenter.seal(SealReason::Age);
    segmenter.advance(0, 120, now);
    let question = Question::OutOfRange { partition: 0 };
    segmenter.hold(0, Wait::OutOfRange);
    segmenter.ask(question.clone());
    segmenter.advance(2, 9, now);
    segmenter.seal(SealReason::Age);
    assert_eq!(
        steps(&mut segmenter),
        [Ok(1), Ok(2), Err(question), Ok(3)],
        "what was open is sealed before the question"
    );
}

#[test]
fn a_question_survives_a_spool_that_fails_and_its_partition_waits_for_the_same_answer() {
    let (mut segmenter, now) = (segmenter(), Instant::now());
    segmenter.advance(0, 110, now);
    segmenter.end(None);
    segmenter.start_over(now);
    let place = Question::Where { seq: 1, partitions: vec![(0, 100), (2, 7)] };
    assert_eq!(steps(&mut segmenter), [Err(Question::End { cut: None }), Err(place)]);
    assert_eq!(segmenter.carries(0), Some(Some(Wait::NextGeneration)));
    assert_eq!(segmenter.carries(1), None);
}

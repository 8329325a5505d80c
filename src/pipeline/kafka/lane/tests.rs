//! A lane without a consumer: ranges, ages, failures, partitions that leave, pauses.

use super::*;

fn lane() -> Lane {
    let settings = config::Segment {
        format: crate::stream::Format::Avro,
        zstd_level: 1,
        max_bytes: 1 << 20,
        max_records: 1000,
        max_age: Duration::from_secs(60),
    };
    let mut lane = Lane::new(
        LaneId(0),
        ("orders".into(), TopicLife::new("main", "orders", 0)),
        None,
        settings,
        crate::pipeline::kafka::shown::tests::shown(),
    );
    lane.add(0, 100);
    lane.add(2, 7);
    lane
}

/// The ranges that the next step ends, if it ends a segment.
fn sealed(lane: &mut Lane) -> Option<Vec<(i32, i64, i64)>> {
    let (step, _) = lane.next_step(Instant::now())?;
    lane.step_done(step.memory, None);
    Some(step.finish?.ranges)
}

fn covered(partition: i32, start: i64, end: i64) -> PartitionRange {
    PartitionRange { partition, start, end, records: 0, min_timestamp: None, max_timestamp: None }
}

#[test]
fn ranges_of_segments_follow_each_other() {
    let (mut lane, now) = (lane(), Instant::now());
    lane.advance(0, 120, now);
    lane.seal(Reason::Age);
    lane.advance(0, 110, now);
    lane.advance(2, 9, now);
    lane.advance(0, 121, now);
    lane.seal(Reason::Age);
    lane.seal(Reason::Age);
    assert_eq!(sealed(&mut lane), Some(vec![(0, 100, 120)]));
    assert_eq!(sealed(&mut lane), Some(vec![(0, 120, 121), (2, 7, 9)]));
    assert_eq!(sealed(&mut lane), None);
    assert_eq!(lane.sealed(), 2);
}

#[test]
fn a_segment_is_as_old_as_the_first_that_came_into_it() {
    let (mut lane, now) = (lane(), Instant::now());
    lane.seal_if_old(now + Duration::from_secs(600));
    assert_eq!(lane.sealed(), 0);
    lane.advance(0, 101, now);
    lane.advance(0, 102, now + Duration::from_secs(59));
    lane.seal_if_old(now + Duration::from_secs(59));
    assert_eq!(lane.sealed(), 0);
    lane.seal_if_old(now + Duration::from_secs(60));
    assert_eq!(lane.sealed(), 1);
    assert!(!lane.is_idle());
    assert_eq!(sealed(&mut lane), Some(vec![(0, 100, 102)]));
    lane.covered(1, &[covered(0, 100, 102)]);
    assert!(lane.is_idle());
}

#[test]
fn one_step_at_a_time_is_under_way_and_none_before_the_end_of_a_pause() {
    let (mut lane, now) = (lane(), Instant::now());
    for end in [101, 102] {
        lane.advance(0, end, now);
        lane.seal(Reason::Age);
    }
    let (step, _) = lane.next_step(now).expect("a step");
    assert!(lane.next_step(now).is_none() && !lane.is_ready(now));
    lane.begin_anew(now + RETRY_AFTER);
    assert_eq!(step.finish.expect("an end").seq, 1);
    lane.reposition(0, 100);
    lane.advance(0, 101, now);
    lane.seal(Reason::Age);
    assert!(lane.next_step(now).is_none() && !lane.is_ready(now));
    assert!(lane.is_ready(now + RETRY_AFTER) && lane.next_step(now + RETRY_AFTER).is_some());
}

#[test]
fn what_failed_is_held_until_its_position_is_known_and_then_read_again() {
    let (mut lane, now) = (lane(), Instant::now());
    lane.advance(0, 150, now);
    lane.seal(Reason::Age);
    lane.begin_anew(now);
    lane.advance(0, 160, now);
    lane.seal(Reason::Age);
    assert_eq!((lane.sealed(), sealed(&mut lane)), (1, None), "held partitions take nothing");
    assert_eq!(lane.committed_offsets(), [(0, 100), (2, 7)]);
    lane.reposition(0, 100);
    lane.advance(0, 130, now);
    lane.advance(2, 9, now);
    lane.seal(Reason::Age);
    assert_eq!(sealed(&mut lane), Some(vec![(0, 100, 130)]));
}

#[test]
fn a_dropped_segment_matters_once() {
    let (mut lane, now) = (lane(), Instant::now());
    for end in [110, 120] {
        lane.advance(0, end, now);
        lane.seal(Reason::Age);
    }
    assert!(lane.misses(0, 1));
    lane.reposition(0, 100);
    assert!(!lane.misses(0, 1) && !lane.misses(0, 2), "segments before the new beginning");
    lane.advance(0, 110, now);
    lane.seal(Reason::Age);
    assert!(lane.misses(0, 3));
    assert!(!lane.misses(1, 3), "a partition that the lane does not carry");
    lane.remove(0);
    lane.add(0, 110);
    assert!(!lane.misses(0, 3), "a partition that came back was read from the archive's position");
}

#[test]
fn a_partition_that_leaves_takes_nothing_and_is_not_begun_anew() {
    let (mut lane, now) = (lane(), Instant::now());
    lane.advance(0, 110, now);
    lane.seal(Reason::Revoked);
    lane.hold(0, Wait::Leaving);
    lane.reposition(0, 105);
    lane.advance(0, 120, now);
    lane.seal(Reason::Age);
    assert_eq!(sealed(&mut lane), Some(vec![(0, 100, 110)]));
    assert_eq!(sealed(&mut lane), None);
    lane.remove(0);
    assert_eq!(lane.partitions(), [2]);
}

#[test]
fn fetching_pauses_while_the_store_is_behind_and_goes_on_where_it_stopped() {
    let (mut lane, now) = (lane(), Instant::now());
    let mut end = 100;
    for _ in 0..MOST_WAITING {
        assert_eq!(lane.reconcile(false), (vec![], vec![]));
        end += 1;
        lane.advance(0, end, now);
        lane.seal(Reason::Size);
    }
    assert!(lane.is_backed_up());
    assert_eq!(lane.reconcile(false), (vec![0, 2], vec![]));
    assert_eq!(lane.reconcile(false), (vec![], vec![]));
    lane.covered(1, &[covered(0, 100, 101)]);
    assert_eq!(lane.reconcile(false), (vec![], vec![]), "it waits until half of them are committed");
    lane.covered(MOST_WAITING / 2, &[]);
    assert_eq!(lane.reconcile(false), (vec![], vec![(0, end), (2, 7)]));
    lane.hold(2, Wait::OutOfRange);
    assert_eq!(lane.reconcile(false), (vec![2], vec![]));
    assert_eq!(lane.reconcile(true), (vec![0], vec![]));
    lane.reposition(2, 5);
    assert_eq!(lane.reconcile(false), (vec![], vec![(0, end), (2, 5)]));
}

#[test]
fn coverage_reaches_over_offsets_without_records_only() {
    let (mut lane, now) = (lane(), Instant::now());
    lane.advance(0, 130, now);
    let reached = |lane: &Lane| lane.reached().collect::<Vec<_>>();
    assert_eq!(reached(&lane).len(), 1, "the broker has said nothing of partition 2");
    lane.advance(2, 7, now);
    let idle = (2, Reached { covered: 7, archived: 7, received: 7 });
    assert_eq!(reached(&lane), [(0, Reached { covered: 100, archived: 130, received: 130 }), idle]);
    lane.hold(0, Wait::OutOfRange);
    assert_eq!(reached(&lane), [idle], "nothing is known of a held partition");
}

/// The number or the question of each step, in the order in which the committer gets them.
fn steps(lane: &mut Lane) -> Vec<Result<u64, Question>> {
    let mut found = Vec::new();
    while let Some((step, _)) = lane.next_step(Instant::now()) {
        lane.step_done(step.memory, None);
        found.extend(step.finish.map(|finish| Ok(finish.seq)));
        found.extend(step.question.map(Err));
    }
    found
}

#[test]
fn a_question_stands_behind_all_that_came_before_it() {
    let (mut lane, now) = (lane(), Instant::now());
    lane.advance(0, 110, now);
    lane.seal(Reason::Age);
    lane.advance(0, 120, now);
    let question = Question::OutOfRange { partition: 0 };
    lane.hold(0, Wait::OutOfRange);
    lane.ask(question.clone());
    lane.advance(2, 9, now);
    lane.seal(Reason::Age);
    assert_eq!(steps(&mut lane), [Ok(1), Ok(2), Err(question), Ok(3)], "what was open is sealed before the question");
}

#[test]
fn a_question_survives_a_spool_that_fails_and_its_partition_waits_for_the_same_answer() {
    let (mut lane, now) = (lane(), Instant::now());
    lane.advance(0, 110, now);
    lane.end(None);
    lane.begin_anew(now);
    let place = Question::Where { seq: 1, partitions: vec![(0, 100), (2, 7)] };
    assert_eq!(steps(&mut lane), [Err(Question::End { cut: None }), Err(place)]);
    assert_eq!(lane.carries(0), Some(Some(Wait::NextGeneration)));
    assert_eq!(lane.carries(1), None);
}

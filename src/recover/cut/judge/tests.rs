//! Single records, and what is said of them and of their connector.

use std::collections::HashSet;

use super::super::at::Committed;
use super::*;

/// L ends at 100, and the next commit's record begins at 150.
fn cut() -> Cut {
    let committed = Committed { ended_before: 10, xids: HashSet::new(), since: 40 };
    Cut { end: 100, at: 5_000_000, next_at: Some(7_000_000), next_lsn: Some(150), committed: Some(committed) }
}

fn place(after: Option<u64>, lsn: u64, xid: Option<u32>) -> Place {
    Place { after, lsn, xid, at: None, may_be_snapshot: false }
}

fn snapshot(lsn: u64, at: Option<i64>) -> Event {
    Event::Snapshot { lsn, at }
}

/// Judges records of one partition, each with its timestamp.
fn judged(cut: Cut, events: &[(i64, Event)]) -> (Judge, Partition, Counts) {
    let (mut judge, mut partition) = (Judge::new(cut), Partition::of_topic("srv.public.t"));
    for (offset, (timestamp, event)) in (0..).zip(events) {
        let read = Read { event: event.clone(), connector: None };
        judge.see(&mut partition, Judged { offset, timestamp: *timestamp, key: None }, &read);
    }
    let (_, counts) = judge.decide(&partition);
    (judge, partition, counts)
}

fn counts(cut: Cut, event: Event) -> Counts {
    judged(cut, &[(6_000, event)]).2
}

const IN: Counts = Counts { included: 1, excluded: 0, uncertain: 0 };
const OUT: Counts = Counts { included: 0, excluded: 1, uncertain: 0 };
const DOUBTFUL: Counts = Counts { included: 1, excluded: 0, uncertain: 1 };

#[test]
fn a_snapshot_before_the_next_commit_shows_just_the_cut() {
    for lsn in [99, 100, 101, 150] {
        assert_eq!(counts(cut(), snapshot(lsn, Some(6_000_000))), IN, "{lsn}");
        assert_eq!(counts(cut(), snapshot(lsn, Some(7_000_000))), DOUBTFUL, "{lsn}: taken behind the next commit");
    }
    assert_eq!(counts(cut(), snapshot(151, Some(6_000_000))), OUT);
    // Behind a hole nothing is known of what was committed.
    assert_eq!(counts(Cut { next_lsn: Some(100), ..cut() }, snapshot(101, None)), OUT);
    let quiet = Cut { next_lsn: None, ..cut() };
    assert_eq!(counts(quiet.clone(), snapshot(9_000, Some(6_000_000))), IN, "no later commit is archived");
    assert_eq!(counts(quiet.clone(), snapshot(9_000, Some(7_000_000))), DOUBTFUL, "nor is the log complete up to then");
    assert_eq!(counts(Cut { next_at: None, ..quiet }, snapshot(9_000, Some(6_000_000))), DOUBTFUL);
}

#[test]
fn an_incremental_snapshot_before_the_next_commit_shows_just_the_cut() {
    let row = |after, lsn| Event::Incremental(place(Some(after), lsn, None));
    for (after, lsn) in [(90, 120), (100, 150)] {
        let (judge, _, of_it) = judged(cut(), &[(6_000, row(after, lsn))]);
        assert_eq!((of_it, judge.connectors["srv"].passed_at), (IN, Some(6_000)), "{after} {lsn}");
    }
    assert_eq!(counts(cut(), row(90, 151)), OUT);
    assert_eq!(counts(cut(), row(160, 170)), OUT);
    assert_eq!(counts(Cut { next_lsn: None, ..cut() }, row(90, 120)), OUT);
}

#[test]
fn a_snapshot_behind_the_cut_does_not_show_what_was_streamed() {
    let (judge, partition, of_it) = judged(cut(), &[(8_000, snapshot(200, None)), (7_500, snapshot(200, None))]);
    let connector = &judge.connectors["srv"];
    assert_eq!((of_it.excluded, connector.passed_at, connector.snapshot_at), (2, None, Some(7_500)));
    assert!(partition.first_beyond.is_none());
    let (judge, partition, _) = judged(cut(), &[(8_000, Event::Streamed(place(Some(110), 200, Some(20))))]);
    assert!(partition.first_beyond.is_some() && judge.connectors["srv"].passed_at == Some(8_000));
}

#[test]
fn a_partition_of_heartbeats_is_of_no_connector() {
    let heartbeats = [(1, Event::Heartbeat), (2, Event::Tombstone)];
    assert!(judged(cut(), &heartbeats).1.is_of_heartbeats());
    assert!(!judged(cut(), &[(1, Event::Heartbeat), (2, Event::Unplaced { at: None })]).1.is_of_heartbeats());
    assert!(!judged(cut(), &[(1, Event::Tombstone)]).1.is_of_heartbeats());
}

#[test]
fn what_may_be_of_a_snapshot_is_uncertain_and_proves_nothing() {
    let event = |lsn, xid| Event::Streamed(Place { may_be_snapshot: true, ..place(None, lsn, Some(xid)) });
    for (lsn, xid, expected) in [(60, 20, DOUBTFUL), (120, 20, DOUBTFUL), (151, 20, OUT), (60, 5, IN), (39, 20, IN)] {
        let (judge, partition, of_it) = judged(cut(), &[(6_000, event(lsn, xid))]);
        assert_eq!(of_it, expected, "{lsn} {xid}");
        let passed = judge.connectors.get("srv").and_then(|connector| connector.passed_at);
        assert!(passed.is_none() && partition.first_beyond.is_none(), "{lsn} {xid}");
    }
    assert_eq!(counts(cut(), Event::Streamed(place(None, 60, Some(20)))), OUT, "it was streamed");
}

#[test]
fn an_event_before_all_that_was_open_is_in_whatever_its_xid() {
    assert_eq!(counts(cut(), Event::Streamed(place(None, 39, None))), IN);
    assert_eq!(counts(cut(), Event::Streamed(place(None, 40, None))).uncertain, 1);
    assert_eq!(counts(cut(), Event::Incremental(place(None, 39, None))), IN);
}

/// Without the log each transaction has a commit of its own before it, and there are millions of them.
#[test]
fn transactions_that_are_in_are_one_stretch_without_the_log() {
    let without = Cut { end: 100_000, committed: None, next_lsn: None, ..cut() };
    let events: Vec<(i64, Event)> =
        (1..1_000).map(|n| (6_000, Event::Streamed(place(Some(n * 100 - 1), n * 100, None)))).collect();
    let (_, partition, of_it) = judged(without.clone(), &events);
    assert_eq!(partition.stretches.len(), 2, "all that are in, and the last one");
    assert_eq!(of_it, Counts { included: 999, excluded: 0, uncertain: 1 });
    // What was written by another connector is not settled by this one's commits.
    let (mut judge, mut partition) = (Judge::new(without), Partition::of_topic("srv.public.t"));
    for (offset, (after, name)) in (0..).zip([(500, "a"), (700, "b"), (750, "b")]) {
        let read =
            Read { event: Event::Streamed(place(Some(after), after + 1, None)), connector: Some(name.to_owned()) };
        judge.see(&mut partition, Judged { offset, timestamp: 0, key: None }, &read);
    }
    let said: Vec<bool> = partition.stretches.iter().map(|stretch| stretch.said == Said::In).collect();
    assert_eq!(said, [false, true, false]);
}

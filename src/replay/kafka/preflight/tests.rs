use std::ops::Range;

use super::*;
use crate::replay::matching::PlannedPartition;
use crate::segment::Filter;
use crate::stream::{Format, SegmentRef, TopicGeneration};

const NOW: i64 = 1_795_334_712_000;
const HOUR: i64 = 3_600_000;

fn plan(largest_record: u64, times: Range<i64>) -> Plan {
    let planned = |partition| PlannedPartition {
        partition,
        start: 0,
        end: 10,
        records: 10,
        exact: true,
        min_timestamp: times.start,
        max_timestamp: times.end,
    };
    let segment = SegmentRef {
        object: String::new(),
        format: Format::Avro,
        bytes: 1,
        sha256: String::new(),
        raw_bytes: 2000,
        largest_record,
        partitions: Vec::new(),
        last: Vec::new(),
        generation: 0,
        minimal: None,
    };
    Plan {
        parts: vec![Part {
            stream: TopicGeneration::new("main", "orders", 0),
            target: "copy".to_owned(),
            source_partitions: 6,
            segments: vec![segment],
            filter: Filter::default(),
            kept: None,
            partitions: vec![planned(0), planned(3)],
            bytes: 2000,
        }],
        schema_ids: Default::default(),
    }
}

fn recent() -> Plan {
    plan(100, NOW - HOUR..NOW)
}

fn topic(partitions: i32, config: &[(&str, &str)]) -> BTreeMap<String, TopicFacts> {
    let config = config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    BTreeMap::from([(
        "copy".to_owned(),
        TopicFacts { partitions, in_sync: (1, 0), config: Some(config), own: BTreeMap::new() },
    )])
}

fn found(plan: &Plan, facts: &BTreeMap<String, TopicFacts>) -> Findings {
    check(plan, facts, &BTreeMap::new(), around(None))
}

fn around(broker: Option<&BTreeMap<String, String>>) -> Around<'_> {
    Around { broker, now: NOW, compresses: true, ..Around::default() }
}

#[test]
fn a_missing_topic_is_created_as_the_source_is() {
    let findings = found(&recent(), &BTreeMap::new());
    assert_eq!(findings.create.len(), 1);
    assert_eq!(findings.create[0].partitions, 6);
    for (name, value) in [("retention.ms", "-1"), ("retention.bytes", "-1"), ("cleanup.policy", "delete")] {
        assert_eq!(findings.create[0].given.created().get(name).map(String::as_str), Some(value));
    }
    assert!(!findings.create[0].given.needed.contains_key("max.message.bytes"));
    let large = found(&plan(5_000_000, 0..NOW), &BTreeMap::new());
    let bytes: u64 = large.create[0].given.needed["max.message.bytes"].parse().expect("a number");
    assert!(bytes > 5_000_000 && large.largest <= bytes);
    assert!(large.verdict().is_ok());
}

#[test]
fn a_topic_that_fits_is_silent() {
    let facts = topic(4, &[("cleanup.policy", "delete"), ("retention.ms", "604800000"), ("retention.bytes", "-1")]);
    let findings = found(&recent(), &facts);
    assert_eq!((findings.warnings.len(), findings.problems.len()), (0, 0), "{findings:?}");
    assert_eq!(findings.existing.get("copy"), Some(&4));
    assert!(suspects(&recent(), &facts, around(None)).is_empty());
}

#[test]
fn a_partition_with_the_greatest_number_needs_as_many_as_there_can_be() {
    let mut plan = recent();
    plan.parts[0].partitions[1].partition = i32::MAX;
    let findings = found(&plan, &topic(4, &[]));
    assert!(findings.problems[0].contains("has 4 partitions, and the records need 2147483647"), "{findings:?}");
}

#[test]
fn problems_are_told_together_with_the_way_out() {
    let facts = topic(
        3,
        &[
            ("max.message.bytes", "500"),
            ("message.timestamp.before.max.ms", "60000"),
            ("message.timestamp.after.max.ms", "1"),
        ],
    );
    let plan = plan(100, NOW - HOUR..NOW + HOUR);
    assert!(suspects(&plan, &facts, around(None)).contains_key("copy"));
    let error = found(&plan, &facts).verdict().expect_err("four problems");
    for named in ["copy has 3 partitions", "need 4", "max.message.bytes", "before.max.ms", "after.max.ms"] {
        assert!(error.to_string().contains(named), "{named} in {error}");
    }
    assert_eq!(error.exit_code(), 1);
}

#[test]
fn a_partition_that_takes_nothing_and_a_topic_of_the_brokers_are_refused() {
    let mut facts = topic(4, &[("min.insync.replicas", "2")]);
    assert!(found(&recent(), &facts).verdict().expect_err("one of two").to_string().contains("min.insync.replicas=2"));
    facts.values_mut().for_each(|facts| facts.in_sync = (0, 3));
    assert!(
        found(&recent(), &facts).verdict().expect_err("no leader").to_string().contains("partition 3 has no leader")
    );
    let mut plan = recent();
    plan.parts[0].target = "__consumer_offsets".to_owned();
    assert!(found(&plan, &BTreeMap::new()).verdict().expect_err("the brokers'").to_string().contains("--rename"));
    let broker = BTreeMap::from([("socket.request.max.bytes".to_owned(), "1000000".to_owned())]);
    let large = super::tests::plan(2_000_000, 0..NOW);
    assert!(suspects(&large, &BTreeMap::new(), around(Some(&broker))).contains_key("copy"));
    let large = check(&large, &BTreeMap::new(), &BTreeMap::new(), around(Some(&broker)));
    assert!(large.verdict().expect_err("too large").to_string().contains("socket.request.max.bytes"));
    assert!(large.create[0].given.needed.contains_key("message.timestamp.difference.max.ms"), "an old broker");
}

#[test]
fn reading_the_records_clears_a_suspicion_or_confirms_it() {
    let facts = topic(4, &[("max.message.bytes", "1000"), ("cleanup.policy", "compact")]);
    assert!(suspects(&recent(), &facts, around(None)).contains_key("copy"), "a bound of 100 headers, and compaction");
    let survey = Survey { largest: 5_000, largest_batch: 300, compressed: true, ..Survey::default() };
    let cleared = check(&recent(), &facts, &BTreeMap::from([("copy".to_owned(), survey)]), around(None));
    assert!(cleared.verdict().is_ok() && cleared.compressed && cleared.largest == 5_000, "{cleared:?}");
    let survey = Survey { largest_batch: 1001, largest_at: Some((3, 7)), null_key: Some((0, 2)), ..Survey::default() };
    let error = check(&recent(), &facts, &BTreeMap::from([("copy".to_owned(), survey)]), around(None))
        .verdict()
        .expect_err("both");
    assert!(error.to_string().contains("partition 3, offset 7") && error.to_string().contains("partition 0, offset 2"));
}

#[test]
fn what_the_broker_will_do_to_the_records_is_said() {
    let warned = |config: &[(&str, &str)]| {
        let findings = found(&plan(100, NOW - 48 * HOUR..NOW), &topic(4, config));
        assert!(findings.accepted(false).is_err() && findings.accepted(true).is_ok());
        findings.losses
    };
    let day = warned(&[("cleanup.policy", "delete"), ("retention.ms", "86400000")]);
    assert!(day[0].contains("copy keeps records for 1day"), "{day:?}");
    assert!(warned(&[("cleanup.policy", "delete"), ("retention.bytes", "999")])[0].contains("999 bytes"));
    assert!(warned(&[("message.timestamp.type", "LogAppendTime")])[0].contains("LogAppendTime"));
    assert!(warned(&[("cleanup.policy", "compact"), ("retention.ms", "1")])[0].contains("compacted"));
    let silent = BTreeMap::from([(
        "copy".to_owned(),
        TopicFacts { partitions: 4, in_sync: (1, 0), config: None, own: BTreeMap::new() },
    )]);
    assert_eq!(found(&recent(), &silent).warnings.len(), 1);
}

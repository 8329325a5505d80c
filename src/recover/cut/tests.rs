//! A simulated log and connector, for which it is known which transaction each record is of; and real records.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use serde_json::Value;

mod avro {
    pub(super) use apache_avro::Schema;
    pub(super) use apache_avro::reader::datum::GenericDatumReader;
    pub(super) use apache_avro::types::Value;
    pub(super) use apache_avro::writer::datum::GenericDatumWriter;
}

use super::at::{Committed, Cut};
use super::avro::{Schema, of_avro};
use super::event::{Event, Place, Read, of_headers, of_json};
use super::judge::{Counts, Judge, Judged, Partition};
use super::schemas::Schemas;

/// A transaction of the simulated log.
#[derive(Debug, Clone)]
struct Transaction {
    xid: u32,
    rows: Vec<(u64, u8)>,
    /// The end of its commit, if it committed.
    end: Option<u64>,
    /// Whether the connector's publication has its tables.
    is_published: bool,
}

/// A log, and what was open after each of its commits.
#[derive(Debug, Default)]
struct Log {
    done: Vec<Transaction>,
    /// After each record: where it ends, the oldest xid that was open, and the next one.
    oldest: Vec<(u64, u32)>,
}

/// Plays random steps: writes, commits and rollbacks of up to four transactions at a time.
fn log(steps: &[(u8, u8, u8)]) -> Log {
    let (mut log, mut open): (Log, Vec<Option<Transaction>>) = (Log::default(), vec![None; 4]);
    let (mut at, mut next_xid) = (1_000_u64, 100_u32);
    for &(what, which, key) in steps {
        let slot = &mut open[usize::from(which) % 4];
        match (what % 8, slot.is_some()) {
            (0..5, _) | (_, false) => {
                let transaction = slot.get_or_insert_with(|| {
                    next_xid += 1;
                    Transaction { xid: next_xid - 1, rows: Vec::new(), end: None, is_published: what % 3 != 0 }
                });
                transaction.rows.push((at, key % 5));
                at += 8 * u64::from(1 + key % 3);
            }
            (5 | 6, true) => {
                // Its record begins where the one before ended: an event may lie just at the end of a commit.
                at += 48;
                let mut transaction = slot.take().expect("it is open");
                transaction.end = Some(at);
                log.done.push(transaction);
            }
            _ => {
                at += 40;
                log.done.extend(slot.take());
            }
        }
        let oldest = open.iter().flatten().map(|open| open.xid).min().unwrap_or(next_xid);
        log.oldest.push((at, oldest));
    }
    log
}

/// How the connector of a simulation works.
#[derive(Debug, Clone, Copy)]
struct Ways {
    /// Whether commits come to it of which nothing is published (PostgreSQL 14 and older).
    sees_empty: bool,
    /// Whether its records are written with `source`.
    wrapped: bool,
    /// After so many transactions it is ended, and goes on so many before.
    again: Option<(usize, usize)>,
}

/// A record as it stands in a partition, with the end of its transaction's commit.
struct Written {
    read: Read,
    key: Vec<u8>,
    commit: u64,
}

/// What the connector writes, by partition: 0 to 2 have rows, 3 the markers of transactions.
fn written(log: &Log, ways: Ways) -> Vec<Vec<Written>> {
    let mut commits: Vec<&Transaction> = log.done.iter().filter(|one| one.end.is_some()).collect();
    commits.sort_by_key(|one| one.end);
    let emits = |one: &Transaction| one.is_published || ways.sees_empty;
    let mut seen: Vec<(&Transaction, Option<u64>)> = Vec::new();
    let mut last = None;
    for one in commits.into_iter().filter(|one| emits(one)) {
        seen.push((one, last));
        last = one.end;
    }
    if let Some((after, before)) = ways.again.filter(|(after, _)| *after < seen.len()) {
        // It goes on from an offset that it had stored: what it has written since comes twice.
        let from = after.saturating_sub(before);
        let again: Vec<_> = seen[from..].to_vec();
        seen.truncate(after);
        seen.extend(again);
    }
    let mut partitions: Vec<Vec<Written>> = (0..4).map(|_| Vec::new()).collect();
    for (one, after) in seen {
        let commit = one.end.expect("it committed");
        let marker = |event| Written { read: Read { event, connector: None }, key: b"t".to_vec(), commit };
        let begins = one.rows.first().map(|(lsn, _)| *lsn);
        partitions[3].push(marker(Event::Begin { xid: one.xid, lsn: begins }));
        for (lsn, key) in one.rows.iter().filter(|_| one.is_published) {
            let place = Place {
                after: after.filter(|_| ways.wrapped),
                lsn: *lsn,
                xid: Some(one.xid),
                at: None,
                may_be_snapshot: false,
            };
            let connector = ways.wrapped.then(|| "srv".to_owned());
            let row = |event, connector| Written { read: Read { event, connector }, key: vec![*key], commit };
            let partition = &mut partitions[usize::from(*key) % 3];
            partition.push(row(Event::Streamed(place), connector));
            if *key == 4 {
                partition.push(row(Event::Tombstone, None));
            }
        }
        partitions[3].push(marker(Event::End { xid: one.xid, lsn: Some(commit) }));
    }
    partitions
}

/// Judges what was written, and says of each record whether it is in; and the counts of all partitions.
fn judged(partitions: &[Vec<Written>], cut: &Cut) -> (Vec<Vec<bool>>, Counts, u64) {
    let mut judge = Judge::new(cut.clone());
    let mut seen = Vec::new();
    for (number, records) in partitions.iter().enumerate() {
        let mut partition = Partition::of_topic(if number == 3 { "srv.transaction" } else { "srv.public.t" });
        for (index, record) in records.iter().enumerate() {
            let offset = i64::try_from(index).expect("few records") * 2;
            judge.see(&mut partition, Judged { offset, timestamp: 0, key: Some(&record.key) }, &record.read);
        }
        seen.push(partition);
    }
    let mut counts = Counts::default();
    let is_in = seen.iter().zip(partitions).map(|(partition, records)| {
        let (kept, of_it) = judge.decide(partition);
        counts.add(of_it);
        (0..records.len()).map(|index| kept.has(i64::try_from(index).expect("few records") * 2)).collect()
    });
    (is_in.collect(), counts, judge.contradictions())
}

fn steps() -> impl Strategy<Value = Vec<(u8, u8, u8)>> {
    prop::collection::vec(any::<(u8, u8, u8)>(), 1..120)
}

fn ways() -> impl Strategy<Value = Ways> {
    (any::<bool>(), any::<bool>(), prop::option::of((1_usize..12, 0_usize..6)))
        .prop_map(|(sees_empty, wrapped, again)| Ways { sees_empty, wrapped, again })
}

fn ends(log: &Log) -> Vec<u64> {
    log.done.iter().filter_map(|one| one.end).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// With the log, every record is in that is of a transaction that committed by E, and no other, and none is uncertain.
    #[test]
    fn with_the_log_the_cut_is_exact(steps in steps(), ways in ways(), back in 0_usize..20) {
        let log = log(&steps);
        let partitions = written(&log, ways);
        for end in ends(&log) {
            let known = log.oldest.iter().filter(|(at, _)| *at <= end).count();
            let ended_before = log.oldest[known.saturating_sub(1 + back)].1;
            let committed = |one: &&Transaction| one.end.is_some_and(|commit| commit <= end);
            let xids: HashSet<u32> = log.done.iter().filter(committed).map(|one| one.xid).collect();
            let committed = Some(Committed { ended_before, xids, since: 0 });
            let (is_in, counts, contradictions) = judged(&partitions, &Cut { end, at: 0, next_at: None, next_lsn: Some(0), committed });
            for (records, said) in partitions.iter().zip(&is_in) {
                for (record, said) in records.iter().zip(said) {
                    prop_assert_eq!(*said, record.commit <= end, "cut at {}: {:?} of {}", end, record.read, record.commit);
                }
            }
            let all: usize = partitions.iter().map(Vec::len).sum();
            prop_assert_eq!((counts.included + counts.excluded, counts.uncertain, contradictions), (all as u64, 0, 0));
        }
    }

    /// Without the log, what is said to be certain is right, and all that is not is of one transaction.
    #[test]
    fn without_the_log_only_one_transaction_is_uncertain(steps in steps(), sees_empty: bool) {
        let log = log(&steps);
        let partitions = written(&log, Ways { sees_empty, wrapped: true, again: None });
        for end in ends(&log) {
            let (is_in, counts, _) = judged(&partitions, &Cut { end, at: 0, next_at: None, next_lsn: Some(0), committed: None });
            let mut wrong = HashSet::new();
            for (records, said) in partitions.iter().zip(&is_in) {
                wrong.extend(records.iter().zip(said).filter(|(record, said)| **said != (record.commit <= end)).map(|(record, _)| record.commit));
            }
            prop_assert!(wrong.len() <= 1, "cut at {}: transactions that end at {:?} are wrong", end, wrong);
            if !wrong.is_empty() {
                prop_assert!(counts.uncertain > 0, "cut at {}: wrong and not said: {:?}", end, wrong);
            }
        }
    }

    /// Nothing that comes in makes the readers panic.
    #[test]
    fn no_bytes_end_the_program(value in prop::collection::vec(any::<u8>(), 0..300), schema in 0_usize..20) {
        super::fuzzing::event_bytes(&value);
        let all = schemas();
        if let Some(schema) = all.values().nth(schema % all.len()) {
            of_avro(&value, schema);
        }
    }
}

fn lines(text: &'static str) -> impl Iterator<Item = Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("JSON"))
}

fn schema_texts() -> BTreeMap<u32, String> {
    let all: BTreeMap<u32, Value> =
        serde_json::from_str(include_str!("../../../tests/data/cut/avro-schemas.json")).expect("schemas");
    all.into_iter().map(|(id, one)| (id, one["schema"].as_str().expect("text").to_owned())).collect()
}

fn schemas() -> BTreeMap<u32, Schema> {
    let parse = |(id, text): (u32, String)| (id, Schema::parse(&text, &[]).expect("a schema"));
    schema_texts().into_iter().map(parse).collect()
}

/// Real records are what they are: each change has its place, and each marker its transaction.
#[test]
fn real_records_say_where_they_stand() {
    for text in [
        include_str!("../../../tests/data/cut/schemaless.jsonl"),
        include_str!("../../../tests/data/cut/with-schema.jsonl"),
    ] {
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        for record in lines(text) {
            let Some(value) = record["value"].as_str() else { continue };
            let read = of_json(value.as_bytes());
            let whole: Value = serde_json::from_str(value).expect("JSON");
            let fields = whole.get("payload").unwrap_or(&whole);
            let source = &fields["source"];
            let kind = match (&read.event, fields["op"].as_str()) {
                (Event::Snapshot { lsn, at }, Some("r")) => {
                    assert_eq!((source["lsn"].as_u64(), source["ts_us"].as_i64()), (Some(*lsn), *at));
                    "snapshot"
                }
                (Event::Streamed(place), Some(op)) if op != "r" => {
                    assert_eq!(source["lsn"].as_u64(), Some(place.lsn));
                    assert_eq!(source["txId"].as_u64().map(|xid| xid as u32), place.xid);
                    assert!(place.after.is_none_or(|after| after <= place.lsn || place.xid.is_some()));
                    "streamed"
                }
                (Event::Begin { .. }, None) if fields["status"] == "BEGIN" => "begin",
                (Event::End { lsn: Some(_), .. }, None) if fields["status"] == "END" => "end",
                other => panic!("{other:?}: {value}"),
            };
            assert_eq!(read.connector.is_some(), source.is_object());
            *kinds.entry(kind).or_default() += 1;
        }
        assert_eq!(kinds.len(), 4, "{kinds:?}");
    }
}

/// Sets fields of `source` in an envelope that another reader has read.
fn with_source(envelope: &mut avro::Value, fields: &[(&str, avro::Value)]) {
    let avro::Value::Record(envelope) = envelope else { panic!("an envelope is a record") };
    let source = envelope.iter_mut().find(|(name, _)| name == "source").map(|(_, value)| value);
    let Some(avro::Value::Record(source)) = source else { panic!("source is a record") };
    for (name, new) in fields {
        let (_, old) = source.iter_mut().find(|(field, _)| field == name).expect("a field of source");
        *old = match old {
            avro::Value::Union(_, _) if *name == "snapshot" => avro::Value::Union(0, Box::new(new.clone())),
            avro::Value::Union(_, _) => avro::Value::Union(1, Box::new(new.clone())),
            _ => new.clone(),
        };
    }
}

/// Real records of a snapshot, and the same as changes, written by another writer.
#[test]
fn avro_records_say_where_they_stand() {
    use base64::Engine as _;
    let (mine, texts) = (schemas(), schema_texts());
    let mut seen = 0;
    for record in lines(include_str!("../../../tests/data/cut/avro.jsonl")) {
        let Some(value) = record["value_b64"].as_str() else { continue };
        let value = base64::engine::general_purpose::STANDARD.decode(value).expect("base64");
        let id = u32::from_be_bytes(value[1..5].try_into().expect("an id"));
        let read = of_avro(&value[5..], &mine[&id]);
        assert_eq!(read.connector.as_deref(), Some("av"), "{record}");
        assert_eq!(read.event, Event::Snapshot { lsn: 28_357_896, at: Some(1_795_331_809_037_016) }, "{record}");
        let schema = avro::Schema::parse_str(&texts[&id]).expect("a schema");
        let reader = avro::GenericDatumReader::builder(&schema).build().expect("a reader");
        let mut envelope = reader.read_value(&mut &value[5..]).expect("a value");
        let text = |text: &str| avro::Value::String(text.to_owned());
        let fields = [
            ("snapshot", text("false")),
            ("sequence", text(r#"["28357000","28358000"]"#)),
            ("lsn", avro::Value::Long(28_358_000)),
            ("txId", avro::Value::Long(4_294_967_296 + 850)),
            ("ts_us", avro::Value::Long(1_795_331_900_000_000)),
        ];
        with_source(&mut envelope, &fields);
        let writer = avro::GenericDatumWriter::builder(&schema).build().expect("a writer");
        let mut written = Vec::new();
        writer.write_value(&mut written, envelope).expect("bytes");
        let place = Place {
            after: Some(28_357_000),
            lsn: 28_358_000,
            xid: Some(850),
            at: Some(1_795_331_900_000_000),
            may_be_snapshot: false,
        };
        assert_eq!(of_avro(&written, &mine[&id]).event, Event::Streamed(place), "{record}");
        seen += 1;
    }
    assert!(seen > 40);
}

/// In real topics, the markers of transactions and the sequences say the same of every cut.
#[test]
fn real_topics_are_cut_where_their_markers_say() {
    let records: Vec<Value> = lines(include_str!("../../../tests/data/cut/schemaless.jsonl")).collect();
    let mut ends: BTreeMap<u32, u64> = BTreeMap::new();
    for record in &records {
        if let Some(Event::End { xid, lsn: Some(lsn) }) =
            record["value"].as_str().map(|value| of_json(value.as_bytes()).event)
        {
            ends.insert(xid, lsn);
        }
    }
    assert!(ends.len() > 5);
    for end in ends.values().copied() {
        let committed = ends.iter().filter(|(_, commit)| **commit <= end).map(|(xid, _)| *xid).collect();
        let with_log = Cut {
            end,
            at: 0,
            next_at: None,
            next_lsn: Some(0),
            committed: Some(Committed { ended_before: 841, xids: committed, since: 0 }),
        };
        let without = Cut { committed: None, ..with_log.clone() };
        for (which, cut) in [with_log, without].into_iter().enumerate() {
            let mut judge = Judge::new(cut.clone());
            let mut partitions: BTreeMap<&str, Partition> = BTreeMap::new();
            for (offset, record) in (0..).zip(&records) {
                let topic = record["topic"].as_str().expect("a topic");
                let partition = partitions.entry(topic).or_insert_with(|| Partition::of_topic(topic));
                let read = match record["value"].as_str() {
                    Some(value) => of_json(value.as_bytes()),
                    None => Read { event: Event::Tombstone, connector: None },
                };
                let key = record["key"].as_str().map(str::as_bytes);
                judge.see(partition, Judged { offset, timestamp: 0, key }, &read);
            }
            assert_eq!(judge.contradictions(), 0);
            let mut wrong = HashSet::new();
            for (offset, record) in (0..).zip(&records) {
                let Some(value) = record["value"].as_str() else { continue };
                let (kept, _) = judge.decide(&partitions[record["topic"].as_str().expect("a topic")]);
                if let Event::Streamed(Place { xid: Some(xid), .. }) = of_json(value.as_bytes()).event
                    && let Some(commit) = ends.get(&xid)
                {
                    wrong.extend((kept.has(offset) != (*commit <= end)).then_some(xid));
                }
            }
            // The next change may be one that was left out of this data, for its size.
            assert!(wrong.len() <= which, "cut at {end}: {wrong:?}");
        }
    }
}

#[test]
fn fields_that_were_added_to_unwrapped_records_count_and_columns_do_not() {
    let of = |text: &str| of_json(text.as_bytes()).event;
    let place =
        Place { after: None, lsn: 27_387_888, xid: Some(842), at: Some(1_795_330_032_286_447), may_be_snapshot: true };
    for text in [
        r#"{"id":1,"op":"x","source":"shop","__lsn":27387888,"__txId":842,"__source_ts_us":1795330032286447}"#,
        r#"{"id":1,"status":"END","__source_lsn":27387888,"__source_txId":"842","__ts_us":1795330032286447}"#,
        r#"{"schema":{"type":"struct"},"payload":{"id":1,"__lsn":27387888,"__txId":842,"__ts_us":1795330032286447}}"#,
    ] {
        assert_eq!(of(text), Event::Streamed(place), "{text}");
    }
    assert_eq!(of(r#"{"id":1,"lsn":5,"txId":7}"#), Event::Unplaced { at: None }, "columns of a table");
    assert_eq!(of(r#"{"id":1,"__op":"r","__lsn":5,"__txId":7}"#), Event::Snapshot { lsn: 5, at: None });
    assert_eq!(of(r#"{"ts_ms":1}"#), Event::Heartbeat);
    assert_eq!(of(r#"{"schema":1,"payload":null}"#), Event::Tombstone);
    let mysql = r#"{"op":"c","source":{"connector":"mysql","name":"m","lsn":5,"snapshot":"false"}}"#;
    assert_eq!(of(mysql), Event::Unplaced { at: None });
    let headers = [
        ("__lsn", "27387888"),
        ("__txId", r#"{"schema":{"type":"int64"},"payload":842}"#),
        ("__source_ts_us", r#""1795330032286447""#),
    ];
    let headers = headers.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_bytes())));
    assert_eq!(of_headers(headers), Some(Event::Streamed(place)));
    assert_eq!(of_headers([(&b"trace"[..], Some(&b"1"[..]))].into_iter()), None);
    for record in lines(include_str!("../../../tests/data/cut/unwrapped.jsonl")) {
        if let Some(value) = record["value"].as_str().filter(|_| record["topic"] != "srv.message") {
            assert_eq!(of(value), Event::Unplaced { at: None }, "only __op, __ts_ms and __deleted were asked for");
        }
    }
}

/// What has no place is judged by what lies around it, and only between the last that is in and the first that is out by time.
#[test]
fn what_has_no_place_is_judged_by_its_neighbours() {
    let change = |lsn: u64, xid| Read {
        event: Event::Streamed(Place { after: Some(lsn - 1), lsn, xid: Some(xid), at: None, may_be_snapshot: false }),
        connector: Some("srv".to_owned()),
    };
    let unplaced = Read { event: Event::Unplaced { at: None }, connector: None };
    let committed = Some(Committed { ended_before: 10, xids: HashSet::new(), since: 0 });
    let cut = Cut { end: 100, at: 5_000_000, next_at: Some(7_000_000), next_lsn: Some(150), committed };
    let records = [
        (1, unplaced.clone()),
        (2, change(50, 1)),
        (9_000, unplaced.clone()),
        (4, change(60, 2)),
        (6_999, unplaced.clone()),
        (7_000, unplaced.clone()),
        (8, change(200, 20)),
        (1, unplaced),
    ];
    let mut judge = Judge::new(cut);
    let mut partition = Partition::of_topic("srv.public.t");
    for (offset, (timestamp, read)) in (0..).zip(&records) {
        judge.see(&mut partition, Judged { offset, timestamp: *timestamp, key: None }, read);
    }
    let (kept, counts) = judge.decide(&partition);
    let is_in: Vec<bool> = (0..8).map(|offset| kept.has(offset)).collect();
    assert_eq!(is_in, [true, true, true, true, true, false, false, false]);
    assert_eq!(counts, Counts { included: 5, excluded: 3, uncertain: 2 });
    assert_eq!(judge.connectors["srv"].passed_at, Some(8));
}

/// A schema can say that there are values without end, in a value of no bytes.
#[test]
fn a_schema_of_values_without_end_ends() {
    let mut text = r#"{"type":"record","name":"R0","fields":[{"name":"a","type":"null"}]}"#.to_owned();
    for level in 1..30 {
        let inner = format!("R{}", level - 1);
        text = format!(
            r#"{{"type":"record","name":"R{level}","fields":[{{"name":"a","type":{text}}},{{"name":"b","type":"{inner}"}}]}}"#
        );
    }
    let schema = Schema::parse(&text, &[]).expect("a schema");
    assert_eq!(of_avro(&[], &schema), Read::unplaced());
    let array = Schema::parse(r#"{"type":"array","items":"null"}"#, &[]).expect("a schema");
    assert_eq!(of_avro(&[254, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0], &array), Read::unplaced());
}

#[test]
fn a_log_and_a_connector_that_disagree_are_noticed() {
    let change = |after, lsn, xid| Read {
        event: Event::Streamed(Place { after: Some(after), lsn, xid: Some(xid), at: None, may_be_snapshot: false }),
        connector: Some("srv".to_owned()),
    };
    // 11 is not known as committed, and a later event has seen a commit behind it.
    for (events, expected) in [
        (vec![change(20, 50, 11), change(70, 80, 9)], 1),
        (vec![change(70, 50, 11), change(70, 80, 9)], 0),
        (vec![change(120, 50, 9)], 1),
    ] {
        let committed = Some(Committed { ended_before: 10, xids: HashSet::new(), since: 0 });
        let mut judge = Judge::new(Cut { end: 100, at: 0, next_at: None, next_lsn: Some(0), committed });
        let mut partition = Partition::of_topic("srv.public.t");
        for (offset, read) in (0..).zip(&events) {
            judge.see(&mut partition, Judged { offset, timestamp: 0, key: None }, read);
        }
        assert_eq!(judge.contradictions(), expected, "{events:?}");
    }
}

#[test]
fn schemas_are_found_by_id_and_by_guid_and_not_where_registries_disagree() {
    let text = r#"{"type":"record","name":"V","fields":[{"name":"ts_ms","type":"long"}]}"#;
    let referring = r#"{"type":"record","name":"W","fields":[{"name":"v","type":"V"}]}"#;
    let document = |id: u32, text: &str| {
        let version = serde_json::json!({"id": id, "guid": "3bbf9cf0-1234-5678-9abc-def012345678", "type": "AVRO", "schema": text});
        let w = serde_json::json!({"id": 99, "type": "AVRO", "schema": referring,
            "references": [{"name": "V", "subject": "v", "version": 1}]});
        let subjects = serde_json::json!({"v": {"versions": {"1": version}}, "w": {"versions": {"1": w}}});
        serde_json::json!({"state": {"compatibility": null, "mode": null, "subjects": subjects}}).to_string()
    };
    let mut schemas = Schemas::default();
    assert!(schemas.add(document(7, text).as_bytes()) && !schemas.add(b"{}"));
    let value = [0, 0, 0, 0, 7, 2];
    let (schema, rest) = schemas.of(&value, std::iter::empty()).expect("by id");
    assert_eq!((of_avro(rest, schema).event, rest), (Event::Heartbeat, &[2][..]));
    let content_id = || [(&b"apicurio.value.contentId"[..], Some(&[0, 0, 0, 0, 0, 0, 0, 7][..]))].into_iter();
    assert_eq!(schemas.of(&[2], content_id()).expect("by Apicurio's header").1, &[2]);
    let guid = [&[1][..], &0x3bbf_9cf0_1234_5678_9abc_def0_1234_5678_u128.to_be_bytes()].concat();
    let headers = || [(&b"__value_schema_id"[..], Some(&guid[..]))].into_iter();
    assert_eq!(schemas.of(&[2], headers()).expect("by header").1, &[2]);
    assert!(schemas.of(&[0, 0, 0, 0, 99, 2], std::iter::empty()).is_some(), "a schema that refers to another one");
    assert!(schemas.of(&[0, 0, 0, 0, 8, 2], std::iter::empty()).is_none());
    let other = r#"{"type":"record","name":"V","fields":[{"name":"id","type":"long"}]}"#;
    schemas.add(document(7, other).as_bytes());
    assert!(schemas.of(&value, std::iter::empty()).is_none(), "another registry calls another schema 7");
}

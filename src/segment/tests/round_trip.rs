use super::*;

fn filters() -> impl Strategy<Value = Filter> {
    let partitions = prop::collection::btree_map(0..5_i32, (0_i64..2_000, 0_i64..2_000), 0..3);
    let times = prop_oneof![3 => (900_i64..2_100, 0_i64..500), 1 => (any::<i64>(), any::<i64>())];
    (prop::option::of(partitions), prop::option::of(times)).prop_map(|(partitions, times)| Filter {
        partitions: partitions.map(|all| all.into_iter().map(|(p, (start, length))| (p, start..start + length)).collect()),
        timestamps: times.map(|(start, length)| start..start.saturating_add(length)),
    })
}

fn round_trip(format: Format, calls: &Calls, filter: &Filter) {
    let (sealed, bytes) = encoded(format, calls);
    let written = flat(calls);
    assert_eq!(sealed.bytes, bytes.len() as u64);
    assert_eq!(sealed.raw_bytes, sum(&written));
    let (facts, records) = read(&bytes, sealed.bytes, format, Filter::default()).unwrap();
    assert_eq!(facts.stream, info().stream);
    assert_eq!((facts.topic_id, facts.writer, facts.created), (info().topic_id, info().writer, info().created));
    assert_eq!(facts.partitions, sealed.partitions);
    assert_eq!((facts.raw_bytes, facts.largest_record), (sealed.raw_bytes, sealed.largest_record));
    assert_eq!(by_partition(records), by_partition(written.clone()));

    let (_, some) = read(&bytes, sealed.bytes, format, filter.clone()).unwrap();
    let wanted = written.into_iter().filter(|r| filter.matches(r.partition, r.offset, r.timestamp)).collect();
    assert_eq!(by_partition(some), by_partition(wanted));
}

fn sum(records: &[Owned]) -> u64 {
    let headers = |r: &Owned| r.headers.iter().map(|(n, v)| n.len() + v.as_ref().map_or(0, Vec::len)).sum::<usize>();
    let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
    records.iter().map(|r| (length(&r.key) + length(&r.value) + headers(r)) as u64).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn parquet_gives_back_what_was_written(calls in calls(20), filter in filters()) {
        round_trip(Format::Parquet, &calls, &filter);
    }

    #[test]
    fn avro_gives_back_what_was_written(calls in calls(20), filter in filters()) {
        round_trip(Format::Avro, &calls, &filter);
    }
}

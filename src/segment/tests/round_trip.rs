use super::*;

fn filters() -> impl Strategy<Value = Filter> {
    let partitions = prop::collection::btree_map(0..5_i32, (0_i64..2_000, 0_i64..2_000), 0..3);
    let times = prop_oneof![3 => (900_i64..2_100, 0_i64..500), 1 => (any::<i64>(), any::<i64>())];
    (prop::option::of(partitions), prop::option::of(times)).prop_map(|(partitions, times)| Filter {
        partitions: partitions
            .map(|all| all.into_iter().map(|(p, (start, length))| (p, start..start + length)).collect()),
        timestamps: times.map(|(start, length)| start..start.saturating_add(length)),
        with_key: None,
    })
}

fn with_key(filter: &Filter, key: &[u8]) -> Filter {
    Filter { with_key: Some(key.into()), ..filter.clone() }
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
    let wanted = written.into_iter().filter(|r| filter.matches(r.partition, r.offset, r.timestamp));
    let wanted = by_partition(wanted.collect());
    assert_eq!(by_partition(some), wanted);

    // Whatever else comes, all records of a key do.
    let keys = wanted.iter().filter_map(|record| record.key.clone()).take(3);
    for key in keys.chain([b"no such key".to_vec()]) {
        let (_, some) = read(&bytes, sealed.bytes, format, with_key(filter, &key)).unwrap();
        let of_key = |records: &[Owned]| -> Vec<Owned> {
            records.iter().filter(|record| record.key.as_ref() == Some(&key)).cloned().collect()
        };
        let some = by_partition(some);
        assert_eq!(of_key(&some), of_key(&wanted));
        assert!(some.iter().all(|record| wanted.contains(record)));
    }
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

fn small(partition: i32, offsets: std::ops::Range<i64>) -> Vec<Owned> {
    offsets
        .map(|offset| Owned {
            partition,
            offset,
            timestamp: offset,
            timestamp_type: TimestampType::Create,
            leader_epoch: -1,
            key: None,
            value: Some(offset.to_be_bytes().to_vec()),
            headers: vec![],
        })
        .collect()
}

#[test]
fn an_unfinished_writer_leaves_no_file() {
    for format in [Format::Parquet, Format::Avro] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("segment");
        let mut writer = SegmentWriter::create(&path, info(), encoding(format)).unwrap();
        writer.write(vec![block(&small(0, 0..10))]).unwrap();
        drop(writer);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        write(&path, format, &vec![vec![small(0, 0..10)]]).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(SegmentWriter::create(&path, info(), encoding(format)).is_err(), "the file exists");
    }
}

#[test]
fn blocks_that_do_not_follow_are_refused() {
    for format in [Format::Parquet, Format::Avro] {
        let folder = tempfile::tempdir().unwrap();
        let back = vec![vec![small(0, 5..10)], vec![small(0, 9..12)]];
        assert_eq!(write(&folder.path().join("back"), format, &back).unwrap_err().kind(), Kind::Internal);
        for (name, ranges) in [("short", [(0, 0, 9)].as_slice()), ("none", &[]), ("twice", &[(0, 0, 10), (0, 0, 10)])] {
            let mut writer = SegmentWriter::create(&folder.path().join(name), info(), encoding(format)).unwrap();
            writer.write(vec![block(&small(0, 0..10))]).unwrap();
            assert_eq!(writer.finish(ranges).unwrap_err().kind(), Kind::Internal, "{name}");
        }
    }
}

#[test]
fn ranges_may_be_wider_than_their_records_and_hold_none() {
    for format in [Format::Parquet, Format::Avro] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("segment");
        let mut writer = SegmentWriter::create(&path, info(), encoding(format)).unwrap();
        writer.write(vec![block(&small(1, 10..20))]).unwrap();
        let sealed = writer.finish(&[(2, 5, 9), (1, 3, 40)]).unwrap();
        let range = |partition, start, end, records, times: Option<(i64, i64)>| PartitionRange {
            partition,
            start,
            end,
            records,
            min_timestamp: times.map(|times| times.0),
            max_timestamp: times.map(|times| times.1),
        };
        assert_eq!(sealed.partitions, [range(1, 3, 40, 10, Some((10, 19))), range(2, 5, 9, 0, None)]);
        let bytes = std::fs::read(&sealed.path).unwrap();
        let (facts, records) = read(&bytes, sealed.bytes, format, Filter::default()).unwrap();
        assert_eq!((facts.partitions, records), (sealed.partitions, small(1, 10..20)));
    }
}

#[test]
fn the_sha256_is_that_of_the_file() {
    use sha2::Digest;
    for format in [Format::Parquet, Format::Avro] {
        let (sealed, bytes) = encoded(format, &vec![vec![small(0, 0..1_000)]]);
        let hex: String = sha2::Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(sealed.sha256, hex);
        assert_eq!(sealed.to_ref("key".into()).records(), 1_000);
    }
}

#[test]
fn rewriting_keeps_the_given_ranges() {
    for format in [Format::Parquet, Format::Avro] {
        let folder = tempfile::tempdir().unwrap();
        let calls =
            vec![vec![small(0, 0..50), small(1, 0..50), small(2, 7..9)], vec![small(1, 60..70), small(0, 50..99)]];
        let sealed = write(&folder.path().join("a segment"), format, &calls).unwrap();
        let to = folder.path().join("anew");
        let ranges = [(1, 0, 65), (2, 7, 9)];
        let anew = wait(rewrite(&sealed, &ranges, info(), encoding(format), &to)).unwrap();
        let covered: Vec<_> = anew.partitions.iter().map(|range| (range.partition, range.start, range.end)).collect();
        assert_eq!(covered, ranges);
        let bytes = std::fs::read(&anew.path).unwrap();
        let (_, records) = read(&bytes, anew.bytes, format, Filter::default()).unwrap();
        let kept = |record: &Owned| record.partition == 2 || record.partition == 1 && record.offset < 65;
        assert_eq!(by_partition(records), by_partition(flat(&calls).into_iter().filter(kept).collect()));

        let to = folder.path().join("without a record");
        let empty = wait(rewrite(&sealed, &[(1, 50, 60)], info(), encoding(format), &to)).unwrap();
        let (facts, records) = read(&std::fs::read(to).unwrap(), empty.bytes, format, Filter::default()).unwrap();
        assert_eq!((facts.partitions[0].start, facts.partitions[0].end, records.len()), (50, 60, 0));
    }
}

/// Large enough for many row groups, pages, Avro blocks and requests.
#[test]
fn large_segments_come_back_whole_and_in_part() {
    let text = |seed: i64| (0..40).flat_map(|i| (seed * 7_919 + i).to_string().into_bytes()).collect::<Vec<u8>>();
    // Two names that most records have, and one that only this one has: a dictionary of more than 256.
    let headers = |offset: i64| {
        let names = [b"source".to_vec(), format!("only-{offset}").into_bytes(), vec![0xff, offset as u8]];
        let header = |(at, name): (usize, Vec<u8>)| (name, (offset % 3 != at as i64).then(|| vec![at as u8; at]));
        names.into_iter().enumerate().map(header).take((offset % 5) as usize).collect()
    };
    let record = |partition, offset: i64| Owned {
        key: (offset % 7 != 0).then(|| offset.to_string().into_bytes()),
        value: (offset % 100 > 20).then(|| text(offset)),
        headers: headers(offset),
        timestamp: offset * 10,
        ..small(partition, offset..offset + 1).remove(0)
    };
    let call = |from: i64| -> Vec<Vec<Owned>> {
        (0..3).map(|partition| (from..from + 3_000).map(|offset| record(partition, offset)).collect()).collect()
    };
    let calls: Calls = (0..4).map(|number| call(number * 3_000)).collect();
    for format in [Format::Parquet, Format::Avro] {
        let (sealed, bytes) = encoded(format, &calls);
        let (_, records) = read(&bytes, sealed.bytes, format, Filter::default()).unwrap();
        assert_eq!(by_partition(records), by_partition(flat(&calls)));
        let filter = Filter {
            partitions: Some(BTreeMap::from([(1, 4_000..9_000)])),
            timestamps: Some(50_000..60_000),
            with_key: None,
        };
        let (_, records) = read(&bytes, sealed.bytes, format, filter).unwrap();
        assert_eq!(records, (5_000..6_000).map(|offset| record(1, offset)).collect::<Vec<_>>());

        // Of four row groups the one that has the key is read, and none for a key that none has; but by a chance of one in twenty.
        let read_for = |key: &str| {
            let filter = with_key(&Filter::default(), key.as_bytes());
            let (_, records) = read(&bytes, sealed.bytes, format, filter).unwrap();
            (records.len(), records.iter().filter(|record| record.key.as_deref() == Some(key.as_bytes())).count())
        };
        let of_group = if format == Format::Parquet { 9_000 } else { 36_000 };
        assert_eq!(read_for("8000"), (of_group, 3));
        let in_vain: usize = (0..20).map(|n| read_for(&format!("none {n}")).0 / 9_000).sum();
        assert!(if format == Format::Parquet { in_vain < 16 } else { in_vain == 80 }, "{in_vain}");
    }
}

#[test]
fn a_record_may_be_larger_than_any_page_or_block() {
    let noise: Vec<u8> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut records = small(0, 0..5);
    records[2].value = Some(noise.clone());
    records[3].headers = vec![(noise.clone(), Some(noise)), (b"after".to_vec(), None)];
    for format in [Format::Parquet, Format::Avro] {
        let (sealed, bytes) = encoded(format, &vec![vec![records.clone()]]);
        assert_eq!(sealed.largest_record, 6_000_013);
        let (_, found) = read(&bytes, sealed.bytes, format, Filter::default()).unwrap();
        assert!(found == records);
    }
}

#[test]
fn rows_without_a_byte_fill_no_block_without_end() {
    let rows: i64 = 150_000;
    let mut records = Block::new(0, 0);
    (0..rows).for_each(|offset| {
        records.push(offset, 0, TimestampType::Create, 0, None, None, std::iter::empty());
    });
    for format in [Format::Parquet, Format::Avro] {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = SegmentWriter::create(&folder.path().join("segment"), info(), encoding(format)).unwrap();
        records = writer.write(vec![records]).unwrap().remove(0);
        let sealed = writer.finish(&[(0, 0, rows)]).unwrap();
        let lengths: Vec<usize> = wait(async {
            let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new());
            let path = object_store::path::Path::from_filesystem_path(&sealed.path).unwrap();
            let mut reader = SegmentReader::open(store, &path, sealed.bytes, format, Filter::default()).await.unwrap();
            let mut lengths = Vec::new();
            while let Some(block) = reader.next().await.unwrap() {
                lengths.push(block.len());
            }
            lengths
        });
        assert_eq!(lengths.iter().sum::<usize>(), 150_000, "{format:?}");
        assert!(lengths.iter().all(|rows| *rows <= 1 << 16), "{format:?}: {lengths:?}");
    }
}

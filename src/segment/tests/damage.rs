use ::parquet::file::reader::{FileReader, SerializedFileReader};

use super::*;

/// Enough records for several row groups, pages and blocks.
fn sample() -> Calls {
    let record = |partition: i32, offset: i64| Owned {
        partition,
        offset,
        timestamp: 1_000 + offset,
        timestamp_type: TimestampType::Create,
        leader_epoch: 3,
        key: Some(format!("key-{offset}").into_bytes()),
        value: (offset % 7 != 0).then(|| format!("{{\"id\":{offset},\"name\":\"{}\"}}", offset * 7919).into_bytes()),
        headers: vec![(b"trace".to_vec(), Some(vec![offset as u8, 0xff])), (vec![0xfe], None)],
    };
    let block = |partition, from: i64| (from..from + 300).map(|offset| record(partition, offset)).collect();
    vec![vec![block(0, 0), block(1, 0)], vec![block(0, 300), block(1, 500)]]
}

/// What a reader may do with damaged bytes: say so, or give what was written, if the damage is to nothing that it
/// needs. A filtered read may miss records when it is an index of Parquet's footer that is damaged; what it gives is
/// still right.
fn survives(bytes: &[u8], size: u64, format: Format) {
    let written = by_partition(flat(&sample()));
    for filter in [Filter::default(), Filter { timestamps: Some(1_100..1_150), ..Filter::default() }] {
        match read(bytes, size, format, filter.clone()) {
            Ok((_, records)) if filter == Filter::default() => assert_eq!(by_partition(records), written),
            Ok((_, records)) => assert!(records.iter().all(|record| written.contains(record))),
            Err(error) => {
                assert!(matches!(error.kind(), Kind::Corrupt | Kind::Unsupported), "{error:?}");
                assert!(error.to_string().starts_with("segment segment: "), "{error:?}");
            }
        }
    }
}

fn corrupt(bytes: &[u8], size: u64, format: Format) -> String {
    let error = read(bytes, size, format, Filter::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
    error.to_string()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn flipped_bytes_are_survived(
        at in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1..=255_u8), 1..4)
    ) {
        for format in [Format::Parquet, Format::Avro] {
            let (_, mut bytes) = cached(format);
            for (at, near_an_end, flip) in &at {
                // Half of the damage goes to the first and last kilobytes, where the metadata are.
                let at = match flip % 4 {
                    0 => near_an_end.index(bytes.len().min(2_000)),
                    1 => bytes.len() - 1 - near_an_end.index(bytes.len().min(4_000)),
                    _ => at.index(bytes.len()),
                };
                bytes[at] ^= flip;
            }
            survives(&bytes, bytes.len() as u64, format);
        }
    }

    #[test]
    fn truncated_files_are_refused(keep in any::<prop::sample::Index>()) {
        for format in [Format::Parquet, Format::Avro] {
            let (sealed, bytes) = cached(format);
            let bytes = &bytes[..keep.index(bytes.len())];
            corrupt(bytes, bytes.len() as u64, format);
            corrupt(bytes, sealed.bytes, format);
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for (format, magic) in [(Format::Parquet, &b"PAR1"[..]), (Format::Avro, b"Obj\x01")] {
            corrupt(&bytes, bytes.len() as u64, format);
            let framed = [magic, &bytes, magic].concat();
            corrupt(&framed, framed.len() as u64, format);
        }
    }
}

fn cached(format: Format) -> (Sealed, Vec<u8>) {
    static PARQUET: std::sync::LazyLock<(Sealed, Vec<u8>)> =
        std::sync::LazyLock::new(|| encoded(Format::Parquet, &sample()));
    static AVRO: std::sync::LazyLock<(Sealed, Vec<u8>)> = std::sync::LazyLock::new(|| encoded(Format::Avro, &sample()));
    match format {
        Format::Parquet => PARQUET.clone(),
        Format::Avro => AVRO.clone(),
        Format::Wal | Format::State => unreachable!("it holds no records"),
    }
}

/// A segment that says something else about itself than what is in it.
fn lying(format: Format, lie: impl FnOnce(&mut SegmentFacts)) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("segment");
    let mut writer = SegmentWriter::create(&path, info(), encoding(format)).unwrap();
    for call in sample() {
        writer.write(call.iter().map(|records| block(records)).collect()).unwrap();
    }
    let Tally { raw_bytes, largest_record, .. } = writer.tally;
    let partitions = writer.tally.cover(&ranges(&flat(&sample()))).unwrap();
    let mut facts = SegmentFacts::new(&info(), raw_bytes, largest_record, partitions);
    lie(&mut facts);
    let spool = match writer.encoder {
        Encoder::Parquet(writer) => writer.finish(&facts),
        Encoder::Avro(writer) => writer.finish(&facts),
    };
    spool.unwrap().keep();
    std::fs::read(path).unwrap()
}

#[test]
fn a_damaged_filter_of_keys_hides_nothing() {
    let (sealed, bytes) = cached(Format::Parquet);
    let footer = SerializedFileReader::new(bytes::Bytes::from(bytes.clone())).unwrap();
    let groups = footer.metadata().row_groups();
    let places: Vec<_> = groups.iter().map(|group| group.column(5)).collect();
    let start = places[0].bloom_filter_offset().unwrap() as usize;
    let length: usize = places.iter().map(|column| column.bloom_filter_length().unwrap() as usize).sum();
    assert_eq!((places.len(), sealed.bytes), (2, bytes.len() as u64));
    let filter = Filter { with_key: Some(b"key-7".as_slice().into()), ..Filter::default() };
    for at in start..start + length {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        let error = read(&bytes, sealed.bytes, Format::Parquet, filter.clone()).unwrap_err();
        assert!(error.kind() == Kind::Corrupt && error.to_string().contains("filters of keys"), "{at}: {error}");
        let (_, records) = read(&bytes, sealed.bytes, Format::Parquet, Filter::default()).unwrap();
        assert_eq!(records.len(), 1_200);
    }
    // What the footer says of them is not hashed: no byte of it may hide a record either.
    for at in start + length..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        match read(&bytes, sealed.bytes, Format::Parquet, filter.clone()) {
            Ok((_, records)) => {
                let of_key = records.iter().filter(|record| record.key.as_deref() == Some(b"key-7")).count();
                assert_eq!(of_key, 2, "byte {at} of {}", bytes.len());
            }
            Err(error) => assert!(matches!(error.kind(), Kind::Corrupt | Kind::Unsupported), "{at}: {error}"),
        }
    }
}

#[test]
fn an_object_that_is_missing_is_not_found() {
    for format in [Format::Parquet, Format::Avro] {
        let store = Arc::new(InMemory::new());
        let opened = wait(SegmentReader::open(store, &"segment".into(), 1_000, format, Filter::default()));
        assert_eq!(opened.err().unwrap().kind(), Kind::NotFound);
    }
}

#[test]
fn an_object_of_another_size_says_both_sizes() {
    for format in [Format::Parquet, Format::Avro] {
        let (sealed, bytes) = cached(format);
        let said = corrupt(&bytes[..bytes.len() - 10], sealed.bytes, format);
        let expected = format!("it has {} bytes, its checkpoint says {}", sealed.bytes - 10, sealed.bytes);
        assert!(said.contains(&expected), "{said}");
    }
}

#[test]
fn a_newer_version_is_refused_with_the_way_out() {
    for format in [Format::Parquet, Format::Avro] {
        let bytes = lying(format, |facts| facts.format_version = 2);
        let error = read(&bytes, bytes.len() as u64, format, Filter::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("format version 2, this tidelog reads up to 1"), "{error}");
        assert!(error.hint_text().unwrap().contains("newer tidelog"));
    }
}

#[test]
fn records_that_do_not_fit_the_facts_are_refused() {
    type Lie = fn(&mut PartitionRange);
    let lies: [(Lie, &str); 4] = [
        (|range| range.end = 700, "it has offset 700 of partition 1 where 700..700 may follow"),
        (|range| range.partition = 2, "it has a record of partition 1, which its ranges do not name"),
        (|range| range.records = 599, "it holds 1200 records, and says 1199"),
        (|range| range.end = 500, "its tidelog.ranges gives partition 1 600 records in offsets 0..500"),
    ];
    for format in [Format::Parquet, Format::Avro] {
        for (lie, expected) in lies {
            let bytes = lying(format, |facts| lie(&mut facts.partitions[1]));
            let said = corrupt(&bytes, bytes.len() as u64, format);
            assert!(said.contains(expected), "{said}");
        }
    }
}

#[test]
fn counts_that_only_add_up_in_total_are_refused_after_the_last_record() {
    for format in [Format::Parquet, Format::Avro] {
        let bytes = lying(format, |facts| {
            facts.partitions[0].records -= 1;
            facts.partitions[1].records += 1;
        });
        let said = corrupt(&bytes, bytes.len() as u64, format);
        assert!(said.contains("it holds 600 records of partition 0, and says 599"), "{said}");
    }
}

#[test]
fn partitions_out_of_order_are_refused() {
    for format in [Format::Parquet, Format::Avro] {
        let bytes = lying(format, |facts| facts.partitions.swap(0, 1));
        let said = corrupt(&bytes, bytes.len() as u64, format);
        assert!(said.contains("does not name its partitions in order"), "{said}");
    }
}

#[test]
fn a_flipped_bit_in_the_metadata_is_found() {
    for format in [Format::Parquet, Format::Avro] {
        let (sealed, mut bytes) = cached(format);
        let at = bytes.windows(4).position(|text| text == b"a41c").unwrap();
        bytes[at] ^= 1;
        let said = corrupt(&bytes, sealed.bytes, format);
        assert!(said.contains("its metadata are not what its tidelog.check says"), "{said}");
    }
}

/// Every record is behind a checksum: no flipped bit of the data reaches a replay.
#[test]
fn a_flipped_bit_in_the_data_is_found() {
    for (format, expected) in [(Format::Parquet, "is not what it hashes to"), (Format::Avro, "its block at")] {
        let (sealed, bytes) = cached(format);
        // Parquet: from behind the magic to where the footer may begin; Avro: the last blocks.
        let data = match format {
            Format::Parquet => 4..bytes.len() / 2,
            _ => bytes.len() / 2..bytes.len(),
        };
        for at in data.step_by(97) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            let said = corrupt(&bytes, sealed.bytes, format);
            assert!(said.contains(expected), "{at}: {said}");
        }
    }
}

use super::*;
use crate::stream::SegmentRef;

/// What these calls become: one segment for each, and one of all of them.
fn merge(format: Format, calls: &Calls) -> Result<(SegmentRef, Sealed, Vec<u8>)> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("merged");
    let mut merging = Merging::create(&path, info(), encoding(format)).expect("a file");
    let mut last = None;
    for call in calls.iter().filter(|call| call.iter().any(|block| !block.is_empty())) {
        let (sealed, bytes) = encoded(format, &vec![call.clone()]);
        let segment = sealed.to_ref("segment".to_owned());
        wait(async {
            let mut reader = merging.open(bytes.into(), &segment).await?;
            while let Some(block) = reader.next().await? {
                if merging.add(block) {
                    merging.write()?;
                }
            }
            Ok::<_, Error>(())
        })?;
        last = Some(segment);
    }
    let sealed = merging.finish()?;
    let bytes = std::fs::read(&path).expect("the merged segment");
    Ok((last.expect("a segment"), sealed, bytes))
}

fn gives_back(format: Format, calls: &Calls) {
    let all = flat(calls);
    if all.is_empty() {
        return;
    }
    let (_, sealed, bytes) = merge(format, calls).expect("it is merged");
    let (facts, records) = read(&bytes, sealed.bytes, format, Filter::default()).expect("it can be read");
    assert_eq!(by_partition(records), by_partition(all.clone()));
    assert_eq!(facts.partitions, sealed.partitions);
    let (whole, _) = encoded(format, calls);
    assert_eq!((&sealed.partitions, sealed.raw_bytes), (&whole.partitions, whole.raw_bytes));
    assert_eq!((sealed.largest_record, &sealed.last), (whole.largest_record, &whole.last));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn merged_parquet_holds_every_record_as_it_was(calls in calls(20)) {
        gives_back(Format::Parquet, &calls);
    }

    #[test]
    fn merged_avro_holds_every_record_as_it_was(calls in calls(20)) {
        gives_back(Format::Avro, &calls);
    }
}

#[test]
fn bytes_that_are_not_those_of_the_checkpoint_are_not_merged() {
    let record = |offset| Owned {
        partition: 0,
        offset,
        timestamp: 5,
        timestamp_type: TimestampType::Create,
        leader_epoch: 0,
        key: None,
        value: Some(b"value".to_vec()),
        headers: Vec::new(),
    };
    let calls = vec![vec![vec![record(0), record(1)]]];
    for format in [Format::Parquet, Format::Avro] {
        let (sealed, bytes) = encoded(format, &calls);
        let directory = tempfile::tempdir().expect("a directory");
        let mut merging = Merging::create(&directory.path().join("m"), info(), encoding(format)).expect("a file");
        let mut refused = |bytes: Vec<u8>, segment: &SegmentRef| match wait(merging.open(bytes.into(), segment)) {
            Ok(_) => panic!("it is taken"),
            Err(error) => (error.kind(), error.to_string()),
        };
        let segment = sealed.to_ref("segment".to_owned());
        let mut flipped = bytes.clone();
        flipped[10] ^= 1;
        let (kind, said) = refused(flipped, &segment);
        assert!(kind == Kind::Corrupt && said.contains("its sha256 is"), "{said}");
        let mut lies = segment;
        lies.partitions[0].end += 1;
        let (kind, said) = refused(bytes, &lies);
        assert!(kind == Kind::Corrupt && said.contains("says other things"), "{said}");
    }
}

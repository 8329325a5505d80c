//! Segments of each version of the format, kept in `tests/golden`: whatever reads them now must read them for ever.
//!
//! A new version gets files of its own: `TIDELOG_WRITE_GOLDEN=1 cargo test golden` writes those of the present version;
//! the files of the versions before stay, and so does the test of each.

use super::*;
use crate::stream::FORMAT_VERSION;

/// The last millisecond of the year 9999, which is as far as Python's readers go.
const LATEST: i64 = 253_402_300_799_999;

fn file(version: u32, format: Format) -> PathBuf {
    let name = format!("tests/golden/segment-v{version}.{}", format.name());
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// One of each kind of thing that a record can hold.
fn records() -> Calls {
    let header = |name: &[u8], value: Option<&[u8]>| (name.to_vec(), value.map(<[u8]>::to_vec));
    let plain = Owned {
        partition: 0,
        offset: 100,
        timestamp: 1_763_822_345_000,
        timestamp_type: TimestampType::Create,
        leader_epoch: 3,
        key: Some(br#"{"id":1}"#.to_vec()),
        value: Some(br#"{"id":1,"name":"first"}"#.to_vec()),
        headers: vec![],
    };
    let headers = vec![
        header(b"trace", Some(b"a")),
        header(b"trace", Some(b"")),
        header(b"trace", None),
        header("größe".as_bytes(), Some(&[0, 255])),
        header(&[b'x', 0xfe, 0xff], Some(b"not text")),
        header(b"", Some(b"no name")),
    ];
    let zero = vec![
        plain.clone(),
        Owned { offset: 101, timestamp: 1_763_822_344_000, value: None, ..plain.clone() },
        Owned { offset: 104, key: Some(vec![]), value: Some(vec![]), ..plain.clone() },
        Owned { offset: 105, key: None, value: Some(vec![0, 159, 146, 150]), headers, ..plain.clone() },
        Owned { offset: 9_000_000_000, leader_epoch: -1, ..plain.clone() },
    ];
    let one = vec![
        Owned { partition: 1, offset: 0, timestamp_type: TimestampType::LogAppend, ..plain.clone() },
        Owned { partition: 1, offset: 1, timestamp_type: TimestampType::NotAvailable, timestamp: -1, ..plain.clone() },
    ];
    let later = vec![Owned { partition: 1, offset: 7, timestamp: LATEST, ..plain }];
    vec![vec![zero, one], vec![later]]
}

#[test]
fn version_1_is_read() {
    for format in [Format::Parquet, Format::Avro] {
        let file = file(1, format);
        let rewrite = std::env::var_os("TIDELOG_WRITE_GOLDEN").is_some_and(|on| on == "1");
        if rewrite && FORMAT_VERSION == 1 {
            let (_, bytes) = encoded(format, &records());
            std::fs::write(&file, bytes).unwrap();
        }
        let bytes = std::fs::read(&file).unwrap();
        let (facts, found) = read(&bytes, bytes.len() as u64, format, Filter::default()).unwrap();
        assert_eq!(by_partition(found), by_partition(flat(&records())));
        assert_eq!(facts.format_version, 1);
        assert_eq!(facts.stream, info().stream);
        assert_eq!((facts.topic_id, facts.writer, facts.created), (info().topic_id, info().writer, info().created));
        assert_eq!((facts.raw_bytes, facts.largest_record), (210, 47));
        let range = |partition, start, end, records, least, greatest| PartitionRange {
            partition,
            start,
            end,
            records,
            min_timestamp: Some(least),
            max_timestamp: Some(greatest),
        };
        let zero = range(0, 100, 9_000_000_001, 5, 1_763_822_344_000, 1_763_822_345_000);
        assert_eq!(facts.partitions, [zero, range(1, 0, 8, 3, -1, LATEST)]);
    }
}

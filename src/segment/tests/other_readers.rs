//! Other people's readers see the same records, as the types that the format promises.

use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use apache_avro::types::Value;
use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, TimestampMillisecondType};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, TimeUnit};

use super::*;

fn records_of(batch: &RecordBatch) -> Vec<Owned> {
    let column = |name: &str| batch.column_by_name(name).unwrap();
    let (key, value) = (column("key").as_binary::<i32>(), column("value").as_binary::<i32>());
    let headers = column("headers").as_list::<i32>();
    let owned = |bytes: &arrow_array::BinaryArray, at: usize| bytes.is_valid(at).then(|| bytes.value(at).to_vec());
    (0..batch.num_rows())
        .map(|at| {
            let of_row = headers.value(at);
            let parts = of_row.as_struct();
            let name = parts.column_by_name("name").unwrap().as_string::<i32>();
            let header_value = parts.column_by_name("value").unwrap().as_binary::<i32>();
            let name_bytes = parts.column_by_name("name_bytes").unwrap().as_binary::<i32>();
            let exact = |at: usize| owned(name_bytes, at).unwrap_or_else(|| name.value(at).into());
            Owned {
                partition: column("partition").as_primitive::<Int32Type>().value(at),
                offset: column("offset").as_primitive::<Int64Type>().value(at),
                timestamp: column("timestamp").as_primitive::<TimestampMillisecondType>().value(at),
                timestamp_type: TimestampType::from_name(
                    column("timestamp_type").as_string::<i32>().value(at).as_bytes(),
                )
                .unwrap(),
                leader_epoch: column("leader_epoch").as_primitive::<Int32Type>().value(at),
                key: owned(key, at),
                value: owned(value, at),
                headers: (0..parts.len()).map(|at| (exact(at), owned(header_value, at))).collect(),
            }
        })
        .collect()
}

fn bytes_of(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::Union(0, null) if **null == Value::Null => None,
        Value::Union(1, bytes) => match &**bytes {
            Value::Bytes(bytes) => Some(bytes.clone()),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn record_of(value: Value) -> Owned {
    let Value::Record(fields) = value else { panic!("{value:?}") };
    let field = |name: &str| &fields.iter().find(|(known, _)| known == name).unwrap().1;
    let int = |name: &str| match field(name) {
        Value::Int(number) => *number,
        other => panic!("{other:?}"),
    };
    let (Value::Long(offset), Value::TimestampMillis(timestamp)) = (field("offset"), field("timestamp")) else {
        panic!("{fields:?}");
    };
    let (Value::Enum(_, kind), Value::Array(headers)) = (field("timestamp_type"), field("headers")) else {
        panic!("{fields:?}");
    };
    let header = |header: &Value| {
        let Value::Record(parts) = header else { panic!("{header:?}") };
        let Value::String(name) = &parts[0].1 else { panic!("{header:?}") };
        (bytes_of(&parts[2].1).unwrap_or_else(|| name.clone().into()), bytes_of(&parts[1].1))
    };
    Owned {
        partition: int("partition"),
        offset: *offset,
        timestamp: *timestamp,
        timestamp_type: TimestampType::from_name(kind.as_bytes()).unwrap(),
        leader_epoch: int("leader_epoch"),
        key: bytes_of(field("key")),
        value: bytes_of(field("value")),
        headers: headers.iter().map(header).collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn arrow_reads_the_parquet_file(calls in calls(20)) {
        let (_, bytes) = encoded(Format::Parquet, &calls);
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes)).unwrap().build().unwrap();
        let records = reader.flat_map(|batch| records_of(&batch.unwrap())).collect();
        prop_assert_eq!(by_partition(records), by_partition(flat(&calls)));
    }

    #[test]
    fn apache_avro_reads_the_avro_file(calls in calls(20)) {
        let (_, bytes) = encoded(Format::Avro, &calls);
        let reader = apache_avro::Reader::new(&bytes[..]).unwrap();
        let records = reader.map(|value| record_of(value.unwrap())).collect();
        prop_assert_eq!(by_partition(records), by_partition(flat(&calls)));
    }
}

#[test]
fn the_parquet_columns_have_their_logical_types() {
    let (_, bytes) = encoded(Format::Parquet, &vec![]);
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes.clone())).unwrap();
    let fields: Vec<_> = reader.schema().fields().iter().map(|f| (f.name().as_str(), f.is_nullable())).collect();
    let expected = ["partition", "offset", "timestamp", "timestamp_type", "leader_epoch", "key", "value", "headers"];
    assert_eq!(fields, expected.map(|name| (name, name == "key" || name == "value")));
    let timestamp = reader.schema().field_with_name("timestamp").unwrap();
    assert_eq!(timestamp.data_type(), &DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())));

    let footer = SerializedFileReader::new(bytes::Bytes::from(bytes)).unwrap();
    let pairs = footer.metadata().file_metadata().key_value_metadata().unwrap().clone();
    let value = |key: &str| pairs.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone()).unwrap();
    assert_eq!(value("tidelog.format"), "1");
    assert_eq!(value("tidelog.stream"), "kafka/main/cdc.orders.2");
    assert_eq!((value("tidelog.cluster"), value("tidelog.generation")), ("main".into(), "2".into()));
    assert_eq!((value("tidelog.topic"), value("tidelog.writer")), ("cdc.orders".into(), "a41c".into()));
    assert_eq!(value("tidelog.topic_id"), "p8Bm5Jq_TDqyy2zL9Dg_Kw");
    assert_eq!(value("tidelog.created"), "2025-11-22T14:39:05.678Z");
    assert_eq!(value("tidelog.ranges"), "[]");
}

#[test]
fn only_constant_like_columns_have_a_dictionary_and_only_three_have_statistics() {
    use ::parquet::basic::Encoding::{DELTA_BINARY_PACKED, DELTA_LENGTH_BYTE_ARRAY, PLAIN, RLE, RLE_DICTIONARY};
    let record = Owned {
        partition: 3,
        offset: 7,
        timestamp: 1_000,
        timestamp_type: TimestampType::LogAppend,
        leader_epoch: 1,
        key: Some(b"k".to_vec()),
        value: Some(b"v".to_vec()),
        headers: vec![(b"h".to_vec(), Some(b"x".to_vec()))],
    };
    let (_, bytes) = encoded(Format::Parquet, &vec![vec![vec![record]]]);
    let footer = SerializedFileReader::new(bytes::Bytes::from(bytes)).unwrap();
    let dictionary = vec![PLAIN, RLE, RLE_DICTIONARY];
    let expected = [
        ("partition", dictionary.clone(), true),
        ("offset", vec![RLE, DELTA_BINARY_PACKED], true),
        ("timestamp", vec![RLE, DELTA_BINARY_PACKED], true),
        ("timestamp_type", dictionary.clone(), false),
        ("leader_epoch", dictionary.clone(), false),
        ("key", vec![RLE, DELTA_LENGTH_BYTE_ARRAY], false),
        ("value", vec![RLE, DELTA_LENGTH_BYTE_ARRAY], false),
        ("headers.list.element.name", dictionary, false),
        ("headers.list.element.value", vec![RLE, DELTA_LENGTH_BYTE_ARRAY], false),
        ("headers.list.element.name_bytes", vec![RLE, DELTA_LENGTH_BYTE_ARRAY], false),
    ];
    let group = footer.metadata().row_group(0);
    let found: Vec<_> = group
        .columns()
        .iter()
        .map(|column| {
            let mut encodings: Vec<_> = column.encodings().collect();
            encodings.sort();
            (column.column_path().string(), encodings, column.statistics().is_some())
        })
        .collect();
    assert_eq!(found, expected.map(|(path, encodings, statistics)| (path.to_owned(), encodings, statistics)));
}

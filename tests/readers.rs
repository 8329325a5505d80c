//! Readers that are not ours, over a whole archive, by the recipes of `docs/FORMAT.md`: they see the topics by their own
//! names, and the records as they were.

use serde_json::{Value, json};
use tidelog::stream::Format;

use crate::archive::{Record, Topic, on_disk};
use crate::rig::process::temporary_directory;
use crate::rig::python;

/// Names that readers of Hive's folders take for numbers, truth values, dates and nothing.
const NAMES: [&str; 9] = ["007", "1e5", "-0", "0x1F", "2026-01-01", "NaN", "null", "true", "orders"];

#[test]
fn a_topic_keeps_its_name_whatever_it_looks_like() {
    let record = |offset| Record::new(0, offset, 1_795_334_712_000 + offset);
    let headers = vec![(b"h".to_vec(), Some(b"x".to_vec()))];
    let mixed = [record(0), Record { key: None, ..record(1) }, Record { value: None, headers, ..record(2) }];
    let keyless: Vec<_> = (0..5).map(|offset| Record { key: None, ..record(offset) }).collect();
    let tombstones: Vec<_> = (0..5).map(|offset| Record { value: None, ..record(offset) }).collect();
    let mut topics: Vec<(&str, &[Record], Value)> =
        NAMES.iter().map(|name| (*name, &mixed[..], json!([[name, 3, 3, 1, 1, 1]]))).collect();
    topics.push(("08", &keyless, json!([["08", 3, 5, 5, 0, 0]])));
    topics.push(("0.10", &tombstones, json!([["0.10", 3, 5, 0, 5, 0]])));
    let archives: Vec<_> = topics.iter().map(|_| temporary_directory("readers")).collect();
    tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
        for ((name, records, _), archive) in topics.iter().zip(&archives) {
            let store = on_disk(archive.path());
            Topic::begin(&store, name, 3).await.append(Format::Parquet, records).await;
        }
    });
    let roots: Vec<String> = archives.iter().map(|archive| archive.path().display().to_string()).collect();
    let roots: Vec<&str> = roots.iter().map(String::as_str).collect();
    let said: Value = serde_json::from_str(&python::run(include_str!("data/topic_names.py"), &roots)).expect("JSON");
    for ((name, _, expected), said) in topics.iter().zip(said.as_array().expect("a list")) {
        assert_eq!((&said["duckdb"], &said["pyarrow"]), (expected, expected));
        assert_eq!(said["footers"], json!([name]), "the file itself says its topic");
    }
}

/// The filters of keys are those of the format: DuckDB finds by them what a file surely does not have.
#[test]
fn duckdb_leaves_out_row_groups_by_the_filters_of_keys() {
    let archive = temporary_directory("filters");
    let keys: Vec<Record> = (0..2_000).map(|offset| Record::new(0, offset, 1_795_334_712_000 + offset)).collect();
    tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
        Topic::begin(&on_disk(archive.path()), "orders", 1).await.append(Format::Parquet, &keys).await;
    });
    let script = "import duckdb, glob, json, sys
(file,) = glob.glob(sys.argv[1] + '/**/*.parquet', recursive=True)
probe = lambda key: duckdb.execute(
    'SELECT bool_and(bloom_filter_excludes) FROM parquet_bloom_probe(?, ?, encode(?))', [file, 'key', key]).fetchone()[0]
print(json.dumps([[probe(f'k{n}') for n in range(2000)].count(True), [probe(f'none {n}') for n in range(200)].count(True)]))";
    let said: Vec<u64> =
        serde_json::from_str(&python::run(script, &[&archive.path().display().to_string()])).expect("JSON");
    assert_eq!(said[0], 0, "a key that is there is never excluded");
    assert!(said[1] > 160, "{said:?}");
}

//! The keys of the archive: the only place that builds and takes apart the name of an object.
//!
//! ```text
//! manifest/kafka/<cluster>/<topic>.<generation>/<number, 20 digits>.json     an entry of a chain
//! manifest/kafka/<cluster>/<topic>.<generation>/pages/<sha256>.json.zst      a page of a snapshot
//! segments/kafka/cluster=…/topic=…/generation=…/date=YYYY-MM-DD/<HHMMSS>-<writer>-<n>.<parquet|avro>
//! coverage/kafka/<cluster>/<writer>.json                                     what a replica knows to be complete
//! ```
//!
//! Segments lie in folders as Hive names them, so that DuckDB, Spark and Trino see cluster, topic, generation and date
//! as columns. Entries sort by their numbers.

use chrono::{DateTime, Utc};
use object_store::path::Path;

use crate::error::{Kind, Result, ResultExt};
use crate::stream::{Format, StreamId};

/// The folder of all Kafka chains.
pub fn chains() -> Path {
    Path::from_iter(["manifest", "kafka"])
}

/// The folder of a stream's chain.
pub fn chain(stream: &StreamId) -> Path {
    let folder = format!("{}.{}", stream.topic, stream.generation);
    Path::from_iter(["manifest", "kafka", stream.cluster.as_str(), folder.as_str()])
}

/// Entry `number` of a stream's chain.
pub fn entry(stream: &StreamId, number: u64) -> Path {
    chain(stream).join(format!("{number:020}.json"))
}

/// The number of the entry that `key` names; none if it names something else.
pub fn entry_number(key: &Path) -> Option<u64> {
    let digits = key.filename()?.strip_suffix(".json")?;
    if digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// The stream whose chain lies in `folder`; none if it is not a folder of a chain.
pub fn stream_of(folder: &Path) -> Option<StreamId> {
    folder.as_ref().strip_prefix("manifest/")?.parse().ok()
}

/// The page of a stream's chain with this sha256.
pub fn page(stream: &StreamId, sha256: &str) -> Path {
    chain(stream).join("pages").join(format!("{sha256}.json.zst"))
}

/// The `n`th segment that `writer` sealed, at `sealed`.
pub fn segment(stream: &StreamId, sealed: DateTime<Utc>, writer: &str, n: u64, format: Format) -> Path {
    Path::from_iter([
        "segments",
        "kafka",
        &format!("cluster={}", stream.cluster),
        &format!("topic={}", stream.topic),
        &format!("generation={}", stream.generation),
        &format!("date={}", sealed.format("%Y-%m-%d")),
        &format!("{}-{writer}-{n}.{}", sealed.format("%H%M%S"), format.name()),
    ])
}

/// The folder of all segments of Kafka topics.
pub fn segments() -> Path {
    Path::from_iter(["segments", "kafka"])
}

/// The key that a checkpoint or a page writes down.
///
/// # Errors
/// [`Kind::Corrupt`] if no object can have that key.
pub fn object(key: &str) -> Result<Path> {
    Path::parse(key).or_err(Kind::Corrupt, || format!("{key:?} cannot be the key of an object"))
}

/// The folder of what the replicas of a cluster know to be complete.
pub fn coverages(cluster: &str) -> Path {
    Path::from_iter(["coverage", "kafka", cluster])
}

/// What `writer` knows to be complete.
pub fn coverage(cluster: &str, writer: &str) -> Path {
    coverages(cluster).join(format!("{writer}.json"))
}

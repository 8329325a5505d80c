//! What somebody reads of topics, told to retention: a replay keeps the segments that it is to send.
//!
//! ```text
//! holds/kafka/<cluster>/<name>.json   written when a replay begins, and again and again while it runs; removed at its end
//!                       clock         written by whoever expires: its time is that of the store
//! ```
//!
//! A stream of which something is read expires nothing of that, and deletes none of its objects. A hold that is written just after
//! retention has looked is seen before the objects are deleted, an hour later. It counts for [`SPAN`] after it was last written, by
//! the store's clock, as one of a restore does.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::holds::SPAN;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::store::{Store, layout};
use crate::stream::{FORMAT_VERSION, is_name, lean};

/// Offsets by stream and partition.
pub type Offsets = BTreeMap<String, BTreeMap<i32, Range<i64>>>;

/// What one reader reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reads {
    /// The version of the format.
    pub format: u32,
    /// Its name, which nobody else uses.
    pub name: String,
    /// What it is for, for people.
    pub what: String,
    /// The streams.
    pub streams: Vec<StreamReads>,
}

/// What is read of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamReads {
    /// The stream.
    pub stream: String,
    /// The offsets of each partition.
    pub partitions: Vec<RangeReads>,
}

/// Offsets `[start, end)` of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeReads {
    /// The partition.
    pub partition: i32,
    /// The first offset.
    pub start: i64,
    /// The offset after the last.
    pub end: i64,
}

impl Reads {
    /// A new one.
    pub fn new(name: String, what: String, offsets: Offsets) -> Self {
        let range = |(partition, at): (i32, Range<i64>)| RangeReads { partition, start: at.start, end: at.end };
        let of = |(stream, ranges): (String, BTreeMap<i32, Range<i64>>)| StreamReads {
            stream,
            partitions: ranges.into_iter().map(range).collect(),
        };
        Self { format: FORMAT_VERSION, name, what, streams: offsets.into_iter().map(of).collect() }
    }

    /// Writes it, for the first time or again.
    ///
    /// # Errors
    /// The store's: [`Kind::Denied`] for an archive that is read-only.
    pub async fn write(&self, store: &Store, cluster: &str) -> Result<()> {
        let bytes =
            serde_json::to_vec(self).or_err(Kind::Internal, || format!("cannot write the hold {}", self.name))?;
        store.put(&layout::topic_hold(cluster, &self.name), Bytes::from(bytes)).await
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let reads: Self = lean::parse(bytes).or_err(Kind::Corrupt, || "a hold cannot be read".to_owned())?;
        match reads.format {
            1..=FORMAT_VERSION if is_name(&reads.name) => Ok(reads),
            1..=FORMAT_VERSION => Err(Error::new(Kind::Corrupt, format!("a hold says that it is {:?}", reads.name))),
            newer => Err(Error::new(Kind::Unsupported, format!("the hold {} has format version {newer}", reads.name))
                .hint("use the newer tidelog that wrote it")),
        }
    }
}

/// What is read at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    reads: Vec<Reads>,
    /// Whether a hold cannot be read: then everything is held until it ends, for nobody knows what it needs.
    is_everything: bool,
}

impl Held {
    /// Returns whether something of these offsets of a stream is read.
    pub fn any_of(&self, stream: &str, offsets: &BTreeMap<i32, Range<i64>>) -> bool {
        let streams = self.reads.iter().flat_map(|reads| &reads.streams).filter(|of| of.stream == stream);
        let mut ranges = streams.flat_map(|of| &of.partitions);
        let is_in = |read: &RangeReads| {
            let at = offsets.get(&read.partition);
            at.is_some_and(|at| read.start < at.end && at.start < read.end)
        };
        self.is_everything || ranges.any(is_in)
    }
}

/// Returns what is held of a cluster's topics at `now`, by the store's clock.
pub async fn held(store: &Store, cluster: &str, now: DateTime<Utc>) -> Result<Held> {
    let mut held = Held::default();
    for object in store.list(&layout::topic_holds(cluster)).await? {
        if object.location.extension() != Some("json") || object.last_modified + SPAN <= now {
            continue;
        }
        // One that has gone meanwhile was taken back.
        let read = match store.get(&object.location).await {
            Ok(None) => continue,
            Ok(Some(bytes)) => Reads::parse(&bytes),
            Err(error) if error.kind() == Kind::Corrupt => Err(error),
            Err(error) => return Err(error),
        };
        match read {
            Ok(reads) => held.reads.push(reads),
            Err(error) => {
                tracing::warn!(key = %object.location, %error, "nothing is expired while this hold counts");
                held.is_everything = true;
            }
        }
    }
    Ok(held)
}

/// Removes the holds that ended long ago: their readers were killed, or had no right to delete them.
pub async fn remove_lapsed(store: &Store, cluster: &str, now: DateTime<Utc>) -> Result<()> {
    for object in store.list(&layout::topic_holds(cluster)).await? {
        if object.location.extension() == Some("json") && object.last_modified + SPAN * 4 <= now {
            store.delete(&object.location).await?;
        }
    }
    Ok(())
}

//! Coverage: up to which time a stream is known to be complete.
//!
//! A replica that has read a partition to its end knows that everything up to now is archived, as soon as the records
//! before that end are committed. It writes such claims into one small object of its own, over and over. A claim names
//! the offset that it stands on: it counts only while the chain has come at least that far, so that neither a claim that
//! ran ahead of its checkpoint nor one that survived a restored bucket can promise too much.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::{Chain, READS_AT_ONCE, entry};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::store::{Store, layout};
use crate::stream::{FORMAT_VERSION, StreamId};

/// What one replica knows to be complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// The version of the format.
    pub format: u32,
    /// The replica's id.
    pub writer: String,
    /// When it was written.
    pub at: DateTime<Utc>,
    /// The claims by stream (as [`StreamId`] is written) and partition.
    pub streams: BTreeMap<String, BTreeMap<i32, Claim>>,
}

/// Everything of a partition that was there at a time is archived once `offset` is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The partition's end at that time: the next offset to read.
    pub offset: i64,
    /// The time.
    pub complete_through: DateTime<Utc>,
}

impl Coverage {
    /// A replica that knows nothing yet.
    pub fn new(writer: impl Into<String>, at: DateTime<Utc>) -> Self {
        Self { format: FORMAT_VERSION, writer: writer.into(), at, streams: BTreeMap::new() }
    }

    /// Notes a claim, unless a later one is known.
    pub fn claim(&mut self, stream: &StreamId, partition: i32, claim: Claim) {
        let known = self.streams.entry(stream.to_string()).or_default().entry(partition).or_insert(claim);
        if known.complete_through < claim.complete_through {
            *known = claim;
        }
    }

    /// Writes the replica's object.
    pub async fn save(&self, store: &Store, folder: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self).or_err(Kind::Internal, || "cannot write coverage as JSON".into())?;
        store.put(&layout::coverage(folder, &self.writer), Bytes::from(bytes)).await
    }

    /// Takes over the claims of replicas that wrote nothing since `before` and removes their objects, so that restarts
    /// leave no heap of objects. Our own object is durable before theirs are gone; a replica that lives after all
    /// writes its object anew.
    pub async fn adopt(&mut self, store: &Store, folder: &Path, before: DateTime<Utc>) -> Result<()> {
        let loaded = load_all(store, folder).await?;
        loaded.tell_unreadable();
        let mut old = loaded.known;
        old.retain(|other| other.writer != self.writer && other.at < before);
        if old.is_empty() {
            return Ok(());
        }
        for other in &old {
            for (stream, claims) in &other.streams {
                // What no program of ours can have written is no claim of anything.
                let Ok(stream) = stream.parse() else { continue };
                claims.iter().for_each(|(partition, claim)| self.claim(&stream, *partition, *claim));
            }
        }
        self.save(store, folder).await?;
        for other in &old {
            store.delete(&layout::coverage(folder, &other.writer)).await?;
        }
        Ok(())
    }
}

/// What the objects of a folder of coverage say.
#[derive(Debug, Default)]
pub struct Loaded {
    /// What replicas know.
    pub known: Vec<Coverage>,
    /// Why objects cannot be read. What stands in them only counts for nothing: a stream may be complete further than is
    /// known now.
    pub unreadable: Vec<Error>,
}

impl Loaded {
    /// Tells the log of what cannot be read.
    pub fn tell_unreadable(&self) {
        for error in &self.unreadable {
            tracing::warn!(%error, hint = error.hint_text(), "claims of completeness are passed over");
        }
    }
}

/// What all replicas know that write into `folder`. An object that vanishes meanwhile was adopted by another replica, and one
/// that is damaged takes away no other's claims.
pub async fn load_all(store: &Store, folder: &Path) -> Result<Loaded> {
    let objects = store.list(folder).await?;
    let read = stream::iter(objects).map(|object| async move {
        let Some(bytes) = store.get(&object.location).await? else { return Ok(None) };
        decode(&object.location, &bytes).map(Some)
    });
    let mut read = read.buffered(READS_AT_ONCE);
    let mut loaded = Loaded::default();
    while let Some(coverage) = read.next().await {
        match coverage {
            Ok(coverage) => loaded.known.extend(coverage),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => loaded.unreadable.push(error),
        }
    }
    Ok(loaded)
}

pub(super) fn decode(object: &Path, bytes: &[u8]) -> Result<Coverage> {
    entry::check_format(object, bytes)?;
    serde_json::from_slice(bytes).map_err(|error| {
        Error::new(Kind::Corrupt, format!("{object} cannot be read")).source(error).hint(
            "delete the object: nothing but claims of completeness is lost with it, and archivers make them again",
        )
    })
}

/// Up to which time each partition of a chain is complete, as far as that is known. A partition of which nothing is
/// archived is as far as where its archive begins.
pub fn complete_through(coverages: &[Coverage], chain: &Chain) -> BTreeMap<i32, DateTime<Utc>> {
    let stream = chain.stream().to_string();
    let mut complete = BTreeMap::new();
    for (partition, claim) in coverages.iter().filter_map(|coverage| coverage.streams.get(&stream)).flatten() {
        if chain.reached(*partition).is_some_and(|end| end >= claim.offset) {
            let through = complete.entry(*partition).or_insert(claim.complete_through);
            *through = claim.complete_through.max(*through);
        }
    }
    complete
}

/// The partitions of a topic's chain: those of which something is archived, and those that the topic had when its archive
/// began.
pub fn partitions(chain: &Chain) -> BTreeSet<i32> {
    chain.positions().map(|at| at.partition).chain(chain.begin_facts().partitions()).collect()
}

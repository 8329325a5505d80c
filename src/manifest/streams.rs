//! The streams that an archive holds.

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;

use super::entry;
use super::reads_at_once::READS_AT_ONCE;
use crate::error::{Error, Kind, Result};
use crate::store::{Store, layout};
use crate::stream::{Begin, StateKind, StateOf, StreamId, TopicGeneration};

/// The only Postgres system in the archive, or the one that is named.
///
/// # Errors
/// [`Kind::NotFound`] if there is none, [`Kind::Config`] if there are several and none is named, and the store's.
pub async fn system(store: &Store, wanted: Option<u64>) -> Result<StreamId> {
    let mut systems = streams(store).await?;
    systems.retain(|stream| match stream {
        StreamId::Postgres { system_id } => wanted.is_none_or(|wanted| wanted == *system_id),
        StreamId::Kafka(_) | StreamId::State(_) => false,
    });
    match systems.len() {
        0 => Err(Error::new(Kind::NotFound, format!("the archive at {} holds no WAL of it", store.url()))
            .hint("check archive.url; `tidelog ls` lists what is archived")),
        1 => Ok(systems.remove(0)),
        _ => Err(Error::new(Kind::Config, "the archive holds the WAL of several systems")
            .hint("name one with --system; `tidelog ls` lists them")),
    }
}

/// The streams that the archive holds, in the order of their names.
///
/// A stream counts as soon as one object of its chain exists, be it damaged: `verify` must see it.
pub async fn streams(store: &Store) -> Result<Vec<StreamId>> {
    let mut found = topics_named(store).await?;
    found.extend(store.list_folders(&layout::postgres_chains()).await?.iter().filter_map(chain_in));
    for kind in store.list_folders(&layout::state_chains()).await? {
        found.extend(store.list_folders(&kind).await?.iter().filter_map(chain_in));
    }
    with_objects(store, found).await
}

/// The documents of one kind of state that have a folder. None of them is looked into.
pub async fn state_streams(store: &Store, kind: StateKind) -> Result<Vec<StateOf>> {
    let folders = store.list_folders(&layout::state_chains().join(kind.name())).await?;
    Ok(folders.iter().filter_map(chain_in).filter_map(|stream| stream.state().cloned()).collect())
}

/// The generations of topics that the archive holds, in the order of their names.
pub async fn topics(store: &Store) -> Result<Vec<TopicGeneration>> {
    let found = with_objects(store, topics_named(store).await?).await?;
    Ok(found.iter().filter_map(StreamId::topic).cloned().collect())
}

/// The generations of a cluster's topics that have a folder of their own, in no order. None of them is looked into, so none that
/// is damaged is in the way; a folder may hold no object yet.
pub async fn generations_named(store: &Store, cluster: &str) -> Result<Vec<TopicGeneration>> {
    let folders = store.list_folders(&layout::topic_chains().join(cluster)).await?;
    Ok(folders.iter().filter_map(chain_in).filter_map(|stream| stream.topic().cloned()).collect())
}

/// Returns whether an error says something about one object alone.
pub(super) fn is_of_one_object(error: &Error) -> bool {
    matches!(error.kind(), Kind::Corrupt | Kind::Unsupported | Kind::Denied | Kind::NotFound)
}

/// Sorts a failure: within are those of what was looked at, and whoever looks at many goes on with the others; the store's own
/// are errors. Where that is not plain (an object that cannot be read now), the store is asked for something else.
pub async fn isolated<T>(store: &Store, result: Result<T>) -> Result<Result<T>> {
    match result {
        Err(error) if error.kind() == Kind::Unavailable => {
            let answers = store.list_folders(&layout::topic_chains()).await.is_ok();
            if answers { Ok(Err(error)) } else { Err(error) }
        }
        Err(error) if !is_of_one_object(&error) => Err(error),
        result => Ok(result),
    }
}

/// Returns what the first entry of a stream's chain says; none if the chain has not begun.
pub async fn begin_of(store: &Store, stream: &StreamId) -> Result<Option<Begin>> {
    Ok(began(store, stream).await?.map(|(_, begin)| begin))
}

/// Returns when a stream's chain began, and what its first entry says; none if it has not begun.
pub async fn began(store: &Store, stream: &StreamId) -> Result<Option<(DateTime<Utc>, Begin)>> {
    let entry = entry::read(store, stream, 0).await?;
    Ok(entry.and_then(|entry| Some((entry.checkpoint.at, entry.checkpoint.body.begin()?.clone()))))
}

async fn topics_named(store: &Store) -> Result<Vec<StreamId>> {
    let mut found = Vec::new();
    for cluster in store.list_folders(&layout::topic_chains()).await? {
        found.extend(store.list_folders(&cluster).await?.iter().filter_map(chain_in));
    }
    Ok(found)
}

fn chain_in(folder: &Path) -> Option<StreamId> {
    let stream = layout::stream_of(folder);
    if stream.is_none() {
        tracing::warn!(%folder, "this folder among the chains is not named like one and is passed over");
    }
    stream
}

/// Those of `found` that have an object, in the order of their names.
async fn with_objects(store: &Store, found: Vec<StreamId>) -> Result<Vec<StreamId>> {
    let with_objects = stream::iter(found)
        .map(|id| async move {
            let exists = match store.size(&layout::entry(&id, 0)).await {
                Ok(Some(_)) => Ok(true),
                // On file:// a folder without an entry is left when the very first write of a chain fails.
                Ok(None) => store.any_below(&layout::chain(&id)).await,
                Err(error) => Err(error),
            };
            match exists {
                // Something is there, and whoever looks into it finds out what.
                Err(error) if is_of_one_object(&error) => Ok(Some(id)),
                exists => Ok::<_, Error>(exists?.then_some(id)),
            }
        })
        .buffered(READS_AT_ONCE);
    let mut streams: Vec<StreamId> = with_objects.try_filter_map(async |id| Ok(id)).try_collect().await?;
    streams.sort_unstable();
    Ok(streams)
}

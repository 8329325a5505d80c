//! The Postgres system that an archive holds.

use super::Chain;
use crate::error::{Error, Kind, Result};
use crate::store::Store;
use crate::stream::StreamId;

/// The chain of the Postgres system that the archive holds, if it holds one.
pub(crate) async fn archived_system(store: &Store) -> Result<Option<Chain>> {
    let mut systems = super::streams(store).await?;
    systems.retain(|stream| match stream {
        StreamId::Postgres { .. } => true,
        StreamId::Kafka(_) | StreamId::State(_) => false,
    });
    match systems.as_slice() {
        [] => Ok(None),
        [system] => Chain::open(store, system).await,
        _ => Err(Error::new(Kind::Config, "the archive holds the WAL of several Postgres systems")
            .hint("one archive holds one system: set archive.url to an archive of its own for each")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chrono::DateTime;

    use super::*;
    use crate::stream::{Begin, StateKind, StateOf, System};

    #[tokio::test]
    async fn state_beside_a_system_is_no_other_system() {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        let begin = |stream: StreamId, begin| {
            let store = store.clone();
            async move { Chain::begin(&store, &stream, begin, "w", DateTime::UNIX_EPOCH).await.expect("it begins") }
        };
        let of = StateOf { kind: StateKind::Slots, scope: "7".into() };
        begin(StreamId::State(of), Begin::State { state: StateKind::Slots, cluster_id: None }).await;
        assert!(archived_system(&store).await.expect("none").is_none());
        for (system_id, found) in [(7, true), (8, false)] {
            let system = System { system_id, wal_segment_size: 16 << 20, server_version: 17 };
            begin(StreamId::Postgres { system_id }, Begin::Postgres(system)).await;
            let archived = archived_system(&store).await;
            assert_eq!(archived.is_ok_and(|chain| chain.is_some()), found, "{system_id}");
        }
    }
}

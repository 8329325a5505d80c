//! Whether the store is there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::path::Path;
use tokio::sync::Mutex;

use crate::pipeline::published::Opened;
use crate::store::layout;

/// What the store answered counts for this long.
const STORE_ANSWER_LASTS: Duration = Duration::from_secs(5);

/// A store that takes longer to say whether an object is there does not answer.
const STORE_WITHIN: Duration = Duration::from_secs(3);

/// Asks the store now and then whether it is there, however often somebody wants to know.
#[derive(Default)]
pub(super) struct StoreProbe {
    last: Mutex<Option<(Instant, Result<(), Arc<str>>)>>,
}

impl StoreProbe {
    /// Returns whether the store answers, and still has the beginning of `stream`.
    pub(super) async fn ask(&self, opened: &Opened, stream: Option<&str>) -> Result<(), Arc<str>> {
        let mut last = self.last.lock().await;
        if let Some((at, answer)) = &*last
            && at.elapsed() < STORE_ANSWER_LASTS
        {
            return answer.clone();
        }
        let begin = stream.and_then(|stream| stream.parse().ok()).map(|stream| layout::entry(&stream, 0));
        let key = begin.clone().unwrap_or_else(|| Path::from("tidelog-is-this-store-there"));
        let answer = match tokio::time::timeout(STORE_WITHIN, opened.store.size(&key)).await {
            Ok(Ok(Some(_))) => Ok(()),
            Ok(Ok(None)) if begin.is_none() => Ok(()),
            Ok(Ok(None)) => Err(format!("the archive at {} has lost {key}", opened.store.url())),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("the store at {} does not answer within 3 s", opened.store.url())),
        };
        let answer = answer.map_err(Arc::from);
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_that_has_lost_the_archive_is_told() {
        use object_store::memory::InMemory;
        let store = crate::store::Store::over(Arc::new(InMemory::new()), "memory:///");
        let opened = Opened { store, writer: "w".into() };
        assert_eq!(StoreProbe::default().ask(&opened, None).await, Ok(()));
        let probe = StoreProbe::default();
        let lost = probe.ask(&opened, Some("kafka/main/orders.0")).await.expect_err("the entry is not there");
        assert!(lost.contains("has lost manifest/kafka/main/orders.0/00000000000000000000.json"), "{lost}");
        opened
            .store
            .put(&layout::entry(&"kafka/main/orders.0".parse().expect("a stream"), 0), "x".into())
            .await
            .expect("put");
        assert!(probe.ask(&opened, Some("kafka/main/orders.0")).await.is_err(), "an answer lasts for a while");
        assert_eq!(StoreProbe::default().ask(&opened, Some("kafka/main/orders.0")).await, Ok(()));
    }
}

//! What drills have found: read in the archive now and then by every service beside its work, for the metrics.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::error::Kind;
use crate::manifest::drills::{self, Drilled};
use crate::store::Store;
use crate::tasks::Reporter;
use crate::tasks::backoff::Backoff;

/// How often it is read: an alert looks at days.
const EVERY: Duration = Duration::from_secs(300);

/// The last drill of each name.
#[derive(Debug, Default)]
pub struct PublishedDrills(RwLock<Arc<[Drilled]>>);

impl PublishedDrills {
    /// Returns those that were read last.
    pub fn last(&self) -> Arc<[Drilled]> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Works until it is aborted. What cannot be read says nothing, and is told.
pub(super) async fn run(store: Store, published: Arc<PublishedDrills>, reporter: Reporter) {
    let mut backoff = Backoff::new(reporter);
    loop {
        let mut last = Vec::new();
        let mut failure = None;
        for name in drills::NAMES {
            match drills::read(&store, name).await {
                Ok(drilled) => last.extend(drilled),
                Err(error) => failure = Some(error),
            }
        }
        // A store that is away takes nothing back that is known.
        if failure.as_ref().is_none_or(|error| !error.is_transient()) {
            *published.0.write().unwrap_or_else(PoisonError::into_inner) = last.into();
        }
        match failure {
            None => {
                backoff.succeeded();
                tokio::time::sleep(EVERY).await;
            }
            Some(error) => {
                let least = if error.is_transient() { Duration::ZERO } else { EVERY };
                let error = match error.kind() {
                    Kind::Corrupt => error.hint("the next drill writes it again"),
                    _ => error,
                };
                backoff.wait_at_least(least, "the results of drills cannot be read", error).await;
            }
        }
    }
}

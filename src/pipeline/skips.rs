//! Requests to skip what cannot be read: each names the partition and the offset at which it stands, so that a request that comes
//! twice, or late, skips nothing else.
//!
//! ```text
//!   POST /connectors/kafka/skip ─► Skips ─► collector: does it stand there? ─► a look: how far? ─► committer: the gap
//!                              ◄─────────────────────── Told ◄───────────────────────────────────────────┘
//! ```

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::source::kafka::TopicPartition;

/// What has become of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It is looked how far what cannot be read reaches.
    Looking,
    /// These offsets are recorded as lost, and what follows is read.
    Skipped(Range<i64>),
    /// Nothing was skipped.
    Refused(Refused),
}

/// Why nothing was skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// This process does not read the partition.
    NotHere,
    /// For a reason that it tells.
    Because(String),
}

/// One request.
#[derive(Debug)]
pub struct Skip {
    pub(super) at: TopicPartition,
    pub(super) offset: i64,
    told: watch::Sender<Told>,
}

impl Skip {
    /// Returns what becomes of it, from now on.
    pub fn told(&self) -> watch::Receiver<Told> {
        self.told.subscribe()
    }

    pub(super) fn tell(&self, told: Told) {
        self.told.send_replace(told);
    }

    pub(super) fn refuse(&self, why: impl Into<String>) {
        self.tell(Told::Refused(Refused::Because(why.into())));
    }
}

/// The requests of this process, the last one of each partition.
#[derive(Debug, Default)]
pub struct Skips(Mutex<Requests>);

#[derive(Debug, Default)]
struct Requests {
    known: BTreeMap<TopicPartition, Arc<Skip>>,
    new: Vec<Arc<Skip>>,
}

impl Skips {
    /// Asks to skip what stands at `offset`. A request that is under way or done is not begun again.
    pub fn request(&self, at: TopicPartition, offset: i64) -> Arc<Skip> {
        let mut requests = self.requests();
        requests.known.retain(|_, skip| !matches!(*skip.told.borrow(), Told::Refused(_)));
        if let Some(known) = requests.known.get(&at).filter(|known| known.offset == offset) {
            return Arc::clone(known);
        }
        let skip = Arc::new(Skip { at: at.clone(), offset, told: watch::Sender::new(Told::Looking) });
        requests.known.insert(at, Arc::clone(&skip));
        requests.new.push(Arc::clone(&skip));
        skip
    }

    /// The requests that came since the last call.
    pub(super) fn take(&self) -> Vec<Arc<Skip>> {
        std::mem::take(&mut self.requests().new)
    }

    /// The request to skip what stands at `offset`.
    pub(super) fn find(&self, at: &TopicPartition, offset: i64) -> Option<Arc<Skip>> {
        self.requests().known.get(at).filter(|known| known.offset == offset).cloned()
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_that_comes_twice_is_one_and_one_that_was_refused_can_be_asked_again() {
        let (skips, at) = (Skips::default(), TopicPartition::new("a", 0));
        let first = skips.request(at.clone(), 10);
        assert!(Arc::ptr_eq(&first, &skips.request(at.clone(), 10)));
        assert_eq!((skips.take().len(), skips.take().len()), (1, 0));
        first.tell(Told::Skipped(10..30));
        assert_eq!(*skips.request(at.clone(), 10).told().borrow(), Told::Skipped(10..30));
        let second = skips.request(at.clone(), 30);
        second.refuse("it can be read");
        assert_eq!((skips.take().len(), skips.find(&at, 10).is_some()), (1, false));
        assert!(!Arc::ptr_eq(&second, &skips.request(at.clone(), 30)));
        assert!(skips.find(&at, 30).is_some());
    }
}

//! The segmenters of the topics: which one takes a topic's records, which one ends, and their committers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::pipeline::kafka::commit::Request;
use crate::pipeline::kafka::messages::SegmenterId;
use crate::pipeline::kafka::segmenter::Segmenter;

/// The segmenters, by topic and by id.
#[derive(Default)]
pub(super) struct Topics {
    pub(super) segmenters: BTreeMap<SegmenterId, Segmenter>,
    pub(super) committers: HashMap<SegmenterId, mpsc::UnboundedSender<Request>>,
    /// The segmenter that takes a topic's records now.
    pub(super) current: HashMap<Arc<str>, SegmenterId>,
    /// Of a topic that moves to another generation the segmenter that ends. Such a topic has no current one.
    pub(super) ending: HashMap<Arc<str>, SegmenterId>,
    next: u32,
}

impl Topics {
    /// An id for a new segmenter.
    pub(super) fn next_id(&mut self) -> SegmenterId {
        let id = SegmenterId(self.next);
        self.next += 1;
        id
    }

    /// A new segmenter takes the records of its topic from now on.
    pub(super) fn open(&mut self, segmenter: Segmenter, committer: mpsc::UnboundedSender<Request>) {
        let (id, topic) = (segmenter.id, Arc::clone(&segmenter.topic));
        self.committers.insert(id, committer);
        self.segmenters.insert(id, segmenter);
        self.current.insert(topic, id);
    }

    /// The segmenter that takes a topic's records now.
    pub(super) fn of(&mut self, topic: &str) -> Option<&mut Segmenter> {
        self.segmenters.get_mut(self.current.get(topic)?)
    }

    /// Those that take records now.
    pub(super) fn present(&self) -> impl Iterator<Item = &Segmenter> {
        self.current.values().filter_map(|id| self.segmenters.get(id))
    }

    /// Returns how much memory all hold.
    pub(super) fn memory(&self) -> usize {
        self.segmenters.values().map(Segmenter::memory).sum()
    }

    /// Asks a segmenter's committer for something.
    pub(super) fn ask(&self, segmenter: SegmenterId, request: Request) {
        if let Some(committer) = self.committers.get(&segmenter)
            && committer.send(request).is_err()
        {
            tracing::debug!("a committer has ended");
        }
    }

    /// Drops the segmenters that take nothing more and have nothing left to do, with their committers.
    pub(super) fn drop_done(&mut self) {
        let (current, ending, committers) = (&self.current, &self.ending, &mut self.committers);
        self.segmenters.retain(|id, segmenter| {
            let known = current.get(&segmenter.topic) == Some(id) || ending.get(&segmenter.topic) == Some(id);
            let needed = known || !segmenter.is_idle();
            if !needed {
                committers.remove(id);
            }
            needed
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::pipeline::kafka::segmenter::tests::numbered;

    #[test]
    fn a_segmenter_that_ends_stays_until_its_last_segment_is_committed() {
        let mut topics = Topics::default();
        let ids: Vec<SegmenterId> = (0..2).map(|_| topics.next_id()).collect();
        for id in &ids {
            topics.open(numbered(*id), mpsc::unbounded_channel().0);
        }
        assert_eq!(topics.of("orders").map(|segmenter| segmenter.id), Some(ids[1]), "the last one takes the records");
        assert!(topics.of("other").is_none());
        topics.segmenters.get_mut(&ids[0]).expect("it is there").advance(0, 120, Instant::now());
        topics.drop_done();
        assert_eq!((topics.segmenters.len(), topics.committers.len()), (2, 2), "the first still has something open");
        topics.current.remove("orders");
        topics.ending.insert("orders".into(), ids[1]);
        topics.drop_done();
        assert_eq!(topics.segmenters.len(), 2, "what ends is asked for its end first");
        topics.ending.clear();
        topics.drop_done();
        assert_eq!(topics.segmenters.keys().collect::<Vec<_>>(), [&ids[0]]);
        assert!(topics.committers.contains_key(&ids[0]) && topics.committers.len() == 1);
    }
}

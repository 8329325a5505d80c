//! Whether what was fetched belongs to the generation of its topic that is being archived.
//!
//! When a topic is deleted and created again, librdkafka learns the new id from its metadata and fetches on at the same
//! offset (`rd_kafka_topic_metadata_update0`, 2.12.1). If the new log has that offset already, records of the new generation
//! come where those of the old one would. So the id is looked at **after** a segment was sealed and before its checkpoint:
//! if it is still the chain's, so was every record; if not, what a segment may keep is told by [`kept`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::error::Error;
use crate::source::kafka::Cluster;
use crate::tasks::{Reporter, Task, Tasks};

/// How long an answer may take. Without one the checkpoint is written: the brokers may never come back.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// Asks the brokers for the ids of topics, of all that wait at once.
pub(super) struct TopicIds(mpsc::UnboundedSender<Asked>);

struct Asked {
    topic: String,
    answer: oneshot::Sender<Option<String>>,
}

impl TopicIds {
    pub(super) fn new(cluster: &Cluster, tasks: &Arc<Tasks>) -> Self {
        let (send, inbox) = mpsc::unbounded_channel();
        let reporter = tasks.reporter(Task::KafkaTopicIds, "");
        tasks.spawn("topic-ids", answer(cluster.within(ANSWER_WITHIN), inbox, reporter));
        Self(send)
    }

    /// The topic's id now; none if the brokers have no such topic, have no ids, or do not answer.
    pub(super) async fn id_of(&self, topic: &str) -> Option<String> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Asked { topic: topic.to_owned(), answer }).ok()?;
        answered.await.ok().flatten()
    }
}

async fn answer(cluster: Cluster, mut inbox: mpsc::UnboundedReceiver<Asked>, reporter: Reporter) {
    let mut asked = Vec::new();
    while inbox.recv_many(&mut asked, usize::MAX).await > 0 {
        let topics: Vec<String> = asked.iter().map(|asked| asked.topic.clone()).collect();
        let what = "a checkpoint is written without a look at its topic's id";
        let not_looked_at = |error: &Error| {
            tracing::warn!(%error, hint = error.hint_text(), "{what}");
            reporter.failed(what, error, None);
        };
        reporter.succeeded();
        let described = cluster.describe(&topics).await.unwrap_or_else(|error| {
            not_looked_at(&error);
            BTreeMap::new()
        });
        for Asked { topic, answer } in asked.drain(..) {
            let id = match described.get(&topic) {
                Some(Ok(info)) => info.id.clone(),
                Some(Err(error)) => {
                    not_looked_at(error);
                    None
                }
                None => None,
            };
            // Whoever asked may have been given up with its segmenter.
            drop(answer.send(id));
        }
    }
}

/// Up to which offset of each partition a segmenter's records are known to be of its generation: they had come before the brokers
/// still gave the topic the same id.
#[derive(Default)]
pub(super) struct Verified(Mutex<BTreeMap<i32, i64>>);

impl Verified {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, partition: i32, offset: i64) {
        self.lock().insert(partition, offset);
    }

    /// The partition is read again from somewhere.
    pub(super) fn forget(&self, partition: i32) {
        self.lock().remove(&partition);
    }

    pub(super) fn of(&self, partition: i32) -> Option<i64> {
        self.lock().get(&partition).copied()
    }
}

/// Returns where the range `[start, end)` of a partition ends, now that its topic is known to have another generation, whose log ends
/// at `latest`. A record comes after those before it: if the last one lies where the new log has nothing, all are of the
/// old generation. Otherwise those are that came before the old id was last seen; what the new generation has comes again in its own
/// chain.
pub(super) fn kept(start: i64, end: i64, verified: Option<i64>, latest: Option<i64>) -> i64 {
    match latest {
        Some(latest) if end > latest => end,
        _ => verified.unwrap_or(start).clamp(start, end),
    }
}

/// Returns whether a topic's id shows that it was deleted and created again. A broker without ids shows nothing.
pub(super) fn is_recreated(archived: Option<&str>, now: Option<&str>) -> bool {
    matches!((archived, now), (Some(archived), Some(now)) if archived != now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_new_log_cannot_have_given_is_kept() {
        assert_eq!(kept(50, 90, None, Some(0)), 90, "nothing was written to the new topic yet");
        assert_eq!(kept(50, 90, None, Some(89)), 90);
        assert_eq!(kept(50, 90, Some(70), Some(90)), 70, "from 70 on it may be the new one's");
        assert_eq!(kept(50, 90, Some(70), None), 70, "where the new log ends is not known");
        assert_eq!(kept(50, 90, None, Some(300)), 50);
        assert_eq!(kept(50, 90, Some(20), Some(300)), 50);
        assert_eq!(kept(50, 90, Some(95), Some(300)), 90);
    }

    #[test]
    fn only_two_known_ids_can_tell_two_lives_apart() {
        assert!(is_recreated(Some("a"), Some("b")));
        for (archived, now) in [(Some("a"), Some("a")), (None, Some("b")), (Some("a"), None), (None, None)] {
            assert!(!is_recreated(archived, now), "{archived:?} {now:?}");
        }
    }
}

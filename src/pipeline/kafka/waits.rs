//! How long a topic waits that cannot be resolved.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How long a topic waits that cannot be resolved, before it is asked for again; twice as long after each attempt in which
/// its archive was what failed.
pub(super) const AGAIN: Duration = Duration::from_secs(5);
const AGAIN_AT_MOST: Duration = Duration::from_secs(60);

/// How long each topic waits whose archive failed.
#[derive(Default)]
pub(super) struct Waits(HashMap<Arc<str>, Duration>);

impl Waits {
    /// The wait after another failure of the topic's archive.
    pub(super) fn longer(&mut self, topic: &Arc<str>) -> Duration {
        let wait = self.0.entry(Arc::clone(topic)).or_insert(AGAIN);
        let now = *wait;
        *wait = (now * 2).min(AGAIN_AT_MOST);
        now
    }

    /// The topic has an answer.
    pub(super) fn end(&mut self, topic: &Arc<str>) {
        self.0.remove(topic);
    }
}

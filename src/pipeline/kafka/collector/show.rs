//! The collector's state as others see it: once a second, and at once when it changes what it does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};

use super::Collector;
use crate::pipeline::board::State;
use crate::pipeline::kafka::coverage::Seen;
use crate::pipeline::kafka::lane::Lane;
use crate::pipeline::kafka::shown;
use crate::pipeline::kafka::status::{Status, Trouble};

/// What the collector was told and only shows.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) last_checkpoint: Option<DateTime<Utc>>,
    /// Why no positions can be found at all.
    pub(super) positions: Option<Trouble>,
    /// Why those of a topic cannot be found.
    pub(super) unresolved: BTreeMap<Arc<str>, Trouble>,
    brokers: Option<Trouble>,
    /// The state that was published last, and since when it is so.
    state: Option<(State, DateTime<Utc>)>,
}

/// How many topics are named whose positions cannot be found.
const MOST_NAMED: usize = 3;

/// The topics whose positions cannot be found, in one text.
fn unresolved(topics: &BTreeMap<Arc<str>, Trouble>) -> Option<Trouble> {
    let since = topics.values().map(|trouble| trouble.since).min()?;
    let mut text = topics.values().take(MOST_NAMED).map(|trouble| &*trouble.text).collect::<Vec<_>>().join(" · ");
    if topics.len() > MOST_NAMED {
        text += &format!(" · and {} more topics", topics.len() - MOST_NAMED);
    }
    Some(Trouble { since, text: text.into() })
}

impl Collector {
    /// Takes in where partitions end, or that the brokers do not tell.
    pub(super) fn on_seen(&mut self, seen: Result<Vec<Seen>, Arc<str>>) {
        match seen {
            Err(why) => shown::note(&mut self.news.brokers, Some(why), Utc::now()),
            Ok(seen) => {
                self.news.brokers = None;
                for seen in seen {
                    if let Some(lane) = self.lane_of(&seen.at.topic) {
                        lane.shown.see(&seen);
                    }
                }
            }
        }
    }

    /// Publishes when the state has changed, without waiting for the second to end.
    pub(super) fn publish_change(&mut self, now: Instant) {
        if self.news.state.is_none_or(|(state, _)| state != self.state()) {
            self.publish(now);
        }
    }

    /// Publishes what is so now.
    pub(super) fn publish(&mut self, now: Instant) {
        let state = self.state();
        let since = match self.news.state {
            Some((before, since)) if before == state => since,
            _ => Utc::now(),
        };
        self.news.state = Some((state, since));
        let memory: usize = self.lanes.values().map(Lane::memory).sum();
        let mut streams = Vec::with_capacity(self.current.len());
        for id in self.current.values() {
            let Some(lane) = self.lanes.get_mut(id) else { continue };
            let stream = lane.show(now);
            if !stream.partitions.is_empty() {
                streams.push(stream);
            }
        }
        streams.sort_unstable_by(|a, b| a.topic.cmp(&b.topic));
        self.board.publish(Status {
            state,
            since: Some(since),
            member: self.consumer.is_member(),
            resolving: self.resolving.len(),
            brokers: self.news.brokers.clone(),
            positions: self.news.positions.clone().or_else(|| unresolved(&self.news.unresolved)),
            memory_used: memory as u64,
            memory_full: self.full,
            last_checkpoint: self.news.last_checkpoint,
            streams,
        });
    }
}

//! One line of the log a minute about the write-ahead log, as Kafka's collector writes one about its topics: what came
//! into the archive since the last line, and how far it is behind.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::postgres::Snapshot;
use super::published::PublishedPostgres;

const EVERY: Duration = Duration::from_secs(60);

/// What the last line has told.
#[derive(Debug, Default)]
pub(super) struct Summary {
    segments: u64,
    raw_bytes: u64,
    stored_bytes: u64,
}

impl Summary {
    /// Writes a line a minute, until it is dropped.
    pub(super) async fn every_minute(&mut self, published: &PublishedPostgres) -> Infallible {
        let mut tick = interval_at(Instant::now() + EVERY, EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.tell(published);
        }
    }

    /// Writes a line about what came since the last one.
    pub(super) fn tell(&mut self, published: &PublishedPostgres) {
        let now = published.status.now();
        let Self { segments, raw_bytes, stored_bytes } = self.since(&now);
        tracing::info!(connector = "postgres", state = published.state().0.name(), segments, raw_bytes, stored_bytes,
            durable = %now.durable, lag_bytes = now.lag_bytes, "archived");
    }

    /// Returns what came since it was asked last.
    fn since(&mut self, now: &Snapshot) -> Self {
        let all = Self { segments: now.segments, raw_bytes: now.raw_bytes, stored_bytes: now.stored_bytes };
        let before = std::mem::replace(self, all);
        Self {
            segments: now.segments - before.segments,
            raw_bytes: now.raw_bytes - before.raw_bytes,
            stored_bytes: now.stored_bytes - before.stored_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_is_not_told_again() {
        let at =
            |segments| Snapshot { segments, raw_bytes: segments * 100, stored_bytes: segments, ..Snapshot::default() };
        let mut summary = Summary::default();
        for (all, new) in [(3, 3), (3, 0), (10, 7)] {
            let Summary { segments, raw_bytes, stored_bytes } = summary.since(&at(all));
            assert_eq!((segments, raw_bytes, stored_bytes), (new, new * 100, new));
        }
    }
}

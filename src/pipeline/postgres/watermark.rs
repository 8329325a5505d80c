//! Saves the completeness watermark, up to when the archive is complete, for those who restore: a small object of this process,
//! over and over.
//!
//! It is written beside the maintenance and not by it: a merge or the retention of a large archive takes a while, and a restore
//! to a moment a few seconds ago is refused until the archive is known to be complete up to that moment.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::{MissedTickBehavior, interval};

use super::shared::Shared;
use crate::error::Result;
use crate::manifest::coverage::{Claim, Coverage};
use crate::store::layout;
use crate::stream::StreamId;
use crate::tasks::Task;

/// How often it is written, at the most: four objects a minute.
const EVERY: Duration = Duration::from_secs(15);

/// An archiver that wrote nothing for this long is gone, and its watermarks are taken over.
const GONE_AFTER: TimeDelta = TimeDelta::hours(1);

/// The task.
pub(super) struct Watermark {
    shared: Arc<Shared>,
    stream: StreamId,
    coverage: Coverage,
    /// What was written last.
    written: Option<DateTime<Utc>>,
    /// Which generation of each timeline the watermarks are of.
    generations: BTreeMap<u32, u32>,
}

impl Watermark {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let coverage = Coverage::new(&shared.writer, crate::time::now());
        let stream = StreamId::Postgres { system_id: shared.system.system_id };
        Self { shared, stream, coverage, written: None, generations: BTreeMap::new() }
    }

    /// Works until it is aborted. What fails is reported, and tried again in the next round.
    pub(super) async fn run(mut self) {
        let folder = layout::coverages(&self.stream);
        let now = crate::time::now();
        if let Err(error) = self.coverage.adopt(&self.shared.store, &folder, now - GONE_AFTER, now).await {
            tracing::warn!(%error, hint = error.hint_text(), "the coverage of archivers that are gone cannot be taken over");
        }
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reporter = self.shared.status.tasks.reporter(Task::WalCoverage, "");
        loop {
            tick.tick().await;
            let what = "the completeness watermark cannot be saved";
            match self.claim(crate::time::now()).await {
                Ok(()) => reporter.succeeded(),
                Err(error) => {
                    tracing::warn!(%error, hint = error.hint_text(), "{what}");
                    reporter.failed(what, &error, Some(EVERY));
                }
            }
        }
    }

    /// What was claimed of a timeline before it was abandoned says nothing of the one that has its number now.
    fn forget_abandoned(&mut self) {
        let now = self.shared.generations.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let claims = self.coverage.streams.entry(self.stream.to_string()).or_default();
        claims.retain(|timeline, _| {
            let timeline = timeline.cast_unsigned();
            self.generations.get(&timeline) == now.get(&timeline)
        });
        self.generations = now;
    }

    async fn claim(&mut self, now: DateTime<Utc>) -> Result<()> {
        let Some((timeline, end, complete_through)) = self.shared.status.complete() else { return Ok(()) };
        if self.written == Some(complete_through) {
            return Ok(());
        }
        self.forget_abandoned();
        let claim = Claim { offset: end.position(), complete_through };
        self.coverage.claim(&self.stream, timeline.cast_signed(), claim);
        self.coverage.at = now;
        self.coverage.save(&self.shared.store, &layout::coverages(&self.stream)).await?;
        self.written = Some(complete_through);
        Ok(())
    }
}

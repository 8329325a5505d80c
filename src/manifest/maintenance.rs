//! Changes that take nothing in: merges of small segments, and what retention expires.
//!
//! Both are entries like any other, so that archiver, merger and retention can work at the same time. Each looks at the
//! chain as it is, creates the next entry with put-if-absent, and looks again where somebody else was faster: what it
//! wants to replace may be gone by then.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::chain::Tried;
use super::select::Selected;
use super::{Chain, Selection};
use crate::error::{Error, Kind, Result};
use crate::stream::invariants;
use crate::stream::{Body, Expire, Expired, Merge, Retired, SegmentRef};

impl Chain {
    /// Puts one segment into the place of others; false if somebody has merged or expired a part of them meanwhile,
    /// and nothing was written.
    ///
    /// An error leaves it open whether the merge was committed; the same call tells.
    pub async fn merge(&mut self, merge: &Merge, writer: &str, now: DateTime<Utc>) -> Result<bool> {
        self.writer = Some(writer.to_owned());
        invariants::merge_is_sound(merge).map_err(|broken| {
            Error::new(Kind::Internal, format!("a merge of {} must not be committed", self.stream())).source(broken)
        })?;
        let body = Body::Merge(merge.clone());
        loop {
            if self.has_landed(|landed| *landed == body) {
                return Ok(true);
            }
            let covered = self.covered_by(merge).await?;
            let fits = invariants::merge_replaces_its_range(merge, &covered.segments, &covered.gaps)
                .and_then(|()| invariants::body_fits_stream(&self.stream, &body))
                .and_then(|()| self.progress.accepts(&body));
            if let Err(violation) = fits {
                // The chain may have been opened before what is merged was appended.
                let known = self.number;
                self.refresh().await?;
                if known < self.number {
                    continue;
                }
                tracing::debug!(stream = %self.stream(), %violation, "a merge came too late");
                return Ok(false);
            }
            if let Tried::Created(_) = self.try_create(body.clone(), (writer, now)).await? {
                return Ok(true);
            }
        }
    }

    /// Expires what lies before these positions, by partition; those that are expired already are left out. Gives
    /// what was retired.
    ///
    /// # Errors
    /// [`Kind::Internal`] for a position beyond what is archived, and the store's errors.
    pub async fn expire(&mut self, before: &BTreeMap<i32, i64>, writer: &str, now: DateTime<Utc>) -> Result<Retired> {
        self.writer = Some(writer.to_owned());
        loop {
            let expire = self.to_expire(before, now).await?;
            if expire.ranges.is_empty() {
                self.has_landed(|landed| landed.expire().is_some());
                return Ok(Retired::default());
            }
            let (retired, body) = (expire.retired, Body::Expire(expire));
            self.progress.accepts(&body).map_err(|violation| {
                let message = format!("{} cannot be expired like this", self.stream());
                Error::new(Kind::Internal, message).source(violation)
            })?;
            if let Tried::Created(_) = self.try_create(body, (writer, now)).await? {
                return Ok(retired);
            }
        }
    }

    /// What expiring everything before these positions would retire, as far as this chain knows.
    pub async fn to_expire(&self, before: &BTreeMap<i32, i64>, now: DateTime<Utc>) -> Result<Expire> {
        let mut ranges = Vec::new();
        for (&partition, &before) in before {
            let from = self.position(partition).map(|position| position.start).filter(|from| *from < before);
            let generation = self.generation(partition);
            ranges.extend(from.map(|from| Expired { partition, from, before, generation }));
        }
        let partitions = ranges.iter().map(|expired| (expired.partition, expired.from..expired.before)).collect();
        let selected = self.select(&Selection { timestamps: None, partitions: Some(partitions) }).await?;
        let below = |segment: &&SegmentRef| {
            segment
                .partitions
                .iter()
                .all(|range| before.get(&range.partition).is_some_and(|before| range.end <= *before))
        };
        let retired = Retired::of(selected.segments.iter().filter(below));
        Ok(Expire { ranges, retired, decided: now })
    }

    /// The segments that are needed now in the range of a merge, and what is lost of it.
    async fn covered_by(&self, merge: &Merge) -> Result<Selected> {
        let ranges = merge.segment.partitions.iter();
        let partitions = ranges.map(|range| (range.partition, range.start..range.end)).collect();
        self.select(&Selection { timestamps: None, partitions: Some(partitions) }).await
    }

    /// Whether an entry of this writer that was not answered is in the chain all the same. It is told once.
    fn has_landed(&mut self, is: impl Fn(&Body) -> bool) -> bool {
        let before = self.landed.len();
        self.landed.retain(|(_, landed)| !is(landed));
        self.landed.len() < before
    }
}

//! The next record of a partition that a replay sends, from an offset on, and what lies between: by checkpoints where they suffice,
//! else by reading.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Serialize;

use super::replayed::Replayed;
use crate::error::Result;
use crate::replay::matching::matching;
use crate::replay::select::{Query, Source, sources_of};
use crate::segment::{Filter, SegmentReader};
use crate::store::{Store, layout};
use crate::stream::{SegmentRef, TopicGeneration};

/// What a position means in the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The next record is the one that the group would have read.
    Exact,
    /// The group had read all that is archived: it goes on after what was sent.
    End,
    /// Archived records that the group had not read are not in this replay; it goes on behind them.
    Skips,
    /// Records that the group had not read may have been lost before they were archived, or have expired since.
    Lost,
    /// The group had read more than is archived: it goes on after what was sent.
    Ahead,
    /// Nothing of the partition is in this replay: the group is left alone there.
    NotReplayed,
    /// Nobody can tell: the group is left alone there.
    Unknown,
}

impl Answer {
    /// For people; nothing where there is nothing to say.
    pub fn words(self) -> &'static str {
        match self {
            Self::Exact => "",
            Self::End => "it had read everything",
            Self::Skips => "records that it had not read are not in this replay",
            Self::Lost => "what it would have read next is lost, or has expired",
            Self::Ahead => "it had read more than is archived",
            Self::NotReplayed => "not in this replay: left alone",
            Self::Unknown => "not known: left alone",
        }
    }
}

/// A record that a replay has sent, or will.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Next {
    /// Which of the replays.
    pub(super) replay: usize,
    pub(super) generation: u32,
    pub(super) offset: i64,
}

/// The generations of topics as they lie in the archive, each looked up once.
pub(super) struct Shelf<'a> {
    store: &'a Store,
    sources: BTreeMap<TopicGeneration, Option<Source>>,
}

impl<'a> Shelf<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        Self { store, sources: BTreeMap::new() }
    }

    async fn source(&mut self, generation: &TopicGeneration) -> Result<Option<&Source>> {
        if !self.sources.contains_key(generation) {
            let found = sources_of(self.store, vec![generation.clone()], &Query::default()).await?;
            self.sources.insert(generation.clone(), found.into_iter().next());
        }
        Ok(self.sources.get(generation).and_then(Option::as_ref))
    }

    /// What a group reads next in the target that stands at `offset` of a partition in the source, and what that means.
    pub(super) async fn next(
        &mut self,
        replays: &[Replayed],
        (generation, partition): (&TopicGeneration, i32),
        offset: i64,
    ) -> Result<(Option<Next>, Answer)> {
        let mut next = None;
        'found: for (number, stream) in streams(replays, generation) {
            for (replay, replayed) in replays.iter().enumerate() {
                let from = if stream == *generation { offset } else { i64::MIN };
                for range in replayed.ranges(&stream, partition, from) {
                    let times = replayed.timestamps.clone();
                    if let Some(found) = self.first(&stream, (partition, range), times).await? {
                        next = Some(Next { replay, generation: number, offset: found });
                        break 'found;
                    }
                }
            }
        }
        let own = next.as_ref().filter(|next| next.generation == generation.number);
        if own.is_some_and(|next| next.offset == offset) {
            return Ok((next, Answer::Exact));
        }
        let until = own.map(|next| next.offset);
        let answer = self.between(generation, (partition, offset), until).await?;
        Ok((next.clone(), if next.is_some() && answer == Answer::End { Answer::Exact } else { answer }))
    }

    /// What lies between an offset and the next record, or the end of what is archived: [`Answer::End`] if nothing does.
    async fn between(
        &mut self,
        generation: &TopicGeneration,
        (partition, offset): (i32, i64),
        until: Option<i64>,
    ) -> Result<Answer> {
        let Some(source) = self.source(generation).await? else { return Ok(Answer::Lost) };
        let Some(at) = source.positions.iter().find(|at| at.partition == partition) else {
            return Ok(if offset > 0 { Answer::Ahead } else { Answer::End });
        };
        if offset > at.end {
            return Ok(Answer::Ahead);
        }
        let range = offset..until.unwrap_or(at.end);
        let gap =
            source.gaps.iter().any(|gap| gap.partition == partition && gap.start < range.end && range.start < gap.end);
        if gap || offset < at.start {
            return Ok(Answer::Lost);
        }
        let skipped = self.first(generation, (partition, range), None).await?.is_some();
        Ok(if skipped { Answer::Skips } else { Answer::End })
    }

    /// The first record of a partition in a range of offsets, with a timestamp in `times`.
    async fn first(
        &mut self,
        generation: &TopicGeneration,
        (partition, range): (i32, Range<i64>),
        times: Option<Range<i64>>,
    ) -> Result<Option<i64>> {
        if range.is_empty() {
            return Ok(None);
        }
        let store = self.store;
        let filter =
            Filter { partitions: Some(BTreeMap::from([(partition, range)])), timestamps: times, with_key: None };
        let Some(source) = self.source(generation).await? else { return Ok(None) };
        for segment in &source.segments {
            let Some((rows, dense)) = rows(segment, &filter) else { continue };
            if dense {
                return Ok(Some(rows.start));
            }
            let mut reader = open(store, segment, &filter).await?;
            while let Some(block) = reader.next().await? {
                if let Some(record) = block.get(0) {
                    return Ok(Some(record.offset));
                }
            }
        }
        Ok(None)
    }

    /// How many records of a partition in a range of offsets a replay sends.
    pub(super) async fn count(
        &mut self,
        replay: &Replayed,
        generation: &TopicGeneration,
        (partition, range): (i32, Range<i64>),
    ) -> Result<u64> {
        let mut count = 0;
        for range in replay.within(generation, partition, &range) {
            count += self.count_in(generation, (partition, range), replay.timestamps.clone()).await?;
        }
        Ok(count)
    }

    async fn count_in(
        &mut self,
        generation: &TopicGeneration,
        (partition, range): (i32, Range<i64>),
        times: Option<Range<i64>>,
    ) -> Result<u64> {
        let store = self.store;
        let filter =
            Filter { partitions: Some(BTreeMap::from([(partition, range)])), timestamps: times, with_key: None };
        let Some(source) = self.source(generation).await? else { return Ok(0) };
        let mut count = 0_u64;
        for segment in &source.segments {
            let Some((rows, dense)) = rows(segment, &filter) else { continue };
            if dense {
                count += (rows.end - rows.start).unsigned_abs();
                continue;
            }
            let mut reader = open(store, segment, &filter).await?;
            while let Some(block) = reader.next().await? {
                count += block.len() as u64;
            }
        }
        Ok(count)
    }
}

/// The generations of a topic that replays send, from this one on.
fn streams(replays: &[Replayed], from: &TopicGeneration) -> BTreeMap<u32, TopicGeneration> {
    let all = replays.iter().flat_map(Replayed::streams);
    let same = all.filter(|one| one.cluster == from.cluster && one.topic == from.topic && one.number >= from.number);
    same.map(|one| (one.number, one.clone())).collect()
}

/// Which rows of a segment pass the filter, and whether each offset of them is a record that does.
fn rows(segment: &SegmentRef, filter: &Filter) -> Option<(Range<i64>, bool)> {
    let range = segment
        .partitions
        .iter()
        .find(|range| filter.partitions.as_ref().is_some_and(|wanted| wanted.contains_key(&range.partition)))?;
    let planned = matching(range, filter)?;
    let full = (range.end - range.start).unsigned_abs() == range.records;
    let in_time = filter.timestamps.as_ref().is_none_or(|times| {
        range.min_timestamp.is_some_and(|least| least >= times.start)
            && range.max_timestamp.is_some_and(|greatest| greatest < times.end)
    });
    Some((planned.start..planned.end, full && in_time))
}

async fn open(store: &Store, segment: &SegmentRef, filter: &Filter) -> Result<SegmentReader> {
    let object = layout::object(&segment.object)?;
    SegmentReader::open(store.objects(), &object, segment.bytes, segment.format, filter.clone()).await
}

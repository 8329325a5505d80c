//! What of a selection the archive does not have: it has not been reached, was lost, or has expired.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::select::{Query, Source};
use crate::stream::{Gap, TopicGeneration};

/// What of `query` the archive does not have, as warnings: times and offsets that it has not reached, and what is lost. Who asks
/// for everything asks for what there is `now`.
pub fn shortfalls(sources: &[Source], query: &Query, now: DateTime<Utc>) -> Vec<String> {
    let mut newest: BTreeMap<(&str, &str), &Source> = BTreeMap::new();
    for source in sources {
        newest.insert((&source.stream.cluster, &source.stream.topic), source);
    }
    // Only the newest generation of a topic goes on.
    let mut warnings: Vec<String> = newest.values().filter_map(|source| source.not_reached(query, now)).collect();
    warnings.extend(expired(sources, query));
    warnings.extend(gaps(sources).into_iter().map(|lost| lost.words));
    warnings
}

/// Offsets of what is wanted that were lost before they could be archived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The topic.
    pub stream: TopicGeneration,
    /// The partition.
    pub partition: i32,
    /// The first offset.
    pub start: i64,
    /// All of it in words.
    pub words: String,
}

/// What of `sources` was lost before it could be archived.
pub fn gaps(sources: &[Source]) -> Vec<Lost> {
    let mut lost = Vec::new();
    for source in sources {
        let wanted = |gap: &&Gap| {
            let offsets = source.wanted.get(&gap.partition);
            offsets.is_some_and(|offsets| gap.start < offsets.end && offsets.start < gap.end)
        };
        for gap in source.gaps.iter().filter(wanted) {
            let Gap { partition, start, end, reason, .. } = *gap;
            let topic = &source.stream.topic;
            let words = format!("{topic} partition {partition}: offsets {start}..{end} are lost ({})", reason.words());
            lost.push(Lost { stream: source.stream.clone(), partition, start, words });
        }
    }
    lost
}

/// What of `query` retention has expired, as warnings.
pub fn expired(sources: &[Source], query: &Query) -> Vec<String> {
    sources.iter().filter_map(|source| source.lacks_old(query)).collect()
}

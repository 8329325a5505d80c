//! What of a query finds nothing, said: an empty replay must not look like a finished one.

use std::collections::BTreeSet;

use super::select::{Query, Source};
use crate::config::TopicPattern;
use crate::time;

/// Returns what of `query` finds no record in `sources`, as warnings.
pub fn unmatched(sources: &[Source], query: &Query) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(partitions) = &query.partitions {
        let known: BTreeSet<i32> = sources.iter().flat_map(|source| 0..source.complete.known).collect();
        for missing in partitions.without(&known) {
            warnings.push(format!("no topic of this replay has partition {missing}: nothing is sent of it"));
        }
    }
    let topics: BTreeSet<&str> = sources.iter().map(|source| source.stream.topic.as_str()).collect();
    let empty: Vec<&str> = topics.iter().copied().filter(|topic| !has_any(sources, query, topic)).collect();
    let named = |topic: &str| query.topics.iter().any(|one| matches!(one, TopicPattern::Name(name) if name == topic));
    if empty.len() == topics.len() {
        warnings.push("no record lies in this range: nothing is sent".to_owned());
    }
    let told = empty.into_iter().filter(|topic| named(topic) || topics.len() == 1);
    warnings.extend(told.map(|topic| extent_of(sources, topic)));
    warnings
}

fn has_any(sources: &[Source], query: &Query, topic: &str) -> bool {
    let of_topic = sources.iter().filter(|source| source.stream.topic == topic);
    of_topic.clone().any(|source| source.has_any(query.timestamps.clone()))
}

fn extent_of(sources: &[Source], topic: &str) -> String {
    let kept = sources.iter().filter(|source| source.stream.topic == topic).filter_map(|source| source.expired);
    let kept = kept.flatten().min();
    let positions =
        || sources.iter().filter(|source| source.stream.topic == topic).flat_map(|source| &source.positions);
    let (min, max) = (
        kept.or_else(|| positions().filter_map(|at| at.min_timestamp).min()),
        positions().filter_map(|at| at.max_timestamp).max(),
    );
    match min.zip(max) {
        Some((min, max)) => format!(
            "no record of {topic} is meant: what is archived of it has timestamps from {} to {}",
            time::rfc3339(min),
            time::rfc3339(max)
        ),
        None => format!("no record of {topic} is archived"),
    }
}

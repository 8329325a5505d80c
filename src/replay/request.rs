//! A replay as it is asked for.

use std::ops::Range;

use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};

use super::chosen::Chosen;
use super::journal::Settings;
use super::plan::Rename;
use super::schema_ids::SchemaIds;
use super::select::{Offsets, Partitions, Query, topic_pattern};
use crate::config::{Kafka, TopicPattern};
use crate::error::Result;

/// Which topics and offsets are meant, and under which names they are sent: what an id stands for, apart from the times and from
/// what was sent before.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Topics: names, or `^` and a regex; none means all.
    pub topics: Vec<String>,
    /// The partitions; none means all.
    pub partitions: Option<Partitions>,
    /// Offsets of one partition.
    pub offsets: Option<Offsets>,
    /// Which generation of the topics.
    pub generation: Option<u32>,
    /// Where topics go, as [`Rename`] reads it.
    pub rename: Option<String>,
    /// By what records are chosen one by one, in words; none means that all are sent.
    pub chosen_by: Option<String>,
}

impl Selection {
    /// Returns the query for records with these timestamps.
    pub fn query(&self, timestamps: Option<Range<i64>>) -> Result<Query> {
        Ok(Query {
            topics: self.topics.iter().map(|text| topic_pattern(text)).collect::<Result<_>>()?,
            generation: self.generation,
            partitions: self.partitions.clone(),
            timestamps,
            offsets: self.offsets,
            with_key: None,
        })
    }

    /// Whether it names one topic.
    pub fn is_one_topic(&self) -> bool {
        matches!(self.topics.as_slice(), [one] if matches!(topic_pattern(one), Ok(TopicPattern::Name(_))))
    }

    pub(super) fn renames(&self) -> Result<Rename> {
        self.rename.as_deref().map_or(Ok(Rename::default()), Rename::parse)
    }

    /// A digest of it, for replays of the archived topics of `cluster`.
    pub(super) fn digest(&self, cluster: Option<&str>) -> String {
        let list = |partitions: Option<&Partitions>| partitions.map(ToString::to_string);
        let mut said = format!(
            "{:?}",
            (
                cluster,
                &self.topics,
                list(self.partitions.as_ref()),
                self.offsets.map(|offsets| offsets.to_string()),
                self.generation,
                &self.rename
            )
        );
        if let Some(chosen_by) = &self.chosen_by {
            said.push_str(chosen_by);
        }
        format!("{:x}", Sha256::digest(said)).chars().take(16).collect()
    }
}

/// Which ends of a range of times move with the clock: an id that was begun keeps those that it was begun with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moving {
    /// The beginning.
    pub from: bool,
    /// The end.
    pub to: bool,
}

/// Consumer groups that are put where they were once all is sent.
#[derive(Debug, Clone)]
pub struct GroupsWanted {
    /// Names, or `^` and a regex.
    pub groups: Vec<String>,
    /// As of when, as [`crate::time::parse`] reads it; the end of the replay's range where nothing is said.
    pub at: Option<String>,
}

/// A replay as it is asked for. Its id is the target's.
#[derive(Debug, Clone)]
pub struct Request {
    /// The archived cluster; none means every one.
    pub cluster: Option<String>,
    /// Which records are meant, and where they go.
    pub selection: Selection,
    /// Timestamps of records, `from <= timestamp < to`.
    pub timestamps: Option<Range<i64>>,
    /// Which of their ends move with the clock.
    pub moving: Moving,
    /// The replay that it goes on after.
    pub after: Option<String>,
    /// Which of the records are sent; none means all. One that was begun goes on with what it was begun with.
    pub chosen: Option<Chosen>,
    /// The schemas that have another id at the target: keys and values begin with that instead. Each run has to say the same.
    pub schema_ids: SchemaIds,
    /// When what is chosen ends: topics are set, and groups put, as they were then; none means with the timestamps, or now.
    pub until: Option<DateTime<Utc>>,
    /// When topics that it creates get what could cost a record; none means as an earlier run has said, or later by the user.
    pub settings: Option<Settings>,
    /// The groups.
    pub groups: Option<GroupsWanted>,
    /// Whether it is written down beside the archive.
    pub recorded: bool,
    /// The cluster that the archive is fed by, to tell when records go back to where they came from.
    pub own: Option<Kafka>,
    /// Whether that is the target.
    pub into_own: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_tells_replays_apart() {
        let of = |topic: &str| Selection { topics: vec![topic.to_owned()], ..Selection::default() };
        let base = of("a").digest(None);
        // What an id of before stands for must not change with the program.
        assert_eq!(base, "b150bab887e25ffd");
        for other in [
            of("b"),
            Selection { partitions: Some("1".parse().expect("partitions")), ..of("a") },
            Selection { rename: Some("a=b".to_owned()), ..of("a") },
            Selection { chosen_by: Some("commit 0/1".to_owned()), ..of("a") },
        ] {
            assert_ne!(base, other.digest(None));
        }
        assert_ne!(base, of("a").digest(Some("main")));
    }
}

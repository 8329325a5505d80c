//! The partitions of which no broker said where they begin when it was asked last.
//!
//! Only the brokers are asked about them every few seconds: what the archive has of them does not help until one answers, and
//! to look costs more the more streams there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::Isolation;
use crate::error::Error;
use crate::source::kafka::{Cluster, OffsetAt, TopicPartition};

#[derive(Default)]
pub(super) struct Untold(BTreeSet<TopicPartition>);

impl Untold {
    /// Returns which of `asked` are worth a look into the archive, and by topic why the others are not.
    pub(super) async fn told(
        &self,
        cluster: &Cluster,
        isolation: Isolation,
        asked: &[TopicPartition],
    ) -> (Vec<TopicPartition>, BTreeMap<Arc<str>, Error>) {
        let (again, mut told): (Vec<_>, Vec<_>) = asked.iter().cloned().partition(|at| self.0.contains(at));
        let mut why = BTreeMap::new();
        if again.is_empty() {
            return (told, why);
        }
        match cluster.list_offsets(&again, OffsetAt::Earliest, isolation).await {
            Ok(listed) => {
                for (at, offset) in listed {
                    match offset {
                        Ok(_) => told.push(at),
                        Err(error) => drop(why.insert(at.topic, error)),
                    }
                }
            }
            Err(error) => {
                let of = |at: &TopicPartition| (Arc::clone(&at.topic), Error::new(error.kind(), error.to_string()));
                why.extend(again.iter().map(of));
            }
        }
        (told, why)
    }

    /// What was `asked` was answered, but of these partitions the brokers did not say enough.
    pub(super) fn note<'a>(&mut self, asked: &[TopicPartition], untold: impl Iterator<Item = &'a TopicPartition>) {
        for at in asked {
            self.0.remove(at);
        }
        self.0.extend(untold.cloned());
    }
}

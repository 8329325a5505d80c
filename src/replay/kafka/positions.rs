//! Positions of consumer groups on the target: where they are, and putting them elsewhere.
//!
//! Each group has a client of its own that never joins it: a commit without a generation, which the coordinator takes of a group
//! without members alone (`GroupCoordinator`: UNKNOWN_MEMBER_ID otherwise), so that nobody is moved who reads.

use std::collections::BTreeMap;
use std::time::Instant;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::blocking::blocking;
use super::connection::{Connection, Logged, failed, wrong_property};
use super::target::{ANSWER, PAUSE, Target, committed};
use crate::error::{Error, Kind, Result};
use crate::replay::offset_map::At;

/// A position that a group is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The offset of the next record.
    pub offset: i64,
    /// What stands beside it.
    pub metadata: Option<String>,
}

/// What is right for whoever sets positions.
const RIGHTS: &str = "grant READ on the group, and READ on the target's topics";

impl Target {
    /// The members of a group.
    pub async fn members(&self, group: &str) -> Result<Vec<String>> {
        self.cluster.members(group).await
    }

    /// Where a group is in `partitions`; those without a position are left out.
    pub async fn positions(&self, group: &str, partitions: &[At]) -> Result<BTreeMap<At, i64>> {
        let (connection, group, partitions) = (self.connection.clone(), group.to_owned(), partitions.to_vec());
        blocking(move || found(&client(&connection, &group)?, &group, &partitions)).await
    }

    /// Puts a group where `positions` say, and looks whether it is there.
    ///
    /// # Errors
    /// [`Kind::Fenced`] where it has members, [`Kind::Denied`] without the right, [`Kind::Unavailable`] where it is elsewhere after all.
    pub async fn put_positions(&self, group: &str, positions: BTreeMap<At, Position>) -> Result<()> {
        let (connection, group) = (self.connection.clone(), group.to_owned());
        blocking(move || put(&client(&connection, &group)?, &group, &positions)).await
    }
}

fn client(connection: &Connection, group: &str) -> Result<BaseConsumer<Logged>> {
    let mut config = connection.client();
    config.set("group.id", group).set("enable.auto.commit", "false").set("isolation.level", "read_committed");
    config.create_with_context(Logged).map_err(|error| wrong_property(&error))
}

fn found(consumer: &BaseConsumer<Logged>, group: &str, partitions: &[At]) -> Result<BTreeMap<At, i64>> {
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for (topic, partition) in partitions {
        list.add_partition(topic, *partition);
    }
    let offsets = committed(consumer, &list)
        .map_err(|error| denied(failed(error, || format!("the target does not tell where the group {group} is"))))?;
    let of = offsets.elements();
    let found = of.iter().filter_map(|element| match element.offset() {
        Offset::Offset(offset) => Some(((element.topic().to_owned(), element.partition()), offset)),
        _ => None,
    });
    Ok(found.collect())
}

fn put(consumer: &BaseConsumer<Logged>, group: &str, positions: &BTreeMap<At, Position>) -> Result<()> {
    let doing = || format!("the group {group} cannot be put where it was");
    let mut list = TopicPartitionList::with_capacity(positions.len());
    for ((topic, partition), position) in positions {
        let mut element = list.add_partition(topic, *partition);
        if let Some(metadata) = &position.metadata {
            element.set_metadata(metadata);
        }
        element.set_offset(Offset::Offset(position.offset)).map_err(|error| failed(error, doing))?;
    }
    commit(consumer, &list).map_err(|error| match error.rdkafka_error_code() {
        Some(
            Code::UnknownMemberId
            | Code::IllegalGeneration
            | Code::RebalanceInProgress
            | Code::FencedMemberEpoch
            | Code::StaleMemberEpoch,
        ) => Error::new(Kind::Fenced, format!("the group {group} has members: it stays where it is")),
        _ => denied(failed(error, doing)),
    })?;
    // librdkafka gives no error where only some partitions are refused (rd_kafka_handle_OffsetCommit).
    let partitions: Vec<At> = positions.keys().cloned().collect();
    let now = found(consumer, group, &partitions)?;
    let elsewhere = positions.iter().find(|(at, position)| now.get(*at) != Some(&position.offset));
    match elsewhere {
        None => Ok(()),
        Some(((topic, partition), position)) => Err(Error::new(
            Kind::Unavailable,
            format!("{}: {topic} partition {partition} is not at {}", doing(), position.offset),
        )
        .hint(RIGHTS)),
    }
}

/// Commits. A group that nobody has used has no coordinator at first.
fn commit(consumer: &BaseConsumer<Logged>, list: &TopicPartitionList) -> KafkaResult<()> {
    let passes = |error: &KafkaError| {
        matches!(
            error.rdkafka_error_code(),
            Some(
                Code::NotCoordinator
                    | Code::CoordinatorNotAvailable
                    | Code::CoordinatorLoadInProgress
                    | Code::WaitingForCoordinator
            )
        )
    };
    let deadline = Instant::now() + ANSWER;
    loop {
        match consumer.commit(list, CommitMode::Sync) {
            Err(error) if passes(&error) && Instant::now() < deadline => std::thread::sleep(PAUSE),
            answer => return answer,
        }
    }
}

fn denied(error: Error) -> Error {
    if error.kind() == Kind::Denied { error.hint(RIGHTS) } else { error }
}

//! Looks for a connector's marker in its topics: that it runs proves nothing.
//!
//! ```text
//!   where the topics end ── noted ── connector runs ─► what comes from there on ─► the token, in a key or a value
//! ```
//!
//! The token stands as plain text in JSON, Avro and Protobuf alike: of a message it is the prefix, of a row whatever the statement writes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};

use super::connector::Connector;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::replay::kafka::Connection;

/// How long an answer of the cluster may take.
const ANSWER: Duration = Duration::from_secs(20);

/// How long the marker may take where it is the first that the connector reads.
pub(super) const COMES: Duration = Duration::from_secs(120);

/// Where topics end, by topic and partition.
pub type Ends = BTreeMap<String, BTreeMap<i32, i64>>;

/// Makes the topic of a connector's messages, if it is not there: where brokers make none, the connector would fail at it.
///
/// # Errors
/// A cluster that does not answer, or refuses it.
pub async fn make_topic(to: &Connection, of: &Connector) -> Result<bool> {
    let topic = messages(of);
    let doing = || format!("cannot make the topic {topic}");
    let admin: AdminClient<DefaultClientContext> = to.client().create().or_err(Kind::Config, doing)?;
    let wanted = NewTopic::new(&topic, 1, TopicReplication::Fixed(-1));
    let options = AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(ANSWER));
    let made = admin.create_topics([&wanted], &options).await.or_err(Kind::Unavailable, doing)?;
    match made.into_iter().next() {
        Some(Ok(_)) => Ok(true),
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(false),
        Some(Err((_, code))) => Err(Error::new(Kind::Denied, doing()).source(KafkaError::AdminOp(code))),
        None => Err(Error::new(Kind::Internal, doing())),
    }
}

/// The topic of a connector's logical decoding messages.
pub fn messages(of: &Connector) -> String {
    format!("{}.message", of.prefixes.1)
}

/// Whether a topic may be where a connector's marker comes to. A message comes to all connectors of its database, and each has a topic of
/// its own for it; a row comes to that of its table.
fn may_have(of: &Connector, topic: &str) -> bool {
    match of.marker {
        Some(_) => topic.strip_prefix(of.prefixes.1.as_str()).is_some_and(|rest| rest.starts_with('.')),
        None => topic == messages(of),
    }
}

/// Returns where the topics of a connector end.
///
/// # Errors
/// A cluster that does not answer.
pub async fn ends(to: &Connection, of: &Connector) -> Result<Ends> {
    let (consumer, prefix) = (consumer(to)?, format!("{}.", of.prefixes.1));
    blocking(move || {
        let mut ends = Ends::new();
        for (topic, partition) in partitions(&consumer, |topic| topic.starts_with(&prefix))? {
            let marks = consumer.fetch_watermarks(&topic, partition, ANSWER);
            let (_, end) = marks.or_err(Kind::Unavailable, || format!("cannot tell where {topic} ends"))?;
            ends.entry(topic).or_default().insert(partition, end);
        }
        Ok(ends)
    })
    .await
}

/// Returns which of these topics hold records.
///
/// # Errors
/// A cluster that does not answer.
pub async fn filled(to: &Connection, topics: Vec<&String>) -> Result<Vec<String>> {
    let (consumer, topics) = (consumer(to)?, topics.into_iter().cloned().collect::<Vec<_>>());
    blocking(move || {
        let mut filled = Vec::new();
        for topic in topics {
            let doing = || format!("cannot tell what {topic} holds");
            let metadata = consumer.fetch_metadata(Some(&topic), ANSWER).or_err(Kind::Unavailable, doing)?;
            for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
                let marks = consumer.fetch_watermarks(&topic, partition.id(), ANSWER);
                let (first, end) = marks.or_err(Kind::Unavailable, doing)?;
                if end > first {
                    filled.push(topic.clone());
                    break;
                }
            }
        }
        Ok(filled)
    })
    .await
}

/// Waits so long for the token in what comes to the topics of a connector from `from` on; gives the topic. What was read is not read again
/// the next time: `from` moves on, for a large range may take longer to be read than one waits at a time.
///
/// # Errors
/// [`Kind::Incomplete`] where it has not come in time.
pub async fn seen(
    to: &Connection,
    of: &Connector,
    (from, token): (&mut Ends, &str),
    patience: Duration,
) -> Result<String> {
    let (consumer, of) = (consumer(to)?, of.clone());
    let (ends, token) = (from.clone(), token.as_bytes().to_vec());
    let (found, known) = blocking(move || {
        let begun = Instant::now();
        let (mut known, mut looked) = (TopicPartitionList::new(), None::<Instant>);
        while begun.elapsed() < patience {
            // Topics come to be as the connector writes.
            if looked.is_none_or(|at| at.elapsed() > Duration::from_secs(2)) {
                looked = Some(Instant::now());
                if read_also(&consumer, &mut known, partitions(&consumer, |topic| may_have(&of, topic))?, &ends)? {
                    consumer.assign(&known).or_err(Kind::Internal, || "cannot read topics".to_owned())?;
                }
            }
            let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) else { continue };
            if has(&message, &token) {
                return Ok((Ok(message.topic().to_owned()), known));
            }
            let next = Offset::Offset(message.offset() + 1);
            drop(known.set_partition_offset(message.topic(), message.partition(), next));
        }
        let topics = if of.marker.is_some() { format!("the topics of {}", of.name) } else { messages(&of) };
        let message = format!("what was written after the recovery for {} has not come to {topics} within {} s", of.name, patience.as_secs());
        let error = Error::new(Kind::Incomplete, message).hint(
            "its connector may read another server, or leave out what it should read: do not trust its topics; compare its config, slot and \
             offset with the report",
        );
        Ok((Err(error), known))
    })
    .await?;
    moved(from, &known);
    found
}

/// Counts the records with a token in what has come to the topics of a connector from `ends` on.
///
/// # Errors
/// A cluster that does not answer.
pub async fn times(to: &Connection, of: &Connector, (ends, token): (&Ends, &str)) -> Result<usize> {
    let (consumer, of) = (consumer(to)?, of.clone());
    let (ends, token) = (ends.clone(), token.as_bytes().to_vec());
    blocking(move || {
        let mut count = 0;
        for (topic, partition) in partitions(&consumer, |topic| may_have(&of, topic))? {
            let doing = || format!("cannot read {topic}");
            let (first, end) = consumer.fetch_watermarks(&topic, partition, ANSWER).or_err(Kind::Unavailable, doing)?;
            let from = ends.get(&topic).and_then(|ends| ends.get(&partition)).copied().unwrap_or(0).max(first);
            let mut known = TopicPartitionList::new();
            known.add_partition_offset(&topic, partition, Offset::Offset(from)).or_err(Kind::Internal, doing)?;
            consumer.assign(&known).or_err(Kind::Internal, doing)?;
            let (mut at, begun) = (from, Instant::now());
            // Behind the last record there may be a mark of a transaction, which is no record.
            while at < end && begun.elapsed() < COMES {
                let Some(Ok(message)) = consumer.poll(Duration::from_millis(500)) else { continue };
                at = message.offset() + 1;
                count += usize::from(has(&message, &token));
            }
        }
        Ok(count)
    })
    .await
}

/// Moves where reading begins to where it ended.
fn moved(from: &mut Ends, known: &TopicPartitionList) {
    for read in known.elements() {
        if let Offset::Offset(next) = read.offset() {
            from.entry(read.topic().to_owned()).or_default().insert(read.partition(), next);
        }
    }
}

fn has(message: &BorrowedMessage<'_>, token: &[u8]) -> bool {
    let holds = |bytes: Option<&[u8]>| bytes.is_some_and(|bytes| bytes.windows(token.len()).any(|at| at == token));
    holds(message.key()) || holds(message.payload())
}

/// Adds partitions that are not read yet; whether there were any.
fn read_also(
    consumer: &BaseConsumer,
    known: &mut TopicPartitionList,
    found: Vec<(String, i32)>,
    ends: &Ends,
) -> Result<bool> {
    let mut added = false;
    for (topic, partition) in found {
        if known.find_partition(&topic, partition).is_some() {
            continue;
        }
        let end = ends.get(&topic).and_then(|partitions| partitions.get(&partition)).copied().unwrap_or(0);
        let doing = || format!("cannot read {topic}");
        // Retention may have moved on since.
        let marks = consumer.fetch_watermarks(&topic, partition, ANSWER);
        let (first, _) = marks.or_err(Kind::Unavailable, doing)?;
        known.add_partition_offset(&topic, partition, Offset::Offset(end.max(first))).or_err(Kind::Internal, doing)?;
        added = true;
    }
    Ok(added)
}

fn partitions(consumer: &BaseConsumer, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, i32)>> {
    let metadata = consumer.fetch_metadata(None, ANSWER);
    let metadata = metadata.or_err(Kind::Unavailable, || "the target does not tell its topics".to_owned())?;
    let topics = metadata.topics().iter().filter(|topic| is_wanted(topic.name()));
    Ok(topics.flat_map(|topic| topic.partitions().iter().map(|one| (topic.name().to_owned(), one.id()))).collect())
}

fn consumer(to: &Connection) -> Result<BaseConsumer> {
    let mut client = to.client();
    client
        .set("group.id", "tidelog-recover")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false");
    client.set("auto.offset.reset", "earliest").set("isolation.level", "read_committed");
    client.create().or_err(Kind::Config, || "cannot read from the target".to_owned())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.or_err(Kind::Internal, || "reading topics was aborted".to_owned())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_not_read_again() {
        let mut from = Ends::from([("a".to_owned(), [(0, 5), (1, 7)].into())]);
        let mut known = TopicPartitionList::new();
        for (topic, partition, next) in [("a", 0, 9), ("b", 2, 1)] {
            known.add_partition_offset(topic, partition, Offset::Offset(next)).expect("added");
        }
        known.add_partition_offset("c", 0, Offset::Invalid).expect("added");
        moved(&mut from, &known);
        let wanted = Ends::from([("a".to_owned(), [(0, 9), (1, 7)].into()), ("b".to_owned(), [(2, 1)].into())]);
        assert_eq!(from, wanted);
    }

    #[test]
    fn a_message_is_looked_for_in_the_connector_s_own_topic_alone() {
        let mut of = Connector {
            name: "a".to_owned(),
            config: BTreeMap::new(),
            archived: BTreeMap::new(),
            prefixes: ("old".to_owned(), "srv".to_owned()),
            marker: None,
            has_failover: false,
        };
        let among = |of: &Connector| {
            let all = ["srv.message", "srv.public.orders", "srv.x.message", "srv2.message", "old.message"];
            all.into_iter().filter(|topic| may_have(of, topic)).collect::<Vec<_>>()
        };
        assert_eq!(among(&of), ["srv.message"]);
        of.marker = Some("INSERT INTO beats VALUES ('{token}')".to_owned());
        assert_eq!(among(&of), ["srv.message", "srv.public.orders", "srv.x.message"]);
    }
}

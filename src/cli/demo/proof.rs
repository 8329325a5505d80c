//! The proof of the demo: an ordinary consumer reads what went in and what came back, and both must be equal.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::events::TABLES;
use crate::error::{Error, Kind, Result, ResultExt};

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Everything of a record that must come back.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
    timestamp: Option<i64>,
}

/// Compares the records of a time range with those that were replayed, and says how many there are.
pub(super) fn compare(bootstrap: &str, range: Range<i64>) -> Result<usize> {
    let mut equal = 0;
    for table in &TABLES {
        let mut sent = read(bootstrap, table.topic, table.partitions)?;
        for records in sent.values_mut() {
            records.retain(|record| record.timestamp.is_some_and(|time| range.contains(&time)));
        }
        let came = read(bootstrap, &format!("replay.{}", table.topic), table.partitions)?;
        for (partition, sent) in &sent {
            let came = came.get(partition).map_or(&[][..], Vec::as_slice);
            let same = sent.iter().zip(came).take_while(|(sent, came)| sent == came).count();
            if same != sent.len() || same != came.len() {
                return Err(Error::new(
                    Kind::Incomplete,
                    format!(
                        "{} partition {partition}: {} records went in, {} came back, and number {same} differs",
                        table.topic,
                        sent.len(),
                        came.len()
                    ),
                ));
            }
            equal += same;
        }
    }
    Ok(equal)
}

fn read(bootstrap: &str, topic: &str, partitions: i32) -> Result<BTreeMap<i32, Vec<Content>>> {
    let failed = || format!("{topic} cannot be read");
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "tidelog-demo-proof")
        .set("enable.auto.commit", "false")
        .create()
        .or_err(Kind::Unavailable, failed)?;
    let mut list = TopicPartitionList::new();
    let mut missing = 0;
    for partition in 0..partitions {
        let (first, end) =
            consumer.fetch_watermarks(topic, partition, ANSWER_WITHIN).or_err(Kind::Unavailable, failed)?;
        missing += end - first;
        list.add_partition_offset(topic, partition, Offset::Offset(first)).or_err(Kind::Unavailable, failed)?;
    }
    consumer.assign(&list).or_err(Kind::Unavailable, failed)?;
    let mut read: BTreeMap<i32, Vec<Content>> = (0..partitions).map(|partition| (partition, Vec::new())).collect();
    while missing > 0 {
        let message = consumer
            .poll(ANSWER_WITHIN)
            .ok_or_else(|| Error::new(Kind::Unavailable, failed()))?
            .or_err(Kind::Unavailable, failed)?;
        missing -= 1;
        read.entry(message.partition()).or_default().push(content(&message));
    }
    Ok(read)
}

fn content(message: &BorrowedMessage<'_>) -> Content {
    let headers = message.headers().map(|headers| {
        headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
    });
    Content {
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
        timestamp: message.timestamp().to_millis(),
    }
}

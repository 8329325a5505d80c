//! Sends records to live topics, each to the partition that its key has been in.

use std::collections::VecDeque;
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _};

use super::keys::Sent;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::replay::kafka::Connection;

/// So many are on their way at a time.
const UNDERWAY: usize = 1_000;

/// librdkafka's own limit of a record.
const USUAL: usize = 1_000_000;

/// What a record takes besides: the header of ours, and a batch's.
const MARGIN: usize = 1_024;

/// How long the last of them may take.
const FLUSHED: Duration = Duration::from_secs(120);

/// The header that says which recovery has sent a record.
const HEADER: &str = "tidelog.recovery";

/// Sends them in their order, and waits until the cluster has all of them.
///
/// # Errors
/// [`Kind::Unavailable`] for a cluster that does not take them: what it has is sent again with the next run.
pub(super) async fn send(to: &Connection, id: &str, all: &[Sent]) -> Result<()> {
    let mut client = to.client();
    client.set("acks", "all").set("enable.idempotence", "true").set("compression.type", "zstd");
    let largest = all.iter().map(Sent::bytes).max().unwrap_or_default() + MARGIN;
    client.set("message.max.bytes", largest.max(USUAL).to_string());
    // What cannot be sent is told before anything is.
    all.iter().try_for_each(|sent| record(sent, id).map(drop))?;
    let producer: FutureProducer = client.create().or_err(Kind::Config, || "cannot write to the cluster".to_owned())?;
    let mut underway: VecDeque<(&Sent, DeliveryFuture)> = VecDeque::new();
    for sent in all {
        let mut record = Some(record(sent, id)?);
        while let Some(one) = record.take() {
            match producer.send_result(one) {
                Ok(future) => underway.push_back((sent, future)),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), one)) => {
                    delivered(&mut underway).await?;
                    record = Some(one);
                }
                Err((error, _)) => return Err(failed(sent, error)),
            }
        }
        if underway.len() >= UNDERWAY {
            delivered(&mut underway).await?;
        }
    }
    while !underway.is_empty() {
        delivered(&mut underway).await?;
    }
    producer.flush(FLUSHED).or_err(Kind::Unavailable, || "cannot write to the cluster".to_owned())
}

async fn delivered(underway: &mut VecDeque<(&Sent, DeliveryFuture)>) -> Result<()> {
    let Some((sent, future)) = underway.pop_front() else { return Ok(()) };
    match future.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err((error, _))) => Err(failed(sent, error)),
        Err(_) => Err(failed(sent, KafkaError::Canceled)),
    }
}

fn failed(sent: &Sent, error: KafkaError) -> Error {
    let message = format!("cannot write to {} partition {}", sent.topic, sent.partition);
    Error::new(Kind::Unavailable, message)
        .source(error)
        .hint("the same command sends all of it again, which changes nothing")
}

fn record<'a>(sent: &'a Sent, id: &'a str) -> Result<FutureRecord<'a, Vec<u8>, Vec<u8>>> {
    let mut headers = OwnedHeaders::new_with_capacity(sent.headers.len() + 1);
    for (name, value) in &sent.headers {
        let name =
            std::str::from_utf8(name).or_err(Kind::Unsupported, || format!("a header in {} is no text", sent.topic))?;
        headers = headers.insert(Header { key: name, value: value.as_ref() });
    }
    headers = headers.insert(Header { key: HEADER, value: Some(id) });
    let record = FutureRecord::to(&sent.topic).partition(sent.partition).key(&sent.key).headers(headers);
    Ok(match &sent.value {
        Some(value) => record.payload(value),
        None => record,
    })
}

//! What the target did not take, why, and what to do about it; and which failures only mean that it takes longer.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{DeliveryResult, ProducerContext};

use super::placed::Placed;
use crate::error::{Error, Kind, Result};
use crate::replay::offset_map::{At, SentRun};

/// What the target said about records: those that it did not take, and where it put the others.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    failures: Mutex<Failures>,
    /// Where records arrived, if that is asked for.
    placed: Option<Mutex<Placed>>,
}

#[derive(Debug, Default)]
struct Failures {
    count: u64,
    first: Option<(String, Option<RDKafkaErrorCode>)>,
}

impl ClientContext for Deliveries {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, "librdkafka: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "librdkafka: {reason}");
    }
}

impl ProducerContext for Deliveries {
    /// The source offset.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, offset: usize) {
        let (error, message) = match result {
            Err(refused) => refused,
            Ok(message) => {
                if let Some(placed) = &self.placed {
                    let source = i64::try_from(offset).unwrap_or(i64::MAX);
                    let mut placed = placed.lock().unwrap_or_else(PoisonError::into_inner);
                    placed.add(message.topic(), message.partition(), source, message.offset());
                }
                return;
            }
        };
        // What an abort throws away did not fail by itself.
        if matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight)) {
            return;
        }
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.count += 1;
        failures.first.get_or_insert_with(|| {
            let place =
                format!("{} partition {} (offset {offset} of the source)", message.topic(), message.partition());
            (format!("{place}: {error}"), error.rdkafka_error_code())
        });
    }
}

impl Deliveries {
    /// One that notes where records arrive, if `placed`.
    pub(super) fn new(placed: bool) -> Self {
        Self { placed: placed.then(Mutex::default), ..Self::default() }
    }

    /// Where what has arrived since it was asked last is in the target.
    pub(super) fn placed(&self) -> BTreeMap<At, Vec<SentRun>> {
        let placed = self.placed.as_ref().map(|placed| placed.lock().unwrap_or_else(PoisonError::into_inner).take());
        placed.unwrap_or_default()
    }

    /// The failures as one error, if there are any.
    pub(super) fn verdict(&self) -> Result<()> {
        self.failure().map_or(Ok(()), |(error, _)| Err(error))
    }

    /// The failures as one error, with the first one's code.
    pub(super) fn failure(&self) -> Option<(Error, Option<RDKafkaErrorCode>)> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, code) = failures.first.as_ref()?;
        let message = match failures.count {
            1 => format!("the target refused {first}"),
            count => format!("the target refused {count} records, the first of them {first}"),
        };
        let error = Error::new(Kind::Unavailable, message);
        let hinted = match code.and_then(way_out) {
            Some(hint) => error.hint(hint),
            None => error,
        };
        Some((hinted, *code))
    }
}

/// The code of librdkafka beneath an error, if there is one.
pub(super) fn code_of(error: &Error) -> Option<RDKafkaErrorCode> {
    let source = std::error::Error::source(error)?.downcast_ref::<KafkaError>()?;
    source.rdkafka_error_code()
}

/// Whether a transaction that failed with `code` only took too long. A broker ends one that lasted `too_long` by itself and
/// fences its producer, as if another had come (KIP-588); librdkafka makes one of both.
pub(super) fn out_of_time(code: RDKafkaErrorCode, too_long: bool) -> bool {
    use RDKafkaErrorCode as Code;
    match code {
        Code::MessageTimedOut | Code::OperationTimedOut | Code::RequestTimedOut => true,
        Code::Fenced
        | Code::ProducerFenced
        | Code::InvalidProducerEpoch
        | Code::InvalidTransactionalState
        | Code::Fatal => too_long,
        _ => false,
    }
}

/// What to do about a record that the target did not take.
fn way_out(code: RDKafkaErrorCode) -> Option<&'static str> {
    use RDKafkaErrorCode as Code;
    Some(match code {
        Code::MessageTimedOut | Code::OperationTimedOut => {
            "the target takes records too slowly (a slow link, a quota): --rate 100kB/s sends no more than that"
        }
        Code::MessageSizeTooLarge => "raise max.message.bytes on the topic",
        Code::InvalidTimestamp => {
            "raise message.timestamp.before.max.ms and message.timestamp.after.max.ms on the topic"
        }
        Code::InvalidRecord => "a compacted topic takes no record without a key: replay into one that is not",
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => {
            "fewer replicas are in step than min.insync.replicas of the topic: see that its brokers are up"
        }
        Code::TopicAuthorizationFailed => "give the replay's user the right to write to the topic",
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => {
            "another run with this --id has taken over; only one can go on"
        }
        Code::PolicyViolation => "a policy of the target's cluster refuses such records",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_producer_that_was_fenced_in_time_was_fenced_by_another() {
        use RDKafkaErrorCode as Code;
        for code in [Code::MessageTimedOut, Code::OperationTimedOut] {
            assert!(out_of_time(code, false) && out_of_time(code, true), "{code}");
        }
        for code in [Code::Fenced, Code::InvalidProducerEpoch, Code::InvalidTransactionalState] {
            assert!(!out_of_time(code, false) && out_of_time(code, true), "{code}");
        }
        for code in [Code::MessageSizeTooLarge, Code::TopicAuthorizationFailed, Code::UnknownTopicOrPartition] {
            assert!(!out_of_time(code, true), "{code}");
        }
    }
}

//! librdkafka's and the brokers' error codes and log lines in the program's own terms.
//!
//! Codes below zero are librdkafka's (`rdkafka.h`), the others the protocol's
//! (`org.apache.kafka.common.protocol.Errors`).

use super::raw::{Failure, name_of};
use crate::error::{Error, Kind};

impl Failure {
    /// The failure as an [`Error`]; `doing` says what could not be done.
    pub(super) fn into_error(self, doing: impl std::fmt::Display) -> Error {
        let (kind, hint) = kind_of(self.code);
        let name = name_of(self.code);
        let error = Error::new(kind, format!("{doing}: {} ({})", self.text, name.trim_start_matches('_')));
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// Returns what sort of failure a code is, and what the reader can do about it.
fn kind_of(code: i32) -> (Kind, Option<&'static str>) {
    match code {
        // _SSL, _AUTHENTICATION, SASL_AUTHENTICATION_FAILED, ILLEGAL_SASL_STATE, UNSUPPORTED_SASL_MECHANISM
        -181 | -169 | 58 | 34 | 33 => {
            (Kind::Denied, Some("check security.protocol, sasl.* and ssl.* in [kafka.properties]"))
        }
        29 => (Kind::Denied, Some("grant READ and DESCRIBE on the topic")),
        30 => (Kind::Denied, Some("grant READ on the group of kafka.group_id")),
        31 | 53 => (Kind::Denied, Some("grant DESCRIBE on the cluster")),
        // _UNKNOWN_PARTITION, _UNKNOWN_TOPIC, UNKNOWN_TOPIC_OR_PARTITION, UNKNOWN_TOPIC_ID, INCONSISTENT_TOPIC_ID
        -190 | -188 | 3 | 100 | 103 => (Kind::NotFound, None),
        // _BAD_COMPRESSION (`rd_kafka_zstd_decompress` gives it, too, for what is too large)
        -198 => (
            Kind::Corrupt,
            Some(
                "raise receive.message.max.bytes in [kafka.properties], if it is only larger than that once decompressed; \
                 else move the leader to a replica whose copy is whole, or skip it: POST /connectors/kafka/skip",
            ),
        ),
        // _BAD_MSG, CORRUPT_MESSAGE
        -199 | 2 => (Kind::Corrupt, None),
        // _NOT_IMPLEMENTED, _UNSUPPORTED_FEATURE, UNSUPPORTED_VERSION, UNSUPPORTED_COMPRESSION_TYPE
        -170 | -165 | 35 | 76 => (Kind::Unsupported, Some("a broker of version 2.8 or newer is needed")),
        // INVALID_REGULAR_EXPRESSION, INVALID_SESSION_TIMEOUT, INCONSISTENT_GROUP_PROTOCOL, INVALID_GROUP_ID
        128 | 26 | 24 => (Kind::Config, None),
        23 => (
            Kind::Config,
            Some(
                "another member of this group uses another assignment strategy: give the group another kafka.group_id",
            ),
        ),
        // FENCED_INSTANCE_ID, _FENCED
        82 | -144 => {
            (Kind::Fenced, Some("another consumer runs with the same group.instance.id: give each process its own"))
        }
        // INVALID_CONFIG, INVALID_REQUEST, POLICY_VIOLATION
        40 | 42 | 44 => (Kind::Config, None),
        // _INVALID_ARG, _STATE, _CONFLICT: this program called librdkafka wrongly.
        -186 | -172 | -173 => (Kind::Internal, None),
        _ => (Kind::Unavailable, None),
    }
}

/// One line of librdkafka's log, at tracing's level for its syslog level.
pub(super) fn log_line(level: i32, facility: &str, text: &str) {
    match level {
        ..=3 => tracing::error!(target: "librdkafka", facility, "{text}"),
        4 => tracing::warn!(target: "librdkafka", facility, "{text}"),
        5 | 6 => tracing::info!(target: "librdkafka", facility, "{text}"),
        _ => tracing::debug!(target: "librdkafka", facility, "{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: i32) -> Error {
        Failure { code, text: super::super::raw::text_of(code) }.into_error("cannot read orders")
    }

    #[test]
    fn codes_are_told_apart() {
        assert_eq!(error(29).kind(), Kind::Denied);
        assert_eq!(error(3).kind(), Kind::NotFound);
        assert_eq!((error(82).kind(), error(-144).exit_code()), (Kind::Fenced, 1), "it is to be started again");
        assert_eq!(error(-195).kind(), Kind::Unavailable);
        assert!(error(-185).is_transient());
        assert!(!error(58).is_transient());
        assert_eq!(error(40).kind(), Kind::Config);
    }

    #[test]
    fn a_message_says_what_was_done_and_the_code() {
        let text = error(3).to_string();
        assert_eq!(text, "cannot read orders: Broker: Unknown topic or partition (UNKNOWN_TOPIC_OR_PART)");
    }

    #[test]
    fn a_code_that_librdkafka_does_not_know_is_no_harm() {
        assert!(error(31_000).is_transient());
    }
}

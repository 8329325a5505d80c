//! How the producer of a replay is set.

use rdkafka::config::ClientConfig;

use super::effort::Effort;
use super::preflight::Findings;
use super::target::{Target, group_of};

/// Keys and values that wait for the target at most.
const QUEUE_KBYTES: u64 = 48 * 1024;
/// librdkafka's own limit of `batch.size` and `message.max.bytes` unless a record needs more.
const USUAL_BATCH: u64 = 1_000_000;
/// What a batch's header and its estimates take off the size that a broker counts.
const BATCH_MARGIN: u64 = 512;

/// librdkafka's settings of a replay: what exactly-once needs is fixed, what tunes it may stand in the connection's
/// properties already.
pub(super) fn settings(target: &Target, findings: &Findings, effort: Effort) -> (ClientConfig, u64) {
    let batch = USUAL_BATCH.min(findings.max_batch.saturating_sub(BATCH_MARGIN)).max(1);
    let message = USUAL_BATCH.max(findings.largest + BATCH_MARGIN);
    // A queue that cannot hold the largest record would never take it.
    let kbytes = QUEUE_KBYTES.max(message.div_ceil(1024) + 1);
    let mut config = target.connection.client();
    for (key, value) in [
        ("transaction.timeout.ms", effort.transaction.as_millis().to_string()),
        ("batch.size", batch.to_string()),
        ("linger.ms", "10".to_owned()),
        ("message.max.bytes", message.to_string()),
        ("queue.buffering.max.kbytes", kbytes.to_string()),
        ("queue.buffering.max.messages", "1000000".to_owned()),
    ] {
        if config.get(key).is_none() {
            config.set(key, value);
        }
    }
    // `compression.codec` and `compression.type` are one property with two names: whoever said either has decided.
    if target.connection.leaves_compression() {
        config.set("compression.codec", if findings.compressed { "zstd" } else { "lz4" });
    }
    config.set("transactional.id", group_of(&target.id)).set("enable.idempotence", "true").set("acks", "all");
    let kbytes = config.get("queue.buffering.max.kbytes").and_then(|kbytes| kbytes.parse().ok()).unwrap_or(kbytes);
    (config, kbytes.saturating_mul(1024))
}

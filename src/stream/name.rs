//! Which names a stream, a writer or a backup may have: they become parts of object keys, of paths, of lines of output.

/// The longest name of a cluster, a process or a base backup.
const LONGEST: usize = 100;

/// The longest name of a topic (Kafka's `Topic.MAX_NAME_LENGTH`).
const LONGEST_TOPIC: usize = 249;

/// Returns whether a cluster, a process, a base backup, a hold or a replay may be called that: letters, digits, `.`, `_` and `-`, and no dot
/// first.
pub fn is_name(text: &str) -> bool {
    (1..=LONGEST).contains(&text.len()) && !text.starts_with('.') && is_legal(text)
}

/// Returns whether Kafka lets a topic be called that (`Topic.validate`, org.apache.kafka.common.internals).
pub fn is_topic_name(text: &str) -> bool {
    (1..=LONGEST_TOPIC).contains(&text.len()) && !matches!(text, "." | "..") && is_legal(text)
}

fn is_legal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

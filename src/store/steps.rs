//! What the steps of a write are called for the crash tests: by what the object is.

use object_store::path::Path;

use super::layout;
use crate::error::Result;
use crate::failpoint;
use crate::stream::invariants::SNAPSHOT_EVERY;

/// Passes a step of an object: `put`, `answer` or `delete`.
///
/// # Errors
/// Where the environment says that it fails.
pub(super) fn pass(key: &Path, step: &str) -> Result<()> {
    object(key).map_or(Ok(()), |object| failpoint::pass(&format!("{object}.{step}")))
}

fn object(key: &Path) -> Option<&'static str> {
    let parts: Vec<_> = key.parts().collect();
    let part = |at: usize| parts.get(at).map_or("", |part| part.as_ref());
    let object = match (part(0), part(1)) {
        ("segments", _) if layout::is_history(key) => "history",
        ("segments", "kafka") => "segment",
        ("segments", "postgres") => "wal_segment",
        ("segments", "state") => "state_version",
        ("manifest", _) if parts.iter().any(|part| part.as_ref() == "pages") => "page",
        ("manifest", _) if parts.len() > 4 && part(parts.len() - 2) == "packs" => "pack",
        ("manifest", stream) => match (layout::entry_number(key)?, stream) {
            (0, _) => "begin",
            (number, _) if number.is_multiple_of(SNAPSHOT_EVERY) => "snapshot",
            (_, "kafka") => "checkpoint",
            (_, "postgres") => "wal_checkpoint",
            _ => "state_checkpoint",
        },
        ("backups", _) if key.filename() == Some("backup.json") => "backup_commit",
        ("backups", _) => "backup_part",
        ("holds", _) => "hold",
        ("coverage", _) => "coverage",
        ("replays", _) => "journal",
        _ => return None,
    };
    Some(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{Format, StreamId, TopicGeneration};

    #[test]
    fn an_object_is_called_what_it_is() {
        let topic = TopicGeneration::new("main", "orders.pages", 0);
        let (stream, wal) = (topic.stream(), StreamId::Postgres { system_id: 7 });
        let at = chrono::DateTime::UNIX_EPOCH;
        for (key, name) in [
            (layout::segment(&topic, at, "w", 1, Format::Avro), "segment"),
            (layout::wal_segment(7, 1, 0..9, "w", 1), "wal_segment"),
            (layout::history(7, 2, 0), "history"),
            (layout::entry(&stream, 0), "begin"),
            (layout::entry(&stream, 63), "checkpoint"),
            (layout::entry(&wal, 64), "snapshot"),
            (layout::entry(&wal, 65), "wal_checkpoint"),
            (layout::page(&stream, "aa"), "page"),
            (layout::pack(&stream, 512), "pack"),
            (layout::backup_commit(7, "b"), "backup_commit"),
            (layout::backup_part(7, "b", "base.tar.zst.0"), "backup_part"),
            (layout::topic_hold("main", "r"), "hold"),
            (layout::replay_progress("r"), "journal"),
        ] {
            assert_eq!(object(&key), Some(name), "{key}");
            assert!(failpoint::STORED.contains(&name), "{name}");
        }
    }
}

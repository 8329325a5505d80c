//! The keys, built.

use std::ops::Range;

use chrono::{DateTime, Utc};
use object_store::path::Path;

use crate::stream::{Format, StateOf, StreamId, TopicGeneration};

/// The folder of all clusters' chains.
pub fn topic_chains() -> Path {
    Path::from_iter(["manifest", "kafka"])
}

/// The folder of all Postgres systems' chains.
pub fn postgres_chains() -> Path {
    Path::from_iter(["manifest", "postgres"])
}

/// The folder of the chains of all state, a folder of each kind in it.
pub fn state_chains() -> Path {
    Path::from_iter(["manifest", "state"])
}

/// The folder of a stream's chain.
pub fn chain(stream: &StreamId) -> Path {
    match stream {
        StreamId::Kafka(TopicGeneration { cluster, topic, number }) => {
            Path::from_iter(["manifest", "kafka", cluster.as_str(), &format!("{topic}.{number}")])
        }
        StreamId::Postgres { system_id } => Path::from_iter(["manifest", "postgres", &system_id.to_string()]),
        StreamId::State(of) => Path::from_iter(["manifest", "state", of.kind.name(), of.scope.as_str()]),
    }
}

/// Entry `number` of a stream's chain.
pub fn entry(stream: &StreamId, number: u64) -> Path {
    chain(stream).join(format!("{number:020}.json"))
}

/// The number of the entry that `key` names; none if it names something else.
pub fn entry_number(key: &Path) -> Option<u64> {
    let digits = key.filename()?.strip_suffix(".json")?;
    if digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// The same for an object right in the folder of a chain, and not deeper.
pub fn entry_number_in(chain: &Path, key: &Path) -> Option<u64> {
    let right_in = key.prefix_match(chain).is_some_and(|parts| parts.count() == 1);
    entry_number(key).filter(|_| right_in)
}

/// Returns where an entry lies that stood above a hole of its chain.
pub fn aside(stream: &StreamId, number: u64, sha256: &str) -> Path {
    chain(stream).join("aside").join(format!("{number:020}-{sha256}.json"))
}

/// The stream whose chain lies in `folder`; none if it is not a folder of a chain.
pub fn stream_of(folder: &Path) -> Option<StreamId> {
    folder.as_ref().strip_prefix("manifest/")?.parse().ok()
}

/// The page of a stream's chain with this sha256.
pub fn page(stream: &StreamId, sha256: &str) -> Path {
    chain(stream).join("pages").join(format!("{sha256}.json.zst"))
}

/// The pack of a stream's chain that begins with entry `first`.
pub fn pack(stream: &StreamId, first: u64) -> Path {
    chain(stream).join("packs").join(format!("{first:020}.zst"))
}

/// The first entry of the pack that `key` names, right in the folder of a chain; none if it names something else.
pub fn pack_first_in(chain: &Path, key: &Path) -> Option<u64> {
    let parts: Vec<_> = key.prefix_match(chain)?.collect();
    let [folder, name] = parts.as_slice() else { return None };
    let digits = name.as_ref().strip_suffix(".zst").filter(|_| folder.as_ref() == "packs")?;
    if digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// The `n`th segment of a topic that `writer` sealed, at `sealed`.
pub fn segment(generation: &TopicGeneration, sealed: DateTime<Utc>, writer: &str, n: u64, format: Format) -> Path {
    let name = format!("{}-{writer}-{n}.{}", sealed.format("%H%M%S"), format.name());
    topic_segments(generation).join(format!("date={}", sealed.format("%Y-%m-%d"))).join(name)
}

/// The folder of all segments of a generation of a topic, in the order in which they were sealed.
pub fn topic_segments(generation: &TopicGeneration) -> Path {
    Path::from_iter([
        "segments",
        "kafka",
        &format!("cluster={}", generation.cluster),
        &format!("topic={}", generation.topic),
        &format!("generation={}", generation.number),
    ])
}

/// A version of a state document: the `n`th object of state that `writer` wrote.
pub fn state_version(of: &StateOf, version: u64, writer: &str, n: u64) -> Path {
    state_versions(of).join(format!("{version:020}-{writer}-{n}.json.zst"))
}

/// The folder of all versions of a state document, in the order of their numbers.
pub fn state_versions(of: &StateOf) -> Path {
    Path::from_iter(["segments", "state", of.kind.name(), &format!("scope={}", of.scope)])
}

/// The folder of all segments, of topics, of WAL and of state.
pub fn segments() -> Path {
    Path::from("segments")
}

/// The folder of everything that is archived of a Postgres system but its base backups.
pub fn wal_segments(system_id: u64) -> Path {
    Path::from_iter(["segments", "postgres", &format!("system={system_id}")])
}

/// The `n`th segment of WAL that `writer` wrote, of `lsns` of a timeline.
pub fn wal_segment(system_id: u64, timeline: u32, lsns: Range<u64>, writer: &str, n: u64) -> Path {
    let name = format!("{:016X}-{:016X}-{writer}-{n}.wal.zst", lsns.start, lsns.end);
    wal_segments(system_id).join(format!("timeline={timeline:08X}")).join(name)
}

/// The timeline and the LSNs of the segment of WAL that `key` names; none if it names something else.
pub fn wal_segment_range(key: &Path) -> Option<(u32, Range<u64>)> {
    let name = key.filename()?.strip_suffix(".wal.zst")?;
    let folder = key.parts().rev().nth(1)?;
    let timeline = u32::from_str_radix(folder.as_ref().strip_prefix("timeline=")?, 16).ok()?;
    let mut parts = name.split('-').map(|part| u64::from_str_radix(part, 16).ok());
    Some((timeline, parts.next()??..parts.next()??))
}

/// The history of a timeline, as the server names the file; of a later generation of it than the first with that one's number.
pub fn history(system_id: u64, timeline: u32, generation: u32) -> Path {
    let generation = if generation == 0 { String::new() } else { format!("-{generation}") };
    wal_segments(system_id).join("history").join(format!("{timeline:08X}{generation}.history"))
}

/// The folder of the timelines' histories.
pub fn histories(system_id: u64) -> Path {
    wal_segments(system_id).join("history")
}

/// The timeline of the history that `key` names, and which generation of it; none if it names something else.
pub fn history_timeline(key: &Path) -> Option<(u32, u32)> {
    let name = key.filename()?.strip_suffix(".history")?;
    let (digits, generation) = name.split_once('-').unwrap_or((name, "0"));
    let timeline = u32::from_str_radix(Some(digits).filter(|digits| digits.len() == 8)?, 16).ok()?;
    Some((timeline, generation.parse().ok()?))
}

/// Returns whether `key` is the history of a timeline. No checkpoint names it.
pub fn is_history(key: &Path) -> bool {
    key.as_ref().starts_with("segments/postgres/") && key.extension() == Some("history")
}

/// The folder of a Postgres system's base backups.
pub fn backups(system_id: u64) -> Path {
    Path::from_iter(["backups", "postgres", &format!("system={system_id}")])
}

/// The folder of one base backup.
pub fn backup(system_id: u64, name: &str) -> Path {
    backups(system_id).join(name)
}

/// An object of a base backup.
pub fn backup_part(system_id: u64, name: &str, part: &str) -> Path {
    backup(system_id, name).join(part)
}

/// Returns what makes a base backup count.
pub fn backup_commit(system_id: u64, name: &str) -> Path {
    backup_part(system_id, name, "backup.json")
}

/// What marks a base backup that was expired.
pub const BACKUP_REMOVED: &str = "removed.json";

/// The folder of what is held of a Postgres system.
pub fn holds(system_id: u64) -> Path {
    Path::from_iter(["holds", "postgres", &system_id.to_string()])
}

/// The folder of the store's time as retention of state asks for it.
pub fn state_holds() -> Path {
    Path::from_iter(["holds", "state"])
}

/// The folder of what is read of a cluster's topics.
pub fn topic_holds(cluster: &str) -> Path {
    Path::from_iter(["holds", "kafka", cluster])
}

/// Returns what one reader reads of a cluster's topics.
pub fn topic_hold(cluster: &str, name: &str) -> Path {
    topic_holds(cluster).join(format!("{name}.json"))
}

/// Returns what one reader holds.
pub fn hold(system_id: u64, name: &str) -> Path {
    holds(system_id).join(format!("{name}.json"))
}

/// The folder of what the archivers of a cluster's topics know to be complete.
pub fn topic_coverages(cluster: &str) -> Path {
    Path::from_iter(["coverage", "kafka", cluster])
}

/// The folder of what the archivers of a stream know to be complete; topics of a cluster share one.
pub fn coverages(stream: &StreamId) -> Path {
    match stream {
        StreamId::Kafka(generation) => topic_coverages(&generation.cluster),
        StreamId::Postgres { system_id } => Path::from_iter(["coverage", "postgres", &system_id.to_string()]),
        StreamId::State(of) => Path::from_iter(["coverage", "state", of.kind.name(), of.scope.as_str()]),
    }
}

/// Returns what `writer` knows to be complete, in that folder.
pub fn coverage(folder: &Path, writer: &str) -> Path {
    folder.clone().join(format!("{writer}.json"))
}

/// Returns what the last drill of a name has found.
pub fn drill(name: &str) -> Path {
    Path::from_iter(["drills", &format!("{name}.json")])
}

/// Returns what a drill of a name has made on servers that are not its own.
pub fn drill_made(name: &str) -> Path {
    Path::from_iter(["drills", "made", &format!("{name}.json")])
}

/// Returns what a replay was begun as.
pub fn replay_plan(id: &str) -> Path {
    Path::from_iter(["replays", id, "plan.json"])
}

/// Returns how the topics are set that a replay creates.
pub fn replay_topics(id: &str) -> Path {
    Path::from_iter(["replays", id, "topics.json"])
}

/// Returns how far a replay has come, a few seconds late.
pub fn replay_progress(id: &str) -> Path {
    Path::from_iter(["replays", id, "progress.json"])
}

/// That a replay has sent everything.
pub fn replay_finished(id: &str) -> Path {
    Path::from_iter(["replays", id, "finished.json"])
}

/// The folder of which offsets the records of a replay have in the target.
pub fn replay_maps(id: &str) -> Path {
    Path::from_iter(["replays", id, "map"])
}

/// A piece of which offsets the records of a replay have in the target.
pub fn replay_map(id: &str, number: u64) -> Path {
    replay_maps(id).join(format!("{number:020}.json"))
}

/// The number of a piece of such a map; none of what is no piece.
pub fn replay_map_number(key: &Path) -> Option<u64> {
    let digits = key.filename()?.strip_suffix(".json").filter(|digits| digits.len() == 20)?;
    digits.parse().ok()
}

/// What the marks of an open transaction have no room for, under the name that they tell.
pub fn replay_open_map(id: &str, token: &str) -> Path {
    replay_maps(id).join(format!("open-{token}.json"))
}

/// Which positions of consumer groups a replay sets.
pub fn replay_groups(id: &str) -> Path {
    Path::from_iter(["replays", id, "groups.json"])
}

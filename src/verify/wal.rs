//! Whether the archived WAL of a Postgres system is what its checkpoints say.
//!
//! Segments are asked for their facts one by one, like those of topics. With `deep` the bytes of each timeline are also
//! scanned in their order, over the ends of segments: pages, the CRC of every record, and the number and the
//! times of commits.

use std::collections::{BTreeMap, HashSet};

use super::{Check, Damage, DamageKind, Finding};
use crate::error::{Kind, Result};
use crate::manifest::{ChainScan, ScanStep};
use crate::segment::wal::{Seen, WalReader, WalScanner, parse_history};
use crate::store::{Store, layout};
use crate::stream::{BackupRef, Body, CountedBackups, Lsn, SegmentRef, StreamId, System};

/// Objects that later entries of a chain have retired.
#[derive(Debug, Default)]
pub(super) struct Retired {
    replaced: HashSet<String>,
    /// Below these positions of a timeline, in that generation of it, nothing is needed.
    floors: BTreeMap<(i32, u32), i64>,
    /// The timelines that were abandoned, and which generation of each.
    abandoned: HashSet<(i32, u32)>,
    /// The base backups that count, as far as the chain can be read; none where it never said.
    pub(super) backups: Option<CountedBackups>,
    /// The facts of the system.
    pub(super) system: Option<System>,
}

impl Retired {
    /// Reads a chain for what it retires. What is damaged is told by the scan after this one.
    pub(super) async fn of(store: &Store, stream: &StreamId) -> Result<Self> {
        let mut retired = Self::default();
        let mut scan = ChainScan::new(store, stream).await?;
        while let Some(step) = scan.next().await? {
            let ScanStep::Entry { checkpoint, .. } = step else { continue };
            if let Body::Snapshot(snapshot) = &checkpoint.body
                && let Some(backups) = &snapshot.backups
            {
                retired.backups = Some(backups.iter().map(BackupRef::counted).collect());
            }
            match checkpoint.body {
                Body::Merge(merge) => retired.replaced.extend(merge.replaces),
                Body::Expire(expire) => {
                    retired.floors.extend(
                        expire.ranges.iter().map(|expired| ((expired.partition, expired.generation), expired.before)),
                    );
                }
                Body::Backups(entered) => {
                    let backups = retired.backups.get_or_insert_default();
                    entered.removed.iter().for_each(|name| drop(backups.remove(name)));
                    backups.extend(entered.added.iter().map(BackupRef::counted));
                }
                Body::Abandon(abandon) => drop(retired.abandoned.insert((abandon.partition, abandon.generation))),
                body => retired.system = body.begin().and_then(|begin| begin.system().copied()).or(retired.system),
            }
        }
        Ok(retired)
    }

    /// Whether a segment is no longer needed, so that its object may be gone.
    pub(super) fn has(&self, segment: &SegmentRef) -> bool {
        let below = |range: &crate::stream::PartitionRange| {
            let timeline = (range.partition, segment.generation);
            self.abandoned.contains(&timeline) || self.floors.get(&timeline).is_some_and(|floor| range.end <= *floor)
        };
        self.replaced.contains(&segment.object) || segment.partitions.iter().all(below)
    }
}

/// What a segment's file says about itself must be what its checkpoint says; opening it checks range and hash.
pub(super) async fn facts_agree(store: &Store, system_id: u64, segment: &SegmentRef) -> Result<(), Finding> {
    let reader = WalReader::open(store, segment).await.map_err(Finding::of)?;
    let found = reader.facts().system.system_id;
    if found != system_id {
        return Err(contradiction(format!("its facts say that it is of the system {found}")));
    }
    if reader.facts().len() != segment.raw_bytes {
        let message =
            format!("its facts say {} bytes of WAL, the checkpoint says {}", reader.facts().len(), segment.raw_bytes);
        return Err(contradiction(message));
    }
    Ok(())
}

fn contradiction(detail: String) -> Finding {
    Finding::Damage(DamageKind::Contradiction, detail)
}

/// Walks through all WAL of a system, timeline by timeline. The segments stand in any order.
pub(super) async fn scan(system: System, mut checks: Vec<Check>) -> Result<Vec<Damage>> {
    checks.sort_by_key(|check| check.segment.partitions.first().map(|range| (range.partition, range.start)));
    let mut damages = Vec::new();
    let mut scanner: Option<((i32, u32), WalScanner)> = None;
    for check in &checks {
        let Some(range) = check.segment.partitions.first() else { continue };
        let of = (range.partition, check.segment.generation);
        let continued = scanner
            .take()
            .filter(|(timeline, scanner)| (*timeline, scanner.position().position()) == (of, range.start));
        let mut current = match continued {
            Some((_, scanner)) => scanner,
            None => {
                let timeline = range.partition.cast_unsigned();
                let switch = switch_of(&check.store, system.system_id, (timeline, check.segment.generation)).await?;
                match WalScanner::new(system, timeline, Lsn::at(range.start), switch) {
                    Ok(scanner) => scanner,
                    Err(error) => {
                        damages.push(check.damage(DamageKind::Unreadable, error.to_string()));
                        continue;
                    }
                }
            }
        };
        // A scan that begins within a page does not see what lies before the next one.
        let whole = current.verified().is_some() || range.start.cast_unsigned().is_multiple_of(8192);
        match through(check, &mut current).await {
            Ok(seen) => {
                damages.extend(
                    counts_agree(&check.segment, &seen)
                        .filter(|_| whole)
                        .map(|detail| check.damage(DamageKind::Contradiction, detail)),
                );
                scanner = Some((of, current));
            }
            Err(Finding::Damage(kind, detail)) => damages.push(check.damage(kind, detail)),
            Err(Finding::Trouble(error)) => return Err(error),
        }
    }
    Ok(damages)
}

/// Where a timeline left its parent; a history that is missing or damaged takes a part of the check away, no more.
async fn switch_of(store: &Store, system_id: u64, (timeline, generation): (u32, u32)) -> Result<Lsn> {
    if timeline == 1 {
        return Ok(Lsn(0));
    }
    let text = match store.get(&layout::history(system_id, timeline, generation)).await {
        Err(error) if error.kind() == Kind::Corrupt => None,
        text => text?,
    };
    let switches = text.and_then(|text| parse_history(timeline, &text).ok());
    Ok(switches.and_then(|switches| Some(switches.last()?.at)).unwrap_or(Lsn(u64::MAX)))
}

async fn through(check: &Check, scanner: &mut WalScanner) -> Result<Seen, Finding> {
    let reader = match WalReader::open(&check.store, &check.segment).await {
        Ok(reader) => reader,
        // Told already, when its hash was taken.
        Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound | Kind::Unsupported) => {
            return Err(Finding::Damage(DamageKind::Unreadable, error.to_string()));
        }
        Err(error) => return Err(Finding::Trouble(error)),
    };
    scanner.feed(&reader.all().map_err(Finding::of)?).map_err(|error| contradiction(error.to_string()))?;
    Ok(scanner.take())
}

/// The commits of a segment are those that its checkpoint counts.
fn counts_agree(segment: &SegmentRef, seen: &Seen) -> Option<String> {
    let range = segment.partitions.first()?;
    let said = (range.records, range.min_timestamp, range.max_timestamp);
    let found = (seen.commits, seen.first_commit, seen.last_commit);
    if said != found {
        return Some(format!("it holds {found:?} commits and their times, its checkpoint says {said:?}"));
    }
    // One from before this was kept says nothing.
    let said = segment.minimal.map(|one| (Lsn::at(one.first), Lsn::at(one.last)));
    (said.is_some() && said != seen.minimal)
        .then(|| format!("its checkpoint has wal_level = minimal at {said:?}, and it is at {:?}", seen.minimal))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chrono::DateTime;

    use super::*;
    use crate::manifest::{Chain, Change};
    use crate::segment::wal::{WalFacts, seal};
    use crate::stream::{Begin, Merge, Retired as Sum};
    use crate::verify::{Report, Seen as Progress, verify};

    const SYSTEM: System = System { system_id: 7, wal_segment_size: 16 << 20, server_version: 15 };

    fn now() -> chrono::DateTime<chrono::Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).expect("a time")
    }

    /// An archive with two segments of bytes that are no WAL, beginning with a page that says so.
    async fn archive() -> (Store, Chain, Vec<SegmentRef>) {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        let stream = StreamId::Postgres { system_id: 7 };
        let mut chain = Chain::begin(&store, &stream, Begin::Postgres(SYSTEM), "w", now()).await.expect("it begins");
        let mut segments = Vec::new();
        for n in 0..2_u64 {
            segments.push(stored(&store, 8_192 * n..8_192 * (n + 1), n).await);
        }
        let change = Change { segments: segments.clone(), ..Change::default() };
        chain.commit(&change, "w", now()).await.expect("it is committed");
        (store, chain, segments)
    }

    async fn stored(store: &Store, lsns: std::ops::Range<u64>, n: u64) -> SegmentRef {
        let key = layout::wal_segment(7, 1, lsns.clone(), "w", n);
        let wal = vec![7; (lsns.end - lsns.start) as usize];
        let facts = WalFacts::new(SYSTEM, 1, Lsn(lsns.start)..Lsn(lsns.end), "w", now());
        let (segment, object) = seal(&key, &facts, &wal, &Seen::default(), 1).expect("it is sealed");
        store.put(&key, object).await.expect("it is stored");
        segment
    }

    async fn report(store: &Store, deep: bool) -> Report {
        verify(store, deep, &Arc::new(Progress::default())).await.expect("the store answers")
    }

    #[tokio::test]
    async fn bytes_that_are_no_wal_are_found_by_a_deep_look() {
        let (store, _, segments) = archive().await;
        assert_eq!(report(&store, false).await.errors, []);
        let errors = report(&store, true).await.errors;
        let first = errors.iter().find(|damage| damage.object == segments[0].object).expect("it is told");
        assert_eq!(first.kind, DamageKind::Contradiction);
        assert!(first.detail.contains("the page of WAL at 0/0 cannot be right: its magic is 0707"), "{}", first.detail);
    }

    #[tokio::test]
    async fn what_is_missing_is_told_unless_a_merge_has_replaced_it() {
        let (store, mut chain, segments) = archive().await;
        store.delete(&layout::object(&segments[0].object).expect("a key")).await.expect("it is deleted");
        let errors = report(&store, false).await.errors;
        assert_eq!(errors.iter().map(|damage| damage.kind).collect::<Vec<_>>(), [DamageKind::Missing]);
        assert_eq!(errors[0].ranges, [(1, 0, 8_192, 0)]);
        let merge = Merge {
            segment: stored(&store, 0..16_384, 9).await,
            replaces: segments.iter().map(|segment| segment.object.clone()).collect(),
            retired: Sum::of(&segments),
            decided: now(),
        };
        assert!(chain.merge(&merge, "m", now()).await.expect("the store answers"));
        let report = report(&store, false).await;
        assert_eq!((report.errors, report.segments, report.orphans), (vec![], 1, 0));
    }
}

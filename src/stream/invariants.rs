//! The rules of a chain, each a named predicate with a message that names numbers.
//!
//! A writer asks them before it writes, a reader asks them of what it reads, `verify` asks them of the whole archive:
//! there is one place that says what a sound chain is. Nothing here does I/O.

use std::collections::BTreeSet;
use std::fmt;

use super::{
    Abandon, Begin, Body, Close, Entered, Expire, Expired, Format, Gap, Merge, MinimalWal, PageRef, PartitionRange,
    Progress, Retired, SegmentRef, Snapshot, StreamId, Totals, unneeded,
};
use crate::error::{Error, Kind};

/// Every entry whose number is a positive multiple of this is a snapshot, and a page lists this many of what is below
/// it. It bounds both the entries that a reader reads after the last snapshot and the pages that a snapshot names.
pub const SNAPSHOT_EVERY: u64 = 64;

/// So many entries are in a pack, from a multiple of that on: with all snapshots and pages of them.
pub const PACKED_TOGETHER: u64 = 8 * SNAPSHOT_EVERY;

/// The highest level of a page: 64 to the power of 9 entries are more than a chain can ever have.
const MAX_LEVEL: u8 = 8;

/// A rule that is broken, and by which numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The rule: the name of the predicate.
    pub rule: &'static str,
    /// What is wrong, in words.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.detail, self.rule)
    }
}

impl std::error::Error for Violation {}

impl Violation {
    /// The violation as an error of the object that holds the broken rule.
    pub fn in_object(self, object: impl fmt::Display) -> Error {
        Error::new(Kind::Corrupt, format!("{object} breaks a rule of its chain")).source(self).hint(
            "restore the object and the one before it from a copy of the archive; `tidelog verify` lists all damage",
        )
    }
}

/// What a predicate answers.
pub type Checked = Result<(), Violation>;

fn holds(rule: &'static str, ok: bool, detail: impl FnOnce() -> String) -> Checked {
    if ok { Ok(()) } else { Err(Violation { rule, detail: detail() }) }
}

/// A range covers at least one offset, and none below 0.
pub fn range_is_not_empty(range: &PartitionRange) -> Checked {
    holds("range_is_not_empty", 0 <= range.start && range.start < range.end, || {
        format!("partition {}: [{}, {}) is not a range of offsets", range.partition, range.start, range.end)
    })
}

/// A range holds at most one record an offset.
pub fn records_fit_range(range: &PartitionRange) -> Checked {
    let offsets = range.end.saturating_sub(range.start);
    holds("records_fit_range", u64::try_from(offsets).is_ok_and(|offsets| range.records <= offsets), || {
        format!(
            "partition {}: {} records cannot lie in the {offsets} offsets [{}, {})",
            range.partition, range.records, range.start, range.end
        )
    })
}

/// A range has timestamps if and only if it has records, and the least is not above the greatest.
pub fn timestamps_fit_records(range: &PartitionRange) -> Checked {
    let ok = match (range.min_timestamp, range.max_timestamp) {
        (Some(min), Some(max)) => range.records > 0 && min <= max,
        (None, None) => range.records == 0,
        _ => false,
    };
    holds("timestamps_fit_records", ok, || {
        format!(
            "partition {}: [{}, {}) has {} records, least timestamp {:?} and greatest {:?}",
            range.partition, range.start, range.end, range.records, range.min_timestamp, range.max_timestamp
        )
    })
}

/// A segment covers at least one partition, and each only once: a reader finds a partition's rows in one range.
pub fn partition_once(segment: &SegmentRef) -> Checked {
    let mut seen = BTreeSet::new();
    let twice = segment.partitions.iter().find(|range| !seen.insert(range.partition));
    holds("partition_once", twice.is_none() && !seen.is_empty(), || match twice {
        Some(range) => format!("{}: partition {} appears twice", segment.object, range.partition),
        None => format!("{}: it covers no partition", segment.object),
    })
}

/// A segment tells the last record of a partition that it covers with records, each once.
pub fn last_record_is_covered(segment: &SegmentRef) -> Checked {
    let mut seen = BTreeSet::new();
    let odd = segment.last.iter().find(|last| {
        let holds = |range: &&PartitionRange| {
            range.partition == last.partition && range.records > 0 && (range.start..range.end).contains(&last.offset)
        };
        !seen.insert(last.partition) || last.leader_epoch < 0 || !segment.partitions.iter().any(|range| holds(&range))
    });
    holds("last_record_is_covered", odd.is_none(), || format!("{}: {odd:?} is no record of it", segment.object))
}

/// What a segment tells of `wal_level = minimal` are records that end in it.
pub fn minimal_is_covered(segment: &SegmentRef) -> Checked {
    let fits = |one: &MinimalWal| {
        let holds = |range: &PartitionRange| range.partition == one.partition && one.last < range.end;
        segment.format == Format::Wal && 0 <= one.first && one.first <= one.last && segment.partitions.iter().any(holds)
    };
    let odd = segment.minimal.filter(|one| !fits(one));
    holds("minimal_is_covered", odd.is_none(), || format!("{}: {odd:?} is no record of it", segment.object))
}

/// A sha256 is written as 64 lower-case hexadecimal digits.
pub fn hash_is_hex(of: &str, sha256: &str) -> Checked {
    let ok = sha256.len() == 64 && sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    holds("hash_is_hex", ok, || format!("{of}: {sha256:?} is not a sha256"))
}

/// A gap is a range.
pub fn gap_is_not_empty(gap: &Gap) -> Checked {
    range_is_not_empty(&gap.range())
}

/// A range without rows says so.
pub fn empty_has_no_records(range: &PartitionRange) -> Checked {
    holds("empty_has_no_records", range.records == 0, || {
        format!(
            "partition {}: [{}, {}) is listed as empty and has {} records",
            range.partition, range.start, range.end, range.records
        )
    })
}

/// An entry that moves partitions moves at least one.
pub fn moves_something(body: &Body) -> Checked {
    let moves = match body {
        Body::Begin(_) | Body::Snapshot(_) | Body::Merge(_) | Body::Abandon(_) | Body::Close(_) => true,
        Body::Expire(expire) => !expire.ranges.is_empty(),
        Body::Backups(entered) => !(entered.added.is_empty() && entered.removed.is_empty()),
        Body::Append(change) => !(change.segments.is_empty() && change.empty.is_empty()),
        Body::Gap { gaps } => !gaps.is_empty(),
    };
    holds("moves_something", moves, || "the entry holds no segment, no empty range and no gap".into())
}

/// Everything that can be said of an entry without knowing the entries before.
pub fn body_is_sound(body: &Body) -> Checked {
    moves_something(body)?;
    for segment in body.segments() {
        partition_once(segment)?;
        hash_is_hex(&segment.object, &segment.sha256)?;
        segment.partitions.iter().try_for_each(range_is_sound)?;
        last_record_is_covered(segment)?;
        minimal_is_covered(segment)?;
    }
    for range in body.empty() {
        range_is_sound(range)?;
        empty_has_no_records(range)?;
    }
    for backup in body.entered().into_iter().flat_map(|entered| &entered.added) {
        hash_is_hex(&backup.name, &backup.sha256)?;
    }
    body.merge().map_or(Ok(()), merge_is_sound)?;
    body.expire().map_or(Ok(()), expires_partition_once)?;
    body.gaps().iter().try_for_each(gap_is_not_empty)
}

fn range_is_sound(range: &PartitionRange) -> Checked {
    range_is_not_empty(range)?;
    records_fit_range(range)?;
    timestamps_fit_records(range)
}

/// A merge puts one segment into the place of at least two others, which add up to it. One of WAL is of one timeline.
pub fn merge_is_sound(merge: &Merge) -> Checked {
    let Merge { segment, replaces, retired, .. } = merge;
    partition_once(segment)?;
    hash_is_hex(&segment.object, &segment.sha256)?;
    segment.partitions.iter().try_for_each(range_is_sound)?;
    last_record_is_covered(segment)?;
    let distinct: BTreeSet<&String> = replaces.iter().filter(|object| **object != segment.object).collect();
    let same = (retired.segments, retired.records, retired.raw_bytes)
        == (replaces.len() as u64, segment.records(), segment.raw_bytes);
    let whole = merge.is_of_records() || (segment.format == Format::Wal && segment.partitions.len() == 1);
    let ok = whole && distinct.len() == replaces.len();
    holds("merge_is_sound", ok && same && replaces.len() >= 2, || {
        format!("{}: it cannot take the place of {} objects with {retired:?}", segment.object, replaces.len())
    })
}

/// What a merge replaces lies next to each other, and is all that it covers. Between records may lie offsets that never had one,
/// but none that are lost: those are a gap, and told by no segment.
pub fn merge_replaces_its_range(merge: &Merge, replaced: &[SegmentRef], gaps: &[Gap]) -> Checked {
    let (rule, object) = ("merge_replaces_its_range", &merge.segment.object);
    let named = replaced.iter().map(|segment| &segment.object).eq(&merge.replaces);
    holds(rule, named, || format!("{object}: what it replaces is not what covers its range"))?;
    for covers in &merge.segment.partitions {
        let mut next = covers.start;
        let of = |segment: &&SegmentRef| segment.partitions.iter().any(|range| range.partition == covers.partition);
        let mut is_first = true;
        for segment in replaced.iter().filter(of) {
            let range = segment.partitions.iter().find(|range| range.partition == covers.partition);
            let may_leave_out = merge.is_of_records() && !is_first;
            let follows = |range: &&PartitionRange| range.start == next || (may_leave_out && next < range.start);
            let range = range.filter(follows);
            holds(rule, range.is_some(), || format!("{object}: {} does not begin at {next}", segment.object))?;
            (next, is_first) = (range.map_or(next, |range| range.end), false);
        }
        holds(rule, next == covers.end, || {
            format!("{object}: what it replaces of partition {} ends at {next}", covers.partition)
        })?;
        let is_lost =
            |gap: &&Gap| gap.partition == covers.partition && gap.start < covers.end && covers.start < gap.end;
        let lost = gaps.iter().find(is_lost);
        holds(rule, lost.is_none(), || format!("{object}: {lost:?} lies in it"))?;
    }
    let covered = |range: &PartitionRange| merge.segment.partitions.iter().any(|at| at.partition == range.partition);
    let odd = replaced.iter().find(|segment| !segment.partitions.iter().all(covered));
    holds(rule, odd.is_none(), || format!("{object}: it does not cover all of {odd:?}"))?;
    let retired = Retired::of(replaced);
    holds(rule, retired == merge.retired, || format!("{object}: what it replaces adds up to {retired:?}"))
}

/// A merge covers what is archived and was not expired.
pub fn merge_within_position(progress: &Progress, merge: &Merge) -> Checked {
    merge.segment.partitions.iter().try_for_each(|range| {
        let within =
            progress.position(range.partition).is_some_and(|at| at.start <= range.start && range.end <= at.end);
        holds("merge_within_position", within, || {
            format!("{}: [{}, {}) is not what is archived", merge.segment.object, range.start, range.end)
        })
    })
}

/// Whatever an entry says of a timeline, it says of the generation of it that is archived now: a writer that has not heard that it
/// was abandoned adds nothing to the next one.
pub fn generations_are_current(progress: &Progress, body: &Body) -> Checked {
    let odd = body.generations().find(|(partition, generation)| progress.generation(*partition) != *generation);
    holds("generations_are_current", odd.is_none(), || {
        format!("{odd:?} is no timeline and generation of it that is archived now")
    })
}

/// What is abandoned is all that is archived of the timeline.
pub fn abandons_position(progress: &Progress, abandon: &Abandon) -> Checked {
    let position = progress.position(abandon.partition);
    let said = (abandon.start, abandon.end);
    let ok = position.map_or(abandon.start == abandon.end, |at| said == (at.start, at.end));
    holds("abandons_position", ok, || format!("{said:?} is not what is archived, {position:?}"))
}

/// A base backup is entered once, and expired once, and not before what builds on it.
pub fn backups_fit(progress: &Progress, entered: &Entered) -> Checked {
    let known = |name: &String| progress.backups().is_some_and(|known| known.contains_key(name));
    let mut seen = BTreeSet::new();
    let added = entered.added.iter().map(|backup| &backup.name);
    let odd = added.clone().find(|name| known(name)).or_else(|| entered.removed.iter().find(|name| !known(name)));
    let odd = odd.or_else(|| added.chain(&entered.removed).find(|name| !seen.insert(*name)));
    holds("backups_fit", odd.is_none(), || format!("the base backup {odd:?} is named again, or is none that counts"))?;
    let free = progress.backups().map(|known| unneeded(known, &entered.removed));
    let needed = entered.removed.iter().find(|name| free.as_ref().is_some_and(|free| !free.contains(name)));
    holds("backups_fit", needed.is_none(), || {
        format!("the base backup {needed:?} is expired, and one that stays builds on it")
    })
}

/// What an abandoned timeline retires are its segments.
pub fn abandon_adds_up(abandon: &Abandon, retired: &Retired) -> Checked {
    holds("abandon_adds_up", abandon.retired == *retired, || {
        format!("{:?} is said to be abandoned, {retired:?} is what the timeline has", abandon.retired)
    })
}

/// After a generation has ended nothing is added to it, and it ends once.
pub fn nothing_moves_after_close(progress: &Progress, body: &Body) -> Checked {
    let moves = matches!(body, Body::Append(_) | Body::Gap { .. } | Body::Close(_));
    holds("nothing_moves_after_close", progress.closed().is_none() || !moves, || {
        format!("an entry of the kind {:?} follows the end of the generation", body.kind())
    })
}

/// The end of a generation names each partition once, and no offset behind what is archived.
pub fn cuts_within_position(progress: &Progress, close: &Close) -> Checked {
    let mut seen = BTreeSet::new();
    let odd = close.cuts.iter().find(|cut| {
        let end = progress.position(cut.partition).map(|range| range.end);
        !seen.insert(cut.partition) || cut.offset < 0 || end.is_none_or(|end| end < cut.offset)
    });
    holds("cuts_within_position", odd.is_none(), || format!("{odd:?} does not fit what is archived"))
}

/// An expiry names each partition once.
pub fn expires_partition_once(expire: &Expire) -> Checked {
    let mut seen = BTreeSet::new();
    let twice = expire.ranges.iter().find(|range| !seen.insert(range.partition));
    holds("expires_partition_once", twice.is_none(), || format!("{twice:?} names its partition again"))
}

/// The beginning of a partition moves forward, and not beyond its end.
pub fn expires_forward(progress: &Progress, expired: &Expired) -> Checked {
    let position = progress.position(expired.partition);
    let ok =
        position.is_some_and(|at| at.start == expired.from && at.start < expired.before && expired.before <= at.end);
    holds("expires_forward", ok, || format!("{expired:?} does not fit what is archived, {position:?}"))
}

/// What an expiry retires is what lies wholly before the new beginnings.
pub fn expire_adds_up(expire: &Expire, retired: &Retired) -> Checked {
    holds("expire_adds_up", expire.retired == *retired, || {
        format!("{:?} is said to be expired, {retired:?} is what lies before", expire.retired)
    })
}

/// A range starts where the last one of its partition ended. The first of a partition starts anywhere.
pub fn starts_where_partition_ended(before: Option<&PartitionRange>, range: &PartitionRange) -> Checked {
    let Some(before) = before else { return Ok(()) };
    holds("starts_where_partition_ended", before.end == range.start, || {
        let what = if range.start > before.end { "a hole" } else { "an overlap" };
        format!(
            "partition {}: [{}, {}) follows a range that ended at {}: {what}",
            range.partition, range.start, range.end, before.end
        )
    })
}

/// Entries are numbered from 0 without a hole.
pub fn number_follows(before: Option<u64>, number: u64) -> Checked {
    let expected = before.map_or(0, |before| before + 1);
    holds("number_follows", number == expected, || format!("entry {number} stands where entry {expected} belongs"))
}

/// An entry names the sha256 of the bytes of the entry before it; the first names none.
pub fn links_to_previous(before: Option<&str>, link: Option<&str>) -> Checked {
    holds("links_to_previous", before == link, || {
        let shown = |hash: Option<&str>| hash.map_or("none".to_owned(), str::to_owned);
        format!("it names {} as the sha256 of the entry before, which is {}", shown(link), shown(before))
    })
}

/// A chain begins once, with its first entry.
pub fn begins_first(number: u64, body: &Body) -> Checked {
    holds("begins_first", (number == 0) == matches!(body, Body::Begin(_)), || {
        format!("entry {number} is of the kind {:?}; `begin` is entry 0 and no other", body.kind())
    })
}

/// A chain begins with the facts of what it is named after.
pub fn begin_fits_stream(stream: &StreamId, begin: &Begin) -> Checked {
    let fits = match (stream, begin) {
        (StreamId::Kafka(_), Begin::Topic { partitions, start_offsets, .. }) => {
            let each = i32::try_from(start_offsets.len()).is_ok_and(|count| count == *partitions);
            start_offsets.is_empty() || (each && start_offsets.iter().flatten().all(|start| *start >= 0))
        }
        (StreamId::State(of), Begin::State { state, .. }) => of.kind == *state,
        (StreamId::Postgres { system_id }, Begin::Postgres(system)) => {
            // Every size that initdb takes (--wal-segsize: a power of two from 1 to 1024 MB).
            let size = system.wal_segment_size;
            *system_id == system.system_id && size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size)
        }
        _ => false,
    };
    holds("begin_fits_stream", fits, || format!("{begin:?} is no beginning of {stream}"))
}

/// Segments of a topic hold records; those of a Postgres system hold WAL; those of state hold one version each, and nothing of it
/// is lost or empty, and nothing merged.
pub fn body_fits_stream(stream: &StreamId, body: &Body) -> Checked {
    let fits = |segment: &&SegmentRef| match stream {
        StreamId::Kafka(_) => matches!(segment.format, Format::Parquet | Format::Avro),
        StreamId::Postgres { .. } => segment.format == Format::Wal,
        StreamId::State(_) => segment.format == Format::State && is_one_version(segment),
    };
    let segments = body.segments().iter().chain(body.merge().map(|merge| &merge.segment));
    let odd = segments.into_iter().find(|segment| !fits(segment));
    let is_of_wal = body.abandon().is_some() || body.entered().is_some();
    let own = match stream {
        StreamId::Kafka(_) => !is_of_wal,
        StreamId::Postgres { .. } => body.close().is_none(),
        StreamId::State(_) => {
            let loses = !body.gaps().is_empty() || !body.empty().is_empty();
            !is_of_wal && body.merge().is_none() && body.close().is_none() && !loses
        }
    };
    holds("body_fits_stream", odd.is_none() && own, || match odd {
        Some(odd) => format!("{}: a segment of the format {:?} does not belong here", odd.object, odd.format.name()),
        None => format!("{stream} has no entry of the kind {:?}", body.kind()),
    })?;
    body.begin().map_or(Ok(()), |begin| begin_fits_stream(stream, begin))
}

/// Whether a segment is one version of a state document.
fn is_one_version(segment: &SegmentRef) -> bool {
    let is_one = |range: &PartitionRange| range.partition == 0 && range.end == range.start + 1 && range.records == 1;
    matches!(segment.partitions.as_slice(), [range] if range.start < i64::MAX && is_one(range))
}

/// Snapshots stand at the positive multiples of [`SNAPSHOT_EVERY`] and nowhere else, so that they are found by number.
pub fn snapshot_at_multiple(number: u64, body: &Body) -> Checked {
    holds("snapshot_at_multiple", is_snapshot_number(number) == matches!(body, Body::Snapshot(_)), || {
        format!(
            "entry {number} is of the kind {:?}; a snapshot is every positive multiple of {SNAPSHOT_EVERY} and no other",
            body.kind()
        )
    })
}

/// Whether entry `number` is a snapshot.
pub fn is_snapshot_number(number: u64) -> bool {
    number > 0 && number.is_multiple_of(SNAPSHOT_EVERY)
}

/// A snapshot repeats what the chain's first entry says.
pub fn snapshot_repeats_begin(begin: &Begin, snapshot: &Snapshot) -> Checked {
    holds("snapshot_repeats_begin", *begin == snapshot.begin, || {
        format!("it says {:?}, and the chain began with {begin:?}", snapshot.begin)
    })
}

/// A snapshot repeats the sum of the entries before it.
pub fn snapshot_repeats_progress(progress: &Progress, snapshot: &Snapshot) -> Checked {
    let written = Progress::from_snapshot(snapshot);
    let odd = snapshot.positions.iter().find(|range| progress.position(range.partition) != Some(range));
    holds("snapshot_repeats_progress", progress.is_written_as(&written), || match odd {
        Some(range) => {
            format!("partition {} is written as {range:?}, the entries before say otherwise", range.partition)
        }
        None => format!(
            "{} positions and {:?} are written, the entries before add up to {} positions and {:?}",
            snapshot.positions.len(),
            snapshot.totals,
            progress.positions().len(),
            progress.totals()
        ),
    })
}

/// What a snapshot says to be packed are whole packs of entries before it, and no fewer than the snapshot before says.
pub fn packs_are_whole(number: u64, before: u64, snapshot: &Snapshot) -> Checked {
    let packed = snapshot.packed;
    let whole = packed.is_multiple_of(PACKED_TOGETHER) && (before..=number).contains(&packed);
    holds("packs_are_whole", whole, || {
        format!("the entries before {packed} are said to be in packs of {PACKED_TOGETHER}, before {before} they were")
    })
}

/// The pages of snapshot `number` cover the entries `0..number` without hole or overlap, as a counter of base 64 does:
/// the highest level first, at most 63 of a level, each of a level as long as every other.
pub fn pages_cover_entries(number: u64, pages: &[PageRef]) -> Checked {
    let rule = "pages_cover_entries";
    let mut next = 0;
    let mut level = MAX_LEVEL;
    let mut of_level = 0;
    for page in pages {
        of_level = if page.level == level { of_level + 1 } else { 1 };
        holds(rule, page.level <= level && of_level < SNAPSHOT_EVERY, || {
            format!("page {} is the {of_level}th of level {}, after a page of level {level}", page.sha256, page.level)
        })?;
        level = page.level;
        page_is_sound(page)?;
        holds(rule, page.first == next, || {
            format!("page {} begins with entry {}, and entry {next} belongs there", page.sha256, page.first)
        })?;
        next = page.last + 1;
    }
    holds(rule, next == number, || format!("the pages cover the entries before {next}, the snapshot is entry {number}"))
}

/// A page covers as many entries as its level says, and is named by a sha256.
pub fn page_is_sound(page: &PageRef) -> Checked {
    hash_is_hex("page", &page.sha256)?;
    let span = SNAPSHOT_EVERY.checked_pow(u32::from(page.level) + 1);
    let covers = page.last.checked_sub(page.first).and_then(|distance| distance.checked_add(1));
    holds("page_is_sound", page.level <= MAX_LEVEL && covers.is_some() && covers == span, || {
        format!("page {} of level {} covers the entries {}..={}", page.sha256, page.level, page.first, page.last)
    })
}

/// A page above level 0 lists as many pages of the level below as a counter of base 64 has, without hole or overlap.
pub fn page_lists_pages(level: u8, first: u64, pages: &[PageRef]) -> Checked {
    let rule = "page_lists_pages";
    let expected = if level == 0 { 0 } else { SNAPSHOT_EVERY };
    holds(rule, pages.len() as u64 == expected, || {
        format!("a page of level {level} lists {} pages instead of {expected}", pages.len())
    })?;
    let mut next = first;
    for page in pages {
        page_is_sound(page)?;
        holds(rule, page.level + 1 == level && page.first == next, || {
            format!("page {} of level {} begins with entry {}, not {next}", page.sha256, page.level, page.first)
        })?;
        next = page.last.saturating_add(1);
    }
    Ok(())
}

/// What a page lists adds up to what its reference says.
pub fn totals_add_up(of: &str, said: &Totals, found: &Totals) -> Checked {
    holds("totals_add_up", said == found, || format!("{of}: {said:?} is said, {found:?} is what it lists"))
}

/// A page of level 0 lists exactly what its entries add.
pub fn page_lists_entries(first: u64, last: u64, same: bool) -> Checked {
    holds("page_lists_entries", same, || format!("it does not list what the entries {first}..={last} add"))
}

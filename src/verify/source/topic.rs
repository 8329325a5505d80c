//! One topic, archive against source.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use super::account::{Account, Ends, Fate, Finding, Ledger, Own, account};
use super::lineage::{Lineage, Part};
use super::pieces::{pieces, within};
use super::rows::{self, Stands};
use crate::config::{Isolation, Kafka};
use crate::error::{Error, Kind, Result};
use crate::manifest::{Chain, Selection};
use crate::segment::{Filter, SegmentReader};
use crate::source::kafka::{Cluster, OffsetAt, RangeReader, TopicPartition};
use crate::store::{Store, layout};
use crate::stream::{Gap, SegmentRef};

/// So many ranges of segments are looked at together: a few megabytes, however old the archive is.
const RANGES_AT_ONCE: u64 = 65_536;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Every record, not a sample.
    pub deep: bool,
    /// Decides where the sample lies.
    pub draw: u64,
    /// The segment objects that are known to be damaged or gone.
    pub damaged: &'a HashSet<String>,
}

/// What both sides have of a topic.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Records that the archive keeps.
    pub(super) archived: u64,
    /// Offsets that both sides have, and that can be compared.
    pub(super) common: u64,
    /// How many of them were compared.
    pub(super) looked_at: u64,
    /// Records that were found in both.
    pub(super) compared: u64,
    pub(super) ledger: Ledger,
    /// Why partitions, or parts of them, could not be compared.
    pub(super) troubles: Vec<Error>,
}

/// Where every partition of a topic stands on the source. Those of which nothing is told are in `troubles`.
pub(super) async fn ends(
    cluster: &Cluster,
    topic: &str,
    partitions: i32,
    troubles: &mut Vec<Error>,
) -> Result<BTreeMap<i32, Ends>> {
    let all: Vec<TopicPartition> = (0..partitions).map(|partition| TopicPartition::new(topic, partition)).collect();
    let mut told: BTreeMap<i32, [Option<i64>; 3]> = BTreeMap::new();
    // What is at the end comes after what is at the beginning: a log that is emptied meanwhile has no end before its beginning.
    let questions = [
        (OffsetAt::Earliest, Isolation::ReadUncommitted),
        (OffsetAt::Latest, Isolation::ReadCommitted),
        (OffsetAt::Latest, Isolation::ReadUncommitted),
    ];
    for (index, (at, isolation)) in questions.into_iter().enumerate() {
        for (partition, offset) in cluster.list_offsets(&all, at, isolation).await? {
            match offset {
                Ok(offset) => told.entry(partition.partition).or_default()[index] = offset,
                Err(error) if index == 0 => troubles.push(error),
                Err(_) => {}
            }
        }
    }
    let ends = told.into_iter().filter_map(|(partition, told)| {
        let [Some(low), Some(stable), Some(high)] = told else { return None };
        Some((partition, Ends { low, stable: stable.clamp(low, high.max(low)), high: high.max(low) }))
    });
    Ok(ends.collect())
}

/// Compares a topic.
pub(super) struct Comparison<'a> {
    pub(super) store: &'a Store,
    pub(super) kafka: &'a Kafka,
    pub(super) cluster: &'a Cluster,
    pub(super) topic: &'a str,
    /// The topic is compacted.
    pub(super) compacts: bool,
    pub(super) asked: Asked<'a>,
}

impl Comparison<'_> {
    /// # Errors
    /// The store's or the brokers' own; what concerns partitions alone is in the outcome.
    pub(super) async fn run(&self, lineage: &Lineage, partitions: i32) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let ends = ends(self.cluster, self.topic, partitions, &mut outcome.troubles).await?;
        let mut reader = None;
        for (index, part) in lineage.parts.iter().enumerate() {
            let accounts: BTreeMap<i32, (Own, Ends, Account)> = ends
                .iter()
                .filter_map(|(&partition, ends)| {
                    let own = lineage.own(index, partition, ends.low)?;
                    Some((partition, (own, *ends, account(&own, ends))))
                })
                .collect();
            let gaps = part.chain.gaps_ever().await?;
            let mut look = Look {
                of: self,
                part,
                accounts,
                gaps,
                outcome: &mut outcome,
                reader: &mut reader,
                diverged: HashSet::new(),
            };
            look.settle();
            look.segments().await?;
        }
        Ok(outcome)
    }
}

impl Comparison<'_> {
    /// Where a partition's log begins now.
    async fn low(&self, at: &TopicPartition) -> Result<i64> {
        let listed =
            self.cluster.list_offsets(std::slice::from_ref(at), OffsetAt::Earliest, Isolation::ReadUncommitted);
        let offset = listed.await?.pop().map(|(_, offset)| offset).transpose()?.flatten();
        offset.ok_or_else(|| Error::new(Kind::Unavailable, format!("no broker tells where {at} begins")))
    }
}

/// A look at one generation.
struct Look<'a> {
    of: &'a Comparison<'a>,
    part: &'a Part,
    accounts: BTreeMap<i32, (Own, Ends, Account)>,
    gaps: Vec<Gap>,
    outcome: &'a mut Outcome,
    reader: &'a mut Option<RangeReader>,
    /// Partitions in which the logs parted: nothing behind that can be compared.
    diverged: HashSet<i32>,
}

/// What one piece told.
#[derive(Default)]
struct Told {
    same: u64,
    /// Where the logs parted.
    diverged: Option<i64>,
}

impl Told {
    /// What a record is called; none where there is nothing to tell.
    fn fate(&mut self, offset: i64, stands: Stands, compacts: bool, in_gap: impl Fn() -> bool) -> Option<Fate> {
        match stands {
            _ if self.diverged.is_some() => return None,
            Stands::Same => self.same += 1,
            Stands::Diverged => self.diverged = Some(offset),
            Stands::Different => return Some(Fate::Different),
            Stands::Archive if compacts => return Some(Fate::Compacted),
            Stands::Archive => return Some(Fate::Unexplained),
            Stands::Removed => return Some(Fate::Expired),
            Stands::Source if !in_gap() => return Some(Fate::Missing),
            // They are counted with their gap or segment.
            Stands::Source | Stands::Dark => {}
        }
        None
    }
}

impl Look<'_> {
    fn finding(&self, fate: Fate, partition: i32, range: Range<i64>) -> Finding {
        let generation = self.part.generation;
        Finding { fate, generation, partition, range, records: None, on_source: false, detail: None }
    }

    /// What needs no look at records.
    fn settle(&mut self) {
        let mut found = Vec::new();
        for (&partition, (own, ends, account)) in &self.accounts {
            self.outcome.common += (account.common.end - account.common.start).max(0).unsigned_abs();
            for (fate, range) in &account.settled {
                // Their records are counted segment by segment.
                if !matches!(fate, Fate::Expired | Fate::Cut) {
                    found.push(Finding {
                        on_source: *fate != Fate::Lost,
                        ..self.finding(*fate, partition, range.clone())
                    });
                }
            }
            let kept = own.start..own.end;
            for gap in self.gaps.iter().filter(|gap| gap.partition == partition) {
                let range = within(&(gap.start..gap.end), &kept);
                if !range.is_empty() {
                    let on_source = range.start < ends.high && range.end > ends.low;
                    let detail = Some(gap.reason.name().to_owned());
                    found.push(Finding { on_source, detail, ..self.finding(Fate::Gap, partition, range) });
                }
            }
        }
        found.into_iter().for_each(|finding| self.outcome.ledger.add(finding));
    }

    /// All segments, some at a time: partitions move through them together, so what lies at the same part of each lies together.
    async fn segments(&mut self) -> Result<()> {
        let totals = self.part.chain.totals();
        let ranges = totals.segments.saturating_mul(self.accounts.len().max(1) as u64);
        let windows = i64::try_from(ranges / RANGES_AT_ONCE).unwrap_or(i64::MAX - 1) + 1;
        for number in 0..windows {
            let window: BTreeMap<i32, Range<i64>> = self
                .accounts
                .iter()
                .map(|(&partition, (own, ..))| (partition, share(&(own.start..own.end), number, windows)))
                .filter(|(_, range)| !range.is_empty())
                .collect();
            if window.is_empty() {
                continue;
            }
            let selection = Selection { timestamps: None, partitions: Some(window.clone()) };
            let selected = self.part.chain.select(&selection).await?.segments;
            self.count(&selected, &window).await?;
            for (partition, range) in window {
                self.partition(partition, &range, &selected).await?;
            }
        }
        Ok(())
    }

    /// Counts the records that the archive alone has, and those of damaged segments. A segment is counted in the window in which
    /// its range begins.
    async fn count(&mut self, selected: &[SegmentRef], window: &BTreeMap<i32, Range<i64>>) -> Result<()> {
        for segment in selected {
            let is_damaged = self.of.asked.damaged.contains(&segment.object);
            for range in &segment.partitions {
                let Some((own, ends, account)) = self.accounts.get(&range.partition) else { continue };
                // What retention gave up of a segment that it keeps is kept, too.
                let begins = range.start.max(own.start);
                let of_window = window.get(&range.partition).is_some_and(|window| window.contains(&begins));
                if range.end <= own.start || !of_window {
                    continue;
                }
                let ends = *ends;
                self.outcome.archived += range.records;
                let whole = range.start..range.end;
                if is_damaged {
                    let below = within(&whole, &(i64::MIN..ends.low));
                    let (lower, upper) = (below.clone(), below.end.max(whole.start)..whole.end);
                    let known = |part: &Range<i64>| (*part == whole).then_some(range.records);
                    for (part, on_source) in [(lower, false), (upper, true)] {
                        if !part.is_empty() {
                            let on_source = on_source && part.start < ends.high;
                            let (records, detail) = (known(&part), Some(segment.object.clone()));
                            let of = self.finding(Fate::Damaged, range.partition, part);
                            self.outcome.ledger.add(Finding { records, on_source, detail, ..of });
                        }
                    }
                    continue;
                }
                let alone: Vec<(Fate, Range<i64>)> = account
                    .settled
                    .iter()
                    .filter(|(fate, _)| matches!(fate, Fate::Expired | Fate::Cut))
                    .map(|(fate, of)| (*fate, within(of, &whole)))
                    .filter(|(_, of)| !of.is_empty())
                    .collect();
                for (fate, of) in alone {
                    let records = match of == whole {
                        true => Some(range.records),
                        false => self.records(segment, range.partition, &of).await?,
                    };
                    if records != Some(0) {
                        self.outcome.ledger.add(Finding { records, ..self.finding(fate, range.partition, of) });
                    }
                }
            }
        }
        Ok(())
    }

    /// How many records of a segment lie in a range; none if it cannot be read, which is told where it is compared.
    async fn records(&self, segment: &SegmentRef, partition: i32, range: &Range<i64>) -> Result<Option<u64>> {
        let filter = Filter { partitions: Some([(partition, range.clone())].into()), timestamps: None, with_key: None };
        let object = layout::object(&segment.object)?;
        let store = self.of.store;
        let mut counted = 0;
        let counting = async {
            let mut reader =
                SegmentReader::open(store.objects(), &object, segment.bytes, segment.format, filter).await?;
            while let Some(block) = reader.next().await? {
                counted += block.len() as u64;
            }
            Ok::<_, Error>(counted)
        };
        match counting.await {
            Ok(counted) => Ok(Some(counted)),
            Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Internal) => Err(error),
            Err(_) => Ok(None),
        }
    }

    async fn partition(&mut self, partition: i32, window: &Range<i64>, selected: &[SegmentRef]) -> Result<()> {
        let Some((_, _, account)) = self.accounts.get(&partition) else { return Ok(()) };
        let of = |segment: &SegmentRef| segment.partitions.iter().find(|range| range.partition == partition).copied();
        for piece in pieces(&account.common, self.of.asked.deep, self.of.asked.draw) {
            let piece = within(&piece, window);
            if piece.is_empty() || self.diverged.contains(&partition) {
                continue;
            }
            let mut segments: Vec<&SegmentRef> = selected
                .iter()
                .filter(|segment| of(segment).is_some_and(|range| range.start < piece.end && piece.start < range.end))
                .collect();
            segments.sort_by_key(|segment| of(segment).map(|range| range.start));
            let at = TopicPartition::new(self.of.topic, partition);
            match self.piece(&at, piece.clone(), segments).await {
                Ok(()) => self.outcome.looked_at += (piece.end - piece.start).unsigned_abs(),
                // Of this partition no more can be said; the others are another matter.
                Err(error) => {
                    self.outcome.troubles.push(error);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn piece(&mut self, at: &TopicPartition, piece: Range<i64>, segments: Vec<&SegmentRef>) -> Result<()> {
        let of = self.of;
        if self.reader.is_none() {
            *self.reader = Some(RangeReader::new(of.kafka)?);
        }
        let archive = rows::Archive {
            store: of.store,
            segments,
            damaged: of.asked.damaged,
            partition: at.partition,
            range: piece.clone(),
        };
        let low = async || of.low(at).await;
        let lost: Vec<Range<i64>> =
            self.gaps.iter().filter(|gap| gap.partition == at.partition).map(|gap| gap.start..gap.end).collect();
        let mut told = Told::default();
        let mut ledger = std::mem::take(&mut self.outcome.ledger);
        let empty = self.finding(Fate::Missing, at.partition, 0..0);
        let compared = rows::compare(archive, self.reader, at, low, |offset, stands| {
            let in_gap = || lost.iter().any(|gap| gap.contains(&offset));
            let Some(fate) = told.fate(offset, stands, of.compacts, in_gap) else { return };
            let on_source = matches!(fate, Fate::Missing | Fate::Different);
            ledger.add(Finding { fate, range: offset..offset + 1, records: Some(1), on_source, ..empty.clone() });
        });
        let compared = compared.await;
        self.outcome.ledger = ledger;
        self.outcome.compared += told.same;
        if let Some(from) = told.diverged {
            self.diverged.insert(at.partition);
            let rest = self.accounts.get(&at.partition).map_or(piece.end, |(_, _, account)| account.common.end);
            let of = self.finding(Fate::Diverged, at.partition, from..rest);
            self.outcome.ledger.add(Finding { on_source: true, ..of });
        }
        for broken in compared? {
            self.broke(at.partition, broken).await?;
        }
        Ok(())
    }

    /// A segment could not be read although it was sound, or was not looked at, before. What was given up or replaced meanwhile is
    /// no damage.
    async fn broke(&mut self, partition: i32, broken: rows::Broken) -> Result<()> {
        let chain = Chain::open(self.of.store, self.part.chain.stream()).await?;
        let Some(chain) = chain else { return Err(broken.error) };
        if chain.position(partition).is_some_and(|position| position.start >= broken.range.end) {
            self.outcome.ledger.add(self.finding(Fate::GivenUp, partition, broken.range));
            return Ok(());
        }
        let selection = Selection { timestamps: None, partitions: Some([(partition, broken.range.clone())].into()) };
        let selected = chain.select(&selection).await?;
        if !selected.segments.iter().any(|segment| segment.object == broken.object) {
            let message = format!("{} was replaced while it was compared", broken.object);
            return Err(Error::new(Kind::Unavailable, message).hint("verify again"));
        }
        let of = self.finding(Fate::Damaged, partition, broken.range);
        let detail = Some(format!("{}: {}", broken.object, broken.error));
        self.outcome.ledger.add(Finding { on_source: true, detail, ..of });
        Ok(())
    }
}

/// Part `number` of `of` equal parts of a range.
fn share(range: &Range<i64>, number: i64, of: i64) -> Range<i64> {
    let length = i128::from(range.end) - i128::from(range.start);
    let at = |part: i64| {
        let offset = length * i128::from(part) / i128::from(of);
        i64::try_from(i128::from(range.start) + offset).unwrap_or(range.end)
    };
    at(number)..at(number + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_each_other_and_are_all() {
        for (range, of) in [(0..10, 3), (5..5, 2), (7..8, 4), (i64::MIN / 4..i64::MAX / 4, 1_000)] {
            let shares: Vec<_> = (0..of).map(|number| share(&range, number, of)).collect();
            assert_eq!((shares[0].start, shares[shares.len() - 1].end), (range.start, range.end));
            assert!(shares.windows(2).all(|two| two[0].end == two[1].start));
        }
    }
}

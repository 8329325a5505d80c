//! What became of the offsets of a partition, by name: the one place that decides it.
//!
//! ```text
//!        low                          takeover  high
//! source  ├────────────────────────────────┼─────┤          what the brokers have
//! archive      ├──────────┼────────────────┼─────────┤      what this generation has archived
//!             begin     start                       end
//!        before archive │ given up │ common     │ cut
//! ```
//! `begin` is where the archive of the partition began, `start` where it begins since retention gave something up, `takeover` where
//! the next generation of the same topic begins: behind it the log of this one was lost.

use std::collections::BTreeMap;
use std::ops::Range;

/// What became of offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// The source has records there, and the archive says that it has all of them, and does not.
    Missing,
    /// The source removed them before they were archived, and no gap tells of it yet.
    Lost,
    /// Source and archive have other records at the same offset.
    Different,
    /// The source's log is another one from there on: an unclean election that no archiver has seen yet.
    Diverged,
    /// The segment that should hold them is damaged or gone.
    Damaged,
    /// A recorded gap.
    Gap,
    /// Only the archive has them: the source removed them from its beginning on, by retention or by DeleteRecords.
    Expired,
    /// Only the archive has them: the topic is compacted.
    Compacted,
    /// Only the archive has them: an unclean election took them from the log.
    Cut,
    /// Only the archive has them, and the topic's settings of today do not say why.
    Unexplained,
    /// The source has them, and the archive does not yet.
    NotYet,
    /// The archive had them, and its own retention gave them up.
    GivenUp,
    /// The archive was begun behind them (`kafka.start`).
    BeforeArchive,
    /// They were not compared: what is archived there lies in a transaction that is open on the source.
    Undecided,
}

impl Fate {
    /// All of them, the worst first.
    pub const ALL: [Self; 14] = [
        Self::Missing,
        Self::Lost,
        Self::Different,
        Self::Diverged,
        Self::Damaged,
        Self::Gap,
        Self::Expired,
        Self::Compacted,
        Self::Cut,
        Self::Unexplained,
        Self::NotYet,
        Self::GivenUp,
        Self::BeforeArchive,
        Self::Undecided,
    ];

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Lost => "lost",
            Self::Different => "different",
            Self::Diverged => "diverged",
            Self::Damaged => "damaged",
            Self::Gap => "gap",
            Self::Expired => "expired",
            Self::Compacted => "compacted",
            Self::Cut => "cut",
            Self::Unexplained => "unexplained",
            Self::NotYet => "not_yet",
            Self::GivenUp => "given_up",
            Self::BeforeArchive => "before_archive",
            Self::Undecided => "undecided",
        }
    }

    /// What it means, for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Missing => "the source has them, and the archive says that it has everything there, and does not",
            Self::Lost => "removed by the source before they were archived, and not recorded as a gap yet",
            Self::Different => "the source has other records at the same offsets",
            Self::Diverged => {
                "the source's log is another one from there on (unclean election), and no archiver has seen it"
            }
            Self::Damaged => "their segment is damaged or gone",
            Self::Gap => "recorded gap",
            Self::Expired => "only in the archive: the source removed them (retention, DeleteRecords)",
            Self::Compacted => "only in the archive: compacted on the source",
            Self::Cut => "only in the archive: an unclean election took them from the source",
            Self::Unexplained => {
                "only in the archive: the source's settings do not say why (compacted before cleanup.policy was \
                 changed, aborted, or archived with isolation = read_uncommitted)"
            }
            Self::NotYet => "not archived yet",
            Self::GivenUp => "expired by the archive's own retention",
            Self::BeforeArchive => "from before the archive began (kafka.start)",
            Self::Undecided => "not compared: in a transaction that is open on the source",
        }
    }

    /// Whether the archive lacks what it promises.
    pub fn is_loss(self) -> bool {
        matches!(self, Self::Missing | Self::Lost | Self::Different | Self::Diverged | Self::Damaged)
    }
}

/// Where a partition stands on the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    /// The first offset that the log has.
    pub(super) low: i64,
    /// Up to where all transactions are decided.
    pub(super) stable: i64,
    /// One past the last offset of the log.
    pub(super) high: i64,
}

/// Where a generation's archive of a partition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Own {
    /// Where it began, if that is known.
    pub(super) begin: Option<i64>,
    /// What is kept.
    pub(super) start: i64,
    /// The next offset to archive.
    pub(super) end: i64,
    /// Where the next generation of the same topic begins to archive; none of the last one.
    pub(super) takeover: Option<i64>,
    /// Whether a generation of the same topic came before.
    pub(super) follows: bool,
}

/// What is to be made of the offsets of one partition in one generation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// What both have, to be compared.
    pub(super) common: Range<i64>,
    /// What is settled without a look at records. Records are counted of what the archive alone has.
    pub(super) settled: Vec<(Fate, Range<i64>)>,
}

/// Accounts for every offset that either side knows of.
pub(super) fn account(own: &Own, ends: &Ends) -> Account {
    let mut account = Account::default();
    let mut settle = |fate, range: Range<i64>| {
        if range.start < range.end {
            account.settled.push((fate, range));
        }
    };
    let Ends { low, stable, high } = *ends;
    let takeover = own.takeover.unwrap_or(i64::MAX);
    let last = own.end.min(takeover).max(own.start.min(takeover));
    if !own.follows {
        let began = own.begin.unwrap_or(own.start);
        settle(Fate::BeforeArchive, low..began.min(takeover).min(high));
        settle(Fate::GivenUp, low.max(began)..own.start.min(takeover).min(high));
    } else if let Some(began) = own.begin {
        settle(Fate::GivenUp, low.max(began)..own.start.min(takeover).min(high));
    }
    settle(Fate::Expired, own.start..last.min(low));
    let both = own.start.max(low);
    settle(Fate::Undecided, both.max(stable)..last.min(high));
    settle(Fate::Cut, own.start.max(takeover.min(high))..own.end);
    match own.takeover {
        None => {
            settle(Fate::Lost, own.end..low);
            settle(Fate::NotYet, own.end.max(low)..high);
        }
        // The next generation begins behind where this one ends: nobody has archived what lies between.
        Some(takeover) => {
            settle(Fate::Lost, own.end..takeover.min(low));
            settle(Fate::Missing, own.end.max(low)..takeover.min(high));
        }
    }
    account.common = both..last.min(stable).min(high).max(both);
    account
}

/// How much of a fate there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Offsets.
    pub offsets: u64,
    /// Records, as far as they are known.
    pub records: u64,
}

/// A range of one partition with what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What became of it.
    pub fate: Fate,
    /// The generation of the topic whose archive is meant.
    pub generation: u32,
    /// The partition.
    pub partition: i32,
    /// The offsets. Others may lie between them that are of no such fate where it is `Compacted` or `Unexplained`.
    pub range: Range<i64>,
    /// How many records they are, where that is known.
    pub records: Option<u64>,
    /// Whether the source still has offsets of the range, of what the archive lacks.
    pub on_source: bool,
    /// The damaged object, or the reason of a gap.
    pub detail: Option<String>,
}

/// So many findings of one topic are kept; the rest is counted.
const MOST_KEPT: usize = 1_000;

/// What was found of one topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// How much there is of each fate.
    pub counts: BTreeMap<Fate, Count>,
    /// Where it lies, the first of it.
    pub findings: Vec<Finding>,
    /// How many findings were not kept.
    pub more: u64,
}

impl Ledger {
    /// Takes a finding in. One that continues the last one is added to it.
    pub fn add(&mut self, finding: Finding) {
        let records = finding.records.unwrap_or(0);
        // What only the archive has lies among offsets without a record.
        let single = matches!(finding.fate, Fate::Compacted | Fate::Unexplained);
        let scattered = single || matches!(finding.fate, Fate::Expired | Fate::Cut);
        let offsets =
            if single { records } else { finding.range.end.saturating_sub(finding.range.start).unsigned_abs() };
        let count = self.counts.entry(finding.fate).or_default();
        count.offsets = count.offsets.saturating_add(offsets);
        count.records = count.records.saturating_add(records);
        let same = |last: &Finding| {
            (last.fate, last.generation, last.partition) == (finding.fate, finding.generation, finding.partition)
                && (last.on_source, &last.detail) == (finding.on_source, &finding.detail)
        };
        let near = |last: &Finding| {
            last.range.end == finding.range.start || (scattered && last.range.end <= finding.range.start)
        };
        // Kinds come mixed: the last of its own kind is among the last few.
        let from = self.findings.len().saturating_sub(8);
        let last = self.findings[from..].iter().rposition(same).map(|at| from + at);
        match last.and_then(|at| self.findings.get_mut(at)).filter(|last| near(last)) {
            Some(last) => {
                last.range.end = finding.range.end;
                last.records = last.records.zip(finding.records).map(|(had, more)| had.saturating_add(more));
            }
            None if from < MOST_KEPT => self.findings.push(finding),
            None => self.more += 1,
        }
    }

    /// How much of a fate there is.
    pub fn count(&self, fate: Fate) -> Count {
        self.counts.get(&fate).copied().unwrap_or_default()
    }

    /// Whether the archive lacks what it promises.
    pub fn has_loss(&self) -> bool {
        self.counts.keys().any(|fate| fate.is_loss())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settled(account: &Account, offset: i64) -> Vec<Fate> {
        account.settled.iter().filter(|(_, range)| range.contains(&offset)).map(|(fate, _)| *fate).collect()
    }

    #[test]
    fn each_stretch_has_its_name() {
        let own = Own { begin: Some(20), start: 30, end: 80, takeover: None, follows: false };
        let found = account(&own, &Ends { low: 10, stable: 90, high: 95 });
        assert_eq!(found.common, 30..80);
        assert_eq!(
            found.settled,
            [(Fate::BeforeArchive, 10..20), (Fate::GivenUp, 20..30), (Fate::NotYet, 80..95)],
            "the log begins before the archive"
        );
        let found = account(&own, &Ends { low: 50, stable: 70, high: 75 });
        assert_eq!(
            (found.common, found.settled),
            (50..70, vec![(Fate::Expired, 30..50), (Fate::Undecided, 70..75), (Fate::Cut, 75..80)])
        );
        let found = account(&own, &Ends { low: 90, stable: 99, high: 99 });
        assert_eq!(
            (found.common.is_empty(), found.settled),
            (true, vec![(Fate::Expired, 30..80), (Fate::Lost, 80..90), (Fate::NotYet, 90..99)])
        );
        let cut = Own { takeover: Some(60), ..own };
        let found = account(&cut, &Ends { low: 10, stable: 99, high: 99 });
        assert_eq!((found.common, &found.settled[2..]), (30..60, &[(Fate::Cut, 60..80)][..]));
    }

    proptest! {
        /// Every offset of either side has one name, or is compared; and none has two.
        #[test]
        fn every_offset_is_accounted_for_once(
            low in 0_i64..60, log in 0_i64..60, open in 0_i64..10,
            begin in 0_i64..60, gone in 0_i64..20, kept in 0_i64..60,
        ) {
            let ends = Ends { low, high: low + log, stable: (low + log - open).max(low) };
            let own = Own { begin: Some(begin), start: begin + gone, end: begin + gone + kept, takeover: None, follows: false };
            let found = account(&own, &ends);
            for offset in 0..200 {
                let (archived, there) = ((own.start..own.end).contains(&offset), (low..ends.high).contains(&offset));
                let fates = settled(&found, offset);
                let compared = found.common.contains(&offset);
                prop_assert!(fates.len() + usize::from(compared) <= 1, "{offset}: {fates:?}, compared {compared}");
                if compared {
                    prop_assert!(archived && there);
                } else if archived && !there {
                    prop_assert!(matches!(fates[..], [Fate::Expired | Fate::Cut]), "{offset}: {fates:?}");
                } else if there {
                    let expected = [Fate::BeforeArchive, Fate::GivenUp, Fate::NotYet, Fate::Undecided];
                    prop_assert!(fates.len() == 1 && expected.contains(&fates[0]), "{offset}: {fates:?}");
                } else {
                    let lost = (own.end..low).contains(&offset);
                    prop_assert_eq!(fates == [Fate::Lost], lost, "{}: {:?}", offset, fates);
                }
            }
        }

        /// Two generations of one topic share the offsets between them.
        #[test]
        fn what_two_generations_have_of_one_log_is_named_once(
            low in 0_i64..40, log in 1_i64..80, first in 0_i64..60, cut in 0_i64..20, second in 0_i64..60,
        ) {
            let ends = Ends { low, high: low + log, stable: low + log };
            let takeover = first.saturating_sub(cut).max(0);
            let one = Own { begin: Some(0), start: 0, end: first, takeover: Some(takeover), follows: false };
            let two = Own { begin: Some(takeover), start: takeover, end: takeover + second, takeover: None, follows: true };
            let found = [account(&one, &ends), account(&two, &ends)];
            for offset in low..ends.high {
                let of_source: usize = found
                    .iter()
                    .map(|account| {
                        let named = settled(account, offset);
                        usize::from(account.common.contains(&offset))
                            + named.iter().filter(|fate| **fate != Fate::Cut).count()
                    })
                    .sum();
                prop_assert_eq!(of_source, 1, "{}: {:?}", offset, &found);
            }
        }
    }

    #[test]
    fn findings_are_put_together_and_bounded_and_all_are_counted() {
        let one = |fate, range: Range<i64>| Finding {
            fate,
            generation: 0,
            partition: 0,
            records: Some(1),
            range,
            on_source: true,
            detail: None,
        };
        let mut ledger = Ledger::default();
        for offset in [1, 3, 9] {
            ledger.add(one(Fate::Compacted, offset..offset + 1));
            ledger.add(one(Fate::Missing, offset + 1..offset + 2));
        }
        let ranges: Vec<_> = ledger.findings.iter().map(|found| (found.fate, found.range.clone())).collect();
        assert_eq!(
            ranges,
            [(Fate::Compacted, 1..10), (Fate::Missing, 2..3), (Fate::Missing, 4..5), (Fate::Missing, 10..11)]
        );
        assert_eq!(ledger.count(Fate::Compacted), Count { offsets: 3, records: 3 });
        for offset in 0..5_000 {
            ledger.add(one(Fate::Different, 2 * offset..2 * offset + 1));
        }
        assert!(ledger.findings.len() <= MOST_KEPT + 8 && ledger.more > 3_000);
        assert_eq!(ledger.count(Fate::Different).records, 5_000);
        assert!(ledger.has_loss());
    }
}

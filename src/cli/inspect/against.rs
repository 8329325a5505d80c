//! `tidelog verify --against-source`: what the live topics have and the archive has not, and the other way round.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde::Serialize;

use crate::cli::human;
use crate::cli::progress::{Progress, Unit};
use crate::config::{Config, Kafka};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::escape::one_line;
use crate::pipeline::kafka::admit;
use crate::source::kafka::Cluster;
use crate::store::Store;
use crate::verify::source::{self, Asked, Fate, Finding, Found, Passed, TopicFound};
use crate::verify::{Damage, DamageKind};

/// So many ranges of a topic are told as text; JSON has more.
const MOST_TOLD: usize = 20;

/// What came of the comparison.
pub(super) type Against = Result<Found>;

/// The cluster with which the archive is compared.
///
/// # Errors
/// `Kind::Config` if the configuration has none.
pub(super) fn cluster(config: &Config) -> Result<&Kafka> {
    config.kafka.as_ref().ok_or_else(|| {
        Error::new(Kind::Config, "--against-source compares with Kafka, and the configuration has no [kafka]")
            .hint("add [kafka] with bootstrap_servers and topics, as `tidelog run` has it")
    })
}

/// Compares the archive with the brokers. `damages` is what is known to be damaged.
pub(super) async fn compare(store: &Store, kafka: &Kafka, deep: bool, damages: &[Damage]) -> Against {
    admit(store, kafka, &Cluster::new(kafka)?).await?;
    let damaged: HashSet<String> = damages
        .iter()
        .filter(|damage| !matches!(damage.kind, DamageKind::Chain | DamageKind::Unchecked))
        .map(|damage| damage.object.clone())
        .collect();
    let mut draw = [0; 8];
    getrandom::fill(&mut draw).or_err(Kind::Unavailable, || "the system gives no random bytes".to_owned())?;
    let asked = Asked { deep, draw: u64::from_le_bytes(draw), damaged: &damaged };
    let passed = Arc::new(Passed::default());
    let shown = Arc::clone(&passed);
    let _bar = Progress::follow("compare", Unit::Topics, move || (shown.done(), shown.total()));
    source::compare(store, kafka, asked, &passed).await
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Listing<'a> {
    Compared {
        cluster: &'a str,
        bootstrap_servers: &'a str,
        deep: bool,
        topics: Vec<TopicRow<'a>>,
        totals: BTreeMap<&'static str, CountRow>,
    },
    Failed {
        cluster: &'a str,
        bootstrap_servers: &'a str,
        error: Trouble,
    },
}

#[derive(Debug, Serialize)]
pub(super) struct TopicRow<'a> {
    topic: &'a str,
    state: &'static str,
    /// The generations that are of the source's topic.
    generations: &'a [u32],
    /// Those of topics before.
    ended: &'a [u32],
    archived: u64,
    common_offsets: u64,
    compared_offsets: u64,
    compared: u64,
    counts: BTreeMap<&'static str, CountRow>,
    findings: Vec<FindingRow<'a>>,
    more_findings: u64,
    troubles: Vec<Trouble>,
}

#[derive(Debug, Serialize)]
pub(super) struct CountRow {
    offsets: u64,
    records: u64,
}

#[derive(Debug, Serialize)]
struct FindingRow<'a> {
    fate: &'static str,
    generation: u32,
    partition: i32,
    start: i64,
    end: i64,
    records: Option<u64>,
    on_source: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

#[derive(Debug, Serialize)]
pub(super) struct Trouble {
    kind: &'static str,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Trouble {
    fn of(error: &Error) -> Self {
        let hint = error.hint_text().map(str::to_owned);
        Self { kind: error.kind().name(), detail: error.to_string(), hint }
    }
}

pub(super) fn listing<'a>(kafka: &'a Kafka, deep: bool, against: &'a Against) -> Listing<'a> {
    let (cluster, bootstrap_servers) = (kafka.cluster.as_str(), kafka.bootstrap_servers.as_str());
    let found = match against {
        Ok(found) => found,
        Err(error) => return Listing::Failed { cluster, bootstrap_servers, error: Trouble::of(error) },
    };
    let totals = Fate::ALL.into_iter().map(|fate| (fate.name(), found.count(fate)));
    let totals = totals.map(|(name, count)| (name, CountRow { offsets: count.offsets, records: count.records }));
    Listing::Compared {
        cluster,
        bootstrap_servers,
        deep,
        topics: found.topics.iter().map(row).collect(),
        totals: totals.collect(),
    }
}

fn row(of: &TopicFound) -> TopicRow<'_> {
    let counts = of.ledger.counts.iter();
    TopicRow {
        topic: &of.topic,
        state: of.state.name(),
        generations: &of.generations,
        ended: &of.ended,
        archived: of.archived,
        common_offsets: of.common,
        compared_offsets: of.looked_at,
        compared: of.compared,
        counts: counts
            .map(|(fate, count)| (fate.name(), CountRow { offsets: count.offsets, records: count.records }))
            .collect(),
        findings: of.ledger.findings.iter().map(finding_row).collect(),
        more_findings: of.ledger.more,
        troubles: of.troubles.iter().map(Trouble::of).collect(),
    }
}

fn finding_row(of: &Finding) -> FindingRow<'_> {
    FindingRow {
        fate: of.fate.name(),
        generation: of.generation,
        partition: of.partition,
        start: of.range.start,
        end: of.range.end,
        records: of.records,
        on_source: of.on_source,
        detail: of.detail.as_deref(),
    }
}

/// What was found, for people.
pub(super) fn text(kafka: &Kafka, deep: bool, against: &Against) -> String {
    let found = match against {
        Ok(found) => found,
        Err(error) => return format!("{} could not be compared with: {error}\n", kafka.bootstrap_servers),
    };
    let mut text = format!("against {}:\n", kafka.bootstrap_servers);
    text.push_str(&table(found));
    for topic in &found.topics {
        text.push_str(&paragraphs(topic));
    }
    let (looked_at, common) = found.topics.iter().fold((0, 0), |(looked_at, common), topic| {
        (topic.looked_at.saturating_add(looked_at), topic.common.saturating_add(common))
    });
    text.push_str(&format!(
        "compared record by record: {} of {} that both have{}\n",
        human::exact(looked_at),
        human::many(common, "offset"),
        if deep || looked_at == common { "" } else { " (a sample; --deep compares all)" }
    ));
    let missing = found.count(Fate::Missing);
    let lost = found.count(Fate::Lost);
    text.push_str(&format!(
        "missing: {}, lost before they were archived: {}\n",
        human::many(missing.records, "record"),
        human::many(lost.offsets, "offset")
    ));
    text
}

fn table(found: &Found) -> String {
    let cells = |name: &str, state: &str, archived: u64, compared: u64, count: &dyn Fn(Fate) -> source::Count| {
        let records = |fate| human::exact(count(fate).records);
        let offsets = |fate| human::exact(count(fate).offsets);
        [
            name.to_owned(),
            state.to_owned(),
            human::exact(archived),
            human::exact(compared),
            records(Fate::Missing),
            human::exact(count(Fate::Different).records.saturating_add(count(Fate::Diverged).offsets)),
            records(Fate::Damaged),
            records(Fate::Expired),
            records(Fate::Compacted),
            human::exact(count(Fate::Gap).offsets.saturating_add(count(Fate::Lost).offsets)),
            offsets(Fate::NotYet),
        ]
    };
    let row = |of: &TopicFound| {
        cells(&one_line(&of.topic), of.state.name(), of.archived, of.compared, &|fate| of.ledger.count(fate))
    };
    let mut rows: Vec<_> = found.topics.iter().map(row).collect();
    let sum = |of: fn(&TopicFound) -> u64| found.topics.iter().map(of).fold(0, u64::saturating_add);
    rows.push(cells("all", "", sum(|of| of.archived), sum(|of| of.compared), &|fate| found.count(fate)));
    human::table(
        [
            "TOPIC",
            "STATE",
            "ARCHIVED",
            "COMPARED",
            "MISSING",
            "DIFFERENT",
            "DAMAGED",
            "EXPIRED",
            "COMPACTED",
            "LOST",
            "NOT YET",
        ],
        [false, false, true, true, true, true, true, true, true, true, true],
        &rows,
    )
}

fn paragraphs(topic: &TopicFound) -> String {
    let mut text = String::new();
    let name = one_line(&topic.topic);
    for fate in Fate::ALL {
        let count = topic.ledger.count(fate);
        if count == source::Count::default() {
            continue;
        }
        let how_many = match count.records {
            0 => human::many(count.offsets, "offset"),
            records => human::many(records, "record"),
        };
        text.push_str(&format!("{}: {name}: {how_many}: {}\n", fate.name().replace('_', " "), fate.words()));
        let findings: Vec<_> = topic.ledger.findings.iter().filter(|found| found.fate == fate).collect();
        for found in findings.iter().take(MOST_TOLD) {
            text.push_str(&place(found));
        }
        if findings.len() > MOST_TOLD {
            text.push_str(&format!("  and {} more: --json lists them\n", findings.len() - MOST_TOLD));
        }
    }
    for error in &topic.troubles {
        text.push_str(&format!("not compared: {name}: {}\n", one_line(&error.to_string())));
        if let Some(hint) = error.hint_text() {
            text.push_str(&format!("  do       {}\n", one_line(hint)));
        }
    }
    text
}

fn place(found: &Finding) -> String {
    let (first, last) = (found.range.start.unsigned_abs(), found.range.end.saturating_sub(1).unsigned_abs());
    let lacks = matches!(found.fate, Fate::Damaged | Fate::Gap);
    format!(
        "  partition {}: offsets {}..{}{}{}{}\n",
        found.partition,
        human::exact(first),
        human::exact(last),
        found.records.map_or_else(String::new, |records| format!(", {}", human::many(records, "record"))),
        found.detail.as_deref().map_or_else(String::new, |detail| format!(" ({})", one_line(detail))),
        match (lacks, found.on_source) {
            (true, true) => ", the source has these offsets",
            (true, false) => ", the source has them no more",
            (false, _) => "",
        }
    )
}

/// What the comparison adds to the verdict: what the archive lacks, and what could not be compared.
pub(super) fn lacks(against: &Against, damage_is_told: bool) -> (Vec<String>, Option<Error>) {
    let found = match against {
        Ok(found) => found,
        Err(error) => {
            let failed = Error::new(error.kind(), format!("the source could not be compared with: {error}"));
            return (
                Vec::new(),
                Some(match error.hint_text() {
                    Some(hint) => failed.hint(hint),
                    None => failed,
                }),
            );
        }
    };
    let mut lacks = Vec::new();
    let mut say = |count: u64, noun: &str, what: &str| {
        if count > 0 {
            lacks.push(format!("{} {what}", human::many(count, noun)));
        }
    };
    say(found.count(Fate::Missing).records, "record", "missing");
    let unread = found.count(Fate::Missing);
    if unread.records == 0 {
        say(unread.offsets, "offset", "missing");
    }
    say(found.count(Fate::Lost).offsets, "offset", "lost before they were archived");
    say(found.count(Fate::Different).records, "record", "other than the source's");
    say(found.count(Fate::Diverged).offsets, "offset", "of another log than the source's");
    if !damage_is_told {
        say(found.count(Fate::Damaged).offsets, "offset", "in damaged segments");
    }
    let unchecked: Vec<&TopicFound> = found.unchecked().collect();
    let failed = unchecked.first().and_then(|first| Some((first, first.troubles.first()?))).map(|(_, why)| {
        let kind = if why.kind() == Kind::Denied { Kind::Denied } else { Kind::Unavailable };
        let topics = human::many(unchecked.len() as u64, "topic");
        let error = Error::new(kind, format!("{topics} could not be compared, or not to the end"));
        match why.hint_text() {
            Some(hint) => error.hint(hint),
            None => error,
        }
    });
    (lacks, failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::source::{Ledger, State};

    fn found(fate: Fate, records: Option<u64>, troubles: Vec<Error>) -> Found {
        let finding =
            Finding { fate, generation: 0, partition: 3, range: 10..13, records, on_source: true, detail: None };
        let mut ledger = Ledger::default();
        ledger.add(finding);
        Found { topics: vec![TopicFound { ledger, troubles, ..TopicFound::new("orders", State::Compared) }] }
    }

    #[test]
    fn what_the_archive_lacks_decides_and_what_it_alone_has_does_not() {
        let lacks_of = |found| lacks(&Ok(found), false);
        assert_eq!(lacks_of(found(Fate::Missing, Some(3), vec![])).0, ["3 records missing"]);
        assert_eq!(lacks_of(found(Fate::Lost, None, vec![])).0, ["3 offsets lost before they were archived"]);
        assert_eq!(lacks_of(found(Fate::Damaged, Some(3), vec![])).0, ["3 offsets in damaged segments"]);
        assert!(lacks(&Ok(found(Fate::Damaged, Some(3), vec![])), true).0.is_empty());
        for fate in Fate::ALL.into_iter().filter(|fate| !fate.is_loss()) {
            let (lacks, failed) = lacks_of(found(fate, Some(3), vec![]));
            assert!(lacks.is_empty() && failed.is_none(), "{fate:?}");
        }
        let denied = Error::new(Kind::Denied, "no").hint("grant READ on the topic");
        let (_, failed) = lacks_of(found(Fate::Expired, None, vec![denied]));
        let failed = failed.expect("it could not be compared");
        assert_eq!((failed.exit_code(), failed.hint_text()), (1, Some("grant READ on the topic")));
    }

    #[test]
    fn each_name_is_told_with_its_place() {
        for fate in Fate::ALL {
            let said = paragraphs(&found(fate, Some(3), vec![]).topics[0]);
            assert!(said.contains("partition 3: offsets 10..12, 3 records"), "{said}");
            assert!(said.starts_with(&fate.name().replace('_', " ")), "{said}");
        }
    }
}

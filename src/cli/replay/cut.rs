//! `--to-commit`: the records of transactions that committed at or before one commit, judged before anything is sent.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::cli::human;
use crate::error::{Error, Kind, Result};
use crate::escape::one_line;
use crate::recover::cut::{Counts, Found, Schemas, Survey, cut_at, survey};
use crate::replay::journal::Begun;
use crate::replay::{self, Chosen, Query, readable};
use crate::restore::Log;
use crate::restore::commits::{Commits, Moment};
use crate::store::Store;
use crate::stream::Lsn;
use crate::time;

/// A commit, and what of the topics belongs to it.
pub(super) struct ToCommit {
    found: Found,
    survey: Survey,
    /// The id that goes on with other records than these.
    goes_on_with_others: Option<String>,
}

/// What is printed of it as JSON.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CutShown {
    xid: Option<u32>,
    /// Where its record begins, and where it ends.
    lsn: Lsn,
    end: Lsn,
    time: String,
    records: Records,
    topics: Vec<TopicShown>,
    /// Why records may be missing.
    incomplete: Vec<String>,
    /// How often the log and a connector disagree.
    contradictions: u64,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Records {
    r#in: u64,
    out: u64,
    uncertain: u64,
}

impl From<Counts> for Records {
    fn from(counts: Counts) -> Self {
        Self { r#in: counts.included, out: counts.excluded, uncertain: counts.uncertain }
    }
}

#[derive(Debug, Clone, Serialize)]
struct TopicShown {
    topic: String,
    generation: u32,
    #[serde(flatten)]
    records: Records,
}

impl ToCommit {
    /// Finds the commit that `text`, a time or a position, means, and judges the records of `query` by it.
    ///
    /// # Errors
    /// A text that is none of both, a moment without a commit, and what of the archive cannot be read.
    pub(super) async fn judge(
        store: &Store,
        (text, cluster): (&str, Option<&str>),
        query: &Query,
        now: DateTime<Utc>,
    ) -> Result<Self> {
        let moment = moment(text, now).map_err(|error| error.context("--to-commit"))?;
        let log = Log::open(store, None).await?;
        let found = cut_at(&Commits::open(store, &log, None).await?, moment).await?;
        let (sources, _) = readable(replay::sources(store, cluster, query).await?);
        let at = DateTime::from_timestamp_micros(found.cut.at).unwrap_or(now);
        let schemas = Schemas::archived(store, at, now).await?;
        let survey = survey(store, sources, query, found.cut.clone(), &schemas).await?;
        Ok(Self { found, survey, goes_on_with_others: None })
    }

    /// The end of the commit's record.
    pub(super) fn end(&self) -> Lsn {
        self.found.end()
    }

    /// When it was committed.
    pub(super) fn at(&self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp_micros(self.found.cut.at)
    }

    /// Holds what the same id was begun with against what the archive knows now: it sends what it was begun with.
    ///
    /// # Errors
    /// A stream in what was written down that is none.
    pub(super) fn hold_against(&mut self, begun: Option<&Begun>) -> Result<()> {
        let Some(begun) = begun else { return Ok(()) };
        let is_same = begun.chosen()?.unwrap_or_default().is_same_as(&self.survey.chosen);
        self.goes_on_with_others = (!is_same).then(|| begun.replay.clone());
        Ok(())
    }

    /// The records that belong to it.
    pub(super) fn chosen(&self) -> &Chosen {
        &self.survey.chosen
    }

    pub(super) fn shown(&self) -> CutShown {
        let topic = |(stream, counts): (&crate::stream::TopicGeneration, &Counts)| TopicShown {
            topic: stream.topic.clone(),
            generation: stream.number,
            records: (*counts).into(),
        };
        CutShown {
            xid: self.found.xid(),
            lsn: self.found.commit.start,
            end: self.found.end(),
            time: time::rfc3339_micros(self.found.cut.at),
            records: self.survey.total().into(),
            topics: self.survey.topics.iter().map(topic).collect(),
            incomplete: self.survey.incomplete.iter().cloned().chain(self.outdated()).collect(),
            contradictions: self.survey.contradictions,
        }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let xid = self.found.xid().map_or(String::new(), |xid| format!(" of xid {xid}"));
        let mut text = format!(
            "  cut       at the end {} of the commit{xid}, {}: {}\n",
            self.end(),
            time::rfc3339_micros(self.found.cut.at),
            counted(self.survey.total())
        );
        for (stream, counts) in &self.survey.topics {
            let topic = format!("{} generation {}", stream.topic, stream.number);
            text.push_str(&format!("            {}: {}\n", one_line(&topic), counted(*counts)));
        }
        text
    }

    /// Says that the id was begun with other records.
    fn outdated(&self) -> Option<String> {
        let id = self.goes_on_with_others.as_ref()?;
        Some(format!(
            "the archive has learned more since the replay {id} was begun: what it sends is not the whole cut"
        ))
    }

    /// What the user should know.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = self.survey.warnings.clone();
        warnings.extend(self.survey.incomplete.iter().cloned().chain(self.outdated()));
        let uncertain = self.survey.total().uncertain;
        if uncertain > 0 {
            warnings.push(format!(
                "{} do not say which transaction they are of, and are taken or left by time",
                human::many(uncertain, "record")
            ));
        }
        if self.survey.contradictions > 0 {
            warnings.push(format!(
                "the log and the connectors disagree about {} of events: a topic may hold events of another database, or of a timeline that was left",
                human::many(self.survey.contradictions, "group")
            ));
        }
        warnings
    }

    /// Whether what is sent is the whole cut and nothing else, for certain.
    ///
    /// # Errors
    /// [`Kind::Incomplete`] where it may not be.
    pub(super) fn verdict(&self) -> Result<()> {
        if let Some(outdated) = self.outdated() {
            return Err(Error::new(Kind::Incomplete, outdated).hint("another --id sends all that is known now"));
        }
        let Survey { incomplete, contradictions, stops, .. } = &self.survey;
        let uncertain = self.survey.total().uncertain;
        if incomplete.is_empty() && *contradictions == 0 && stops.is_empty() && uncertain == 0 {
            return Ok(());
        }
        let mut why = Vec::new();
        why.extend(
            (!stops.is_empty())
                .then(|| format!("{} cannot be read to their end", human::many(stops.len() as u64, "partition"))),
        );
        why.extend((!incomplete.is_empty()).then(|| "records may be missing".to_owned()));
        why.extend((uncertain > 0).then(|| format!("{} are uncertain", human::many(uncertain, "record"))));
        why.extend((*contradictions > 0).then(|| "the log and the connectors disagree".to_owned()));
        let message = format!("the cut at {} is not certain: {}", self.end(), why.join(", "));
        Err(Error::new(Kind::Incomplete, message).hint("the reasons are printed above as warnings"))
    }
}

fn counted(counts: Counts) -> String {
    let Counts { included, excluded, uncertain } = counts;
    let (exact, all) = (human::exact, included.saturating_add(excluded));
    let records = human::many(included, "record");
    format!("{records} in, {} out; {} of all {} uncertain", exact(excluded), exact(uncertain), exact(all))
}

fn moment(text: &str, now: DateTime<Utc>) -> Result<Moment> {
    if text.contains('/') {
        return text.parse().map(Moment::Lsn);
    }
    time::parse_micros(text, now, false).map(Moment::Time)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::recover::cut::Cut;
    use crate::replay::Kept;
    use crate::replay::journal::{BegunTarget, Pinned, PinnedRange};
    use crate::segment::wal::{Ended, Transaction, What};
    use crate::stream::TopicGeneration;

    fn stream() -> TopicGeneration {
        TopicGeneration::new("main", "srv.public.t", 0)
    }

    /// A cut that is certain, with these offsets of one partition.
    fn cut(range: std::ops::Range<i64>) -> ToCommit {
        let what = What::Commit(Transaction::default());
        let commit = Ended { start: Lsn(90), end: Lsn(100), at: 0, what };
        let cut = Cut { end: 100, at: 0, next_at: None, next_lsn: None, committed: None };
        let kept = BTreeMap::from([(0, Kept::of(vec![range]))]);
        let survey = Survey { chosen: Chosen([(stream(), kept)].into()), ..Survey::default() };
        ToCommit { found: Found { commit, cut }, survey, goes_on_with_others: None }
    }

    fn begun(start: i64, end: i64) -> Begun {
        let ranges = vec![PinnedRange { partition: 0, start, end }];
        let source = Pinned {
            stream: stream().to_string(),
            target: "t".to_owned(),
            partitions: ranges.clone(),
            chosen: Some(ranges),
        };
        Begun {
            format: 1,
            replay: "night".to_owned(),
            at: DateTime::UNIX_EPOCH,
            selection: String::new(),
            after: None,
            timestamps: None,
            target: BegunTarget::default(),
            sources: vec![source],
            through: BTreeMap::new(),
            left_out: Vec::new(),
            maps: false,
        }
    }

    #[test]
    fn an_id_that_was_begun_with_fewer_records_is_not_the_whole_cut() {
        let mut cut = cut(3..9);
        cut.hold_against(None).expect("it begins");
        cut.hold_against(Some(&begun(3, 9))).expect("the same");
        cut.verdict().expect("it is certain");
        cut.hold_against(Some(&begun(3, 8))).expect("one less");
        let error = cut.verdict().expect_err("the last record was archived later");
        assert_eq!((error.kind(), error.exit_code()), (Kind::Incomplete, 3));
        assert!(error.to_string().contains("night") && error.hint_text().is_some_and(|hint| hint.contains("--id")));
        assert_eq!(cut.warnings().len(), 1);
        assert_eq!(cut.shown().incomplete.len(), 1);
    }

    #[test]
    fn the_uncertain_are_counted_of_all_records() {
        let counts = Counts { included: 18_204, excluded: 311, uncertain: 2 };
        assert_eq!(counted(counts), "18,204 records in, 311 out; 2 of all 18,515 uncertain");
    }
}

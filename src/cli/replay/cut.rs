//! `--to-commit`: the records of transactions that committed at or before one commit, judged before anything is sent.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::cli::human;
use crate::error::{Error, Kind, Result};
use crate::escape::one_line;
use crate::recover::cut::{Counts, Found, Schemas, Survey, cut_at, survey};
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
        Ok(Self { found, survey })
    }

    /// The end of the commit's record.
    pub(super) fn end(&self) -> Lsn {
        self.found.end()
    }

    /// When it was committed.
    pub(super) fn at(&self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp_micros(self.found.cut.at)
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
            incomplete: self.survey.incomplete.clone(),
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

    /// What the user should know.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = self.survey.warnings.clone();
        warnings.extend(self.survey.incomplete.iter().cloned());
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
    let exact = human::exact;
    format!("{} in, {} out, {} of them uncertain", human::many(included, "record"), exact(excluded), exact(uncertain))
}

fn moment(text: &str, now: DateTime<Utc>) -> Result<Moment> {
    if text.contains('/') {
        return text.parse().map(Moment::Lsn);
    }
    time::parse_micros(text, now, false).map(Moment::Time)
}

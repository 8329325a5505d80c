//! The drill `pipeline`: a recovery of the whole pipeline to a random moment, into scratch servers, and all of it removed again.
//!
//! ```text
//!   guards ─► a moment that all parts reach ─► recover, its own steps and proofs ─► differences are findings ─► removed
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::asked::AskedPipeline;
use super::report::{Part, Pipeline as Drilled, Report};
use super::restored::{Machine, windows};
use super::scratch::Scratch;
use super::subjects::MadeSubjects;
use super::targets::{MadePipeline, Targets, is_apart};
use super::{left, moment};
use crate::config::{Config, Pipeline, Recovered, TopicPattern};
use crate::error::{Error, Kind, Result};
use crate::recover::archived;
use crate::recover::connector::Connector;
use crate::recover::prepare::{Asked, Prepared, prepare, rename};
use crate::recover::run::carry_out;
use crate::replay::{Query, sources};
use crate::restore::Log;
use crate::store::Store;
use crate::time;

const NAME: &str = "pipeline";

/// How long a request may take to have its effect that was given up.
const SETTLES: Duration = Duration::from_secs(3);

/// Times from the first to the second.
type Spans = Vec<(DateTime<Utc>, DateTime<Utc>)>;

/// Runs the drill, and keeps its result in the archive. What keeps it from being carried out stands in the report, and is given beside it.
///
/// # Errors
/// Before it has begun: servers that are no scratch ones, or do not answer; a moment that is out of reach. When it was told to stop.
pub async fn pipeline(
    (store, config): (&Store, &Config),
    asked: &AskedPipeline,
    stop: impl Future<Output = Error>,
) -> Result<(Report<Drilled>, Option<Error>)> {
    let scratch = tokio::task::block_in_place(|| Scratch::make(&asked.scratch))?;
    let log = Log::open(store, None).await?;
    let machine = Machine::look(asked.bin_dir.as_deref(), log.system().server_version)?;
    let pipeline = Pipeline::load_for_drill(&asked.pipeline, (&scratch.at("data"), &machine.bin_dir))?;
    let targets = Targets::look(store, config, &pipeline).await?;
    let mut report = Report::begin(NAME, asked.seed, Drilled::default());
    report.skipped = left_out(&pipeline);
    clear(store, &targets, &mut report).await?;
    let drill = Drill { store, config, asked, pipeline, scratch: &scratch, system_id: log.system().system_id };
    let (mut wanted, prepared) = Box::pin(drill.prepared()).await?;
    report.skipped.extend(drill.without_groups(&mut wanted, &prepared).await?);
    report.about.at.clone_from(&wanted.to);
    let made = drill.made(&targets, &prepared).await?;
    report.about.notes.extend(left::write(store, NAME, Some(&made)).await?);
    let tried = tokio::select! {
        biased;
        stopped = stop => Err(stopped),
        tried = Box::pin(recover((store, config), &wanted, prepared, &mut report)) => Ok(tried),
    };
    let removed = made.remove(&targets).await.map(drop);
    tokio::task::block_in_place(|| drop(scratch));
    let tried = match tried {
        Err(stopped) => {
            removed?;
            // What was asked of a server last may still have come to be.
            tokio::time::sleep(SETTLES).await;
            made.remove(&targets).await?;
            left::write(store, NAME, None::<MadePipeline>).await?;
            return Err(stopped);
        }
        Ok(tried) => tried,
    };
    if removed.is_ok() {
        left::write(store, NAME, None::<MadePipeline>).await?;
    }
    Ok(report.end(store, tried.and(removed).err()).await)
}

/// Recovers; what is not as it was is a finding.
async fn recover(
    (store, config): (&Store, &Config),
    wanted: &Asked,
    prepared: Prepared,
    report: &mut Report<Drilled>,
) -> Result<()> {
    let (recovery, failed) = Box::pin(carry_out(store, config, wanted, prepared)).await?;
    for difference in &recovery.differences {
        report.found(Part::Recovery, format!("commit {}", recovery.commit.end), difference.clone());
    }
    let step = recovery.steps.iter().find(|step| step.state == crate::recover::report::State::Failed);
    let step = step.map(|step| format!("the step {}", step.step)).unwrap_or_default();
    report.about.recovery = Some(recovery);
    match failed {
        Some(error) if matches!(error.kind(), Kind::Corrupt | Kind::Incomplete | Kind::NotFound) => {
            report.found(Part::Recovery, step, error.to_string());
            Ok(())
        }
        Some(error) => Err(error.context(step)),
        None => Ok(()),
    }
}

/// The parts that the pipeline file names no servers for.
fn left_out(pipeline: &Pipeline) -> Vec<String> {
    let parts = [
        ("topics, groups and connectors", "[kafka]", pipeline.kafka.is_none()),
        ("connectors", "[connect]", pipeline.kafka.is_some() && pipeline.connect.is_none()),
        ("registry", "[schema_registry]", pipeline.schema_registry.is_none()),
    ];
    let absent = parts.into_iter().filter(|(_, _, is_absent)| *is_absent);
    absent.map(|(part, section, _)| format!("{part}: the pipeline file has no {section}")).collect()
}

/// Removes what a drill that was killed has left.
async fn clear(store: &Store, targets: &Targets, report: &mut Report<Drilled>) -> Result<()> {
    let Some(made) = left::read::<MadePipeline>(store, NAME).await? else { return Ok(()) };
    for place in made.remove(targets).await? {
        report.about.notes.push(format!("an earlier drill was killed, and what it made is still at {place}"));
    }
    Ok(())
}

struct Drill<'a> {
    store: &'a Store,
    config: &'a Config,
    asked: &'a AskedPipeline,
    pipeline: Pipeline,
    scratch: &'a Scratch,
    system_id: u64,
}

impl Drill<'_> {
    /// The recovery, to the moment that is asked for or a random one that all parts reach.
    async fn prepared(&self) -> Result<(Asked, Prepared)> {
        if let Some(at) = &self.asked.at {
            return self.recovery(at.clone()).await;
        }
        let spans = self.spans().await?;
        let (wanted, prepared) = self.drawn(&spans).await?;
        let Some(until) = self.written(&prepared.connectors).await? else { return Ok((wanted, prepared)) };
        let within: Spans =
            spans.iter().filter(|(from, _)| *from <= until).map(|(from, to)| (*from, (*to).min(until))).collect();
        if within == spans {
            return Ok((wanted, prepared));
        }
        self.drawn(&within).await
    }

    /// Leaves groups out where none of those that are named was there at the moment: a recovery that is asked for them is refused.
    async fn without_groups(&self, wanted: &mut Asked, prepared: &Prepared) -> Result<Option<String>> {
        let Some(kafka) = wanted.pipeline.kafka.as_mut().filter(|kafka| !kafka.groups.is_empty()) else {
            return Ok(None);
        };
        let patterns: Vec<_> = kafka.groups.iter().filter_map(|text| TopicPattern::parse(text).ok()).collect();
        if archived::has_groups(self.store, self.config, &patterns, prepared.journal.moment()).await? {
            return Ok(None);
        }
        kafka.groups.clear();
        Ok(Some("groups: none of those that kafka.groups names was kept at that moment".to_owned()))
    }

    /// A moment that the seed chooses; connectors may not have been there at all times, and then another one.
    async fn drawn(&self, spans: &Spans) -> Result<(Asked, Prepared)> {
        let mut seed = self.asked.seed;
        loop {
            let moment = moment::of_spans(spans, seed).ok_or_else(|| {
                Error::new(
                    Kind::Incomplete,
                    "there is no moment that the database and the state of the pipeline both reach",
                )
                .hint("`tidelog ls` says what there is; [state] has to be kept, and a base backup taken since")
            })?;
            match self.recovery(time::utc(moment)).await {
                Err(error)
                    if error.kind() == Kind::NotFound && seed.wrapping_sub(self.asked.seed) < moment::MOST_DRAWN =>
                {
                    seed = seed.wrapping_add(1);
                }
                prepared => return prepared,
            }
        }
    }

    async fn recovery(&self, to: String) -> Result<(Asked, Prepared)> {
        let wanted = Asked {
            to,
            pipeline: self.pipeline.clone(),
            only: None,
            folder: self.scratch.at("recover"),
            yes: false,
            dry_run: false,
            in_place: false,
            compensate: false,
            is_drill: true,
        };
        let prepared = Box::pin(prepare(self.store, self.config, &wanted)).await?;
        let port = match self.pipeline.postgres.as_ref().map(|postgres| &postgres.server) {
            Some(Recovered::Made { port, .. }) => Some(*port),
            _ => None,
        };
        prepared.connectors.iter().try_for_each(|of| is_apart(of, self.config, port))?;
        Ok((wanted, prepared))
    }

    /// The times that the database, the connectors and the subjects reach.
    async fn spans(&self) -> Result<Spans> {
        let mut from = Vec::new();
        if let Some(registry) = &self.pipeline.schema_registry {
            from.push(archived::subjects_since(self.store, self.config, registry).await?);
        }
        if self.pipeline.kafka.is_some() {
            match archived::connectors_since(self.store, self.config, &self.pipeline).await {
                Ok(since) => from.extend(since),
                // Topics that are named need no connector.
                Err(error) if error.kind() == Kind::NotFound && self.pipeline.connect.is_none() => {}
                Err(error) => return Err(error),
            }
        }
        let from = from.into_iter().max().unwrap_or(DateTime::<Utc>::MIN_UTC);
        let windows = windows(self.store, self.system_id).await?;
        let spans = windows.iter().map(|window| (window.from.max(from), window.to));
        Ok(spans.filter(|(from, to)| from <= to).collect())
    }

    /// Up to when each connector has written something: of what was committed behind that it is not known whether all has come.
    async fn written(&self, connectors: &[Connector]) -> Result<Option<DateTime<Utc>>> {
        if connectors.is_empty() || self.pipeline.kafka.is_none() {
            return Ok(None);
        }
        let cluster = self.config.kafka.as_ref().map(|kafka| kafka.cluster.as_str());
        let found = sources(self.store, cluster, &Query::default()).await?;
        let mut last: BTreeMap<&str, i64> = BTreeMap::new();
        for source in &found.sources {
            let of = connectors.iter().find(|of| source.stream.topic.starts_with(&format!("{}.", of.prefixes.0)));
            let newest = source.positions.iter().filter_map(|at| at.max_timestamp).max();
            if let (Some(of), Some(newest)) = (of, newest) {
                let known = last.entry(&of.name).or_insert(newest);
                *known = newest.max(*known);
            }
        }
        // The record of that time may be of the last transaction itself.
        let until = last.into_values().min().and_then(DateTime::from_timestamp_millis);
        Ok(until.map(|until| until - TimeDelta::seconds(1)))
    }

    /// What will be made; refuses servers that hold any of it.
    async fn made(&self, targets: &Targets, prepared: &Prepared) -> Result<MadePipeline> {
        let registry = match (&self.pipeline.schema_registry, &targets.registrar) {
            (Some(server), Some(registrar)) => {
                let moment = prepared.journal.moment();
                let (archived, _) = archived::subjects(self.store, self.config, server, moment).await?;
                Some(MadeSubjects::of(&archived, registrar, registrar.holds().await?)?)
            }
            _ => None,
        };
        let mut topics = BTreeSet::new();
        if let Some(kafka) = &self.pipeline.kafka {
            let rename = rename(kafka)?;
            let named = prepared.connectors.iter().map(Connector::topics).chain(kafka.topics.iter().cloned());
            let topics_of = crate::replay::Selection { topics: named.collect(), ..Default::default() };
            if !topics_of.topics.is_empty() {
                let archive = crate::manifest::topics(self.store).await?;
                let cluster = self.config.kafka.as_ref().map(|kafka| kafka.cluster.as_str());
                for stream in topics_of.query(None)?.streams(&archive, cluster)? {
                    topics.insert(rename.target(&stream.topic)?);
                }
            }
        }
        let made = (prepared.connectors.as_slice(), topics);
        targets.empty(&self.pipeline, made, (&prepared.journal.id, registry)).await
    }
}

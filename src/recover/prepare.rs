//! A recovery as it is asked for, and what it will do: all that can be refused is refused here, before anything is done.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::archived::{self, Chosen};
use super::connector::Connector;
use super::connectors;
use super::database::{Made, Restore};
use super::journal::{Commit, Folder, Journal};
use super::reach;
use crate::config::{Config, Pipeline, Recovered, TargetKafka};
use crate::error::{Error, Kind, Result};
use crate::replay::Rename;
use crate::replay::kafka::Connection;
use crate::restore::commits::{Commits, Moment};
use crate::restore::{Log, PATIENCE, patiently};
use crate::segment::wal::What;
use crate::source::postgres::Server;
use crate::source::rest::Operator;
use crate::store::Store;
use crate::stream::Lsn;
use crate::time;

/// A part that can be brought back alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The database.
    Postgres,
    /// The slots of the connectors.
    Slots,
    /// The subjects of the schema registry.
    Registry,
    /// The topics, and consumer groups.
    Topics,
    /// The connectors.
    Connectors,
}

/// What a word of `--only` names: one part, or the state of the pipeline, which is several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The word.
    pub word: String,
    /// Its parts.
    pub parts: Vec<Part>,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parts = match text {
            "postgres" => vec![Part::Postgres],
            "slots" => vec![Part::Slots],
            "registry" => vec![Part::Registry],
            "topics" => vec![Part::Topics],
            "connectors" => vec![Part::Connectors],
            "state" => vec![Part::Slots, Part::Registry, Part::Connectors],
            _ => {
                let known = "the parts are postgres, slots, registry, topics and connectors";
                return Err(format!("{known}, and state for slots, registry and connectors"));
            }
        };
        Ok(Self { word: text.to_owned(), parts })
    }
}

/// What is asked for.
#[derive(Debug)]
pub struct Asked {
    /// To which moment, as it was typed.
    pub to: String,
    /// Where it goes.
    pub pipeline: Pipeline,
    /// Only these parts; none: all that the pipeline file names.
    pub only: Option<BTreeSet<Part>>,
    /// Where the journal lies.
    pub folder: PathBuf,
    /// What could be a mistake is meant.
    pub yes: bool,
    /// Nothing is done.
    pub dry_run: bool,
    /// Topics stay where they are.
    pub in_place: bool,
    /// What they hold beyond the commit is taken back.
    pub compensate: bool,
    /// It is a drill: nothing of it outlives this process, and nothing of it is written down beside the archive.
    pub is_drill: bool,
}

impl Asked {
    /// Whether a part is wanted.
    pub fn wants(&self, part: Part) -> bool {
        let is_there = match part {
            Part::Postgres | Part::Slots => self.pipeline.postgres.is_some(),
            Part::Registry => self.pipeline.schema_registry.is_some(),
            Part::Topics => self.pipeline.kafka.is_some(),
            Part::Connectors => self.pipeline.has_connectors(),
        };
        is_there && self.only.as_ref().is_none_or(|only| only.contains(&part))
    }

    /// Where everything goes, and how: what a recovery that was begun cannot change any more.
    pub fn targets(&self) -> String {
        let how = match (self.in_place, self.compensate) {
            (false, _) => "",
            (true, false) => "; in place",
            (true, true) => "; in place, compensated",
        };
        format!("{}{how}", self.pipeline.targets())
    }

    /// The data directory that is made; none of a server that is there already.
    pub fn made(&self) -> Option<Made<'_>> {
        match &self.pipeline.postgres.as_ref()?.server {
            Recovered::Made { into, bin_dir, port, user, settings } => {
                Some(Made { into, bin_dir, port: *port, user, settings, folder: &self.folder })
            }
            Recovered::There(_) => None,
        }
    }
}

/// Where the journal of a recovery lies if nobody says it: beside what it makes, or beside the pipeline file.
pub fn folder_of(pipeline: &Pipeline, file: &Path) -> PathBuf {
    let beside = match pipeline.postgres.as_ref().map(|postgres| &postgres.server) {
        Some(Recovered::Made { into, .. }) => into.clone(),
        _ => file.to_owned(),
    };
    let mut name = beside.file_name().unwrap_or_default().to_owned();
    name.push(".recover");
    beside.with_file_name(name)
}

/// A recovery that can begin, or go on.
pub struct Prepared {
    /// How far it is; of one that begins just where to.
    pub journal: Journal,
    /// Whether this run begins it.
    pub anew: bool,
    /// The log.
    pub log: Log,
    /// How the database is restored, if it is.
    pub restore: Option<Restore>,
    /// The connectors.
    pub connectors: Vec<Connector>,
    /// The furthest position that any of them had read.
    pub furthest: Option<u64>,
    /// The workers.
    pub workers: Option<Operator>,
    /// What is to be known.
    pub notes: Vec<String>,
}

/// Looks at all that takes part.
///
/// # Errors
/// A moment that cannot be reached, targets that are not as they must be, and servers that do not answer.
pub async fn prepare(store: &Store, config: &Config, asked: &Asked) -> Result<Prepared> {
    let targets = asked.targets();
    let known = Folder::look(&asked.folder, &asked.to, &targets)?;
    let anew = known.is_none();
    let journal = match known {
        Some(journal) => journal,
        None => {
            let (commit, moment) = match commit(store, &asked.to).await {
                Ok(found) => found,
                Err(error) => return Err(reach::told(error, store, config, &asked.pipeline, &asked.to).await),
            };
            let mut journal = Journal::begin(&asked.to, &targets, commit)?;
            journal.moment = Some(moment);
            journal
        }
    };
    let Chosen { connectors, mut notes, furthest } = chosen(store, config, asked, &journal.commit).await?;
    let (restore, log) = match asked.made().filter(|_| asked.wants(Part::Postgres)) {
        Some(made) if !journal.steps.contains_key("postgres") => {
            let (restore, log) = match Restore::plan(store, &journal.commit).await {
                Ok(planned) => planned,
                Err(error) => return Err(reach::told(error, store, config, &asked.pipeline, &asked.to).await),
            };
            restore.check(&made, journal.restores)?;
            (Some(restore), log)
        }
        _ => (None, patiently(PATIENCE, || Log::open(store, Some(journal.commit.system_id))).await?.patient()),
    };
    let workers = match (&asked.pipeline.connect, asked.wants(Part::Connectors)) {
        (Some(server), true) => {
            let workers = Operator::new(server)?;
            let version = workers.version().await?;
            for connector in &connectors {
                let is_ours = journal.connectors.get(&connector.name).is_some_and(|known| known.makes);
                connectors::may_be_made(&workers, connector, (is_ours, asked.yes)).await?;
            }
            notes.push(format!("{}: Kafka Connect {version}", workers.shown()));
            Some(workers)
        }
        _ => None,
    };
    Ok(Prepared { journal, anew, log, restore, connectors, furthest, workers, notes })
}

/// Returns the last commit at or before a moment, and the moment in ms since 1970: that of the commit where a position is asked for.
///
/// # Errors
/// A moment that the archive does not reach.
pub async fn commit(store: &Store, to: &str) -> Result<(Commit, i64)> {
    let moment = match to.contains('/') {
        true => to.parse::<Lsn>().map(Moment::Lsn),
        false => time::parse_micros(to, time::now(), false).map(Moment::Time),
    };
    let moment = moment.map_err(|error| error.context("--to"))?;
    let log = Log::open(store, None).await?;
    let commits = Commits::open(store, &log, None).await?;
    let ended = commits.last(moment).await?;
    let What::Commit(transaction) = &ended.what else {
        return Err(Error::new(Kind::Internal, "what was found is no commit"));
    };
    let us = match moment {
        Moment::Time(us) => us,
        Moment::Lsn(_) => ended.at,
    };
    let commit = Commit {
        lsn: ended.start,
        end: ended.end_with_padding(),
        xid: transaction.xid,
        at: ended.at,
        timeline: commits.timeline(),
        system_id: log.system().system_id,
    };
    Ok((commit, us.div_euclid(1_000)))
}

async fn chosen(store: &Store, config: &Config, asked: &Asked, commit: &Commit) -> Result<Chosen> {
    let pipeline = &asked.pipeline;
    let archived = match archived::archived(store, config, pipeline, commit).await {
        Ok(archived) => archived,
        // Nobody asks for any.
        Err(error)
            if error.kind() == Kind::NotFound && !pipeline.has_connectors() && pipeline.connectors.is_empty() =>
        {
            let notes = vec!["no connectors were kept: no slots are made, and no topics are known by them".to_owned()];
            return Ok(Chosen { connectors: Vec::new(), notes, furthest: None });
        }
        Err(error) => return Err(error),
    };
    let slots = archived::slots(store, commit).await?;
    let chosen = archived.choose(pipeline, slots.as_ref(), (asked.yes, asked.wants(Part::Connectors)))?;
    if let (Some(kafka), true) = (&pipeline.kafka, asked.wants(Part::Connectors)) {
        let rename = rename(kafka)?;
        chosen.connectors.iter().try_for_each(|connector| connector.follows(&rename))?;
    }
    Ok(chosen)
}

/// Where topics go.
///
/// # Errors
/// [`Kind::Config`] for a rule that is none.
pub fn rename(kafka: &TargetKafka) -> Result<Rename> {
    kafka.rename.as_deref().map_or(Ok(Rename::default()), Rename::parse)
}

/// How the cluster of the topics is reached.
///
/// # Errors
/// [`Kind::Config`] where nothing says it.
pub fn connection(config: &Config, pipeline: &Pipeline) -> Result<Connection> {
    let given = pipeline.kafka.as_ref().and_then(|kafka| Some((kafka.bootstrap_servers.as_ref()?, &kafka.properties)));
    match (given, &config.kafka) {
        (Some((bootstrap, properties)), _) => Connection::of_properties(bootstrap, properties),
        (None, Some(kafka)) => Ok(Connection::of_config(kafka)),
        (None, None) => {
            Err(Error::new(Kind::Config, "neither the pipeline file nor the configuration names a cluster")
                .hint("write [kafka] with bootstrap_servers into the pipeline file"))
        }
    }
}

/// A server that is restored already.
///
/// # Errors
/// [`Kind::Config`] for what cannot be.
pub fn there(url: &crate::config::Hidden, database: &str) -> Result<Server> {
    Ok(Server::of_url(url)?.of_database(database))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_pipeline_is_several_parts() {
        let parts = |word: &str| word.parse::<Named>().map(|named| named.parts);
        assert_eq!(parts("topics"), Ok(vec![Part::Topics]));
        assert_eq!(parts("state"), Ok(vec![Part::Slots, Part::Registry, Part::Connectors]));
        assert!(parts("kafka").expect_err("no part").contains("topics"));
    }

    #[test]
    fn the_journal_lies_beside_what_is_made() {
        let parse = |text: &str| {
            let place = tempfile::tempdir().expect("a directory");
            let file = place.path().join("p.toml");
            std::fs::write(&file, text).expect("written");
            Pipeline::load(&file).expect("valid")
        };
        let made = parse("[postgres]\ninto = \"/srv/restored\"\nbin_dir = \"/b\"\n");
        assert_eq!(folder_of(&made, Path::new("/etc/p.toml")), Path::new("/srv/restored.recover"));
        let there = parse("[postgres]\nurl = \"host=h\"\n");
        assert_eq!(folder_of(&there, Path::new("/etc/p.toml")), Path::new("/etc/p.toml.recover"));
    }
}

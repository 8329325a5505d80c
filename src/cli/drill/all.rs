//! `tidelog drill all`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::ending::{Told, seed};
use super::{corruption, pipeline, schema, slot};
use crate::cli::output::{print, print_json};
use crate::config::{Archive, Config, Pipeline};
use crate::error::{Error, Kind, Result};
use crate::escape::one_line;
use crate::manifest;
use crate::store::Store;
use crate::stream::{StateKind, StreamId};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file that names the scratch servers (TOML); without it schemas and the pipeline are left out.
    #[arg(long, value_name = "FILE")]
    pipeline: Option<PathBuf>,
    /// The directory below which the scratch directory is made, on a disk with room for the database [default: $TMPDIR, or /var/tmp].
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Where PostgreSQL's own programs of the database's version are [default: where packages have them, and PATH].
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Choose the same random moments again that an earlier drill has told, as long as the archive is the same.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// A superuser of the database.
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    user: String,
    /// Libraries that the scratch server loads at its start, as of the drill corruption.
    #[arg(long, value_name = "LIST", default_value = "")]
    preload: String,
    /// Of each slot so much of the log is decoded, in MiB, as of the drill slot.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    wal: u64,
    /// Read about so many records of each topic, as of the drill schema.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    records: u64,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// What came of all.
#[derive(Default)]
struct All {
    drills: Vec<Value>,
    text: String,
    skipped: Vec<String>,
    findings: usize,
    /// The first that could not be carried out.
    error: Option<Error>,
}

impl All {
    /// Takes in a drill. One that was told to stop ends all.
    fn add(&mut self, name: &str, told: Result<Told>) -> Result<()> {
        match told {
            Ok(Told { json, text, verdict }) => {
                self.drills.push(json);
                self.text += &format!("== {name}\n{text}");
                match verdict {
                    Err(error) if error.kind() == Kind::Incomplete => self.findings += 1,
                    Err(error) => self.failed(error.context(name)),
                    Ok(()) => {}
                }
            }
            Err(error) if error.kind() == Kind::Interrupted => return Err(error),
            Err(error) => {
                self.drills
                    .push(json!({ "drill": name, "ok": false, "outcome": "failed", "error": error.to_string() }));
                self.text += &format!("== {name}\nit was not begun: {}\n", one_line(&error.to_string()));
                self.failed(error.context(name));
            }
        }
        Ok(())
    }

    fn failed(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }

    fn leave_out(&mut self, name: &str, why: &str) {
        self.skipped.push(format!("{name}: {why}"));
    }

    fn end(mut self, json: bool) -> Result<()> {
        let ok = self.findings == 0 && self.error.is_none();
        let outcome = match (self.findings, ok) {
            (1.., _) => "found",
            (_, false) => "failed",
            (_, true) => "passed",
        };
        if json {
            let report =
                json!({ "drill": "all", "ok": ok, "outcome": outcome, "drills": self.drills, "skipped": self.skipped });
            print_json(&report)?;
        } else {
            self.skipped.iter().for_each(|skipped| self.text += &format!("left out: {}\n", one_line(skipped)));
            print(&self.text)?;
        }
        match (self.findings, self.error) {
            (0, None) => Ok(()),
            (0, Some(error)) => Err(error),
            (count, error) => {
                let error = error.map(|error| format!("; and {error}")).unwrap_or_default();
                Err(Error::new(Kind::Incomplete, format!("{count} of the drills have findings{error}")))
            }
        }
    }
}

/// What the archive holds.
struct Held {
    postgres: bool,
    connectors: bool,
    schemas: bool,
}

impl Held {
    async fn look(archive: &Archive) -> Result<Self> {
        let streams = manifest::streams(&Store::open(archive)?).await?;
        let keeps = |kind| streams.iter().filter_map(StreamId::state).any(|of| of.kind == kind);
        let (connectors, schemas) = (keeps(StateKind::Connectors), keeps(StateKind::Schemas));
        let postgres = streams.iter().any(|stream| matches!(stream, StreamId::Postgres { .. }));
        Ok(Self { postgres, connectors, schemas })
    }
}

/// Runs them, one after the other.
pub(super) async fn run(args: &Args, path: &Path) -> Result<()> {
    let drawn = Some(seed(args.seed)?);
    // What is wrong with the files is told before hours of drills.
    let file = args.pipeline.as_ref().map(|file| Ok::<_, Error>((file, Pipeline::load_scratch(file)?))).transpose()?;
    let archive = Archive::load(path)?;
    let config = match file {
        Some(_) => Some(Config::load(path)?),
        // A machine that drills may have nothing but the archive.
        None => Config::load(path).ok(),
    };
    let (held, mut all) = (Held::look(&archive).await?, All::default());
    all.add("corruption", Box::pin(corruption::run(&args.of_corruption(drawn), &archive)).await)?;
    slots(args, drawn, (config.as_ref(), &held), &mut all).await?;
    let (Some(config), Some((file, pipeline))) = (config, file) else {
        all.leave_out("schema", "no --pipeline FILE names a scratch registry");
        all.leave_out("pipeline", "no --pipeline FILE names scratch servers");
        return all.end(args.json);
    };
    match (pipeline.schema_registry.is_some(), held.schemas) {
        (false, _) => all.leave_out("schema", "the pipeline file has no [schema_registry]"),
        (_, false) => all.leave_out("schema", "the archive holds no state of a schema registry"),
        (true, true) => {
            let (pipeline, records, json) = (file.clone(), args.records, args.json);
            let of_schema = schema::Args { pipeline, at: None, seed: drawn, records, json };
            all.add("schema", Box::pin(schema::run(&of_schema, &config)).await)?;
        }
    }
    match (pipeline.kafka.is_some(), held.postgres) {
        (false, _) => all.leave_out("pipeline", "the pipeline file has no [kafka]"),
        (_, false) => all.leave_out("pipeline", NO_POSTGRES),
        (true, true) => {
            let (pipeline, scratch, bin_dir) = (file.clone(), args.scratch.clone(), args.bin_dir.clone());
            let of_pipeline = pipeline::Args { pipeline, scratch, bin_dir, at: None, seed: drawn, json: args.json };
            all.add("pipeline", Box::pin(pipeline::run(&of_pipeline, &config)).await)?;
        }
    }
    all.end(args.json)
}

const NO_POSTGRES: &str = "the archive holds no Postgres";

async fn slots(args: &Args, drawn: Option<u64>, (config, held): (Option<&Config>, &Held), all: &mut All) -> Result<()> {
    let config = match (config, held) {
        (_, Held { postgres: false, .. }) => Err(NO_POSTGRES),
        (_, Held { connectors: false, .. }) => Err("the archive holds no state of connectors"),
        (None, _) => Err("the configuration is not whole"),
        (Some(config), _) => Ok(config),
    };
    let config = match config {
        Ok(config) => config,
        Err(why) => {
            all.leave_out("slot", why);
            return Ok(());
        }
    };
    match Box::pin(slot::run(&args.of_slot(drawn), config)).await {
        // Before PostgreSQL 16 no slot comes back so.
        Err(error) if error.kind() == Kind::Unsupported => all.leave_out("slot", &error.to_string()),
        told => all.add("slot", told)?,
    }
    Ok(())
}

impl Args {
    fn of_corruption(&self, seed: Option<u64>) -> corruption::Args {
        corruption::Args {
            scratch: self.scratch.clone(),
            bin_dir: self.bin_dir.clone(),
            at: None,
            seed,
            system: None,
            user: self.user.clone(),
            preload: self.preload.clone(),
            json: self.json,
        }
    }

    fn of_slot(&self, seed: Option<u64>) -> slot::Args {
        slot::Args {
            scratch: self.scratch.clone(),
            bin_dir: self.bin_dir.clone(),
            at: None,
            seed,
            wal: self.wal,
            user: self.user.clone(),
            json: self.json,
        }
    }
}

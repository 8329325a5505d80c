//! `tidelog drill schema`.

use std::path::PathBuf;

use super::ending::{Told, seed, stopped};
use crate::cli::human;
use crate::config::{Config, Pipeline};
use crate::error::{Error, Kind, Result};
use crate::escape::one_line;
use crate::recover::drill::{self, AskedSchema, Report, Schemas};
use crate::store::Store;
use crate::time;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file that names the scratch servers (TOML), as that of recover: its section schema_registry.
    #[arg(long, value_name = "FILE")]
    pub(super) pipeline: PathBuf,
    /// The schemas of this moment, and not of a random one: RFC 3339, now, -90m, -2h, -7d.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(super) at: Option<String>,
    /// Choose the same random moment and records again that an earlier drill has told, as long as the archive is the same.
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,
    /// Read about so many records of each topic, in segments that the seed draws.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub(super) records: u64,
    /// Print the report as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs it.
pub(super) async fn run(args: &Args, config: &Config) -> Result<Told> {
    let pipeline = Pipeline::load_scratch(&args.pipeline)?;
    let registry = pipeline.schema_registry.ok_or_else(|| {
        let message = format!("{}: schema_registry: is missing", args.pipeline.display());
        Error::new(Kind::Config, message).hint("name a scratch registry: [schema_registry] with url")
    })?;
    let at = args.at.as_deref().map(|at| time::parse_micros(at, time::now(), false)).transpose();
    let at = at.map_err(|error| error.context("--at"))?.map(|us| us.div_euclid(1_000));
    let asked = AskedSchema { registry, at, seed: seed(args.seed)?, records: args.records };
    let store = Store::open(&config.archive)?;
    let stop = stopped("the scratch registry is as it was");
    let (report, error) = Box::pin(drill::schema((&store, config), &asked, stop)).await?;
    Told::of((&report, error), text)
}

fn text(report: &Report<Schemas>) -> String {
    let Schemas { registry, at, subjects, versions, records, notes, .. } = &report.about;
    let at = at.map(time::utc).unwrap_or_default();
    let mut text = format!(
        "schemas: {} with {} as of {at} (seed {}), in {}\n",
        human::many(*subjects as u64, "subject"),
        human::many(*versions as u64, "version"),
        report.seed,
        one_line(registry)
    );
    text += &format!(
        "records: {} of {} read in {}: {} keys and values decoded, {} named without being decoded, {} without a schema\n",
        records.read,
        records.archived,
        human::many(records.topics, "topic"),
        records.decoded,
        records.named,
        records.without
    );
    notes.iter().for_each(|note| text += &format!("  note     {}\n", one_line(note)));
    text
}

//! `tidelog cat`: records of one topic as JSON lines, or the state as it was at a moment.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{all_read, cluster, times};
use crate::cli::{human, output};
use crate::config::Config;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::replay::{self, Counters, Offsets, Only, Partitions, Plan, Query, Rename, Tempo, topic_pattern};
use crate::store::Store;
use crate::stream::StateKind;

/// Prints records as JSON lines: segment by segment as they were archived, and each partition in offset order.
///
/// Text stands as text, other bytes as {"base64":"…"}, null as null. Without a range every record is printed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidelog cat --topic orders -n 5
  tidelog cat --topic orders --from -1h | jq .value
  tidelog cat --topic orders --partition 3 --offsets 120400..120410
  tidelog cat --topic orders --key 4711 --from -30d
  tidelog cat --state topics --at -1d | jq .state.orders.settings
  tidelog cat --state connectors --at -1h | jq '.state.connectors[] | {state, offsets}'")]
pub(crate) struct Args {
    /// The topic, or ^ and a regex
    #[arg(long, value_name = "TOPIC", required_unless_present = "state")]
    topic: Option<String>,
    /// Instead of records, the pipeline's own state as one JSON document: topics, groups, acls,
    /// connectors, schemas or slots
    #[arg(long, value_name = "KIND", conflicts_with_all = ["topic", "partition", "from", "to", "offsets", "limit", "generation", "key", "key_base64"])]
    state: Option<StateKind>,
    /// The state as it was at this time: RFC 3339, now, -90m, -2h, -7d
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, requires = "state", conflicts_with = "topic")]
    at: Option<String>,
    /// Whose state, where the archive holds that of several: the cluster's name, as `tidelog ls` prints it after the kind
    #[arg(long, value_name = "NAME", requires = "state")]
    of: Option<String>,
    /// Print passwords and keys in the configs of connectors, too
    #[arg(long, requires = "state")]
    secrets: bool,
    /// Only these partitions: 3 or 0,3-5
    #[arg(long, value_name = "LIST")]
    partition: Option<Partitions>,
    /// Only records at or after this time: RFC 3339, now, -90m, -2h, -7d
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: Option<String>,
    /// Only records before this time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    to: Option<String>,
    /// Only records with this key, as text: what happened to it. Parquet segments say by filters what may have it; others are read whole
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// The same of a key that is no text, as it is printed: base64
    #[arg(long, value_name = "BASE64", conflicts_with = "key")]
    key_base64: Option<String>,
    /// Only these offsets: from A up to, and without, B; either may be left out
    #[arg(long, value_name = "A..B")]
    offsets: Option<Offsets>,
    /// At most this many records
    #[arg(short = 'n', value_name = "N")]
    limit: Option<u64>,
    /// Which generation of a topic that was deleted and created again, from 0. Without it every generation is printed, the oldest
    /// first; with --offsets the newest alone
    #[arg(long, value_name = "NUMBER")]
    generation: Option<u32>,
}

/// Runs the command.
pub(crate) async fn run(args: &Args, config: &Config) -> Result<()> {
    if let Some(kind) = args.state {
        let (of, secrets) = (args.of.as_deref(), args.secrets);
        return super::state::cat((kind, of), args.at.as_deref(), secrets, config).await;
    }
    let only = Only { limit: args.limit, key: key(args)? };
    let query = query(args, &only)?;
    let store = Store::open(&config.archive)?;
    let found = replay::sources(&store, cluster(config), &query).await?;
    let (sources, damaged) = (found.sources, found.damaged);
    let nowhere = sources.iter().all(|source| query.ranges(&source.positions).is_empty());
    if let Some(partitions) = query.partitions.as_ref().filter(|_| nowhere && damaged.is_empty()) {
        return Err(Error::new(Kind::NotFound, format!("{} has no partition {partitions}", topic(args)))
            .hint("`tidelog ls --json` prints the partitions"));
    }
    for warning in replay::expired(&sources, &query) {
        output::tell(&format!("warning: {warning}"));
    }
    let plan = Arc::new(Plan::new(sources, &query, &Rename::default())?);
    let counters = Arc::new(Counters::default());
    let until_signal = crate::cli::replay::interrupted();
    let to_lines = replay::to_lines(&store, &plan, Tempo::default(), only, output::standard(), &counters, until_signal);
    let tally = to_lines.await?;
    let read =
        all_read(&damaged.into_iter().map(|(generation, error)| (generation.stream(), error)).collect::<Vec<_>>());
    if tally.read_whole > 0 {
        let segments = human::many(tally.read_whole, "segment");
        output::tell(&format!("note: {segments} without filters of keys (Avro, or of an older version), read whole"));
    }
    let stops = replay::told(&plan, &tally.stops);
    for stop in &stops {
        output::tell(&format!("error: {stop}"));
    }
    if stops.is_empty() {
        return read;
    }
    let segments = human::many(stops.len() as u64, "segment");
    Err(Error::new(Kind::Incomplete, format!("{segments} could not be read; other partitions are printed whole"))
        .hint(replay::WAY_OUT))
}

fn topic(args: &Args) -> &str {
    args.topic.as_deref().unwrap_or_default()
}

fn query(args: &Args, only: &Only) -> Result<Query> {
    Ok(Query {
        topics: vec![topic_pattern(topic(args))?],
        generation: args.generation,
        partitions: args.partition.clone(),
        timestamps: times(args.from.as_deref(), args.to.as_deref(), crate::time::now())?,
        offsets: args.offsets,
        with_key: only.key.clone(),
    })
}

/// The bytes of the key that is asked for.
fn key(args: &Args) -> Result<Option<Arc<[u8]>>> {
    let Some(encoded) = &args.key_base64 else { return Ok(args.key.as_ref().map(|key| key.as_bytes().into())) };
    let decoded = STANDARD.decode(encoded).map(|key| Some(key.into()));
    decoded.or_err(Kind::Config, || format!("--key-base64 {encoded:?} is not base64"))
}

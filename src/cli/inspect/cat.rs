//! `tidelog cat`: records of one topic as JSON lines, or the state as it was at a moment.

use std::sync::Arc;

use super::{all_read, cluster, times};
use crate::cli::{human, output};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::replay::{self, Counters, Offsets, Partitions, Plan, Query, Rename, Tempo, topic_pattern};
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
  tidelog cat --state topics --at -1d | jq .state.orders.settings")]
pub(crate) struct Args {
    /// The topic, or ^ and a regex
    #[arg(long, value_name = "TOPIC", required_unless_present = "state")]
    topic: Option<String>,
    /// Instead of records, the pipeline's own state as one JSON document: topics, groups or acls
    #[arg(long, value_name = "KIND", conflicts_with_all = ["topic", "partition", "from", "to", "offsets", "limit", "generation"])]
    state: Option<StateKind>,
    /// The state as it was at this time: RFC 3339, now, -90m, -2h, -7d
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, requires = "state", conflicts_with = "topic")]
    at: Option<String>,
    /// Only these partitions: 3 or 0,3-5
    #[arg(long, value_name = "LIST")]
    partition: Option<Partitions>,
    /// Only records at or after this time: RFC 3339, now, -90m, -2h, -7d
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: Option<String>,
    /// Only records before this time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    to: Option<String>,
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
        return super::state::cat(kind, args.at.as_deref(), config).await;
    }
    let topic = args.topic.as_deref().unwrap_or_default();
    let query = Query {
        topics: vec![topic_pattern(topic)?],
        generation: args.generation,
        partitions: args.partition.clone(),
        timestamps: times(args.from.as_deref(), args.to.as_deref(), crate::time::now())?,
        offsets: args.offsets,
    };
    let store = Store::open(&config.archive)?;
    let found = replay::sources(&store, cluster(config), &query).await?;
    let (sources, damaged) = (found.sources, found.damaged);
    let nowhere = sources.iter().all(|source| query.ranges(&source.positions).is_empty());
    if let Some(partitions) = query.partitions.as_ref().filter(|_| nowhere && damaged.is_empty()) {
        return Err(Error::new(Kind::NotFound, format!("{topic} has no partition {partitions}"))
            .hint("`tidelog ls --json` prints the partitions"));
    }
    for warning in replay::expired(&sources, &query) {
        output::tell(&format!("warning: {warning}"));
    }
    let plan = Arc::new(Plan::new(sources, &query, &Rename::default())?);
    let counters = Arc::new(Counters::default());
    let until_signal = crate::cli::replay::interrupted();
    let to_lines =
        replay::to_lines(&store, &plan, Tempo::default(), args.limit, output::standard(), &counters, until_signal);
    let tally = to_lines.await?;
    let read =
        all_read(&damaged.into_iter().map(|(generation, error)| (generation.stream(), error)).collect::<Vec<_>>());
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

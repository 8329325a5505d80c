//! `tidelog replay`: the plan shown, the target checked, the records sent, and how to go on.

mod cut;
mod groups;
mod send;
mod settings;
mod shown;

use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use self::cut::ToCommit;
use self::shown::{extent, plan_text, planned_result};
use super::inspect::{cluster, times};
use super::output::{self, print, print_json};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::replay::journal::Settings;
use crate::replay::kafka::{Connection, Target};
use crate::replay::{
    self, Counters, GroupsWanted, Moving, Offsets, Partitions, Plan, Query, Rate, Rename, Request, Selection, Speed,
    Tempo, all_decoded, also_left_out, nothing_left_out, readable, warnings_of,
};
use crate::store::Store;
use crate::stream::is_name;
use crate::time;

/// Sends the records of a time range, or of a range of offsets, back into Kafka or to the standard output.
///
/// Records keep their partition, key, value, headers and timestamp. They are sent in transactions that carry the
/// progress with them: the same --id goes on exactly where the last run ended, whatever ended it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidelog replay --from -1h --topics '^cdc\\.' --rename '(.*)=replay.$1' --dry-run
  tidelog replay --from 2026-11-22T07:00:00Z --to 2026-11-22T08:00:00Z --topics orders --into other:9092
  tidelog replay --topics orders --partitions 3 --offsets 120400..122000 --rename 'orders=orders.repaired'
  tidelog replay --from -10m --topics orders --speed 1x --to-stdout | jq .value
  tidelog replay --all --topics orders --into other:9092 --groups '^billing' --groups connect-orders-sink
  tidelog replay --to-commit 2026-11-22T08:00:00Z --topics '^cdc\\.' --into other:9092 --dry-run

Without --from the range begins with the archive, without --to it ends now. Records are taken with
from <= timestamp < to, in whatever order they were written; --all takes what is archived now, whatever its timestamps.
Every generation of a topic that was deleted and created again is replayed, the oldest first; with --offsets the newest alone,
unless --generation names another.

--groups puts consumer groups where they were: the next record that each reads is the one that it would have read. Nobody
may read with them then. --dry-run prints every position.

What an --id stands for is written down in the archive when it is begun: the same --id sends just that, once.")]
pub(crate) struct Args {
    /// Records at or after this time: RFC 3339, now, -90m, -2h, -7d
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: Option<String>,
    /// Records before this time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    to: Option<String>,
    /// Everything that is archived now, whatever its timestamps
    #[arg(long, conflicts_with_all = ["from", "to", "offsets"])]
    all: bool,
    /// Change events of transactions that committed at or before this time, or position in the Postgres log (16/B374D848), and no others
    #[arg(long, value_name = "TIME|LSN", allow_hyphen_values = true, conflicts_with_all = ["from", "to", "offsets", "all", "after"])]
    to_commit: Option<String>,
    /// Only what has come into the archive since that replay (of --all, or --after another one) was begun
    #[arg(long, value_name = "ID", value_parser = valid_id, conflicts_with_all = ["from", "to", "offsets", "all", "to_stdout"])]
    after: Option<String>,
    /// Topics: names, or ^ and a regex; all topics without it
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    topics: Vec<String>,
    /// Only these partitions: 0,3-5
    #[arg(long, value_name = "LIST")]
    partitions: Option<Partitions>,
    /// Only these offsets of one partition of one topic: from A up to, and without, B; either may be left out
    #[arg(long, value_name = "A..B")]
    offsets: Option<Offsets>,
    /// Which generation of a topic that was deleted and created again, from 0
    #[arg(long, value_name = "NUMBER")]
    generation: Option<u32>,
    /// Send each topic to another one: the regex's first match in its name is replaced by the template
    #[arg(long, value_name = "RE=TEMPLATE")]
    rename: Option<String>,
    /// Send to this cluster instead of the configured one, without TLS and SASL
    #[arg(long, value_name = "BOOTSTRAP")]
    into: Option<String>,
    /// Send to the cluster that this file of librdkafka properties (key=value lines) describes
    #[arg(long, value_name = "FILE")]
    into_config: Option<PathBuf>,
    /// Print JSON lines instead of sending anything
    #[arg(long, conflicts_with_all = ["into", "into_config", "id", "rename", "json"])]
    to_stdout: bool,
    /// At most this much a second: 5000/s, 5MiB/s
    #[arg(long, value_name = "N/s")]
    rate: Option<Rate>,
    /// In the rhythm in which the records were written, partitions in step: 1x, 0.5x, 10x
    #[arg(long, value_name = "FACTOR")]
    speed: Option<Speed>,
    /// Name this replay, to be able to go on with it; one is made up otherwise
    #[arg(long, value_name = "ID", value_parser = valid_id)]
    id: Option<String>,
    /// Topics that are created get archived settings that could cost a record (retention, compaction, limits) at the end, or by you [default: safe]
    #[arg(long, value_enum, value_name = "safe|archived", hide_possible_values = true, conflicts_with = "to_stdout")]
    settings: Option<Settings>,
    /// At the end, put these consumer groups of the archive where they were: names, or ^ and a regex (once for each)
    #[arg(long, value_name = "RE", conflicts_with_all = ["to_stdout", "unrecorded"])]
    groups: Vec<String>,
    /// As they were at this time; at the end of the range without it
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, requires = "groups")]
    groups_at: Option<String>,
    /// While records are sent, show Prometheus how many, at http://ADDRESS/metrics
    #[arg(long, value_name = "ADDRESS", conflicts_with = "to_stdout")]
    metrics: Option<std::net::SocketAddr>,
    /// Do not write the replay down beside the archive (one that is read-only): only the target's group remembers it
    #[arg(long, conflicts_with_all = ["to_stdout", "after"])]
    unrecorded: bool,
    /// Print the plan and what the target has against it, and send nothing
    #[arg(long)]
    dry_run: bool,
    /// Yes, send records into the very topic that they came from, or into one that will not keep them as they are
    #[arg(long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An id becomes part of a group's name and of a transactional id.
fn valid_id(text: &str) -> Result<String, String> {
    if is_name(text) {
        Ok(text.to_owned())
    } else {
        Err("an id has 1 to 100 letters, digits, dots, underscores and dashes, and no dot first".to_owned())
    }
}

/// Done once the user or the system asks the program to stop.
pub(super) async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// Runs the command.
///
/// # Errors
/// `Kind::Interrupted` if the user stopped it; what was sent until then is committed.
pub(crate) async fn run(args: &Args, config: &Config) -> Result<()> {
    let now = time::now();
    let query = args.query(now)?;
    let tempo = Tempo { rate: args.rate, speed: args.speed };
    let store = Store::open(&config.archive)?;
    if args.to_stdout {
        return to_stdout(args, config, &store, (&query, now), tempo).await;
    }
    if args.unrecorded && args.settings == Some(Settings::Archived) {
        return Err(Error::new(Kind::Config, "--settings archived and --unrecorded do not go together").hint(
            "what is left to do at the end is written down beside the archive: a run that goes on has to know it",
        ));
    }
    let mut cut = args.cut(&store, config, &query, now).await?;
    let id = args.id.clone().map_or_else(new_id, Ok)?;
    let target = Arc::new(Target::new(args.connection(config)?, &id)?);
    let mut replay = replay::prepare(&store, &args.request(config, query, cut.as_ref()), &target, now).await?;
    if let Some(cut) = cut.as_mut().filter(|_| !replay.anew) {
        cut.hold_against(replay.journal.begun.as_ref())?;
    }
    replay.findings.warnings.extend(cut.iter().flat_map(ToCommit::warnings));
    if !args.json {
        print(&plan_text(&replay, cut.as_ref(), args.dry_run, tempo))?;
    }
    replay.findings.verdict()?;
    if args.dry_run {
        if args.json {
            print_json(&planned_result(&replay, cut.as_ref(), tempo))?;
        }
        if let Some(groups) = &replay.groups {
            groups.shown().verdict()?;
        }
        nothing_left_out(&replay.left_out)?;
        return cut.as_ref().map_or(Ok(()), ToCommit::verdict);
    }
    replay.accepted(args.yes)?;
    send::send(args, &store, (replay, cut.as_ref()), tempo).await?;
    cut.as_ref().map_or(Ok(()), ToCommit::verdict)
}

async fn to_stdout(
    args: &Args,
    config: &Config,
    store: &Store,
    (query, now): (&Query, DateTime<Utc>),
    tempo: Tempo,
) -> Result<()> {
    let cut = args.cut(store, config, query, now).await?;
    let (sources, left_out) = readable(replay::sources(store, cluster(config), query).await?);
    let mut warnings = warnings_of(&left_out);
    warnings.extend(cut.iter().flat_map(ToCommit::warnings));
    let left_out: Vec<_> = left_out.into_iter().map(|(generation, _)| generation).collect();
    warnings.extend(replay::shortfalls(&sources, query, now));
    warnings.extend(replay::unmatched(&sources, query));
    for warning in warnings {
        output::tell(&format!("warning: {warning}"));
    }
    let plan = Plan::new(sources, query, &Rename::default())?.only(cut.as_ref().map(ToCommit::chosen));
    let plan = Arc::new(plan);
    if args.dry_run {
        let cut_text = cut.as_ref().map_or(String::new(), ToCommit::text);
        print(&format!("Plan  (nothing is printed)\n{}{cut_text}", extent(&plan, query)))?;
        nothing_left_out(&left_out)?;
        return cut.as_ref().map_or(Ok(()), ToCommit::verdict);
    }
    let counters = Arc::new(Counters::default());
    let holding = replay::Holding::begin(store, &plan, &new_id()?).await;
    let tally =
        replay::to_lines(store, &plan, tempo, replay::Only::default(), output::standard(), &counters, interrupted())
            .await;
    holding.end().await;
    let tally = tally?;
    for warning in replay::told(&plan, &tally.stops) {
        output::tell(&format!("warning: {warning}"));
    }
    also_left_out(all_decoded(&plan, &tally), &left_out)?;
    cut.as_ref().map_or(Ok(()), ToCommit::verdict)
}

impl Args {
    fn query(&self, now: DateTime<Utc>) -> Result<Query> {
        let selection = self.selection();
        let query = selection.query(times(self.from.as_deref(), self.to.as_deref(), now)?)?;
        let usage = |message: &str, hint: &str| Err(Error::new(Kind::Config, message).hint(hint));
        let is_all = self.all || self.after.is_some() || self.to_commit.is_some();
        if query.timestamps.is_none() && query.offsets.is_none() && !is_all {
            let hint = "give --from, --to or both (--from -1h), --offsets, --to-commit, or --all";
            return usage("nothing says which records", hint);
        }
        let one_topic = selection.is_one_topic();
        let one_partition = query.partitions.as_ref().is_some_and(|partitions| partitions.single().is_some());
        if query.offsets.is_some() && !(one_topic && one_partition) {
            return usage(
                "--offsets belong to one partition of one topic",
                "name them: --topics orders --partitions 3",
            );
        }
        Ok(query)
    }

    /// What of the command decides which records are sent where, apart from the times and from what was sent before.
    fn selection(&self) -> Selection {
        Selection {
            topics: self.topics.clone(),
            partitions: self.partitions.clone(),
            offsets: self.offsets,
            generation: self.generation,
            rename: self.rename.clone(),
            chosen_by: None,
        }
    }

    /// What of the topics belongs to the commit that is named.
    async fn cut(&self, store: &Store, config: &Config, query: &Query, now: DateTime<Utc>) -> Result<Option<ToCommit>> {
        let Some(text) = &self.to_commit else { return Ok(None) };
        ToCommit::judge(store, (text, cluster(config)), query, now).await.map(Some)
    }

    fn request(&self, config: &Config, query: Query, cut: Option<&ToCommit>) -> Request {
        let groups =
            (!self.groups.is_empty()).then(|| GroupsWanted { groups: self.groups.clone(), at: self.groups_at.clone() });
        Request {
            cluster: cluster(config).map(str::to_owned),
            selection: Selection { chosen_by: cut.map(|cut| format!("commit {}", cut.end())), ..self.selection() },
            timestamps: query.timestamps,
            moving: self.moving(),
            after: self.after.clone(),
            chosen: cut.map(|cut| cut.chosen().clone()),
            schema_ids: Default::default(),
            until: cut.and_then(ToCommit::at),
            settings: self.settings,
            groups,
            recorded: !self.unrecorded,
            own: config.kafka.clone(),
            into_own: self.into.is_none() && self.into_config.is_none(),
        }
    }

    fn connection(&self, config: &Config) -> Result<Connection> {
        match (&self.into_config, &self.into, &config.kafka) {
            (Some(file), into, _) => Connection::of_file(file, into.as_deref()),
            (None, Some(bootstrap), _) => Ok(Connection::plain(bootstrap)),
            (None, None, Some(kafka)) => Ok(Connection::of_config(kafka)),
            (None, None, None) => {
                Err(Error::new(Kind::Config, "the configuration has no [kafka], so there is no target")
                    .hint("name one with --into or --into-config, or print the records with --to-stdout"))
            }
        }
    }

    /// Which ends of the range move with the clock: an end that was left out is now, a beginning that was left out is
    /// the archive's.
    fn moving(&self) -> Moving {
        let moves = |text: &str| time::is_relative(text);
        Moving { from: self.from.as_deref().is_some_and(moves), to: self.to.as_deref().is_none_or(moves) }
    }
}

fn new_id() -> Result<String> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|error| Error::new(Kind::Internal, format!("no random numbers: {error}")))?;
    Ok(format!("r-{:08x}", u32::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &[&str]) -> Args {
        Command::try_parse_from([&["replay"], words].concat()).expect("valid options").args
    }

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp_millis(1_795_334_712_345).expect("a time")
    }

    #[test]
    fn a_replay_has_to_say_which_records() {
        for wrong in [
            &["--topics", "orders"] as &[&str],
            &["--offsets", "1..2", "--topics", "orders"],
            &["--offsets", "1..2", "--topics", "^o", "--partitions", "1"],
            &["--offsets", "1..2", "--topics", "a,b", "--partitions", "1"],
            &["--offsets", "1..2", "--topics", "orders", "--partitions", "1,2"],
            &["--from", "now", "--to", "-1h"],
        ] {
            assert_eq!(args(wrong).query(now()).expect_err("usage").exit_code(), 2, "{wrong:?}");
        }
        let query = args(&["--from", "-1h", "--topics", "orders,^cdc\\."]).query(now()).expect("a range");
        assert_eq!((query.topics.len(), query.timestamps), (2, Some(1_795_331_112_345..1_795_334_712_345)));
        let query =
            args(&["--offsets", "1..2", "--topics", "orders", "--partitions", "1"]).query(now()).expect("offsets");
        assert!(query.timestamps.is_none() && query.offsets.is_some());
        for id in ["", "a b", "ä", "x/y"] {
            assert!(Command::try_parse_from(["replay", "--from", "-1h", "--id", id]).is_err(), "{id:?}");
        }
    }
}

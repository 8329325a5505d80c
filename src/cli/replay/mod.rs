//! `tidelog replay`: the plan shown, the target checked, the records sent, and how to go on.

mod shown;

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};

use self::shown::{Outcome, extent};
use super::inspect::{cluster, print, print_json, times};
use super::progress::{Progress, Unit};
use crate::config::{Config, Kafka};
use crate::error::{Error, Kind, Result};
use crate::http::ReplayListener;
use crate::replay::kafka::{self, Connection, Findings, Identity, Progress as Known, Ready, Target};
use crate::replay::{
    self, Counters, Offsets, Partitions, Plan, Query, Rate, Rename, Source, Speed, Tempo, topic_pattern,
};
use crate::store::Store;
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

Without --from the range begins with the archive, without --to it ends now. Records are taken with
from <= timestamp < to, in whatever order they were written. Every life of a topic that was deleted and created again
is replayed, the oldest first; with --offsets the newest alone, unless --generation names another.")]
pub(crate) struct Args {
    /// Records at or after this time: RFC 3339, now, -90m, -2h, -7d
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: Option<String>,
    /// Records before this time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    to: Option<String>,
    /// Topics: names, or ^ and a regex; all topics without it
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    topics: Vec<String>,
    /// Only these partitions: 0,3-5
    #[arg(long, value_name = "LIST")]
    partitions: Option<Partitions>,
    /// Only these offsets of one partition of one topic: from A up to, and without, B; either may be left out
    #[arg(long, value_name = "A..B")]
    offsets: Option<Offsets>,
    /// Which life of a topic that was deleted and created again, from 0
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
    /// While records are sent, show Prometheus how many, at http://ADDRESS/metrics
    #[arg(long, value_name = "ADDRESS", conflicts_with = "to_stdout")]
    metrics: Option<std::net::SocketAddr>,
    /// Print the plan and what the target has against it, and send nothing
    #[arg(long)]
    dry_run: bool,
    /// Yes, send records into the very topic that they came from
    #[arg(long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An id becomes part of a group's name and of a transactional id.
fn valid_id(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=100).contains(&text.len()) && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("an id has 1 to 100 letters, digits, dots, underscores and dashes".to_owned())
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
    let now = Utc::now();
    let query = args.query(now)?;
    let tempo = Tempo { rate: args.rate, speed: args.speed };
    let store = Store::open(&config.archive)?;
    if args.to_stdout {
        return to_stdout(args, config, &store, &query, tempo).await;
    }
    let id = args.id.clone().map_or_else(new_id, Ok)?;
    let target = Arc::new(Target::new(args.connection(config)?, &id)?);
    let replay = prepare(args, config, &store, query, &target, now).await?;
    if !args.json {
        print(&replay.text(args.dry_run))?;
    }
    replay.findings.verdict()?;
    if args.dry_run {
        return if args.json { print_json(&replay.planned_result()) } else { Ok(()) };
    }
    if replay.into_itself && !args.yes {
        return Err(Error::new(Kind::Config, "records would be sent into the very topic that they came from")
            .hint("give the copies another name with --rename, or say --yes if this is what you want"));
    }
    send(args, &store, replay, tempo).await
}

async fn to_stdout(args: &Args, config: &Config, store: &Store, query: &Query, tempo: Tempo) -> Result<()> {
    let sources = replay::sources(store, cluster(config), query).await?;
    for warning in replay::shortfalls(&sources, query) {
        eprintln!("warning: {warning}");
    }
    let plan = Arc::new(Plan::new(sources, query, &Rename::default())?);
    if args.dry_run {
        return print(&format!("Plan  (nothing is printed)\n{}", extent(&plan, query)));
    }
    let counters = Arc::new(Counters::default());
    replay::to_lines(store, &plan, tempo, None, io::stdout(), &counters, interrupted()).await.map(|_| ())
}

impl Args {
    fn query(&self, now: DateTime<Utc>) -> Result<Query> {
        let query = Query {
            topics: self.topics.iter().map(|text| topic_pattern(text)).collect::<Result<_>>()?,
            generation: self.generation,
            partitions: self.partitions.clone(),
            timestamps: times(self.from.as_deref(), self.to.as_deref(), now)?,
            offsets: self.offsets,
        };
        let usage = |message: &str, hint: &str| Err(Error::new(Kind::Config, message).hint(hint));
        if query.timestamps.is_none() && query.offsets.is_none() {
            return usage("nothing says which records", "give --from, --to or both (--from -1h), or --offsets");
        }
        let one_topic = matches!(query.topics.as_slice(), [crate::config::TopicPattern::Name(_)]);
        let one_partition = query.partitions.as_ref().is_some_and(|partitions| partitions.single().is_some());
        if query.offsets.is_some() && !(one_topic && one_partition) {
            return usage(
                "--offsets belong to one partition of one topic",
                "name them: --topics orders --partitions 3",
            );
        }
        Ok(query)
    }

    /// What of the command decides which records are sent where, apart from the times.
    fn digest(&self, config: &Config) -> String {
        let list = |partitions: Option<&Partitions>| partitions.map(ToString::to_string);
        let said = format!(
            "{:?}",
            (
                cluster(config),
                &self.topics,
                list(self.partitions.as_ref()),
                self.offsets.map(|offsets| offsets.to_string()),
                self.generation,
                &self.rename
            )
        );
        format!("{:x}", Sha256::digest(said)).chars().take(16).collect()
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

/// Which ends of a range move with the clock.
#[derive(Debug, Clone, Copy)]
struct Moving {
    from: bool,
    to: bool,
}

fn new_id() -> Result<String> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|error| Error::new(Kind::Internal, format!("no random numbers: {error}")))?;
    Ok(format!("r-{:08x}", u32::from_be_bytes(bytes)))
}

/// A replay that is planned and checked.
struct Prepared {
    id: String,
    query: Query,
    identity: Identity,
    plan: Plan,
    findings: Findings,
    target: Arc<Target>,
    /// An earlier run of this id has sent some of it.
    resumed: bool,
    /// A target topic is the source itself.
    into_itself: bool,
}

async fn prepare(
    args: &Args,
    config: &Config,
    store: &Store,
    mut query: Query,
    target: &Arc<Target>,
    now: DateTime<Utc>,
) -> Result<Prepared> {
    let rename = args.rename.as_deref().map_or(Ok(Rename::default()), Rename::parse)?;
    let mut sources = replay::sources(store, cluster(config), &query).await?;
    let mut identity = Identity { timestamps: query.timestamps.clone(), digest: args.digest(config) };
    let earlier = target.earlier(&partitions(&sources, &rename)?, Known::Known).await?;
    if let Some(begun) = &earlier.identity {
        settle(begun, &identity, args.moving(), &target.id)?;
        if begun.timestamps != query.timestamps {
            query.timestamps.clone_from(&begun.timestamps);
            identity.timestamps.clone_from(&begun.timestamps);
            sources = replay::sources(store, cluster(config), &query).await?;
        }
    }
    let mut warnings = replay::shortfalls(&sources, &query);
    let plan = Plan::new(sources, &query, &rename)?.after(&earlier.marks);
    let mut findings = kafka::preflight(store, target, &plan, now).await?;
    let into_itself = match &config.kafka {
        Some(kafka) => {
            let (itself, tailed) = returns(&plan, kafka, target, args).await?;
            warnings.extend(tailed);
            itself
        }
        None => false,
    };
    findings.warnings.splice(0..0, warnings);
    let resumed = !earlier.marks.is_empty();
    Ok(Prepared {
        id: target.id.clone(),
        query,
        identity,
        plan,
        findings,
        target: Arc::clone(target),
        resumed,
        into_itself,
    })
}

/// Every target partition that the sources have.
fn partitions(sources: &[Source], rename: &Rename) -> Result<Vec<(String, i32)>> {
    let mut all = std::collections::BTreeSet::new();
    for source in sources {
        let topic = rename.target(&source.stream.topic)?;
        all.extend(source.positions.iter().map(|at| (topic.clone(), at.partition)));
    }
    Ok(all.into_iter().collect())
}

/// Whether this command may go on with what was `begun` under its id. An end of the range that moves with the clock gives
/// way to the one that was fixed when the replay began.
fn settle(begun: &Identity, wanted: &Identity, moving: Moving, id: &str) -> Result<()> {
    let refused = |how: String| {
        Err(Error::new(Kind::Config, format!("the replay {id} was begun with {how}"))
            .hint("repeat the options that it was begun with, or choose another --id"))
    };
    if begun.digest != wanted.digest {
        return refused("other topics, partitions, offsets or names".to_owned());
    }
    match (&begun.timestamps, &wanted.timestamps) {
        (None, None) => Ok(()),
        (Some(then), Some(now)) if (moving.from || then.start == now.start) && (moving.to || then.end == now.end) => {
            Ok(())
        }
        (Some(then), _) => refused(format!("{}--to {}", from_option(then), time::rfc3339(then.end))),
        (None, Some(_)) => refused("no range of times".to_owned()),
    }
}

fn from_option(range: &Range<i64>) -> String {
    if range.start == i64::MIN { String::new() } else { format!("--from {} ", time::rfc3339(range.start)) }
}

/// Whether records go back into their own topic, and which targets the archiver reads itself.
async fn returns(plan: &Plan, kafka: &Kafka, target: &Target, args: &Args) -> Result<(bool, Vec<String>)> {
    let patterns = kafka.topics.iter().map(|text| topic_pattern(text)).collect::<Result<Vec<_>>>()?;
    let tailed = |topic: &str| patterns.iter().any(|pattern| pattern.matches(topic)) && !kafka.excludes(topic);
    let own = |topic: &str| plan.parts.iter().any(|part| part.target == topic && part.stream.topic == topic);
    let close: Vec<&str> = plan.targets().into_iter().filter(|topic| tailed(topic) || own(topic)).collect();
    if close.is_empty() || !same_cluster(kafka, target, args).await? {
        return Ok((false, Vec::new()));
    }
    let warn = |topic: &&&str| tailed(topic);
    let warnings = close.iter().filter(warn).map(|topic| {
        format!("{topic} is archived by this configuration itself: what is replayed into it will be archived again")
    });
    Ok((close.iter().any(|topic| own(topic)), warnings.collect()))
}

async fn same_cluster(kafka: &Kafka, target: &Target, args: &Args) -> Result<bool> {
    if (args.into.is_none() && args.into_config.is_none()) || target.bootstrap() == kafka.bootstrap_servers {
        return Ok(true);
    }
    let source = Target::new(Connection::of_config(kafka), &target.id)?;
    let (source, target) = tokio::try_join!(source.cluster_id(), target.cluster_id())?;
    // A source that does not answer is not where the records are going.
    Ok(source.is_some() && source == target)
}

async fn send(args: &Args, store: &Store, replay: Prepared, tempo: Tempo) -> Result<()> {
    let go_on = resume_command(&std::env::args().collect::<Vec<_>>(), &replay.id, replay.identity.timestamps.as_ref());
    let Prepared { id, identity, plan, mut findings, target, resumed, .. } = replay;
    let mut result = Outcome { replay_id: id.clone(), segments: plan.segments(), ..Outcome::default() };
    if plan.parts.is_empty() {
        result.warnings = findings.warnings;
        let word = if resumed {
            format!("the replay {id} is finished: there is nothing left to send\n")
        } else {
            "no record lies in this range\n".to_owned()
        };
        return if args.json { print_json(&result) } else { print(&word) };
    }
    if args.json {
        eprintln!("replay {id} begins");
    }
    let counters = Arc::new(Counters::default());
    if let Some(listen) = args.metrics {
        tokio::spawn(ReplayListener::bind(listen, &id, Arc::clone(&counters)).await?.serve());
    }
    let (most, _) = plan.records();
    let stopped = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stop = {
        let stopped = Arc::clone(&stopped);
        async move {
            interrupted().await;
            stopped.store(true, std::sync::atomic::Ordering::Relaxed);
            eprintln!("stopping: what was sent is being committed (once more to stop at once)");
            tokio::spawn(async {
                interrupted().await;
                std::process::exit(1);
            });
        }
    };
    let started = Instant::now();
    let warnings = std::mem::take(&mut findings.warnings);
    let sent = {
        let shown = Arc::clone(&counters);
        let _bar = Progress::follow("replay", Unit::Records, move || (shown.records(), most));
        let ready = Ready { store, target, identity, plan, findings };
        kafka::send(ready, tempo, &counters, stop).await
    };
    let (plan, tally) = sent.map_err(|error| with_way_on(error, &go_on))?;
    result.seconds = started.elapsed().as_secs_f64();
    result.sent(&plan, &tally, warnings);
    if args.json {
        print_json(&result)?
    } else {
        print(&result.text(&tally))?
    }
    if stopped.load(std::sync::atomic::Ordering::Relaxed) {
        return Err(Error::new(Kind::Interrupted, format!("the replay {id} was stopped before its end"))
            .hint(format!("go on with: {go_on}")));
    }
    Ok(())
}

fn with_way_on(error: Error, go_on: &str) -> Error {
    let hint = error.hint_text().map_or(String::new(), |hint| format!("{hint}; "));
    error.hint(format!("{hint}what was committed stays; go on with: {go_on}"))
}

/// The command line that goes on with this replay: the one that was typed, with its id and its times made fixed.
fn resume_command(typed: &[String], id: &str, times: Option<&Range<i64>>) -> String {
    const REPLACED: [&str; 3] = ["--id", "--from", "--to"];
    let mut words: Vec<String> = Vec::with_capacity(typed.len() + 6);
    let mut rest = typed.iter();
    while let Some(word) = rest.next() {
        if REPLACED.contains(&word.as_str()) {
            rest.next();
        } else if !REPLACED.iter().any(|option| word.starts_with(&format!("{option}="))) && word != "--dry-run" {
            words.push(quoted(word));
        }
    }
    if let Some(range) = times {
        if range.start != i64::MIN {
            words.extend(["--from".to_owned(), time::rfc3339(range.start)]);
        }
        words.extend(["--to".to_owned(), time::rfc3339(range.end)]);
    }
    words.extend(["--id".to_owned(), id.to_owned()]);
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
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

    #[test]
    fn the_way_on_repeats_the_command_with_fixed_times() {
        let typed = [
            "/usr/bin/tidelog",
            "-c",
            "my config.toml",
            "replay",
            "--from",
            "-1h",
            "--rename",
            "(.*)=r.$1",
            "--id=old",
            "--dry-run",
        ];
        let typed = typed.map(str::to_owned);
        assert_eq!(
            resume_command(&typed, "r-1", Some(&(0..1_000))),
            "/usr/bin/tidelog -c 'my config.toml' replay --rename '(.*)=r.$1' --from 1970-01-01T00:00:00.000Z --to 1970-01-01T00:00:01.000Z --id r-1"
        );
        let open = resume_command(&["t".to_owned(), "it's".to_owned()], "r-1", Some(&(i64::MIN..0)));
        assert_eq!(open, r"t 'it'\''s' --to 1970-01-01T00:00:00.000Z --id r-1");
        assert_eq!(resume_command(&["t".to_owned()], "r-1", None), "t --id r-1");
    }

    #[test]
    fn an_id_goes_on_only_with_what_it_was_begun_with() {
        let identity = |timestamps, digest: &str| Identity { timestamps, digest: digest.to_owned() };
        let begun = identity(Some(0..1_000), "a");
        let again = |range, moving: &[&str]| settle(&begun, &identity(range, "a"), args(moving).moving(), "r-1");
        let (fixed, absent) = (["--from", "1970-01-01T00:00:00Z", "--to", "1970-01-01T00:00:01Z"], ["--from", "-1s"]);
        assert!(again(Some(0..1_000), &fixed).is_ok());
        assert!(again(Some(5..1_005), &absent).is_ok(), "both ends moved with the clock");
        assert!(again(Some(0..1_005), &fixed[..2]).is_ok(), "the end did");
        for (range, moving) in [(Some(5..1_000), &fixed[..]), (Some(0..1_005), &fixed), (Some(5..1_005), &fixed[..2])] {
            let error = again(range, moving).expect_err("a fixed end differs");
            assert!(error.to_string().contains("--from 1970-01-01T00:00:00.000Z --to 1970-01-01T00:00:01.000Z"));
        }
        assert!(again(None, &[]).is_err(), "no range");
        assert!(settle(&begun, &identity(Some(0..1_000), "b"), args(&fixed).moving(), "r-1").is_err(), "other topics");
    }

    #[test]
    fn a_digest_tells_replays_apart() {
        let config = Config {
            archive: crate::config::Archive {
                url: url::Url::parse("memory:///").expect("a URL"),
                spool_dir: PathBuf::new(),
                options: std::collections::BTreeMap::new(),
            },
            memory_budget: 0,
            kafka: None,
            postgres: None,
            retention: Default::default(),
            http: None,
        };
        let digest = |words: &[&str]| args(words).digest(&config);
        let base = digest(&["--from", "-1h", "--topics", "a"]);
        assert_eq!(base, digest(&["--from", "-2h", "--topics", "a", "--rate", "5/s", "--id", "x"]));
        for other in [
            &["--topics", "b"] as &[&str],
            &["--topics", "a", "--partitions", "1"],
            &["--topics", "a", "--rename", "a=b"],
        ] {
            assert_ne!(base, digest(other));
        }
    }
}

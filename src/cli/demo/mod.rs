//! `tidelog demo`: the whole way of a record on one machine, without any server.
//!
//! ```text
//!  change events ─► embedded broker ─► tidelog run ─► archive on disk ─► tidelog replay ─► embedded broker
//!                        └───────────────────── compared, byte for byte ──────────────────────┘
//! ```
//!
//! The broker is librdkafka's own mock cluster. Everything else is what `run`, `ls` and `replay` are made of: the demo
//! parses the command lines that it shows.

mod events;
mod proof;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use clap::Parser;
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::watch;

use super::output::print;
use super::{inspect, replay};
use crate::config::Config;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::manifest::{Chain, streams};
use crate::pipeline::{self, published::Published};
use crate::store::Store;
use crate::stream::Totals;
use crate::time;
use events::{Event, TABLES};

/// The mock cluster keeps 5 MiB a partition; more events than this would push the first ones out before they are read.
const MOST_EVENTS: u64 = 60_000;

/// How long the archive may take to hold every event.
const ARCHIVED_WITHIN: Duration = Duration::from_secs(60);

/// What `tidelog demo` is asked.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the demo's archive and configuration are made, and stay [default: a new directory for temporary files].
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
    /// How many change events are made.
    #[arg(long, value_name = "N", default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(100..=MOST_EVENTS))]
    events: u64,
}

/// Runs the demo, and fails unless every record came back as it was.
pub(super) async fn run(args: &Args) -> Result<()> {
    let began = Instant::now();
    let directory = directory(args.into.as_deref())?;
    let broker = broker()?;
    let config = write_config(&directory, &broker.bootstrap_servers())?;
    let config_path = directory.join("tidelog.toml");

    say("1  an embedded broker runs, with the topics of two tables")?;
    let (stop, stopped) = watch::channel(false);
    let service = tokio::spawn({
        let config = config.clone();
        async move { pipeline::run(&config, Published::new(&config), stopped).await }
    });
    let first = time::now() - TimeDelta::hours(1);
    say(&format!("2  {} change events of the last hour go in, and tidelog archives them", args.events))?;
    let producer = {
        let (bootstrap, events) = (broker.bootstrap_servers(), args.events);
        tokio::task::spawn_blocking(move || produce(&bootstrap, events, first))
    };
    let store = Store::open(&config.archive)?;
    watch_growth(&store, args.events).await?;
    producer.await.or_err(Kind::Internal, || "the producer failed".to_owned())??;
    stop.send_replace(true);
    service.await.or_err(Kind::Internal, || "the archiver failed".to_owned())??;

    say("3  this is what the archive holds")?;
    command(&["ls"], &config_path).await?;
    let (from, to) = (first + TimeDelta::minutes(20), first + TimeDelta::minutes(40));
    say("4  twenty minutes of it are replayed into new topics")?;
    let times = [time::utc(from), time::utc(to)];
    let rename = "(.*)=replay.$1";
    command(&["replay", "--from", &times[0], "--to", &times[1], "--rename", rename, "--yes"], &config_path).await?;

    say("5  what came back is compared with what went in")?;
    let range = from.timestamp_millis()..to.timestamp_millis();
    let bootstrap = broker.bootstrap_servers();
    let equal = tokio::task::spawn_blocking(move || proof::compare(&bootstrap, range))
        .await
        .or_err(Kind::Internal, || "the comparison failed".to_owned())??;
    print(&format!(
        "   {equal} of {equal} records came back equal, byte for byte: keys, values, headers, timestamps, order\n\n\
         {}\n\
         Done in {:.1} s. The archive stays; look at it, without any broker:\n  \
           tidelog ls -c {config}\n  \
           tidelog cat --topic {topic} -n 3 -c {config}\n  \
           tidelog verify --deep -c {config}\n  \
           duckdb -c \"select * from '{}/archive/segments/**/*.parquet' limit 5\"\n",
        tree(&directory)?,
        began.elapsed().as_secs_f64(),
        directory.display(),
        config = config_path.display(),
        topic = TABLES[0].topic,
    ))
}

fn say(line: &str) -> Result<()> {
    print(&format!("\n{line}\n"))
}

/// The commands that the demo types.
#[derive(Debug, clap::Parser)]
#[command(name = "tidelog")]
enum Typed {
    Ls(inspect::LsArgs),
    Replay(Box<replay::Args>),
}

/// Parses and runs a command of the program as a user would type it.
async fn command(words: &[&str], config: &Path) -> Result<()> {
    print(&format!("   $ tidelog {}\n", words.join(" ")))?;
    let typed = Typed::try_parse_from(std::iter::once("tidelog").chain(words.iter().copied()))
        .or_err(Kind::Internal, || "the demo's own command is wrong".to_owned())?;
    let config = Config::load(config)?;
    match typed {
        Typed::Ls(args) => inspect::ls(&args, &config).await,
        Typed::Replay(args) => Box::pin(replay::run(&args, &config)).await,
    }
}

fn directory(wanted: Option<&Path>) -> Result<PathBuf> {
    let Some(wanted) = wanted else {
        let made = tempfile::Builder::new().prefix("tidelog-demo-").tempdir();
        return made
            .map(tempfile::TempDir::keep)
            .map_err(|source| Error::io(source, "cannot make a temporary directory"));
    };
    let doing = || format!("cannot make {}", wanted.display());
    std::fs::create_dir_all(wanted).map_err(|source| Error::io(source, doing()))?;
    let mut entries = std::fs::read_dir(wanted).map_err(|source| Error::io(source, doing()))?;
    if entries.next().is_some() {
        return Err(Error::new(Kind::Config, format!("{} is not empty", wanted.display()))
            .hint("name an empty directory, or one that does not exist"));
    }
    wanted.canonicalize().map_err(|source| Error::io(source, doing()))
}

fn broker() -> Result<MockCluster<'static, DefaultProducerContext>> {
    let failed = || "the embedded broker cannot be started".to_owned();
    let broker = MockCluster::new(1).or_err(Kind::Unavailable, failed)?;
    for table in &TABLES {
        for topic in [table.topic.to_owned(), format!("replay.{}", table.topic)] {
            broker.create_topic(&topic, table.partitions, 1).or_err(Kind::Unavailable, failed)?;
        }
    }
    Ok(broker)
}

fn write_config(directory: &Path, bootstrap: &str) -> Result<Config> {
    let url = url::Url::from_directory_path(directory.join("archive"))
        .map_err(|()| Error::new(Kind::Config, format!("{} is not an absolute path", directory.display())))?;
    let path = directory.join("tidelog.toml");
    let text = format!(
        "# Written by `tidelog demo`. Its broker is gone; the archive can still be read.\n\
         [archive]\nurl = \"{url}\"\nspool_dir = {spool:?}\n\n\
         [kafka]\ncluster = \"demo\"\nbootstrap_servers = \"{bootstrap}\"\ntopics = [\"^cdc\\\\.\"]\n\n\
         [kafka.segment]\nmax_age = \"1s\"\n",
        spool = directory.join("spool"),
    );
    std::fs::write(&path, text).map_err(|source| Error::io(source, format!("cannot write {}", path.display())))?;
    Config::load(&path)
}

/// Sends the events at such a pace that one can watch.
fn produce(bootstrap: &str, events: u64, first: DateTime<Utc>) -> Result<()> {
    let failed = || "the demo's events cannot be sent".to_owned();
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("compression.type", "lz4")
        .set("linger.ms", "20")
        .create()
        .or_err(Kind::Unavailable, failed)?;
    let pause = events / 40;
    for number in 0..events {
        let Event { table, partition, key, value, timestamp } = events::event(number, events, first);
        let headers = OwnedHeaders::new().insert(Header { key: "source", value: Some(table.name) });
        let mut record = BaseRecord::to(table.topic)
            .partition(partition)
            .key(&key)
            .timestamp(timestamp)
            .headers(headers.insert(Header { key: "trace", value: None::<&str> }));
        if let Some(value) = &value {
            record = record.payload(value);
        }
        while let Err((error, back)) = producer.send(record) {
            if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                return Err(Error::new(Kind::Unavailable, failed()).source(error));
            }
            producer.poll(Duration::from_millis(10));
            record = back;
        }
        if number % pause == 0 {
            std::thread::sleep(Duration::from_millis(140));
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(Duration::from_secs(20)).or_err(Kind::Unavailable, failed)
}

/// Shows how the archive grows, until it holds `events` records.
async fn watch_growth(store: &Store, events: u64) -> Result<()> {
    let began = Instant::now();
    let mut shown = None;
    loop {
        let mut sum = Totals::default();
        for stream in streams(store).await? {
            let Some(chain) = Chain::open(store, &stream).await? else { continue };
            let totals = chain.totals();
            sum.records += totals.records;
            sum.segments += totals.segments;
            sum.raw_bytes += totals.raw_bytes;
            sum.stored_bytes += totals.stored_bytes;
        }
        if shown != Some(sum.records) {
            print(&format!(
                "   archived {:>6} records, {:>5.1} MB as {:>4.1} MB in {} segments\n",
                sum.records,
                sum.raw_bytes as f64 / 1e6,
                sum.stored_bytes as f64 / 1e6,
                sum.segments
            ))?;
            shown = Some(sum.records);
        }
        if sum.records >= events {
            return Ok(());
        }
        if began.elapsed() > ARCHIVED_WITHIN {
            return Err(Error::new(Kind::Incomplete, format!("only {} of {events} events were archived", sum.records))
                .hint("run it again with TIDELOG_LOG=debug, and tell us what it says"));
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
}

/// The archive's directories, with what lies in each.
fn tree(directory: &Path) -> Result<String> {
    let mut files: BTreeMap<PathBuf, (u64, u64)> = BTreeMap::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        let failed = |source| Error::io(source, format!("cannot read {}", next.display()));
        for entry in std::fs::read_dir(&next).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let facts = entry.metadata().map_err(failed)?;
            if facts.is_dir() {
                waiting.push(entry.path());
            } else {
                let (count, bytes) = files.entry(next.clone()).or_default();
                *count += 1;
                *bytes += facts.len();
            }
        }
    }
    let mut text = format!("{}\n", directory.display());
    for (folder, (count, bytes)) in files {
        let name = folder.strip_prefix(directory).unwrap_or(&folder).display().to_string();
        let name = if name.is_empty() { ".".to_owned() } else { name };
        text += &format!("  {name:<78} {count:>3} files {:>7.1} kB\n", bytes as f64 / 1e3);
    }
    Ok(text)
}

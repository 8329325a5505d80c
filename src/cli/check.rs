//! `tidelog check`: is the configuration right, and does everything that it names answer?

use std::path::Path;

use serde::Serialize;

use crate::config::{Config, Kafka, TopicPattern};
use crate::error::{Error, Kind, Result};
use crate::pipeline;
use crate::source::kafka::Cluster;
use crate::store::Store;

/// What `tidelog check` is asked.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Talk to every server, and try a conditional create in the store.
    #[arg(long)]
    connect: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// The answer of one check.
#[derive(Debug, Serialize)]
struct Answer {
    check: &'static str,
    ok: bool,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Answer {
    fn of(check: &'static str, result: Result<String>) -> Self {
        match result {
            Ok(detail) => Self { check, ok: true, detail, hint: None },
            Err(error) => {
                Self { check, ok: false, detail: error.to_string(), hint: error.hint_text().map(str::to_owned) }
            }
        }
    }
}

/// Checks, prints, and fails if a check did.
pub(super) async fn run(args: &Args, path: &Path) -> Result<()> {
    let config = Config::load(path)?;
    let mut answers = vec![Answer::of("configuration", Ok(format!("{} is valid", path.display())))];
    if args.connect {
        answers.push(Answer::of("archive", check_archive(&config).await));
        answers.push(Answer::of(
            "spool",
            pipeline::probe_spool(&config).map(|()| config.archive.spool_dir.display().to_string()),
        ));
        if let Some(kafka) = &config.kafka {
            answers.push(Answer::of("kafka", check_kafka(kafka).await));
        }
    }
    if args.json {
        println!("{}", serde_json::json!({ "checks": answers }));
    } else {
        for answer in &answers {
            println!("{:<6} {:<13}  {}", if answer.ok { "ok" } else { "FAILED" }, answer.check, answer.detail);
            if let Some(hint) = &answer.hint {
                println!("       {:<13}  do: {hint}", "");
            }
        }
    }
    match answers.iter().filter(|answer| !answer.ok).count() {
        0 => Ok(()),
        failed => Err(Error::new(Kind::Unavailable, format!("{failed} of {} checks failed", answers.len()))),
    }
}

async fn check_archive(config: &Config) -> Result<String> {
    let store = Store::open(&config.archive)?;
    store.probe().await?;
    Ok(format!("{} can be written, and creates conditionally", store.url()))
}

async fn check_kafka(kafka: &Kafka) -> Result<String> {
    let cluster = Cluster::new(kafka)?;
    let brokers = cluster.ping().await?;
    let there = cluster.topics().await?;
    let mut matched = 0;
    for text in &kafka.topics {
        let pattern = TopicPattern::parse(text)
            .map_err(|problem| Error::new(Kind::Config, format!("kafka.topics: {problem}")))?;
        let count = there.iter().filter(|topic| pattern.matches(topic) && !kafka.excludes(topic)).count();
        if count == 0 && matches!(pattern, TopicPattern::Name(_)) {
            let error = Error::new(
                Kind::NotFound,
                format!("kafka.topics names {text:?}, which {} does not have", kafka.bootstrap_servers),
            );
            return Err(error.hint("create the topic, or mend its name; a running tidelog waits for it"));
        }
        matched += count;
    }
    Ok(format!("{}: {brokers} brokers, {matched} topics to archive", kafka.bootstrap_servers))
}

//! `tidelog check`: is the configuration right, and does everything that it names answer?

mod answer;
mod kafka;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::output;
use crate::config::exposed::{another_owner, remark};
use crate::config::{self, Config, Postgres};
use crate::error::{Error, Kind, Result};
use crate::escape::one_line;
use crate::http;
use crate::pipeline;
use crate::source::kafka::{Cluster, validate};
use crate::source::{postgres, rest};
use crate::store::Store;
use answer::Answer;

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

/// Checks, prints, and fails if a check did.
///
/// Without `--connect` no server is asked, and no directory made: one that root makes here would not be the service's. What only the
/// libraries know to be wrong, their options and properties, is checked all the same.
pub(super) async fn run(args: &Args, path: &Path) -> Result<()> {
    let config = Config::load(path)?;
    let connect = args.connect;
    // The answers for root are not those for the service's user, who may well own both.
    let own = std::fs::metadata("/proc/self").map_or(0, |own| own.uid());
    let valid = Answer::of("configuration", Ok(format!("{} is valid", path.display())));
    let mut answers = vec![Answer { hint: remark(path, own), ..valid }];
    answers.extend(check_archive(&config, connect).await);
    answers.extend(check_spool(&config, connect, own));
    answers.extend(check_listener(&config, connect));
    answers.extend(check_kafka(&config, connect).await);
    if let Some(postgres) = &config.postgres {
        answers.extend(check_postgres(postgres, connect).await);
    }
    if let Some(state) = &config.state {
        answers.extend(check_state(state, connect).await);
    }
    print(args, &answers)?;
    let failed = answers.iter().filter(|answer| !answer.ok).count();
    if failed == 0 {
        return Ok(());
    }
    let kind =
        if answers.iter().any(|answer| answer.kind == Some(Kind::Config)) { Kind::Config } else { Kind::Unavailable };
    Err(Error::new(kind, format!("{failed} of {} checks failed", answers.len())))
}

async fn check_archive(config: &Config, connect: bool) -> Option<Answer> {
    let tried = async {
        let store = Store::open(&config.archive)?;
        store.probe().await?;
        Ok(format!("{} can be written, and creates conditionally", store.url()))
    };
    match Store::validate(&config.archive) {
        Err(error) => Some(Answer::of("archive", Err(error))),
        Ok(_) if connect => Some(Answer::of("archive", tried.await)),
        Ok(_) => None,
    }
}

fn check_spool(config: &Config, connect: bool, own: u32) -> Vec<Answer> {
    let (spool, mut answers) = (&config.archive.spool_dir, Vec::new());
    if connect {
        let tried = pipeline::probe_spool(config).map(|()| spool.display().to_string());
        answers.push(Answer::of("spool", tried));
    }
    if let Some(owner) = another_owner(spool, own) {
        let what =
            format!("{} belongs to another user (uid {owner}), who can exchange what is spooled", spool.display());
        answers.push(Answer::warning("spool", what, "give it to root or to the user that runs tidelog: chown"));
    }
    answers
}

fn check_listener(config: &Config, connect: bool) -> Option<Answer> {
    let http = config.http.as_ref()?;
    let usable = http::validate(http).map(|()| http.listen.to_string());
    (connect || usable.is_err()).then(|| Answer::of("http", usable))
}

async fn check_kafka(config: &Config, connect: bool) -> Vec<Answer> {
    let Some(kafka) = &config.kafka else { return Vec::new() };
    if let Err(error) = validate(kafka) {
        return vec![Answer::of("kafka", Err(error))];
    }
    if !connect {
        return Vec::new();
    }
    let mut answers = kafka::check(kafka).await;
    let reached = answers.iter().all(|answer| answer.ok || answer.check != "kafka");
    // Whether the brokers are those of the cluster that the archive holds.
    let cluster = match Store::open(&config.archive) {
        Ok(store) => match Cluster::new(kafka) {
            Ok(cluster) => pipeline::kafka::admit(&store, kafka, &cluster).await,
            Err(error) => Err(error),
        },
        Err(_) => Ok(()),
    };
    // Brokers that do not answer are told once.
    let cluster = cluster.err().filter(|error| reached || error.kind() == Kind::Config);
    answers.extend(cluster.map(|error| Answer::of("cluster", Err(error))));
    answers
}

async fn check_postgres(config: &Postgres, connect: bool) -> Vec<Answer> {
    let mut answers = Vec::new();
    match postgres::Server::new(config) {
        Err(error) => answers.push(Answer::of("postgres", Err(error))),
        Ok(_) if connect => answers.push(Answer::of("postgres", postgres::check(config).await)),
        Ok(_) => {}
    }
    let are_elsewhere = config.base_backup.url.is_some();
    match postgres::Server::new(&config.for_backups()) {
        Err(error) if are_elsewhere => {
            answers.push(Answer::of("base backups", Err(error.context("postgres.base_backup"))));
        }
        Ok(server) if connect => {
            if are_elsewhere {
                answers.push(Answer::of("base backups", check_backups(&server).await));
            }
            if config.base_backup.incrementals > 0 {
                answers.extend(check_incrementals(&server).await);
            }
        }
        _ => {}
    }
    answers
}

/// The servers that are asked for their state over HTTP.
async fn check_state(config: &config::State, connect: bool) -> Vec<Answer> {
    let mut answers = Vec::new();
    for server in &config.connect {
        match rest::Connect::new(server) {
            Ok(asked) if connect => answers.push(Answer::of("connect", asked.probe().await)),
            asked => answers.extend(asked.err().map(|error| Answer::of("connect", Err(error)))),
        }
    }
    for server in &config.schema_registry {
        match rest::Registry::new(server) {
            Ok(asked) if connect => answers.push(Answer::of("registry", asked.probe().await)),
            asked => answers.extend(asked.err().map(|error| Answer::of("registry", Err(error)))),
        }
    }
    answers
}

fn print(args: &Args, answers: &[Answer]) -> Result<()> {
    if args.json {
        return output::print_json(&serde_json::json!({ "checks": answers }));
    }
    let mut text = String::new();
    for answer in answers {
        let word = match answer {
            Answer { ok: false, .. } => "FAILED",
            Answer { warning: true, .. } => "note",
            _ => "ok",
        };
        text += &format!("{word:<6} {:<13}  {}\n", answer.check, one_line(&answer.detail));
        if let Some(hint) = &answer.hint {
            text += &format!("       {:<13}  do: {}\n", "", one_line(hint));
        }
    }
    output::print(&text)
}

async fn check_backups(server: &postgres::Server) -> Result<String> {
    let mut replication = server.replication().await?;
    let identity = replication.identify().await?;
    Ok(format!("{}: system {}, timeline {}", replication.shown(), identity.system_id, identity.timeline))
}

/// Returns what keeps a server from the incremental base backups that are wanted of it. The service takes full ones then.
async fn check_incrementals(server: &postgres::Server) -> Option<Answer> {
    let asked = async { server.replication().await?.makes_incremental_backups().await };
    match asked.await {
        Err(error) if error.kind() == Kind::Unsupported => {
            let detail = format!("{error}: all are full ones, whatever postgres.base_backup.incrementals says");
            Some(Answer::warning("base backups", detail, error.hint_text().unwrap_or_default()))
        }
        // That it cannot be reached is told already.
        _ => None,
    }
}

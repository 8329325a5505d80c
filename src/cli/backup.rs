//! `tidelog backup`: a Postgres base backup now.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::human;
use super::output::{print, print_json};
use super::progress::{Progress, Unit};
use crate::backup::{BackupJob, BackupKind, Done, take};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::manifest::backups::Backup;
use crate::manifest::known::Known;
use crate::manifest::path::Limit;
use crate::manifest::{self, Chain, recoverable};
use crate::source::postgres::Server;
use crate::store::Store;
use crate::stream::{Lsn, StreamId};

/// What `tidelog backup` is asked.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only what has changed since the newest base backup, on which this one then builds (PostgreSQL 17 with summarize_wal = on).
    #[arg(long)]
    incremental: bool,
    /// How long to wait until the WAL that belongs to the backup is archived.
    #[arg(long, value_name = "SPAN", default_value = "2m", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// How often the chain is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Takes a base backup, and waits until a restore could use it.
pub(super) async fn run(args: &Args, config: &Config) -> Result<()> {
    let Some(postgres) = &config.postgres else {
        return Err(Error::new(Kind::Config, "the configuration names no Postgres server")
            .hint("add a section [postgres] with a url"));
    };
    let begun = Instant::now();
    let store = Store::open(&config.archive)?;
    let done = Arc::new(Done::default());
    let followed = Arc::clone(&done);
    let bar = Progress::follow("backing up", Unit::Bytes, move || {
        let (bytes, total) = (followed.bytes.load(Ordering::Relaxed), followed.total.load(Ordering::Relaxed));
        (bytes, total.max(bytes))
    });
    let (server, writer) = (Server::new(&postgres.for_backups())?, manifest::writer_id()?);
    let kind = if args.incremental { BackupKind::Incremental } else { BackupKind::Full };
    let job = BackupJob { server: &server, config: postgres, store: &store, writer: &writer, kind };
    let backup = take(&job, &done).await?;
    drop(bar);
    let seconds = begun.elapsed().as_secs_f64();
    let outcome = wait(&store, &backup, args.wait).await?;
    let is_usable = outcome == Outcome::Usable;
    if args.json {
        print_json(&serde_json::json!({
            "name": backup.name, "system_id": backup.system.system_id.to_string(), "timeline": backup.timeline,
            "start": backup.start, "end": backup.end, "bytes": backup.bytes(), "stored_bytes": backup.stored_bytes(),
            "seconds": seconds, "usable": is_usable, "damaged": backup.damaged,
            "parent": backup.parent.as_ref().map(|parent| &parent.name),
        }))?;
    } else {
        print(&format!(
            "{}base backup {}: {} ({} stored) in {}, WAL {} to {}\n",
            if backup.parent.is_some() { "incremental " } else { "" },
            backup.name,
            human::bytes(backup.bytes()),
            human::bytes(backup.stored_bytes()),
            human::span(Duration::from_secs_f64(seconds)),
            backup.start,
            backup.end
        ))?;
    }
    if is_usable {
        return Ok(());
    }
    if let Outcome::Never(limit) = outcome {
        return Err(never(&backup, &limit));
    }
    let message = format!(
        "the base backup is stored, and it is of no use before the WAL from {} to {} is archived",
        backup.start, backup.end
    );
    Err(Error::new(Kind::Incomplete, message)
        .hint("let `tidelog run` archive the WAL; `tidelog ls` shows how far it is"))
}

/// What came of waiting for the WAL of a backup.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// A restore could use it.
    Usable,
    /// The WAL is not archived yet.
    Pending,
    /// The WAL will never be archived.
    Never(Limit),
}

/// Waits until the archive holds the WAL that a restore needs at least, or never will.
async fn wait(store: &Store, backup: &Backup, patience: Duration) -> Result<Outcome> {
    let begun = Instant::now();
    let (system_id, mut known) = (backup.system.system_id, Known::default());
    loop {
        if let Some(chain) = Chain::open(store, &StreamId::Postgres { system_id }).await? {
            // With those that it builds on.
            known.look(store, system_id, chain.backups()).await?;
            let facts = recoverable::facts_with(store, &chain, known.taken()).await?;
            let own = facts.backups.iter().position(|taken| taken.name == backup.name);
            if own.is_some_and(|own| facts.is_usable(own)) {
                return Ok(Outcome::Usable);
            }
            if let Some(limit) = own.and_then(|own| facts.never_usable(own)) {
                return Ok(Outcome::Never(limit));
            }
        }
        if begun.elapsed() >= patience {
            return Ok(Outcome::Pending);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn never(backup: &Backup, limit: &Limit) -> Error {
    let why = match limit {
        Limit::Gap(gap) => format!("WAL from {} to {} is lost", Lsn::at(gap.start), Lsn::at(gap.end)),
        Limit::Missing { timeline, from } => format!("WAL of timeline {timeline} from {from} on was never archived"),
        Limit::Minimal(at) => format!("the server ran with wal_level = minimal from {at} on"),
        Limit::End => "its WAL is not archived".to_owned(),
    };
    let name = &backup.name;
    Error::new(Kind::Incomplete, format!("the base backup {name} is stored, and can never be used: {why}"))
        .hint("let `tidelog run` archive the WAL, then take another one")
}

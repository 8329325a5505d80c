//! The running service: what flows from the sources into the archive. What it shows of itself, and what is asked of it,
//! stands on its [`published`].

mod checkpointer;
pub mod desired;
mod drills;
pub mod kafka;
pub mod published;

pub mod postgres;
mod shutdown;
pub mod skips;
mod spool;
pub mod state;
mod summary;
mod unfinished;

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::config::{self, Config};
use crate::error::{Error, Kind, Result};
use crate::manifest::writer_id;
use crate::source::postgres::Server;
use crate::store::Store;
use crate::stream::StateKind;
use crate::tasks::{Task, Tasks};

use postgres::{Supervisor, backup::BackupTask};
use published::{Opened, Published, PublishedPostgres};
use spool::Spool;
use summary::Summary;

/// Archives everything that the configuration names, until `stop` turns true. `published` is made from the same
/// configuration.
///
/// # Errors
/// A configuration without a source, a store or spool that cannot be written, and what makes a source fail for good.
/// Everything else is waited for: a broker or a store that is away, a topic that does not exist yet.
pub async fn run(config: &Config, published: Arc<Published>, stop: watch::Receiver<bool>) -> Result<()> {
    if config.kafka.is_none() && config.postgres.is_none() {
        return Err(Error::new(Kind::Config, "the configuration names nothing to archive")
            .hint("add a section [kafka] with bootstrap_servers and topics, or [postgres] with a url"));
    }
    let store = Store::open(&config.archive)?;
    store.probe().await?;
    let opened = Opened { store, writer: writer_id()? };
    published.has_opened(&opened);
    let topics = async {
        match (&config.kafka, published.kafka()) {
            (Some(kafka), Some(published)) => {
                kafka::run(config, kafka, opened.clone(), Arc::clone(published), stop.clone()).await
            }
            _ => Ok(()),
        }
    };
    let tasks = published.tasks();
    let reporter = tasks.reporter(Task::Leftovers, "");
    let unfinished = tasks.spawn("unfinished-uploads", unfinished::run(opened.store.clone(), reporter));
    let reporter = tasks.reporter(Task::Drills, "");
    let drilled = drills::run(opened.store.clone(), Arc::clone(published.drills()), reporter);
    let drilled = tasks.spawn("drills", drilled);
    let log = async {
        match (&config.postgres, published.postgres()) {
            (Some(postgres), Some(published)) => {
                archive_wal((config, postgres), &opened, published, tasks, &stop).await
            }
            _ => Ok(()),
        }
    };
    let state = spawn_state(config, &opened, &published, &stop);
    let maintenance = spawn_maintenance(config, &opened, tasks);
    let merging = spawn_merging(config, &opened, &published);
    // What fails for good on one side ends both: a process that archives half of what it was told looks healthy.
    let both = async { tokio::try_join!(topics, log).map(|((), ())| ()) };
    let result = tokio::select! {
        biased;
        panicked = tasks.panicked() => Err(panicked),
        result = both => result,
    };
    unfinished.abort();
    drilled.abort();
    state.into_iter().chain(maintenance).chain(merging).for_each(|task| task.abort());
    result
}

/// Archives WAL and takes base backups until `stop` turns true.
async fn archive_wal(
    (config, postgres): (&Config, &config::Postgres),
    opened: &Opened,
    published: &PublishedPostgres,
    tasks: &Arc<Tasks>,
    stop: &watch::Receiver<bool>,
) -> Result<()> {
    let (backups, requests) = mpsc::channel(1);
    let task = BackupTask {
        server: Server::new(&postgres.for_backups())?,
        config: postgres.clone(),
        store: opened.store.clone(),
        writer: opened.writer.clone(),
        status: Arc::clone(&published.status),
        requests,
        stop: stop.clone(),
    };
    let task = tasks.spawn("base-backup", postgres::backup::run(task));
    let supervisor = Supervisor { config, postgres, opened, published, backups };
    let mut summary = Summary::default();
    let result = tokio::select! {
        result = supervisor.run(stop.clone()) => result,
        never = summary.every_minute(published) => match never {},
    };
    summary.tell(published);
    // A backup under way counts for nothing until its last object.
    task.abort();
    result
}

/// Starts what keeps the state of Kafka, of Postgres and of the servers beside them, each by itself.
fn spawn_state(
    config: &Config,
    opened: &Opened,
    published: &Published,
    stop: &watch::Receiver<bool>,
) -> Vec<JoinHandle<()>> {
    let (Some(state), Some(kept)) = (&config.state, published.state()) else { return Vec::new() };
    let tasks = published.tasks();
    let told = || (Arc::clone(kept), Arc::clone(tasks));
    let brokers = config.kafka.as_ref().map(|kafka| {
        tasks.spawn("state", state::run((kafka.clone(), state.clone()), opened.clone(), told(), stop.clone()))
    });
    let watch = |(kind, server): (StateKind, &config::Server)| {
        let watched = state::watch((kind, server.clone(), state.every), opened.clone(), told(), stop.clone());
        tasks.spawn("server-state", watched)
    };
    let connect = state.connect.iter().map(|server| (StateKind::Connectors, server));
    let registries = state.schema_registry.iter().map(|server| (StateKind::Schemas, server));
    let slots = config.postgres.as_ref().map(|postgres| {
        let watched = state::watch_slots((state.clone(), postgres.clone()), opened.clone(), told(), stop.clone());
        tasks.spawn("slot-state", watched)
    });
    brokers.into_iter().chain(connect.chain(registries).map(watch)).chain(slots).collect()
}

/// Starts what expires by `[retention]`: records, and versions of state.
fn spawn_maintenance(config: &Config, opened: &Opened, tasks: &Arc<Tasks>) -> Vec<JoinHandle<()>> {
    let kept = &config.retention.kafka;
    let records = config.kafka.as_ref().filter(|_| !kept.keeps_everything()).map(|kafka| {
        let reporter = tasks.reporter(Task::KafkaMaintenance, "");
        tasks.spawn(
            "kafka-maintenance",
            kafka::maintenance::run((kafka.cluster.clone(), kept.clone()), opened.clone(), reporter),
        )
    });
    let state = config.retention.state.map(|kept| {
        let reporter = tasks.reporter(Task::KafkaStateMaintenance, "");
        tasks.spawn(
            "state-maintenance",
            state::maintenance::run((config.state_streams(), kept), opened.clone(), reporter),
        )
    });
    records.into_iter().chain(state).collect()
}

/// Starts what merges the small segments of topics.
fn spawn_merging(config: &Config, opened: &Opened, published: &Published) -> Option<JoinHandle<()>> {
    let (kafka, shown) = config.kafka.as_ref().zip(published.kafka())?;
    let parts = kafka::merge::Parts {
        kafka: kafka.clone(),
        merge: kafka.merge?,
        opened: opened.clone(),
        spool_dir: config.archive.spool_dir.clone(),
        shown: Arc::clone(&shown.merges),
    };
    let reporter = published.tasks().reporter(Task::KafkaMerge, "");
    Some(published.tasks().spawn("kafka-merge", kafka::merge::run(parts, reporter)))
}

/// Tries whether the spool directory can be written.
///
/// # Errors
/// What is wrong with `archive.spool_dir`, and the way out.
pub fn probe_spool(config: &Config) -> Result<()> {
    Spool::open(&config.archive.spool_dir, &writer_id()?).map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_task_that_panics_ends_the_service_with_its_name() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let error = runtime.block_on(Box::pin(ends_with_a_panic()));
        // What still asks the broker, which is not there, is not waited for.
        runtime.shutdown_background();
        assert!(error.to_string().contains("the task committer has panicked: the chain is upside down"), "{error}");
        assert_eq!(error.exit_code(), 1);
    }

    async fn ends_with_a_panic() -> Error {
        let home = tempfile::tempdir().expect("a directory");
        let text = format!(
            "[archive]\nurl = \"file://{0}/archive\"\nspool_dir = \"{0}/spool\"\n[kafka]\ncluster = \"main\"\n\
             bootstrap_servers = \"127.0.0.1:1\"\ngroup_id = \"g\"\ntopics = [\"a\"]\n",
            home.path().display()
        );
        let path = home.path().join("tidelog.toml");
        std::fs::write(&path, text).expect("a configuration");
        let config = Config::load(&path).expect("it is valid");
        let published = Published::new(&config);
        let (_stop, stopped) = watch::channel(false);
        let service = tokio::spawn({
            let (config, published) = (config.clone(), Arc::clone(&published));
            async move { run(&config, published, stopped).await }
        });
        while published.kafka().expect("it has Kafka").status().since.is_none() {
            assert!(!service.is_finished());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        published.tasks().spawn("committer", async { panic!("the chain is upside down") });
        service.await.expect("the service itself does not panic").expect_err("it has ended")
    }
}

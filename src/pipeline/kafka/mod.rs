//! Kafka into the archive: one collector thread, encoders on blocking threads, and a few tasks around them (see
//! [`collector`] for the picture).
//!
//! | queue | from → to | bound |
//! |---|---|---|
//! | fetched messages | librdkafka → collector | `queued.max.messages.kbytes` |
//! | blocks and steps | collector → encoders | `memory.budget`: over it, fetching pauses |
//! | sealed files | encoders → committer of the topic | 4 a topic: over it, the topic's fetching pauses |
//! | task events | tasks → collector | answers to what the collector asked: bounded by the above |
//! | reports | collector → coverage | 1: one that comes too early is dropped |

pub(super) mod maintenance;
pub mod merge;
pub mod status;
mod unattended;

mod access;
mod answers;
mod collector;
mod commit;
mod completeness;
mod count;
mod coverage;
mod divergence;
mod gaps;
mod identity;
mod lost;
mod messages;
mod pool;
mod resolve;
mod seal_reason;
mod segmenter;
mod shared;
mod shown;
mod stalls;
mod topic_ids;
mod untold;
mod waits;

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::published::{Opened, PublishedKafka};
use super::spool::Spool;
use crate::config::{Config, Kafka};
use crate::error::{Error, Kind, Result};
use crate::pipeline::shutdown;
use crate::source::kafka::{Cluster, Consumer};
use collector::{Collector, Parts};
use count::Counters;
pub use identity::admit;
use messages::TaskEvent;
use shared::Shared;
use topic_ids::TopicIds;

/// How many uploads run at once: enough to hide a cloud store's latency, few enough that their buffers (a part of
/// 8 MiB each) stay small beside the memory budget.
const UPLOADS_AT_ONCE: usize = 3;

/// How long the last look at the ends of partitions may take as the process stops.
const LAST_REPORT_WITHIN: Duration = Duration::from_secs(5);

/// Archives what `kafka` says until `stop` turns true.
pub(super) async fn run(
    config: &Config,
    kafka: &Kafka,
    opened: Opened,
    published: Arc<PublishedKafka>,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    let kafka = Arc::new(kafka.clone());
    let Opened { store, writer } = opened;
    let (events, inbox) = std::sync::mpsc::channel();
    let cluster = Cluster::new(&kafka)?;
    let tasks = Arc::clone(&published.tasks);
    // Dropped at the end, when the collector has ended.
    let (spool, _spooling) = Spool::open(&config.archive.spool_dir, &writer)?;
    let shared = Arc::new(Shared {
        store,
        spool,
        topic_ids: TopicIds::new(&cluster, &tasks),
        cluster,
        writer: writer.clone(),
        uploads: Semaphore::new(UPLOADS_AT_ONCE),
        events: events.clone(),
        counters: Counters::new(),
        tasks: Arc::clone(&tasks),
    });
    let (resolver, requests) = mpsc::unbounded_channel();
    let (coverage, reports) = mpsc::channel(1);
    tasks.spawn("resolver", resolve::run(Arc::clone(&kafka), Arc::clone(&shared), requests));
    let watch = coverage::Watch::new(Arc::clone(&shared), &kafka.cluster, Arc::clone(&published));
    let watch = tasks.spawn("coverage", watch.run(reports));

    let (still, questions) = mpsc::channel(1);
    tasks.spawn("last-stable-offsets", stalls::answer(Arc::clone(&shared), questions));

    // Dropped at the end: the task ends with it.
    let (_archiving, ended) = oneshot::channel();
    tasks.spawn("access", access::watch(Arc::clone(&kafka), Arc::clone(&shared), Arc::clone(&published), ended));

    let collector = Collector::new(Parts {
        consumer: Consumer::new(&kafka)?,
        kafka: Arc::clone(&kafka),
        shared,
        runtime: Handle::current(),
        task_events: inbox,
        resolver,
        coverage,
        still,
        published,
        memory_budget: config.memory_budget,
        most_labels: config.http.as_ref().map_or(0, |http| http.max_topic_labels),
    });
    tracing::info!(
        cluster = kafka.cluster,
        bootstrap_servers = kafka.bootstrap_servers,
        group = kafka.group_id,
        topics = ?kafka.topics,
        writer,
        "archiving"
    );
    let (ended, mut end) = oneshot::channel();
    tasks.thread("collector", move || {
        // The receiver is gone only when the process is ending anyway.
        drop(ended.send(collector.run()));
    })?;
    let result = tokio::select! {
        result = &mut end => result,
        () = shutdown::requested(&mut stop) => {
            tracing::info!("stopping: the last segments are sealed and committed");
            drop(events.send(TaskEvent::Stop));
            end.await
        }
    };
    // The last report says how far the archive is complete; a broker that is away must not keep the process.
    if tokio::time::timeout(LAST_REPORT_WITHIN, watch).await.is_err() {
        tracing::warn!("stopped before it was known how far the archive is complete");
    }
    result.unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the collector has panicked")))
}

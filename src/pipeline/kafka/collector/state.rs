//! What the collector has: the consumer, channels to its tasks, and its parts.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::applied::Applied;
use super::encoders::Encoders;
use super::lookups::PositionLookups;
use super::membership::Membership;
use super::memory::MemoryBudget;
use super::news::News;
use super::topics::Topics;
use super::unheard::Unheard;
use crate::config::Kafka;
use crate::pipeline::kafka::coverage::Told;
use crate::pipeline::kafka::messages::TaskEvent;
use crate::pipeline::kafka::resolve;
use crate::pipeline::kafka::shared::Shared;
use crate::pipeline::published::PublishedKafka;
use crate::source::kafka::{Consumer, TopicPartition};
use crate::telemetry::metrics::TopicLabels;

/// How long leaving the group may take.
pub(super) const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// What was archived since the last summary.
#[derive(Default)]
pub(super) struct Summary {
    pub(super) segments: u64,
    pub(super) records: u64,
    pub(super) raw_bytes: u64,
    pub(super) stored_bytes: u64,
}

/// The collector. What it does is told in the files beside this one.
pub(in crate::pipeline::kafka) struct Collector {
    pub(super) kafka: Arc<Kafka>,
    pub(super) shared: Arc<Shared>,
    pub(super) consumer: Consumer,
    pub(super) runtime: Handle,
    pub(super) task_events: Receiver<TaskEvent>,
    pub(super) resolver: mpsc::UnboundedSender<resolve::Request>,
    pub(super) coverage: mpsc::Sender<Vec<Told>>,
    pub(super) still: mpsc::Sender<Vec<TopicPartition>>,
    pub(super) topics: Topics,
    pub(super) encoders: Encoders,
    pub(super) memory: MemoryBudget,
    pub(super) membership: Membership,
    pub(super) lookups: PositionLookups,
    pub(super) unheard: Unheard,
    pub(super) message_bytes: u64,
    pub(super) published: Arc<PublishedKafka>,
    pub(super) applied: Applied,
    pub(super) news: News,
    pub(super) labels: TopicLabels,
    /// When it was last said that no broker can be reached.
    pub(super) outage_told: Option<Instant>,
    pub(super) summary: Summary,
    pub(super) stopping: Option<Instant>,
}

/// What the collector is made of.
pub(in crate::pipeline::kafka) struct Parts {
    pub(in crate::pipeline::kafka) kafka: Arc<Kafka>,
    pub(in crate::pipeline::kafka) shared: Arc<Shared>,
    pub(in crate::pipeline::kafka) consumer: Consumer,
    pub(in crate::pipeline::kafka) runtime: Handle,
    pub(in crate::pipeline::kafka) task_events: Receiver<TaskEvent>,
    pub(in crate::pipeline::kafka) resolver: mpsc::UnboundedSender<resolve::Request>,
    pub(in crate::pipeline::kafka) coverage: mpsc::Sender<Vec<Told>>,
    pub(in crate::pipeline::kafka) still: mpsc::Sender<Vec<TopicPartition>>,
    pub(in crate::pipeline::kafka) published: Arc<PublishedKafka>,
    pub(in crate::pipeline::kafka) memory_budget: u64,
    /// How many topics have series of their own in the metrics.
    pub(in crate::pipeline::kafka) most_labels: usize,
}

impl Collector {
    pub(in crate::pipeline::kafka) fn new(parts: Parts) -> Self {
        Self {
            kafka: parts.kafka,
            shared: parts.shared,
            consumer: parts.consumer,
            runtime: parts.runtime,
            task_events: parts.task_events,
            resolver: parts.resolver,
            coverage: parts.coverage,
            still: parts.still,
            topics: Topics::default(),
            encoders: Encoders::of_this_machine(),
            memory: MemoryBudget::new(parts.memory_budget),
            membership: Membership::default(),
            lookups: PositionLookups::default(),
            unheard: Unheard::default(),
            message_bytes: 1024,
            published: parts.published,
            applied: Applied::default(),
            news: News::default(),
            labels: TopicLabels::new(parts.most_labels),
            outage_told: None,
            summary: Summary::default(),
            stopping: None,
        }
    }
}

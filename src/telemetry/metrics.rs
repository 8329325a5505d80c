//! Every metric of the program: its name, its type, its labels, its help; and how it becomes text.
//!
//! What happens is counted by handles that whoever counts keeps, so that counting is one addition to an atomic number.
//! Without [`install`] they do nothing. What is so now (positions, lag, memory) is not kept anywhere: whoever answers
//! `/metrics` writes it into an [`Exposition`] from the present state, so it can be neither stale nor left over.
//!
//! Labels have few values. Topics are the exception, and so [`TopicLabels`] gives a bounded number of them their own.

use std::collections::HashSet;
use std::sync::Arc;

use metrics::{Counter, Histogram, Label, counter, describe_counter, describe_histogram, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::error::{Kind, Result, ResultExt};

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Only grows while the process runs.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// Its name, unit included.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Type,
    /// Its labels; a series may leave out those that do not concern it.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

/// Declares the metrics, and [`ALL`] of them.
macro_rules! metrics {
    ($($ident:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $ident: Metric =
                Metric { name: $name, kind: Type::$kind, labels: &[$($label),*], help: $help };
        )*

        /// Every metric that the program has.
        pub static ALL: &[&Metric] = &[$(&$ident),*];
    };
}

metrics! {
    ARCHIVED_RECORDS = Counter "tidelog_archived_records_total" ["topic"]
        "Records in checkpoints of this process.";
    ARCHIVED_BYTES = Counter "tidelog_archived_bytes_total" ["kind", "topic"]
        "Bytes in checkpoints of this process before encoding: keys, values and headers of records.";
    STORED_BYTES = Counter "tidelog_stored_bytes_total" ["kind", "topic"]
        "Bytes of the segment objects in checkpoints of this process.";
    SEGMENTS_SEALED = Counter "tidelog_segments_sealed_total" ["kind", "reason"]
        "Segments that were sealed, by what sealed them.";
    MERGES = Counter "tidelog_merges_total" []
        "Segments of topics that this process has made of several smaller ones.";
    MERGED_SEGMENTS = Counter "tidelog_merged_segments_total" []
        "Small segments of topics that this process has put into larger ones.";
    CHECKPOINT_POSITION = Gauge "tidelog_checkpoint_position" ["topic", "partition"]
        "The offset up to which checkpoints cover a partition that this process owns.";
    LAG_RECORDS = Gauge "tidelog_lag_records" ["topic", "partition"]
        "Offsets between what is archived of a partition and its end on the broker.";
    LAG_SECONDS = Gauge "tidelog_lag_seconds" ["topic", "partition"]
        "Seconds since the time up to which a partition is completely archived, or since it was assigned if it never was.";
    COMPLETE_THROUGH = Gauge "tidelog_complete_through_timestamp_seconds" ["topic", "partition"]
        "The time up to which a partition is completely archived, as a Unix timestamp; 0 if it never was.";
    GAPS = Counter "tidelog_gaps_total" ["kind", "reason"]
        "Ranges that this process found to be lost for good and recorded as a gap.";
    FENCE_CONFLICTS = Counter "tidelog_fence_conflicts_total" []
        "Checkpoints that were refused because another process had moved a partition.";
    STORE_REQUEST_SECONDS = Histogram "tidelog_store_request_seconds" ["operation"]
        "How long requests to the store took, with the client's own retries.";
    STORE_ERRORS = Counter "tidelog_store_errors_total" ["operation", "kind"]
        "Requests to the store that failed, with the client's own retries.";
    MEMORY_USED = Gauge "tidelog_memory_used_bytes" []
        "Bytes of the memory budget that records hold which are not encoded yet.";
    MEMORY_BUDGET = Gauge "tidelog_memory_budget_bytes" []
        "The memory budget, memory.budget.";
    REBALANCES = Counter "tidelog_rebalances_total" []
        "How often the consumer group gave partitions to this process or took them away.";
    UNREAD_PARTITIONS = Counter "tidelog_unread_partitions_total" []
        "Assigned partitions that were found to be read by nobody, a fault of the program, and were looked up again.";
    PAUSED = Gauge "tidelog_paused" ["connector"]
        "1 while somebody has paused or stopped the connector, else 0.";
    HTTP_REFUSED = Counter "tidelog_http_refused_total" ["reason"]
        "HTTP requests that were refused for their token, their host or their origin.";
    READY = Gauge "tidelog_ready" []
        "1 while /readyz says ready, else 0.";
    TASK_FAILING = Gauge "tidelog_task_failing" ["task"]
        "How many loops of a task have failed and are trying again.";
    TASK_FAILING_SINCE = Gauge "tidelog_task_failing_since_timestamp_seconds" ["task"]
        "Since when a task has failed without a success, as a Unix timestamp; only while it fails.";
    STALLED_PARTITIONS = Gauge "tidelog_stalled_partitions" ["reason"]
        "Partitions that have stood still for ten seconds although there are records to read, by what keeps them.";
    STALLED_SINCE = Gauge "tidelog_stalled_since_timestamp_seconds" ["topic", "partition"]
        "Since when a partition stands still although there are records to read, as a Unix timestamp; only while it does.";
    ASSIGNED_PARTITIONS = Gauge "tidelog_assigned_partitions" []
        "Partitions that this process archives.";
    SEGMENTS_WAITING = Gauge "tidelog_segments_waiting" []
        "Segments that were sealed and are not in a checkpoint yet.";
    LAST_CHECKPOINT = Gauge "tidelog_last_checkpoint_timestamp_seconds" ["kind"]
        "When this process last wrote a checkpoint, as a Unix timestamp.";
    WAL_RECEIVED = Gauge "tidelog_wal_received_lsn_bytes" []
        "The position in the write-ahead log up to which it was received.";
    WAL_DURABLE = Gauge "tidelog_wal_durable_lsn_bytes" []
        "The position in the write-ahead log up to which checkpoints cover it.";
    WAL_LAG_BYTES = Gauge "tidelog_wal_lag_bytes" []
        "Bytes of write-ahead log that the server has written and that are not archived.";
    WAL_LAG_SECONDS = Gauge "tidelog_wal_lag_seconds" []
        "Seconds since the time up to which the write-ahead log is completely archived.";
    SLOT_RETAINED = Gauge "tidelog_slot_retained_bytes" ["slot"]
        "Bytes of write-ahead log that the server keeps for a replication slot.";
    SLOT_SAFE = Gauge "tidelog_slot_safe_bytes" ["slot"]
        "Bytes that may still be written before a replication slot can be lost; only where the server has a limit.";
    SLOT_LOST = Gauge "tidelog_slot_lost" ["slot"]
        "1 if the server has removed what a replication slot needs, else 0.";
    SLOT_SECONDS_TO_LOSS = Gauge "tidelog_slot_seconds_to_loss" ["slot"]
        "Seconds until a replication slot can be lost at the present rate; only where the server has a limit.";
    BASE_BACKUP = Gauge "tidelog_base_backup_last_success_timestamp_seconds" []
        "When the last base backup ended, as a Unix timestamp.";
    RECOVERABLE_FROM = Gauge "tidelog_recoverable_from_timestamp_seconds" []
        "The first moment of the newest span to which the database can be recovered, as a Unix timestamp.";
    RECOVERABLE_TO = Gauge "tidelog_recoverable_to_timestamp_seconds" []
        "The last moment of the newest span to which the database can be recovered, as a Unix timestamp.";
    STATE_VERSIONS = Counter "tidelog_state_versions_total" ["kind"]
        "Versions of state documents that this process has stored.";
    STATE_POLLED = Gauge "tidelog_state_polled_timestamp_seconds" ["kind"]
        "When this process was last told a state, changed or not, as a Unix timestamp.";
    CONNECTORS_FAILED = Gauge "tidelog_connectors_failed" ["cluster"]
        "Connectors that have failed, or of which a task has, as Connect last told.";
    DRILL_SUCCESS = Gauge "tidelog_drill_last_success_timestamp_seconds" ["drill"]
        "When a drill last ended that passed, as a Unix timestamp.";
    DRILL_PASSED = Gauge "tidelog_drill_passed" ["drill"]
        "1 if the last drill passed, 0 if it found something or could not be carried out.";
    REPLAY_RECORDS = Counter "tidelog_replay_records_total" ["replay"]
        "Records that this run of a replay has sent.";
    BUILD_INFO = Gauge "tidelog_build_info" ["version", "revision"]
        "Always 1; its labels say which program this is.";
    PROCESS_CPU = Counter "process_cpu_seconds_total" []
        "Seconds of CPU that the process has used, user and system.";
    PROCESS_RESIDENT = Gauge "process_resident_memory_bytes" []
        "Bytes of memory that the process holds.";
    PROCESS_VIRTUAL = Gauge "process_virtual_memory_bytes" []
        "Bytes of address space of the process.";
    PROCESS_FDS = Gauge "process_open_fds" []
        "File descriptors that the process has open.";
    PROCESS_MAX_FDS = Gauge "process_max_fds" []
        "File descriptors that the process may have open.";
    PROCESS_START = Gauge "process_start_time_seconds" []
        "When the process started, as a Unix timestamp.";
}

/// The upper bounds of the buckets of [`STORE_REQUEST_SECONDS`]: from a local disk to a cloud that is retried.
const STORE_BUCKETS: [f64; 13] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

impl Metric {
    /// A handle that counts the series with these labels. It exists with 0 from now on.
    pub fn counter(&self, labels: &[(&'static str, &str)]) -> Counter {
        counter!(self.name, owned(labels))
    }

    /// A handle that takes measurements of the series with these labels.
    pub fn histogram(&self, labels: &[(&'static str, &str)]) -> Histogram {
        histogram!(self.name, owned(labels))
    }
}

fn owned(labels: &[(&'static str, &str)]) -> Vec<Label> {
    labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect()
}

/// What the handles of this process count.
#[derive(Debug, Clone)]
pub struct Recorder(PrometheusHandle);

/// Makes the handles count, those that are taken from now on. Once a process.
///
/// # Errors
/// [`Kind::Internal`] the second time.
pub fn install() -> Result<Recorder> {
    let failed = || "metrics cannot be counted".to_owned();
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(STORE_REQUEST_SECONDS.name.to_owned()), &STORE_BUCKETS)
        .or_err(Kind::Internal, failed)?
        .install_recorder()
        .or_err(Kind::Internal, failed)?;
    for metric in ALL {
        match metric.kind {
            Type::Counter => describe_counter!(metric.name, metric.help),
            Type::Histogram => describe_histogram!(metric.name, metric.help),
            Type::Gauge => {}
        }
    }
    Ok(Recorder(recorder))
}

impl Recorder {
    /// Everything that was counted, as Prometheus reads it.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Sums up measurements that wait for it. Without a reader they would gather in memory, so this is called now and
    /// then.
    pub fn tidy(&self) {
        self.0.run_upkeep();
    }
}

/// Metrics of the present moment as text (Prometheus, "Text-based format", version 0.0.4).
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// Goes on after `text`, which is in the same format.
    pub fn after(text: String) -> Self {
        Self { text }
    }

    /// The one series of a metric.
    pub fn single(&mut self, metric: &Metric, labels: &[(&str, &str)], value: f64) {
        self.family(metric, |samples| samples.add(labels, value));
    }

    /// Every series of a metric; nothing if there is none.
    pub fn family(&mut self, metric: &Metric, write: impl FnOnce(&mut Samples<'_>)) {
        let start = self.text.len();
        let Metric { name, kind, help, .. } = metric;
        // Help texts are ours: no backslash, no line feed.
        self.text += &format!("# HELP {name} {help}\n# TYPE {name} {}\n", kind.name());
        let before = self.text.len();
        write(&mut Samples { name, text: &mut self.text });
        if self.text.len() == before {
            self.text.truncate(start);
        }
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }
}

/// The series of one metric, while they are written.
#[derive(Debug)]
pub struct Samples<'a> {
    name: &'a str,
    text: &'a mut String,
}

impl Samples<'_> {
    /// Adds a series.
    pub fn add(&mut self, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(self.name);
        for (index, (name, value)) in labels.iter().enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            self.text.push_str(name);
            self.text.push_str("=\"");
            escape(value, self.text);
            self.text.push('"');
        }
        let close = if labels.is_empty() { "" } else { "}" };
        *self.text += &format!("{close} {value}\n");
    }
}

fn escape(value: &str, into: &mut String) {
    for letter in value.chars() {
        match letter {
            '\\' => into.push_str("\\\\"),
            '"' => into.push_str("\\\""),
            '\n' => into.push_str("\\n"),
            other => into.push(other),
        }
    }
}

/// The label of topics that have none of their own. No topic can have this name: parentheses are not allowed in one.
pub const OTHER_TOPICS: &str = "(other)";

/// The label in place of a partition's number, where partitions are summed.
pub const ALL_PARTITIONS: &str = "(all)";

/// Which topics have a label of their own: the first ones that this process archives. A topic keeps what it got, so that
/// its counters do not jump.
#[derive(Debug)]
pub struct TopicLabels {
    most: usize,
    own: HashSet<Arc<str>>,
    other: Arc<str>,
}

impl TopicLabels {
    /// Labels for `most` topics.
    pub fn new(most: usize) -> Self {
        Self { most, own: HashSet::new(), other: OTHER_TOPICS.into() }
    }

    /// The label of `topic`.
    pub fn of(&mut self, topic: &Arc<str>) -> Arc<str> {
        if self.own.contains(topic) {
            return Arc::clone(topic);
        }
        if self.own.len() >= self.most {
            return Arc::clone(&self.other);
        }
        self.own.insert(Arc::clone(topic));
        Arc::clone(topic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_and_come_once() {
        let mut names = HashSet::new();
        for metric in ALL {
            assert!(names.insert(metric.name), "{} is there twice", metric.name);
            assert!(metric.name.starts_with("tidelog_") || metric.name.starts_with("process_"), "{}", metric.name);
            assert_eq!(metric.kind == Type::Counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.help.ends_with('.') && !metric.help.contains(['\\', '\n']), "{}", metric.help);
        }
    }

    #[test]
    fn a_family_is_written_as_prometheus_reads_it() {
        let mut out = Exposition::after("# before\n".to_owned());
        out.family(&LAG_RECORDS, |samples| {
            samples.add(&[("topic", "a\"b\\c\nd"), ("partition", "0")], 12.0);
            samples.add(&[("topic", "e"), ("partition", "1")], 0.5);
        });
        out.family(&LAG_SECONDS, |_| {});
        out.single(&READY, &[], 1.0);
        assert_eq!(
            out.finish(),
            "# before\n\
             # HELP tidelog_lag_records Offsets between what is archived of a partition and its end on the broker.\n\
             # TYPE tidelog_lag_records gauge\n\
             tidelog_lag_records{topic=\"a\\\"b\\\\c\\nd\",partition=\"0\"} 12\n\
             tidelog_lag_records{topic=\"e\",partition=\"1\"} 0.5\n\
             # HELP tidelog_ready 1 while /readyz says ready, else 0.\n\
             # TYPE tidelog_ready gauge\n\
             tidelog_ready 1\n"
        );
    }

    #[test]
    fn the_first_topics_have_labels_of_their_own_and_keep_them() {
        let mut labels = TopicLabels::new(2);
        let [a, b, c] = ["a", "b", "c"].map(Arc::<str>::from);
        assert_eq!([&a, &b, &c, &a].map(|topic| labels.of(topic).to_string()), ["a", "b", OTHER_TOPICS, "a"]);
        assert_eq!(&*labels.of(&c), OTHER_TOPICS);
    }
}

//! Merges the small segments of topics into larger ones, beside archiving.
//!
//! ```text
//!   segments of a span ─► read, hash, decode ─► encode into the spool ─► upload ─► entry of the chain ─► an hour later: deleted
//! ```
//!
//! Every generation of every topic of the cluster is looked at, and again when a span of it may be old enough (see
//! [`crate::manifest::merging`]). Nothing of it is waited for by archiving: entries are made by a chain of its own under a writer's id of
//! its own. Killed at any point it leaves a file of the spool, or an object that no entry names; of several processes that do so
//! at once one has the entry, and the others remove what they made.

mod pace;
mod shown;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use metrics::Counter;
use tokio::time::Instant;

use crate::config::{self, Kafka};
use crate::error::{Error, Kind, Result};
use crate::maintenance::left_to_others;
use crate::maintenance::topics::Moment;
use crate::manifest::merging::{Found, Limits, Looked, Run};
use crate::manifest::packing::{self, Packing};
use crate::manifest::replaced::{self, Done};
use crate::manifest::{self, Chain};
use crate::pipeline::published::Opened;
use crate::pipeline::spool::{Spool, SpoolGuard};
use crate::segment::{Encoding, Merging, Sealed, SegmentInfo};
use crate::store::layout;
use crate::stream::{Merge, Retired, SegmentRef, TopicGeneration};
use crate::tasks::Reporter;
use crate::tasks::backoff::Backoff;
use crate::telemetry::metrics::{MERGED_SEGMENTS, MERGES};
use pace::Pace;
pub use shown::{Merges, PublishedMerges};
use worker::Worker;

/// How often it is looked whether something is to be done, at the most.
const EVERY: Duration = Duration::from_secs(600);

/// A topic of which nothing waits is looked at again after this time at the latest.
const SELDOM: TimeDelta = TimeDelta::hours(24);

/// So many spans of a topic are merged before others have their turn.
const SPANS_AT_ONCE: usize = 24;

const PUT_OFF: &str = "the merging of archived topics is put off";

/// Where it works.
pub(in crate::pipeline) struct Parts {
    pub(in crate::pipeline) kafka: Kafka,
    pub(in crate::pipeline) merge: config::Merge,
    pub(in crate::pipeline) opened: Opened,
    pub(in crate::pipeline) spool_dir: PathBuf,
    pub(in crate::pipeline) shown: Arc<PublishedMerges>,
}

/// Works until it is aborted. What fails is told and comes up again.
pub(in crate::pipeline) async fn run(parts: Parts, reporter: Reporter) {
    let mut backoff = Backoff::new(reporter);
    let every = EVERY.min(parts.merge.after / 6);
    // Replicas that start together do not do the same at the same time.
    let first = every.mul_f64(share(&parts.opened.writer));
    tokio::time::sleep(first).await;
    let mut merger = loop {
        match Merger::new(&parts) {
            Ok(merger) => break merger,
            Err(error) => backoff.wait_after(PUT_OFF, error).await,
        }
    };
    loop {
        match merger.round().await {
            Ok(Ok(())) => {
                backoff.succeeded();
                tokio::time::sleep(every).await;
            }
            // The rest was looked at: what is damaged is no reason to ask for all of it sooner.
            Ok(Err(error)) => backoff.wait_at_least(every, PUT_OFF, error).await,
            Err(error) => backoff.wait_after(PUT_OFF, error).await,
        }
    }
}

/// A number from 0 to 1 that the process has by its id.
fn share(writer: &str) -> f64 {
    let sum = writer.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    (sum % 1_000) as f64 / 1_000.0
}

/// What merges, and what it knows of the generations of a cluster's topics from one look to the next.
struct Merger {
    opened: Opened,
    kafka: Kafka,
    merge: config::Merge,
    spool: Spool,
    _spooling: SpoolGuard,
    pace: Pace,
    worker: Worker,
    writer: String,
    generations: BTreeMap<TopicGeneration, Known>,
    shown: Arc<PublishedMerges>,
    merges: Counter,
    segments: Counter,
}

/// What is known of one.
#[derive(Default)]
struct Known {
    /// When it is looked at again.
    due: Option<DateTime<Utc>>,
    /// How long nothing is looked for where nothing waited.
    idle: Option<TimeDelta>,
    looked: Looked,
    replaced: Done,
    packed: packing::Known,
    /// Segments that are left as they are: they cannot be read, or the chain took no entry that replaces them.
    left: BTreeSet<String>,
}

/// Why several segments did not become one.
enum Failed {
    /// One of them cannot be read, and stays.
    Source(String, Error),
    /// Something else: it is tried again.
    Other(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl Merger {
    fn new(parts: &Parts) -> Result<Self> {
        let Parts { kafka, merge, opened, spool_dir, shown } = parts;
        let writer = format!("{}m", opened.writer);
        let (spool, spooling) = Spool::open(spool_dir, &writer)?;
        Ok(Self {
            opened: opened.clone(),
            kafka: kafka.clone(),
            merge: *merge,
            spool,
            _spooling: spooling,
            pace: Pace::new(merge),
            worker: Worker::start()?,
            writer,
            generations: BTreeMap::new(),
            shown: Arc::clone(shown),
            merges: MERGES.counter(&[]),
            segments: MERGED_SEGMENTS.counter(&[]),
        })
    }

    /// Looks at the generations that are due. Within is the first error of one of them, which keeps none of the others; the store's own
    /// are errors.
    async fn round(&mut self) -> Result<Result<()>> {
        let (store, cluster) = (self.opened.store.clone(), self.kafka.cluster.clone());
        let at = Time { began: Instant::now(), moment: Moment::now(&store, &cluster).await? };
        let mut failed = Ok(());
        for generation in manifest::generations_named(&store, &cluster).await? {
            let mut known = self.generations.remove(&generation).unwrap_or_default();
            if known.due.is_some_and(|due| at.moment.now < due) {
                self.generations.insert(generation, known);
                continue;
            }
            let looked = self.look(&generation, &mut known, &at).await;
            self.generations.insert(generation, known);
            failed = failed.and(manifest::isolated(&store, looked).await?.and_then(|looked| looked));
        }
        Ok(failed)
    }

    /// Merges what is due of one generation, and deletes what was merged; within is the first segment that cannot be read.
    async fn look(&mut self, generation: &TopicGeneration, known: &mut Known, at: &Time) -> Result<Result<()>> {
        let store = self.opened.store.clone();
        let now = at.moment.now;
        let Some(mut chain) = Chain::open(&store, &generation.stream()).await? else { return Ok(Ok(())) };
        let mut failed = Ok(());
        let mut due = Some(now);
        for _ in 0..SPANS_AT_ONCE {
            match known.looked.next(&chain, &known.left, self.limits(generation, now)).await? {
                Found::Nothing(next) => {
                    due = next;
                    break;
                }
                Found::Runs(runs) => failed = failed.and(self.merge_all(&mut chain, known, runs, at).await?),
            }
        }
        let deletion = replaced::delete_replaced(&store, &chain, (&at.moment.held, now), &mut known.replaced).await;
        let deletion = match deletion {
            Ok(deletion) => deletion,
            Err(error) => {
                left_to_others(Err(error))?;
                replaced::Deletion::default()
            }
        };
        self.shown.note(|shown| shown.deleted += deletion.deleted);
        let packed = self.pack(&chain, known, at).await?;
        known.idle = match due {
            Some(_) => None,
            None => Some(known.idle.map_or(TimeDelta::hours(1), |idle| (idle * 2).min(SELDOM))),
        };
        let idle = known.idle.and_then(|idle| now.checked_add_signed(idle));
        known.due = [due, idle, deletion.next, packed].into_iter().flatten().min();
        Ok(failed)
    }

    /// Packs what is old of the chain itself; gives when there is more to be done.
    async fn pack(&mut self, chain: &Chain, known: &mut Known, at: &Time) -> Result<Option<DateTime<Utc>>> {
        let (store, now, began) = (&self.opened.store, at.moment.now, Instant::now());
        let made = packing::pack(store, chain, now, &mut known.packed).await?;
        let deleted = packing::delete_packed(store, chain, (&at.moment.held, now), &mut known.packed).await;
        let deleted = deleted.or_else(|error| left_to_others(Err(error)).map(|()| Packing::default()))?;
        self.pace.moved(made.bytes, began).await;
        Ok([made.next, deleted.next].into_iter().flatten().min())
    }

    fn limits(&self, generation: &TopicGeneration, now: DateTime<Utc>) -> Limits {
        let segment = self.kafka.segment_of(&generation.topic);
        let after = TimeDelta::from_std(self.merge.after).unwrap_or(TimeDelta::MAX);
        Limits { max_bytes: segment.max_bytes, max_records: segment.max_records, after, now }
    }

    /// Merges the runs of a span, until a segment of one cannot be read: then the rest is chosen again without it.
    async fn merge_all(
        &mut self,
        chain: &mut Chain,
        known: &mut Known,
        runs: Vec<Run>,
        at: &Time,
    ) -> Result<Result<()>> {
        for run in runs {
            match self.merge_one(chain, &run, at).await {
                Ok(true) => {}
                // Somebody else was faster, and then they are replaced; if they are not, they do not come again.
                Ok(false) => known.left.extend(run.segments.iter().map(|segment| segment.object.clone())),
                Err(Failed::Source(object, error)) => {
                    tracing::error!(%object, %error, "a segment cannot be read and is not merged; `tidelog verify` tells more");
                    self.shown.note(|shown| shown.damaged += 1);
                    known.left.insert(object);
                    return Ok(Err(error.hint(
                        "it is left as it is, and the others are merged; `tidelog verify` tells what is damaged",
                    )));
                }
                Err(Failed::Other(error)) => return Err(error),
            }
        }
        Ok(Ok(()))
    }

    /// Makes one segment of a run; false if the chain took no entry that says so.
    async fn merge_one(&mut self, chain: &mut Chain, run: &Run, at: &Time) -> Result<bool, Failed> {
        let Some(generation) = chain.stream().topic().cloned() else { return Ok(false) };
        let sealed = self.rewrite(chain, &generation, &run.segments).await?;
        let merged = self.put(chain, &generation, (run, &sealed), at).await;
        self.spool.remove(&sealed.path);
        Ok(merged?)
    }

    /// Writes the records of several segments into one file of the spool.
    async fn rewrite(
        &mut self,
        chain: &Chain,
        generation: &TopicGeneration,
        segments: &[SegmentRef],
    ) -> Result<Sealed, Failed> {
        let Some(first) = segments.first() else { return Err(Error::new(Kind::Internal, "nothing is merged").into()) };
        let settings = self.kafka.segment_of(&generation.topic);
        let encoding = Encoding { format: first.format, zstd_level: settings.zstd_level };
        let info = SegmentInfo {
            stream: generation.clone(),
            topic_id: chain.begin_facts().topic_id().map(str::to_owned),
            writer: self.writer.clone(),
            created: crate::time::now(),
        };
        let path = self.spool.next_file().1;
        let mut merging = self.worker.run(move || Merging::create(&path, info, encoding)).await?;
        for segment in segments {
            let damaged = |error: Error| match error.is_transient() || error.kind() == Kind::Internal {
                true => Failed::Other(error),
                false => Failed::Source(segment.object.clone(), error),
            };
            let began = Instant::now();
            let object = layout::object(&segment.object)?;
            let read = self.opened.store.get_at_most(&object, segment.bytes).await.map_err(damaged)?;
            let missing = || Error::new(Kind::NotFound, format!("segment {object} is not there"));
            let bytes = read.ok_or_else(|| damaged(missing()))?;
            self.pace.moved(bytes.len() as u64, began).await;
            let mut began = Instant::now();
            let mut reader = merging.open(bytes, segment).await.map_err(damaged)?;
            while let Some(block) = reader.next().await.map_err(damaged)? {
                if merging.add(block) {
                    merging = self.worker.run(move || merging.write().map(|()| merging)).await?;
                    self.pace.worked_since(began).await;
                    began = Instant::now();
                }
            }
            self.pace.worked_since(began).await;
        }
        let began = Instant::now();
        let sealed = self.worker.run(move || merging.finish()).await?;
        self.pace.worked_since(began).await;
        Ok(sealed)
    }

    /// Uploads a merged segment and enters it; false if the chain took no entry, and nothing of it is left.
    async fn put(
        &mut self,
        chain: &mut Chain,
        generation: &TopicGeneration,
        (run, sealed): (&Run, &Sealed),
        at: &Time,
    ) -> Result<bool> {
        let (store, began) = (&self.opened.store, Instant::now());
        let key = layout::segment(generation, run.sealed, &self.writer, self.spool.next_file().0, sealed.format);
        store.upload(&key, &sealed.path, &sealed.sha256).await?;
        self.pace.moved(sealed.bytes, began).await;
        let merge = Merge {
            segment: sealed.to_ref(key.to_string()),
            replaces: run.segments.iter().map(|segment| segment.object.clone()).collect(),
            retired: Retired::of(&run.segments),
            decided: at.now(),
        };
        let (retired, size) = (merge.retired, sealed.bytes);
        if !chain.merge(&merge, &self.writer, merge.decided).await? {
            // The chain has gone on without it, so no answer that was lost can still bring it in.
            if let Err(error) = store.delete(&key).await {
                tracing::warn!(%key, %error, "a merged segment that came too late cannot be removed");
            }
            return Ok(false);
        }
        tracing::info!(stream = %chain.stream(), segments = retired.segments, records = retired.records,
            before = retired.stored_bytes, after = size, "segments were merged");
        self.merges.increment(1);
        self.segments.increment(retired.segments);
        self.shown.note(|shown| {
            shown.merges += 1;
            shown.segments += retired.segments;
            shown.bytes_before += retired.stored_bytes;
            shown.bytes_after += size;
            shown.last = Some(merge.decided);
        });
        Ok(true)
    }
}

/// When a round began, by the store's clock and by a stopwatch.
struct Time {
    moment: Moment,
    began: Instant,
}

impl Time {
    /// By the store's clock, as far as it goes as a stopwatch does.
    fn now(&self) -> DateTime<Utc> {
        let passed = TimeDelta::from_std(self.began.elapsed()).unwrap_or_default();
        self.moment.now.checked_add_signed(passed).unwrap_or(self.moment.now)
    }
}

#[cfg(test)]
mod tests;

//! Reads ranges of partitions outside of any group: what the brokers have between two offsets, for whoever compares.
//!
//! One client reads one range at a time. Nothing is committed, and no group has a member by it: partitions are assigned by hand
//! (`rd_kafka_assign` without a subscription). Aborted records and control records are never given. An offset that the log no
//! longer has is told, and nothing is passed over in silence: `auto.offset.reset` is `error`.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::raw::{Callback, Handle, List, Queue, RawMessage, code};
use super::{TopicPartition, properties};
use crate::config::Kafka;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::record::{Block, Header, TimestampType};

/// So many records are taken from the client at once.
const RECORDS: usize = 512;

/// How long the brokers may say nothing of a partition. A leader that is being elected answers within this.
const SILENT_FOR: Duration = Duration::from_secs(30);

/// How long one call waits before it looks at what else was said.
const WAIT: Duration = Duration::from_millis(100);

/// What came of a range.
#[derive(Debug)]
pub enum Came {
    /// Records, in the order of their offsets.
    Records(Block),
    /// All of the range was given.
    End,
    /// The log no longer has the offset at which the range was to go on: retention, or an election, has taken it.
    OutOfRange,
}

/// A client that reads ranges.
pub struct RangeReader {
    handle: Arc<Handle>,
    queue: Queue,
    at: Option<TopicPartition>,
    /// What is still to come.
    rest: Range<i64>,
}

impl RangeReader {
    /// A client with the consumer's connection. Nothing is connected yet when it returns.
    ///
    /// # Errors
    /// [`Kind::Config`] for properties that librdkafka does not take.
    pub fn new(config: &Kafka) -> Result<Self> {
        let handle = Arc::new(Handle::consumer(&properties::ranges(config)?)?);
        let queue = Queue::of_consumer(&handle)?;
        Ok(Self { handle, queue, at: None, rest: 0..0 })
    }

    /// Goes to a range. What was left of the one before is given up.
    ///
    /// # Errors
    /// librdkafka refuses the partition.
    pub fn start(&mut self, at: &TopicPartition, range: Range<i64>) -> Result<()> {
        let mut list = List::new();
        list.add(&at.topic, at.partition, range.start)?;
        self.handle.assign(&list).map_err(|failure| failure.into_error(at))?;
        (self.at, self.rest) = (Some(at.clone()), range);
        Ok(())
    }

    /// What comes next, on a thread that may block.
    ///
    /// # Errors
    /// The partition cannot be read: no right, no broker, bytes that cannot be decoded.
    pub async fn next(mut self) -> Result<(Self, Came)> {
        let read = tokio::task::spawn_blocking(move || self.wait_for_next().map(|came| (self, came)));
        read.await.or_err(Kind::Internal, || "reading of a partition broke off".to_owned())?
    }

    fn wait_for_next(&mut self) -> Result<Came> {
        let Some(at) = self.at.clone() else { return Ok(Came::End) };
        let (until, mut why) = (Instant::now() + SILENT_FOR, None);
        while self.rest.start < self.rest.end {
            let (block, ended) = self.take(&at)?;
            if matches!(ended, Some(Came::End)) {
                self.rest.start = self.rest.end;
            }
            match ended {
                _ if !block.is_empty() => return Ok(Came::Records(block)),
                Some(Came::OutOfRange) => return Ok(Came::OutOfRange),
                _ => why = self.heard(&at)?.or(why),
            }
            if Instant::now() >= until {
                let message = format!("{at}: nothing came from offset {} on within {SILENT_FOR:?}", self.rest.start);
                let silent = Error::new(Kind::Unavailable, message).hint("look at the partition's leader");
                return Err(match why {
                    Some(why) => silent.source(why),
                    None => silent,
                });
            }
        }
        Ok(Came::End)
    }

    /// Takes what has come of the range, and how it ended, if it did.
    fn take(&mut self, at: &TopicPartition) -> Result<(Block, Option<Came>)> {
        let mut block = Block::new(at.partition, 0);
        for raw in self.queue.consume(RECORDS, WAIT).iter() {
            if raw.partition() != at.partition || raw.topic() != Some(at.topic.as_bytes()) {
                continue; // left over of a range before
            }
            match raw.code() {
                0 if raw.offset() < self.rest.start => {}
                0 | code::PARTITION_EOF if raw.offset() >= self.rest.end => return Ok((block, Some(Came::End))),
                0 => {
                    push(&mut block, raw);
                    self.rest.start = raw.offset() + 1;
                }
                // An end below: what follows is not decided yet, or another log came. It is waited for.
                code::PARTITION_EOF => {}
                code::AUTO_OFFSET_RESET => return Ok((block, Some(Came::OutOfRange))),
                _ => return Err(raw.failure().into_error(at)),
            }
        }
        Ok((block, None))
    }

    /// What the client was told meanwhile, if it is no end of all.
    fn heard(&self, at: &TopicPartition) -> Result<Option<Error>> {
        let (mut callbacks, mut why) = (Vec::new(), None);
        self.handle.take_callbacks(&mut callbacks);
        for callback in callbacks {
            let Callback::Error { failure, fatal } = callback else { continue };
            // No right of a group is needed: nothing is committed, and nobody joins.
            if failure.is_about_the_group() {
                continue;
            }
            let error = failure.into_error(at);
            if fatal || error.kind() == Kind::Denied {
                return Err(error);
            }
            why = Some(error);
        }
        Ok(why)
    }
}

fn push(block: &mut Block, raw: RawMessage<'_>) {
    let (timestamp, kind) = raw.timestamp();
    let kind = u8::try_from(kind).ok().and_then(TimestampType::from_number).unwrap_or(TimestampType::NotAvailable);
    let headers = raw.headers().map(|(name, value)| Header { name, value });
    block.push(raw.offset(), timestamp, kind, raw.leader_epoch(), raw.key(), raw.value(), headers);
}

//! What of a partition can be read, and how far what cannot be read reaches: a look with a client of its own, outside of the
//! group, that keeps nothing of what it reads.
//!
//! ```text
//!   [ good ][ damaged  10..30 ][ good 30.. ]       a fetch from any offset of a batch brings the whole batch first:
//!            ▲ stands   ▲ same  ▲ reads             what fails at 10 fails the same way up to 29
//! ```
//!
//! librdkafka tells of a batch with a wrong CRC, an unknown magic byte or a damaged compressed payload where it begins; two
//! offsets with the same beginning are of one batch, so its end is found by halving. Of a record that leads out of its batch it
//! says nothing at all and fetches again and again: then each offset is looked at in turn, for a good batch may lie between two
//! that are damaged.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::raw::{Callback, Handle, List, Queue, RawMessage, code};
use super::{TopicPartition, properties};
use crate::config::Kafka;
use crate::error::{Error, Kind, Result};

/// How long one look may take: a broker that is just starting answers within this.
const LOOK_WITHIN: Duration = Duration::from_secs(15);

/// So often the same offset is fetched without a word before it counts as unreadable.
const SILENT_FETCHES: u32 = 3;

/// What is fetched at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Look {
    /// A record, or nothing but an end.
    Reads,
    /// It cannot be decoded.
    Unreadable {
        /// Where the batch begins, if the client tells.
        base: Option<i64>,
        /// What the client says.
        why: String,
    },
}

/// What cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// From where the look began to the first offset behind that is not of it.
    pub lost: Range<i64>,
    /// What the client says of it.
    pub why: String,
}

/// Returns how far what stands at `start` cannot be read; none if it can. `end`: where the log ends; nothing from there on is looked at.
/// What is not looked at by `until` is left out: what is given is unreadable, offset by offset.
///
/// # Errors
/// No broker answers, or the partition cannot be read for another reason.
pub fn unreadable(
    kafka: &Kafka,
    at: &TopicPartition,
    (start, end): (i64, i64),
    until: Instant,
) -> Result<Option<Unreadable>> {
    let mut probe = Probe::new(kafka, at);
    let found = measure(|offset| probe.look(offset), (start, end), || Instant::now() >= until)?;
    let Some(found) = found else { return Ok(None) };
    // The bounds once more, by a client that has seen nothing else.
    let last = Probe::new(kafka, at).look(found.lost.end - 1)?;
    if last == Look::Reads {
        let message = format!("{at}: offset {} could be read at a second look", found.lost.end - 1);
        return Err(
            Error::new(Kind::Unavailable, message).hint("ask again once the partition's leader does not change")
        );
    }
    Ok(Some(found))
}

/// The part of [`unreadable`] that asks nobody.
fn measure(
    mut look: impl FnMut(i64) -> Result<Look>,
    (start, end): (i64, i64),
    mut is_over: impl FnMut() -> bool,
) -> Result<Option<Unreadable>> {
    let Look::Unreadable { base, why } = look(start)? else { return Ok(None) };
    if base.is_none() {
        let mut next = start + 1;
        while next < end && !is_over() {
            match look(next)? {
                Look::Unreadable { base, .. } if base.is_none_or(|base| base < next) => next += 1,
                _ => break,
            }
        }
        return Ok(Some(Unreadable { lost: start..next, why }));
    }
    let mut is_of_it =
        |offset| Ok::<_, Error>(matches!(look(offset)?, Look::Unreadable { base: other, .. } if other == base));
    // `[start, within]` is of the batch, `beyond` is not.
    let (mut within, mut beyond, mut step) = (start, end.max(start + 1), 1);
    while within + step < beyond && !is_over() {
        if is_of_it(within + step)? {
            within += step;
            step *= 2;
        } else {
            beyond = within + step;
        }
    }
    while within + 1 < beyond && !is_over() {
        let middle = within + (beyond - within) / 2;
        if is_of_it(middle)? { within = middle } else { beyond = middle }
    }
    Ok(Some(Unreadable { lost: start..within + 1, why }))
}

/// Looks at one partition.
struct Probe<'a> {
    kafka: &'a Kafka,
    at: &'a TopicPartition,
    client: Option<Client>,
}

impl<'a> Probe<'a> {
    fn new(kafka: &'a Kafka, at: &'a TopicPartition) -> Self {
        Self { kafka, at, client: None }
    }

    fn look(&mut self, offset: i64) -> Result<Look> {
        let mut client = match self.client.take() {
            Some(client) => {
                client.seek(self.at, offset)?;
                client
            }
            None => Client::start(self.kafka, self.at, offset)?,
        };
        let look = client.look(self.at, offset)?;
        // Behind a batch with a wrong CRC or an unknown magic byte librdkafka takes any bytes for a batch, and an offset of it for
        // where it fetches (`rd_kafka_buf_skip_to(rkbuf, crc_len)` in `rd_kafka_msgset_reader_v2`, and
        // `rd_kafka_msgset_reader_peek_msg_version`): that client is not asked again.
        if !matches!(look, Look::Unreadable { base: Some(_), .. }) {
            self.client = Some(client);
        }
        Ok(look)
    }
}

/// A client that reads one partition, and nothing else.
struct Client {
    handle: Arc<Handle>,
    queue: Queue,
}

impl Client {
    fn start(kafka: &Kafka, at: &TopicPartition, offset: i64) -> Result<Self> {
        let handle = Arc::new(Handle::listening_consumer(&properties::probe(kafka)?)?);
        let queue = Queue::of_consumer(&handle)?;
        handle.assign(&list(at, offset)?).map_err(|failure| failure.into_error(at))?;
        Ok(Self { handle, queue })
    }

    fn seek(&self, at: &TopicPartition, offset: i64) -> Result<()> {
        let sought = self.handle.seek(&mut list(at, offset)?, LOOK_WITHIN);
        sought.map_err(|failure| failure.into_error(format_args!("{at}: cannot go to offset {offset}")))?;
        self.handle.take_heard();
        self.handle.take_callbacks(&mut Vec::new());
        Ok(())
    }

    fn look(&mut self, at: &TopicPartition, offset: i64) -> Result<Look> {
        let (until, mut silence) = (Instant::now() + LOOK_WITHIN, Silence::new(offset));
        while Instant::now() < until {
            let mut seen = None;
            for raw in self.queue.consume(16, Duration::from_millis(5)).iter() {
                seen = seen.or(judge(at, raw, offset)?);
            }
            // Before the silence: what is said now may be why.
            if let Some(look) = seen.or_else(|| self.refused()) {
                return Ok(look);
            }
            if let Some(look) = self.handle.take_heard().iter().find_map(|line| silence.hear(line)) {
                return Ok(look);
            }
        }
        let why = format!("{at}: no answer to a fetch at offset {offset} within {LOOK_WITHIN:?}");
        Err(Error::new(Kind::Unavailable, why).hint("look at the partition's leader"))
    }

    /// An answer that is larger than the client takes closes the connection, and belongs to no partition.
    fn refused(&self) -> Option<Look> {
        let mut callbacks = Vec::new();
        self.handle.take_callbacks(&mut callbacks);
        callbacks.into_iter().find_map(|callback| match callback {
            Callback::Error { failure, .. } if failure.text.contains("receive.message.max.bytes") => {
                Some(Look::Unreadable { base: None, why: failure.text })
            }
            _ => None,
        })
    }
}

fn list(at: &TopicPartition, offset: i64) -> Result<List> {
    let mut list = List::new();
    list.add(&at.topic, at.partition, offset)?;
    Ok(list)
}

/// Returns what a message, or an error in a message's place, says of `offset`.
fn judge(at: &TopicPartition, raw: RawMessage<'_>, offset: i64) -> Result<Option<Look>> {
    match raw.code() {
        0 | code::PARTITION_EOF => Ok((raw.offset() >= offset).then_some(Look::Reads)),
        // `rd_kafka_msgset_reader_v2` and `rd_kafka_msgset_reader_decompress` give them the offset at which the batch begins.
        code::BAD_MSG | code::BAD_COMPRESSION | code::NOT_IMPLEMENTED => {
            Ok(Some(Look::Unreadable { base: Some(raw.offset()), why: raw.failure().text }))
        }
        // The broker finds it damaged before it sends it, and the offset is the one that was asked for.
        code::CORRUPT_MESSAGE | code::MSG_SIZE_TOO_LARGE => {
            Ok(Some(Look::Unreadable { base: None, why: raw.failure().text }))
        }
        // About a fetch that nobody asked for: it has no version, so that librdkafka does not sort it out after a seek.
        code::AUTO_OFFSET_RESET if raw.offset() != offset => Ok(None),
        _ => Err(raw.failure().into_error(at)),
    }
}

/// Tells from librdkafka's log (`debug=fetch,msg`) that it fetches the same offset over and over: answers come, and nothing of
/// them can be used.
struct Silence {
    offset: i64,
    /// Fetches at `offset`, each answered with some bytes.
    fetches: u32,
    answered: bool,
}

impl Silence {
    fn new(offset: i64) -> Self {
        Self { offset, fetches: 0, answered: false }
    }

    fn hear(&mut self, line: &str) -> Option<Look> {
        // `rd_kafka_msgset_reader_peek_msg_version`: it says so in an error only if the batch begins where it fetches, or behind.
        // One that begins behind is not what stands here: what stands here comes to nothing first, and is told by its own words.
        let unknown = line.contains("Unsupported Message(Set) MagicByte");
        let begins = number_after(line, " at offset ").filter(|base| unknown && *base <= self.offset);
        if let Some(base) = begins {
            let why = format!("a batch of an unknown format begins at offset {base}");
            return Some(Look::Unreadable { base: Some(base), why });
        }
        // `rd_kafka_fetch_reply_handle_partition`
        if number_after(line, "MessageSet size ").is_some_and(|bytes| bytes > 0) {
            self.answered = true;
        }
        // `rd_kafka_broker_fetch_toppars`
        let fetched = number_after(line, "] at offset ").filter(|_| line.contains("Fetch topic "))?;
        if fetched > self.offset {
            return Some(Look::Reads); // what lies between has no record
        }
        self.fetches += u32::from(std::mem::take(&mut self.answered));
        (self.fetches >= SILENT_FETCHES).then(|| Look::Unreadable {
            base: None,
            why: "a record leads out of its batch: the client gets it again and again, and can make nothing of it"
                .to_owned(),
        })
    }
}

fn number_after(line: &str, words: &str) -> Option<i64> {
    let (_, rest) = line.split_once(words)?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A batch: how many offsets, and whether it reads, fails with its beginning, or fails without a word from an offset on.
    #[derive(Debug, Clone, Copy)]
    enum Batch {
        Good(i64),
        Named(i64),
        Silent(i64, i64),
    }

    fn look(batches: &[Batch], offset: i64) -> Look {
        let mut base = 0;
        for batch in batches {
            let (Batch::Good(size) | Batch::Named(size) | Batch::Silent(size, _)) = *batch;
            if offset < base + size {
                return match *batch {
                    Batch::Named(_) => Look::Unreadable { base: Some(base), why: String::new() },
                    Batch::Silent(_, from) if offset >= base + from => {
                        Look::Unreadable { base: None, why: String::new() }
                    }
                    _ => Look::Reads,
                };
            }
            base += size;
        }
        Look::Reads
    }

    fn batch() -> impl Strategy<Value = Batch> {
        prop_oneof![
            (1_i64..40).prop_map(Batch::Good),
            (1_i64..40).prop_map(Batch::Named),
            (1_i64..40, 0_i64..40).prop_map(|(size, from)| Batch::Silent(size, from.min(size - 1))),
        ]
    }

    proptest! {
        /// Only what cannot be read is skipped, at least the rest of its batch, and never more than to the end; every order brings it further.
        #[test]
        fn no_offset_that_can_be_read_is_skipped(batches in prop::collection::vec(batch(), 1..12), patience in 1_u32..200) {
            let end: i64 = batches.iter().map(|(Batch::Good(size) | Batch::Named(size) | Batch::Silent(size, _))| size).sum();
            for start in 0..end {
                let mut looks = 0;
                let over = || { looks += 1; looks > patience };
                let found = measure(|offset| Ok(look(&batches, offset)), (start, end), over).expect("no broker to fail");
                let reads = |offset| look(&batches, offset) == Look::Reads;
                match found {
                    None => prop_assert!(reads(start)),
                    Some(Unreadable { lost, .. }) => {
                        prop_assert!(lost.start == start && lost.end > start && lost.end <= end, "{lost:?}");
                        prop_assert!(!lost.clone().any(reads), "{lost:?}");
                        let alike = |offset| look(&batches, offset) == look(&batches, start);
                        if patience >= 100 {
                            prop_assert!(lost.end == end || !alike(lost.end), "{lost:?} ends in the middle");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn halving_does_not_pass_a_good_batch_between_two_damaged_ones_and_is_quick() {
        let batches = [Batch::Named(10_000), Batch::Good(1), Batch::Named(10_000), Batch::Good(5)];
        let mut looks = 0;
        let counted = |offset| {
            looks += 1;
            Ok(look(&batches, offset))
        };
        let found = measure(counted, (3, 20_006), || false).expect("no broker to fail").expect("it is damaged");
        assert_eq!(found.lost, 3..10_000);
        assert!(looks < 40, "{looks}");
    }

    #[test]
    fn the_log_tells_of_fetches_that_come_to_nothing() {
        let fetch = |offset| {
            format!(
                "[thrd:h:1/1]: h:1/1: Fetch topic a [3] at offset {offset} (leader epoch -1, current leader epoch 0, v2)"
            )
        };
        let answer =
            "[thrd:h:1/1]: h:1/1: Topic a [3] MessageSet size 1520, error \"Success\", MaxOffset 60, LSO 60, Ver 2/2";
        let mut silence = Silence::new(10);
        for _ in 0..SILENT_FETCHES {
            assert_eq!(silence.hear(&fetch(10)), None);
            assert_eq!(silence.hear(answer), None);
        }
        assert!(matches!(silence.hear(&fetch(10)), Some(Look::Unreadable { base: None, .. })));
        let mut waits = Silence::new(10);
        assert!((0..20).all(|_| waits.hear(&fetch(10)).is_none()), "without an answer it only waits");
        assert_eq!(waits.hear(&fetch(12)), Some(Look::Reads));
        let magic =
            "h:1/1: a [3]: Unsupported Message(Set) MagicByte 7 at offset 8 (buffer position 16/1520): skipping";
        assert!(matches!(waits.hear(magic), Some(Look::Unreadable { base: Some(8), .. })));
        assert_eq!(waits.hear(&magic.replace("offset 8 ", "offset 11 ")), None);
    }
}

//! What `benches/run.py` needs beside the program itself:
//!
//! ```text
//! produce   synthetic change events → a topic, as fast as it can or at a rate
//! bound     a topic → consume, length-prefix, zstd → a file: the least work that an archiver can do
//! archive   chains of many checkpoints whose segments do not exist, for the planner
//! payload   the same events, one a line, for kafka-producer-perf-test
//! ```
#![allow(unsafe_code, reason = "the bound takes batches as the program does: by librdkafka's C API")]

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use clap::Parser;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use rdkafka_sys as sys;
use tidelog::config::Archive;
use tidelog::manifest::{Chain, Outcome};
use tidelog::store::Store;
use tidelog::stream::{Begin, Change, Format, PartitionRange, SegmentRef, TopicGeneration};

type Done = Result<(), Box<dyn Error>>;

#[derive(Parser)]
#[command(about = "The tools of the benchmark", rename_all = "snake_case")]
enum Command {
    /// Produce events.
    Produce {
        #[arg(long)]
        bootstrap: String,
        #[arg(long)]
        topic: String,
        #[arg(long)]
        partitions: i32,
        #[arg(long)]
        records: u64,
        /// Events a second; as fast as possible if absent.
        #[arg(long)]
        rate: Option<u64>,
        #[arg(long, default_value = "lz4")]
        codec: String,
        /// So long is each value: one event's, cut off, or those of many. One event's if absent.
        #[arg(long = "value_bytes")]
        value_bytes: Option<usize>,
    },
    /// Consume and compress.
    Bound {
        #[arg(long)]
        bootstrap: String,
        #[arg(long)]
        topic: String,
        #[arg(long)]
        partitions: i32,
        #[arg(long)]
        records: u64,
        #[arg(long)]
        level: i32,
        #[arg(long)]
        out: PathBuf,
    },
    /// Make chains.
    Archive {
        #[arg(long)]
        root: PathBuf,
        /// Of each topic.
        #[arg(long)]
        segments: u64,
        #[arg(long, default_value_t = 1)]
        topics: u32,
    },
    /// Write events as lines.
    Payload {
        #[arg(long)]
        records: u64,
        #[arg(long)]
        out: PathBuf,
    },
}

fn main() -> Done {
    match Command::parse() {
        Command::Produce { bootstrap, topic, partitions, records, rate, codec, value_bytes } => {
            produce((&bootstrap, &topic, &codec), partitions, records, rate, value_bytes)
        }
        Command::Bound { bootstrap, topic, partitions, records, level, out } => {
            let writer = zstd::Encoder::new(File::create(out)?, level)?;
            bound(&bootstrap, &topic, partitions, records, writer)
        }
        Command::Archive { root, segments, topics } => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            (0..topics).try_for_each(|topic| runtime.block_on(archive(&root, &format!("planned-{topic}"), segments)))
        }
        Command::Payload { records, out } => {
            let mut out = BufWriter::new(File::create(out)?);
            for number in 0..records {
                let event = Event::new(number);
                writeln!(out, "{}{}{}{}", event.key, event.value, event.headers[0].1, event.headers[1].1)?;
            }
            Ok(out.flush()?)
        }
    }
}

// ---- the events

/// One synthetic change event in Debezium's JSON: a key of 62 bytes, a value of about 858, two headers of 94.
struct Event {
    key: String,
    value: String,
    headers: [(&'static str, String); 2],
}

impl Event {
    /// Event `number`, whose value goes on with those of others until it has so many bytes.
    fn with_value_of(number: u64, bytes: usize) -> Self {
        let mut event = Self::new(number);
        let mut others = (number + 1..).map(|other| Self::new(scramble(other)));
        while event.value.len() < bytes {
            event.value.extend(others.next().map(|other| other.value));
        }
        // The events are ASCII.
        event.value.truncate(bytes);
        event
    }

    fn new(number: u64) -> Self {
        let dice = scramble(number);
        let id = 1 + (dice >> 16) % 50_000;
        let time = 1_790_000_000_000 + number;
        let key = format!(r#"{{"tenant":"{:08x}-eu-central","order_id":"O-{id:020}"}}"#, scramble(id) as u32);
        let value = format!(
            concat!(
                r#"{{"before":{before},"after":{after},"source":{{"version":"3.3.1.Final","connector":"postgresql","#,
                r#""name":"inventory","ts_ms":{time},"snapshot":"false","db":"inventory","#,
                r#""sequence":"[\"{lsn}\",\"{next}\"]","ts_us":{time}113,"schema":"public","table":"orders","#,
                r#""txId":{tx},"lsn":{next},"xmin":null}},"transaction":null,"op":"u","ts_ms":{later}}}"#
            ),
            before = row(id, dice / 3),
            after = row(id, dice),
            time = time,
            lsn = 24_000_000 + number * 184,
            next = 24_000_184 + number * 184,
            tx = 70_000 + number / 3,
            later = time + 3,
        );
        let trace = format!("00-{:016x}{:016x}-{:016x}-01", scramble(dice ^ 1), dice, scramble(dice ^ 2));
        Self { key, value, headers: [("source", "inventory.public.orders".to_owned()), ("traceparent", trace)] }
    }
}

fn row(id: u64, dice: u64) -> String {
    format!(
        concat!(
            r#"{{"order_id":"O-{id:020}","customer_id":{customer},"status":"{status}","total":"{whole}.{cents:02}","#,
            r#""email":"customer.{customer}@example.org","currency":"EUR","sku":"SKU-{sku:05}","quantity":{quantity},"#,
            r#""checksum":"{high:016x}{low:016x}","note":"{note}"}}"#
        ),
        id = id,
        customer = 1 + dice % 5_000,
        status = ["new", "paid", "packed", "sent"][(dice % 4) as usize],
        whole = dice % 700,
        cents = dice % 100,
        sku = dice % 30_000,
        quantity = 1 + dice % 5,
        high = scramble(dice),
        low = scramble(!dice),
        note = words(dice),
    )
}

/// Some text without much sense, of about 40 bytes.
fn words(dice: u64) -> String {
    const WORDS: [&str; 32] = [
        "please",
        "leave",
        "parcel",
        "with",
        "the",
        "neighbour",
        "second",
        "floor",
        "behind",
        "garage",
        "ring",
        "twice",
        "before",
        "noon",
        "fragile",
        "glass",
        "call",
        "ahead",
        "gate",
        "code",
        "blue",
        "door",
        "after",
        "school",
        "weekend",
        "only",
        "no",
        "signature",
        "needed",
        "dog",
        "in",
        "garden",
    ];
    let mut dice = scramble(dice.rotate_left(17));
    let mut text = String::with_capacity(64);
    while text.len() < 36 {
        text.push_str(WORDS[(dice % 32) as usize]);
        text.push(' ');
        dice >>= 5;
    }
    text.truncate(36);
    text
}

/// The finaliser of SplitMix64: numbers that look like dice and are the same in every run.
fn scramble(number: u64) -> u64 {
    let mixed = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

// ---- produce

fn produce(
    (bootstrap, topic, codec): (&str, &str, &str),
    partitions: i32,
    records: u64,
    rate: Option<u64>,
    value_bytes: Option<usize>,
) -> Done {
    let producer: ThreadedProducer<Silent> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("acks", "all")
        .set("compression.type", codec)
        .set("linger.ms", "20")
        .set("queue.buffering.max.kbytes", "65536")
        .create_with_context(Silent)?;
    let start = Instant::now();
    for number in 0..records {
        if let Some(rate) = rate {
            let due = start + Duration::from_nanos(number * 1_000_000_000 / rate);
            // Some at a time: a sleep is never shorter than a fraction of a millisecond.
            if due > Instant::now() + Duration::from_millis(1) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let event = value_bytes.map_or_else(|| Event::new(number), |bytes| Event::with_value_of(number, bytes));
        let mut headers = OwnedHeaders::new_with_capacity(2);
        for (key, value) in &event.headers {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let partition = (scramble(number) % partitions.unsigned_abs() as u64) as i32;
        let mut record =
            BaseRecord::to(topic).key(&event.key).payload(&event.value).partition(partition).headers(headers);
        while let Err((error, back)) = producer.send(record) {
            if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            record = back;
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(producer.flush(Duration::from_secs(120))?)
}

struct Silent;

impl ClientContext for Silent {}

impl rdkafka::producer::ProducerContext for Silent {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &rdkafka::producer::DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            eprintln!("a record was not delivered: {error}");
            std::process::exit(1);
        }
    }
}

// ---- bound

/// The program's own fetch settings; a different number of fetches would be a different measurement.
const FETCH: [(&str, &str); 8] = [
    ("fetch.min.bytes", "1048576"),
    ("queued.max.messages.kbytes", "8192"),
    ("fetch.max.bytes", "8388608"),
    ("fetch.queue.backoff.ms", "100"),
    ("check.crcs", "true"),
    ("isolation.level", "read_committed"),
    ("enable.auto.commit", "false"),
    ("group.id", "bound"),
];

const BATCH: usize = 4096;

fn bound(bootstrap: &str, topic: &str, partitions: i32, records: u64, mut out: zstd::Encoder<'_, File>) -> Done {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    for (name, value) in FETCH {
        config.set(name, value);
    }
    let consumer: BaseConsumer = config.create()?;
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    // SAFETY: the client outlives the queue, which is destroyed below.
    let queue = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
    let mut messages = vec![std::ptr::null_mut(); BATCH];
    let mut left = records;
    let mut row = Vec::new();
    while left > 0 {
        // SAFETY: `messages` has room for BATCH pointers; those that are given are owned, and destroyed below.
        let count = unsafe { sys::rd_kafka_consume_batch_queue(queue, 50, messages.as_mut_ptr(), BATCH) };
        for &message in messages.iter().take(usize::try_from(count)?) {
            // SAFETY: librdkafka gave a valid message, which lives until it is destroyed, once.
            unsafe {
                if (*message).err as i32 != 0 {
                    return Err(format!("consuming failed: {:?}", (*message).err).into());
                }
                row.clear();
                append(&mut row, message);
                sys::rd_kafka_message_destroy(message);
            }
            out.write_all(&row)?;
            left = left.saturating_sub(1);
        }
    }
    // SAFETY: owned, and not used again.
    unsafe { sys::rd_kafka_queue_destroy(queue) };
    out.finish()?.sync_all()?;
    Ok(())
}

/// # Safety
/// `message` is a live message without an error.
unsafe fn append(row: &mut Vec<u8>, message: *mut sys::rd_kafka_message_t) {
    let mut put = |data: *const std::ffi::c_void, size: usize| {
        row.extend_from_slice(&(size as u32).to_le_bytes());
        if !data.is_null() {
            // SAFETY: librdkafka's pointer and length belong together.
            row.extend_from_slice(unsafe { std::slice::from_raw_parts(data.cast::<u8>(), size) });
        }
    };
    // SAFETY: see above; the pointers that librdkafka fills live as long as the message.
    unsafe {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        let facts = [(*message).offset, sys::rd_kafka_message_timestamp(message, &mut kind)];
        put(facts.as_ptr().cast(), size_of_val(&facts));
        put((*message).key, (*message).key_len);
        put((*message).payload, (*message).len);
        let mut headers = std::ptr::null_mut();
        if sys::rd_kafka_message_headers(message, &mut headers) as i32 != 0 {
            return;
        }
        let (mut name, mut value, mut size) = (std::ptr::null(), std::ptr::null(), 0);
        let mut index = 0;
        while sys::rd_kafka_header_get_all(headers, index, &mut name, &mut value, &mut size) as i32 == 0 {
            put(name.cast(), std::ffi::CStr::from_ptr(name).to_bytes().len());
            put(value, size);
            index += 1;
        }
    }
}

// ---- archive

async fn archive(root: &Path, topic: &str, segments: u64) -> Done {
    const PARTITIONS: i32 = 12;
    const ROWS: i64 = 5_000;
    let url = url::Url::from_directory_path(root).map_err(|()| "the archive's root must be an absolute path")?;
    let store = Store::open(&Archive { url, spool_dir: root.join("spool"), options: Default::default() })?;
    let stream = TopicGeneration::new("main", topic, 0).stream();
    let first: DateTime<Utc> = "2026-01-01T00:00:00Z".parse()?;
    let begin = Begin::topic(None, (0..PARTITIONS).map(|_| Some(0)).collect());
    let mut chain = Chain::begin(&store, &stream, begin, "bench", first).await?;
    for number in 0..segments {
        let now = first + TimeDelta::minutes(number as i64);
        let rows = number as i64 * ROWS;
        let range = |partition| PartitionRange {
            partition,
            start: rows,
            end: rows + ROWS,
            records: ROWS.unsigned_abs(),
            min_timestamp: Some(now.timestamp_millis() - 60_000),
            max_timestamp: Some(now.timestamp_millis()),
        };
        let segment = SegmentRef {
            object: format!(
                "segments/kafka/cluster=main/topic={topic}/generation=0/date={}/{}-bench-{number}.parquet",
                now.format("%F"),
                now.format("%H%M%S")
            ),
            format: Format::Parquet,
            bytes: 11 << 20,
            sha256: format!("{:064x}", scramble(number)),
            raw_bytes: 60 << 20,
            largest_record: 1_100,
            partitions: (0..PARTITIONS).map(range).collect(),
            last: Vec::new(),
            generation: 0,
            minimal: None,
        };
        let change = Change { segments: vec![segment], ..Change::default() };
        match chain.commit(&change, "bench", now).await? {
            Outcome::Committed { .. } => {}
            Outcome::Moved(_) | Outcome::Closed => return Err("another writer is in the archive".into()),
        }
    }
    Ok(())
}

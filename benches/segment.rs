//! What encoding a segment costs beside the least that it could cost: zstd at the same level over the same records, one
//! after the other with their lengths; and what merging small segments costs beside decoding them and encoding their records once.
//! All figures are of one run, each the median of some rounds.
//!
//! `cargo bench --bench segment [records]`

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use chrono::DateTime;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tidelog::record::{Block, Header, TimestampType};
use tidelog::segment::{Encoding, Filter, Format, Merging, Sealed, SegmentInfo, SegmentReader, SegmentWriter};
use tidelog::stream::{SegmentRef, TopicGeneration};
use tokio::runtime::Runtime;

const ROUNDS: usize = 5;
const PARTITIONS: i32 = 4;
/// Bytes of records in a block, as the consumer fills it.
const BLOCK: u64 = 128 << 10;
/// Bytes of records in a row group.
const ROW_GROUP: u64 = 8 << 20;
/// When the first record was made.
const START: i64 = 1_763_822_345_000;

fn main() {
    // `cargo bench` passes --bench.
    let records: i64 = std::env::args().filter_map(|word| word.parse().ok()).next().unwrap_or(150_000);
    let folder = tempfile::tempdir().expect("a temporary directory");
    let groups = groups(records);
    let raw_bytes: u64 = groups.iter().flatten().map(Block::raw_bytes).sum();
    let megabytes = raw_bytes as f64 / 1e6;
    println!("{records} change events, {:.1} MB, {} B each", megabytes, raw_bytes / records as u64);
    drop(groups);

    println!("\n{:<24}{:>12}{:>12}{:>12}", "write", "CPU ms/MB", "to bound", "ratio");
    let mut sealed = Vec::new();
    for zstd_level in [1, 3] {
        let (bound, bytes) = median(|| raw(zstd_level, records, &folder.path().join("raw")));
        let line = |name: &str, cost: f64, bytes: u64| {
            let ratio = raw_bytes as f64 / bytes as f64;
            println!("{name:<24}{:>12.2}{:>12.2}{ratio:>12.2}", cost / megabytes, cost / bound);
        };
        line(&format!("raw zstd {zstd_level}"), bound, bytes);
        for format in [Format::Parquet, Format::Avro] {
            let encoding = Encoding { format, zstd_level };
            let path = folder.path().join(format!("{zstd_level}.{}", format.name()));
            let (cost, segment) = median(|| write(encoding, records, &path));
            line(&format!("{} zstd {zstd_level}", format.name()), cost, segment.bytes);
            sealed.push((format!("{} zstd {zstd_level}", format.name()), segment));
        }
    }

    println!("\n{:<24}{:>12}{:>12}{:>12}", "read", "all, ms/MB", "all, MB/s", "1 %, ms");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new());
    for (name, segment) in &sealed {
        let mut all = Vec::new();
        let mut part = Vec::new();
        for _ in 0..ROUNDS {
            let read = |filter| {
                let start = Instant::now();
                let found = runtime.block_on(read(Arc::clone(&store), segment, filter));
                (start.elapsed().as_secs_f64() * 1e3, found)
            };
            let (took, found) = read(Filter::default());
            assert_eq!(found, records as u64);
            all.push(took);
            let middle = START + records / 2;
            let filter = Filter { timestamps: Some(middle..middle + records / 100), ..Filter::default() };
            let (took, found) = read(filter);
            assert_eq!(found, records as u64 / 100);
            part.push(took);
        }
        let (all, part) = (middle(all), middle(part));
        println!("{name:<24}{:>12.2}{:>12.0}{part:>12.2}", all / megabytes, megabytes / all * 1e3);
    }

    println!("\n{:<24}{:>12}{:>12}{:>12}", "merge", "records each", "CPU ms/MB", "to once");
    for (format, zstd_level) in [(Format::Parquet, 1), (Format::Parquet, 3), (Format::Avro, 1), (Format::Avro, 3)] {
        let (encoding, path) = (Encoding { format, zstd_level }, folder.path().join("once"));
        let (encoded, whole) = median(|| write(encoding, records, &path));
        for each in [60, 1_000, 10_000] {
            let small = small(encoding, records, each, folder.path());
            let (decoded, found) = median(|| decode(&runtime, &small));
            assert_eq!(found, records as u64);
            let (cost, merged) = median(|| merge(&runtime, encoding, &small, &folder.path().join("merged")));
            assert_eq!(merged.partitions, whole.partitions);
            let name = format!("{} zstd {zstd_level}", format.name());
            println!("{name:<24}{each:>12}{:>12.2}{:>12.2}", cost / megabytes, cost / (decoded + encoded));
        }
    }
}

/// The same records in segments of so many, as a topic with few records leaves them, with what their checkpoints say.
fn small(encoding: Encoding, records: i64, each: i64, folder: &Path) -> Vec<(Bytes, SegmentRef)> {
    let path = folder.join("small");
    let mut events = Events::new();
    let segment = |first: i64| {
        let mut blocks: Vec<Block> = (0..PARTITIONS).map(|partition| Block::new(partition, 4_096)).collect();
        let numbers = first..(first + each).min(records);
        numbers.clone().for_each(|number| events.push(number, &mut blocks[(number % i64::from(PARTITIONS)) as usize]));
        let mut writer = SegmentWriter::create(&path, info(), encoding).expect("a writer");
        writer.write(blocks).expect("the records are written");
        let offset = |number: i64| number / i64::from(PARTITIONS);
        let end = if numbers.end == records { records } else { offset(numbers.end) };
        let start = offset(numbers.start);
        let ranges: Vec<_> = (0..PARTITIONS).map(|partition| (partition, start, end)).collect();
        let sealed = writer.finish(&ranges).expect("the segment is complete");
        let bytes = std::fs::read(&path).expect("the segment");
        std::fs::remove_file(&path).expect("it goes");
        (bytes.into(), sealed.to_ref(format!("segments/{first}")))
    };
    (0..records).step_by(each as usize).map(segment).collect()
}

/// What it costs to read segments that lie in memory, and how many records they have.
fn decode(runtime: &Runtime, segments: &[(Bytes, SegmentRef)]) -> (f64, u64) {
    let start = cpu_milliseconds();
    let mut records = 0;
    for (bytes, segment) in segments {
        let (store, path) = (Arc::new(InMemory::new()), object_store::path::Path::from(segment.object.as_str()));
        records += runtime.block_on(async {
            store.put(&path, bytes.clone().into()).await.expect("memory takes it");
            count(store, &path, (segment.bytes, segment.format), Filter::default()).await
        });
    }
    (cpu_milliseconds() - start, records)
}

fn merge(runtime: &Runtime, encoding: Encoding, segments: &[(Bytes, SegmentRef)], path: &Path) -> (f64, Sealed) {
    if path.exists() {
        std::fs::remove_file(path).expect("the last round's file goes");
    }
    let start = cpu_milliseconds();
    let mut merging = Merging::create(path, info(), encoding).expect("a file");
    for (bytes, segment) in segments {
        runtime.block_on(async {
            let mut reader = merging.open(bytes.clone(), segment).await.expect("the segment opens");
            while let Some(block) = reader.next().await.expect("the segment is sound") {
                if merging.add(block) {
                    merging.write().expect("the records are written");
                }
            }
        });
    }
    let sealed = merging.finish().expect("the segment is complete");
    (cpu_milliseconds() - start, sealed)
}

fn info() -> SegmentInfo {
    SegmentInfo {
        stream: TopicGeneration::new("main", "cdc.orders", 0),
        topic_id: None,
        writer: "bench".into(),
        created: DateTime::from_timestamp_millis(START).expect("a time"),
    }
}

async fn read(store: Arc<dyn ObjectStore>, segment: &Sealed, filter: Filter) -> u64 {
    let path = object_store::path::Path::from_filesystem_path(&segment.path).expect("the segment's path");
    count(store, &path, (segment.bytes, segment.format), filter).await
}

async fn count(
    store: Arc<dyn ObjectStore>,
    path: &object_store::path::Path,
    (bytes, format): (u64, Format),
    filter: Filter,
) -> u64 {
    let mut reader = SegmentReader::open(store, path, bytes, format, filter).await.expect("the segment opens");
    let mut records = 0;
    while let Some(block) = reader.next().await.expect("the segment is sound") {
        records += black_box(block).len() as u64;
    }
    records
}

fn write(encoding: Encoding, records: i64, path: &Path) -> (f64, Sealed) {
    let groups = groups(records);
    if path.exists() {
        std::fs::remove_file(path).expect("the last round's file goes");
    }
    let start = cpu_milliseconds();
    let mut writer = SegmentWriter::create(path, info(), encoding).expect("a writer");
    for group in groups {
        writer.write(group).expect("the records are written");
    }
    let ranges: Vec<_> = (0..PARTITIONS).map(|partition| (partition, 0, records)).collect();
    let sealed = writer.finish(&ranges).expect("the segment is complete");
    (cpu_milliseconds() - start, sealed)
}

/// The bound: records with their lengths, compressed by the megabyte.
fn raw(zstd_level: i32, records: i64, path: &Path) -> (f64, u64) {
    let groups = groups(records);
    let start = cpu_milliseconds();
    let mut compressor = zstd::bulk::Compressor::new(zstd_level).expect("a compressor");
    let mut file = File::create(path).expect("a file");
    let (mut plain, mut packed, mut bytes) = (Vec::with_capacity(2 << 20), Vec::new(), 0);
    let mut flush = |plain: &mut Vec<u8>| {
        packed.clear();
        packed.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        compressor.compress_to_buffer(plain, &mut packed).expect("zstd compresses");
        file.write_all(&packed).expect("the bytes are written");
        bytes += packed.len() as u64;
        plain.clear();
    };
    for block in groups.into_iter().flatten() {
        for record in block.iter() {
            plain.extend_from_slice(&record.offset.to_le_bytes());
            plain.extend_from_slice(&record.timestamp.to_le_bytes());
            let headers = record.headers().flat_map(|header| [Some(header.name), header.value]);
            for part in [record.key, record.value].into_iter().chain(headers) {
                plain.extend_from_slice(&(part.map_or(0, <[u8]>::len) as u32).to_le_bytes());
                plain.extend_from_slice(part.unwrap_or_default());
            }
            if plain.len() >= 1 << 20 {
                flush(&mut plain);
            }
        }
    }
    flush(&mut plain);
    (cpu_milliseconds() - start, bytes)
}

/// The median cost of some rounds, and what the last one made.
fn median<T>(mut round: impl FnMut() -> (f64, T)) -> (f64, T) {
    let (first, mut made) = round();
    let mut costs = vec![first];
    for _ in 1..ROUNDS {
        let (cost, again) = round();
        costs.push(cost);
        made = again;
    }
    (middle(costs), made)
}

fn middle(mut costs: Vec<f64>) -> f64 {
    costs.sort_by(f64::total_cmp);
    costs[costs.len() / 2]
}

/// What this thread used of a processor: Linux counts it in nanoseconds.
fn cpu_milliseconds() -> f64 {
    let counted = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux counts a thread's time");
    let nanoseconds: f64 = counted.split(' ').next().and_then(|word| word.parse().ok()).expect("nanoseconds");
    nanoseconds / 1e6
}

/// Records as the consumer hands them over: blocks by partition, row groups of them.
fn groups(records: i64) -> Vec<Vec<Block>> {
    let mut events = Events::new();
    let new = |partition| Block::new(partition, BLOCK as usize + 4_096);
    let mut open: Vec<Block> = (0..PARTITIONS).map(new).collect();
    let (mut groups, mut group, mut held) = (Vec::new(), Vec::new(), 0);
    for number in 0..records {
        let partition = (number % i64::from(PARTITIONS)) as usize;
        let block = &mut open[partition];
        events.push(number, block);
        if block.raw_bytes() >= BLOCK {
            held += block.raw_bytes();
            group.push(std::mem::replace(block, new(partition as i32)));
        }
        if held >= ROW_GROUP {
            groups.push(std::mem::take(&mut group));
            held = 0;
        }
    }
    group.extend(open);
    groups.push(group);
    groups
}

/// Change events in the shape of Debezium's, of about 1 KB.
struct Events {
    random: u64,
}

impl Events {
    fn new() -> Self {
        Self { random: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Adds the next event to a block of its partition.
    fn push(&mut self, number: i64, block: &mut Block) {
        let (key, value) = (self.key(number), self.value(number));
        let headers = [("__op", "u"), ("__source", "orders-connector")]
            .map(|(name, value)| Header { name: name.as_bytes(), value: Some(value.as_bytes()) });
        let offset = number / i64::from(PARTITIONS);
        let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
        block.push(offset, START + number, TimestampType::Create, 7, key, value, headers.into_iter());
    }

    /// Xorshift: the same events in every run.
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn key(&mut self, number: i64) -> String {
        format!("{{\"schema\":null,\"payload\":{{\"id\":{:012},\"tenant\":{:04}}}}}", number % 40_000, number % 97)
    }

    fn row(&mut self, number: i64) -> String {
        let status = ["new", "paid", "packed", "shipped", "returned"][(self.next() % 5) as usize];
        format!(
            "{{\"id\":{},\"customer_id\":{},\"status\":\"{status}\",\"amount\":\"{}.{:02}\",\"currency\":\"EUR\",\
             \"email\":\"user{}@example.com\",\"note\":\"{:016x}{:08x}\",\"created_at\":{},\"updated_at\":{}}}",
            number % 40_000,
            self.next() % 100_000,
            self.next() % 10_000,
            self.next() % 100,
            self.next() % 100_000,
            self.next(),
            self.next() as u32,
            START * 1_000 - (self.next() % 1_000_000_000) as i64,
            START * 1_000 + number * 1_000,
        )
    }

    fn value(&mut self, number: i64) -> String {
        let (before, after) = (self.row(number), self.row(number));
        format!(
            "{{\"before\":{before},\"after\":{after},\"source\":{{\"version\":\"2.7.3.Final\",\"connector\":\"postgresql\",\
             \"name\":\"shop\",\"ts_ms\":{},\"snapshot\":\"false\",\"db\":\"shop\",\"sequence\":\"[\\\"{}\\\",\\\"{}\\\"]\",\
             \"schema\":\"public\",\"table\":\"orders\",\"txId\":{},\"lsn\":{},\"xmin\":null}},\"transaction\":null,\
             \"op\":\"u\",\"ts_ms\":{}}}",
            START + number,
            24_023_128 + number * 312,
            24_023_440 + number * 312,
            771 + number / 3,
            24_023_440 + number * 312,
            START + number + 40,
        )
    }
}

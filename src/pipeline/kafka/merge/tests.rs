//! The merging of a topic with real segments: a month as time passes, damage, a store that fails, several at once.

use std::path::Path;

use object_store::ObjectStoreExt as _;

use super::*;
use crate::config::Config;
use crate::manifest::Selection;
use crate::manifest::reads::Reads;
use crate::record::{Block, Header, TimestampType};
use crate::segment::{Filter, SegmentReader, SegmentWriter};
use crate::store::Store;
use crate::stream::{Begin, Change, Format};

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).expect("a time")
}

fn at(minutes: i64) -> DateTime<Utc> {
    start() + TimeDelta::minutes(minutes)
}

fn orders() -> TopicGeneration {
    TopicGeneration::new("main", "orders", 0)
}

fn parts(store: &Store, writer: &str, directory: &Path) -> Parts {
    let text = "[archive]\nurl = \"memory:///\"\n[kafka]\nbootstrap_servers = \"a:9092\"\ntopics = [\"^.*\"]\n[kafka.merge]\ncpu_percent = 100\nbytes_per_second = \"1GiB\"\n";
    let kafka = Config::parse(text, "test", &BTreeMap::new()).expect("valid").kafka.expect("it has Kafka");
    let merge = kafka.merge.expect("it merges");
    let opened = Opened { store: store.clone(), writer: writer.to_owned() };
    Parts { kafka, merge, opened, spool_dir: directory.to_owned(), shown: Arc::default() }
}

/// A topic of three partitions in a store, and what its records are.
struct Topic {
    store: Store,
    chain: Chain,
    format: Format,
    spool: tempfile::TempDir,
    next: [i64; 3],
    written: u64,
}

type Row = (i32, i64, i64, Option<Vec<u8>>, Option<Vec<u8>>, usize);

impl Topic {
    async fn begun(format: Format) -> Self {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        let begin = Begin::topic(Some("id".into()), vec![Some(0), Some(0), Some(0)]);
        let chain = Chain::begin(&store, &orders().stream(), begin, "w", start()).await.expect("it begins");
        let spool = tempfile::tempdir().expect("a directory");
        Self { store, chain, format, spool, next: [0; 3], written: 0 }
    }

    /// A segment that was sealed at this minute, with so many records.
    async fn append(&mut self, minute: i64, records: i64) {
        let mut blocks: Vec<Block> = Vec::new();
        let mut ranges = Vec::new();
        for partition in 0..3_i32 {
            let (mut block, first) = (Block::new(partition, 0), self.next[partition as usize]);
            for n in (0..records).filter(|n| n % 3 == i64::from(partition) && (partition < 2 || minute % 2 == 0)) {
                let offset = self.next[partition as usize];
                let value = format!("record {offset} of {partition} at {minute}");
                let time = at(minute).timestamp_millis() + n * 1_000 - if n == 4 { 7_200_000 } else { 0 };
                let header = Header { name: b"n", value: (n % 2 == 0).then_some(b"x".as_slice()) };
                let key = (n % 5 != 0).then_some(b"key".as_slice());
                let value = (n % 7 != 0).then_some(value.as_bytes());
                block.push(offset, time, TimestampType::Create, 1, key, value, std::iter::once(header));
                self.next[partition as usize] += if n % 11 == 0 { 2 } else { 1 };
            }
            if first < self.next[partition as usize] {
                ranges.push((partition, first, self.next[partition as usize]));
                blocks.push(block);
            }
        }
        let path = self.spool.path().join("segment");
        let info =
            SegmentInfo { stream: orders(), topic_id: Some("id".into()), writer: "w".into(), created: at(minute) };
        let mut writer =
            SegmentWriter::create(&path, info, Encoding { format: self.format, zstd_level: 1 }).expect("a file");
        writer.write(blocks).expect("written");
        let sealed = writer.finish(&ranges).expect("sealed");
        self.written += 1;
        let key = layout::segment(&orders(), at(minute), "w", self.written, self.format);
        self.store.upload(&key, &path, &sealed.sha256).await.expect("uploaded");
        std::fs::remove_file(&path).expect("removed");
        let change = Change { segments: vec![sealed.to_ref(key.to_string())], ..Change::default() };
        self.chain.commit(&change, "w", at(minute)).await.expect("committed");
    }

    async fn segments(&self) -> Vec<SegmentRef> {
        let chain = Chain::open(&self.store, &orders().stream()).await.expect("sound").expect("begun");
        chain.select(&Selection::default()).await.expect("read").segments
    }

    /// Each record of these times, as a reader gets them by what the chain says.
    async fn records(&self, timestamps: Option<std::ops::Range<i64>>) -> Vec<Row> {
        let chain = Chain::open(&self.store, &orders().stream()).await.expect("sound").expect("begun");
        let selection = Selection { timestamps: timestamps.clone(), partitions: None };
        let mut rows = Vec::new();
        for segment in chain.select(&selection).await.expect("read").segments {
            let key = layout::object(&segment.object).expect("a key");
            let filter = Filter { timestamps: timestamps.clone(), ..Filter::default() };
            let opened = SegmentReader::open(self.store.objects(), &key, segment.bytes, segment.format, filter).await;
            let mut reader = opened.expect("it opens");
            while let Some(block) = reader.next().await.expect("it can be read") {
                rows.extend(block.iter().map(|one| {
                    let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
                    (block.partition(), one.offset, one.timestamp, owned(one.key), owned(one.value), one.header_count())
                }));
            }
        }
        // The order of partitions among each other is nobody's; that of each counts.
        rows.sort_by_key(|row| row.0);
        rows
    }

    /// Of all kinds: of the chain, too.
    async fn all_objects(&self) -> usize {
        self.store.list(&layout::chain(&orders().stream())).await.expect("a list").len() + self.objects().await
    }

    /// Of the chain, in a folder of it.
    async fn chain_objects(&self, folder: &str) -> usize {
        let chain = layout::chain(&orders().stream());
        let listed = self.store.list(&chain).await.expect("a list");
        listed.iter().filter(|object| object.location.as_ref().contains(folder)).count()
    }

    async fn objects(&self) -> usize {
        self.store.list(&layout::topic_segments(&orders())).await.expect("a list").len()
    }
}

/// One that looks whenever it is told to.
struct Looks {
    merger: Merger,
    known: Known,
    _directory: tempfile::TempDir,
}

impl Looks {
    fn new(topic: &Topic, writer: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let merger = Merger::new(&parts(&topic.store, writer, directory.path())).expect("a spool");
        Self { merger, known: Known::default(), _directory: directory }
    }

    async fn look(&mut self, topic: &Topic, now: DateTime<Utc>) -> Result<Result<()>> {
        let moment = Moment::at(&topic.store, "main", now).await.expect("the store answers");
        self.known.due = None;
        self.merger.look(&orders(), &mut self.known, &Time { moment, began: Instant::now() }).await
    }

    /// Packs and deletes what it can of the chain.
    async fn pack(&mut self, topic: &Topic, now: DateTime<Utc>) {
        let chain = Chain::open(&topic.store, &orders().stream()).await.expect("sound").expect("begun");
        let at =
            Time { moment: Moment::at(&topic.store, "main", now).await.expect("an answer"), began: Instant::now() };
        while self.merger.pack(&chain, &mut self.known, &at).await.expect("packed").is_some_and(|next| next <= now) {}
    }

    async fn look_until_done(&mut self, topic: &Topic, now: DateTime<Utc>) {
        loop {
            let before = self.merger.shown.now();
            self.look(topic, now).await.expect("the store answers").expect("nothing is damaged");
            if self.merger.shown.now() == before {
                return;
            }
        }
    }
}

#[tokio::test]
async fn a_merged_topic_is_the_same_record_for_record_by_time_and_its_objects_go() {
    for format in [Format::Parquet, Format::Avro] {
        let mut topic = Topic::begun(format).await;
        for minute in 0..300 {
            topic.append(minute, 9).await;
        }
        let times = [
            None,
            Some(at(31).timestamp_millis()..at(95).timestamp_millis()),
            Some(at(-60).timestamp_millis()..at(20).timestamp_millis()),
        ];
        let mut before = Vec::new();
        for times in &times {
            before.push(topic.records(times.clone()).await);
        }
        assert!(before.iter().all(|rows| !rows.is_empty()) && before[1].len() < before[0].len());
        let mut looks = Looks::new(&topic, "a");
        // What is merged at first is what is old enough by then.
        looks.look_until_done(&topic, at(200)).await;
        let during = topic.segments().await.len();
        assert!((100..300).contains(&during), "{during}");
        for (times, before) in times.iter().zip(&before) {
            assert_eq!(&topic.records(times.clone()).await, before, "while it is merged");
        }
        assert_eq!(
            topic.objects().await,
            300 + usize::try_from(looks.merger.shown.now().merges).expect("few"),
            "all are still there"
        );
        looks.look_until_done(&topic, at(500)).await;
        let after = topic.segments().await.len();
        assert!((5..=6).contains(&after), "{after}");
        looks.look_until_done(&topic, at(700)).await;
        assert_eq!(topic.objects().await, after, "and what they replaced is gone");
        for (times, before) in times.iter().zip(&before) {
            assert_eq!(&topic.records(times.clone()).await, before, "afterwards");
        }
        let shown = looks.merger.shown.now();
        assert_eq!((shown.segments, shown.deleted, shown.damaged), (300, 300, 0));
        assert!(shown.bytes_after * 5 < shown.bytes_before, "{shown:?}");
        let report = crate::verify::verify(&topic.store, true, &Arc::default()).await.expect("the store answers");
        assert!(report.errors.is_empty() && report.orphans == 0, "{report:?}");
        assert_eq!(report.records, before[0].len() as u64);
    }
}

#[tokio::test]
async fn a_damaged_segment_is_left_as_it_is_and_the_rest_goes_on() {
    let mut topic = Topic::begun(Format::Parquet).await;
    for minute in 0..60 {
        topic.append(minute, 6).await;
    }
    let segments = topic.segments().await;
    let (flipped, missing) = (&segments[20].object, &segments[40].object);
    let object = |key: &str| layout::object(key).expect("a key");
    let mut bytes = topic.store.get(&object(flipped)).await.expect("read").expect("there").to_vec();
    bytes[100] ^= 1;
    topic.store.objects().put(&object(flipped), bytes.into()).await.expect("stored");
    topic.store.delete(&object(missing)).await.expect("deleted");
    let mut looks = Looks::new(&topic, "a");
    let error = looks.look(&topic, at(300)).await.expect("the store answers").expect_err("the first is told");
    assert!(error.to_string().contains(flipped) && error.to_string().contains("sha256"), "{error}");
    assert!(looks.known.left.contains(flipped) && looks.known.left.contains(missing), "{:?}", looks.known.left);
    let left: Vec<String> = topic.segments().await.iter().map(|segment| segment.object.clone()).collect();
    assert!(left.contains(flipped) && left.contains(missing) && left.len() <= 8, "{left:?}");
    assert_eq!(looks.merger.shown.now().damaged, 2);
    looks.look_until_done(&topic, at(600)).await;
    assert!(topic.store.get(&object(flipped)).await.expect("read").is_some(), "it is not deleted");
}

#[tokio::test]
async fn of_several_that_merge_at_once_one_has_the_entry_and_nothing_is_left_of_the_others() {
    let mut topic = Topic::begun(Format::Avro).await;
    for minute in 0..120 {
        topic.append(minute, 6).await;
    }
    let before = topic.records(None).await;
    let mut looks: Vec<Looks> = ["a", "b", "c"].iter().map(|writer| Looks::new(&topic, writer)).collect();
    let all = looks.iter_mut().map(|looks| looks.look(&topic, at(400)));
    for looked in futures::future::join_all(all).await {
        looked.expect("the store answers").expect("nothing is damaged");
    }
    let after = topic.segments().await.len();
    assert!(after <= 3, "{after}");
    assert_eq!(topic.objects().await, 120 + after, "who came too late has removed its own");
    for looks in &mut looks {
        looks.look_until_done(&topic, at(600)).await;
    }
    assert_eq!(topic.objects().await, after);
    assert_eq!(topic.records(None).await, before);
}

#[tokio::test]
async fn what_a_replay_reads_is_not_deleted_before_it_ends() {
    let mut topic = Topic::begun(Format::Avro).await;
    for minute in 0..60 {
        topic.append(minute, 6).await;
    }
    let offsets = BTreeMap::from([(orders().stream().to_string(), BTreeMap::from([(1, 5..6)]))]);
    let reads = Reads::new("r".into(), "a replay".into(), offsets);
    reads.write(&topic.store, "main").await.expect("written");
    let held = topic.store.get_dated(&layout::topic_hold("main", "r")).await.expect("read").expect("there").1;
    let minute = |after: i64| (held - start()).num_minutes() + after;
    let mut looks = Looks::new(&topic, "a");
    // As old as the topic is, the hold is of this day.
    for after in [1, 100, 200] {
        looks.look_until_done(&topic, at(minute(after))).await;
        assert!(topic.objects().await > 60, "{after} minutes after it was written");
    }
    topic.store.delete(&layout::topic_hold("main", "r")).await.expect("it ends");
    looks.look_until_done(&topic, at(minute(300))).await;
    assert!(topic.objects().await <= 2);
}

#[tokio::test]
async fn a_deletion_that_was_killed_is_gone_on_with_by_whoever_starts() {
    let mut topic = Topic::begun(Format::Avro).await;
    for minute in 0..240 {
        topic.append(minute, 6).await;
    }
    let small: Vec<String> = topic.segments().await.into_iter().map(|segment| segment.object).collect();
    Looks::new(&topic, "a").look_until_done(&topic, at(400)).await;
    let after = topic.segments().await.len();
    // As one leaves it that dies on the way through the second hour.
    for object in &small[..100] {
        topic.store.delete(&layout::object(object).expect("a key")).await.expect("deleted");
    }
    // The merges stand in a page then.
    for _ in 0..70 {
        topic.append(590, 6).await;
    }
    let (after, before) = (after + 70, topic.records(None).await);
    let mut looks = Looks::new(&topic, "b");
    looks.look_until_done(&topic, at(600)).await;
    assert_eq!(topic.objects().await, after, "all that was replaced is gone, and nothing else");
    assert_eq!(topic.records(None).await, before);
    assert!(looks.merger.shown.now().deleted < 240, "what was gone is not deleted again");
}

/// What was merged and deleted while it was verified is no damage, and what is missing is.
#[tokio::test]
async fn what_is_merged_and_deleted_while_it_is_verified_is_not_missed() {
    let mut topic = Topic::begun(Format::Avro).await;
    for minute in 0..60 {
        topic.append(minute, 6).await;
    }
    topic.append(60, 6).await;
    let lost = topic.segments().await.last().expect("some").object.clone();
    topic.store.delete(&layout::object(&lost).expect("a key")).await.expect("deleted");
    // On one thread the chain is read before anything that was spawned, and that before the segments are looked at.
    let small = topic.segments().await.len();
    let (store, mut looks) = (topic.store.clone(), Looks::new(&topic, "a"));
    let merges = tokio::spawn(async move {
        looks.look_until_done(&topic, at(130)).await;
        looks.look_until_done(&topic, at(300)).await;
        looks.merger.shown.now().deleted
    });
    let report = crate::verify::verify(&store, true, &Arc::default()).await.expect("the store answers");
    assert_eq!(report.segments, small as u64, "the chain was read before");
    assert!(merges.await.expect("done") >= 59);
    let missing: Vec<&str> = report.errors.iter().map(|damage| damage.object.as_str()).collect();
    assert_eq!(missing, [lost.as_str()]);
}

/// A month of a topic that gets a record a second and is sealed every minute.
#[tokio::test]
#[ignore = "takes minutes: the figures of docs/DESIGN.md"]
async fn a_month_of_a_quiet_topic() {
    let mut topic = Topic::begun(Format::Parquet).await;
    let mut looks = Looks::new(&topic, "a");
    const DAYS: i64 = 30;
    // Objects are as old as the topic is by this machine's clock, and not by the clock of the test.
    let ahead = crate::time::now() + TimeDelta::hours(3) - start();
    let mut by_day = Vec::new();
    for minute in 0..DAYS * 1_440 {
        topic.append(minute, 60).await;
        if minute % 60 == 0 {
            looks.look_until_done(&topic, at(minute)).await;
            looks.pack(&topic, start() + ahead).await;
        }
        if minute % 1_440 == 1_439 {
            by_day.push(topic.all_objects().await);
        }
    }
    let (written, shown) = (topic.written, looks.merger.shown.now());
    let (at_end, entries) = (topic.objects().await, topic.chain.head());
    looks.look_until_done(&topic, at(DAYS * 1_440 + 120)).await;
    looks.look_until_done(&topic, at(DAYS * 1_440 + 240)).await;
    looks.pack(&topic, start() + ahead).await;
    let (left, all) = (topic.objects().await, topic.all_objects().await);
    println!(
        "{written} segments written, {at_end} at the end, {left} three hours later; {entries} entries; {all} objects of all kinds, \
         by day {by_day:?}; {shown:?}"
    );
    assert!(left as i64 <= DAYS * 24, "{left}");
    // What is young has a number that does not grow; each day adds its segments, three packs and hardly a page.
    let grown = by_day[29] - by_day[9];
    assert!(grown <= 20 * 30, "{grown} in 20 days: {by_day:?}");
    let report = crate::verify::verify(&topic.store, true, &Arc::default()).await.expect("the store answers");
    assert!(report.errors.is_empty() && report.orphans == 0, "{:?}", report.errors);
}

/// Three days of the same: all objects of a topic are fewer than 30 a day, but for those of the last hours.
#[tokio::test]
async fn a_quiet_topic_costs_30_objects_a_day() {
    let mut topic = Topic::begun(Format::Avro).await;
    let mut looks = Looks::new(&topic, "a");
    let now = crate::time::now() + TimeDelta::hours(3);
    let mut counts = Vec::new();
    for minute in 0..3 * 1_440 {
        topic.append(minute, 1).await;
        if minute % 60 == 59 {
            looks.look_until_done(&topic, at(minute)).await;
            looks.pack(&topic, now).await;
        }
        if minute % 1_440 == 1_439 {
            counts.push(topic.all_objects().await);
        }
    }
    let before = topic.records(None).await;
    // What is young: entries of less than a pack, those behind it that are left, those of an hour, and the small segments of three hours
    // and pages as a counter of base 64 has them. Beside that there are 30 objects a day.
    let young = 512 + 256 + 64 + 90 + 4 * 60 + 64 + 24;
    println!("{counts:?}");
    for (day, count) in (1..).zip(&counts) {
        assert!(*count <= young + 30 * day, "{counts:?}");
    }
    let packs = topic.chain_objects("packs/").await;
    assert_eq!(packs as u64, (topic.chain.head() - 256) / 512, "all is packed that can be");
    looks.look_until_done(&topic, at(3 * 1_440 + 240)).await;
    assert_eq!(topic.records(None).await, before);
    let report = crate::verify::verify(&topic.store, true, &Arc::default()).await.expect("the store answers");
    assert!(report.errors.is_empty() && report.orphans == 0, "{:?}", report.errors);
}

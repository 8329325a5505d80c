//! Objects that ask for more memory than they are worth, in an archive that somebody else may write into: each reader knows what
//! an object may take, says which one takes more, and gives everything else.
//!
//! ```text
//!   an archive on disk ─► one object exchanged for a bomb ─► the program under RLIMIT_AS ─► exit 3, the object's key, the rest
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use tidelog::manifest::Chain;
use tidelog::manifest::backups::{self, Archive, Backup, Part};
use tidelog::store::{Store, layout};
use tidelog::stream::{Begin, Format, Lsn, StreamId, System, TopicGeneration, sha256};

use crate::archive::{Record, Topic, on_disk};
use crate::rig::program::{Home, Output, run};

/// What the program may address. It needs about a quarter of it for an ordinary archive, most of that for threads.
const LIMIT_KIB: u64 = 1 << 20;

/// An archive with the topic `sound`, and whatever else a test puts there.
pub(crate) struct Target {
    pub(crate) home: Home,
    store: Store,
    runtime: tokio::runtime::Runtime,
}

impl Target {
    fn new() -> Target {
        let home = Home::new();
        let path = home.path().display();
        home.write("tidelog.toml", &format!("[archive]\nurl = \"file://{path}/archive\"\nspool_dir = \"{path}\"\n"));
        fs::create_dir_all(home.path().join("archive")).expect("a directory");
        let store = on_disk(&home.path().join("archive"));
        let target = Target { home, store, runtime: tokio::runtime::Runtime::new().expect("a runtime") };
        target.topic("sound", 1);
        target
    }

    /// A topic with one record in each of so many segments.
    fn topic(&self, name: &str, segments: i64) {
        self.runtime.block_on(async {
            let mut topic = Topic::begin(&self.store, name, 0).await;
            for offset in 0..segments {
                topic.append(Format::Avro, &[Record::new(0, offset, 1_000 + offset)]).await;
            }
        });
    }

    pub(crate) fn path(&self, key: &object_store::path::Path) -> PathBuf {
        self.home.path().join("archive").join(key.as_ref())
    }

    /// Runs the program under the limit.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.run_within(LIMIT_KIB, args)
    }

    /// Runs the program with so many KiB that it may address.
    pub(crate) fn run_within(&self, limit_kib: u64, args: &[&str]) -> Output {
        let plain = self.home.command(&[&["-c", "tidelog.toml"], args].concat());
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -v {limit_kib}; exec \"$@\""), "sh"]).arg(plain.get_program());
        command.args(plain.get_args()).current_dir(self.home.path()).env("MALLOC_ARENA_MAX", "2");
        for (name, _) in plain.get_envs().filter(|(_, value)| value.is_none()) {
            command.env_remove(name);
        }
        run(command)
    }

    /// The damage ends with 3 and is told with its object, and what is sound is given.
    fn tells(&self, args: &[&str], (said, object): (&str, &str)) -> Output {
        let output = self.run(args).expect(3);
        let told = format!("{}{}", output.stdout, output.stderr);
        assert!(told.contains(said) && told.contains(object), "{args:?}: {told}");
        output
    }
}

fn stream(topic: &str) -> StreamId {
    TopicGeneration::new("main", topic, 0).stream()
}

/// As many spaces as asked for, compressed: white space, of which JSON may have any.
fn spaces(bytes: u64) -> Vec<u8> {
    let mut packed = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    packed.set_pledged_src_size(Some(bytes)).expect("nothing is written yet");
    let piece = vec![b' '; 1 << 20];
    (0..bytes >> 20).for_each(|_| packed.write_all(&piece).expect("it is compressed"));
    packed.finish().expect("it is compressed")
}

fn all_of(output: &Output, topic: &str) -> usize {
    output.json_lines().iter().filter(|line| line["topic"] == topic).count()
}

#[test]
fn an_entry_larger_than_any_entry_is_refused_unread() {
    let target = Target::new();
    target.topic("large", 3);
    let entry = layout::entry(&stream("large"), 2);
    let file = fs::File::options().write(true).open(target.path(&entry)).expect("the entry");
    file.set_len(3 << 30).expect("a hole takes no room");
    let said = ("and an entry of a chain has 16777216 at the most", entry.as_ref());
    assert!(target.tells(&["ls"], said).stdout.contains("kafka/main/sound"));
    target.tells(&["verify"], said);
    target.tells(&["files"], said);
    assert_eq!(all_of(&target.tells(&["cat", "--topic", "^"], said), "sound"), 1);
}

#[test]
fn a_page_that_unpacks_to_more_than_any_page_is_read_from_its_entries() {
    let target = Target::new();
    // Before the 64th is committed, the page of the others is written, and the snapshot that names it.
    target.topic("paged", 64);
    let bomb = spaces(2 << 30);
    assert!(bomb.len() < 80_000, "{}", bomb.len());
    let snapshot = target.path(&layout::entry(&stream("paged"), 64));
    let pages = target.path(&layout::chain(&stream("paged"))).join("pages");
    fs::remove_file(target.path(&layout::entry(&stream("paged"), 65))).expect("the newest entry");
    let page = fs::read_dir(&pages).expect("pages").next().expect("one").expect("a name").path();
    let name = page.file_name().expect("a name").to_string_lossy().into_owned();
    let (old, new) = (name.trim_end_matches(".json.zst"), sha256(&bomb));
    let text = fs::read_to_string(&snapshot).expect("a snapshot").replace(old, &new);
    fs::write(&snapshot, text).expect("written");
    let object = layout::page(&stream("paged"), &new);
    fs::write(target.path(&object), bomb).expect("written");
    let said = ("unpacks to more than", object.as_ref());
    target.tells(&["verify"], said);
    for command in [&["cat", "--topic", "^"][..], &["files"]] {
        let output = target.run(command).expect(0);
        assert!(output.stderr.contains("its entries were read instead"), "{}", output.stderr);
        assert_eq!(output.stdout.lines().count(), 64, "63 of one topic and 1 of the other");
    }
}

#[test]
fn an_entry_with_the_greatest_number_is_one_hole_and_not_a_walk() {
    let target = Target::new();
    target.topic("far", 3);
    let far = layout::entry(&stream("far"), u64::MAX);
    fs::copy(target.path(&layout::entry(&stream("far"), 3)), target.path(&far)).expect("a copy");
    assert!(target.tells(&["ls"], ("is missing", "18446744073709551615")).stdout.contains("kafka/main/sound"));
    target.tells(&["verify"], ("are missing, although later entries", far.as_ref()));
    target.run(&["verify", "--repair"]).expect(0);
    target.run(&["verify"]).expect(0);
}

/// Every segment of one topic says that it has the most that a number can say.
#[test]
fn numbers_that_add_up_to_more_than_a_number_holds_end_nothing() {
    let target = Target::new();
    target.topic("vast", 3);
    let mut previous = serde_json::Value::Null;
    for number in 0..4 {
        let path = target.path(&layout::entry(&stream("vast"), number));
        let text = fs::read_to_string(&path).expect("an entry");
        let mut entry: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        entry["previous"] = previous;
        if number > 0 {
            entry["segments"][0]["raw_bytes"] = u64::MAX.into();
            entry["segments"][0]["bytes"] = if number == 3 { u64::MAX } else { u64::MAX >> 1 }.into();
        }
        if number == 3 {
            let ranges = entry["segments"][0]["partitions"].as_array_mut().expect("ranges");
            ranges.resize(4, ranges[0].clone());
            for (partition, range) in (0..).zip(ranges) {
                let start = if partition == 0 { 2 } else { 0 };
                (range["partition"], range["start"]) = (partition.into(), start.into());
                (range["end"], range["records"]) = (i64::MAX.into(), (i64::MAX - start).into());
            }
        }
        let text = entry.to_string();
        fs::write(&path, &text).expect("it can be changed");
        previous = sha256(text.as_bytes()).into();
    }
    let all = ["--topics", "^.", "--from", "1970-01-01T00:00:00Z", "--to", "now", "--to-stdout"];
    for args in
        [&["ls"][..], &["files"], &["verify"], &["verify", "--deep"], &[&["replay", "--dry-run"], &all[..]].concat()]
    {
        let output = target.run(args);
        assert!(matches!(output.status, Some(0 | 3)), "{args:?}: {:?} {}", output.status, output.stderr);
    }
    for args in [&["cat", "--topic", "^"][..], &[&["replay"], &all[..]].concat()] {
        assert_eq!(all_of(&target.run(args).expect(3), "sound"), 1, "{args:?}");
    }
}

/// JSON of `length` bytes: what is given, and a list of nothing. A structure that knows no such field passes over it, if all goes well.
fn with_a_list_of_nothing(text: &str, item: &str, length: usize) -> Vec<u8> {
    let begin = text.trim_end().strip_suffix('}').expect("an object");
    let mut json = format!("{begin},\"more\":[{item}").into_bytes();
    while json.len() + item.len() + 3 < length {
        json.extend_from_slice(format!(",{item}").as_bytes());
    }
    json.extend_from_slice(b"]}");
    json
}

#[test]
fn json_of_lists_of_nothing_is_refused() {
    let shelf = Shelf::new();
    let target = &shelf.target;
    target.topic("dense", 3);
    let exchanged = |key: &object_store::path::Path, item: &str, length: usize| {
        let path = target.path(key);
        let text = fs::read_to_string(&path).expect("an object");
        fs::write(&path, with_a_list_of_nothing(&text, item, length)).expect("written");
        text
    };
    let commit = layout::backup_commit(7, "b");
    for item in ["[]", "0"] {
        let entry = layout::entry(&stream("dense"), 2);
        let text = exchanged(&entry, item, 16 << 20);
        let said = ("more items in lists", entry.as_ref());
        target.tells(&["verify"], said);
        assert_eq!(all_of(&target.tells(&["cat", "--topic", "^"], said), "sound"), 1);
        fs::write(target.path(&entry), text).expect("put back");
        let text = exchanged(&commit, item, 100 << 20);
        target.tells(&["verify"], ("more items in lists", commit.as_ref()));
        fs::write(target.path(&commit), text).expect("put back");
    }
    // Topics of which nothing is claimed.
    let folder = layout::topic_coverages("main");
    let claims = layout::coverage(&folder, "w");
    let topics: Vec<String> = (0..1_000_000).map(|n| format!("\"{n:x}\":{{}}")).collect();
    let json = format!(
        "{{\"format\":1,\"writer\":\"w\",\"at\":\"2026-01-01T00:00:00Z\",\"streams\":{{}},\"topics\":{{{}}}}}",
        topics.join(",")
    );
    fs::create_dir_all(target.path(&folder)).expect("a folder");
    fs::write(target.path(&claims), json).expect("written");
    let output = target.run(&["ls"]);
    assert!(output.stdout.contains("kafka/main/sound"), "{}{}", output.stdout, output.stderr);
    assert!(output.stderr.contains("or structures, than its length has room for"), "{}", output.stderr);
}

/// A system with one base backup, as its parts are given: `base.tar` of one file, and the manifest that names it.
pub(crate) struct Shelf {
    pub(crate) target: Target,
    pub(crate) backup: Backup,
}

impl Shelf {
    pub(crate) fn new() -> Shelf {
        let target = Target::new();
        let system = System { system_id: 7, wal_segment_size: 16 << 20, server_version: 17 };
        let time = chrono::DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(5);
        header.set_cksum();
        tar.append_data(&mut header, "file", &b"hello"[..]).expect("appended");
        let body =
            "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{ \"Path\": \"file\", \"Size\": 5 }\n],\n";
        let manifest = format!("{body}\"Manifest-Checksum\": \"{}\"}}\n", sha256(body.as_bytes()));
        let tar = target.part("base.tar.0000000.zst", &tar.into_inner().expect("a tar file"));
        let manifest = target.part("backup_manifest.zst", manifest.as_bytes());
        let archives = vec![Archive {
            name: "base.tar".into(),
            tablespace: None,
            parts: vec![tar],
            places: Vec::new(),
            empty: Vec::new(),
        }];
        let backup = Backup {
            format: 1,
            name: "b".into(),
            label: String::new(),
            system,
            timeline: 1,
            start: Lsn(1 << 24),
            end: Lsn(2 << 24),
            end_timeline: 1,
            started: time,
            finished: time,
            is_read_back: true,
            damaged: Vec::new(),
            checksums: None,
            parent: None,
            archives,
            manifest,
        };
        target.runtime.block_on(async {
            let stream = StreamId::Postgres { system_id: 7 };
            Chain::begin(&target.store, &stream, Begin::Postgres(system), "test", time).await.expect("begun");
            backups::commit(&target.store, &backup).await.expect("committed");
        });
        Shelf { target, backup }
    }

    /// Exchanges what the backup says of itself.
    fn exchange(&self, backup: &Backup) {
        let bytes = serde_json::to_vec(backup).expect("JSON");
        fs::write(self.target.path(&layout::backup_commit(7, "b")), bytes).expect("written");
    }
}

impl Target {
    fn part(&self, name: &str, bytes: &[u8]) -> Part {
        self.packed(name, zstd::bulk::compress(bytes, 1).expect("compressed"), bytes.len() as u64)
    }

    fn packed(&self, name: &str, stored: Vec<u8>, bytes: u64) -> Part {
        let key = layout::backup_part(7, "b", name);
        let path = self.path(&key);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, &stored).expect("written");
        Part { object: key.to_string(), bytes, stored_bytes: stored.len() as u64, sha256: sha256(&stored) }
    }
}

#[test]
fn a_part_of_a_base_backup_takes_no_more_than_a_part_can() {
    let shelf = Shelf::new();
    shelf.target.run(&["verify", "--deep"]).expect(0);
    let object = shelf.backup.archives[0].parts[0].object.clone();
    for bytes in [u64::MAX, 1 << 50, 40 << 20] {
        let mut wrong = shelf.backup.clone();
        wrong.archives[0].parts[0].bytes = bytes;
        shelf.exchange(&wrong);
        shelf.target.tells(&["verify", "--deep"], ("unpacks to more than", &object));
        let mut wrong = shelf.backup.clone();
        wrong.manifest.bytes = bytes;
        shelf.exchange(&wrong);
        shelf.target.tells(&["verify", "--deep"], ("unpacks to more than", &wrong.manifest.object));
        shelf.target.run(&["restore-postgres", "--list"]);
    }
    // One that is as long as it says, and longer than any that is written.
    let mut wrong = shelf.backup.clone();
    wrong.archives[0].parts[0] = shelf.target.packed("base.tar.0000001.zst", spaces(2 << 30), 2 << 30);
    shelf.exchange(&wrong);
    shelf.target.tells(&["verify", "--deep"], ("unpacks to more than", "base.tar.0000001.zst"));
}

#[test]
fn a_backup_manifest_takes_no_more_than_its_files_do() {
    let shelf = Shelf::new();
    let bomb = spaces(3 << 30);
    assert!(bomb.len() < 110_000, "{}", bomb.len());
    let manifest = shelf.target.packed("backup_manifest.zst", bomb, 3 << 30);
    shelf.exchange(&Backup { manifest, ..shelf.backup.clone() });
    shelf.target.tells(&["verify", "--deep"], ("unpacks to more than", "backup_manifest.zst"));
}

#[test]
fn what_else_is_read_whole_has_its_bound_too() {
    let shelf = Shelf::new();
    let large = |key: &object_store::path::Path, bytes: u64| {
        let path = shelf.target.path(key);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::File::create(path).expect("a file").set_len(bytes).expect("a hole takes no room");
    };
    let commit = layout::backup_commit(7, "c");
    let history = layout::history(7, 2, 0);
    for (key, what) in [(&commit, "a backup.json"), (&history, "the history of a timeline")] {
        large(key, 3 << 30);
        shelf.target.tells(&["verify"], (what, key.as_ref()));
        fs::remove_file(shelf.target.path(key)).expect("removed");
    }
    let folder = layout::topic_coverages("main");
    let keys: BTreeMap<usize, _> = (0..40).map(|n| (n, layout::coverage(&folder, &format!("w{n}")))).collect();
    keys.values().for_each(|key| large(key, 3 << 30));
    let output = shelf.target.run(&["ls"]);
    assert!(output.stdout.contains("kafka/main/sound"), "{}{}", output.stdout, output.stderr);
    assert!(output.stderr.contains("an object of coverage has"), "{}", output.stderr);
    assert!(output.stderr.lines().count() < 20, "{}", output.stderr);
}

/// Each of them takes 120 MB in a reader's memory, and each is sound.
#[test]
fn many_objects_of_coverage_take_no_more_than_one_may() {
    let target = Target::new();
    let folder = layout::topic_coverages("main");
    fs::create_dir_all(target.path(&folder)).expect("a folder");
    let claims = vec!["0"; 2_500_000].join(",");
    for n in 0..12 {
        let mut json = format!(
            "{{\"format\":1,\"writer\":\"w{n}\",\"at\":\"2026-01-01T00:00:00Z\",\"streams\":{{}},\"topics\":{{\"{}\":\
             {{\"claims\":[{{\"complete_through\":\"2026-01-01T00:00:00Z\",\"ends\":[[0,[{claims}]]]}}]}}}}}}",
            stream("sound")
        )
        .into_bytes();
        json.resize(31 << 20, b' ');
        fs::write(target.path(&layout::coverage(&folder, &format!("w{n}"))), json).expect("written");
    }
    let output = target.run(&["ls"]).expect(0);
    assert!(output.stdout.contains("kafka/main/sound"), "{}{}", output.stdout, output.stderr);
    assert!(output.stderr.contains("11 of the objects below coverage/kafka/main are not read"), "{}", output.stderr);
}

/// A sound segment with one record of `value` bytes, its key, and the entry that names it.
fn one_record(target: &Target, format: Format, value: usize) -> (object_store::path::Path, PathBuf) {
    let object = target.runtime.block_on(async {
        let mut topic = Topic::begin(&target.store, "packed", 0).await;
        let record = Record { value: Some(vec![0; value]), ..Record::new(0, 0, 1_000) };
        topic.append(format, &[record]).await
    });
    (object.into(), target.path(&layout::entry(&stream("packed"), 1)))
}

/// Exchanges a segment, and what its entry says of the bytes.
fn exchange(target: &Target, (object, entry): &(object_store::path::Path, PathBuf), bytes: &[u8]) {
    let old = fs::read(target.path(object)).expect("the segment");
    let text = fs::read_to_string(entry).expect("the entry").replace(&sha256(&old), &sha256(bytes));
    let size = |bytes: &[u8]| format!("\"bytes\":{}", bytes.len());
    fs::write(entry, text.replace(&size(&old), &size(bytes))).expect("written");
    fs::write(target.path(object), bytes).expect("written");
}

/// What `tidelog.check` is of metadata (docs/FORMAT.md).
fn check_of(pairs: &BTreeMap<String, String>) -> String {
    let hashed = pairs.iter().filter(|(key, _)| key.starts_with("tidelog.") && *key != "tidelog.check");
    let text: Vec<u8> =
        hashed.flat_map(|(key, value)| [key.as_bytes(), &[0], value.as_bytes(), &[0]].concat()).collect();
    format!("{:016x}", twox_hash::XxHash64::oneshot(0, &text))
}

/// Puts `new` in the place of `old`, which is as long and is there once.
fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    assert_eq!(old.len(), new.len());
    let places: Vec<usize> =
        bytes.windows(old.len()).enumerate().filter(|(_, at)| *at == old).map(|(at, _)| at).collect();
    assert_eq!(places.len(), 1, "{}", String::from_utf8_lossy(old));
    bytes[places[0]..places[0] + old.len()].copy_from_slice(new);
}

/// Changes the bytes of the only row group of a Parquet segment, and all that says what they hash to.
fn with_row_group(mut file: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let reader = SerializedFileReader::new(bytes::Bytes::from(file.clone())).expect("a Parquet file");
    let pairs = reader.metadata().file_metadata().key_value_metadata().expect("metadata");
    let mut pairs: BTreeMap<String, String> =
        pairs.iter().filter_map(|pair| Some((pair.key.clone(), pair.value.clone()?))).collect();
    let place: Vec<(usize, usize, u64, String)> = serde_json::from_str(&pairs["tidelog.row_groups"]).expect("places");
    let (start, length, _, old) = &place[0];
    change(&mut file[*start..start + length]);
    let new = format!("{:016x}", twox_hash::XxHash64::oneshot(0, &file[*start..start + length]));
    let groups = pairs["tidelog.row_groups"].replace(old, &new);
    replace(&mut file, old.as_bytes(), new.as_bytes());
    pairs.insert("tidelog.row_groups".into(), groups);
    let (old, new) = (pairs["tidelog.check"].clone(), check_of(&pairs));
    replace(&mut file, old.as_bytes(), new.as_bytes());
    file
}

/// A number as Thrift and Avro write it.
fn zigzag(number: i64) -> Vec<u8> {
    let mut rest = ((number << 1) ^ (number >> 63)).cast_unsigned();
    let mut bytes = Vec::new();
    while rest >= 0x80 {
        bytes.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

#[test]
fn a_page_of_parquet_that_unpacks_to_more_than_a_row_group_is_refused() {
    let target = Target::new();
    // A page of so many bytes has a size of five, as one of two gigabytes has.
    let made = one_record(&target, Format::Parquet, 140_000_000);
    let sound = fs::read(target.path(&made.0)).expect("the segment");
    assert!(sound.len() < 30_000, "{}", sound.len());
    let bomb = with_row_group(sound, |group| {
        // The header of a data page: field 1, a number, 0; field 2, a number, the size.
        let mut sizes = (140_000_000..140_000_100).map(|size| [&[0x15, 0, 0x15][..], &zigzag(size)].concat());
        let found = sizes.find(|head| group.windows(head.len()).any(|at| at == head)).expect("the page");
        replace(group, &found, &[&[0x15, 0, 0x15][..], &zigzag(i32::MAX.into())].concat());
    });
    exchange(&target, &made, &bomb);
    let said = ("unpacks to more than a row group has", made.0.as_ref());
    target.tells(&["verify", "--deep"], said);
    assert_eq!(all_of(&target.tells(&["cat", "--topic", "^"], said), "sound"), 1);
}

#[test]
fn a_footer_and_a_row_group_as_large_as_the_file_are_refused_unread() {
    let target = Target::new();
    let made = one_record(&target, Format::Parquet, 10);
    let sound = fs::read(target.path(&made.0)).expect("the segment");
    let mut end = sound[sound.len() - 8..].to_vec();
    end[..4].copy_from_slice(&(2_u32 << 30).to_le_bytes());
    let file = fs::File::options().write(true).open(target.path(&made.0)).expect("the segment");
    file.set_len(3 << 30).expect("a hole takes no room");
    std::os::unix::fs::FileExt::write_all_at(&file, &end, (3 << 30) - 8).expect("written");
    let entry = fs::read_to_string(&made.1).expect("the entry");
    let size = |bytes: u64| format!("\"bytes\":{bytes}");
    fs::write(&made.1, entry.replace(&size(sound.len() as u64), &size(3 << 30))).expect("written");
    let said = ("its footer has 2147483648 bytes", made.0.as_ref());
    assert_eq!(all_of(&target.tells(&["cat", "--topic", "^"], said), "sound"), 1);
}

/// A Parquet file that is a footer with a schema alone: parts that say that they have so many fields.
fn schema_of(children: impl Iterator<Item = i64>) -> Vec<u8> {
    // A part: its repetition, its name, the number of its fields.
    let parts: Vec<Vec<u8>> =
        children.map(|children| [&[0x35, 0, 0x18, 1, b'g', 0x15][..], &zigzag(children), &[0]].concat()).collect();
    let mut count = parts.len();
    let mut footer = vec![0x15, 2, 0x19, 0xfc];
    while count >= 0x80 {
        footer.push((count & 0x7f) as u8 | 0x80);
        count >>= 7;
    }
    footer.push(count as u8);
    footer.extend(parts.concat());
    footer.extend([0x16, 0, 0x19, 0x0c, 0]);
    let length = (footer.len() as u32).to_le_bytes();
    [b"PAR1", &footer[..], &length, b"PAR1"].concat()
}

#[test]
fn a_schema_that_is_deep_or_says_that_it_is_wide_is_refused() {
    let target = Target::new();
    let made = one_record(&target, Format::Parquet, 10);
    let said = ("the schema is not that of a segment", made.0.as_ref());
    let leaf = std::iter::once(0);
    for bomb in [
        schema_of(std::iter::repeat_n(1, 3_000).chain(leaf.clone())),
        schema_of(std::iter::repeat_n(1, 16_000).chain(leaf.clone())),
        schema_of(std::iter::once(i64::from(i32::MAX)).chain(leaf)),
    ] {
        exchange(&target, &made, &bomb);
        target.tells(&["verify", "--deep"], said);
        assert_eq!(all_of(&target.tells(&["cat", "--topic", "^"], said), "sound"), 1);
    }
}

#[test]
fn a_block_of_avro_that_unpacks_to_more_than_a_block_is_refused() {
    let target = Target::new();
    let made = one_record(&target, Format::Avro, 10);
    let sound = fs::read(target.path(&made.0)).expect("the segment");
    let reader = apache_avro::Reader::new(&sound[..]).expect("an Avro file");
    let mut pairs: BTreeMap<String, String> = reader
        .user_metadata()
        .iter()
        .map(|(key, value)| (key.clone(), String::from_utf8(value.clone()).expect("text")))
        .collect();
    let bomb = spaces(1 << 30);
    let sync = [7; 16];
    let block = [&zigzag(1)[..], &zigzag(bomb.len() as i64), &bomb, &sync].concat();
    let index = format!("[[0,{},{},[[0,1,0,0,1000,1000]]]]", block.len(), 1_u64 << 30);
    pairs.insert("tidelog.index".into(), index);
    pairs.insert("tidelog.check".into(), check_of(&pairs));
    let (from, to) = (find(&sound, b"avro.schema") + 11, find(&sound, b"avro.codec"));
    // The length of the schema, and the schema, as they stand; behind them the length of the next key.
    let schema = &sound[from..to - 1];
    let text = |text: &str| [&zigzag(text.len() as i64)[..], text.as_bytes()].concat();
    let mut file = [&b"Obj\x01"[..], &zigzag(pairs.len() as i64 + 2), &text("avro.schema"), schema].concat();
    file.extend([text("avro.codec"), text("zstandard")].concat());
    pairs.iter().for_each(|(key, value)| file.extend([text(key), text(value)].concat()));
    file.extend([&[0][..], &sync, &block].concat());
    assert!(file.len() < 60_000, "{}", file.len());
    exchange(&target, &made, &file);
    let said = ("are not a zstd frame of 1073741824 bytes", made.0.as_ref());
    target.tells(&["verify", "--deep"], said);
    assert_eq!(all_of(&target.tells(&["cat", "--topic", "^"], said), "sound"), 1);
}

fn find(bytes: &[u8], word: &[u8]) -> usize {
    bytes.windows(word.len()).position(|at| at == word).expect("it is there")
}

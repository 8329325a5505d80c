//! The inspecting commands as a user types them, over an archive that the test wrote: no server is needed.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::json;
use tidelog::stream::Format;

use crate::archive::{Record, Topic, on_disk};
use crate::rig::http::Server;
use crate::rig::kafka::free_port;
use crate::rig::program::{Home, Output, Program, run};
use crate::rig::topics::PATIENCE;
use crate::rig::wait_for;

const CONFIG: &str = "tidelog.toml";

/// A home whose archive holds two generations of `orders`, `cdc.users`, and an object that nobody committed.
struct Shop {
    home: Home,
    /// The segments of `orders`' second generation.
    segments: Vec<String>,
}

impl Shop {
    fn new() -> Shop {
        let home = Home::new();
        let directory = home.path().join("archive");
        fs::create_dir(&directory).expect("a directory can be made");
        let url = url::Url::from_directory_path(&directory).expect("a path");
        home.write(CONFIG, &format!("[archive]\nurl = \"{url}\"\nspool_dir = \"{}\"\n", home.path().display()));
        let store = on_disk(&directory);
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let segments = runtime.block_on(async {
            let mut old = Topic::begin(&store, "orders", 0).await;
            old.append(Format::Avro, &[Record::new(0, 0, 1_000)]).await;
            old.orphan().await;
            Topic::begin(&store, "cdc.users", 0).await.append(Format::Parquet, &[Record::new(2, 9, 5_000)]).await;
            let mut orders = Topic::begin(&store, "orders", 1).await;
            let records = |partition, from: i64| -> Vec<Record> {
                (from..from + 100).map(|offset| Record::new(partition, offset, 2_000 + offset * 10)).collect()
            };
            let first = orders.append(Format::Parquet, &records(0, 0)).await;
            let second = orders.append(Format::Avro, &[records(0, 100), records(1, 0)].concat()).await;
            vec![first, second]
        });
        Shop { home, segments }
    }

    fn run(&self, args: &[&str]) -> Output {
        self.home.run(&[&["-c", CONFIG], args].concat())
    }

    fn object(&self, key: &str) -> PathBuf {
        self.home.path().join("archive").join(key)
    }
}

#[test]
fn ls_tells_what_there_is() {
    let shop = Shop::new();
    let table = shop.run(&["ls"]).expect(0).stdout;
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("STREAM") && lines[0].ends_with("GAPS"), "{table}");
    assert!(lines[1].starts_with("kafka/main/cdc.users  "), "{table}");
    assert!(lines[3].starts_with("kafka/main/orders.1") && lines[3].contains("  300  "), "{table}");

    let all = shop.run(&["ls", "--json"]).expect(0).json();
    let orders = &all["streams"][2];
    assert_eq!(orders["stream"], "kafka/main/orders.1");
    assert_eq!(
        (&orders["kind"], &orders["topic"], &orders["generation"]),
        (&json!("kafka"), &json!("orders"), &json!(1))
    );
    assert_eq!((&orders["records"], &orders["segments"], &orders["gaps"]), (&json!(300), &json!(2), &json!([])));
    assert_eq!(orders["min_time"], "1970-01-01T00:00:02.000Z");
    assert_eq!(orders["max_time"], "1970-01-01T00:00:03.990Z");
    assert_eq!(orders["complete_through"], json!(null));
    assert_eq!(
        orders["partitions"],
        json!([{"partition": 0, "start": 0, "end": 200, "records": 200, "complete_through": null},
               {"partition": 1, "start": 0, "end": 100, "records": 100, "complete_through": null}])
    );
    let one = shop.run(&["ls", "cdc.users", "--json"]).expect(0).json();
    assert_eq!(one["streams"].as_array().map(Vec::len), Some(1));
    let none = shop.run(&["ls", "nobody"]).expect(1);
    assert!(none.stderr.contains("no stream \"nobody\""), "{}", none.stderr);
}

#[test]
fn files_prints_what_is_committed_and_nothing_else() {
    let shop = Shop::new();
    let all = shop.run(&["files"]).expect(0).stdout;
    assert_eq!(all.lines().count(), 4, "{all}");
    assert!(all.lines().all(|line| std::path::Path::new(line).is_file()), "{all}");
    let one = shop.run(&["files", "kafka/main/orders.1", "--from", "1970-01-01T00:00:03Z"]).expect(0).stdout;
    assert_eq!(one.trim(), shop.object(&shop.segments[1]).display().to_string());
    let json = shop.run(&["files", "orders", "--json"]).expect(0).json();
    assert_eq!(json["files"][1]["records"], 100, "{json}");
    assert_eq!(json["files"][2]["partitions"][1], json!({"partition": 1, "start": 0, "end": 100, "records": 100}));
}

#[test]
fn cat_prints_the_records_that_are_asked_for() {
    let shop = Shop::new();
    let cat = |args: &[&str]| shop.run(&[&["cat", "--topic"], args].concat()).expect(0).json_lines();
    let all = cat(&["orders"]);
    assert_eq!(all.len(), 301, "every generation");
    assert_eq!(
        all[0],
        json!({"topic": "orders", "partition": 0, "offset": 0, "timestamp": "1970-01-01T00:00:01.000Z",
               "timestamp_type": "CreateTime", "key": "k0", "value": "partition 0 offset 0", "headers": []})
    );
    assert_eq!(cat(&["orders", "-n", "3"]).len(), 3);
    assert_eq!(cat(&["orders", "--generation", "0"]).len(), 1);
    let offsets: Vec<_> = cat(&["orders", "--partition", "0", "--offsets", "98..102"])
        .iter()
        .map(|line| line["offset"].clone())
        .collect();
    assert_eq!(offsets, [98, 99, 100, 101], "over two segments of two formats");
    let of_key = |more: &[&str]| -> Vec<_> {
        let lines = cat(&[&["orders"], more].concat());
        lines.iter().map(|line| (line["partition"].clone(), line["offset"].clone(), line["key"].clone())).collect()
    };
    let both = [(json!(0), json!(5), json!("k5")), (json!(1), json!(5), json!("k5"))];
    assert_eq!(of_key(&["--key", "k5"]), both, "of two formats, and not k50");
    assert_eq!(of_key(&["--key-base64", "azU="]), both);
    let said = shop.run(&["cat", "--topic", "orders", "--key", "k5"]).expect(0).stderr;
    assert!(said.contains("2 segments without filters of keys"), "two of three are Avro: {said}");
    assert_eq!(of_key(&["--key", "k5", "-n", "1"]), both[..1], "a limit counts what is printed");
    assert_eq!(of_key(&["--key", "k5", "--partition", "1"]), both[1..]);
    assert!(of_key(&["--key", "K5"]).is_empty() && of_key(&["--key", ""]).is_empty());
    assert!(shop.run(&["cat", "--topic", "orders", "--key-base64", "?"]).expect(2).stderr.contains("is not base64"));
    let timed = cat(&["orders", "--from", "1970-01-01T00:00:02.990Z", "--to", "1970-01-01T00:00:03.010Z"]);
    assert_eq!(timed.len(), 3, "99 and 100 of one partition, 99 of the other");
    assert!(shop.run(&["cat", "--topic", "orders", "--partition", "7"]).expect(1).stderr.contains("no partition 7"));
    assert!(shop.run(&["cat", "--topic", "order"]).expect(1).stderr.contains("it has cdc.users, orders"));
    assert!(
        shop.run(&["cat", "--topic", "orders", "--from", "now", "--to", "-1h"]).expect(2).stderr.contains("--from")
    );
    shop.run(&["cat", "--topic", "orders", "--from", "yesterday"]).expect(2);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let shop = Shop::new();
    for command in ["cat --topic orders", "files", "ls", "replay --from 1970-01-01T00:00:00Z --to-stdout"] {
        let mut shell = std::process::Command::new("bash");
        let line = format!("set -o pipefail; {} -c {CONFIG} {command} | head -n 1", env!("CARGO_BIN_EXE_tidelog"));
        shell.args(["-c", &line]).current_dir(shop.home.path());
        let said = crate::rig::program::run(shell).expect(0);
        assert_eq!(said.stdout.lines().count(), 1, "{command}");
    }
}

/// The configuration of an archiver whose brokers are not there.
fn without_brokers(home: &Home, port: u16) {
    let path = home.path().display();
    home.write(
        CONFIG,
        &format!(
            "[archive]\nurl = \"file://{path}/archive\"\nspool_dir = \"{path}/spool\"\n[http]\nlisten = \"127.0.0.1:{port}\"\n\
             [kafka]\ncluster = \"main\"\nbootstrap_servers = \"127.0.0.1:1\"\ngroup_id = \"g\"\ntopics = [\"orders\"]\n"
        ),
    );
}

/// Whatever it was started with.
#[test]
fn the_program_leaves_no_core_dump() {
    let (home, port) = (Home::new(), free_port());
    without_brokers(&home, port);
    let plain = home.command(&["run", "-c", CONFIG]);
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -c \"$(ulimit -Hc)\"; exec \"$0\" \"$@\""]).arg(plain.get_program());
    command.args(plain.get_args()).current_dir(home.path());
    let program = Program::start(command, &home.path().join("output"));
    let server = Server::new(format!("127.0.0.1:{port}"));
    wait_for("the listener", PATIENCE, || server.is_up().then_some(()));
    let limits = fs::read_to_string(format!("/proc/{}/limits", program.id())).expect("it runs");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a line");
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
    program.kill();
}

#[test]
fn a_log_that_cannot_be_written_ends_no_archiver() {
    let (home, port) = (Home::new(), free_port());
    without_brokers(&home, port);
    let mut command = home.command(&["run", "-c", CONFIG]);
    command.stdout(Stdio::null()).stderr(fs::File::options().write(true).open("/dev/full").expect("a full disk"));
    let mut program = command.spawn().expect("it starts");
    let server = Server::new(format!("127.0.0.1:{port}"));
    // No broker answers, so that there is something to log all the time.
    wait_for("what it does without a broker", PATIENCE, || {
        assert_eq!(program.try_wait().expect("its state"), None, "it has ended");
        server.is_up().then(|| server.get("/readyz")).filter(|answer| answer.body.contains("cannot reach"))
    });
    program.kill().expect("it ends");
    program.wait().expect("it ends");
}

#[test]
fn replay_to_stdout_prints_what_cat_prints() {
    let shop = Shop::new();
    let range = ["--from", "1970-01-01T00:00:02.5Z", "--to", "1970-01-01T00:00:03Z"];
    let replayed = shop.run(&[&["replay", "--topics", "orders", "--to-stdout"], &range[..]].concat()).expect(0);
    assert_eq!(replayed.stdout, shop.run(&[&["cat", "--topic", "orders"], &range[..]].concat()).expect(0).stdout);
    assert_eq!(replayed.stdout.lines().count(), 100);
    assert!(replayed.stderr.contains("up to when partition 0 is complete is not known"), "{}", replayed.stderr);
    for usage in [
        &["--topics", "orders"] as &[&str],
        &["--from", "now", "--to", "-1h"],
        &["--from", "-1h", "--rate", "fast"],
        &["--from", "-1h", "--to-stdout", "--into", "x:1"],
        &["--offsets", "1..2"],
    ] {
        shop.run(&[&["replay"], usage].concat()).expect(2);
    }
    let no_target = shop.run(&["replay", "--from", "-1h"]).expect(2);
    assert!(no_target.stderr.contains("--into"), "{}", no_target.stderr);
}

#[test]
fn verify_finds_nothing_in_a_sound_archive() {
    let shop = Shop::new();
    for args in [&["verify", "--json"] as &[&str], &["verify", "--deep", "--json"]] {
        let report = shop.run(args).expect(0).json();
        assert_eq!((&report["streams"], &report["segments"], &report["records"]), (&json!(3), &json!(4), &json!(302)));
        assert_eq!((&report["errors"], &report["gaps"], &report["orphans"]), (&json!([]), &json!([]), &json!(1)));
    }
    assert!(shop.run(&["verify"]).expect(0).stdout.contains("everything is as its checkpoints say"));
}

#[test]
fn verify_names_what_is_damaged() {
    let shop = Shop::new();
    let flipped = shop.object(&shop.segments[0]);
    let mut bytes = fs::read(&flipped).expect("the segment");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&flipped, bytes).expect("damage can be done");
    fs::remove_file(shop.object(&shop.segments[1])).expect("damage can be done");

    let said = shop.run(&["verify"]).expect(3);
    assert!(
        said.stdout.contains("error: kafka/main/orders partition 0: offsets 0..99 cannot be read"),
        "{}",
        said.stdout
    );
    assert!(said.stdout.contains(&shop.segments[0]) && said.stdout.contains("its sha256 is"), "{}", said.stdout);
    assert!(said.stderr.contains("2 damaged segments of 4, 300 records affected"), "{}", said.stderr);
    let report = shop.run(&["verify", "--json"]).expect(3).json();
    let kinds: Vec<_> =
        report["errors"].as_array().expect("a list").iter().map(|error| error["kind"].clone()).collect();
    assert_eq!(kinds, ["changed", "missing"], "{report}");
    assert_eq!(report["errors"][1]["stream"], "kafka/main/orders.1");
    assert_eq!(report["errors"][1]["ranges"][1], json!({"partition": 1, "start": 0, "end": 100}));
}

#[test]
fn verify_finds_a_checkpoint_that_is_missing_or_changed() {
    let shop = Shop::new();
    let entry = shop.object("manifest/kafka/main/orders.1/00000000000000000001.json");
    let text = fs::read_to_string(&entry).expect("an entry");
    fs::write(&entry, text.replace("\"end\":100", "\"end\":101")).expect("damage can be done");
    let report = shop.run(&["verify", "--json"]).expect(3).json();
    assert!(report["errors"].as_array().expect("a list").iter().any(|error| error["kind"] == "chain"), "{report}");
    fs::remove_file(&entry).expect("damage can be done");
    let report = shop.run(&["verify", "--json"]).expect(3).json();
    let named = report["errors"].to_string();
    assert!(named.contains("00000000000000000001.json") && named.contains("\"chain\""), "{report}");
    let said = shop.run(&["verify"]).expect(3);
    assert!(said.stderr.contains("damaged checkpoint"), "{}", said.stderr);
}

/// Some supervisors start what they run with a umask of 0.
#[test]
fn what_is_made_under_a_umask_of_0_may_be_written_by_nobody_else() {
    let home = Home::new();
    let plain = home.command(&["demo", "--into", "demo", "--events", "100"]);
    let under = |umask: &str| {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &format!("umask {umask}; rm -rf demo; exec \"$0\" \"$@\"")]).arg(plain.get_program());
        command.args(plain.get_args()).current_dir(home.path());
        run(command).expect(0);
        let mut found = Vec::new();
        modes(&home.path().join("demo"), &mut found);
        assert!(found.iter().any(|(path, _)| path.ends_with(".parquet")), "{found:?}");
        found
    };
    for (path, mode) in under("0") {
        assert_eq!(mode & 0o022, 0, "{path} {mode:o}");
    }
    // One that was set for a group that shares the archive stays.
    for (path, mode) in under("0007") {
        assert!(mode & 0o007 == 0 && (path.contains("spool") || mode & 0o060 == 0o060), "{path} {mode:o}");
    }
}

/// The modes of all that lies below a folder.
fn modes(folder: &std::path::Path, into: &mut Vec<(String, u32)>) {
    use std::os::unix::fs::PermissionsExt;
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let facts = path.metadata().expect("it is there");
        into.push((path.display().to_string(), facts.permissions().mode() & 0o777));
        if facts.is_dir() {
            modes(&path, into);
        }
    }
}

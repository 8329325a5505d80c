//! Every loop of the service that retries, failed: it is named by its task until it succeeds.
//!
//! [`case`] lists them all: a task that is new does not compile before somebody says how it is failed.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tidelog::tasks::{Task, Weight};

use crate::postgres_restore::{PATIENCE, Place};
use crate::rig::http::Server;
use crate::rig::kafka::free_port;
use crate::rig::postgres::Version;
use crate::rig::program::Program;
use crate::rig::{wait_for, wait_until};
use crate::wal::may_mount;

/// How a loop is failed.
enum Case {
    /// Below the site this directory is away, and a file in its place, while commits come.
    Without(&'static str),
    /// The same from before the service starts, with more of a configuration.
    StartedWithout(&'static str, &'static str),
    /// The spool lies on a disk that has room for two megabytes, until the ballast on it is removed.
    FullSpool,
    /// The server is down.
    ServerDown,
    /// By a test of another module, which names the task.
    By(&'static str, &'static str),
}

/// How each is failed, and words of what is said then.
fn case(task: Task) -> (Case, &'static str) {
    use Case::{By, FullSpool, ServerDown, StartedWithout, Without};
    let tasks = "what_fails_and_is_tried_again_is_named_by_its_task_until_it_succeeds";
    match task {
        Task::KafkaPositions => (By("isolation", "a_damaged_chain_keeps_only_its_own_topic_from_being_archived"), ""),
        Task::KafkaWatch
        | Task::KafkaEnds
        | Task::KafkaTopicIds
        | Task::KafkaSpool
        | Task::KafkaUpload
        | Task::KafkaCheckpoint => (By("stalls", tasks), ""),
        Task::KafkaRights => (
            By(
                "connect_check",
                "a_right_that_is_withdrawn_is_named_and_what_came_meanwhile_is_archived_once_it_is_back",
            ),
            "",
        ),
        Task::KafkaMembers => (By("connect_check", "a_stranger_in_the_group_is_named_with_what_it_takes"), ""),
        Task::KafkaState => (By("state", "a_poll_that_fails_is_named_until_it_succeeds_and_archiving_goes_on"), ""),
        Task::ConnectState => (By("state_connect", "connect_that_is_away_is_named_and_its_last_state_stays"), ""),
        Task::RegistryState => (By("state_schemas", "a_registry_that_is_away_is_named_and_its_last_state_stays"), ""),
        Task::KafkaMaintenance => {
            (By("retention", "records_are_expired_by_the_time_of_archiving_and_never_while_they_are_read"), "")
        }
        Task::KafkaMerge => {
            (By("merge", "small_segments_become_large_ones_while_everything_else_goes_on_and_nothing_changes"), "")
        }
        Task::KafkaStateMaintenance => {
            (By("state", "versions_that_retention_lets_go_are_expired_and_what_is_left_is_told_as_before"), "")
        }
        Task::Leftovers => (By("store_faults", "what_is_left_of_uploads_is_told_while_it_cannot_be_listed"), ""),
        Task::Drills => (By("drill", "what_the_last_drill_has_found_is_a_metric_and_what_cannot_be_read_is_told"), ""),
        Task::WalUpload => (Without("archive/segments/postgres"), "a segment of WAL cannot be uploaded"),
        Task::WalCheckpoint => (Without("archive/manifest/postgres"), "a checkpoint of WAL cannot be written"),
        Task::WalCoverage => (Without("archive/coverage/postgres"), "the completeness watermark cannot be saved"),
        Task::WalSpool => (FullSpool, "receiving waits"),
        Task::SlotState => (By("state_slots", "a_server_that_is_away_is_named_and_its_last_state_stays"), ""),
        Task::WalSlots => (ServerDown, "slots cannot be looked at"),
        Task::WalReceive => (ServerDown, "no WAL is received"),
        Task::WalOpen => (StartedWithout("archive/manifest/postgres", ""), "write-ahead log cannot be begun"),
        Task::WalMaintenance => (
            StartedWithout("archive/holds", "[retention]\npostgres = \"7d\"\n"),
            "maintenance of the archived WAL is put off",
        ),
        Task::BaseBackup => {
            let daily = "[postgres.base_backup]\nevery = \"1d\"\n";
            (StartedWithout("archive/backups", daily), "base backup")
        }
    }
}

/// Files of the service with waits that no failure begins.
const NO_RETRY: [(&str, &str); 5] = [
    ("src/pipeline/mod.rs", "a test"),
    ("src/pipeline/kafka/merge/pace.rs", "rests after work"),
    ("src/pipeline/backoff.rs", "reports itself"),
    ("src/pipeline/postgres/status.rs", "the beat of a bar and of log lines"),
    ("src/pipeline/postgres/supervisor.rs", "waits for a person's pause to end"),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("a file").path()) {
        match entry.is_dir() {
            true => sources(&entry, found),
            false if entry.extension().is_some_and(|kind| kind == "rs") => found.push(entry),
            false => {}
        }
    }
}

#[test]
fn whatever_waits_and_tries_again_reports() {
    for task in Task::ALL {
        let (Case::By(module, test), _) = case(*task) else { continue };
        let text = std::fs::read_to_string(root().join(format!("tests/{module}.rs"))).expect("a source");
        assert!(text.contains(&format!("fn {test}()")) && text.contains(task.name()), "{task:?}: {module}::{test}");
    }
    let mut files = Vec::new();
    sources(&root().join("src/pipeline"), &mut files);
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a source");
        let name = file.strip_prefix(root()).expect("below it").display().to_string();
        let waits = ["sleep(", "interval("].iter().any(|word| text.contains(word));
        let reports = ["Backoff::new", ".reporter("].iter().any(|word| text.contains(word));
        let is_known = NO_RETRY.iter().any(|(known, _)| *known == name);
        assert!(!waits || reports || is_known, "{name} waits, and has no place to report what fails");
    }
}

/// Whether everything that tells of failures tells of one of `task` with these words: `/api/status`, which the page reads,
/// `/readyz`, and `/metrics`.
pub(crate) fn is_told(server: &Server, task: Task, words: &str) -> bool {
    let status = server.json("/api/status");
    let failing = status["failing"].as_array().expect("what fails").iter();
    let about = |failure: &&Value| {
        failure["task"] == task.name() && failure["text"].as_str().is_some_and(|text| text.contains(words))
    };
    let Some(failure) = failing.clone().find(about) else { return false };
    let (since, stops) = (failure["since"].as_str().expect("a time"), task.weight() == Weight::Stops);
    assert_eq!(failure["stops_archiving"], stops, "{failure}");
    let place = if stops { "reasons" } else { "notes" };
    let tells = |document: &Value| document[place].to_string().contains(since);
    let ready = server.get("/readyz");
    let metrics = server.get("/metrics").body;
    let series = format!("tidelog_task_failing{{task={:?}}} ", task.name());
    let counts = metrics.lines().any(|line| line.strip_prefix(&series).is_some_and(|count| count != "0"));
    tells(&status) && tells(&ready.json()) && counts && (!stops || ready.status == 503)
}

struct Loops {
    place: Place,
    server: Server,
    marks: u32,
}

impl Loops {
    fn start(&self, more: &str) {
        let more = format!("{more}[http]\nlisten = \"{}\"\n", self.server.address);
        self.place.archive(&self.place.postgres, &more);
    }

    fn mark(&mut self) {
        self.marks += 1;
        self.place.mark(self.marks);
    }

    /// The directory is away, and a file in its place, while `work` goes on.
    fn without(&mut self, directory: &Path, work: impl FnOnce(&mut Self)) {
        let away = directory.with_extension("away");
        let was_there = directory.exists();
        if was_there {
            std::fs::rename(directory, &away).expect("it is taken away");
        }
        std::fs::create_dir_all(directory.parent().expect("a parent")).expect("a directory can be made");
        std::fs::write(directory, "").expect("a file can be written");
        work(self);
        std::fs::remove_file(directory).expect("the file is removed");
        if was_there {
            std::fs::rename(&away, directory).expect("it is brought back");
        }
    }

    fn wait_told(&self, task: Task, words: &str) {
        wait_until(&format!("{task:?} to be told"), PATIENCE, || {
            self.place.program().as_mut().expect("it archives").assert_running();
            self.server.is_up() && is_told(&self.server, task, words)
        });
    }

    fn fail(&mut self, task: Task) {
        let (case, words) = case(task);
        let home = self.place.home.path().to_owned();
        match case {
            Case::By(..) => return,
            Case::Without(directory) => self.without(&home.join(directory), |loops| {
                loops.mark();
                loops.wait_told(task, words);
            }),
            Case::FullSpool => {
                if !may_mount() {
                    return;
                }
                self.place.stop_archiving();
                let full = "mount -t tmpfs -o size=40m tmpfs spool && head -c 38M /dev/zero > spool/ballast";
                let service = self.place.home.shell(&format!("{full} && exec \"$0\" -c tidelog.toml run"));
                let service = Program::start(service, &home.join("output")).prepared();
                let spool = format!("/proc/{}/root{}", service.id(), home.join("spool").display());
                *self.place.program() = Some(service);
                self.place.postgres.psql("CREATE TABLE filler AS SELECT generate_series(1, 200000) n");
                self.wait_told(task, words);
                std::fs::remove_file(Path::new(&spool).join("ballast")).expect("the ballast is removed");
            }
            Case::StartedWithout(directory, more) => {
                self.place.stop_archiving();
                self.without(&home.join(directory), |loops| {
                    loops.start(more);
                    loops.wait_told(task, words);
                });
            }
            Case::ServerDown => {
                self.place.postgres.stop();
                self.wait_told(task, words);
                self.place.postgres.restart();
            }
        }
        let what = format!("nothing to fail after {task:?}");
        let failing = wait_for(&what, PATIENCE, || {
            let status = self.server.json("/api/status");
            (status["failing"] == serde_json::json!([]) && status["ready"] == true).then_some(status)
        });
        assert_eq!(failing["reasons"], serde_json::json!([]));
    }
}

/// Fails these one after the other, on a site of their own.
fn fail_all(tasks: &[Task]) {
    let place = Place::new(Version::Debian);
    place.wait_archived();
    let mut loops = Loops { place, server: Server::new(format!("127.0.0.1:{}", free_port())), marks: 0 };
    loops.start("");
    loops.mark();
    loops.place.wait_archived();
    for task in tasks {
        assert!(!matches!(case(*task).0, Case::By(..)), "{task:?}");
        loops.fail(*task);
    }
    loops.mark();
    loops.place.wait_archived();
    loops.place.stop_archiving();
    loops.place.tidelog(&["verify"]).expect(0);
}

#[test]
fn every_loop_of_postgres_is_named_until_it_succeeds() {
    let fails_here = |task: &Task| task.is_of_postgres() && !matches!(case(*task).0, Case::By(..));
    let of_postgres = Task::ALL.iter().copied().filter(fails_here);
    // The slowest, beside the others: it goes round every 15 s.
    let (slow, others): (Vec<Task>, Vec<Task>) = of_postgres.partition(|task| *task == Task::WalCoverage);
    std::thread::scope(|scope| {
        scope.spawn(|| fail_all(&slow));
        fail_all(&others);
    });
}

//! `tidelog drill pipeline`: the whole pipeline comes back in scratch servers, and nothing of it stays there.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::drill::programs;
use crate::recover::{Lost, as_postgres};
use crate::rig::connect::Connect;
use crate::rig::kafka::{Kafka, KafkaOptions, free_port, shared};
use crate::rig::program::{self, Output, Program};
use crate::rig::topics::PATIENCE;
use crate::rig::wait_until;

/// Scratch servers, and a pipeline file that names them.
struct Scratch<'a> {
    lost: &'a Lost,
    kafka: Kafka,
    worker: Connect,
    port: u16,
}

impl Scratch<'_> {
    fn file(&self) -> String {
        format!(
            "[postgres]\nport = {port}\n[postgres.settings]\nlisten_addresses = \"127.0.0.1\"\nfsync = \"off\"\n\
             dynamic_shared_memory_type = \"mmap\"\nwal_level = \"logical\"\n[kafka]\nbootstrap_servers = {:?}\ngroups = [\"^reader\"]\n\
             [connect]\nurl = {:?}\n[[connector]]\nname = {:?}\n[connector.config]\n\"database.port\" = {port}\n",
            self.kafka.bootstrap(),
            self.worker.url(),
            self.lost.name,
            port = self.port,
        )
    }

    fn args(&self, file: &str) -> Vec<String> {
        let home = self.lost.service.site.home();
        home.write("drill.toml", file);
        fs::create_dir_all(home.path().join("scratch")).expect("a directory");
        let words = ["-c", "tidelog.toml", "drill", "pipeline", "--pipeline", "drill.toml", "--scratch", "scratch"];
        let words = words.map(str::to_owned).into_iter();
        words.chain(["--json".to_owned(), "--bin-dir".to_owned(), programs(self.lost.version)]).collect()
    }

    fn command(&self, file: &str, more: &[&str]) -> std::process::Command {
        let mut args = self.args(file);
        args.extend(more.iter().map(|word| (*word).to_owned()));
        as_postgres(&self.lost.service.site, &args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn drill(&self, file: &str) -> Output {
        program::run(self.command(file, &["--at", &self.lost.to]))
    }

    fn topics(&self) -> BTreeSet<String> {
        let metadata = self.kafka.admin().inner().fetch_metadata(None, Duration::from_secs(20)).expect("the topics");
        let names = metadata.topics().iter().map(|topic| topic.name().to_owned());
        // The broker makes its own as they are needed.
        names.filter(|name| !name.starts_with("__")).collect()
    }

    fn connectors(&self) -> Value {
        self.worker.server.json("/connectors")
    }

    /// What is live, or somebody's, is refused before anything is made, by what it is.
    fn refuses(&self) {
        let (whole, before) = (self.file(), self.topics());
        let live = shared().bootstrap();
        let as_localhost = live.replace("127.0.0.1", "localhost");
        let own = format!("bootstrap_servers = {:?}\n", self.kafka.bootstrap());
        let says = |file: &str, part: &str| {
            let said = self.drill(file).expect(2).stderr;
            assert!(said.contains(part), "{part} is not in: {said}");
            assert_eq!((self.topics(), self.connectors()), (before.clone(), json!([])), "{part}: something was made");
        };
        let with = |line: &str| whole.replace(&own, line);
        let workers = format!("url = {:?}\n", self.worker.url());
        let of_live = |url: &str| whole.replace(&workers, &format!("url = {url:?}\n"));
        let live_workers = crate::rig::connect::shared_worker().url();
        says(&with(""), "kafka.bootstrap_servers: is missing");
        says(&with(&format!("bootstrap_servers = {live:?}\n")), "is of the cluster that is archived");
        says(&with(&format!("bootstrap_servers = {as_localhost:?}\n")), "a cluster that is archived");
        says(&of_live(&live_workers), "are the workers that are archived");
        says(&of_live(&live_workers.replace("127.0.0.1", "localhost")), "has workers over");
        says(&whole.replace("[postgres]\n", "[postgres]\nurl = \"host=h\"\n"), "postgres.url: is not for a drill");
        let leads = format!("[connector.config]\n\"x.bootstrap.servers\" = {live:?}\n");
        says(&whole.replace("[connector.config]\n", &leads), "its x.bootstrap.servers leads to what is archived");
        let taken = format!("{}.somebody.s", self.lost.prefix);
        self.kafka.create_topic(&taken, 1, &[]);
        let said = self.drill(&whole).expect(2).stderr;
        assert!(said.contains(&format!("has the topic {taken} already")), "{said}");
        assert!(self.topics().contains(&taken));
        self.kafka.delete_topic(&taken);
        let lines = self.worker.file("lines", "one\n");
        self.worker.copy_lines(&self.lost.name, &lines, "lines", json!({}));
        let said = self.drill(&whole).expect(2).stderr;
        assert!(said.contains("there is a connector"), "{said}");
        self.worker.call("DELETE", &format!("/connectors/{}", self.lost.name), &Value::Null);
        wait_until("the topic to be gone", PATIENCE, || !self.topics().contains(&taken));
    }

    /// Nothing of a drill is there.
    fn is_clean(&self, before: &BTreeSet<String>) {
        let topics: Vec<String> = self.topics().difference(before).cloned().collect();
        assert_eq!((topics, self.connectors()), (Vec::new(), json!([])));
        assert_eq!(self.kafka.members(&self.lost.group), None, "the group is still there");
        let scratch = self.lost.service.site.home().path().join("scratch");
        assert!(fs::read_dir(&scratch).expect("a directory").next().is_none(), "the directory is still there");
    }

    fn made(&self) -> Value {
        let file = self.lost.service.site.home().path().join("archive/drills/made/pipeline.json");
        let text = fs::read(&file).unwrap_or_else(|_| b"{}".to_vec());
        serde_json::from_slice::<Value>(&text).expect("JSON")["made"].clone()
    }
}

/// Drills with what was archived of a pipeline.
pub(crate) fn drills(lost: &Lost) {
    let kafka = Kafka::start(KafkaOptions::default());
    let worker = Connect::start(&kafka.bootstrap());
    let scratch = Scratch { lost, kafka, worker, port: free_port() };
    scratch.refuses();
    let before: BTreeSet<String> = scratch.topics().into_iter().chain(["lines".to_owned()]).collect();

    // Killed while its connector is there.
    let mut drill =
        Program::start(scratch.command(&scratch.file(), &[]), &lost.service.site.home().path().join("drill.log"));
    wait_until("the connector of the drill", PATIENCE, || {
        drill.assert_running();
        scratch.connectors() == json!([lost.name])
    });
    drill.kill();
    assert_eq!(scratch.made()["connectors"], json!([lost.name]));

    let report = scratch.drill(&scratch.file()).expect(0).json();
    assert_eq!((&report["ok"], &report["findings"]), (&json!(true), &json!([])), "{report}");
    let recovery = &report["recovery"];
    assert_eq!(recovery["connectors"][0]["marker_seen"], true, "{report}");
    let steps = recovery["steps"].as_array().expect("steps");
    let proof = |name: &str| steps.iter().find(|step| step["step"] == name).expect("the step")["proof"].as_str();
    assert!(proof("fold").is_some_and(|proof| proof.starts_with("6 tables, ")), "{report}");
    assert!(
        report["skipped"]
            .as_array()
            .is_some_and(|left| left.iter().any(|one| one == "registry: the pipeline file has no [schema_registry]")),
        "{report}"
    );
    scratch.is_clean(&before);
    assert_eq!(scratch.made(), Value::Null);
}

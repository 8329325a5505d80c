//! A real schema registry: Apicurio, in memory, through its Confluent API.

use std::process::Command;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::http::Server;
use super::kafka::{Kafka, free_port, java};
use super::process::{Process, tail, temporary_directory};
use super::{parts, program, wait_or_tell};

/// A start takes 6 s on an idle machine.
const START_DEADLINE: Duration = Duration::from_secs(180);

/// Where it speaks Confluent's API.
pub(crate) const API: &str = "/apis/ccompat/v7";

/// A running registry.
pub(crate) struct Registry {
    pub(crate) server: Server,
    process: Mutex<Option<Process>>,
    directory: TempDir,
}

impl Registry {
    /// Starts one, and waits until it answers. It is empty.
    pub(crate) fn start() -> Registry {
        let registry = Registry {
            server: Server::new(format!("127.0.0.1:{}", free_port())),
            process: Mutex::new(None),
            directory: temporary_directory("registry"),
        };
        registry.restart();
        registry
    }

    /// Its address, as the configuration names it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}{API}", self.server.address)
    }

    /// Its address, as its own clients want it.
    fn native_url(&self) -> String {
        format!("http://{}/apis/registry/v2", self.server.address)
    }

    /// The settings of a connector that writes Avro with this registry: ids in headers, or in Confluent's wire format.
    pub(crate) fn avro_settings(&self, in_headers: bool) -> Vec<(String, String)> {
        let of = |side: &str| {
            let own = [
                ("", "io.apicurio.registry.utils.converter.AvroConverter".to_owned()),
                (".apicurio.registry.url", self.native_url()),
                (".apicurio.registry.auto-register", "true".into()),
                (".apicurio.registry.as-confluent", "true".into()),
                (".apicurio.registry.use-id", "contentId".into()),
                (".apicurio.registry.headers.enabled", in_headers.to_string()),
            ];
            own.map(|(name, value)| (format!("{side}.converter{name}"), value))
        };
        let names = ("schema.name.adjustment.mode".to_owned(), "avro".to_owned());
        [of("key"), of("value")].concat().into_iter().chain([names]).collect()
    }

    /// What Kafka's console consumer prints of a topic's `count` first records, with the registry's own deserializer of Avro.
    pub(crate) fn read_avro(&self, kafka: &Kafka, topic: &str, count: usize) -> Vec<String> {
        let mut command = java();
        let own = parts().connect.join("plugins/apicurio/*").display().to_string();
        let classes = command.get_envs().find(|(name, _)| *name == "CLASSPATH").and_then(|(_, value)| value);
        let classes = format!("{}:{own}", classes.expect("Kafka's classes").to_string_lossy());
        command.env("CLASSPATH", classes).args(["-Xmx192m", "-XX:TieredStopAtLevel=1"]);
        command.args(["org.apache.kafka.tools.consumer.ConsoleConsumer", "--bootstrap-server", &kafka.bootstrap()]);
        command.args(["--topic", topic, "--from-beginning", "--timeout-ms", "30000", "--max-messages"]);
        command.arg(count.to_string());
        let deserializer = "io.apicurio.registry.serde.avro.AvroKafkaDeserializer";
        let settings = [
            ("key.deserializer", deserializer.to_owned()),
            ("value.deserializer", deserializer.to_owned()),
            ("key.deserializer.apicurio.registry.url", self.native_url()),
            ("value.deserializer.apicurio.registry.url", self.native_url()),
        ];
        for side in ["key", "value"] {
            for (name, value) in [("as-confluent", "true"), ("use-id", "contentId")] {
                let name = format!("{side}.deserializer.apicurio.registry.{name}={value}");
                command.args(["--formatter-property", &name]);
            }
        }
        command.args(["--formatter-property", "print.key=true"]);
        for (name, value) in settings {
            command.args(["--formatter-property", &format!("{name}={value}")]);
        }
        // Its log goes to the same place.
        let lines = program::run(command).expect(0).stdout;
        lines.lines().filter(|line| line.starts_with('{')).map(str::to_owned).collect()
    }

    /// The changes of a topic, each with its key, as [`Self::read_avro`] prints them. It may not have tombstones.
    pub(crate) fn read_changes(&self, kafka: &Kafka, topic: &str) -> Vec<(String, String)> {
        let count = kafka.partitions(topic).map_or(0, |_| kafka.consume_all(topic).len());
        if count == 0 {
            return Vec::new();
        }
        let lines = self.read_avro(kafka, topic, count);
        assert_eq!(lines.len(), count, "not all of {topic} was read");
        let both = |line: &String| {
            let (key, value) = line.split_once('\t').expect("a key and a value");
            (key.to_owned(), value.to_owned())
        };
        lines.iter().map(both).collect()
    }

    /// Kills it, and all that it holds with it.
    pub(crate) fn kill(&self) {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Starts an empty one at the same address.
    pub(crate) fn restart(&self) {
        self.kill();
        let log = self.directory.path().join("log");
        let mut command = Command::new("java");
        let (host, port) = self.server.address.split_once(':').expect("host:port");
        command.env_remove("JAVA_TOOL_OPTIONS").current_dir(self.directory.path());
        command.args(["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        command.args([format!("-Dquarkus.http.host={host}"), format!("-Dquarkus.http.port={port}")]);
        command.arg("-jar").arg(parts().registry.join("runner.jar"));
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(Process::start(command, &log));
        let is_up = || self.server.is_up() && self.server.get(&format!("{API}/subjects")).status == 200;
        let said = || tail(&std::fs::read_to_string(&log).unwrap_or_default(), 40);
        wait_or_tell("the registry", START_DEADLINE, || is_up().then_some(()), said);
    }

    /// A changing call below the API.
    pub(crate) fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer = self.server.send(method, &format!("{API}{path}"), &body.to_string());
        assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
        answer.json()
    }
}

//! A real worker of Kafka Connect in distributed mode, with the plugins of the set-up: files, and Debezium for Postgres.

use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::Server;
use super::kafka::{free_port, java, shared};
use super::process::{Process, tail, temporary_directory};
use super::{parts, unique, wait_or_tell, wait_until};

/// A JVM, and a scan of plugins; a machine that compiles beside the tests is several times slower.
const START_DEADLINE: Duration = Duration::from_secs(180);

/// What a request may take that waits for a rebalance.
const SOON: Duration = Duration::from_secs(120);

/// A running worker.
pub(crate) struct Connect {
    pub(crate) server: Server,
    bootstrap: String,
    group: String,
    process: Mutex<Option<Process>>,
    directory: TempDir,
}

/// The one worker of all tests that do not stop it.
pub(crate) fn shared_worker() -> &'static Connect {
    static SHARED: LazyLock<Connect> = LazyLock::new(|| Connect::start(&shared().bootstrap()));
    &SHARED
}

impl Connect {
    /// Starts a worker, a cluster of its own, and waits until it answers.
    pub(crate) fn start(bootstrap: &str) -> Connect {
        let connect = Connect {
            server: Server::new(format!("127.0.0.1:{}", free_port())),
            bootstrap: bootstrap.to_owned(),
            group: unique("connect"),
            process: Mutex::new(None),
            directory: temporary_directory("connect"),
        };
        connect.restart();
        connect
    }

    /// Its address, as the configuration names it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// A file in its directory.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).expect("a file can be written");
        path.display().to_string()
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(&self) {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Starts it again at its address.
    pub(crate) fn restart(&self) {
        self.kill();
        let (log, group) = (self.directory.path().join("log"), &self.group);
        let settings = [
            ("bootstrap.servers", self.bootstrap.clone()),
            ("group.id", group.clone()),
            ("listeners", self.url()),
            ("plugin.path", parts().connect.join("plugins").display().to_string()),
            ("plugin.discovery", "service_load".into()),
            ("key.converter", "org.apache.kafka.connect.json.JsonConverter".into()),
            ("value.converter", "org.apache.kafka.connect.json.JsonConverter".into()),
            ("config.storage.topic", format!("{group}-configs")),
            ("offset.storage.topic", format!("{group}-offsets")),
            ("status.storage.topic", format!("{group}-status")),
            ("config.storage.replication.factor", "1".into()),
            ("offset.storage.replication.factor", "1".into()),
            ("status.storage.replication.factor", "1".into()),
            ("offset.storage.partitions", "2".into()),
            ("status.storage.partitions", "1".into()),
            ("offset.flush.interval.ms", "500".into()),
            // A worker that comes back is given its connectors at once.
            ("scheduled.rebalance.max.delay.ms", "0".into()),
            ("config.providers", "file".into()),
            ("config.providers.file.class", "org.apache.kafka.common.config.provider.FileConfigProvider".into()),
        ];
        let text: String = settings.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        let path = self.file("worker.properties", &text);
        let mut command = java();
        command.args(["-Xms64m", "-Xmx320m", "-XX:TieredStopAtLevel=1"]);
        command.arg("org.apache.kafka.connect.cli.ConnectDistributed").arg(path).current_dir(self.directory.path());
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(Process::start(command, &log));
        let said = || tail(&std::fs::read_to_string(&log).unwrap_or_default(), 40);
        wait_or_tell(
            "the Connect worker",
            START_DEADLINE,
            || (self.server.is_up() && self.server.get("/connectors").status == 200).then_some(()),
            said,
        );
    }

    /// A changing call with a JSON body, sent again while the workers rebalance (409).
    pub(crate) fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer = super::wait_for(&format!("{method} {path}"), SOON, || {
            let answer = self.server.send(method, path, &body.to_string());
            (answer.status != 409).then_some(answer)
        });
        assert!((200..300).contains(&answer.status), "{method} {path}: {answer:?}");
        if answer.body.is_empty() { Value::Null } else { answer.json() }
    }

    /// Makes a connector that copies the lines of a file into a topic.
    pub(crate) fn copy_lines(&self, name: &str, file: &str, topic: &str, more: Value) {
        let mut config = json!({
            "connector.class": "org.apache.kafka.connect.file.FileStreamSourceConnector",
            "tasks.max": "1",
            "file": file,
            "topic": topic,
        });
        if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
            config.extend(more);
        }
        self.call("POST", "/connectors", &json!({ "name": name, "config": config }));
    }

    /// Waits until a connector and its tasks are in a state.
    pub(crate) fn wait_state(&self, name: &str, state: &str) {
        wait_until(&format!("{name} to be {state}"), SOON, || {
            let answer = self.server.get(&format!("/connectors/{name}/status"));
            if answer.status != 200 {
                return false;
            }
            let status = answer.json();
            let tasks = status["tasks"].as_array().cloned().unwrap_or_default();
            let all = tasks.iter().map(|task| &task["state"]).chain([&status["connector"]["state"]]);
            all.into_iter().all(|found| found == state) && (state == "STOPPED" || !tasks.is_empty())
        });
    }
}

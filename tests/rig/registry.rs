//! A real schema registry: Apicurio, in memory, through its Confluent API.

use std::process::Command;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::http::Server;
use super::kafka::free_port;
use super::process::{Process, tail, temporary_directory};
use super::{parts, wait_or_tell};

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

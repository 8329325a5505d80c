//! The rig: real servers for the tests, started by the tests, on free ports, in temporary directories.
//!
//! ```text
//!   setup.sh ──► cache (jars, venv) ──► parts() ─┬─► kafka    brokers (JVM processes), topics, records in and out
//!                                                ├─► connect  a worker of Kafka Connect, with Debezium; debezium: a connector of it
//!                                                ├─► registry Apicurio Registry, through its Confluent API
//!                                                ├─► postgres servers of several versions, standbys, psql, pgbench; clients of known changes
//!                                                ├─► s3       moto_server (process), s3s-fs (in this process); s3_proxy before them;
//!                                                │            bad_store puts whole suites behind it
//!                                                └─► python   scripts with duckdb, pyarrow, fastavro
//!   stand_in  a server that answers as a test says; confluent: one with the rules of Confluent's registry
//!   records ─► load() ─► a topic ─► … ─► another topic ─► compare::assert_same
//!                     the binary under test ─────────► program
//!   process: every child dies with this process, however it ends; its files lie below one scratch directory
//! ```
//!
//! A test takes the shared broker by [`kafka::shared`] and names its topics by [`unique`]; a test that stops brokers
//! starts its own by [`kafka::Kafka::start`]. A server that cannot be had fails the test with the server's own words.
//! Nothing here sleeps and hopes: all waiting is [`wait_for`] a condition.

pub(crate) mod bad_store;
pub(crate) mod clients;
pub(crate) mod compare;
pub(crate) mod confluent;
pub(crate) mod connect;
pub(crate) mod debezium;
pub(crate) mod http;
pub(crate) mod kafka;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod program;
pub(crate) mod python;
pub(crate) mod records;
pub(crate) mod registry;
pub(crate) mod s3;
pub(crate) mod s3_proxy;
pub(crate) mod slow_link;
pub(crate) mod stand_in;
pub(crate) mod topics;

mod selftest;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Polls until `condition` gives something, and panics when it has not within `timeout`.
pub(crate) fn wait_for<T>(what: &str, timeout: Duration, condition: impl FnMut() -> Option<T>) -> T {
    wait_or_tell(what, timeout, condition, String::new)
}

/// Polls until `condition` holds, and panics when it has not within `timeout`.
pub(crate) fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, timeout, || condition().then_some(()));
}

/// The same, and tells what there is instead.
pub(crate) fn wait_or_tell<T>(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> Option<T>,
    there_is: impl FnOnce() -> String,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        if start.elapsed() >= timeout {
            panic!("waited {} s in vain for: {what}\n{}", timeout.as_secs(), there_is());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `name` with a number that no other caller of this process gets: tests share one broker, never a topic or a group.
pub(crate) fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Where the set-up put the servers.
pub(crate) struct Parts {
    /// `libs/*.jar`, `bootstrap.checkpoint`, `classes.jsa`
    pub(crate) kafka: PathBuf,
    /// `plugins`, each in a folder of its own
    pub(crate) connect: PathBuf,
    /// `runner.jar` and `lib` of Apicurio Registry
    pub(crate) registry: PathBuf,
    /// a Python venv
    pub(crate) python: PathBuf,
    /// another one: `bin/kubectl`, `bin/kubernetes-validate`, `bin/hadolint`, `bin/docker-compose`
    pub(crate) deploy: PathBuf,
    /// `usr/bin/prometheus`, `usr/bin/promtool`
    pub(crate) prometheus: PathBuf,
    /// `node_modules` with playwright-core and axe-core
    pub(crate) page: PathBuf,
    /// `debian`, `13`, `14`, `16`, `17` and `18`, with `bin` in each
    pub(crate) postgres: PathBuf,
}

/// Returns the parts in the cache. Nothing is installed here: on a machine that is not set up the test fails and names the one
/// command that does it.
pub(crate) fn parts() -> &'static Parts {
    static PARTS: LazyLock<Parts> = LazyLock::new(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rig/setup.sh");
        let output = Command::new("bash")
            .arg(&script)
            .arg("find")
            .stderr(Stdio::inherit())
            .output()
            .unwrap_or_else(|error| panic!("cannot run bash {}: {error}", script.display()));
        assert!(output.status.success(), "{} find failed; it said above what is missing", script.display());
        let lines = String::from_utf8(output.stdout).expect("setup.sh prints UTF-8");
        let path = |name: &str| {
            let line = lines.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            PathBuf::from(line.unwrap_or_else(|| panic!("setup.sh did not print {name}=; it printed:\n{lines}")))
        };
        Parts {
            kafka: path("RIG_KAFKA"),
            connect: path("RIG_CONNECT"),
            registry: path("RIG_REGISTRY"),
            python: path("RIG_PYTHON"),
            postgres: path("RIG_POSTGRES"),
            deploy: path("RIG_DEPLOY"),
            prometheus: path("RIG_PROMETHEUS"),
            page: path("RIG_PAGE"),
        }
    });
    &PARTS
}

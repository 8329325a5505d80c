//! Real Kafka brokers (KRaft, every node broker and controller) as child processes.
//!
//! ```text
//!   Kafka::start ─► node 1..n: <scratch>/kafka-…/<node>/{server.properties, data/, log}
//!                   data/meta.properties       which cluster, which node: written here
//!                   data/bootstrap.checkpoint  the feature levels: what `kafka-storage format` wrote at set-up
//! ```
//!
//! Copying what one `format` wrote saves a JVM start for each node; nothing in it belongs to a node or a cluster.
//! The JVM maps the class archive of the set-up, compiles with C1 only and collects serially: a broker that
//! starts soon and takes 300 MB, not one that is fast for long.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use tempfile::TempDir;

use super::parts;
use super::process::{Process, tail, temporary_directory};

/// A start takes 3 s on an idle machine; a machine that compiles beside the tests is several times slower.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// What a cluster is to be.
#[derive(Clone, Default)]
pub(crate) struct KafkaOptions {
    /// How many brokers; 0 is 1.
    pub(crate) brokers: usize,
    /// More server properties, over the rig's own. `{port}` in a value stands for the broker's port.
    pub(crate) properties: Vec<(&'static str, String)>,
    /// More listeners, as `listeners` has them: `NAME://host:port`.
    pub(crate) listener: Option<String>,
    /// Where the last broker keeps its data, if not in a directory of its own: a disk that can be full.
    pub(crate) disk: Option<PathBuf>,
    /// The most heap of a broker, as `-Xmx` has it; none is 256m.
    pub(crate) heap: Option<&'static str>,
}

/// A running cluster. Dropping it kills it and removes its data.
pub(crate) struct Kafka {
    nodes: Vec<Node>,
    admin: OnceLock<AdminClient<DefaultClientContext>>,
    _directory: TempDir,
}

struct Node {
    id: usize,
    port: u16,
    directory: PathBuf,
    data: PathBuf,
    heap: &'static str,
    process: Mutex<Option<Process>>,
}

/// The one broker that all tests share which do not stop it.
pub(crate) fn shared() -> &'static Kafka {
    static SHARED: LazyLock<Kafka> = LazyLock::new(|| Kafka::start(KafkaOptions::default()));
    &SHARED
}

impl Kafka {
    /// Starts a cluster and waits until every broker knows all of them.
    pub(crate) fn start(options: KafkaOptions) -> Kafka {
        let mut failure = String::new();
        // Another program can take a port between our look and the broker's bind; then all is chosen anew.
        for _ in 0..5 {
            match Kafka::try_start(&options) {
                Ok(kafka) => return kafka,
                Err(log) if log.contains("Address already in use") => failure = log,
                Err(log) => panic!("a Kafka broker did not start; the end of its log:\n{}", tail(&log, 40)),
            }
        }
        panic!("no free port for a Kafka broker in 5 attempts; the end of the last log:\n{}", tail(&failure, 40));
    }

    fn try_start(options: &KafkaOptions) -> Result<Kafka, String> {
        let directory = temporary_directory("kafka");
        let count = options.brokers.max(1);
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
        let cluster = random_id();
        let voters: Vec<String> =
            ports.iter().enumerate().map(|(at, (_, port))| format!("{}@127.0.0.1:{port}", at + 1)).collect();
        let nodes = ports.iter().enumerate().map(|(at, &(port, controller))| {
            let own = directory.path().join((at + 1).to_string());
            let disk = options.disk.clone().filter(|_| at + 1 == count);
            let node = Node {
                id: at + 1,
                port,
                data: disk.unwrap_or_else(|| own.join("data")),
                directory: own,
                heap: options.heap.unwrap_or("256m"),
                process: Mutex::new(None),
            };
            let mut properties = server_properties(&node, controller, &voters);
            if let Some(listener) = &options.listener {
                let listeners = properties.iter_mut().filter(|(name, _)| *name == "listeners");
                listeners.for_each(|(_, value)| *value += &format!(",{listener}"));
            }
            let port = node.port.to_string();
            properties.extend(options.properties.iter().map(|(name, value)| (*name, value.replace("{port}", &port))));
            node.format(&cluster, &properties);
            node
        });
        let kafka = Kafka { nodes: nodes.collect(), admin: OnceLock::new(), _directory: directory };
        for node in &kafka.nodes {
            *node.process() = Some(node.launch());
        }
        kafka.wait_ready(&kafka.nodes)?;
        Ok(kafka)
    }

    /// `bootstrap.servers` of all brokers, running or not.
    pub(crate) fn bootstrap(&self) -> String {
        let addresses: Vec<String> = self.nodes.iter().map(Node::address).collect();
        addresses.join(",")
    }

    /// Stops broker `id` (they count from 1) as an operator would: SIGTERM, leaders moved, logs closed.
    pub(crate) fn stop(&self, id: usize) {
        let mut process = self.node(id).process();
        if let Some(mut broker) = process.take() {
            broker.signal(libc::SIGTERM);
            // The last of a quorum cannot hand over and would wait for others; its data are whole all the same.
            if broker.wait(Duration::from_secs(30)).is_none() {
                broker.kill();
            }
        }
    }

    /// Kills broker `id` with SIGKILL.
    pub(crate) fn kill(&self, id: usize) {
        self.node(id).process().take();
    }

    /// Freezes broker `id`: it holds its connections and answers nothing.
    pub(crate) fn freeze(&self, id: usize) {
        self.signal(id, libc::SIGSTOP);
    }

    /// Lets a frozen broker go on.
    pub(crate) fn thaw(&self, id: usize) {
        self.signal(id, libc::SIGCONT);
    }

    fn signal(&self, id: usize, signal: i32) {
        self.node(id).process().as_mut().expect("the broker runs").signal(signal);
    }

    /// Starts broker `id` again, or for the first time after [`Kafka::stop`], on its old port and data, and waits for it.
    pub(crate) fn restart(&self, id: usize) {
        self.stop(id);
        let node = self.node(id);
        *node.process() = Some(node.launch());
        if let Err(log) = self.wait_ready(std::slice::from_ref(node)) {
            panic!("broker {id} did not start again; the end of its log:\n{}", tail(&log, 40));
        }
    }

    /// Makes another cluster at the same addresses: nothing of the old one is left but its settings.
    pub(crate) fn rebuild(&self) {
        let cluster = random_id();
        for node in &self.nodes {
            self.kill(node.id);
            std::fs::remove_dir_all(&node.data).expect("the broker's data can be removed");
            node.format_data(&cluster);
        }
        for node in &self.nodes {
            *node.process() = Some(node.launch());
        }
        if let Err(log) = self.wait_ready(&self.nodes) {
            panic!("a rebuilt cluster did not start; the end of a log:\n{}", tail(&log, 40));
        }
    }

    /// The file in which broker `id` keeps a partition's first records. What is changed there is what it gives from then on.
    pub(crate) fn log_file(&self, id: usize, topic: &str, partition: i32) -> PathBuf {
        self.node(id).data.join(format!("{topic}-{partition}/00000000000000000000.log"))
    }

    /// The file in which broker `id` notes where each epoch of a partition's leader begins.
    pub(crate) fn epochs_file(&self, id: usize, topic: &str, partition: i32) -> PathBuf {
        self.node(id).data.join(format!("{topic}-{partition}/leader-epoch-checkpoint"))
    }

    /// A client configuration for this cluster that is quick to connect again.
    pub(crate) fn config(&self) -> ClientConfig {
        config(&self.bootstrap())
    }

    /// The one admin client of the tests for this cluster.
    pub(crate) fn admin(&self) -> &AdminClient<DefaultClientContext> {
        self.admin.get_or_init(|| self.config().create().expect("an admin client can be made"))
    }

    /// Whether broker `id` has a process that runs.
    pub(crate) fn is_running(&self, id: usize) -> bool {
        self.node(id).process().as_mut().is_some_and(|process| process.ended().is_none())
    }

    /// What broker `id` has logged.
    pub(crate) fn log(&self, id: usize) -> String {
        self.node(id).log()
    }

    /// How many brokers the cluster has, running or not.
    pub(crate) fn brokers(&self) -> usize {
        self.nodes.len()
    }

    fn node(&self, id: usize) -> &Node {
        &self.nodes[id - 1]
    }

    /// Waits until each of `nodes` names as many brokers as have a process. `Err` is the log of a broker that ended.
    fn wait_ready(&self, nodes: &[Node]) -> Result<(), String> {
        let running = self.nodes.iter().filter(|node| node.process().is_some()).count();
        let start = Instant::now();
        for node in nodes {
            while !node.knows(running) {
                let ended = node.process().as_mut().and_then(Process::ended);
                if let Some(status) = ended {
                    return Err(format!("{}\nthe broker ended: {status}", node.log()));
                }
                if start.elapsed() > START_DEADLINE {
                    return Err(format!("{}\nno answer after {} s", node.log(), START_DEADLINE.as_secs()));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}

/// A client configuration for any cluster, with the rig's habits: quiet, and quick to connect again.
pub(crate) fn config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("broker.address.family", "v4")
        // An answer with a record of 100 MiB is larger than the default.
        .set("receive.message.max.bytes", "200000000")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "500")
        .set("allow.auto.create.topics", "false")
        .set_log_level(RDKafkaLogLevel::Emerg);
    config
}

impl Node {
    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// What `kafka-storage format` does for a node (`MetaPropertiesVersion.V1` and `BootstrapDirectory` in Kafka).
    fn format(&self, cluster: &str, properties: &[(&str, String)]) {
        std::fs::create_dir_all(&self.directory).expect("the broker's directory can be made");
        self.format_data(cluster);
        let text: String = properties.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        std::fs::write(self.directory.join("server.properties"), text).expect("server.properties can be written");
    }

    fn format_data(&self, cluster: &str) {
        let data = &self.data;
        std::fs::create_dir_all(data).expect("the broker's directory can be made");
        let meta = format!("version=1\ncluster.id={cluster}\nnode.id={}\ndirectory.id={}\n", self.id, random_id());
        std::fs::write(data.join("meta.properties"), meta).expect("meta.properties can be written");
        std::fs::copy(parts().kafka.join("bootstrap.checkpoint"), data.join("bootstrap.checkpoint"))
            .expect("bootstrap.checkpoint can be copied");
    }

    fn launch(&self) -> Process {
        let mut command = java();
        command.args(["-Xms64m", &format!("-Xmx{}", self.heap), "-XX:TieredStopAtLevel=1"]);
        let classes = parts().kafka.join("classes.jsa");
        if classes.exists() {
            command.arg(format!("-XX:SharedArchiveFile={}", classes.display()));
        }
        command.arg("kafka.Kafka").arg(self.directory.join("server.properties")).current_dir(&self.directory);
        Process::start(command, &self.directory.join("log"))
    }

    fn knows(&self, brokers: usize) -> bool {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        // Only a port that answers is worth a client: making one costs threads.
        if TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err() {
            return false;
        }
        let client: AdminClient<DefaultClientContext> =
            config(&self.address()).create().expect("an admin client can be made");
        let metadata = client.inner().fetch_metadata(None, Duration::from_secs(1));
        metadata.is_ok_and(|metadata| metadata.brokers().len() >= brokers)
    }
}

/// `java` with Kafka's jars and its log settings, for a broker or one of Kafka's tools by class name.
pub(crate) fn java() -> Command {
    let log = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rig/kafka/log4j2.properties");
    let mut command = Command::new("java");
    command
        .env("CLASSPATH", parts().kafka.join("libs/*"))
        .env_remove("JAVA_TOOL_OPTIONS")
        .arg("-XX:+UseSerialGC")
        .arg(format!("-Dlog4j2.configurationFile={}", log.display()));
    command
}

fn server_properties(node: &Node, controller: u16, voters: &[String]) -> Vec<(&'static str, String)> {
    let replicas = voters.len().min(3).to_string();
    let in_sync = if voters.len() >= 3 { "2" } else { "1" };
    let own = [
        ("node.id", node.id.to_string()),
        ("controller.quorum.voters", voters.join(",")),
        ("listeners", format!("PLAINTEXT://127.0.0.1:{},CONTROLLER://127.0.0.1:{controller}", node.port)),
        ("log.dirs", node.data.display().to_string()),
        ("default.replication.factor", replicas.clone()),
        ("offsets.topic.replication.factor", replicas.clone()),
        ("transaction.state.log.replication.factor", replicas.clone()),
        ("share.coordinator.state.topic.replication.factor", replicas),
        ("min.insync.replicas", in_sync.into()),
        ("transaction.state.log.min.isr", in_sync.into()),
        ("share.coordinator.state.topic.min.isr", in_sync.into()),
    ];
    own.into_iter().chain(FIXED_PROPERTIES.iter().map(|&(name, value)| (name, value.into()))).collect()
}

const FIXED_PROPERTIES: &[(&str, &str)] = &[
    ("process.roles", "broker,controller"),
    ("controller.listener.names", "CONTROLLER"),
    ("auto.create.topics.enable", "false"),
    // Few internal partitions, few threads, small buffers: a broker that starts soon and leaves room.
    ("offsets.topic.num.partitions", "4"),
    ("transaction.state.log.num.partitions", "4"),
    ("share.coordinator.state.topic.num.partitions", "1"),
    ("num.network.threads", "2"),
    ("num.io.threads", "4"),
    ("background.threads", "2"),
    ("log.cleaner.dedupe.buffer.size", "8388608"),
    // Groups form at once, and sessions may be short, so that a test of lost members takes seconds (both protocols).
    ("group.initial.rebalance.delay.ms", "0"),
    ("group.min.session.timeout.ms", "1000"),
    ("group.consumer.min.session.timeout.ms", "3000"),
    ("group.consumer.session.timeout.ms", "6000"),
    ("group.consumer.min.heartbeat.interval.ms", "500"),
    ("group.consumer.heartbeat.interval.ms", "500"),
    // Tests write timestamps of any year: nothing is removed by age or rolled by it unless a topic says so.
    ("log.retention.ms", "-1"),
    ("log.roll.ms", "3153600000000"),
    // A topic that does say so has its way soon.
    ("log.initial.task.delay.ms", "1000"),
    ("log.retention.check.interval.ms", "1000"),
    ("log.cleaner.backoff.ms", "500"),
    ("log.segment.delete.delay.ms", "500"),
];

/// A port that nobody listens on, and that this process has not given out before.
///
/// It lies below the kernel's range of ephemeral ports. Inside that range (where bind to port 0 would take it from) an
/// outgoing connection of any program may take the port while a broker is stopped, and a client that retries may
/// even connect to itself.
pub(crate) fn free_port() -> u16 {
    static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let end = first_ephemeral_port();
    let start = end.saturating_sub(12_000).max(1024);
    for _ in 0..1000 {
        let mut random = [0; 4];
        getrandom::fill(&mut random).expect("the system gives random bytes");
        let offset = u32::from_ne_bytes(random) % u32::from(end - start);
        let port = start + u16::try_from(offset).expect("an offset among ports fits");
        if !taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            taken.insert(port);
            return port;
        }
    }
    panic!("no free port between {start} and {end}");
}

fn first_ephemeral_port() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first = range.split_whitespace().next().and_then(|first| first.parse().ok());
    first.filter(|&first| first > 14_000).unwrap_or(32_768)
}

/// A Kafka `Uuid` as text: 16 bytes in base64url. Kafka refuses one that begins with a dash.
fn random_id() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    bytes[0] &= 0x7f;
    URL_SAFE_NO_PAD.encode(bytes)
}

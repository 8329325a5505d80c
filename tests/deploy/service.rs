//! The program, run as the containers of the manifests run it: their file, their arguments, their variables, their probes.
//!
//! What a machine without a cluster lacks is set by variables, which win over the file: where the archive and the spool
//! are, the broker's address, the port.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::dashboard;
use super::manifests::{build, of_kind, the};
use crate::http;
use crate::rig::compare::assert_same;
use crate::rig::http::Server;
use crate::rig::kafka::{Kafka, free_port, shared};
use crate::rig::postgres::{Postgres, PostgresOptions, Version};
use crate::rig::program::{self, Home, Program};
use crate::rig::{records, unique, wait_until};

const CONFIG: &str = "/etc/tidelog/tidelog.toml";
/// Where a volume is mounted for what is restored.
const RESTORED: &str = "/restored";
const PATIENCE: Duration = Duration::from_secs(90);

/// The container of a Deployment or Job, with what the cluster would put into it.
struct Container {
    resources: &'static [Value],
    kind: &'static str,
}

impl Container {
    fn of(folder: &str, kind: &'static str) -> Container {
        Container { resources: build(folder), kind }
    }

    fn pod(&self) -> &Value {
        let spec = &the(self.resources, self.kind)["spec"];
        &spec.get("jobTemplate").map_or(spec, |job| &job["spec"])["template"]["spec"]
    }

    fn container(&self) -> &Value {
        &self.pod()["containers"][0]
    }

    fn config_map(&self, name: &Value) -> &Value {
        let maps = of_kind(self.resources, "ConfigMap");
        maps.into_iter().find(|map| map["metadata"]["name"] == *name).expect("the ConfigMap is there, hash and all")
    }

    /// The file that the program finds at its path.
    fn file(&self) -> &str {
        let mounts = self.container()["volumeMounts"].as_array().expect("mounts");
        let mount = mounts.iter().find(|mount| mount["mountPath"] == "/etc/tidelog").expect("its folder is mounted");
        let volumes = self.pod()["volumes"].as_array().expect("volumes");
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("the mount's volume");
        let name = &volume["projected"]["sources"][0]["configMap"]["name"];
        self.config_map(name)["data"]["tidelog.toml"].as_str().expect("the file")
    }

    /// Its variables; `more` stands for what the cluster makes up.
    fn variables(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut variables = Vec::new();
        for from in self.container()["envFrom"].as_array().unwrap_or(&Vec::new()) {
            let data = self.config_map(&from["configMapRef"]["name"])["data"].as_object().expect("data").clone();
            variables.extend(data.into_iter().map(|(name, value)| (name, value.as_str().expect("a text").to_owned())));
        }
        for variable in self.container()["env"].as_array().unwrap_or(&Vec::new()) {
            if let Some(value) = variable["value"].as_str() {
                variables.push((variable["name"].as_str().expect("a name").to_owned(), value.to_owned()));
            }
        }
        variables.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        variables
    }

    /// The command that the kubelet would run: `$(NAME)` in an argument is the variable's value.
    fn command(&self, home: &Home, more: &[(&str, &str)]) -> Command {
        let variables = self.variables(more);
        home.write("tidelog.toml", self.file());
        let arguments = self.container()["args"].as_array().expect("arguments").iter();
        let arguments: Vec<String> = arguments
            .map(|argument| {
                let mut argument = argument.as_str().expect("a text").replace(CONFIG, "tidelog.toml");
                argument = argument.replace(RESTORED, &home.path().join("restored").display().to_string());
                argument = argument.replace("=/etc/tidelog-recover/", "=").replace("=/journal/", "=");
                argument = argument.replace("=/scratch", &format!("={}", home.path().join("scratch").display()));
                // The last of a name counts.
                for (name, value) in variables.iter().rev() {
                    argument = argument.replace(&format!("$({name})"), value);
                }
                assert!(!argument.contains("$("), "nothing is known for {argument}");
                argument
            })
            .collect();
        let mut command = home.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        command.envs(variables);
        command
    }

    /// Whether a probe of the kubelet succeeds.
    fn passes(&self, probe: &str, server: &Server) -> bool {
        let path = self.container()[probe]["httpGet"]["path"].as_str().expect("a path");
        server.is_up() && server.get(path).status == 200
    }
}

type Variables = Vec<(&'static str, String)>;

fn borrowed(variables: &Variables) -> Vec<(&str, &str)> {
    variables.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// Where this machine differs from the cluster.
fn here(kafka: &Kafka, home: &Home, topics: &str) -> Variables {
    vec![
        ("TIDELOG__ARCHIVE__URL", format!("file://{}/archive", home.path().display())),
        ("TIDELOG__ARCHIVE__SPOOL_DIR", home.path().join("spool").display().to_string()),
        ("TIDELOG__KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap()),
        ("TIDELOG__KAFKA__TOPICS", topics.to_owned()),
        ("TIDELOG__KAFKA__GROUP_ID", unique("deployed")),
        ("TIDELOG__KAFKA__SEGMENT__MAX_AGE", "1s".to_owned()),
    ]
}

/// The Deployment, ready, with everything of `topic` in the archive; and where it listens.
fn deployed(kafka: &Kafka, topic: &str, home: &Home, archiver: &Container) -> (Program, Server) {
    let (mut program, server) = ready(home, archiver, here(kafka, home, topic));
    let records: i64 = kafka.watermarks(topic).iter().map(|(first, end)| end - first).sum();
    let counted = format!("tidelog_archived_records_total{{topic=\"{topic}\"}} {records}\n");
    wait_until(&counted, PATIENCE, || {
        program.assert_running();
        server.get("/metrics").body.contains(&counted)
    });
    (program, server)
}

/// The Deployment, after its probes have passed; and where it listens.
fn ready(home: &Home, archiver: &Container, mut variables: Variables) -> (Program, Server) {
    let server = Server::new(format!("127.0.0.1:{}", free_port()));
    variables.push(("TIDELOG__HTTP__LISTEN", server.address.clone()));
    let mut program = Program::start(archiver.command(home, &borrowed(&variables)), &home.path().join("log"));
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        wait_until(probe, PATIENCE, || {
            program.assert_running();
            archiver.passes(probe, &server)
        });
    }
    (program, server)
}

#[test]
fn the_deployment_runs_with_exactly_its_configuration_and_is_ready() {
    let archiver = Container::of("base", "Deployment");
    // What no variable of this test replaces is what a cluster would have.
    let config: toml::Table = archiver.file().parse().expect("TOML");
    let text = |path: &[&str]| {
        let (last, tables) = path.split_last().expect("a path");
        let table = tables.iter().fold(&config, |table, name| table[*name].as_table().expect("a section"));
        table[*last].as_str().expect("a text").to_owned()
    };
    let mounts = archiver.container()["volumeMounts"].to_string();
    for path in [text(&["archive", "url"]).replace("file://", ""), text(&["archive", "spool_dir"])] {
        assert!(mounts.contains(&format!("\"mountPath\":{path:?}")), "{path} is not mounted");
    }
    let port = archiver.container()["ports"][0]["containerPort"].as_u64().expect("a port");
    assert_eq!(text(&["http", "listen"]), format!("0.0.0.0:{port}"));

    let (kafka, topic, home) = (shared(), unique("cdc.deployed"), Home::new());
    kafka.create_topic(&topic, 2, &[]);
    records::load(kafka, &topic, 2, 500, 11);
    let (mut program, server) = deployed(kafka, &topic, &home, &archiver);

    // The dashboard shows something of it in every panel, those of Postgres apart.
    let (mut process, prometheus) = http::start_prometheus(home.path(), &server.address);
    for (panel, query) in dashboard::of_kafka() {
        wait_until(&format!("data of the panel {panel}"), PATIENCE, || {
            program.assert_running();
            assert!(process.ended().is_none(), "Prometheus has ended:\n{}", process.output());
            !http::query(&prometheus, &query).is_empty()
        });
    }
    // A stop within what the pod has.
    let grace = archiver.pod()["terminationGracePeriodSeconds"].as_u64().expect("seconds");
    program.terminate(Duration::from_secs(grace));
}

#[test]
fn the_indexes_of_a_replay_job_send_every_record_once() {
    const PARTITIONS: i32 = 3;
    let (kafka, topic, home) = (shared(), unique("cdc.shared-out"), Home::new());
    kafka.create_topic(&topic, PARTITIONS, &[]);
    records::load(kafka, &topic, PARTITIONS, 900, 12);
    let archiver = Container::of("base", "Deployment");
    deployed(kafka, &topic, &home, &archiver).0.terminate(Duration::from_secs(30));

    let job = Container::of("overlays/replay", "Job");
    let spec = &the(job.resources, "Job")["spec"];
    assert_eq!(
        (&spec["completionMode"], &spec["template"]["spec"]["restartPolicy"]),
        (&"Indexed".into(), &"Never".into())
    );
    let id = unique("job");
    let run = |index: i32| {
        let mut variables = here(kafka, &home, &topic);
        variables.extend([
            ("FROM", "1970-01-01T00:00:00Z".to_owned()),
            ("TO", "2100-01-01T00:00:00Z".to_owned()),
            ("TOPICS", topic.clone()),
            ("ID", id.clone()),
            ("INDEX", index.to_string()),
        ]);
        program::run(job.command(&home, &borrowed(&variables))).expect(0).json()
    };
    // One more index than there are partitions, as for the narrower of two topics; and one that is run again.
    let sent: Vec<i64> = (0..=PARTITIONS).map(|index| run(index)["records"].as_i64().expect("a number")).collect();
    assert_eq!(sent[PARTITIONS as usize], 0, "{sent:?}");
    assert_eq!(run(0)["records"], 0, "an index that is done sends nothing when it is started again");
    let rename = job.variables(&[]).into_iter().find(|(name, _)| name == "RENAME").expect("RENAME").1;
    assert_eq!(rename, "(.*)=replay.$1");
    assert_eq!(assert_same((kafka, &topic), (kafka, &format!("replay.{topic}"))), 900);
}

#[test]
fn a_database_comes_back_by_the_cronjob_and_the_restore_job() {
    let postgres = Postgres::start(PostgresOptions::default());
    postgres.psql("create table t (n int)");
    let (kafka, home, topic) = (shared(), Home::new(), unique("cdc.beside-postgres"));
    kafka.create_topic(&topic, 1, &[]);
    let mut variables = here(kafka, &home, &topic);
    variables.push(("TIDELOG__POSTGRES__URL", postgres.url("postgres")));
    variables.push(("TIDELOG__POSTGRES__MAX_AGE", "500ms".to_owned()));
    let (mut archiver, server) = ready(&home, &Container::of("overlays/postgres", "Deployment"), variables.clone());

    let backup = Container::of("overlays/postgres", "CronJob");
    let backup = program::run(backup.command(&home, &borrowed(&variables))).expect(0).json();
    assert_eq!(backup["usable"], true, "{backup}");

    // A moment, and a commit behind it that shows that the moment is archived.
    let moment = postgres.psql("select to_char(now() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')");
    let later = postgres.psql("insert into t values (1); select pg_current_wal_flush_lsn() - '0/0'");
    let later: f64 = later.lines().last().and_then(|line| line.trim().parse().ok()).expect("a position");
    wait_until("the commit behind it to be archived", PATIENCE, || {
        archiver.assert_running();
        let metrics = server.get("/metrics").body;
        let mut lines = metrics.lines();
        let durable = lines.find_map(|line| line.strip_prefix("tidelog_wal_durable_lsn_bytes ")?.parse().ok());
        durable.is_some_and(|durable: f64| durable >= later)
    });

    // A stop writes down at once up to when the archive is complete.
    archiver.terminate(Duration::from_secs(30));
    let restore = Container::of("overlays/restore-postgres", "Job");
    std::fs::create_dir(home.path().join("restored")).expect("the volume");
    let mut variables = here(kafka, &home, &topic);
    variables.push(("TO_TIME", moment.trim().to_owned()));
    program::run(restore.command(&home, &borrowed(&variables))).expect(0);
    let data = home.path().join("restored/data");
    assert!(data.join("PG_VERSION").is_file() && data.join("recovery.signal").is_file(), "{}", data.display());

    let drill = Container::of("overlays/drill", "CronJob");
    std::fs::create_dir(home.path().join("scratch")).expect("the volume");
    let mut command = drill.command(&home, &borrowed(&here(kafka, &home, &topic)));
    // Another version than the image's.
    command.args(["--bin-dir", &crate::drill::programs(Version::Debian)]);
    let report = program::run(crate::drill::as_user(&command)).expect(0).json();
    assert_eq!(report["outcome"], "passed", "{report}");
}

/// Its file is read to the end: what is missing is an archive.
#[test]
fn the_recover_job_names_a_pipeline_that_can_be_read() {
    let (home, job) = (Home::new(), Container::of("overlays/recover", "Job"));
    let volumes = job.pod()["volumes"].as_array().expect("volumes");
    let pipeline = volumes.iter().find(|volume| volume["name"] == "pipeline").expect("the pipeline's volume");
    let map = job.config_map(&pipeline["configMap"]["name"]);
    home.write("pipeline.toml", map["data"]["pipeline.toml"].as_str().expect("the file"));
    let archive = format!("file://{}/archive", home.path().display());
    let variables = [("TIDELOG__ARCHIVE__URL", archive.as_str()), ("TO", "2026-11-22T08:00:00Z")];
    let said = program::run(job.command(&home, &variables)).expect(1).stderr;
    assert!(said.contains("holds no") && !said.contains("pipeline.toml"), "{said}");
}

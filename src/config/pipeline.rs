//! The pipeline file of `tidelog recover`: where each part of the pipeline goes. Its keys are read as those of the configuration are:
//! all mistakes at once, each with the way out, and what is not known is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Table;

use super::TopicPattern;
use super::load::{mistakes, read, table};
use super::postgres::Hidden;
use super::raw::{Problems, Section};
use super::state::{Server, access_of, base_url};
use super::values::Lookup;
use crate::error::Result;

/// The targets of a recovery. A part that is absent is left alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pipeline {
    /// `[postgres]`.
    pub postgres: Option<TargetPostgres>,
    /// `[kafka]`.
    pub kafka: Option<TargetKafka>,
    /// `[connect]`: the workers on which the connectors are made.
    pub connect: Option<Server>,
    /// `[strimzi]`: who makes them, in place of `[connect]`.
    pub strimzi: Option<Strimzi>,
    /// `[schema_registry]`: where the archived subjects are registered.
    pub schema_registry: Option<Server>,
    /// `[[connector]]`: which of the archived ones; empty: all of this database.
    pub connectors: Vec<Captured>,
    /// `[scratch]`: the standby of `recover slot`.
    pub scratch: Option<Scratch>,
}

/// `[scratch]`: a standby that is made out of the archive, and removed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scratch {
    /// `into`: its data directory.
    pub into: PathBuf,
    /// `bin_dir`: where `postgres` of that version is.
    pub bin_dir: PathBuf,
    /// `port`.
    pub port: u16,
    /// `user`: the superuser as whom it is prepared.
    pub user: String,
    /// `listen`: where it listens (`listen_addresses`).
    pub listen: String,
    /// `[scratch.settings]`: given to the server on its command line.
    pub settings: BTreeMap<String, String>,
}

/// `[postgres]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetPostgres {
    /// Where the database is, or comes to be.
    pub server: Recovered,
    /// `database`: the one in which is asked what is of no database.
    pub database: String,
    /// `compare`: whether captured tables are compared with their topics.
    pub compare: bool,
}

/// A server that is made, or one that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovered {
    /// A new data directory, and what starts it.
    Made {
        /// `into`.
        into: PathBuf,
        /// `bin_dir`: where `pg_ctl` and `postgres` of that version are.
        bin_dir: PathBuf,
        /// `port`.
        port: u16,
        /// `user`: the superuser as whom it is prepared.
        user: String,
        /// `[postgres.settings]`: given to the server on its command line.
        settings: BTreeMap<String, String>,
    },
    /// `url`: one that is restored already.
    There(Hidden),
}

/// `[kafka]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetKafka {
    /// `bootstrap_servers`; none: the configuration's own cluster.
    pub bootstrap_servers: Option<String>,
    /// `[kafka.properties]`.
    pub properties: BTreeMap<String, String>,
    /// `rename`, as that of `replay`.
    pub rename: Option<String>,
    /// `topics`: more topics than those that the connectors write by their prefixes.
    pub topics: Vec<String>,
    /// `groups`: the consumer groups that are put where they were.
    pub groups: Vec<String>,
    /// `acls`: whether the archived access control lists are made.
    pub acls: bool,
    /// `settings`: whether topics get all of their archived settings at the end.
    pub archived_settings: bool,
}

/// `[strimzi]`: connectors are resources, which an operator makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strimzi {
    /// `connect`: the name of the `KafkaConnect`.
    pub connect: String,
    /// `namespace`.
    pub namespace: String,
    /// `api_version`: `v1`, or `v1beta2` before Strimzi 0.49.
    pub api_version: String,
    /// `cluster`: the name under which the archive keeps the state of its workers; none: the only one.
    pub cluster: Option<String>,
}

/// `[[connector]]`: one of the archived connectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// `name`.
    pub name: String,
    /// `marker`: the statement that writes a row which the connector captures; `{token}` stands for what is looked for.
    pub marker: Option<String>,
    /// `[connector.config]`: what differs at the target.
    pub config: BTreeMap<String, String>,
}

impl Pipeline {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Kind::Config`](crate::error::Kind::Config) for all that is wrong with it.
    pub fn load(path: &Path) -> Result<Self> {
        let (text, environment) = read(path)?;
        Self::parse(&text, &path.display().to_string(), &environment)
    }

    /// Reads the file of a drill, which makes its own server into this directory, with these programs where the file names none.
    ///
    /// # Errors
    /// [`Kind::Config`](crate::error::Kind::Config) for all that is wrong with it.
    pub fn load_for_drill(path: &Path, (into, bin_dir): (&Path, &Path)) -> Result<Self> {
        let ((text, environment), origin) = (read(path)?, path.display().to_string());
        let mut table = table(&text, &origin)?;
        let postgres = table.entry("postgres").or_insert_with(|| Table::new().into());
        if let Some(postgres) = postgres.as_table_mut() {
            if let Some(key) = ["into", "url"].into_iter().find(|key| postgres.contains_key(*key)) {
                let problem = "is not for a drill, which makes its server below --scratch and removes it; leave it out";
                return Err(mistakes(&origin, &[format!("postgres.{key}: {problem}")]));
            }
            postgres.insert("into".to_owned(), into.display().to_string().into());
            postgres.entry("bin_dir").or_insert_with(|| bin_dir.display().to_string().into());
        }
        let pipeline = Self::of_table(table, &origin, &environment)?;
        let acls = pipeline.kafka.as_ref().is_some_and(|kafka| kafka.acls);
        let wrong = [
            (
                acls,
                "kafka.acls: is not for a drill, which could not tell its lists from others at its end; leave it out",
            ),
            (
                pipeline.strimzi.is_some(),
                "strimzi: is not for a drill, which waits for its connectors; name workers in [connect]",
            ),
        ];
        let wrong: Vec<String> = wrong.into_iter().filter(|(is, _)| *is).map(|(_, what)| what.to_owned()).collect();
        if wrong.is_empty() { Ok(pipeline) } else { Err(mistakes(&origin, &wrong)) }
    }

    /// Reads the file of drills: their servers are scratch ones, of which the database is made by the drill itself.
    ///
    /// # Errors
    /// As those of [`Pipeline::load`].
    pub fn load_scratch(path: &Path) -> Result<Self> {
        Self::load_for_drill(path, (Path::new("/made/by/the/drill"), Path::new("/found")))
    }

    /// Where everything goes, in words without a secret: what a recovery that was begun cannot change any more.
    pub fn targets(&self) -> String {
        let postgres = self.postgres.as_ref().map(|postgres| match &postgres.server {
            Recovered::Made { into, .. } => into.display().to_string(),
            Recovered::There(_) => "a server that is there".to_owned(),
        });
        let kafka = self.kafka.as_ref().map(|kafka| {
            let of = kafka.bootstrap_servers.as_deref().unwrap_or("the configured cluster");
            format!("{of}, rename {}", kafka.rename.as_deref().unwrap_or("none"))
        });
        let shown = |server: &Server| server.urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let (connect, registry) = (self.connect.as_ref().map(shown), self.schema_registry.as_ref().map(shown));
        let strimzi = self.strimzi.as_ref().map(|strimzi| format!("{}/{}", strimzi.namespace, strimzi.connect));
        let all = [
            ("postgres", postgres),
            ("kafka", kafka),
            ("connect", connect),
            ("strimzi", strimzi),
            ("schema_registry", registry),
        ];
        let all = all.into_iter().filter_map(|(part, to)| Some(format!("{part}: {}", to?)));
        all.collect::<Vec<_>>().join("; ")
    }

    /// Whether connectors are brought back, by whomever.
    pub fn has_connectors(&self) -> bool {
        self.connect.is_some() || self.strimzi.is_some()
    }

    /// The name under which the archive keeps the state of the workers, if it is said.
    pub fn connect_cluster(&self) -> Option<&str> {
        let named = self.connect.as_ref().map(|connect| connect.name.as_str());
        named.or(self.strimzi.as_ref()?.cluster.as_deref()).filter(|name| !name.is_empty())
    }

    fn parse(text: &str, origin: &str, environment: &BTreeMap<String, String>) -> Result<Self> {
        Self::of_table(table(text, origin)?, origin, environment)
    }

    fn of_table(table: Table, origin: &str, environment: &BTreeMap<String, String>) -> Result<Self> {
        let problems = Problems::default();
        let mut root = Section::new("", table, &problems);
        let lookup = |name: &str| environment.get(name).cloned();
        let pipeline = Self {
            postgres: root.section("postgres").map(|section| postgres(section, &lookup)),
            kafka: root.section("kafka").map(|section| kafka(section, &lookup)),
            connect: root.section("connect").map(|section| server(section, "http://connect:8083", &lookup)),
            strimzi: root.section("strimzi").map(strimzi),
            schema_registry: root
                .section("schema_registry")
                .map(|section| server(section, "http://registry:8081", &lookup)),
            connectors: root.sections("connector").into_iter().map(|section| connector(section, &lookup)).collect(),
            scratch: root.section("scratch").map(|section| scratch(section, &lookup)),
        };
        if pipeline.postgres.is_none() && pipeline.kafka.is_none() && pipeline.schema_registry.is_none() {
            let problem =
                "is missing, and so are [kafka] and [schema_registry]: there is nothing to recover; write one of them";
            root.problem("postgres", problem);
        }
        if pipeline.connect.is_some() && pipeline.strimzi.is_some() {
            root.problem("strimzi", "makes the connectors, and so does [connect]; keep one");
        }
        if pipeline.has_connectors() && pipeline.postgres.is_none() {
            root.problem(
                if pipeline.connect.is_some() { "connect" } else { "strimzi" },
                "needs [postgres]: a connector goes on from a slot that is made there",
            );
        }
        root.finish();
        let found = problems.into_found();
        if found.is_empty() { Ok(pipeline) } else { Err(mistakes(origin, &found)) }
    }
}

fn postgres(mut section: Section<'_>, lookup: Lookup<'_>) -> TargetPostgres {
    let url = section.optional_secret("url", "postgres://postgres@restored:5432/postgres", lookup).map(Hidden::new);
    let into = section.parsed("into", absolute, None);
    let of_made = OfMade {
        bin_dir: section.parsed("bin_dir", absolute, None),
        port: section.optional_count("port"),
        user: section.text("user"),
        settings: section.section("settings").map(|section| section.free(lookup)),
    };
    let compare = section.truth("compare", true);
    let database = section.text("database").unwrap_or_else(|| "postgres".to_owned());
    let server = match (url, into) {
        (Some(url), into) => {
            if into.is_some() {
                section
                    .problem("url", "is of a server that is restored already, and into is where one is made; keep one");
            }
            of_made.is_not_given(&section);
            Recovered::There(url)
        }
        (None, Some(into)) => {
            let (OfMade { bin_dir, user, settings, .. }, port) = of_made.read(&section);
            let (bin_dir, settings) = (bin_dir.unwrap_or_default(), settings.unwrap_or_default());
            Recovered::Made { into, bin_dir, port, user: user.unwrap_or_else(|| "postgres".to_owned()), settings }
        }
        (None, None) => {
            let problem = "is missing; name a new data directory, or with url a server that is restored already";
            section.problem("into", problem);
            Recovered::There(Hidden::new(String::new()))
        }
    };
    section.finish();
    TargetPostgres { server, database, compare }
}

/// What is said of a server that is made.
struct OfMade {
    bin_dir: Option<PathBuf>,
    port: Option<u64>,
    user: Option<String>,
    settings: Option<BTreeMap<String, String>>,
}

impl OfMade {
    fn is_not_given(&self, section: &Section<'_>) {
        let given = [
            ("bin_dir", self.bin_dir.is_some()),
            ("port", self.port.is_some()),
            ("user", self.user.is_some()),
            ("settings", self.settings.is_some()),
        ];
        for (key, _) in given.into_iter().filter(|(_, given)| *given) {
            section.problem(key, "is of a server that is made (into), and url names one that is there; remove it");
        }
    }

    /// What is missing or wrong is told; gives the port beside the rest.
    fn read(self, section: &Section<'_>) -> (Self, u16) {
        if self.bin_dir.is_none() {
            section.problem("bin_dir", "is missing; name where postgres is: \"/usr/lib/postgresql/17/bin\"");
        }
        let port = self.port.map_or(Ok(5432), u16::try_from);
        if port.is_err() {
            section.problem("port", "is no port; use one from 1 to 65535");
        }
        (self, port.unwrap_or_default())
    }
}

fn scratch(mut section: Section<'_>, lookup: Lookup<'_>) -> Scratch {
    let into = section.parsed("into", absolute, None);
    if into.is_none() {
        section.problem("into", "is missing; name a new data directory, which is removed at the end");
    }
    let listen = section.text("listen").unwrap_or_else(|| "localhost".to_owned());
    let of_made = OfMade {
        bin_dir: section.parsed("bin_dir", absolute, None),
        port: section.optional_count("port"),
        user: section.text("user"),
        settings: section.section("settings").map(|section| section.free(lookup)),
    };
    let made = of_made.read(&section);
    section.finish();
    let (into, OfMade { bin_dir, user, settings, .. }) = (into.unwrap_or_default(), made.0);
    let (bin_dir, settings) = (bin_dir.unwrap_or_default(), settings.unwrap_or_default());
    Scratch { into, bin_dir, port: made.1, user: user.unwrap_or_else(|| "postgres".to_owned()), listen, settings }
}

fn kafka(mut section: Section<'_>, lookup: Lookup<'_>) -> TargetKafka {
    let bootstrap_servers = section.text("bootstrap_servers");
    let properties = section.section("properties").map(|section| section.free(lookup)).unwrap_or_default();
    if bootstrap_servers.is_none() && !properties.is_empty() {
        section.problem("properties", "are those of bootstrap_servers, which is missing; set it");
    }
    let rename = section.text("rename");
    let mut patterns = |key: &'static str| {
        let texts = section.list(key).unwrap_or_default();
        for problem in texts.iter().filter_map(|text| TopicPattern::parse(text).err()) {
            section.problem(key, problem);
        }
        texts
    };
    let (topics, groups) = (patterns("topics"), patterns("groups"));
    let settings = |text: &str| match text {
        "safe" => Ok(false),
        "archived" => Ok(true),
        _ => Err(format!("{text:?} is not how topics are set; use \"safe\" or \"archived\"")),
    };
    let archived_settings = section.parsed("settings", settings, false);
    let acls = section.truth("acls", false);
    section.finish();
    TargetKafka { bootstrap_servers, properties, rename, topics, groups, acls, archived_settings }
}

fn server(mut section: Section<'_>, example: &str, lookup: Lookup<'_>) -> Server {
    let text = section.required_text("url", example);
    let mut urls = Vec::new();
    for url in text.split(',').filter(|url| !url.trim().is_empty()) {
        match base_url(url.trim()) {
            Ok(url) => urls.push(url),
            Err(problem) => section.problem("url", problem),
        }
    }
    // The name under which the archive keeps its state.
    let name = section.text("cluster").unwrap_or_default();
    let access = access_of(&mut section, lookup);
    section.finish();
    Server { name, urls, access }
}

fn strimzi(mut section: Section<'_>) -> Strimzi {
    let connect = section.required_text("connect", "my-connect-cluster");
    let namespace = section.text("namespace").unwrap_or_else(|| "kafka".to_owned());
    let version = |text: &str| match text {
        "v1" | "v1beta2" => Ok(text.to_owned()),
        _ => Err(format!("{text:?} has no such resources; use \"v1\", or \"v1beta2\" before Strimzi 0.49")),
    };
    let api_version = section.parsed("api_version", version, "v1".to_owned());
    let cluster = section.text("cluster");
    section.finish();
    Strimzi { connect, namespace, api_version, cluster }
}

fn connector(mut section: Section<'_>, lookup: Lookup<'_>) -> Captured {
    let name = section.required_text("name", "shop");
    let marker = section.text("marker");
    if marker.as_ref().is_some_and(|marker| !marker.contains("{token}")) {
        section.problem("marker", "writes nothing that can be looked for; let it write '{token}' into a column");
    }
    let config = section.section("config").map(|section| section.free(lookup)).unwrap_or_default();
    section.finish();
    Captured { name, marker, config }
}

fn absolute(text: &str) -> Result<Option<PathBuf>, String> {
    match Path::new(text) {
        path if path.is_absolute() => Ok(Some(path.to_owned())),
        _ => Err(format!("{text:?} is not an absolute path; write it from the root, like /srv/restored")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Pipeline> {
        Pipeline::parse(text, "pipeline.toml", &BTreeMap::from([("PW".to_owned(), "s3cret".to_owned())]))
    }

    #[test]
    fn every_key_is_read() {
        let text = r#"
[postgres]
into = "/srv/restored"
bin_dir = "/usr/lib/postgresql/17/bin"
port = 5433
user = "admin"
database = "shop"
[postgres.settings]
max_connections = 100
[kafka]
bootstrap_servers = "new:9092"
rename = "(.*)=r.$1"
topics = ["^shop"]
groups = ["billing"]
settings = "archived"
acls = true
[kafka.properties]
"security.protocol" = "ssl"
[connect]
url = "http://a:8083,http://b:8083"
cluster = "main"
user = "me"
password = { env = "PW" }
[[connector]]
name = "shop"
marker = "INSERT INTO beat VALUES ('{token}')"
[connector.config]
"database.port" = 5433
[scratch]
into = "/srv/scratch"
bin_dir = "/usr/lib/postgresql/17/bin"
listen = "*"
[scratch.settings]
fsync = "off"
"#;
        let pipeline = parse(text).expect("it is valid");
        let postgres = pipeline.postgres.clone().expect("[postgres]");
        let Recovered::Made { into, port, user, settings, .. } = postgres.server else { panic!("it is made") };
        assert_eq!((into.to_str(), port, user.as_str()), (Some("/srv/restored"), 5433, "admin"));
        assert_eq!((settings["max_connections"].as_str(), postgres.database.as_str()), ("100", "shop"));
        let kafka = pipeline.kafka.clone().expect("[kafka]");
        assert_eq!(
            (kafka.properties["security.protocol"].as_str(), kafka.archived_settings, kafka.acls),
            ("ssl", true, true)
        );
        let connect = pipeline.connect.clone().expect("[connect]");
        assert_eq!(
            (connect.urls.len(), connect.name.as_str(), connect.access.user.as_deref()),
            (2, "main", Some("me"))
        );
        assert_eq!(pipeline.connectors[0].config["database.port"], "5433");
        let scratch = pipeline.scratch.clone().expect("[scratch]");
        assert_eq!((scratch.port, scratch.user.as_str(), scratch.listen.as_str()), (5432, "postgres", "*"));
        assert_eq!((scratch.into.to_str(), scratch.settings["fsync"].as_str()), (Some("/srv/scratch"), "off"));
        assert!(!format!("{pipeline:?}").contains("s3cret"));
    }

    #[test]
    fn mistakes_are_told_with_the_way_out() {
        let text = "[postgres]\ninto = \"here\"\nprot = 1\n[connect]\nurl = \"ftp://h\"\n[[connector]]\nmarker = \"SELECT 1\"\n[registry]\n";
        let error = parse(text).expect_err("it is wrong").to_string();
        for part in [
            "postgres.into: \"here\" is not an absolute path",
            "postgres.prot: is not a key; did you mean port?",
            "connect.url: \"ftp://h\" is not an address",
            "connector[0].name: is missing",
            "connector[0].marker: writes nothing that can be looked for",
            "registry: is not a key; the keys here are connect, connector, kafka, postgres, schema_registry, scratch, strimzi",
        ] {
            assert!(error.contains(part), "{part} is not in:\n{error}");
        }
        for (text, part) in [
            ("", "there is nothing to recover"),
            ("[kafka]\n[connect]\nurl = \"http://h\"\n", "connect: needs [postgres]"),
            ("[postgres]\nurl = \"host=h\"\ninto = \"/a\"\n", "keep one"),
            ("[postgres]\nurl = \"host=h\"\n[scratch]\nport = 70000\n", "scratch.port: is no port"),
            ("[postgres]\nurl = \"host=h\"\n[scratch]\n", "scratch.into: is missing"),
            ("[postgres]\nurl = \"host=h\"\n[strimzi]\napi_version = \"v2\"\n", "use \"v1\""),
            ("[postgres]\nurl = \"host=h\"\n[strimzi]\nconnect = \"c\"\n[connect]\nurl = \"http://h\"\n", "keep one"),
            ("[kafka]\n[strimzi]\nconnect = \"c\"\n", "strimzi: needs [postgres]"),
            ("[postgres]\nurl = \"host=h\"\nport = 1\n", "postgres.port: is of a server that is made"),
            ("[kafka]\n[kafka.properties]\na = 1\n", "which is missing"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(part), "{part} is not in:\n{error}");
        }
    }
}

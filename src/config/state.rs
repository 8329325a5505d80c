//! The section `[state]`: what is kept of the pipeline's own state, and which servers are asked for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use super::postgres::Hidden;
use super::raw::Section;
use super::values::Lookup;
use super::{State, TopicPattern};
use crate::stream::is_name;

/// A server that is asked over HTTP: the workers of one Connect cluster, or a schema registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The name under which the archive keeps what it tells.
    pub name: String,
    /// Where it answers; the next one is asked where one does not.
    pub urls: Vec<Url>,
    /// How it is asked.
    pub access: Access,
}

/// `[state.connect]` and `[state.schema_registry]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// `user`, of HTTP's basic authentication.
    pub user: Option<String>,
    /// `password`.
    pub password: Option<Hidden>,
    /// `ca_file`: the authorities that may have signed the server's certificate, in place of the system's.
    pub ca_file: Option<PathBuf>,
}

/// Reads the section. What has no name of its own has the one of the cluster.
pub(super) fn read(mut section: Section<'_>, cluster: &str, lookup: Lookup<'_>) -> State {
    let every = section.duration("every", Duration::from_secs(30), Duration::from_secs(1));
    let mut patterns = |key: &'static str, default: &[&str]| {
        let texts = section.list(key).unwrap_or_else(|| default.iter().map(|text| (*text).to_owned()).collect());
        for problem in texts.iter().filter_map(|text| TopicPattern::parse(text).err()) {
            section.problem(key, problem);
        }
        texts
    };
    let (groups, exclude_groups) = (patterns("groups", &["^.*"]), patterns("exclude_groups", &[]));
    if groups.is_empty() {
        section.problem("groups", "is empty; name at least one group, or leave the key out for all of them");
    }
    let connect = servers(&mut section, ("connect_url", "connect"), cluster, lookup);
    let schema_registry = servers(&mut section, ("schema_registry_url", "schema_registry"), cluster, lookup);
    section.finish();
    State { every, groups, exclude_groups, connect, schema_registry }
}

/// Reads the servers that one key names, and how they are asked. A text names one, a list several.
fn servers(
    section: &mut Section<'_>,
    (key, below): (&'static str, &'static str),
    cluster: &str,
    lookup: Lookup<'_>,
) -> Vec<Server> {
    let given = section.texts(key);
    let access = section.section(below).map(|section| access(section, lookup));
    let Some(given) = given else {
        if access.is_some() {
            section
                .problem(below, format!("says how {key} is asked, and there is none; set it, or remove this section"));
        }
        return Vec::new();
    };
    if given.is_empty() {
        section.problem(key, "is empty; name a server, or leave the key out");
    }
    let access = access.unwrap_or_default();
    let mut servers: Vec<Server> = Vec::new();
    for text in given {
        match server(&text, cluster, &access) {
            Ok(server) if servers.iter().any(|other| other.name == server.name) => {
                let way_out = "give each a name: [\"orders=http://a:8083\", \"etl=http://b:8083\"]";
                section.problem(key, format!("names two {}; {way_out}", server.name));
            }
            Ok(server) => servers.push(server),
            Err(problem) => section.problem(key, problem),
        }
    }
    servers
}

/// Reads `NAME=URL,URL`, of which the name may be missing.
fn server(text: &str, cluster: &str, access: &Access) -> Result<Server, String> {
    let (name, urls) = match text.split_once('=') {
        Some((name, urls)) if !name.contains(['/', ':']) => (name.trim(), urls),
        _ => (cluster, text),
    };
    if !is_name(name) {
        return Err(format!(
            "{name:?} is no name for a cluster; use letters, digits, '.', '_' and '-', 100 at most, not '.' first"
        ));
    }
    let urls = urls.split(',').map(|url| base_url(url.trim())).collect::<Result<_, _>>()?;
    Ok(Server { name: name.to_owned(), urls, access: access.clone() })
}

pub(super) fn base_url(text: &str) -> Result<Url, String> {
    // What it holds may be a secret, and is not repeated.
    let url = Url::parse(text).map_err(|error| format!("is not a URL ({error}); write http://host:8083"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials do not belong into the URL; use user and password of the section below".to_owned());
    }
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(format!("{text:?} is not an address; write http://host:8083 or https://…"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("is to end with its path; remove what begins with ? or #".to_owned());
    }
    Ok(url)
}

/// Reads how a server is asked, and leaves whatever else the section has.
pub(super) fn access_of(section: &mut Section<'_>, lookup: Lookup<'_>) -> Access {
    let user = section.optional_secret("user", "tidelog", lookup);
    let password = section.optional_secret("password", "{ file = \"/etc/tidelog/password\" }", lookup).map(Hidden::new);
    if user.is_none() && password.is_some() {
        section.problem("password", "is that of no user; set user, too");
    }
    // A colon ends the name (RFC 7617, section 2).
    if user.as_ref().is_some_and(|user| user.contains(':')) {
        section.problem("user", "holds a colon, which a name cannot; check it");
    }
    let absolute = |text: &str| match Path::new(text) {
        path if path.is_absolute() => Ok(Some(path.to_owned())),
        _ => Err(format!("{text:?} is not an absolute path; write it from the root, like /etc/tidelog/ca.pem")),
    };
    let ca_file = section.parsed("ca_file", absolute, None);
    Access { user, password, ca_file }
}

fn access(mut section: Section<'_>, lookup: Lookup<'_>) -> Access {
    let access = access_of(&mut section, lookup);
    section.finish();
    access
}

//! A connection's parameters by libpq's names: from `postgres.url`, a service file and the environment.
//!
//! ```text
//!   postgres://user@host:5432/db?sslmode=verify-full ┐
//!   host=… user='with spaces' service=name           ┴─► url ─► service file ─► PG* variables     the first one counts
//! ```
//!
//! libpq documents all of it: chapter "libpq", sections "Connection Strings", "The Connection Service File" and
//! "Environment Variables".
//!
//! No error repeats a text that was given: what was meant as a password may stand anywhere in a URL that was typed wrong.
//! A parameter is named by its place, with the known name that comes next to it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::error::{Error, Kind, Result};

/// How the program's environment, or a test's, gives the value of a variable.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Parameters by their names.
pub(super) type Parameters = BTreeMap<&'static str, String>;

/// Every parameter that is understood, with the variable that sets it.
const KNOWN: &[(&str, &str)] = &[
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("service", "PGSERVICE"),
    ("servicefile", "PGSERVICEFILE"),
    ("options", "PGOPTIONS"),
    ("application_name", "PGAPPNAME"),
    ("fallback_application_name", ""),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("sslmode", "PGSSLMODE"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("keepalives", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("keepalives_count", ""),
    ("tcp_user_timeout", ""),
];

/// Parameters of libpq that change nothing here, whatever they say.
const WITHOUT_EFFECT: &[&str] = &["client_encoding", "sslcompression", "sslsni", "gssencmode", "krbsrvname", "gsslib"];

/// Parameters of libpq that would have to change something, and what to do instead.
const REFUSED: &[(&str, &str)] = &[
    ("replication", "tidelog sets it itself; remove it"),
    ("sslcrl", "lists of revoked certificates are not read; remove it"),
    ("sslcrldir", "lists of revoked certificates are not read; remove it"),
    ("sslpassword", "keys with a password are not read; give tidelog a key without one, readable by its user alone"),
    ("require_auth", "md5 is refused unless postgres.allow_md5 is true; remove it"),
    ("requirepeer", "it is not supported; remove it"),
    ("ssl_min_protocol_version", "TLS 1.2 is always the least; remove it"),
    ("ssl_max_protocol_version", "it is not supported; remove it"),
];

/// All parameters of a connection.
///
/// # Errors
/// [`Kind::Config`] with the parameter or the variable and the way out. A password is never repeated.
pub(super) fn parameters(url: &str, environment: Lookup<'_>) -> Result<Parameters> {
    let mut found = Parameters::new();
    let given =
        if url.starts_with("postgres://") || url.starts_with("postgresql://") { uri(url)? } else { pairs(url)? };
    found.extend(given);
    let service = found.get("service").cloned().or_else(|| environment("PGSERVICE"));
    if let Some(service) = service {
        let file = found.get("servicefile").cloned();
        for (name, value) in from_service_file(&service, file, environment)? {
            if let Some(name) = known(&name, || format!("the service {service}: the parameter {name:?}"))? {
                found.entry(name).or_insert(value);
            }
        }
    }
    for (name, variable) in KNOWN.iter().filter(|(_, variable)| !variable.is_empty()) {
        if let Some(value) = environment(variable) {
            found.entry(name).or_insert(value);
        }
    }
    found.retain(|_, value| !value.is_empty());
    Ok(found)
}

fn wrong(message: String) -> Error {
    Error::new(Kind::Config, message)
}

/// The parameter with this name; none for one that has no effect. `place` says which one it is where it is not known.
fn known(name: &str, place: impl Fn() -> String) -> Result<Option<&'static str>> {
    if let Some((name, _)) = KNOWN.iter().find(|(known, _)| *known == name) {
        return Ok(Some(name));
    }
    if WITHOUT_EFFECT.contains(&name) {
        return Ok(None);
    }
    Err(match REFUSED.iter().find(|(refused, _)| *refused == name) {
        Some((refused, instead)) => wrong(format!("{} is {refused}, which cannot be set: {instead}", place())),
        None => {
            let names: Vec<&str> = KNOWN.iter().map(|(name, _)| *name).collect();
            let meant = names.iter().find(|known| is_near(name, known));
            let meant = meant.map(|known| format!(" (did you mean {known}?)")).unwrap_or_default();
            wrong(format!("{} is not one that is known{meant}; they are {}", place(), names.join(", ")))
        }
    })
}

/// Returns whether one letter that is missing, too many or another one makes `name` of `known`.
fn is_near(name: &str, known: &str) -> bool {
    let (name, known) = (name.as_bytes(), known.as_bytes());
    let same = name.iter().zip(known).take_while(|(a, b)| a == b).count();
    let (left, right) = (&name[same..], &known[same..]);
    left.get(1..) == Some(right) || right.get(1..) == Some(left) || left.get(1..) == right.get(1..)
}

/// The parameters of `postgres://[user[:password]@][host][:port][,…][/dbname][?name=value[&…]]`.
///
/// The `url` crate knows one host; libpq's URIs have many, and Unix sockets as `%2Fpath`.
fn uri(text: &str) -> Result<Vec<(&'static str, String)>> {
    let (_, rest) = text.split_once("://").unwrap_or_default();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, dbname) = rest.split_once('/').unwrap_or((rest, ""));
    // A / or ? in a password ends the authority early, and what is left of the password would be a host or a database.
    if dbname.contains('@') || query.contains('@') {
        return Err(wrong("postgres.url: an @ stands behind the first / or ?".to_owned())
            .hint("in a user name or password write / as %2F, ? as %3F and @ as %40; elsewhere write @ as %40"));
    }
    let (credentials, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    if user.contains('@') {
        return Err(wrong("postgres.url: an @ stands in the user's name".to_owned())
            .hint("write it as %40; between user and password stands a :"));
    }
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = split_host(host)?;
        names.push(decode(name)?);
        ports.push(decode(port)?);
    }
    let mut found = Vec::new();
    let mut add = |name: &'static str, value: String| {
        if !value.is_empty() {
            found.push((name, value));
        }
    };
    add("user", decode(user)?);
    add("password", decode(password)?);
    add("dbname", decode(dbname)?);
    if names.iter().any(|name| !name.is_empty()) {
        add("host", names.join(","));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        add("port", ports.join(","));
    }
    for (index, pair) in query.split('&').filter(|pair| !pair.is_empty()).enumerate() {
        let place = || format!("postgres.url: parameter number {} behind ?", index + 1);
        let (name, value) =
            pair.split_once('=').ok_or_else(|| wrong(format!("{} has no value; write name=value", place())))?;
        // JDBC's way to write sslmode=require; libpq takes it too.
        match (decode(name)?.as_str(), decode(value)?) {
            ("ssl", value) if value == "true" => add("sslmode", "require".to_owned()),
            (name, value) => {
                if let Some(name) = known(name, place)? {
                    add(name, value);
                }
            }
        }
    }
    Ok(found)
}

/// A host and its port; an IPv6 address stands in brackets.
fn split_host(host: &str) -> Result<(&str, &str)> {
    if let Some(rest) = host.strip_prefix('[') {
        let (address, rest) =
            rest.split_once(']').ok_or_else(|| wrong("postgres.url: an IPv6 address lacks its ]".to_owned()))?;
        return Ok((address, rest.strip_prefix(':').unwrap_or(rest)));
    }
    Ok(host.split_once(':').unwrap_or((host, "")))
}

/// Takes `%2F` and the like for what they mean.
fn decode(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = tail.first_chunk::<2>().and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if byte != 0 => bytes.push(byte),
            // Whatever stands there may be a part of a password.
            _ => {
                return Err(wrong(
                    "postgres.url: a % is not followed by two hexadecimal digits; write %25 for %".to_owned(),
                ));
            }
        }
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| wrong("postgres.url: what % stands for is not UTF-8".to_owned()))
}

/// The parameters of `name=value name='a value' …` (`conninfo_parse` in fe-connect.c).
fn pairs(text: &str) -> Result<Vec<(&'static str, String)>> {
    let mut found = Vec::new();
    let mut chars = text.chars().peekable();
    for number in 1.. {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            break;
        }
        let mut name = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=' && !c.is_whitespace()) {
            name.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next() != Some('=') {
            return Err(wrong(format!("postgres.url: word number {number} has no = behind it")).hint(
                "write postgres://user@host:5432/database, or name=value pairs, a value with spaces in single quotes",
            ));
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = chars.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match chars.next() {
                Some('\'') if quoted => break,
                Some('\\') => value.extend(chars.next()),
                Some(c) if !quoted && c.is_whitespace() => break,
                Some(c) => value.push(c),
                None if quoted => {
                    return Err(wrong(format!(
                        "postgres.url: the value of pair number {number} lacks its closing quote"
                    )));
                }
                None => break,
            }
        }
        if let Some(name) = known(&name, || format!("postgres.url: the name before = number {number}"))? {
            found.push((name, value));
        }
    }
    Ok(found)
}

/// The parameters of a service: a section of `~/.pg_service.conf`, or of the system's `pg_service.conf`.
fn from_service_file(service: &str, file: Option<String>, environment: Lookup<'_>) -> Result<Vec<(String, String)>> {
    let own = file.or_else(|| environment("PGSERVICEFILE")).map(PathBuf::from);
    let own = own.or_else(|| environment("HOME").map(|home| PathBuf::from(home).join(".pg_service.conf")));
    let system = environment("PGSYSCONFDIR").unwrap_or_else(|| "/etc/postgresql-common".to_owned());
    let files = own.into_iter().chain([PathBuf::from(system).join("pg_service.conf")]);
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let header = format!("[{service}]");
        let mut lines = text.lines().map(str::trim).skip_while(|line| *line != header);
        if lines.next().is_none() {
            continue;
        }
        return lines
            .take_while(|line| !line.starts_with('['))
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| match line.split_once('=') {
                Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
                None => Err(wrong(format!("{}: a line of the service {service} is not name=value", file.display()))),
            })
            .collect();
    }
    Err(wrong(format!("the service {service:?} is in no service file"))
        .hint("add a section of that name to ~/.pg_service.conf, or set PGSERVICEFILE to the file that has it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    fn read(url: &str) -> Parameters {
        parameters(url, &none).expect(url)
    }

    fn refusal(url: &str) -> String {
        let error = parameters(url, &none).expect_err(url);
        assert_eq!(error.kind(), Kind::Config, "{url}");
        error.to_string()
    }

    #[test]
    fn a_uri_names_hosts_user_and_parameters() {
        let all = read("postgres://me:a%20b@h1:1,h2,[::1]:3/db?sslmode=require&connect_timeout=5");
        let expected = [
            ("connect_timeout", "5"),
            ("dbname", "db"),
            ("host", "h1,h2,::1"),
            ("password", "a b"),
            ("port", "1,,3"),
            ("sslmode", "require"),
            ("user", "me"),
        ];
        assert_eq!(all, expected.map(|(name, value)| (name, value.to_owned())).into());
        assert_eq!(read("postgresql://%2Frun%2Fpostgresql/db")["host"], "/run/postgresql");
        assert_eq!(read("postgres:///db?host=/run&ssl=true")["sslmode"], "require");
        assert_eq!(read("postgres://u:p@ss@h")["password"], "p@ss");
        assert!(read("postgres://").is_empty());
    }

    #[test]
    fn pairs_may_be_quoted() {
        let all = read(r"host=/run user = 'it\'s me'  password='' dbname=a\ b");
        assert_eq!((all["user"].as_str(), all["dbname"].as_str()), ("it's me", "a b"));
        assert!(!all.contains_key("password"), "what is empty is not set");
    }

    #[test]
    fn a_mistake_is_told_with_the_way_out_and_without_the_password() {
        let text = refusal("postgres://h?sslmod=require");
        assert!(
            text.contains("number 1 behind ? is not one that is known (did you mean sslmode?); they are host, "),
            "{text}"
        );
        assert!(refusal("postgres://h?replication=true").contains("tidelog sets it itself"));
        assert!(refusal("postgres://h?sslmode").contains("write name=value"));
        assert!(refusal("localhost").contains("word number 1 has no = behind it"));
        assert!(refusal("host=a user='x").contains("closing quote"));
        let text = refusal("postgres://u:s3cret%zz@h");
        assert!(text.contains("%25") && !text.contains("s3cret"), "{text}");
        assert!(read("postgres://h?client_encoding=UTF8").len() == 1, "what has no effect is taken");
    }

    /// Mistakes that people make when a password holds a character with a meaning, or when they mix the two forms.
    #[test]
    fn no_text_of_a_url_that_is_wrong_is_repeated() {
        for url in [
            "postgres://tl:s3/cret@h/db",
            "postgres://tl:s3?cret@h/db",
            "postgres://tl:s3?cret=1@h/db",
            "postgres://tl:s3/cret@h:5432/db?sslmode=require",
            "postgres://tl@s3cret@h/db",
            "postgres://tl:s3%cret@h",
            "postgres://tl:s3%ffcret@h",
            "postgres://tl:s3cret@[::1/db",
            "postgres://h/db?password=a&s3cret",
            "postgres://h/db?s3cret=a",
            "postgres:/tl:s3cret@h/db",
            "postgres//tl:s3cret@h/db",
            "postgresql:tl:s3cret@h/db",
            "tl:s3cret@h",
            "tl:s3cret@h:5432/db?sslmode=require",
            "jdbc:postgresql://h/db?user=tl&password=s3cret",
            "host=h password=my s3cret",
            "host=h password=my s3cret=x",
            "host=h password='s3cret",
            "host=h password=my 's3cret'=x",
        ] {
            let error = parameters(url, &none).expect_err(url);
            let all = format!("{error} {:?} {error:?}", error.hint_text());
            assert!(!all.contains("s3") && !all.contains("cret"), "{url}: {all}");
        }
    }

    #[test]
    fn a_name_is_near_another_by_one_letter() {
        for near in ["sslmod", "sslmoode", "sslmods", "sslmode"] {
            assert!(is_near(near, "sslmode"), "{near}");
        }
        for far in ["ssl", "sslmo", "modessl", "", "s3cret"] {
            assert!(!is_near(far, "sslmode"), "{far}");
        }
    }

    #[test]
    fn the_url_counts_before_the_service_and_the_service_before_variables() {
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join("services");
        std::fs::write(&file, "[other]\nhost=no\n[mine]\n# comment\nhost = from-service\nport=7\n\n[last]\nhost=no\n")
            .expect("a file");
        let variables = |name: &str| match name {
            "PGSERVICE" => Some("mine".to_owned()),
            "PGSERVICEFILE" => Some(file.display().to_string()),
            "PGHOST" | "PGPORT" | "PGUSER" => Some("from-variable".to_owned()),
            _ => None,
        };
        let all = parameters("postgres://h", &variables).expect("all is there");
        assert_eq!((all["host"].as_str(), all["port"].as_str(), all["user"].as_str()), ("h", "7", "from-variable"));
        let error = parameters("service=missing", &variables).expect_err("there is none");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("pg_service.conf")), "{error}");
    }
}

//! `tidelog check`: is the configuration right, and does everything that it names answer?

mod answer;
mod kafka;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::output;
use crate::config::{Config, Kafka};
use crate::error::{Error, Kind, Result};
use crate::escape::one_line;
use crate::http;
use crate::pipeline;
use crate::source::kafka::{Cluster, validate};
use crate::source::postgres;
use crate::store::Store;
use answer::Answer;

/// What `tidelog check` is asked.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Talk to every server, and try a conditional create in the store.
    #[arg(long)]
    connect: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Checks, prints, and fails if a check did.
pub(super) async fn run(args: &Args, path: &Path) -> Result<()> {
    let config = Config::load(path)?;
    let valid = Answer::of("configuration", Ok(format!("{} is valid", path.display())));
    // The answers for root are not those for the service's user, who may well own both.
    let own = std::fs::metadata("/proc/self").map_or(0, |own| own.uid());
    let mut answers = vec![Answer { hint: remark(path, own), ..valid }];
    // What only the libraries know to be wrong: their options and properties. No server is asked, and no directory made:
    // one that root makes here would not be the service's.
    let valid = Store::validate(&config.archive);
    let properties = config.kafka.as_ref().map_or(Ok(()), validate);
    if let Err(error) = valid {
        answers.push(Answer::of("archive", Err(error)));
    } else if args.connect {
        let answer = match Store::open(&config.archive) {
            Ok(store) => check_archive(&store).await,
            Err(error) => Err(error),
        };
        answers.push(Answer::of("archive", answer));
    }
    if args.connect {
        let spool = pipeline::probe_spool(&config).map(|()| config.archive.spool_dir.display().to_string());
        answers.push(Answer::of("spool", spool));
    }
    let spool = &config.archive.spool_dir;
    if let Some(owner) = another_owner(spool, own) {
        let what =
            format!("{} belongs to another user (uid {owner}), who can exchange what is spooled", spool.display());
        answers.push(Answer::warning("spool", what, "give it to root or to the user that runs tidelog: chown"));
    }
    if let Some(http) = &config.http {
        let usable = http::validate(http).map(|()| http.listen.to_string());
        if args.connect || usable.is_err() {
            answers.push(Answer::of("http", usable));
        }
    }
    match (properties, &config.kafka) {
        (Err(error), _) => answers.push(Answer::of("kafka", Err(error))),
        (Ok(()), Some(kafka)) if args.connect => {
            let mut found = kafka::check(kafka).await;
            let reached = found.iter().all(|answer| answer.ok || answer.check != "kafka");
            let cluster = match Store::open(&config.archive) {
                Ok(store) => check_cluster(&store, kafka).await,
                Err(_) => Ok(()),
            };
            // Brokers that do not answer are told once.
            let cluster = cluster.err().filter(|error| reached || error.kind() == Kind::Config);
            answers.append(&mut found);
            answers.extend(cluster.map(|error| Answer::of("cluster", Err(error))));
        }
        (Ok(()), _) => {}
    }
    if let Some(config) = &config.postgres {
        match postgres::Server::new(config) {
            Err(error) => answers.push(Answer::of("postgres", Err(error))),
            Ok(_) if args.connect => answers.push(Answer::of("postgres", postgres::check(config).await)),
            Ok(_) => {}
        }
        if config.base_backup.url.is_some() {
            match postgres::Server::new(&config.for_backups()) {
                Err(error) => answers.push(Answer::of("base backups", Err(error.context("postgres.base_backup")))),
                Ok(server) if args.connect => answers.push(Answer::of("base backups", check_backups(&server).await)),
                Ok(_) => {}
            }
        }
    }
    if args.connect
        && let Some(config) = config.postgres.as_ref().filter(|config| config.base_backup.incrementals > 0)
        && let Ok(server) = postgres::Server::new(&config.for_backups())
    {
        answers.extend(check_incrementals(&server).await);
    }
    print(args, &answers)?;
    let failed = answers.iter().filter(|answer| !answer.ok).count();
    if failed == 0 {
        return Ok(());
    }
    let kind =
        if answers.iter().any(|answer| answer.kind == Some(Kind::Config)) { Kind::Config } else { Kind::Unavailable };
    Err(Error::new(kind, format!("{failed} of {} checks failed", answers.len())))
}

/// Who else owns a file or a directory; none if it is not there, or is root's, or that of the user `own`, or if that is root.
fn another_owner(path: &Path, own: u32) -> Option<u32> {
    let owner = std::fs::metadata(path).ok()?.uid();
    (own != 0 && owner != 0 && owner != own).then_some(owner)
}

/// What is unwise about the rights of the configuration file, for a service of the user `own`.
fn remark(path: &Path, own: u32) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    if mode & 0o002 != 0 {
        return Some(format!("every user of this machine may write it (mode {:04o}): chmod o-w", mode & 0o7777));
    }
    if let Some(owner) = another_owner(path, own) {
        return Some(format!("it belongs to another user (uid {owner}), who may write it: chown"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Where the sticky bit is set, nobody exchanges what is another's.
    let open = std::fs::metadata(folder).ok()?.permissions().mode() & 0o7777;
    if open & 0o1002 == 0o002 {
        return Some(format!(
            "every user of this machine may put another file in its place ({} has mode {open:04o}): chmod o-w",
            folder.display()
        ));
    }
    let table: toml::Table = toml::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
    (mode & 0o004 != 0 && holds_secret(&table)).then(|| {
        let mode = mode & 0o7777;
        format!("it holds a secret, and every user of this machine may read it (mode {mode:04o}): chmod o-r, or write the secret as {{ file = \"…\" }}")
    })
}

/// Whether a secret stands in a table as it is.
fn holds_secret(table: &toml::Table) -> bool {
    table.iter().any(|(key, value)| match value {
        // `{ file = … }` and `{ env = … }` say where it is.
        toml::Value::Table(below) => holds_secret(below),
        toml::Value::Array(items) => items.iter().filter_map(toml::Value::as_table).any(holds_secret),
        toml::Value::String(text) => {
            let key = key.to_lowercase();
            let is_url = key == "url" && (text.contains("password=") || holds_password(text));
            is_url
                || ["password", "secret", "jaas", "access_key", "account_key", "token"]
                    .iter()
                    .any(|part| key.contains(part) && !key.ends_with("_file") && !key.ends_with("_id"))
        }
        _ => false,
    })
}

/// Whether a URL holds a password before its host.
fn holds_password(url: &str) -> bool {
    let authority = url.split_once("://").and_then(|(_, rest)| rest.split(['/', '?']).next());
    authority.and_then(|authority| authority.rsplit_once('@')).is_some_and(|(user, _)| user.contains(':'))
}

fn print(args: &Args, answers: &[Answer]) -> Result<()> {
    if args.json {
        return output::print_json(&serde_json::json!({ "checks": answers }));
    }
    let mut text = String::new();
    for answer in answers {
        let word = match answer {
            Answer { ok: false, .. } => "FAILED",
            Answer { warning: true, .. } => "note",
            _ => "ok",
        };
        text += &format!("{word:<6} {:<13}  {}\n", answer.check, one_line(&answer.detail));
        if let Some(hint) = &answer.hint {
            text += &format!("       {:<13}  do: {}\n", "", one_line(hint));
        }
    }
    output::print(&text)
}

async fn check_archive(store: &Store) -> Result<String> {
    store.probe().await?;
    Ok(format!("{} can be written, and creates conditionally", store.url()))
}

async fn check_backups(server: &postgres::Server) -> Result<String> {
    let mut replication = server.replication().await?;
    let identity = replication.identify().await?;
    Ok(format!("{}: system {}, timeline {}", replication.shown(), identity.system_id, identity.timeline))
}

/// What keeps a server from the incremental base backups that are wanted of it. The service takes full ones then.
async fn check_incrementals(server: &postgres::Server) -> Option<Answer> {
    let asked = async { server.replication().await?.makes_incremental_backups().await };
    match asked.await {
        Err(error) if error.kind() == Kind::Unsupported => {
            let detail = format!("{error}: all are full ones, whatever postgres.base_backup.incrementals says");
            Some(Answer::warning("base backups", detail, error.hint_text().unwrap_or_default()))
        }
        // That it cannot be reached is told already.
        _ => None,
    }
}

/// Whether the brokers are those of the cluster that the archive holds.
async fn check_cluster(store: &Store, kafka: &Kafka) -> Result<()> {
    pipeline::kafka::admit(store, kafka, &Cluster::new(kafka)?).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remarked(text: &str, mode: u32) -> Option<String> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("written");
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).expect("its rights");
        remark(file.path(), 0)
    }

    #[test]
    fn what_another_user_can_exchange_is_remarked() {
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join("tidelog.toml");
        std::fs::write(&file, "").expect("written");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("its rights");
        let open =
            |mode| std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).expect("rights");
        open(0o777);
        assert!(remark(&file, 0).is_some_and(|said| said.contains("put another file in its place")));
        for private in [0o1777, 0o775, 0o700] {
            open(private);
            assert_eq!(remark(&file, 0), None, "{private:o}");
        }
        let owner = std::fs::metadata(&file).expect("it is there").uid();
        assert_eq!(remark(&file, owner), None);
        if std::os::unix::fs::chown(&file, Some(12_345), None).is_err() {
            // Only root can give files away.
            return;
        }
        assert!(remark(&file, 54_321).is_some_and(|said| said.contains("another user (uid 12345)")));
        assert_eq!((remark(&file, 12_345), remark(&file, 0)), (None, None));
        assert_eq!(another_owner(&file, 54_321), Some(12_345));
        assert_eq!(another_owner(&folder.path().join("none"), 54_321), None);
    }

    #[test]
    fn a_configuration_that_others_may_write_or_whose_secrets_they_may_read_is_remarked() {
        let secrets = [
            "[kafka.properties]\n\"sasl.password\" = \"x\"\n",
            "[archive.options]\naws_secret_access_key = \"x\"\n",
            "[postgres]\nurl = \"postgres://me:secret@host/db\"\n",
            "[postgres]\nurl = \"host=a password=x\"\n",
        ];
        for text in secrets {
            assert!(
                remarked(text, 0o644).is_some_and(|said| said.contains("mode 0644") && !said.contains("secret@")),
                "{text}"
            );
            assert_eq!(remarked(text, 0o640), None, "{text}");
        }
        for text in [
            "[kafka.properties]\n\"sasl.password\" = { file = \"/p\" }\n",
            "[postgres]\nurl = \"postgres://me@host/db\"\n",
            "[http]\nadmin_token_file = \"/t\"\n[archive.options]\naws_access_key_id = \"a\"\n",
        ] {
            assert_eq!(remarked(text, 0o644), None, "{text}");
        }
        assert!(remarked("", 0o646).is_some_and(|said| said.contains("may write it (mode 0646)")));
    }
}

//! What a restored data directory is told, in files of its own.
//!
//! ```text
//!   postgresql.auto.conf      as it was, and two last lines, which include        Postgres reads it last, wherever its postgresql.conf is
//!     tidelog.restored.conf   what keeps it apart from the server that it comes from: goes when a person removes it
//!     tidelog.recovery.conf   where its log comes from and where to stop: goes with the end of the recovery …
//!   tidelog.recovery.toml     … and so does what wal-fetch needs to know of the archive
//!   recovery.signal           asks for a recovery; Postgres removes it
//! ```
//!
//! Settings of a recovery that stay behind do harm later: a standby made from the server replays the archive instead of following, up
//! to the old target, and promotes itself (pgbackrest/pgbackrest#2417, EnterpriseDB/repmgr#793). So they lie in a file that
//! `recovery_end_command` removes.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::gate::GATE;
use super::inherited::{DATA_DIRECTORY, Inherited, is_within, setting};
use super::plan::Plan;
use super::stop::Stop;
use crate::config::Archive;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::escape::one_line;
use crate::store::Store;

/// What Postgres does once it has reached the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Action {
    /// Opens for writing, on a timeline of its own.
    Promote,
    /// Waits, open for reading, for `pg_wal_replay_resume()`.
    Pause,
    /// Stops, so that the target can be moved further.
    Shutdown,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::Pause => "pause",
            Self::Shutdown => "shutdown",
        }
    }
}

/// How the restored server gets its log.
#[derive(Debug, Clone)]
pub struct LogSource {
    /// This program, as a shell takes it.
    pub program: String,
    /// The configuration that it needs, in TOML: with whatever the environment of the restore gave.
    pub config: String,
    /// Whether tablespaces that the log makes are refused.
    pub guards_tablespaces: bool,
    /// Whether it gets the log up to a gate, and follows as that is moved: a scratch standby.
    pub is_gated: bool,
}

impl LogSource {
    /// This program over an archive, with what `wal-fetch` needs to know of it: Postgres runs it as another user, in another
    /// environment, perhaps after a restart.
    ///
    /// # Errors
    /// Where the system does not tell where this program is.
    pub fn of(archive: &Archive, guards_tablespaces: bool) -> Result<Self> {
        let program =
            std::env::current_exe().map_err(|source| Error::io(source, "cannot tell where this program is"))?;
        let options = Store::options_in_force(archive).into_iter();
        let options: toml::Table = options.map(|(name, value)| (name, toml::Value::String(value))).collect();
        let mut section = toml::Table::from_iter([("url".to_owned(), toml::Value::String(archive.url.to_string()))]);
        if !options.is_empty() {
            section.insert("options".to_owned(), toml::Value::Table(options));
        }
        let table = toml::Table::from_iter([("archive".to_owned(), toml::Value::Table(section))]);
        let text = toml::to_string(&table).or_err(Kind::Internal, || "cannot write the configuration".to_owned())?;
        Ok(Self {
            program: shell_word(&program.to_string_lossy()),
            config: format!(
                "# tidelog restore-postgres: what wal-fetch needs. It goes with the end of the recovery.\n{text}"
            ),
            guards_tablespaces,
            is_gated: false,
        })
    }

    /// The same for a standby that gets the log up to the gate in its data directory, and never ends its recovery by itself.
    #[must_use]
    pub fn gated(self) -> Self {
        Self { is_gated: true, ..self }
    }
}

/// A recovery that Postgres is to be told of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recovery<'a> {
    pub(super) plan: &'a Plan,
    pub(super) action: Action,
    pub(super) fetching: &'a LogSource,
    /// Whether it comes upon tablespaces in place.
    pub(super) has_in_place: bool,
}

const AUTO: &str = "postgresql.auto.conf";
const RESTORED: &str = "tidelog.restored.conf";
const RECOVERY: &str = "tidelog.recovery.conf";
/// The configuration of `wal-fetch`.
pub(super) const FETCHING: &str = "tidelog.recovery.toml";

/// The targets of a recovery. Two of them are an error to Postgres, also if one is empty, unless the empty ones come first
/// (`assign_recovery_target_lsn` and the like, xlogrecovery.c).
const TARGETS: [&str; 5] =
    ["recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid"];

/// What keeps a restored server apart, since and until which version, and why.
const APART: [(&str, &str, u32, u32, &str); 14] = [
    ("archive_mode", "off", 13, 18, "archive_command would write into the archive of the other server"),
    ("archive_cleanup_command", "", 13, 18, "it would remove files of that archive"),
    ("restore_command", "", 13, 18, "only a recovery has one"),
    ("recovery_end_command", "", 13, 18, "it is the other server's"),
    ("recovery_target_timeline", "latest", 13, 18, "a standby of this server has to follow it"),
    ("recovery_min_apply_delay", "0", 13, 18, "the recovery would wait"),
    ("primary_conninfo", "", 13, 18, "it is no standby of the other server"),
    ("primary_slot_name", "", 13, 18, "the slot is used by another one"),
    ("promote_trigger_file", "", 13, 15, "the file is the other server's"),
    ("synchronous_standby_names", "", 13, 18, "no standby follows yet: every commit would wait"),
    ("synchronized_standby_slots", "", 17, 18, "logical decoding would wait for slots that are not there"),
    ("sync_replication_slots", "off", 17, 18, "there is no primary to take slots from"),
    ("max_logical_replication_workers", "0", 13, 18, "subscriptions would take the changes meant for the other server"),
    ("cron.launch_active_jobs", "off", 13, 18, "jobs of pg_cron would run twice"),
];

/// Writes all of it.
pub(super) fn write(data: &Path, asked: &Recovery<'_>, raised: &[(&str, u32)]) -> Result<()> {
    let inherited = Inherited::read(data);
    forget_data_directory(data, &inherited)?;
    durable(&data.join(RESTORED), &apart(asked.plan.backup.system.server_version, &inherited, raised))?;
    durable(&data.join(RECOVERY), &recovery(asked))?;
    durable(&data.join(FETCHING), &asked.fetching.config)?;
    let file = data.join(AUTO);
    let old = match fs::read_to_string(&file) {
        Ok(text) => without_old_recovery(&text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Error::io(error, format!("cannot read {}", file.display()))),
    };
    let include = |name: &str| format!("include_if_exists '{name}'\n");
    durable(&data.join(AUTO), &format!("{old}{}{}", include(RESTORED), include(RECOVERY)))?;
    // A backup of a standby holds its signal, which would win: the server would wait for its old primary for ever.
    let standby = data.join("standby.signal");
    match fs::remove_file(&standby) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io(error, format!("cannot remove {}", standby.display())));
        }
        _ => {}
    }
    durable(&data.join(if asked.fetching.is_gated { "standby.signal" } else { "recovery.signal" }), "")
}

fn durable(file: &Path, text: &str) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(0o600).open(file);
    let written = opened.and_then(|mut opened| {
        opened.write_all(text.as_bytes())?;
        opened.sync_all()
    });
    written.map_err(|source| Error::io(source, format!("cannot write {}", file.display())))
}

/// A `data_directory` in the configuration wins over `-D`: Postgres would run on the other server's data. It is taken out, for a copy of
/// this directory would run on this one's.
fn forget_data_directory(data: &Path, inherited: &Inherited) -> Result<()> {
    let (within, outside): (Vec<&PathBuf>, Vec<&PathBuf>) =
        inherited.with_data_directory.iter().partition(|file| is_within(data, file));
    for file in within {
        rewrite(file, |text| {
            let sets_it = |line: &str| setting(line).is_some_and(|(name, _)| name == DATA_DIRECTORY);
            let shown = |line: &str| format!("{}{line}\n", if sets_it(line) { "# tidelog: " } else { "" });
            text.lines().map(shown).collect()
        })?;
    }
    if outside.is_empty() {
        return Ok(());
    }
    let pinned = format!(
        "\n# tidelog: an included file names another one. The last one counts: change it with the place of this directory.\n\
        {DATA_DIRECTORY} = {}\n",
        quoted(&data.to_string_lossy())
    );
    rewrite(&data.join("postgresql.conf"), |text| text.to_owned() + &pinned)
}

fn rewrite(file: &Path, change: impl FnOnce(&str) -> String) -> Result<()> {
    let text = fs::read(file).map_err(|source| Error::io(source, format!("cannot read {}", file.display())))?;
    durable(file, &change(&String::from_utf8_lossy(&text)))
}

/// Returns what an earlier restore has left there, and this one would leave for a later one.
fn without_old_recovery(text: &str) -> String {
    let is_old = |line: &str| {
        setting(line).is_some_and(|(name, value)| {
            name.starts_with("recovery_target")
                || matches!(name.as_str(), "recovery_end_command" | "restore_command")
                || (name == "include_if_exists" && [RESTORED, RECOVERY].contains(&value.as_str()))
        })
    };
    text.lines().filter(|line| !is_old(line)).map(|line| format!("{line}\n")).collect()
}

fn apart(version: u32, inherited: &Inherited, raised: &[(&str, u32)]) -> String {
    let mut text = "# tidelog restore-postgres: what keeps this server apart from the one that it comes from. Remove the file and restart\n\
                    # the server to put it in its place.\n"
        .to_owned();
    let known = APART.iter().filter(|(_, _, since, until, _)| (*since..=*until).contains(&version));
    for (name, value, _, _, why) in known {
        text += &format!("{name} = {}    # {why}\n", quoted(value));
    }
    for target in TARGETS {
        text += &format!("{target} = ''\n");
    }
    // Within this directory, whatever the configuration says, which may lie elsewhere.
    let goes_out = |name: &str| !inherited.has_main || inherited.outside(name).is_some();
    let within = [
        ("external_pid_file", "external.pid", goes_out("external_pid_file")),
        ("log_directory", "log", goes_out("log_directory")),
        ("stats_temp_directory", "pg_stat_tmp", version < 15 && goes_out("stats_temp_directory")),
    ];
    for (name, value, _) in within.into_iter().filter(|(_, _, is_needed)| *is_needed) {
        text += &format!("{name} = {}    # the other server writes there\n", quoted(value));
    }
    for (name, value) in raised {
        text += &format!("{name} = {value}    # as the server had it at the target\n");
    }
    text
}

/// Takes away what a recovery needs, with what was fetched in advance and not asked for. Under another name first: who fetches in
/// advance makes files in the folder by its name, and `rm` cannot remove one in which files come to be.
fn end() -> String {
    const OVER: &str = "pg_wal/.tidelog.over";
    format!("mv pg_wal/.tidelog {OVER} 2>/dev/null; rm -rf pg_wal/.tidelog {OVER} {RECOVERY} {FETCHING}")
}

fn recovery(asked: &Recovery<'_>) -> String {
    let Recovery { plan, action, fetching, has_in_place } = *asked;
    let mut text = format!(
        "# tidelog restore-postgres, base backup {}: goes with the end of the recovery.\n",
        one_line(&plan.backup.name)
    );
    let mut set = |name: &str, value: &str| text += &format!("{name} = {}\n", quoted(value));
    // An older copy of the archive has less than was planned with, and must not be taken for the whole.
    let mut archive = format!("--system {} --entry {}", plan.backup.system.system_id, plan.entry);
    if fetching.is_gated {
        // It ends at the gate, up to which the plan has looked it through.
        archive += &format!(" --gate {GATE}");
    } else if plan.stop == Stop::End && fetching.guards_tablespaces {
        archive += &format!(" --planned {}", plan.lsns.end);
    }
    let stop = if fetching.is_gated { Stop::End } else { plan.stop };
    if let Stop::After(record) = stop {
        archive += &format!(" --stop {record}");
    }
    // The working directory is the data directory.
    set("restore_command", &format!("{} --config {FETCHING} wal-fetch {archive} \"%f\" \"%p\"", fetching.program));
    set("recovery_end_command", &end());
    set("recovery_target_timeline", &plan.timeline.to_string());
    if fetching.is_gated {
        set("hot_standby", "on");
        return text;
    }
    if let Stop::After(record) = stop {
        set("recovery_target_lsn", &record.to_string());
    }
    // What the server's own configuration says of it would count otherwise.
    set("recovery_target_inclusive", "on");
    set("recovery_target_action", action.name());
    if action == Action::Pause {
        // Without it Postgres would stop instead of waiting.
        set("hot_standby", "on");
    }
    if has_in_place {
        // Or else it ends with "unexpected directory entry … found in pg_tblspc/".
        set("allow_in_place_tablespaces", "on");
    }
    text
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// A word as a shell takes it, for the command that Postgres runs. A `%` is Postgres' own.
fn shell_word(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''").replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::plan::tests::planned;
    use crate::stream::Lsn;

    fn of(stop: Stop) -> String {
        let fetching = LogSource {
            program: shell_word("/a b/it's"),
            config: String::new(),
            guards_tablespaces: true,
            is_gated: false,
        };
        let (plan, action, has_in_place) = (planned(stop), Action::Pause, false);
        recovery(&Recovery { plan: &plan, action, fetching: &fetching, has_in_place })
    }

    #[test]
    fn the_target_is_written_and_no_other_one_is_left() {
        let text = of(Stop::After(Lsn(0x1_0000_0010)));
        assert!(text.contains("recovery_target_lsn = '1/10'\n") && !text.contains("recovery_target_time ="), "{text}");
        assert!(
            text.contains("recovery_target_timeline = '3'\n") && text.contains("recovery_target_action = 'pause'\n")
        );
        let command = "restore_command = '''/a b/it''\\\\''''s'' --config tidelog.recovery.toml wal-fetch --system 1 --entry 7 --stop 1/10 \"%f\" \"%p\"'\n";
        assert!(text.contains(command), "{text}");
        assert!(!of(Stop::End).contains("recovery_target_lsn") && of(Stop::End).contains(" --planned 0/20 "));
        let old = "work_mem = '8MB'\nrecovery_target_lsn = '0/1'\n restore_command = 'x'\ninclude_if_exists 'tidelog.restored.conf'\n";
        assert_eq!(without_old_recovery(old), "work_mem = '8MB'\n");
        assert_eq!((shell_word("100%").as_str(), quoted("a'\\b").as_str()), ("'100%%'", "'a''\\\\b'"));
    }

    #[test]
    fn the_end_of_a_recovery_leaves_nothing_whoever_still_fetches() {
        let folder = tempfile::tempdir().expect("a directory");
        let (data, prefetch) = (folder.path(), folder.path().join("pg_wal/.tidelog"));
        for _ in 0..20 {
            fs::create_dir_all(&prefetch).expect("a directory");
            fs::write(data.join(RECOVERY), "").expect("written");
            for file in 0..200 {
                fs::write(prefetch.join(format!("{file}")), "").expect("written");
            }
            std::thread::scope(|scope| {
                // Like `Prefetch::bring`: files are made by name, as long as there is the folder.
                scope.spawn(|| (0..50_000).find(|n| fs::write(prefetch.join(format!("{n}.part")), "").is_err()));
                let ended = std::process::Command::new("sh").arg("-c").arg(end()).current_dir(data).status();
                assert!(ended.expect("a shell").success());
                let left: Vec<_> = fs::read_dir(data.join("pg_wal")).expect("a directory").flatten().collect();
                assert!(left.is_empty() && !data.join(RECOVERY).exists(), "{left:?}");
            });
        }
    }

    #[test]
    fn no_name_becomes_a_setting() {
        let hostile = "b\nport = 1\r\ninclude '/etc/shadow'\n";
        let mut plan = planned(Stop::End);
        (plan.backup.name, plan.backup.label) = (hostile.to_owned(), hostile.to_owned());
        let fetching =
            LogSource { program: shell_word("/t"), config: String::new(), guards_tablespaces: true, is_gated: false };
        let (action, has_in_place) = (Action::Promote, false);
        let text = recovery(&Recovery { plan: &plan, action, fetching: &fetching, has_in_place });
        let is_known = |word: &str| word.starts_with("recovery_") || ["#", "restore_command"].contains(&word);
        assert!(text.lines().all(|line| line.split_whitespace().next().is_some_and(is_known)), "{text}");
    }

    #[test]
    fn a_setting_is_written_only_where_the_version_knows_it() {
        let old = apart(13, &Inherited::default(), &[("max_connections", 300)]);
        assert!(old.contains("promote_trigger_file = ''") && old.contains("stats_temp_directory = "), "{old}");
        assert!(!old.contains("synchronized_standby_slots") && old.contains("max_connections = 300 "), "{old}");
        let new = apart(18, &Inherited::default(), &[]);
        assert!(!new.contains("promote_trigger_file") && new.contains("sync_replication_slots = 'off'"), "{new}");
        assert!(!new.contains("stats_temp_directory"), "{new}");
    }

    #[test]
    fn a_configuration_that_names_another_data_directory_is_overruled() {
        let folder = tempfile::tempdir().expect("a directory");
        let (data, elsewhere) = (folder.path().join("data"), folder.path().join("elsewhere.conf"));
        fs::create_dir(&data).expect("a directory");
        let main = data.join("postgresql.conf");
        fs::write(&main, "port = 1\ndata_directory = '/srv/production'\n").expect("written");
        forget_data_directory(&data, &Inherited::read(&data)).expect("taken out");
        let text = fs::read_to_string(&main).expect("a configuration");
        assert_eq!(text, "port = 1\n# tidelog: data_directory = '/srv/production'\n");
        fs::write(&main, "include '../elsewhere.conf'\n").expect("written");
        fs::write(&elsewhere, "data_directory = '/srv/production'\n").expect("written");
        forget_data_directory(&data, &Inherited::read(&data)).expect("overruled");
        assert_eq!(Inherited::read(&data).get("data_directory"), data.to_str());
        assert_eq!(fs::read_to_string(&elsewhere).expect("not ours"), "data_directory = '/srv/production'\n");
    }
}

//! What a restored data directory is told: where its WAL comes from, and where to stop.

use std::path::Path;

use super::plan::Plan;
use super::stop::Stop;
use crate::error::{Error, Result};
use crate::time;

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

/// Appends the settings to `postgresql.auto.conf`, where the last one of a name counts, and asks for a recovery.
pub(super) fn write(data: &Path, plan: &Plan, action: Action, command: &str) -> Result<()> {
    let file = data.join("postgresql.auto.conf");
    let failed = |source| Error::io(source, format!("cannot write {}", file.display()));
    let mut text = match std::fs::read_to_string(&file) {
        Ok(text) => without_old_targets(&text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(error)),
    };
    text.push_str(&settings(plan, action, command));
    std::fs::write(&file, text).and_then(|()| std::fs::File::open(&file)?.sync_all()).map_err(failed)?;
    // A backup of a standby holds its signal, which would win: the server would wait for its old primary for ever.
    let standby = data.join("standby.signal");
    match std::fs::remove_file(&standby) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io(error, format!("cannot remove {}", standby.display())));
        }
        _ => {}
    }
    let signal = data.join("recovery.signal");
    let made = std::fs::File::create(&signal).and_then(|made| made.sync_all());
    made.map_err(|source| Error::io(source, format!("cannot write {}", signal.display())))
}

/// What an earlier restore has left there. Two targets are an error to Postgres, also if one of them is empty
/// (`assign_recovery_target_lsn` and the like, xlogrecovery.c).
fn without_old_targets(text: &str) -> String {
    let is_old = |line: &&str| {
        ["recovery_target", "recovery_end_command", "restore_command"]
            .iter()
            .any(|name| line.trim_start().starts_with(name))
    };
    text.lines().filter(|line| !is_old(line)).map(|line| format!("{line}\n")).collect()
}

fn settings(plan: &Plan, action: Action, command: &str) -> String {
    let mut text = format!("\n# tidelog restore-postgres, base backup {}\n", plan.backup.name);
    let mut set = |name: &str, value: &str| {
        text += &format!("{name} = '{}'\n", value.replace('\'', "''"));
    };
    // An older copy of the archive has less than was planned with, and must not be taken for the whole.
    let archive = format!("--system {} --entry {}", plan.backup.system.system_id, plan.entry);
    set("restore_command", &format!("{command} wal-fetch {archive} \"%f\" \"%p\""));
    // What was fetched in advance and not asked for. The working directory is the data directory.
    set("recovery_end_command", "rm -rf pg_wal/.tidelog");
    set("recovery_target_timeline", &plan.timeline.to_string());
    match plan.stop {
        // With an offset in digits: at this point of its start Postgres knows no zone by a name, not even `Z`.
        Stop::Time { us, .. } => set("recovery_target_time", &time::rfc3339_micros(us).replace('Z', "+00")),
        Stop::After(record) | Stop::Before(record) => set("recovery_target_lsn", &record.to_string()),
        Stop::End => {}
    }
    // What the server's own configuration says of it would count otherwise.
    let inclusive = !matches!(plan.stop, Stop::Before(_) | Stop::Time { inclusive: false, .. });
    set("recovery_target_inclusive", if inclusive { "on" } else { "off" });
    set("recovery_target_action", action.name());
    text
}

/// A word as a shell takes it, for the command that Postgres runs. A `%` is Postgres' own.
pub fn shell_word(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''").replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::plan::Goal;
    use crate::restore::plan::tests::backup;
    use crate::stream::Lsn;

    fn of(stop: Stop) -> String {
        let plan = Plan { backup: backup("b", 1, 1, 2), goal: Goal::Latest, stop, timeline: 3, entry: 7 };
        settings(&plan, Action::Pause, &format!("{} -c {}", shell_word("/a b/tidelog"), shell_word("/it's")))
    }

    #[test]
    fn the_target_is_written_and_no_other_one_is_left() {
        let text = of(Stop::After(Lsn(0x1_0000_0010)));
        assert!(text.contains("recovery_target_lsn = '1/10'\n") && !text.contains("recovery_target_time ="), "{text}");
        assert!(
            text.contains("recovery_target_timeline = '3'\n") && text.contains("recovery_target_action = 'pause'\n")
        );
        let command =
            "restore_command = '''/a b/tidelog'' -c ''/it''\\''''s'' wal-fetch --system 1 --entry 7 \"%f\" \"%p\"'\n";
        assert!(text.contains(command), "{text}");
        let time = of(Stop::Time { us: 1_500_001, inclusive: false });
        assert!(time.contains("recovery_target_time = '1970-01-01T00:00:01.500001+00'\n"), "{time}");
        assert!(time.contains("recovery_target_inclusive = 'off'\n"), "{time}");
        assert!(
            of(Stop::Before(Lsn(16))).contains("recovery_target_lsn = '0/10'\nrecovery_target_inclusive = 'off'\n")
        );
        assert!(!of(Stop::End).contains("recovery_target_lsn"));
        let old = "work_mem = '8MB'\nrecovery_target_lsn = '0/1'\n restore_command = 'x'\n";
        assert_eq!(without_old_targets(old), "work_mem = '8MB'\n");
        assert_eq!(shell_word("100%"), "'100%%'");
    }
}

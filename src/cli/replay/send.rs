//! The sending as the user sees it: progress, a stop by signal, and how to go on.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::cut::ToCommit;
use super::shown::Outcome;
use super::{Args, interrupted};
use crate::cli::leave::leave;
use crate::cli::output::{self, print, print_json};
use crate::cli::progress::{Progress, Unit};
use crate::cli::shell::quoted;
use crate::error::{Error, Kind, Result};
use crate::http::ReplayListener;
use crate::replay::{Counters, Prepared, Tempo, carry_out};
use crate::store::Store;
use crate::stream::Lsn;
use crate::time;

pub(super) async fn send(
    args: &Args,
    store: &Store,
    (replay, cut): (Prepared, Option<&ToCommit>),
    tempo: Tempo,
) -> Result<()> {
    let typed: Vec<String> = std::env::args().collect();
    let times = replay.query.timestamps.clone();
    let go_on = resume_command(&typed, &replay.id, times.as_ref(), cut.map(ToCommit::end));
    let mut result = Outcome { replay_id: replay.id.clone(), segments: replay.plan.segments(), ..Outcome::default() };
    result.cut = cut.map(ToCommit::shown);
    let (id, bootstrap) = (replay.id.clone(), replay.target.bootstrap().to_owned());
    let counters = Arc::new(Counters::default());
    if let Some(word) = nothing_left(&replay) {
        let done = carry_out(store, replay, tempo, &counters, std::future::pending()).await?;
        result.done(&done, &bootstrap);
        if args.json {
            print_json(&result)?
        } else {
            print(&format!("{word}{}", result.end_text()))?
        }
        return done.verdict();
    }
    if args.json {
        output::tell(&format!("replay {id} begins"));
    }
    if let Some(listen) = args.metrics {
        tokio::spawn(ReplayListener::bind(listen, &id, Arc::clone(&counters)).await?.serve());
    }
    let (most, _) = replay.plan.records();
    let stopped = Arc::new(AtomicBool::new(false));
    let stop = asked_to_stop(Arc::clone(&stopped));
    let done = {
        let shown = Arc::clone(&counters);
        let _bar = Progress::follow("replay", Unit::Records, move || (shown.records(), most));
        carry_out(store, replay, tempo, &counters, stop).await
    };
    let done = done.map_err(|error| with_way_on(error, &go_on))?;
    result.done(&done, &bootstrap);
    if done.groups_wait {
        output::tell("no consumer group is set before all is sent: the same --id goes on");
    }
    if args.json {
        print_json(&result)?
    } else {
        print(&result.text())?
    }
    if stopped.load(Ordering::Relaxed) && !done.finished {
        return Err(Error::new(Kind::Interrupted, format!("the replay {id} was stopped before its end"))
            .hint(format!("go on with: {go_on}")));
    }
    done.verdict()
}

/// What to say where nothing is left to send.
fn nothing_left(replay: &Prepared) -> Option<String> {
    if !replay.plan.parts.is_empty() {
        return None;
    }
    let at = replay.finished().map_or(String::new(), |finished| format!(" since {}", time::utc(finished.at)));
    Some(if replay.whole.parts.is_empty() {
        "no record lies in this range\n".to_owned()
    } else {
        format!("the replay {} is finished{at}: there is nothing left to send\n", replay.id)
    })
}

/// Done once the user asks the program to stop, which `stopped` then says. A second time ends it at once.
async fn asked_to_stop(stopped: Arc<AtomicBool>) {
    interrupted().await;
    stopped.store(true, Ordering::Relaxed);
    output::tell("stopping: what was sent is being committed (once more to stop at once)");
    tokio::spawn(async {
        interrupted().await;
        leave(1);
    });
}

/// The same command goes on, unless it is the command that is wrong now.
fn with_way_on(error: Error, go_on: &str) -> Error {
    if error.kind() == Kind::Config {
        return error;
    }
    let hint = error.hint_text().map_or(String::new(), |hint| format!("{hint}; "));
    error.hint(format!("{hint}what was committed stays; go on with: {go_on}"))
}

/// The command line that goes on with this replay: the one that was typed, with its id and its times made fixed.
fn resume_command(typed: &[String], id: &str, times: Option<&Range<i64>>, commit: Option<Lsn>) -> String {
    const REPLACED: [&str; 4] = ["--id", "--from", "--to", "--to-commit"];
    let mut words: Vec<String> = Vec::with_capacity(typed.len() + 6);
    let mut rest = typed.iter();
    while let Some(word) = rest.next() {
        if REPLACED.contains(&word.as_str()) {
            rest.next();
        } else if !REPLACED.iter().any(|option| word.starts_with(&format!("{option}="))) && word != "--dry-run" {
            words.push(quoted(word));
        }
    }
    if let Some(range) = times {
        if range.start != i64::MIN {
            words.extend(["--from".to_owned(), time::rfc3339(range.start)]);
        }
        words.extend(["--to".to_owned(), time::rfc3339(range.end)]);
    }
    if let Some(commit) = commit {
        words.extend(["--to-commit".to_owned(), commit.to_string()]);
    }
    words.extend(["--id".to_owned(), id.to_owned()]);
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_on_repeats_the_command_with_fixed_times() {
        let typed = [
            "/usr/bin/tidelog",
            "-c",
            "my config.toml",
            "replay",
            "--from",
            "-1h",
            "--rename",
            "(.*)=r.$1",
            "--id=old",
            "--dry-run",
        ];
        let typed = typed.map(str::to_owned);
        assert_eq!(
            resume_command(&typed, "r-1", Some(&(0..1_000)), None),
            "/usr/bin/tidelog -c 'my config.toml' replay --rename '(.*)=r.$1' --from 1970-01-01T00:00:00.000Z --to 1970-01-01T00:00:01.000Z --id r-1"
        );
        let open = resume_command(&["t".to_owned(), "it's".to_owned()], "r-1", Some(&(i64::MIN..0)), None);
        assert_eq!(open, r"t 'it'\''s' --to 1970-01-01T00:00:00.000Z --id r-1");
        assert_eq!(resume_command(&["t".to_owned()], "r-1", None, None), "t --id r-1");
        let typed = ["t", "--to-commit", "-5m", "--json"].map(str::to_owned);
        let fixed = resume_command(&typed, "r-1", None, Some(Lsn(0x1_0000_0002)));
        assert_eq!(fixed, "t --json --to-commit 1/2 --id r-1");
    }
}

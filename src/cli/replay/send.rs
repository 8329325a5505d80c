//! The sending as the user sees it: progress, a stop by signal, and how to go on.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::groups::GroupsShown;
use super::prepare::Prepared;
use super::settings::{TopicSettings, as_asked};
use super::shown::Outcome;
use super::{Args, interrupted};
use crate::cli::leave::leave;
use crate::cli::output::{self, print, print_json};
use crate::cli::progress::{Progress, Unit};
use crate::cli::shell::quoted;
use crate::error::{Error, Kind, Result};
use crate::http::ReplayListener;
use crate::replay::kafka::{self, Afterwards, Ready, Sent};
use crate::replay::{self, Counters, Plan, Stop, Tally, Tempo};
use crate::store::Store;
use crate::time;

pub(super) async fn send(args: &Args, store: &Store, replay: Prepared, tempo: Tempo) -> Result<()> {
    let go_on = resume_command(&std::env::args().collect::<Vec<_>>(), &replay.id, replay.query.timestamps.as_ref());
    let mut result = Outcome { replay_id: replay.id.clone(), segments: replay.plan.segments(), ..Outcome::default() };
    if let Some(word) = nothing_left(&replay) {
        return settle(args, store, replay, (result, word)).await;
    }
    let Prepared { id, journal, anew, whole, plan, findings, target, groups, .. } = replay;
    if args.json {
        output::tell(&format!("replay {id} begins"));
    }
    let counters = Arc::new(Counters::default());
    if let Some(listen) = args.metrics {
        tokio::spawn(ReplayListener::bind(listen, &id, Arc::clone(&counters)).await?.serve());
    }
    // All of it, for the same id to go on with it: what was sent already is asked for again then.
    let holding = replay::Holding::begin(store, &whole, &id).await;
    let (most, _) = plan.records();
    let stopped = Arc::new(AtomicBool::new(false));
    let stop = asked_to_stop(Arc::clone(&stopped));
    let started = Instant::now();
    let warnings = findings.told();
    let sent = {
        let shown = Arc::clone(&counters);
        let _bar = Progress::follow("replay", Unit::Records, move || (shown.records(), most));
        let (recorded, settings, target) = (!args.unrecorded, args.settings, Arc::clone(&target));
        let ready = Ready { store, target, journal, anew, recorded, plan: whole, findings, settings };
        kafka::send(ready, tempo, &counters, stop).await
    };
    let Sent { plan, tally, settings } = sent.map_err(|error| with_way_on(error, &go_on))?;
    result.seconds = started.elapsed().as_secs_f64();
    result.sent(&plan, &tally, warnings);
    result.settings = shown(&settings, target.bootstrap());
    if groups.is_some() && !tally.complete {
        output::tell("no consumer group is set before all is sent: the same --id goes on");
    }
    if let (true, Some(groups)) = (tally.complete, groups) {
        result.groups = Some(groups.put(store, &target).await.map_err(|error| with_way_on(error, &go_on))?);
    }
    // Groups are translated by what the archive holds.
    if tally.complete {
        holding.end().await;
    }
    if args.json {
        print_json(&result)?
    } else {
        print(&result.text(&tally))?
    }
    if stopped.load(Ordering::Relaxed) && !tally.complete {
        return Err(Error::new(Kind::Interrupted, format!("the replay {id} was stopped before its end"))
            .hint(format!("go on with: {go_on}")));
    }
    all_decoded(&plan, &tally)?;
    done_as_asked(args, &result)
}

/// Does what is left to do for topics and groups of a replay that has nothing left to send.
async fn settle(args: &Args, store: &Store, replay: Prepared, (mut result, word): (Outcome, String)) -> Result<()> {
    result.warnings = replay.findings.told();
    result.finished = !replay.whole.parts.is_empty();
    if result.finished && !args.unrecorded && !replay.anew {
        let settled = kafka::finish(store, &replay.target, (&replay.whole, &replay.journal), args.settings).await?;
        result.settings = shown(&settled, replay.target.bootstrap());
    }
    if let (true, Some(groups)) = (result.finished, replay.groups) {
        result.groups = Some(groups.put(store, &replay.target).await?);
    }
    if args.json {
        print_json(&result)?
    } else {
        print(&format!("{word}{}", result.end_text()))?
    }
    done_as_asked(args, &result)
}

/// Whether topics and groups are as they were asked to be.
fn done_as_asked(args: &Args, result: &Outcome) -> Result<()> {
    as_asked(args.settings, &result.settings)?;
    result.groups.as_ref().map_or(Ok(()), GroupsShown::verdict)
}

fn shown(settled: &[Afterwards], bootstrap: &str) -> Vec<TopicSettings> {
    settled.iter().map(|settled| TopicSettings::new(settled, bootstrap)).collect()
}

/// A replay that ended before something that it could not read.
pub(super) fn all_decoded(plan: &Plan, tally: &Tally) -> Result<()> {
    if tally.stops.is_empty() {
        return Ok(());
    }
    let at = |stop: &Stop| {
        format!("{} partition {} from offset {} on", plan.parts[stop.part].stream.topic, stop.partition, stop.from)
    };
    let (shown, more) = (tally.stops.iter().take(MOST_NAMED).map(at), tally.stops.len().saturating_sub(MOST_NAMED));
    let mut missing: Vec<String> = shown.collect();
    missing.extend((more > 0).then(|| format!("{more} more partitions")));
    let message = format!("all is replayed but {}: segments cannot be read (see the warnings)", missing.join(", "));
    Err(Error::new(Kind::Incomplete, message).hint(replay::WAY_OUT))
}

/// So many partitions that stopped are named in the last line.
const MOST_NAMED: usize = 5;

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
fn resume_command(typed: &[String], id: &str, times: Option<&Range<i64>>) -> String {
    const REPLACED: [&str; 3] = ["--id", "--from", "--to"];
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
            resume_command(&typed, "r-1", Some(&(0..1_000))),
            "/usr/bin/tidelog -c 'my config.toml' replay --rename '(.*)=r.$1' --from 1970-01-01T00:00:00.000Z --to 1970-01-01T00:00:01.000Z --id r-1"
        );
        let open = resume_command(&["t".to_owned(), "it's".to_owned()], "r-1", Some(&(i64::MIN..0)));
        assert_eq!(open, r"t 'it'\''s' --to 1970-01-01T00:00:00.000Z --id r-1");
        assert_eq!(resume_command(&["t".to_owned()], "r-1", None), "t --id r-1");
    }
}

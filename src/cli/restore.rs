//! `tidelog restore-postgres`.

mod list;
mod space;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::human;
use super::output::{self, print, print_json};
use super::progress::{Progress, Unit};
use crate::config::Archive;
use crate::error::{Error, Kind, Result};
use crate::escape::one_line;
use crate::manifest;
use crate::manifest::found::Unreadable;
use crate::restore::holding::Holding;
use crate::restore::plan::{Asked, Goal, Plan, plan};
use crate::restore::postgres::{Action, Destination, LogSource, Places, Restored, restore};
use crate::restore::{Combiner, Foreseen, Ground, Log, PATIENCE, foresee, is_begun, patiently};
use crate::store::Store;
use crate::stream::Lsn;
use crate::time;

/// What `tidelog restore-postgres` is asked.
#[derive(Debug, clap::Args)]
pub(super) struct RestoreArgs {
    /// List the base backups: their size, their age, and what they reach.
    #[arg(long, conflicts_with_all = ["into", "target", "ends", "timeline", "backup"])]
    list: bool,
    /// The data directory to make: missing, empty, or of a restore that was interrupted, which goes on.
    #[arg(long, value_name = "DIR", required_unless_present = "list")]
    into: Option<PathBuf>,
    /// Every transaction that committed up to this time, to the microsecond: RFC 3339, now, -90m, -2h, -7d.
    #[arg(long, value_name = "TIME", group = "target", allow_hyphen_values = true)]
    to_time: Option<String>,
    /// Everything up to this position of the log.
    #[arg(long, value_name = "LSN", group = "target")]
    to_lsn: Option<Lsn>,
    /// Everything up to a restore point, the last one of this name (`pg_create_restore_point`).
    #[arg(long, value_name = "NAME", group = "target")]
    to_name: Option<String>,
    /// Everything up to the commit of this transaction.
    #[arg(long, value_name = "XID", group = "target")]
    to_xid: Option<u64>,
    /// Everything that is archived by the time Postgres has replayed it [the default].
    #[arg(long, value_name = "latest", group = "ends", conflicts_with = "target", value_parser = ["latest"])]
    to: Option<String>,
    /// Leave out what lies just at the target: the transaction, those of that very time, the record that ends there.
    #[arg(long, requires = "target")]
    exclusive: bool,
    /// The timeline to follow [default: the newest].
    #[arg(long, value_name = "N")]
    timeline: Option<u32>,
    /// The base backup to start from [default: the newest before the target].
    #[arg(long, value_name = "NAME")]
    backup: Option<String>,
    /// The system to restore, where the archive holds several.
    #[arg(long, value_name = "ID")]
    system: Option<u64>,
    /// Puts a tablespace elsewhere; may be repeated.
    #[arg(long, value_name = "OLD=NEW")]
    tablespace: Vec<String>,
    /// Puts all other tablespaces where they were on the server: for a machine on which that server is not.
    #[arg(long)]
    tablespaces_at_old_places: bool,
    /// Restores over a data directory in which no server runs: files that are whole are kept, what the base backup does not have
    /// is removed.
    #[arg(long)]
    delta: bool,
    /// Where PostgreSQL's own programs of the backup's version are: an incremental base backup needs its pg_combinebackup
    /// [default: where packages have them, and PATH].
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// How many streams of the base backup are fetched and unpacked at a time.
    #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=8))]
    jobs: u8,
    /// What Postgres does when it has reached the target.
    #[arg(long, value_enum, default_value_t = Action::Promote)]
    action: Action,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl RestoreArgs {
    /// The data directory, as an absolute path.
    fn data(&self) -> Result<PathBuf> {
        let into = self.into.as_deref().ok_or_else(|| Error::new(Kind::Config, "--into names no directory"))?;
        std::path::absolute(into).map_err(|source| Error::io(source, "cannot tell the working directory"))
    }
}

/// Restores, and says how to start.
pub(super) async fn run(args: &RestoreArgs, archive: &Archive) -> Result<()> {
    if args.list {
        return list::run((args.system, args.json), archive).await;
    }
    let begun = Instant::now();
    let store = Store::open(archive)?;
    let log = patiently(PATIENCE, || Log::open(&store, args.system)).await?.patient();
    let found = patiently(PATIENCE, || log.backups()).await?;
    let named = |one: &&Unreadable| args.backup.as_ref() == Some(&one.name);
    if let Some(wanted) = found.unreadable.iter().find(named) {
        return Err(Error::new(wanted.kind, wanted.why.clone()).hint(
            "restore the object from a copy of the archive, or leave --backup out: the others are not affected",
        ));
    }
    found.tell_unreadable();
    let backups = found.sound;
    let asked =
        Asked { goal: goal(args)?, exclusive: args.exclusive, timeline: args.timeline, backup: args.backup.clone() };
    let plan = patiently(PATIENCE, || plan(&store, &log, &backups, &asked)).await?;
    // Not after an hour's reading.
    let combiner = combiner(args, &plan)?;
    Ground::look(&args.data()?, args.delta, log.system().system_id)?;
    if !plan.backup.damaged.is_empty() {
        tracing::warn!(backup = plan.backup.name, found = ?plan.backup.damaged, "the server found bad pages in this base backup when it was \
            taken, and no sound one leads there (or it was asked for)");
    }
    let system_id = log.system().system_id;
    for disk in space::disks(&plan, &args.data()?, &places(args)?)? {
        output::tell(&disk.check()?);
    }
    let holding = Holding::begin(&store, &log, &plan, &manifest::writer_id()?, &host()).await?;
    let restoring = async {
        let (done, shown) = bar("reading the log", plan.log_bytes());
        let foreseen = foresee(&log, &plan, &done).await?;
        drop(shown);
        let into = Destination { combiner, ..destination(args, archive, foreseen)? };
        let (done, _shown) = bar("restoring", plan.bytes());
        let restored = restore(&store, &plan, &into, &done).await?;
        Ok((into, restored))
    };
    let restored = restoring.await;
    match (holding, &restored) {
        (Some(holding), Ok((into, _))) => holding.hand_over(&store, system_id, &into.data).await,
        // The same command goes on with what is there, and finds what it needs.
        (Some(holding), Err(_)) if !is_begun(&args.data()?) => holding.give_back(&store, system_id).await,
        _ => {}
    }
    let (into, restored) = restored?;
    tell(args, &plan, &into, (&restored, begun.elapsed().as_secs_f64()))
}

/// Returns what makes one of an incremental backup and those that it builds on; none for a full one.
fn combiner(args: &RestoreArgs, plan: &Plan) -> Result<Option<Combiner>> {
    let Some(full) = plan.parents.first() else { return Ok(None) };
    if args.delta {
        let message =
            format!("the base backup {} is incremental, and --delta compares with a full one", plan.backup.name);
        return Err(Error::new(Kind::Config, message).hint(format!(
            "restore into an empty directory, or from the full one on which it builds, if that leads there: --backup {}",
            full.name
        )));
    }
    Combiner::find(args.bin_dir.as_deref(), plan.backup.system.server_version).map(Some)
}

/// A bar, and the count that it follows.
fn bar(doing: &'static str, total: u64) -> (Arc<AtomicU64>, Progress) {
    let done = Arc::new(AtomicU64::new(0));
    let followed = Arc::clone(&done);
    (done, Progress::follow(doing, Unit::Bytes, move || (followed.load(Ordering::Relaxed), total)))
}

fn places(args: &RestoreArgs) -> Result<Places> {
    Ok(Places {
        moved: args.tablespace.iter().map(|text| mapping(text)).collect::<Result<_>>()?,
        old_too: args.tablespaces_at_old_places,
    })
}

fn destination(args: &RestoreArgs, archive: &Archive, foreseen: Foreseen) -> Result<Destination> {
    Ok(Destination {
        data: args.data()?,
        is_delta: args.delta,
        jobs: usize::from(args.jobs),
        tablespaces: places(args)?,
        combiner: None,
        foreseen,
        action: args.action,
        fetching: LogSource::of(archive, !args.tablespaces_at_old_places)?,
    })
}

/// Prints what was done, and how to go on.
fn tell(args: &RestoreArgs, plan: &Plan, into: &Destination, (restored, seconds): (&Restored, f64)) -> Result<()> {
    let backup = &plan.backup;
    if args.json {
        return print_json(&serde_json::json!({
            "into": into.data, "backup": backup.name, "builds_on": plan.parents.iter().map(|one| &one.name).collect::<Vec<_>>(),
            "timeline": plan.timeline, "start": backup.start, "end": backup.end,
            "target": shown(&plan.goal), "exclusive": args.exclusive, "bytes": plan.bytes(), "seconds": seconds,
            "tablespaces": restored.tablespaces, "notes": restored.notes,
            "damaged": backup.damaged,
            "kept_bytes": restored.kept, "removed_files": restored.removed, "fetched_bytes": restored.fetched,
        }));
    }
    let places =
        restored.tablespaces.iter().map(|place| format!("tablespace at {}\n", one_line(&place.to_string_lossy())));
    let before = match (restored.kept, restored.removed) {
        (0, 0) => String::new(),
        (kept, removed) => format!(
            "kept {} of what was there, removed {}, fetched {}\n",
            human::bytes(kept),
            human::many(removed, "file"),
            human::bytes(restored.fetched)
        ),
    };
    let notes = restored.notes.iter().map(|note| format!("note: {}\n", one_line(note)));
    print(&format!(
        "restored {} of base backup {} into {} in {}\n{before}{}{}\
             start PostgreSQL {} there as its own user: it replays WAL from the archive {} {}\n\
             it archives nothing, waits for no standby, subscribes to nothing and runs no cron jobs until tidelog.restored.conf is removed there\n",
        human::bytes(plan.bytes()),
        builds(plan),
        into.data.display(),
        human::span(Duration::from_secs_f64(seconds)),
        places.collect::<String>(),
        notes.collect::<String>(),
        backup.system.server_version,
        if args.exclusive { "and stops before" } else { "up to" },
        match &plan.goal {
            Goal::Latest | Goal::Present => "its end".to_owned(),
            Goal::Name(name) => format!("the restore point {name:?}"),
            Goal::Xid(xid) => format!("transaction {xid}"),
            goal => shown(goal),
        },
    ))
}

/// The name of the base backup, and on which others it builds.
fn builds(plan: &Plan) -> String {
    let parents: Vec<&str> = plan.parents.iter().map(|one| one.name.as_str()).collect();
    if parents.is_empty() {
        plan.backup.name.clone()
    } else {
        format!("{} on {}", plan.backup.name, parents.join(", "))
    }
}

/// Returns where to.
fn goal(args: &RestoreArgs) -> Result<Goal> {
    if let Some(text) = &args.to_time {
        return Ok(Goal::Time(time::parse_micros(text, time::now(), args.exclusive)?));
    }
    if let Some(xid) = args.to_xid {
        // `pg_current_xact_id()` counts how often the 32 bits that the log has came round.
        return Ok(Goal::Xid((xid & u64::from(u32::MAX)) as u32));
    }
    Ok(match (args.to_lsn, &args.to_name) {
        (Some(lsn), _) => Goal::Lsn(lsn),
        (None, Some(name)) => Goal::Name(name.clone()),
        (None, None) if args.action == Action::Promote => Goal::Latest,
        // Without a target Postgres would promote all the same.
        (None, None) => Goal::Present,
    })
}

/// The target as it stands in JSON.
fn shown(goal: &Goal) -> String {
    match goal {
        Goal::Latest | Goal::Present => "latest".to_owned(),
        Goal::Time(us) => time::rfc3339_micros(*us),
        Goal::Lsn(lsn) => lsn.to_string(),
        Goal::Name(name) => name.clone(),
        Goal::Xid(xid) => xid.to_string(),
    }
}

fn mapping(text: &str) -> Result<(PathBuf, PathBuf)> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() && !new.is_empty() => Ok((old.into(), new.into())),
        _ => Err(Error::new(Kind::Config, format!("--tablespace {text:?} is not OLD=NEW"))
            .hint("write --tablespace /old/place=/new/place")),
    }
}

/// The name of this machine, for people.
fn host() -> String {
    std::fs::read_to_string("/etc/hostname")
        .map_or_else(|_| "an unnamed host".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_mapping_has_two_sides() {
        assert_eq!(mapping("/a=/b=c").expect("a mapping"), ("/a".into(), "/b=c".into()));
        for wrong in ["/a", "=/b", "/a=", ""] {
            assert_eq!(mapping(wrong).expect_err("none").exit_code(), 2, "{wrong}");
        }
        let all: Result<BTreeMap<_, _>> = ["/a=/b", "/c=/d"].iter().map(|text| mapping(text)).collect();
        assert_eq!(all.expect("two").len(), 2);
    }
}

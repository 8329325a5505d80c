//! The drill `slot`: a slot that was lost at an archived position, brought back on a scratch standby, and what it gives compared.
//!
//! ```text
//!   state/connectors at a random moment ─► the offset of each ─► base backup, conflicts foreseen ─► standby ─► slot made ─► read
//!        transactions: of the slot = of the archived log, and every one that the archived topics have
//! ```
//!
//! It is `recover slot` without a connector and without a primary: what that foresees, and what it makes, is made by its own functions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::{ControlFlow, Range};
use std::time::{Duration, Instant};

use super::asked::AskedSlot;
use super::moment;
use super::report::{OfSlot, Part, Report, Slots};
use super::restored::{Machine, windows};
use super::scratch::Scratch;
use crate::config::{self, Config, Pipeline};
use crate::error::{Error, Kind, Result};
use crate::manifest;
use crate::recover::archived;
use crate::recover::connector::Connector;
use crate::recover::cut::{Schemas, transactions};
use crate::recover::database::Restore;
use crate::recover::journal::Commit;
use crate::recover::prepare::commit;
use crate::recover::repair::lost::{Anchor, Conflicts, Missed, anchor, conflicts, missed};
use crate::recover::repair::position::Position;
use crate::recover::repair::primary::statistics;
use crate::recover::repair::standby::Standby;
use crate::recover::repair::way::DECODES;
use crate::recover::slots::literal;
use crate::replay::{Query, Selection, readable, sources};
use crate::restore::commits::{Commits, Moment, Wanted};
use crate::restore::postgres::LogSource;
use crate::restore::{Log, PATIENCE, limits_of, patiently};
use crate::segment::wal::{Relations, What};
use crate::source::postgres::Sql;
use crate::store::{Store, layout};
use crate::stream::Lsn;
use crate::time;

const NAME: &str = "slot";

/// How long the standby may stand still.
const STANDS_STILL: Duration = Duration::from_secs(180);

/// So many transactions are named in a finding.
const MOST_NAMED: usize = 8;

/// Runs the drill, and keeps its result in the archive. What keeps it from being carried out stands in the report, and is given beside it.
///
/// # Errors
/// Before it has begun: no scratch directory, no programs, an archive without Postgres or connectors. When it was told to stop.
pub async fn slot(
    (store, config): (&Store, &Config),
    asked: &AskedSlot,
    stop: impl Future<Output = Error>,
) -> Result<(Report<Slots>, Option<Error>)> {
    let scratch = tokio::task::block_in_place(|| Scratch::make(&asked.scratch))?;
    let log = patiently(PATIENCE, || Log::open(store, None)).await?.patient();
    let version = log.system().server_version;
    // Archives have the version as 15, or as 150018.
    if (if version < 10_000 { version * 10_000 } else { version }) < DECODES {
        let message = format!(
            "the archive is of PostgreSQL {version}, whose standbys do not decode, as those of 16 and newer do"
        );
        return Err(
            Error::new(Kind::Unsupported, message).hint("a lost slot is repaired by net changes there, if at all")
        );
    }
    let machine = Machine::look(asked.bin_dir.as_deref(), version)?;
    let mut report = Report::begin(NAME, asked.seed, Slots::default());
    let drill = Drill { store, config, asked, log: &log, machine, scratch: &scratch };
    let at = Box::pin(drill.moment()).await?;
    report.about.at = at.to.clone();
    let tried = tokio::select! {
        biased;
        stopped = stop => Err(stopped),
        tried = Box::pin(drill.each(&at, &mut report)) => Ok(tried),
    };
    tokio::task::block_in_place(|| drop(scratch));
    Ok(report.end(store, tried?.err()).await)
}

/// The moment at which slots were lost.
struct At {
    to: String,
    commit: Commit,
    connectors: Vec<(Connector, Result<Position>)>,
}

/// What came of a slot.
enum Tried {
    /// It was not tried, and why.
    Not(String),
    /// What is not as it should be.
    Found(Vec<String>),
}

struct Drill<'a> {
    store: &'a Store,
    config: &'a Config,
    asked: &'a AskedSlot,
    log: &'a Log,
    machine: Machine,
    scratch: &'a Scratch,
}

impl Drill<'_> {
    async fn moment(&self) -> Result<At> {
        let nothing = Pipeline::default();
        if let Some(at) = &self.asked.at {
            return self.at(at.clone(), &nothing).await;
        }
        let since = archived::connectors_since(self.store, self.config, &nothing).await?;
        let since = since.ok_or_else(|| Error::new(Kind::NotFound, "the archive holds no state of connectors"))?;
        let windows = windows(self.store, self.log.system().system_id).await?;
        let spans = windows.iter().map(|window| (window.from.max(since), window.to));
        let spans: Vec<_> = spans.filter(|(from, to)| from <= to).collect();
        let mut seed = self.asked.seed;
        loop {
            let moment = moment::of_spans(&spans, seed).ok_or_else(|| {
                Error::new(
                    Kind::Incomplete,
                    "there is no moment that the database and the state of connectors both reach",
                )
            })?;
            let at = self.at(time::utc(moment), &nothing).await?;
            // There may not have been any at all times.
            if at.connectors.iter().any(|(_, position)| position.is_ok())
                || seed.wrapping_sub(self.asked.seed) >= moment::MOST_DRAWN
            {
                return Ok(at);
            }
            seed = seed.wrapping_add(1);
        }
    }

    async fn at(&self, to: String, nothing: &Pipeline) -> Result<At> {
        let (commit, moment) = commit(self.store, &to).await?;
        // Where a connector stood then, and not when the last commit before was.
        let commit = Commit { at: moment.saturating_mul(1_000), ..commit };
        let archived = archived::archived(self.store, self.config, nothing, &commit).await?;
        let positions = archived.positions();
        let slots = archived::slots(self.store, &commit).await?;
        let chosen = archived.choose(nothing, slots.as_ref(), (true, false))?;
        let position =
            |of: &Connector| Position::of(&of.name, &of.prefixes.0, positions.get(&of.name).map_or(&[], Vec::as_slice));
        let connectors = chosen.connectors.into_iter().map(|of| (position(&of), of)).map(|(at, of)| (of, at)).collect();
        Ok(At { to, commit, connectors })
    }

    /// Tries the slot of each connector, one after the other.
    async fn each(&self, at: &At, report: &mut Report<Slots>) -> Result<()> {
        if at.connectors.is_empty() {
            return Err(Error::new(Kind::NotFound, "the archive holds no connector of Debezium over this database"));
        }
        for (of, position) in &at.connectors {
            match position {
                Ok(_) if of.plugin() != "pgoutput" => {
                    report.skipped.push(format!(
                        "the slot of {}: its plugin is {}, and not pgoutput",
                        of.name,
                        of.plugin()
                    ));
                }
                Ok(position) => {
                    let mut shown =
                        OfSlot { connector: of.name.clone(), slot: of.slot().to_owned(), ..OfSlot::default() };
                    let done = Box::pin(self.one((of, position.committed), &at.commit, &mut shown)).await;
                    self.scratch.empty()?;
                    let about = format!("the slot {} of {}", of.slot(), of.name);
                    match done? {
                        Tried::Not(why) => report.skipped.push(format!("{about}: {why}")),
                        Tried::Found(found) => {
                            report.about.slots.push(shown);
                            found.into_iter().for_each(|why| report.found(Part::Slot, about.clone(), why));
                        }
                    }
                }
                Err(error) => report.skipped.push(format!("the slot of {}: {error}", of.name)),
            }
        }
        match report.about.slots.is_empty() {
            // Nothing tried is nothing shown.
            true => {
                Err(Error::new(Kind::Unavailable, "no slot could be tried at that moment")
                    .hint("name another one: --at"))
            }
            false => Ok(()),
        }
    }

    async fn one(&self, (of, from): (&Connector, Lsn), commit: &Commit, shown: &mut OfSlot) -> Result<Tried> {
        let commits = Commits::open(self.store, self.log, Some(commit.timeline)).await?;
        let furthest = commits.archived().end.min(from + self.asked.wal);
        let until = commits.last(Moment::Lsn(furthest)).await?.end_with_padding();
        (shown.from, shown.to) = (from, until);
        if until <= from {
            return Ok(Tried::Not(format!("nothing is archived behind {from}")));
        }
        let backups = patiently(PATIENCE, || self.log.backups()).await?.sound;
        let file = u64::from(self.log.system().wal_segment_size);
        let Some(begins) = anchor(&commits, &backups, (from, file)).await? else {
            return Ok(Tried::Found(vec![format!(
                "no base backup lies so far before {from} that a slot decodes from there: a repair would be refused"
            )]));
        };
        let (folder, held) = (self.scratch.at("standby"), manifest::writer_id()?);
        fs::create_dir_all(&folder).map_err(|source| Error::io(source, "cannot make the folder of the standby"))?;
        let scratch = config::Scratch {
            into: self.scratch.at("data"),
            bin_dir: self.machine.bin_dir.clone(),
            port: 5432,
            user: self.asked.user.clone(),
            listen: String::new(),
            settings: BTreeMap::new(),
        };
        let standby = Standby { scratch: &scratch, folder: &folder, of };
        let read = self.read((&standby, &held), &commits, (&begins, from..until), (commit, shown)).await;
        // The standby fetches its log until it has been read.
        if let Err(error) = self.store.delete(&layout::hold(commit.system_id, &held)).await {
            tracing::warn!(%error, name = held, "the hold of this drill cannot be removed: retention waits for it for hours");
        }
        let found = read?;
        if found.is_empty() && shown.decoded == 0 && shown.in_topics == 0 {
            return Ok(Tried::Not(format!("nothing between {from} and {until} is captured, so that nothing is shown")));
        }
        Ok(Tried::Found(found))
    }

    /// Makes the standby and its slot, and reads it; gives what is not as it should be.
    async fn read(
        &self,
        (standby, held): (&Standby<'_>, &str),
        commits: &Commits<'_>,
        (begins, range): (&Anchor, Range<Lsn>),
        (commit, shown): (&Commit, &mut OfSlot),
    ) -> Result<Vec<String>> {
        let (from, until) = (range.start, range.end);
        let _server = self.restored(standby, begins, (commit.timeline, until), held).await?;
        let mut sql = standby.at(standby.of.database())?.sql().await?;
        let (database, harmless) = facts(&mut sql).await?;
        let behind = missed(commits, range.clone(), database).await?;
        let found = conflicts(commits, begins, until, (database, &harmless)).await?;
        (shown.commits, shown.harmless) = (behind.commits, found.harmless);
        if let Some(why) = refused(&behind, &found) {
            return Ok(vec![why]);
        }
        let decodes_from = standby.make_slot(begins, until, &harmless).await?;
        shown.decodes_from = Some(decodes_from);
        if decodes_from > from {
            let why = format!("on the standby it decodes from {decodes_from} on, and what was missed begins at {from}");
            return Ok(vec![why]);
        }
        self.follows(standby, &mut sql, until).await?;
        let given: Vec<(u32, Lsn)> = given(&mut sql, standby.of).await?;
        let given: Vec<_> = given.into_iter().filter(|(_, end)| *end > from && *end <= until).collect();
        let counted = counted(commits, range, database).await?;
        let live = self.live(standby.of, commit, &counted).await?;
        (shown.decoded, shown.in_topics) = (given.len() as u64, live.len() as u64);
        Ok(compare(&given, &counted, &live))
    }

    /// The standby, open at the place where its slot is made.
    async fn restored(
        &self,
        standby: &Standby<'_>,
        begins: &Anchor,
        (timeline, until): (u32, Lsn),
        held: &str,
    ) -> Result<crate::recover::server::Server> {
        let made = standby.made();
        let restore = Restore::planned(self.store, self.log, (timeline, until), Some(begins.backup.clone())).await?;
        restore.check(&made, false)?;
        let fetching = LogSource::of(&self.config.archive, true)?.gated();
        let (_, foreseen) = restore.bring(self.store, (self.log, &made), fetching, held).await?;
        let limits = limits_of(&standby.scratch.into, &foreseen)?;
        let limits: Vec<_> = limits.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        standby.gate(begins.gate, &Relations::default())?;
        standby.start_with(&limits, Vec::new()).await
    }

    /// Waits until the standby has replayed all up to a position.
    async fn follows(&self, standby: &Standby<'_>, sql: &mut Sql, until: Lsn) -> Result<()> {
        let (mut stands, mut since) = (Lsn(0), Instant::now());
        loop {
            let rows = sql.query("SELECT pg_last_wal_replay_lsn()", "ask how far it is").await?;
            let now: Lsn = rows.first().and_then(|row| row.first()?.as_ref()?.parse().ok()).unwrap_or_default();
            if now >= until {
                return Ok(());
            }
            if let Some(why) = standby.slot_is_lost().await? {
                return Err(Error::new(Kind::Incomplete, format!("the standby cannot be read to {until}: {why}")));
            }
            if now != stands {
                (stands, since) = (now, Instant::now());
            }
            if since.elapsed() > STANDS_STILL {
                return Err(Error::new(Kind::Incomplete, format!("the standby stands at {now}, before {until}")));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The transactions of these that the archived topics of a connector have.
    async fn live(&self, of: &Connector, commit: &Commit, counted: &BTreeMap<u32, Lsn>) -> Result<BTreeSet<u32>> {
        let selection = Selection { topics: vec![of.topics()], ..Selection::default() };
        let query: Query = selection.query(None)?;
        let cluster = self.config.kafka.as_ref().map(|kafka| kafka.cluster.as_str());
        let found = match sources(self.store, cluster, &query).await {
            Ok(found) => found,
            Err(error) if error.kind() == Kind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(error),
        };
        let now = time::now();
        let at = chrono::DateTime::from_timestamp_micros(commit.at).unwrap_or(now);
        let schemas = Schemas::archived(self.store, at, now).await?;
        let seen =
            transactions((self.store, readable(found).0, &query), &schemas, |xid| counted.contains_key(&xid)).await?;
        // An xid comes again, and an event lies before the end of its commit.
        let is_one =
            |(xid, lsn): &(u32, u64)| counted.get(xid).is_some_and(|end| Lsn(*lsn) < *end && end.0 - lsn < (1 << 40));
        Ok(seen.into_iter().filter(is_one).map(|(xid, _)| xid).collect())
    }
}

/// Why a repair would be refused.
fn refused(behind: &Missed, found: &Conflicts) -> Option<String> {
    if let Some(hole) = behind.holes.first() {
        return Some(format!("the archive has not all of the log behind its offset: {hole}"));
    }
    let first = found.first_real.as_ref()?;
    let after = first.after.as_deref().unwrap_or("an unknown time");
    Some(format!(
        "{} clean-ups of catalogs would take the slot of a standby away, the first at {} after {after}, of the catalog with the file {}: \
         a repair would be refused",
        found.real, first.lsn, first.relation
    ))
}

/// The number of the database, and its catalogs that decoding does not read.
async fn facts(sql: &mut Sql) -> Result<(u32, Relations)> {
    let asked = "SELECT oid FROM pg_database WHERE datname = current_database()";
    let rows = sql.query(asked, "ask for the number of the database").await?;
    let database = rows.first().and_then(|row| row.first()?.as_ref()?.parse().ok());
    let database = database.ok_or_else(|| Error::new(Kind::Internal, "the standby does not tell its database"))?;
    Ok((database, statistics(sql, database).await?))
}

/// The transactions that the slot gives, in its order, with the ends of their commits (`logicalrep_write_commit`, proto.c).
async fn given(sql: &mut Sql, of: &Connector) -> Result<Vec<(u32, Lsn)>> {
    let publication = format!("\"{}\"", of.publication().replace('"', "\"\""));
    let asked = format!(
        "SELECT xid, encode(substring(data FROM 11 FOR 8), 'hex') FROM pg_logical_slot_peek_binary_changes({}, NULL, NULL, \
         'proto_version', '1', 'publication_names', {}) WHERE get_byte(data, 0) = 67",
        literal(of.slot()),
        literal(&publication)
    );
    let rows = sql.query(&asked, "read its slot").await?;
    let one = |row: &Vec<Option<String>>| {
        let end = u64::from_str_radix(row.get(1)?.as_ref()?, 16).ok()?;
        Some((row.first()?.as_ref()?.parse().ok()?, Lsn(end)))
    };
    rows.iter().map(one).collect::<Option<_>>().ok_or_else(|| Error::new(Kind::Internal, "the slot gives no commits"))
}

/// The transactions of a database that the archived log counts, with the ends of their commits.
async fn counted(commits: &Commits<'_>, lsns: Range<Lsn>, database: u32) -> Result<BTreeMap<u32, Lsn>> {
    let (wanted, mut counted) = (Wanted { lsns, times: i64::MIN..i64::MAX }, BTreeMap::new());
    commits
        .each(&wanted, false, |ended| {
            if let What::Commit(transaction) = &ended.what
                && transaction.database.is_none_or(|its| its == database)
            {
                counted.insert(transaction.xid, ended.end_with_padding());
            }
            ControlFlow::Continue(())
        })
        .await?;
    Ok(counted)
}

/// What the slot gives, beside the log and the topics. A transaction that changed nothing that is published is in the log alone.
fn compare(given: &[(u32, Lsn)], counted: &BTreeMap<u32, Lsn>, live: &BTreeSet<u32>) -> Vec<String> {
    let mut found = Vec::new();
    let named = |xids: &[u32]| {
        let shown: Vec<String> = xids.iter().take(MOST_NAMED).map(u32::to_string).collect();
        let more = xids.len().saturating_sub(MOST_NAMED);
        if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
    };
    let strangers: Vec<u32> =
        given.iter().filter(|(xid, end)| counted.get(xid) != Some(end)).map(|(xid, _)| *xid).collect();
    if !strangers.is_empty() {
        found.push(format!(
            "the slot gives transactions that the archived log does not count there: {}",
            named(&strangers)
        ));
    }
    if !given.is_sorted_by(|(_, one), (_, other)| one < other) {
        found.push("the slot gives transactions twice, or in another order than that of their commits".to_owned());
    }
    let known: BTreeSet<u32> = given.iter().map(|(xid, _)| *xid).collect();
    let lost: Vec<u32> = live.difference(&known).copied().collect();
    if !lost.is_empty() {
        found.push(format!("the topics have transactions that the slot does not give: {}", named(&lost)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_slot_gives_is_what_the_log_counts_in_its_order_and_all_that_the_topics_have() {
        let counted = BTreeMap::from([(7, Lsn(100)), (9, Lsn(200)), (8, Lsn(300))]);
        let live = BTreeSet::from([7, 8]);
        let told = |given: &[(u32, u64)]| {
            let given: Vec<(u32, Lsn)> = given.iter().map(|(xid, end)| (*xid, Lsn(*end))).collect();
            compare(&given, &counted, &live)
        };
        assert!(told(&[(7, 100), (8, 300)]).is_empty() && told(&[(7, 100), (9, 200), (8, 300)]).is_empty());
        let says = |given: &[(u32, u64)], part: &str| {
            let told = told(given);
            assert!(told.len() == 1 && told[0].contains(part), "{told:?}");
        };
        says(&[(7, 100)], "the topics have transactions that the slot does not give: 8");
        says(&[(7, 100), (8, 301)], "does not count there: 8");
        says(&[(7, 100), (6, 200), (8, 300)], "does not count there: 6");
        says(&[(8, 300), (7, 100)], "in another order");
        says(&[(7, 100), (7, 100), (8, 300)], "twice");
    }
}

//! The steps of a recovery, in their order, each with its proof.
//!
//! ```text
//!   postgres     restored to just the commit's end, opened for nobody else        its timeline begins there
//!   raise        its log moved behind the branch that was left                     no position comes twice
//!   slots        one a connector, and the marker behind it                         where each begins
//!   open         the server for everybody, at its port
//!   registry     archived subjects, registered with their ids                      read back
//!   acls         archived access control lists, if they are asked for               read back
//!   topics       archived records of transactions up to the commit, and no other   how many in, out, uncertain
//!   connectors   made without running, told where their slots begin                read back
//!   marker       they run                                                          their markers came to their topics
//!   fold         captured tables beside the rows that the topics came to          the same counts and sums
//! ```

use std::fs;
use std::path::Path;
use std::time::Instant;

use super::archived;
use super::database::{self, Made};
use super::journal::{Done, Folder, Proof};
use super::may_begin::may_begin;
use super::plan::{left_out, raised_to, shown};
use super::prepare::{Asked, Part, Prepared, connection, rename, there};
use super::report::{Report, State};
use super::schemas::{Brought, bring};
use super::server::Server as Started;
use super::step::Step;
use super::words::many;
use super::{acls, connectors, fold, in_place, marker, slots, strimzi, topics};
use crate::config::{Config, Recovered};
use crate::error::{Error, Kind, Result};
use crate::source::postgres::Server;
use crate::source::rest::{Operator, Registrar};
use crate::store::Store;

/// A longer way is not raised: it would take minutes, and as much WAL.
const MOST_RAISED: u64 = 64 << 30;

/// A recovery at work.
struct Recovery<'a> {
    store: &'a Store,
    config: &'a Config,
    asked: &'a Asked,
    prepared: Prepared,
    folder: Folder,
    /// The server while nobody else can connect to it.
    private: Option<Started>,
    /// The server at its port, if it is to end with this process.
    open: Option<Started>,
    /// What shows that the server stands at the commit, once this run has looked.
    stands: Option<String>,
    /// The connectors are resources, which this run has written: nobody can have applied them yet.
    are_new: bool,
}

/// The resources of connectors, beside the journal.
const RESOURCES: &str = "strimzi.yaml";

/// Carries it out, or goes on with it. The report says how far it came, also of one that failed.
///
/// # Errors
/// A folder that another process has, and a journal that cannot be written.
pub async fn carry_out(
    store: &Store,
    config: &Config,
    asked: &Asked,
    prepared: Prepared,
) -> Result<(Report, Option<Error>)> {
    may_begin(config, asked, &prepared).await?;
    let folder = Folder::take(&asked.folder)?;
    let now = Folder::look(&asked.folder, &asked.to, &asked.targets())?;
    prepared.journal.is_still(prepared.anew, now.as_ref())?;
    if prepared.anew {
        folder.save(&prepared.journal)?;
    }
    let mut report = Report::new(&asked.to, &prepared.journal.commit, false);
    report.notes.extend(prepared.notes.iter().cloned());
    let mut recovery = Recovery::begin((store, config), asked, prepared, folder);
    let mut failed = None;
    for step in Step::ALL {
        let name = step.name();
        if recovery.passes_over(step, failed.is_some(), &mut report) {
            continue;
        }
        let begun = Instant::now();
        match recovery.take(step).await {
            Ok(Proof { words, differences, notes }) => {
                let done = Done { seconds: begun.elapsed().as_secs_f64(), proof: words, differences, notes };
                report.done(name, &done);
                let journal = &mut recovery.prepared.journal;
                journal.steps.insert(name.to_owned(), done);
                recovery.folder.save(journal)?;
            }
            Err(error) => {
                report.not_done(name, State::Failed, error.to_string());
                failed = Some(error);
            }
        }
    }
    recovery.close(&mut report).await?;
    tokio::task::block_in_place(|| drop(recovery));
    Ok((report, failed))
}

impl<'a> Recovery<'a> {
    fn begin((store, config): (&'a Store, &'a Config), asked: &'a Asked, prepared: Prepared, folder: Folder) -> Self {
        Recovery { store, config, asked, prepared, folder, private: None, open: None, stands: None, are_new: false }
    }

    /// Whether a step is not taken by this run, which is reported then.
    fn passes_over(&self, step: Step, has_failed: bool, report: &mut Report) -> bool {
        let name = step.name();
        if let Some(done) = self.prepared.journal.steps.get(name) {
            report.done(name, done);
        } else if let Some(why) = left_out(step, self.asked, &self.prepared.connectors) {
            report.not_done(name, State::Skipped, why.to_owned());
        } else if has_failed {
            report.not_done(name, State::Skipped, "a step before it failed".to_owned());
        } else if step == Step::Marker && self.are_new {
            report.not_applied(name, &self.folder.path.join(RESOURCES));
        } else {
            return false;
        }
        true
    }

    async fn close(&mut self, report: &mut Report) -> Result<()> {
        report.connectors = shown(&self.prepared.connectors, &self.prepared.journal);
        report.resources = fs::read_to_string(self.folder.path.join(RESOURCES)).ok();
        report.close(&self.prepared.journal);
        self.leave().await
    }

    async fn take(&mut self, step: Step) -> Result<Proof> {
        match step {
            Step::Postgres => self.postgres().await,
            Step::Raise => self.raise().await,
            Step::Slots => self.slots().await,
            Step::Open => self.open().await,
            Step::Registry => self.registry().await,
            Step::Acls => acls::bring(self.store, self.config, self.asked, &self.prepared.journal).await,
            Step::Topics => {
                let asked = (self.asked, &self.prepared.connectors[..]);
                let journal = (&self.folder, &mut self.prepared.journal);
                match self.asked.in_place {
                    true => in_place::bring(self.store, self.config, asked, journal).await,
                    false => topics::replay(self.store, self.config, asked, journal).await,
                }
            }
            Step::Fold => self.fold().await,
            Step::Connectors => self.connectors().await,
            Step::Marker => self.marker().await,
        }
    }

    async fn postgres(&mut self) -> Result<Proof> {
        let asked = self.asked;
        let Some(made) = asked.made() else {
            return self.standing().await.map(Proof::from);
        };
        let mut notes = Vec::new();
        let journal = &mut self.prepared.journal;
        if !(journal.restores && database::is_whole(made.into)) {
            journal.restores = true;
            self.folder.save(journal)?;
            if let Some(restore) = &self.prepared.restore {
                notes = restore.carry_out(self.store, &self.config.archive, &self.prepared.log, &made).await?;
            }
        }
        let words = self.standing().await?;
        notes.push(format!(
            "{} archives nothing, waits for no standby, subscribes to nothing and runs no cron jobs until tidelog.restored.conf is removed there",
            made.into.display()
        ));
        Ok(Proof { words, differences: Vec::new(), notes })
    }

    async fn raise(&mut self) -> Result<Proof> {
        let (until, end) = (raised_to(&self.prepared), self.prepared.journal.commit.end);
        let server = self.server().await?;
        if until - end > MOST_RAISED {
            let differs = format!(
                "positions of the branch that was left, up to {until}, come again: {} GiB of WAL are not written to pass them, so nothing \
                 that remembers a position of it may be pointed at this server",
                (until - end) >> 30
            );
            return Ok(Proof { words: "too far".to_owned(), differences: vec![differs], notes: Vec::new() });
        }
        let at = database::raise(&server, until).await?;
        Ok(format!("its log stands at {at}, behind {until}").into())
    }

    async fn slots(&mut self) -> Result<Proof> {
        let server = self.server().await?;
        let mut differences = Vec::new();
        if self.asked.made().is_none() {
            differences.push(
                "the server was open before its slots were made: what was written in between is in no topic (nothing, if nobody could write)"
                    .to_owned(),
            );
        }
        slots::can_be_made(&server).await?;
        let mut made = Vec::new();
        for of in &self.prepared.connectors {
            let at = slots::make(&server, of, (&self.folder, &mut self.prepared.journal)).await?;
            made.push(format!("{} at {at}", of.slot()));
        }
        self.count().await?;
        // Also where the connectors come with a later run: nothing is written to the slots any more by then.
        if self.asked.pipeline.has_connectors() {
            let token = self.prepared.journal.id.clone();
            for of in &self.prepared.connectors {
                slots::write_marker(&server, of, &token).await?;
            }
        }
        Ok(Proof { words: made.join(", "), differences, notes: Vec::new() })
    }

    /// Counts what the connectors capture, before a marker is a row among theirs.
    async fn count(&mut self) -> Result<()> {
        let server = self.server().await?;
        // Also where the topics come with a later run.
        let compares = self.asked.pipeline.postgres.as_ref().is_some_and(|postgres| postgres.compare);
        if self.asked.pipeline.kafka.is_none() || !compares {
            return Ok(());
        }
        for of in &self.prepared.connectors {
            if !self.prepared.journal.tables.contains_key(&of.name) {
                let tables = fold::count(self.store, self.config, &server, of).await?;
                self.prepared.journal.tables.insert(of.name.clone(), tables);
                self.folder.save(&self.prepared.journal)?;
            }
        }
        Ok(())
    }

    async fn fold(&mut self) -> Result<Proof> {
        let kafka = self.asked.pipeline.kafka.as_ref();
        let rename = rename(kafka.ok_or_else(|| Error::new(Kind::Internal, "no target of topics"))?)?;
        let to = connection(self.config, &self.asked.pipeline)?;
        fold::compare(self.store, (&self.prepared.connectors, &self.prepared.journal), (&to, &rename)).await
    }

    async fn open(&mut self) -> Result<Proof> {
        let asked = self.asked;
        let made = asked.made().ok_or_else(|| Error::new(Kind::Internal, "no server was made"))?;
        let is_open = |listen: &str| Proof::from(format!("at port {}, listens on {listen:?}", made.port));
        if self.prepared.journal.opens && is_running(&made) {
            return Ok(is_open("what it was started with"));
        }
        // An earlier run may have come to just here: what its server would say is known then.
        let listen = match (made.settings.get("listen_addresses"), &self.prepared.journal.listens) {
            (Some(listen), _) | (None, Some(listen)) => listen.clone(),
            (None, None) => database::listens(&self.server().await?).await?,
        };
        self.leave().await?;
        let journal = &mut self.prepared.journal;
        (journal.opens, journal.listens) = (true, Some(listen.clone()));
        self.folder.save(journal)?;
        self.open = Some(made.open_to_all(&listen, !asked.is_drill).await?);
        Ok(is_open(&listen))
    }

    async fn registry(&mut self) -> Result<Proof> {
        let server = self.asked.pipeline.schema_registry.as_ref();
        let server = server.ok_or_else(|| Error::new(Kind::Internal, "no registry is named"))?;
        let moment = self.prepared.journal.moment();
        let (archived, added) = archived::subjects(self.store, self.config, server, moment).await?;
        self.prepared.journal.schema_subjects = archived.subjects.keys().cloned().collect();
        let Brought { registered, there, ids, mut differences } = bring(&archived, &Registrar::new(server)?).await?;
        let has_topics = self.prepared.journal.steps.contains_key(Step::Topics.name());
        differences.extend(unreadable(ids.len(), self.asked.wants(Part::Topics), has_topics));
        let notes = match added {
            0 => Vec::new(),
            added => vec![format!(
                "{} of the registry were found only after that moment, and may have been registered just before it: they are brought \
                 back, too",
                many(added, "version")
            )],
        };
        let mut words = format!("{registered} versions registered, {there} were there");
        words.push_str(&match ids.len() {
            0 => ", all with their ids".to_owned(),
            others => format!("; {others} ids are others now, and records are given those"),
        });
        // Each run of the topics has to give records the same ids.
        self.prepared.journal.schema_ids = ids;
        self.folder.save(&self.prepared.journal)?;
        Ok(Proof { words, differences, notes })
    }

    async fn connectors(&mut self) -> Result<Proof> {
        let to = connection(self.config, &self.asked.pipeline)?;
        let (mut proofs, mut notes, mut resources) = (Vec::new(), Vec::new(), Vec::new());
        for of in &self.prepared.connectors {
            let journal = &mut self.prepared.journal;
            if of.marker.is_none() && marker::make_topic(&to, of).await? {
                notes.push(format!("the topic {} is new: the marker of {} comes to it", marker::messages(of), of.name));
            }
            if journal.connector(&of.name).ends.is_none() {
                journal.connector(&of.name).ends = Some(marker::ends(&to, of).await?);
                self.folder.save(journal)?;
            }
            if let Some(strimzi) = &self.asked.pipeline.strimzi {
                let slot = journal.connector(&of.name).slot;
                let slot = slot.ok_or_else(|| Error::new(Kind::Internal, format!("{} has no slot yet", of.name)))?;
                resources.push(strimzi::resources(of, strimzi, connectors::position(of, slot, journal.commit.at))?);
                proofs.push(format!("{} is to go on from {slot}", of.name));
                continue;
            }
            let workers = workers(self.prepared.workers.as_ref())?;
            connectors::make(workers, of, self.asked.yes, (&self.folder, journal)).await?;
            let slot = journal.connector(&of.name).slot.unwrap_or_default();
            proofs.push(format!("{} goes on from {slot}, as it says itself", of.name));
        }
        if !resources.is_empty() {
            let path = self.folder.write(RESOURCES, resources.join("---\n").as_bytes())?;
            proofs.push(format!("as resources in {}", path.display()));
            self.are_new = true;
        }
        Ok(Proof { words: proofs.join(", "), differences: Vec::new(), notes })
    }

    async fn marker(&mut self) -> Result<Proof> {
        let to = connection(self.config, &self.asked.pipeline)?;
        let mut proofs = Vec::new();
        for of in &self.prepared.connectors {
            let journal = &mut self.prepared.journal;
            if !journal.connector(&of.name).marker_seen {
                if self.asked.pipeline.strimzi.is_none() {
                    let workers = workers(self.prepared.workers.as_ref())?;
                    // Its config may have been mended since.
                    connectors::make(workers, of, self.asked.yes, (&self.folder, journal)).await?;
                    connectors::run(workers, of).await?;
                }
                let (ends, token) = (journal.connector(&of.name).ends.clone().unwrap_or_default(), journal.id.clone());
                let topic = marker::seen(&to, of, (&mut ends.clone(), &token), marker::COMES).await?;
                journal.connector(&of.name).marker_seen = true;
                self.folder.save(journal)?;
                proofs.push(format!("that of {} came to {topic}", of.name));
            }
        }
        Ok(proofs.join(", ").into())
    }

    /// The server of the database, which nobody else can connect to if it is ours. Whichever step needs it first, it is looked at once
    /// a run before anything is done to it: another url may have been written into the pipeline file since.
    async fn server(&mut self) -> Result<Server> {
        let server = self.reached().await?;
        if self.stands.is_none() {
            self.stands = Some(database::stands_at(&server, &self.prepared.journal.commit).await?);
        }
        Ok(server)
    }

    /// What shows that the server stands at the commit.
    async fn standing(&mut self) -> Result<String> {
        self.server().await?;
        self.stands.clone().ok_or_else(|| Error::new(Kind::Internal, "no server was looked at"))
    }

    async fn reached(&mut self) -> Result<Server> {
        let asked = self.asked;
        let Some(postgres) = &asked.pipeline.postgres else {
            return Err(Error::new(Kind::Config, "the pipeline file has no [postgres]"));
        };
        let Some(made) = asked.made() else {
            let Recovered::There(url) = &postgres.server else {
                return Err(Error::new(Kind::Internal, "a server is neither made nor there"));
            };
            return there(url, &postgres.database);
        };
        if self.private.is_none() {
            if self.prepared.journal.opens || is_running(&made) {
                let message = format!("the server over {} was opened before its slots were made", made.into.display());
                return Err(Error::new(Kind::Fenced, message).hint(
                    "what was written to it is in no topic: begin again with another directory, or run the other parts alone with --only",
                ));
            }
            self.private = Some(made.open_privately().await?);
        }
        made.at(&postgres.database)
    }

    /// Stops the server that nobody else can connect to.
    async fn leave(&mut self) -> Result<()> {
        match self.private.take() {
            Some(server) => server.stop().await,
            None => Ok(()),
        }
    }
}

fn workers(workers: Option<&Operator>) -> Result<&Operator> {
    workers.ok_or_else(|| Error::new(Kind::Internal, "no workers were looked at"))
}

/// Whether a server runs over a data directory, by its own file.
fn is_running(made: &Made<'_>) -> bool {
    let text = fs::read_to_string(made.into.join("postmaster.pid")).unwrap_or_default();
    let Some(pid) = text.lines().next().and_then(|pid| pid.trim().parse::<u32>().ok()) else { return false };
    let is_postgres = fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "postgres");
    is_postgres && works_in(pid, made.into)
}

/// Whether a process works in a directory, as a server does in its data (`ChangeToDataDir`, miscinit.c). After a crash the number in its
/// file may be another one's.
fn works_in(pid: u32, folder: &Path) -> bool {
    match fs::read_link(format!("/proc/{pid}/cwd")) {
        Ok(its) => fs::canonicalize(folder).is_ok_and(|folder| folder == its),
        // Of another user it is not told.
        Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
    }
}

/// What records with archived ids of schemas are at the target, where `differ` ids are others there.
fn unreadable(differ: usize, are_sent: bool, were_sent: bool) -> Option<String> {
    let why = match (differ, were_sent, are_sent) {
        (0, ..) | (_, false, true) => return None,
        (_, true, _) => "the topics were brought back before the registry, with the archived ids",
        (_, false, false) => "the topics are not part of this run, and records that are there have the archived ids",
    };
    Some(format!("{differ} ids of schemas are others at the target: {why}, so those records cannot be read with it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_another_directory_is_not_the_server() {
        let (here, elsewhere) = (std::env::current_dir().expect("a directory"), tempfile::tempdir().expect("another"));
        assert!(works_in(std::process::id(), &here));
        assert!(!works_in(std::process::id(), elsewhere.path()));
        assert!(!works_in(u32::MAX, &here), "there is no such process");
    }

    #[test]
    fn other_ids_are_a_difference_unless_records_are_given_them() {
        assert_eq!((unreadable(0, false, false), unreadable(3, true, false)), (None, None));
        assert!(unreadable(3, false, false).expect("a difference").contains("not part of this run"));
        assert!(unreadable(3, true, true).expect("a difference").contains("before the registry"));
    }
}

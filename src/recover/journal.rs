//! How far a recovery has come, so that the same command goes on after it was killed.
//!
//! ```text
//!   <into>.recover/journal.json      beside the data directory that is made: what is resumed lies on this machine, and an archive may
//!                                    well be read-only for who restores; of a server that is there already, beside the pipeline file
//! ```
//!
//! It is written before whatever cannot be told afterwards from somebody else's work (a slot, a connector), and after each step. Each
//! writing replaces the file as a whole. A lock keeps a second process from the same recovery.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::fold::Table;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::failpoint::failpoint;
use crate::manifest::writer_id;
use crate::stream::Lsn;

const FORMAT: u32 = 1;
const FILE: &str = "journal.json";

/// The commit to which everything is brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Where its record begins.
    pub lsn: Lsn,
    /// Where it ends, with what fills it up: what the server tells as its own position.
    pub end: Lsn,
    /// Its transaction.
    pub xid: u32,
    /// When it was, in microseconds since 1970.
    pub at: i64,
    /// The timeline on which it lies, and the system.
    pub timeline: u32,
    /// The system of which it is.
    pub system_id: u64,
}

/// A step that is done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// How long it took.
    pub seconds: f64,
    /// What shows that it is done.
    pub proof: String,
    /// What is not as it was, or not known.
    #[serde(default)]
    pub differences: Vec<String>,
    /// What is to be known besides.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What a step has come to.
#[derive(Debug, Default)]
pub struct Proof {
    /// What shows that it is done.
    pub words: String,
    /// What is not as it was, or not known.
    pub differences: Vec<String>,
    /// What is to be known besides.
    pub notes: Vec<String>,
}

impl From<String> for Proof {
    fn from(words: String) -> Self {
        Self { words, ..Self::default() }
    }
}

/// What is known of a connector's recovery.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfConnector {
    /// Its slot is being made: one of that name that is there is ours.
    pub makes_slot: bool,
    /// Where the slot begins.
    pub slot: Option<Lsn>,
    /// Where the topics ended in which its marker is looked for, before it could have come.
    pub ends: Option<BTreeMap<String, BTreeMap<i32, i64>>>,
    /// It is being made: one of that name that is there is ours.
    pub makes: bool,
    /// It is given its offset, which was read back: from here on it may run.
    pub has_offset: bool,
    /// It ran, and its marker was seen.
    pub marker_seen: bool,
}

/// What was sent of the archived records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records {
    /// Of transactions that committed at or before the commit.
    #[serde(rename = "in")]
    pub within: u64,
    /// Of others: left out.
    pub out: u64,
    /// Of which it is not known.
    pub uncertain: u64,
}

/// All that is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    format: u32,
    /// A name that no other recovery has.
    pub id: String,
    /// `--to`, as it was typed.
    pub to: String,
    /// Where everything goes.
    pub pipeline: String,
    /// What `--to` has come to.
    pub commit: Commit,
    /// The moment that was asked for, in ms since 1970; that of the commit where `--to` is a position. None was kept by earlier versions.
    #[serde(default)]
    pub moment: Option<i64>,
    /// A data directory is being made.
    pub restores: bool,
    /// Its server is being opened for everybody.
    pub opens: bool,
    /// Where it listens then.
    #[serde(default)]
    pub listens: Option<String>,
    /// The steps that are done.
    pub steps: BTreeMap<String, Done>,
    /// By name.
    pub connectors: BTreeMap<String, OfConnector>,
    /// What is sent, once it is chosen.
    pub records: Option<Records>,
    /// The tables that each connector captures, as they were at the commit.
    #[serde(default)]
    pub tables: BTreeMap<String, Vec<Table>>,
    /// Archived topics of which the archive does not have the beginning.
    #[serde(default)]
    pub late_topics: BTreeSet<String>,
    /// What the choice has come upon: differences, and what is to be known besides.
    #[serde(default)]
    pub of_topics: (Vec<String>, Vec<String>),
    /// The ids of schemas at the target, by archived ones, where they are others.
    #[serde(default)]
    pub schema_ids: BTreeMap<i64, i64>,
    /// The names of the archived subjects.
    #[serde(default)]
    pub schema_subjects: BTreeSet<String>,
    /// Where topics that stay where they are ended, before anything was sent to them.
    #[serde(default)]
    pub in_place: Option<BTreeMap<String, BTreeMap<i32, i64>>>,
    /// What became of consumer groups.
    #[serde(default)]
    pub groups: Vec<serde_json::Value>,
}

impl Journal {
    /// That of a recovery that begins.
    ///
    /// # Errors
    /// Where the system gives no random bytes.
    pub fn begin(to: &str, pipeline: &str, commit: Commit) -> Result<Self> {
        Ok(Self {
            format: FORMAT,
            id: format!("recover-{}", writer_id()?),
            to: to.to_owned(),
            pipeline: pipeline.to_owned(),
            commit,
            moment: None,
            restores: false,
            opens: false,
            listens: None,
            steps: BTreeMap::new(),
            connectors: BTreeMap::new(),
            records: None,
            tables: BTreeMap::new(),
            late_topics: BTreeSet::new(),
            of_topics: Default::default(),
            schema_ids: BTreeMap::new(),
            schema_subjects: BTreeSet::new(),
            in_place: None,
            groups: Vec::new(),
        })
    }

    /// The moment whose state is brought back, in ms since 1970.
    pub fn moment(&self) -> i64 {
        self.moment.unwrap_or_else(|| self.commit.at.div_euclid(1_000))
    }

    /// Refuses to go on from what was read before the folder was taken, if another run has gone on since.
    ///
    /// # Errors
    /// [`Kind::Fenced`] if what is there now is something else.
    pub fn is_still(&self, anew: bool, now: Option<&Self>) -> Result<()> {
        if now == (!anew).then_some(self) {
            return Ok(());
        }
        Err(Error::new(Kind::Fenced, "another run has gone on with this recovery meanwhile")
            .hint("run the same command again: it goes on from there"))
    }

    /// What is known of a connector.
    pub fn connector(&mut self, name: &str) -> &mut OfConnector {
        self.connectors.entry(name.to_owned()).or_default()
    }

    /// Whether the same command has begun it.
    ///
    /// # Errors
    /// [`Kind::Config`] where it has not.
    fn is_of(&self, to: &str, pipeline: &str, folder: &Path) -> Result<()> {
        let how = match (self.to == to, self.pipeline == pipeline) {
            (true, true) => return Ok(()),
            (false, _) => format!("with --to {}", self.to),
            (true, false) => format!("with other targets in its pipeline file: {}", self.pipeline),
        };
        let message = format!("the recovery in {} was begun {how}", folder.display());
        Err(Error::new(Kind::Config, message).hint(format!(
            "repeat what it was begun with, or remove {} with all that was made by then to begin another one",
            folder.display()
        )))
    }
}

/// The folder of a recovery, which no other process has.
#[derive(Debug)]
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Returns the journal in a folder, if there is one, without taking the folder.
    ///
    /// # Errors
    /// One of another recovery, or that cannot be read.
    pub fn look(path: &Path, to: &str, pipeline: &str) -> Result<Option<Journal>> {
        let file = path.join(FILE);
        let Some(journal) = Self::read::<Journal>(path)? else { return Ok(None) };
        if journal.format != FORMAT {
            let message = format!("{} is of format {}, and this program has {FORMAT}", file.display(), journal.format);
            return Err(Error::new(Kind::Unsupported, message).hint("go on with the version that began it"));
        }
        journal.is_of(to, pipeline, path)?;
        Ok(Some(journal))
    }

    /// Reads the journal in a folder, of whatever kind; none where there is none.
    ///
    /// # Errors
    /// One that cannot be read.
    pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
        let file = path.join(FILE);
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(error, format!("cannot read {}", file.display()))),
        };
        serde_json::from_slice(&text).or_err(Kind::Corrupt, || format!("{} is no journal", file.display())).map(Some)
    }

    /// Makes the folder, and keeps others from it.
    ///
    /// # Errors
    /// [`Kind::Fenced`] where another process is at work in it.
    pub fn take(path: &Path) -> Result<Self> {
        let failed = |source| Error::io(source, format!("cannot make {}", path.display()));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(path.join("lock"));
        let lock = lock.map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                let message = format!("another process is at work on the recovery in {}", path.display());
                Err(Error::new(Kind::Fenced, message).hint("wait for its end; the same command goes on after it"))
            }
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Writes a file beside the journal; gives where.
    ///
    /// # Errors
    /// A disk that is full, or cannot be written.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.path.join(name);
        let written = File::options().create(true).truncate(true).write(true).mode(0o600).open(&path);
        let written = written.and_then(|mut to| to.write_all(bytes).and_then(|()| to.sync_all()));
        written.map_err(|source| Error::io(source, format!("cannot write {}", path.display())))?;
        Ok(path)
    }

    /// Writes the journal, as a whole or not at all.
    ///
    /// # Errors
    /// A disk that is full, or cannot be written.
    pub fn save(&self, journal: &impl Serialize) -> Result<()> {
        failpoint!("recover.save");
        let (file, new) = (self.path.join(FILE), self.path.join("journal.new"));
        let text = serde_json::to_vec_pretty(journal).or_err(Kind::Internal, || "cannot write a journal".to_owned())?;
        let written =
            File::options().create(true).truncate(true).write(true).mode(0o600).open(&new).and_then(|mut to| {
                to.write_all(&text)?;
                to.sync_all()?;
                fs::rename(&new, &file)?;
                File::open(&self.path)?.sync_all()
            });
        written.map_err(|source| Error::io(source, format!("cannot write {}", file.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_read_back_by_the_same_command_alone() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("r.recover");
        assert!(Folder::look(&path, "-5m", "p").expect("none").is_none());
        let folder = Folder::take(&path).expect("the folder");
        assert_eq!(Folder::take(&path).expect_err("it is taken").kind(), Kind::Fenced);
        let commit = Commit { lsn: Lsn(1), end: Lsn(8), xid: 7, at: 5, timeline: 1, system_id: u64::MAX };
        let mut journal = Journal::begin("-5m", "p", commit).expect("a journal");
        journal.connector("a").makes_slot = true;
        folder.save(&journal).expect("written");
        assert_eq!(Folder::look(&path, "-5m", "p").expect("read").as_ref(), Some(&journal));
        for (to, pipeline) in [("-6m", "p"), ("-5m", "q")] {
            assert_eq!(Folder::look(&path, to, pipeline).expect_err("another").exit_code(), 2);
        }
        let read = Folder::look(&path, "-5m", "p").expect("read").expect("a journal");
        assert!(journal.is_still(false, Some(&read)).is_ok() && journal.is_still(true, None).is_ok());
        journal.steps.insert("raise".to_owned(), Done { seconds: 0.1, ..Done::default() });
        for (anew, now) in [(false, Some(&read)), (false, None), (true, Some(&journal))] {
            assert_eq!(journal.is_still(anew, now).expect_err("another run").kind(), Kind::Fenced);
        }
        drop(folder);
        drop(Folder::take(&path).expect("it is free again"));
        std::fs::write(path.join(FILE), "{").expect("written");
        assert_eq!(Folder::look(&path, "-5m", "p").expect_err("half a journal").kind(), Kind::Corrupt);
    }
}

//! A base backup as it comes: `BASE_BACKUP`, in both of its shapes behind one enum.
//!
//! ```text
//!   BASE_BACKUP ──► start LSN, timeline ──► tablespaces ──► the archives ──► end LSN, timeline ──► ready
//!
//!   13, 14   CopyOut data … CopyDone, once for each tablespace, the data directory last; once more for the manifest
//!   15 …     one CopyOut of typed messages: n(ew archive) d(ata)… p(rogress) … m(anifest) d… ; CopyDone
//! ```
//!
//! An archive is a tar file. Before 15 the server leaves out the two empty blocks that end one (pg_basebackup.c,
//! "Note that the tar data sent before PG 15"); they are given here, so that an archive is whole in either case.

use std::io::Read;

use bytes::BufMut;
use postgres_protocol::message::frontend::copy_done;

use super::codec::{Archive, Backend};
use super::conn::Connection;
use super::error::ServerError;
use super::replication::{Replication, literal};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::stream::Lsn;

/// Room for a few of the server's pieces of 32 KiB (`SINK_BUFFER_LENGTH`).
const BUFFER: usize = 256 << 10;

/// What ends a tar file.
const TAR_END: &[u8] = &[0; 1024];

/// How much of a manifest is sent at once.
const PIECE: usize = 64 << 10;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct BackupOptions {
    /// The label, for `backup_label` and for people.
    pub label: String,
    /// Bytes a second at most, from 32 KiB to 1 GiB; none without a limit.
    pub max_rate: Option<u64>,
    /// Whether tablespaces come as links in the archive of the data directory, and those in place as directories. Without, the server
    /// writes a map, and up to PostgreSQL 15 leaves out those in place: it passes over all of `pg_tblspc` (`sendDir`, basebackup.c).
    pub links: bool,
}

/// A tablespace, or the data directory itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its number and its place on the server; none for the data directory.
    pub place: Option<(u32, String)>,
    /// The server's estimate, in bytes.
    pub size: u64,
}

impl Tablespace {
    /// The name of its archive, as `pg_basebackup` calls it.
    pub fn archive(&self) -> String {
        self.place.as_ref().map_or_else(|| "base.tar".to_owned(), |(oid, _)| format!("{oid}.tar"))
    }
}

/// What comes from the server.
#[derive(Debug, PartialEq, Eq)]
pub enum BackupEvent<'a> {
    /// An archive begins: the data that follow are a tar file.
    Archive {
        /// `base.tar`, or the tablespace's number and `.tar`.
        name: String,
        /// The tablespace's number; none for the data directory.
        tablespace: Option<u32>,
    },
    /// The data that follow are the backup manifest.
    Manifest,
    /// The next bytes.
    Data(&'a [u8]),
    /// So many bytes were sent of what [`BackupStream::tablespaces`] estimates.
    Progress {
        /// Bytes of archives.
        done: u64,
    },
    /// All was sent. A restore needs the WAL from the start to here.
    End {
        /// The end.
        end: Lsn,
        /// Its timeline: another than the start's if a standby's primary was replaced meanwhile.
        timeline: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between CopyOuts.
    Between,
    /// Inside one; before 15, of the archive with this index.
    Copying {
        archive: usize,
    },
    /// The two blocks that end an archive are to be given.
    EndingArchive {
        archive: usize,
    },
    Ended {
        end: Lsn,
        timeline: u32,
    },
}

/// A base backup on its way.
pub struct BackupStream {
    replication: Replication,
    start: (Lsn, u32),
    tablespaces: Vec<Tablespace>,
    state: State,
    done: u64,
    end: Option<(Lsn, u32)>,
    /// What the server warned of, up to [`WARNINGS`].
    warnings: Vec<String>,
    /// The error with which it ended although all was sent.
    refusal: Option<ServerError>,
}

/// How many warnings are kept: the server itself tells five of a file, and there may be many files.
const WARNINGS: usize = 50;

/// `data_corrupted`: pages have other checksums than they should. The server says so at the very end, when it has sent everything
/// (`perform_base_backup`, basebackup.c), and names the files in warnings on the way.
const DATA_CORRUPTED: &str = "XX001";

fn note(warnings: &mut Vec<String>, notice: ServerError) {
    tracing::warn!(notice = notice.message, "the server warns of a base backup");
    if warnings.len() < WARNINGS {
        warnings.push(notice.message);
    }
}

impl Replication {
    /// Starts a base backup.
    pub async fn base_backup(self, options: &BackupOptions) -> Result<BackupStream> {
        BackupStream::start(self, options).await
    }

    /// Starts an incremental base backup: only what has changed since another one is sent, which has this manifest.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if the server makes none, or none on that one.
    pub async fn base_backup_on(
        self,
        options: &BackupOptions,
        manifest: &mut (dyn Read + Send),
    ) -> Result<BackupStream> {
        BackupStream::start_on(self, options, manifest).await
    }
}

impl BackupStream {
    /// Begins one that holds what has changed since another one, which has this manifest.
    pub(super) async fn start_on(
        mut replication: Replication,
        options: &BackupOptions,
        manifest: &mut (dyn Read + Send),
    ) -> Result<Self> {
        replication.makes_incremental_backups().await?;
        upload(&mut replication.connection, manifest).await?;
        Self::begin(replication, options, true).await
    }

    pub(super) async fn start(replication: Replication, options: &BackupOptions) -> Result<Self> {
        Self::begin(replication, options, false).await
    }

    async fn begin(mut replication: Replication, options: &BackupOptions, is_incremental: bool) -> Result<Self> {
        let connection = &mut replication.connection;
        connection.widen(BUFFER);
        connection.send(&command(connection.version, options, is_incremental)).await?;
        let mut start = None;
        while let Some(row) = row(connection).await? {
            start = end_of(&row);
        }
        let mut tablespaces = Vec::new();
        while let Some(row) = row(connection).await? {
            tablespaces.push(tablespace(&row).ok_or_else(|| connection.unexpected(DOING))?);
        }
        let start = start.ok_or_else(|| connection.unexpected(DOING))?;
        Ok(Self {
            replication,
            start,
            tablespaces,
            state: State::Between,
            done: 0,
            end: None,
            warnings: Vec::new(),
            refusal: None,
        })
    }

    /// Returns where it begins: a restore needs the WAL from there on.
    pub fn start_lsn(&self) -> Lsn {
        self.start.0
    }

    /// The timeline of that.
    pub fn timeline(&self) -> u32 {
        self.start.1
    }

    /// The connection that it comes by.
    pub fn replication(&self) -> &Replication {
        &self.replication
    }

    /// Returns what is sent.
    pub fn tablespaces(&self) -> &[Tablespace] {
        &self.tablespaces
    }

    /// Returns what the server warned of so far: the names of files with bad pages.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The error by which the server refused what it has sent, because pages are bad; none before the end.
    pub fn refusal(&self) -> Option<&ServerError> {
        self.refusal.as_ref()
    }

    /// Returns what comes next; after the end, the end again. The bytes live until the next call.
    pub async fn next(&mut self) -> Result<BackupEvent<'_>> {
        let is_typed = self.replication.version() >= 150_000;
        loop {
            match self.state {
                State::Ended { end, timeline } => return Ok(BackupEvent::End { end, timeline }),
                State::EndingArchive { archive } => {
                    self.state = State::Copying { archive: archive + 1 };
                    return Ok(BackupEvent::Data(TAR_END));
                }
                State::Between | State::Copying { .. } => {}
            }
            match self.replication.connection.next().await? {
                Backend::CopyData(data) => {
                    let count = data.len() as u64;
                    return if is_typed { self.typed() } else { self.raw(count) };
                }
                Backend::CopyOut if is_typed => self.state = State::Copying { archive: 0 },
                Backend::CopyOut => {
                    if let Some(event) = self.begun() {
                        return Ok(event);
                    }
                }
                Backend::CopyDone if is_typed => {}
                Backend::CopyDone => {
                    if let Some(event) = self.archive_ended() {
                        return Ok(event);
                    }
                }
                Backend::DataRow(row) => self.end = end_of(&row.texts()).or(self.end),
                Backend::Notice(notice) if notice.severity == "WARNING" => note(&mut self.warnings, notice),
                Backend::Error(error) if error.sqlstate == DATA_CORRUPTED && self.end.is_some() => {
                    self.refusal = Some(error);
                }
                Backend::Error(error) => return Err(self.replication.connection.refused(error, DOING)),
                Backend::ReadyForQuery => {
                    let (end, timeline) = self.end.ok_or_else(|| self.replication.connection.unexpected(DOING))?;
                    self.state = State::Ended { end, timeline };
                }
                _ => {}
            }
        }
    }

    /// A typed message of 15 and newer.
    fn typed(&mut self) -> Result<BackupEvent<'_>> {
        let Backend::CopyData(data) = self.replication.connection.current()? else {
            return Err(Error::new(Kind::Internal, "the backup's message has gone"));
        };
        Ok(match Archive::parse(data)? {
            Archive::New { name, .. } => {
                let tablespace = name.strip_suffix(".tar").and_then(|oid| oid.parse().ok());
                BackupEvent::Archive { name, tablespace }
            }
            Archive::Manifest => BackupEvent::Manifest,
            Archive::Data(bytes) => BackupEvent::Data(bytes),
            Archive::Progress(done) => BackupEvent::Progress { done },
        })
    }

    /// Bytes of 13 or 14, which are of the archive that was begun last.
    fn raw(&mut self, count: u64) -> Result<BackupEvent<'_>> {
        self.done += count;
        match self.replication.connection.current()? {
            Backend::CopyData(data) => Ok(BackupEvent::Data(data)),
            _ => Err(Error::new(Kind::Internal, "the backup's message has gone")),
        }
    }

    /// A CopyOut of 13 or 14 begins: one for each tablespace, then the manifest's.
    fn begun(&mut self) -> Option<BackupEvent<'static>> {
        let archive = match self.state {
            State::Copying { archive } => archive,
            _ => 0,
        };
        self.state = State::Copying { archive };
        Some(match self.tablespaces.get(archive) {
            Some(tablespace) => BackupEvent::Archive {
                name: tablespace.archive(),
                tablespace: tablespace.place.as_ref().map(|(oid, _)| *oid),
            },
            None => BackupEvent::Manifest,
        })
    }

    /// A CopyOut of 13 or 14 ends. Its end is all that tells of progress.
    fn archive_ended(&mut self) -> Option<BackupEvent<'static>> {
        match self.state {
            State::Copying { archive } if archive < self.tablespaces.len() => {
                self.state = State::EndingArchive { archive };
                Some(BackupEvent::Progress { done: self.done })
            }
            _ => None,
        }
    }

    /// Gives the connection back, after the end.
    ///
    /// # Errors
    /// [`Kind::Internal`] before the end: a backup under way can only be given up, by dropping it.
    pub fn finish(self) -> Result<Replication> {
        match self.state {
            State::Ended { .. } => Ok(self.replication),
            _ => Err(Error::new(Kind::Internal, "a base backup is still under way")),
        }
    }
}

const DOING: &str = "make a base backup";

/// The next row of the result under way, or none at its end.
async fn row(connection: &mut Connection) -> Result<Option<Vec<Option<String>>>> {
    loop {
        match connection.next().await? {
            Backend::DataRow(row) => return Ok(Some(row.texts())),
            Backend::CommandComplete => return Ok(None),
            Backend::Error(error) => return Err(connection.refused(error, DOING)),
            Backend::ReadyForQuery => return Err(connection.unexpected(DOING)),
            _ => {}
        }
    }
}

/// An LSN and a timeline.
fn end_of(row: &[Option<String>]) -> Option<(Lsn, u32)> {
    let text = |index: usize| row.get(index).and_then(Option::as_deref);
    Some((text(0)?.parse().ok()?, text(1)?.parse().ok()?))
}

/// spcoid, spclocation, size in KiB.
fn tablespace(row: &[Option<String>]) -> Option<Tablespace> {
    let text = |index: usize| row.get(index).and_then(Option::as_deref);
    let place = match (text(0), text(1)) {
        (Some(oid), Some(path)) => Some((oid.parse().ok()?, path.to_owned())),
        _ => None,
    };
    let size = text(2).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
    Some(Tablespace { place, size: size.saturating_mul(1024) })
}

/// The command: a list of options since 15, words before.
fn command(version: u32, options: &BackupOptions, is_incremental: bool) -> String {
    let label = literal(&options.label);
    // The server takes KiB/s, between 32 and 1 GiB.
    let rate = options.max_rate.map(|bytes| (bytes / 1024).clamp(32, 1 << 20));
    if version < 150_000 {
        let map = if options.links { "" } else { "TABLESPACE_MAP " };
        let rate = rate.map(|rate| format!(" MAX_RATE {rate}")).unwrap_or_default();
        // NOWAIT: whether the WAL is archived is for the caller to know, not for the server's archive_command.
        return format!(
            "BASE_BACKUP LABEL {label} PROGRESS FAST NOWAIT{rate} {map}MANIFEST 'yes' MANIFEST_CHECKSUMS 'SHA256'"
        );
    }
    let rate = rate.map(|rate| format!(", MAX_RATE {rate}")).unwrap_or_default();
    let map = if options.links { "" } else { ", TABLESPACE_MAP" };
    let incremental = if is_incremental { ", INCREMENTAL" } else { "" };
    format!(
        "BASE_BACKUP (LABEL {label}, PROGRESS, CHECKPOINT 'fast', WAIT false{rate}{map}, MANIFEST 'yes', \
         MANIFEST_CHECKSUMS 'SHA256'{incremental})"
    )
}

/// Gives the server the manifest that an incremental backup builds on, piece by piece: it may be longer than memory is large.
async fn upload(connection: &mut Connection, manifest: &mut (dyn Read + Send)) -> Result<()> {
    const UPLOADING: &str = "take the manifest of the earlier backup";
    connection.send("UPLOAD_MANIFEST").await?;
    let mut failure = None;
    loop {
        match connection.next().await? {
            Backend::CopyIn => {
                let mut piece = vec![0; PIECE];
                loop {
                    let read = manifest.read(&mut piece);
                    let count =
                        read.or_err(Kind::Corrupt, || "the manifest of the earlier backup cannot be read".into())?;
                    if count == 0 {
                        break;
                    }
                    connection.queue(|out| {
                        out.put_u8(b'd');
                        out.put_u32(count as u32 + 4);
                        out.put_slice(&piece[..count]);
                        Ok(())
                    })?;
                    connection.flush().await?;
                }
                connection.queue(|out| {
                    copy_done(out);
                    Ok(())
                })?;
                connection.flush().await?;
            }
            Backend::Error(error) if error.severity != "ERROR" => return Err(connection.refused(error, UPLOADING)),
            Backend::Error(error) => failure = Some(error),
            Backend::ReadyForQuery => break,
            _ => {}
        }
    }
    failure.map_or(Ok(()), |error| Err(connection.refused(error, UPLOADING)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_what_the_version_understands() {
        let options = BackupOptions { label: "it's".into(), max_rate: Some(10 << 20), links: false };
        let old = command(140_000, &options, false);
        assert!(old.starts_with("BASE_BACKUP LABEL 'it''s' PROGRESS FAST") && old.contains("MAX_RATE 10240 "), "{old}");
        let new = command(150_000, &options, false);
        assert!(new.contains("(LABEL 'it''s', PROGRESS, CHECKPOINT 'fast'") && !new.contains("INCREMENTAL"), "{new}");
        assert!(
            old.contains(" TABLESPACE_MAP MANIFEST ") && new.contains(", TABLESPACE_MAP, MANIFEST "),
            "{old} {new}"
        );
        let options = BackupOptions { links: true, ..options };
        for version in [140_000, 150_000] {
            let linked = command(version, &options, false);
            assert!(!linked.contains("TABLESPACE_MAP"), "{linked}");
        }
        let options = BackupOptions { max_rate: Some(1), ..options };
        let new = command(170_000, &options, true);
        assert!(new.contains("MAX_RATE 32,") && new.ends_with(", INCREMENTAL)"), "{new}");
    }

    #[test]
    fn tablespaces_are_read_with_the_data_directory_among_them() {
        let row = |columns: [Option<&str>; 3]| columns.map(|column| column.map(str::to_owned)).to_vec();
        let fast = tablespace(&row([Some("16384"), Some("/fast"), Some("2")])).expect("a tablespace");
        assert_eq!((fast.archive().as_str(), fast.size), ("16384.tar", 2048));
        let base = tablespace(&row([None, None, Some("3")])).expect("the data directory");
        assert_eq!((base.place.as_ref(), base.archive().as_str()), (None, "base.tar"));
        assert_eq!(tablespace(&row([Some("x"), Some("/fast"), None])), None);
        assert_eq!(end_of(&row([Some("0/2000028"), Some("1"), None])), Some((Lsn(0x2000028), 1)));
    }
}

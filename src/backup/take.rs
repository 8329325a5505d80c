//! A base backup from the server into the store, read back and entered into the chain.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Utc};

use super::contents::Contents;
use super::followed;
use super::in_place;
use super::incremental;
use super::job::BackupJob;
use super::packer::{MANIFEST, Paced, Packer, while_away};
use super::server::system_of;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::manifest::backups::{self, Archive, BACKUP_FORMAT, Backup, DAMAGED_FORMAT, Parent, Part, Tablespace};
use crate::manifest::system::archived_system;
use crate::restore::manifest::{self, Tally};
use crate::source::postgres::{BackupEvent, BackupOptions, BackupStream};
use crate::store::{Store, layout};
use crate::stream::{FORMAT_VERSION, Lsn, System};
use crate::tasks::backoff::Backoff;
use crate::tasks::{Task, Tasks};

/// How far a backup is, for a progress bar.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Bytes that came.
    pub(crate) bytes: AtomicU64,
    /// Bytes that the server expects to send.
    pub(crate) total: AtomicU64,
    /// Where it says what fails.
    tasks: Arc<Tasks>,
}

impl Done {
    /// Nothing yet, of a backup that reports what fails to these tasks.
    pub(crate) fn of(tasks: &Arc<Tasks>) -> Self {
        Self { tasks: Arc::clone(tasks), ..Self::default() }
    }
}

/// Takes a base backup. When it returns, the backup is committed.
///
/// # Errors
/// What the server or the store refuses; [`Kind::Config`] for a server of another system than the archive's.
pub(crate) async fn take(job: &BackupJob<'_>, done: &Done) -> Result<Backup> {
    let BackupJob { server, config, store, writer, .. } = *job;
    let mut replication = server.replication().await?;
    let system = system_of(&mut replication).await?;
    let before = archived_system(store).await?;
    if let Some(chain) = &before
        && let Some(archived) = chain.begin_facts().system().filter(|archived| archived.system_id != system.system_id)
    {
        let message = format!(
            "{} is system {}, and the archive holds system {}",
            replication.shown(),
            system.system_id,
            archived.system_id
        );
        return Err(Error::new(Kind::Config, message).hint("give each system an archive of its own (archive.url)"));
    }
    let started = crate::time::now();
    let name = format!("{}-{writer}", started.format("%Y%m%dT%H%M%SZ"));
    let label = format!("tidelog {name}");
    let options = BackupOptions { label: label.clone(), max_rate: config.base_backup.max_rate, links: false };
    // It cannot change while the server runs (pg_checksums).
    let checksums = replication.show("data_checksums").await? == "on";
    let (begun, parent) = incremental::begin(job, replication, (before.as_ref(), checksums), &options).await?;
    let mut stream = in_place::with_them(server, begun, &options).await?;
    done.total.store(stream.tablespaces().iter().map(|tablespace| tablespace.size).sum(), Ordering::Relaxed);
    let level = config.base_backup.zstd_level;
    let keep_damaged = config.base_backup.keep_damaged;
    let packer = Packer::new(store.clone(), system.system_id, name.clone(), level, Arc::clone(&done.tasks));
    let place = (system.system_id, name.clone());
    let named = Named { name, label, system, started, keep_damaged, checksums, parent };
    let taken = match bring(&mut stream, (packer, done), named).await {
        Ok(backup) => followed::by_the_archive(stream.finish()?, store, &backup).await.map(|()| backup),
        broken => broken,
    };
    if taken.is_err() {
        // What it has stored would stay for ever, and on a disk that is full leave no room for WAL either.
        let removed = backups::remove_parts(store, place.0, &place.1).await;
        if let Err(error) = removed {
            tracing::warn!(%error, name = place.1, "the parts of a base backup that was aborted cannot be removed");
        }
    }
    let backup = taken?;
    let waits = || Backoff::new(done.tasks.reporter(Task::BaseBackup, &*backup.name));
    let hash = while_away(waits(), "a base backup cannot be committed", || backups::commit(store, &backup)).await?;
    // Where nothing is archived yet, the first one that is entered takes it along.
    let timelines = [backup.timeline, backup.end_timeline].map(u32::cast_signed);
    let generations = timelines.map(|timeline| before.as_ref().map_or(0, |chain| chain.generation(timeline)));
    while_away(waits(), "a base backup cannot be entered", async || {
        let Some(mut chain) = archived_system(store).await? else { return Ok(()) };
        chain.enter(&backup, &hash, generations, (&format!("{writer}b"), crate::time::now())).await
    })
    .await?;
    Ok(backup)
}

/// What is known of a backup before it begins.
struct Named {
    name: String,
    label: String,
    system: System,
    started: DateTime<Utc>,
    /// Whether bad pages are taken, too.
    keep_damaged: bool,
    /// Whether pages have checksums.
    checksums: bool,
    parent: Option<Parent>,
}

/// Returns what the server found bad in what it has sent.
///
/// # Errors
/// [`Kind::Corrupt`] unless it is to be kept.
fn damage(stream: &BackupStream, keep: bool) -> Result<Vec<String>> {
    const SHOWN: usize = 5;
    let Some(refusal) = stream.refusal() else { return Ok(Vec::new()) };
    let warnings = stream.warnings();
    if keep {
        tracing::warn!(pages = warnings.len(), error = %refusal, "a base backup with bad pages is kept, and marked");
        return Ok([&[refusal.to_string()][..], warnings].concat());
    }
    let more = if warnings.len() > SHOWN { ", and more" } else { "" };
    let shown = warnings.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("; ");
    let message = format!("the server found bad pages and refuses the base backup: {refusal}: {shown}{more}");
    Err(Error::new(Kind::Corrupt, message).hint(
        "mend the files (restore an older base backup elsewhere and compare; REINDEX helps an index): base backups of before are kept \
         as retention says; postgres.base_backup.keep_damaged = true keeps such a backup, marked",
    ))
}

/// Brings a backup into the store, and looks whether all of it is there. It does not count yet.
async fn bring(stream: &mut BackupStream, (packer, done): (Packer, &Done), named: Named) -> Result<Backup> {
    let store = packer.store();
    let (mut archives, sent, (end, end_timeline), mut paced) = receive(stream, packer, done).await?;
    let damaged = damage(stream, named.keep_damaged)?;
    let manifest = archives.pop().filter(|last| last.name == MANIFEST).and_then(|last| last.parts.into_iter().next());
    let manifest =
        manifest.ok_or_else(|| Error::new(Kind::Internal, "the server sent a base backup without a manifest"))?;
    let backup = Backup {
        format: match (&named.parent, damaged.is_empty()) {
            (Some(_), _) => BACKUP_FORMAT,
            (None, false) => DAMAGED_FORMAT,
            (None, true) => FORMAT_VERSION,
        },
        name: named.name,
        label: named.label,
        system: named.system,
        timeline: stream.timeline(),
        start: stream.start_lsn(),
        end,
        end_timeline,
        started: named.started,
        finished: crate::time::now(),
        is_read_back: true,
        damaged,
        checksums: Some(named.checksums),
        parent: named.parent,
        archives,
        manifest,
    };
    let backoff = Backoff::new(done.tasks.reporter(Task::BaseBackup, &*backup.name));
    while_away(backoff, "a base backup cannot be read back", || is_stored(&store, &backup, &sent)).await?;
    paced.goes_on(crate::time::now())?;
    Ok(backup)
}

/// How many parts are asked for at a time.
const LOOKS: usize = 16;

/// Looks whether a backup is in the store as it was sent: each part with its size (its hash was taken on its way), the server's
/// manifest to the last byte, and in the archives every file that the manifest names, and no other.
async fn is_stored(store: &Store, backup: &Backup, sent: &Tally) -> Result<()> {
    let wrong = |what: String| {
        Error::new(Kind::Corrupt, format!("the base backup {} is not in the store as it was sent: {what}", backup.name))
            .hint("it counts for nothing, and is taken again; if it comes again, `tidelog check --connect` tries the store")
    };
    let parts: Vec<&Part> = backup.parts().collect();
    for some in parts.chunks(LOOKS) {
        let sizes = futures::future::try_join_all(some.iter().map(|part| size_of(store, part))).await?;
        let differs = some.iter().zip(sizes).find(|(part, size)| *size != Some(part.stored_bytes));
        if let Some((part, size)) = differs {
            let found = size.map_or("is missing".to_owned(), |size| format!("has {size} bytes"));
            return Err(wrong(format!("{} {found}, and {} were sent", part.object, part.stored_bytes)));
        }
    }
    let stored = match backup.manifest.read(store).await {
        Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Incomplete) => return Err(wrong(error.to_string())),
        stored => stored?,
    };
    let named = tokio::task::spawn_blocking(move || files_of(&stored));
    let named = named.await.or_err(Kind::Internal, || "reading a manifest was aborted".to_owned())?;
    let named = named.map_err(|error| wrong(error.to_string()))?;
    if named != *sent {
        return Err(wrong(format!("its archives hold {sent}, and the server's manifest names {named}")));
    }
    Ok(())
}

/// The archives, the manifest's last; the files in them; the end; when the last part was stored.
type Received = (Vec<Archive>, Tally, (Lsn, u32), Paced);

async fn size_of(store: &Store, part: &Part) -> Result<Option<u64>> {
    store.size(&layout::object(&part.object)?).await
}

/// Returns what the server's manifest names.
fn files_of(stored: &[u8]) -> Result<Tally> {
    let mut named = Tally::default();
    let text = zstd::Decoder::with_buffer(stored).or_err(Kind::Corrupt, || "the manifest is no zstd".to_owned())?;
    manifest::each_file(text, |path, expected| {
        named.add(path, expected.size);
        Ok(())
    })?;
    Ok(named)
}

/// Brings everything that the server sends into the store.
async fn receive(stream: &mut BackupStream, mut packer: Packer, done: &Done) -> Result<Received> {
    let mut contents = Contents::default();
    let places: Vec<_> = stream.tablespaces().iter().filter_map(|tablespace| tablespace.place.clone()).collect();
    loop {
        match stream.next().await? {
            BackupEvent::Data(bytes) => {
                done.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                contents.feed(bytes)?;
                let mut rest = bytes;
                while !rest.is_empty() {
                    rest = packer.fill(rest);
                    if packer.is_full() {
                        packer.compress().await?;
                    }
                }
            }
            BackupEvent::Archive { name, tablespace } => {
                let place = places.iter().find(|(oid, _)| Some(*oid) == tablespace);
                let tablespace = place.map(|(oid, path)| Tablespace { oid: *oid, path: path.clone() });
                contents.begin(tablespace.as_ref().map(|tablespace| tablespace.oid))?;
                packer.begin(name, tablespace).await?;
            }
            BackupEvent::Manifest => {
                contents.end()?;
                packer.begin(MANIFEST.to_owned(), None).await?;
            }
            BackupEvent::Progress { .. } => {}
            BackupEvent::End { end, timeline } => {
                let (mut archives, paced) = packer.finish().await?;
                let sent = contents.end()?;
                archives.iter_mut().zip(contents.indices()).for_each(|(archive, index)| index.note(archive));
                return Ok((archives, sent, (end, timeline), paced));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::sha256;

    fn part(key: &str, bytes: &[u8]) -> Part {
        let stored = zstd::bulk::compress(bytes, 1).expect("compressed");
        Part {
            object: key.to_owned(),
            bytes: bytes.len() as u64,
            stored_bytes: stored.len() as u64,
            sha256: sha256(&stored),
        }
    }

    fn manifest_of(files: &[(&str, u64)]) -> Vec<u8> {
        let files: Vec<String> =
            files.iter().map(|(path, size)| format!("{{ \"Path\": \"{path}\", \"Size\": {size} }}")).collect();
        let body = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{}\n],\n\"WAL-Ranges\": [],\n",
            files.join(",\n")
        );
        format!("{body}\"Manifest-Checksum\": \"{}\"}}\n", sha256(body.as_bytes())).into_bytes()
    }

    #[tokio::test]
    async fn what_is_not_stored_as_it_was_sent_is_no_backup() {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        let (tar, text) = (vec![3; 2048], manifest_of(&[("a", 3), ("b", 0)]));
        let [base, manifest] =
            ["base.tar.0000000.zst", "backup_manifest.zst"].map(|file| layout::backup_part(1, "b", file));
        let (base, manifest) = (part(base.as_ref(), &tar), part(manifest.as_ref(), &text));
        let put = |part: &Part, bytes: &[u8]| {
            let (key, stored) = (part.object.as_str().into(), zstd::bulk::compress(bytes, 1).expect("compressed"));
            let store = store.clone();
            async move { store.put(&key, stored.into()).await.expect("stored") }
        };
        let mut sent = Tally::default();
        [("b", 0), ("a", 3)].into_iter().for_each(|(path, size)| sent.add(path.as_bytes(), size));
        let archives = vec![Archive {
            name: "base.tar".into(),
            tablespace: None,
            parts: vec![base.clone()],
            places: Vec::new(),
            empty: Vec::new(),
        }];
        let time = DateTime::from_timestamp(1, 0).expect("a time");
        let backup = Backup {
            format: FORMAT_VERSION,
            name: "b".into(),
            label: String::new(),
            system: System { system_id: 1, wal_segment_size: 16 << 20, server_version: 15 },
            timeline: 1,
            start: Lsn(1),
            end: Lsn(2),
            end_timeline: 1,
            started: time,
            finished: time,
            is_read_back: true,
            damaged: Vec::new(),
            checksums: None,
            parent: None,
            archives,
            manifest: manifest.clone(),
        };
        let refused = async |backup: &Backup, sent: &Tally| {
            is_stored(&store, backup, sent).await.expect_err("it must not pass").to_string()
        };
        put(&manifest, &text).await;
        assert!(refused(&backup, &sent).await.contains("base.tar.0000000.zst is missing"));
        put(&base, b"cut off").await;
        assert!(refused(&backup, &sent).await.contains("base.tar.0000000.zst has"));
        put(&base, &tar).await;
        is_stored(&store, &backup, &sent).await.expect("it is all there");
        let mut more = sent.clone();
        more.add(b"c", 0);
        assert!(refused(&backup, &more).await.contains("3 files"));
        let longer = part(&manifest.object, &text[..text.len() - 9]);
        put(&longer, &text[..text.len() - 9]).await;
        let cut = Backup { manifest: longer, ..backup.clone() };
        assert!(refused(&cut, &sent).await.contains("cannot be read"));
    }
}

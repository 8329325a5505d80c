//! Files of this machine, uploaded in parts.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutPayload};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

use super::Store;
use super::meter::Operation;
use crate::error::{Error, Kind, Result, ResultExt};

/// The bytes of one part of an upload. S3 wants 5 MiB or more, and 10,000 parts at most, which makes 80 GiB.
pub(super) const PART_BYTES: u64 = 8 * 1024 * 1024;

/// How many parts of one upload are on their way at a time, while one more is read: 24 MiB an upload at the most.
const PARTS_IN_FLIGHT: usize = 2;

impl Store {
    /// Writes the bytes of a local file as an object, over an older one if there is one. It is durable when the call
    /// returns, and nobody sees a part of it before.
    ///
    /// Memory is bounded: a few parts of 8 MiB, whatever the file's size. The bytes are hashed on their way: what is stored
    /// is what was written, not what a disk made of it.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if the file's sha256 is not this one; then nothing is stored. Else the disk's and the store's.
    pub async fn upload(&self, key: &Path, file: &std::path::Path, sha256: &str) -> Result<()> {
        let upload = async {
            self.is_there().await?;
            step!(key, "put");
            self.upload_parts(key, file, sha256).await?;
            step!(key, "answer");
            self.is_there().await
        };
        self.meter.time(Operation::Upload, upload).await
    }

    async fn upload_parts(&self, key: &Path, file: &std::path::Path, sha256: &str) -> Result<()> {
        let shown = file.display();
        let opened = tokio::fs::File::open(file).await.map_err(|e| Error::io(e, format!("cannot open {shown}")))?;
        let facts = opened.metadata().await.map_err(|e| Error::io(e, format!("cannot look at {shown}")))?;
        let mut source = Source { file: Arc::new(opened.into_std().await), hash: Sha256::new() };
        let size = facts.len();
        if size <= PART_BYTES {
            let bytes = source.read(0, size).await.map_err(|e| e.context(format!("cannot read {shown}")))?;
            source.is_what_was_written(file, sha256)?;
            let put = self.objects.put(key, PutPayload::from_bytes(bytes)).await;
            return put.map(|_| ()).map_err(|error| self.fault(error, "write", key));
        }
        let mut upload = self.objects.put_multipart(key).await.map_err(|e| self.fault(e, "upload", key))?;
        let mut parts = JoinSet::new();
        let mut sent = Ok(());
        for start in (0..size).step_by(PART_BYTES as usize) {
            if parts.len() == PARTS_IN_FLIGHT {
                sent = self.part_sent(&mut parts, key).await;
            }
            if sent.is_err() {
                break;
            }
            match source.read(start, PART_BYTES.min(size - start)).await {
                Ok(bytes) => drop(parts.spawn(upload.put_part(PutPayload::from_bytes(bytes)))),
                Err(error) => sent = Err(error.context(format!("cannot read {shown}"))),
            }
        }
        while sent.is_ok() && !parts.is_empty() {
            sent = self.part_sent(&mut parts, key).await;
        }
        if sent.is_ok() {
            sent = source.is_what_was_written(file, sha256);
        }
        if sent.is_ok() {
            sent = upload.complete().await.map(|_| ()).map_err(|error| self.fault(error, "finish the upload of", key));
            if sent.is_ok() {
                return self.is_whole(key, size).await;
            }
        }
        if sent.is_err() {
            parts.shutdown().await;
            if let Err(error) = upload.abort().await {
                // The parts are invisible; whoever aborts unfinished uploads removes them later.
                tracing::debug!(%key, %error, "could not remove the parts of an unfinished upload");
            }
        }
        sent
    }

    /// Whether a store has put all parts of an upload together, which says that it has.
    async fn is_whole(&self, key: &Path, size: u64) -> Result<()> {
        let found = self.objects.head(key).await.map_err(|error| self.fault(error, "look at", key))?.size;
        if found == size {
            return Ok(());
        }
        let message = format!("the store says that {key} is uploaded, and has {found} of its {size} bytes");
        Err(Error::new(Kind::Unavailable, message).hint(
            "the store contradicts itself, and the object is sent again; look for a proxy between tidelog and the store",
        ))
    }

    /// Waits for one of the parts that are on their way.
    async fn part_sent(&self, parts: &mut JoinSet<object_store::Result<()>>, key: &Path) -> Result<()> {
        match parts.join_next().await {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(self.fault(error, "upload a part of", key)),
            Some(Err(error)) => Err(error).or_err(Kind::Internal, || format!("the upload of {key} was aborted")),
        }
    }
}

/// A local file that is read from its beginning to its end, and the hash of what was read.
pub(super) struct Source {
    pub(super) file: Arc<std::fs::File>,
    pub(super) hash: Sha256,
}

impl Source {
    /// Reads the `length` bytes from `start`, where the last call ended.
    pub(super) async fn read(&mut self, start: u64, length: u64) -> Result<Bytes> {
        let (file, mut hash) = (Arc::clone(&self.file), self.hash.clone());
        let read = move || {
            let mut bytes = vec![0; length as usize];
            file.read_exact_at(&mut bytes, start).map(|()| {
                hash.update(&bytes);
                (Bytes::from(bytes), hash)
            })
        };
        let joined = tokio::task::spawn_blocking(read).await.or_err(Kind::Internal, || "a read was aborted".into())?;
        let (bytes, hash) = joined.map_err(|error| Error::io(error, format!("{length} bytes from {start}")))?;
        self.hash = hash;
        Ok(bytes)
    }

    pub(super) fn is_what_was_written(&self, file: &std::path::Path, sha256: &str) -> Result<()> {
        let found = format!("{:x}", self.hash.clone().finalize());
        if found == sha256 {
            return Ok(());
        }
        let message = format!("{} is damaged: its sha256 is {found}, and {sha256} was written", file.display());
        Err(Error::new(Kind::Corrupt, message).hint(
            "it is not archived. Look after the disk of archive.spool_dir, and restart tidelog: what is not in the archive \
             is read from the source again",
        ))
    }
}

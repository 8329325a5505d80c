//! Whether a store can hold an archive: conditional creates, and answers with the newest state.

use bytes::Bytes;
use object_store::path::Path;

use super::{Created, Store};
use crate::error::{Error, Kind, Result};

impl Store {
    /// Tries what tidelog needs of a store: that objects can be created, read and deleted, and that the second create
    /// of one key is refused. Leaves nothing behind.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a store without put-if-absent, else what the store answered.
    pub async fn probe(&self) -> Result<()> {
        let mut name = [0; 8];
        getrandom::fill(&mut name).map_err(|error| {
            Error::new(Kind::Internal, "cannot get random bytes for a name").source(error.to_string())
        })?;
        let key = Path::from(format!("tidelog-probe-{:016x}", u64::from_be_bytes(name)));
        let tried = self.try_condition(&key).await;
        let removed = self.delete(&key).await;
        tried.and(removed)?;
        if self.get(&key).await?.is_some() {
            let message = format!("the store at {} keeps an object that was deleted", self.url);
            return Err(Error::new(Kind::Unsupported, message)
                .hint("the archive needs a store that answers with the newest state (strong consistency)"));
        }
        Ok(())
    }

    async fn try_condition(&self, key: &Path) -> Result<()> {
        let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
        self.create(key, first.clone()).await?;
        match self.create(key, second).await? {
            Created::Other(found) if found == first => Ok(()),
            Created::Yes | Created::Same => {
                let message = format!("the store at {} does not support conditional puts", self.url);
                let error = Error::new(Kind::Unsupported, message);
                Err(error.source("the second create of one key was not refused").hint(
                    "two archivers would overwrite each other's checkpoints: use a store that honours `If-None-Match: \
                     *` (Amazon S3, MinIO, Ceph, R2 in their current versions do)",
                ))
            }
            Created::Other(_) => {
                let message = format!("the store at {} does not give back what was written", self.url);
                Err(Error::new(Kind::Corrupt, message)
                    .hint("look for a proxy or a cache between tidelog and the store, and use the store directly"))
            }
        }
    }
}

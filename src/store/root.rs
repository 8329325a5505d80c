//! The directory of an archive on a disk, and whether it is still there.
//!
//! The local backend makes what is missing of an object's path. So a directory that was moved, or whose volume is not
//! mounted any more, would begin again at the same place, and checkpoints would be written of which the archive knows
//! nothing when it is back. What is read there would be missing, too, and look like the end of a chain.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use tokio::runtime::Handle;

use crate::error::{Error, Kind, Result};

/// The directory as it was when it was opened.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Root {
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let facts = std::fs::metadata(&path);
        let facts = facts.map_err(|error| Error::io(error, format!("cannot look at {}", path.display())))?;
        Ok(Self { identity: (facts.dev(), facts.ino()), path })
    }

    /// # Errors
    /// [`Kind::Unavailable`] if another directory, or none, is there now.
    pub(super) async fn is_there(&self) -> Result<()> {
        // A network's file system may hang: not on a thread of the runtime, where there is one.
        let looked = match Handle::try_current() {
            Ok(_) => tokio::fs::metadata(&self.path).await,
            Err(_) => std::fs::metadata(&self.path),
        };
        let why = match looked {
            Ok(facts) if (facts.dev(), facts.ino()) == self.identity => return Ok(()),
            Ok(_) => "another directory is in its place".to_owned(),
            Err(error) => error.to_string(),
        };
        let message = format!("the archive's directory {} is not the one that was opened", self.path.display());
        Err(Error::new(Kind::Unavailable, message).source(why).hint(
            "was it moved, or its volume unmounted? bring it back; if what is there now is the archive, restart tidelog",
        ))
    }
}

//! A gate in the log of a scratch standby: what comes behind it is not there yet.
//!
//! ```text
//!   tidelog.gate     {"until": "0/5000000", "harmless": [[5, 2619], …]}      in the standby's data directory
//!      └─► wal-fetch ─► whole files before it, the one in which it stands with zeros from it on
//! ```
//!
//! A logical slot is made while the standby waits at a gate, and decodes from there on. A reader keeps the file open that it reads
//! (xlogreader.c), so no file is given of which more would come with a later one: a gate within a file is the last. That file is
//! given once, for Postgres would replace its own with each further one, and whoever opens it in between finds none ("requested WAL
//! segment … has already been removed").

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::segment::wal::Relations;
use crate::stream::Lsn;

/// Its name in the data directory.
pub const GATE: &str = "tidelog.gate";

/// Up to where a standby gets the log, and what of it is made harmless to its slots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// The position.
    pub until: Lsn,
    /// Catalogs the clean-ups of which leave slots alone.
    pub harmless: Relations,
}

impl Gate {
    /// Reads it.
    ///
    /// # Errors
    /// A file that is not there, or is none.
    pub fn read(file: &Path) -> Result<Self> {
        let text =
            fs::read(file).map_err(|source| Error::io(source, format!("cannot read the gate {}", file.display())))?;
        serde_json::from_slice(&text).or_err(Kind::Corrupt, || format!("{} is no gate", file.display()))
    }

    /// Writes it into a data directory, as a whole: the standby may ask at any moment, perhaps as another user.
    ///
    /// # Errors
    /// A disk that is full, or cannot be written.
    pub fn write(&self, data: &Path) -> Result<()> {
        let (file, new) = (data.join(GATE), data.join("tidelog.gate.new"));
        let text = serde_json::to_vec(self).or_err(Kind::Internal, || "cannot write a gate".to_owned())?;
        let written = File::create(&new).and_then(|mut to| {
            to.set_permissions(fs::Permissions::from_mode(0o644))?;
            to.write_all(&text)?;
            to.sync_all()?;
            fs::rename(&new, &file)
        });
        written.map_err(|source| Error::io(source, format!("cannot write {}", file.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_read_as_it_was_written_and_nothing_else_is_one() {
        let folder = tempfile::tempdir().expect("a directory");
        let gate = Gate { until: Lsn(0x1_0000_0008), harmless: [(5, 2619)].into() };
        gate.write(folder.path()).expect("written");
        assert_eq!(Gate::read(&folder.path().join(GATE)).expect("read"), gate);
        fs::write(folder.path().join(GATE), "{").expect("written");
        assert_eq!(Gate::read(&folder.path().join(GATE)).expect_err("none").kind(), Kind::Corrupt);
        assert!(Gate::read(&folder.path().join("other")).is_err());
    }
}

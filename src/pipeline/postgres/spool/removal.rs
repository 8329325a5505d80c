//! What is taken out of the spool before it is archived: what is not safe, what is no WAL, what is of another server.

use std::collections::BTreeMap;
use std::fs::File;

use super::WalSpool;
use super::extent::{Extent, remove, sync_directory};
use crate::error::Result;
use crate::stream::Lsn;

/// Which generation of each timeline the files are of.
const GENERATIONS: &str = "lives";

impl WalSpool {
    /// Forgets what was written and is not safe: after a failed sync nobody knows what the disk has.
    pub(in crate::pipeline::postgres) fn cut_to_safe(&self) -> Result<()> {
        let mut inner = self.lock();
        inner.open = None;
        if let Some(last) = inner.files.back_mut().filter(|last| last.safe < last.end) {
            let file = File::options().write(true).open(self.directory.join(last.name()));
            file.and_then(|file| file.set_len(last.safe - last.start)).map_err(|source| self.failed(source))?;
            last.end = last.safe;
        }
        Ok(())
    }

    /// Forgets everything from `end` of the timeline on: it is no WAL, and has to be received again.
    pub(in crate::pipeline::postgres) fn cut(&self, timeline: u32, end: Lsn) -> Result<()> {
        self.forget();
        let mut inner = self.lock();
        inner.open = None;
        while let Some(last) = inner.files.back().copied() {
            if (last.timeline, last.end) <= (timeline, end) {
                break;
            }
            let path = self.directory.join(last.name());
            if (last.timeline, last.start) < (timeline, end) && last.timeline == timeline {
                let cut = File::options().write(true).open(&path).and_then(|file| file.set_len(end - last.start));
                cut.map_err(|source| self.failed(source))?;
                inner.files.pop_back();
                inner.files.push_back(Extent { end, safe: end, ..last });
                break;
            }
            remove(&path);
            remove(&path.with_extension("gap"));
            inner.files.pop_back();
        }
        Ok(())
    }

    /// Forgets everything: the archive has come further.
    pub(in crate::pipeline::postgres) fn clear(&self) {
        self.forget();
        let mut inner = self.lock();
        inner.open = None;
        for extent in inner.files.drain(..) {
            let path = self.directory.join(extent.name());
            remove(&path);
            remove(&path.with_extension("gap"));
        }
    }

    /// Puts aside what it holds of timelines of which another generation is archived than when it came: it is of another server, and not
    /// ours to delete. `generations` is remembered beside the files, for the next process.
    ///
    /// # Errors
    /// Those of the file system.
    pub(in crate::pipeline::postgres) fn follow(&self, generations: &BTreeMap<u32, u32>) -> Result<()> {
        let path = self.directory.join(GENERATIONS);
        let failed = |source| self.failed(source);
        let known: BTreeMap<u32, u32> = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(failed(error)),
        };
        if known == *generations {
            return Ok(());
        }
        self.forget();
        let mut inner = self.lock();
        inner.open = None;
        let is_gone = |file: &Extent| known.get(&file.timeline) != generations.get(&file.timeline);
        for extent in inner.files.iter().filter(|file| is_gone(file)) {
            let path = self.directory.join(extent.name());
            tracing::warn!(file = %path.display(), "a spool file is of a timeline that was abandoned, and is put aside");
            std::fs::rename(&path, path.with_extension("abandoned")).map_err(failed)?;
            remove(&path.with_extension("gap"));
        }
        inner.files.retain(|file| !is_gone(file));
        inner.archived.retain(|timeline, _| known.get(timeline) == generations.get(timeline));
        let text = serde_json::to_vec(generations).map_err(|error| failed(error.into()))?;
        let new = path.with_extension("tmp");
        std::fs::write(&new, text).and_then(|()| File::open(&new)?.sync_all()).map_err(failed)?;
        std::fs::rename(&new, &path).and_then(|()| sync_directory(&self.directory)).map_err(failed)
    }
}

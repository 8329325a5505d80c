//! The files of the spool: their names, and those that an earlier process left.

use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;

use crate::segment::wal::MOST_BYTES;
use crate::stream::Lsn;

/// A file of zeros that is ready to become the next one.
pub(super) const SPARE: &str = "spare";
/// A file of the spool, or a block in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pipeline::postgres) struct Extent {
    pub(in crate::pipeline::postgres) timeline: u32,
    pub(in crate::pipeline::postgres) start: Lsn,
    /// Up to where it was written.
    pub(in crate::pipeline::postgres) end: Lsn,
    /// Up to where it is on the disk, or as good as that: the server keeps what is in memory.
    pub(in crate::pipeline::postgres) safe: Lsn,
    /// Whether the server has nothing between the file before and this one.
    pub(in crate::pipeline::postgres) after_gap: bool,
}

impl Extent {
    pub(super) fn name(&self) -> String {
        format!("{:08X}-{:016X}.wal", self.timeline, self.start.0)
    }

    pub(super) fn key(&self) -> (u32, Lsn) {
        (self.timeline, self.start)
    }

    /// Returns where the file ends at the latest.
    pub(super) fn full(&self) -> Lsn {
        Lsn((self.start.0 + 1).next_multiple_of(MOST_BYTES))
    }
}

pub(super) fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(file = %path.display(), %error, "cannot remove a spool file");
    }
}

/// The files that an earlier process left. One that does not follow the others is put aside: it says nothing that can be
/// used, and is not ours to delete.
pub(super) fn left_over(directory: &Path) -> std::io::Result<VecDeque<Extent>> {
    remove(&directory.join(SPARE));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let parsed = name.strip_suffix(".wal").and_then(|name| name.split_once('-')).and_then(|(timeline, start)| {
            Some((u32::from_str_radix(timeline, 16).ok()?, Lsn(u64::from_str_radix(start, 16).ok()?)))
        });
        let Some((timeline, start)) = parsed else { continue };
        let file = File::open(&path)?;
        file.sync_data()?;
        let end = start + file.metadata()?.len();
        found.push(Extent { timeline, start, end, safe: end, after_gap: path.with_extension("gap").exists() });
    }
    found.sort_by_key(|extent| (extent.timeline, extent.start));
    let mut kept: VecDeque<Extent> = VecDeque::new();
    for extent in found {
        let follows = kept.back().is_none_or(|last: &Extent| {
            last.timeline < extent.timeline || last.end == extent.start || (extent.after_gap && last.end < extent.start)
        });
        if follows {
            kept.push_back(extent);
        } else {
            let path = directory.join(extent.name());
            tracing::error!(file = %path.display(), "a spool file does not follow those before it, and is put aside");
            std::fs::rename(&path, path.with_extension("stray"))?;
        }
    }
    if let Some(last) = kept.back_mut().filter(|last| last.end - last.start == MOST_BYTES) {
        let bytes = std::fs::read(directory.join(last.name()))?;
        // Records, and what a server sends, end at multiples of 8: a commit must not lose the zeros at its end.
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| (at + 1).next_multiple_of(8));
        (last.end, last.safe) = (last.start + used as u64, last.start + used as u64);
    }
    Ok(kept)
}

pub(super) fn sync_directory(directory: &Path) -> std::io::Result<()> {
    File::open(directory)?.sync_all()
}

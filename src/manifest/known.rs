//! The base backups of a system as a process knows them that looks again and again: each is read once, and of each only what a
//! path needs is kept, however many parts it has. Whether it is still there, and as long as it was, is asked each time.

use std::collections::BTreeMap;

use super::found::{self, Unreadable};
use super::path::Taken;
use super::{Chain, backups};
use crate::error::{Kind, Result};
use crate::store::{Store, layout};
use crate::stream::{CountedBackups, StreamId};

/// What is known.
#[derive(Debug, Default)]
pub struct Known {
    /// By name: the size of `backup.json`, the hash that the chain has of it, and what it says; none if it cannot be read.
    /// [`found::MOST_BACKUPS`] of them at the most.
    read: BTreeMap<String, (Seen, Option<Taken>)>,
    /// How many older ones there were beyond that.
    beyond: u64,
}

/// Of what is known that it need not be read again.
type Seen = (u64, Option<String>);

impl Known {
    /// Looks again. `entered` is what the chain says of backups.
    ///
    /// # Errors
    /// Only those of a store that does not answer; what was known before stays known.
    pub async fn look(&mut self, store: &Store, system_id: u64, entered: Option<&CountedBackups>) -> Result<()> {
        let (mut now, mut unreadable) = (BTreeMap::new(), Vec::new());
        let found::Listed { names, beyond, .. } = found::listed(store, system_id, entered).await?;
        for name in names {
            let counted = entered.and_then(|entered| entered.get(&name));
            let size = match store.size(&layout::backup_commit(system_id, &name)).await {
                // On a disk a pipe, say: reading it tells why it cannot be.
                Err(error) if error.kind() == Kind::Corrupt => 0,
                size => match size? {
                    Some(size) => size,
                    None => continue,
                },
            };
            let seen = (size, counted.map(|counted| counted.sha256.clone()));
            let known = self.read.get(&name).filter(|(known, taken)| *known == seen && taken.is_some());
            let found = match known {
                Some((_, taken)) => taken.clone(),
                None => match backups::read(store, system_id, &name, seen.1.as_deref()).await {
                    Ok(backup) => backup.as_ref().map(Taken::of),
                    Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Unsupported) => {
                        if !self.read.contains_key(&name) {
                            let parent = counted.and_then(|counted| counted.parent.clone());
                            unreadable.push(Unreadable::of(system_id, &name, parent, &error));
                        }
                        None
                    }
                    Err(error) => return Err(error),
                },
            };
            now.insert(name, (seen, found));
        }
        self.read = now;
        // A number that only shrinks was told.
        found::tell(unreadable.iter(), 0, if beyond > self.beyond { beyond } else { 0 });
        self.beyond = beyond;
        Ok(())
    }

    /// Reads each base backup of the system that `chain` archives, one after the other; gives those that can be read.
    ///
    /// # Errors
    /// Only those of a store that does not answer.
    pub async fn read(store: &Store, chain: &Chain) -> Result<Vec<Taken>> {
        let StreamId::Postgres { system_id } = *chain.stream() else { return Ok(Vec::new()) };
        let mut known = Self::default();
        known.look(store, system_id, chain.backups()).await?;
        Ok(known.taken())
    }

    /// Those that can be read, by the time at which they were finished.
    pub fn taken(&self) -> Vec<Taken> {
        let mut taken: Vec<Taken> = self.read.values().filter_map(|(_, taken)| taken.clone()).collect();
        taken.sort_by_key(|taken| (taken.finished, taken.start));
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chrono::DateTime;

    use super::*;
    use crate::manifest::backups::{Archive, Backup, Part, Place};
    use crate::stream::{FORMAT_VERSION, Lsn, System};

    /// Of a database of 3 TB.
    fn large(name: &str) -> Backup {
        let part = |n: usize| Part {
            object: layout::backup_part(7, name, &format!("base.tar.{n:07}.zst")).to_string(),
            bytes: 24 << 20,
            stored_bytes: 9 << 20,
            sha256: "0".repeat(64),
        };
        let time = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        Backup {
            format: FORMAT_VERSION,
            name: name.to_owned(),
            label: String::new(),
            system: System { system_id: 7, wal_segment_size: 16 << 20, server_version: 15 },
            timeline: 1,
            start: Lsn(10),
            end: Lsn(20),
            end_timeline: 1,
            started: time,
            finished: time,
            is_read_back: true,
            damaged: Vec::new(),
            checksums: None,
            parent: None,
            archives: vec![Archive {
                name: "base.tar".into(),
                tablespace: None,
                parts: (0..125_000).map(part).collect(),
                places: (0..125_000).map(|at| Place { at, files: at }).collect(),
                empty: Vec::new(),
            }],
            manifest: part(0),
        }
    }

    #[tokio::test]
    async fn a_backup_of_three_terabytes_is_read_once_and_costs_nothing_to_know() {
        let store = Store::over(Arc::new(object_store::memory::InMemory::new()), "memory:///");
        for name in ["a", "b"] {
            backups::commit(&store, &large(name)).await.expect("committed");
        }
        let mut known = Known::default();
        known.look(&store, 7, None).await.expect("two");
        assert_eq!(known.taken(), [Taken::of(&large("a")), Taken::of(&large("b"))]);
        let kept: usize = known.read.keys().map(|name| name.len() + size_of::<Taken>() + 100).sum();
        assert!(kept < 1_000, "{kept} bytes");
        // Bytes of the same number that nobody can read show that it is not read again.
        let commit = layout::backup_commit(7, "a");
        let size = store.size(&commit).await.expect("a size").expect("it is there");
        store.put(&commit, vec![b'x'; size as usize].into()).await.expect("stored");
        known.look(&store, 7, None).await.expect("two");
        assert_eq!(known.taken().len(), 2);
        store.put(&commit, vec![b'x'; 9].into()).await.expect("stored");
        known.look(&store, 7, None).await.expect("one");
        assert_eq!(known.taken(), [Taken::of(&large("b"))], "of another length: it is read, and cannot be");
        store.delete(&layout::backup_commit(7, "b")).await.expect("deleted");
        known.look(&store, 7, None).await.expect("none");
        assert_eq!(known.taken(), []);
        backups::commit(&store, &large("c")).await.expect("committed");
        known.look(&store, 7, None).await.expect("one");
        assert_eq!(known.taken(), [Taken::of(&large("c"))]);
    }
}

//! How far the repair of a slot has come, so that the same command goes on after it was killed.
//!
//! It lies beside the scratch directory (`<into>.recover/journal.json`) and goes with it at the end: what it holds then is true no more
//! when a slot is lost the next time.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::lost::{Anchor, Missed};
use super::net::end::AtEnd;
use super::position::Position;
use super::way::Way;
use crate::error::{Error, Kind, Result};
use crate::manifest::writer_id;
use crate::recover::fold::Table;
use crate::recover::journal::{Done, Folder};
use crate::recover::marker::Ends;
use crate::stream::Lsn;

const FORMAT: u32 = 1;

/// A marker that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What is looked for.
    pub token: String,
    /// Its transaction.
    pub xid: u32,
}

/// What is done to a connector's config while it reads from the scratch standby: the keys, with what they were before, if they were there.
pub type Changed = BTreeMap<String, Option<String>>;

/// All that is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    format: u32,
    /// A name that no other repair has.
    pub id: String,
    /// The connector.
    pub connector: String,
    /// Where everything is.
    pub targets: String,
    /// The way that was chosen.
    #[serde(default = "standby")]
    pub way: Way,
    /// How far net changes are.
    #[serde(default)]
    pub net: Net,
    /// The steps that are done.
    pub steps: BTreeMap<String, Done>,
    /// From where the standby is made.
    pub anchor: Anchor,
    /// The system and the timeline of the primary.
    pub system_id: u64,
    /// See above.
    pub timeline: u32,
    /// Where the connector stood when it was stopped.
    pub position: Option<Position>,
    /// A slot is being made on the primary: one of that name that is sound is ours.
    pub makes_slot: bool,
    /// Where it begins.
    pub slot: Option<Lsn>,
    /// Where the topics ended in which markers are looked for.
    pub ends: Option<Ends>,
    /// How many markers were begun: each has a token of its own.
    pub marks: u32,
    /// The marker behind the slot.
    pub mark: Option<Mark>,
    /// Where its commit ends, and when that was, in microseconds since 1970: up to here the standby gets the log.
    pub gate: Option<(Lsn, i64)>,
    /// What was missed, once it is known.
    pub missed: Option<Missed>,
    /// A data directory is being made.
    pub restores: bool,
    /// The settings that the log needs at the least.
    pub limits: Vec<(String, u32)>,
    /// Where the standby's slot decodes from, once it is made.
    pub decodes_from: Option<Lsn>,
    /// What is changed of the config.
    pub changed: Option<Changed>,
    /// The connector was told to read from the standby.
    #[serde(default)]
    pub reads: bool,
    /// How often it was begun again meanwhile.
    #[serde(default)]
    pub restarts: u32,
    /// All was read from the standby, and the connector is told where to go on: from here on it may run at the primary.
    pub has_offset: bool,
    /// The marker that it has to bring from the primary.
    pub after: Option<Mark>,
}

/// What is known of net changes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Net {
    /// The tables at the marker, once they are read.
    pub tables: Vec<AtEnd>,
    /// The same tables as they are compared with their topics.
    pub counted: Vec<Table>,
    /// At the offset no transaction before this one was still running.
    pub from: Option<u32>,
    /// The offset that the connector had, as Connect has it.
    pub offset: Option<Value>,
    /// The connector is told to begin at the slot of the scratch server.
    pub is_told: bool,
    /// The transaction of the marker there, and a position behind it.
    pub mark: Option<(u32, Lsn)>,
    /// How many rows were deleted, updated and inserted.
    pub counts: Option<(u64, u64, u64)>,
    /// Rows that were sent, are at neither end, and could not be made.
    #[serde(default)]
    pub unmade: Vec<String>,
    /// What could not be published.
    pub differences: Vec<String>,
}

fn standby() -> Way {
    Way::Standby
}

impl Journal {
    /// That of a repair that begins.
    ///
    /// # Errors
    /// Where the system gives no random bytes.
    pub fn begin(
        (connector, targets): (&str, &str),
        (system_id, timeline): (u64, u32),
        (way, anchor): (Way, Anchor),
    ) -> Result<Self> {
        Ok(Self {
            format: FORMAT,
            id: format!("slot-{}", writer_id()?),
            connector: connector.to_owned(),
            targets: targets.to_owned(),
            way,
            net: Net::default(),
            steps: BTreeMap::new(),
            anchor,
            system_id,
            timeline,
            position: None,
            makes_slot: false,
            slot: None,
            ends: None,
            marks: 0,
            mark: None,
            gate: None,
            missed: None,
            restores: false,
            limits: Vec::new(),
            decodes_from: None,
            changed: None,
            reads: false,
            restarts: 0,
            has_offset: false,
            after: None,
        })
    }

    /// Reads the one in a folder, if there is one.
    ///
    /// # Errors
    /// One of another connector, or with other targets.
    pub fn look(folder: &Path, connector: &str, targets: &str) -> Result<Option<Self>> {
        let Some(journal) = Folder::read::<Self>(folder)? else { return Ok(None) };
        let how = match (journal.format == FORMAT, journal.connector == connector, journal.targets == targets) {
            (true, true, true) => return Ok(Some(journal)),
            (false, ..) => format!("by another version, whose format is {}", journal.format),
            (_, false, _) => format!("for the connector {}", journal.connector),
            (_, _, false) => format!("with other targets in its pipeline file: {}", journal.targets),
        };
        let message = format!("the repair in {} was begun {how}", folder.display());
        Err(Error::new(Kind::Config, message).hint("repeat the command that it was begun with: it goes on to its end"))
    }

    /// Refuses a primary that is another one than the repair was begun with: its slot is not there, and its log goes another way.
    ///
    /// # Errors
    /// [`Kind::Fenced`] with the way out.
    pub fn is_of(&self, (system_id, timeline): (u64, u32), folder: &Path) -> Result<()> {
        if (self.system_id, self.timeline) == (system_id, timeline) {
            return Ok(());
        }
        let message = format!(
            "the repair was begun on timeline {} of the system {}, and the primary is on timeline {timeline} of {system_id}",
            self.timeline, self.system_id
        );
        Err(Error::new(Kind::Fenced, message).hint(format!(
            "after a failover the new slot is lost, too: stop the connector, give it back what stands under \"changed\" in {}, and the offset under \
             \"net\", if there is one; remove that folder and the scratch directory, and run this again",
            folder.join("journal.json").display()
        )))
    }

    /// A token for the next marker, which has to be written down before it is used.
    pub fn next_token(&mut self) -> String {
        self.marks += 1;
        format!("{}-{}", self.id, self.marks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_read_back_by_the_same_command_alone_and_no_token_comes_twice() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("scratch.recover");
        assert!(Journal::look(&path, "shop", "p").expect("none").is_none());
        let anchor =
            Anchor { backup: "b".into(), backup_end: Lsn(1), gate: Lsn(2), decodes_from: Lsn(3), least_xid: 4 };
        let mut journal = Journal::begin(("shop", "p"), (u64::MAX, 1), (Way::Net, anchor)).expect("a journal");
        assert_ne!(journal.next_token(), journal.next_token());
        journal.changed = Some([("a".to_owned(), None), ("b".to_owned(), Some("c".to_owned()))].into());
        Folder::take(&path).expect("a folder").save(&journal).expect("written");
        let read = Journal::look(&path, "shop", "p").expect("read").expect("one");
        assert_eq!(read.marks, 2);
        assert!(read.is_of((u64::MAX, 1), &path).is_ok());
        for other in [(u64::MAX, 2), (7, 1)] {
            let error = read.is_of(other, &path).expect_err("another primary");
            assert!(error.hint_text().unwrap_or_default().contains("journal.json"), "{error}");
        }
        for (connector, targets) in [("other", "p"), ("shop", "q")] {
            assert_eq!(Journal::look(&path, connector, targets).expect_err("another").exit_code(), 2);
        }
    }
}

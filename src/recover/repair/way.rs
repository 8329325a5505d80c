//! Which way brings back what was missed, and why: only one that is certain is taken.

use serde::{Deserialize, Serialize};

use super::lost::{Anchor, Conflicts, Missed};
use super::primary::SlotState;
use crate::error::{Error, Kind};

/// The first version whose standbys decode.
pub(in crate::recover) const DECODES: u32 = 160_000;

/// How what was missed comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Nothing was missed.
    Nothing,
    /// The connector reads it from a scratch standby.
    Standby,
    /// The tables are compared at both ends of it, and the connector reads what differs.
    Net,
    /// There is none that is certain.
    None,
}

/// From where what was missed can be brought back.
#[derive(Debug, Clone)]
pub(super) struct Begins {
    /// From where a standby decodes it; none where none does.
    pub(super) anchor: Option<Anchor>,
    /// The base backup from which the tables come to the offset, or why there is none.
    pub(super) backup: Result<String, String>,
}

/// What is left where no way is certain.
const WITH_A_SNAPSHOT: &str = "let the connector begin with a snapshot: what was deleted meanwhile stays in the topics";

/// A way, and why.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The way.
    pub way: Way,
    /// Why.
    pub why: String,
    /// What to do where there is none.
    pub hint: &'static str,
}

impl Chosen {
    /// That of a repair that was begun.
    pub(super) fn going_on(way: Way) -> Self {
        let why = "it was begun, and goes on".to_owned();
        Self { way, why, hint: "" }
    }

    /// The same for a connector with this plugin: what others capture than pgoutput no catalog tells, and the rest would be missed.
    pub(super) fn of_plugin(self, plugin: &str) -> Self {
        if self.way != Way::Net || plugin == "pgoutput" {
            return self;
        }
        let why =
            format!("{}, and its plugin is {plugin}: which tables it captures is known of pgoutput alone", self.why);
        Self { way: Way::None, why, hint: WITH_A_SNAPSHOT }
    }

    /// That there is none, as an error.
    pub fn refusal(&self) -> Option<Error> {
        let error = || Error::new(Kind::Unsupported, format!("no way is certain: {}", self.why)).hint(self.hint);
        (self.way == Way::None).then(error)
    }
}

/// Chooses one for a primary of a version.
pub(super) fn choose(
    version: u32,
    slot: &SlotState,
    (missed, elsewhere): (&Missed, Option<&str>),
    begins: &Begins,
    conflicts: &Conflicts,
) -> Chosen {
    let none = |why: String| Chosen { way: Way::None, why, hint: WITH_A_SNAPSHOT };
    if *slot == SlotState::Sound {
        let why = "its slot is there, with all that it wants: it goes on by itself".to_owned();
        return Chosen { way: Way::Nothing, why, hint: "" };
    }
    if let Some(why) = elsewhere {
        return none(why.to_owned());
    }
    if let Some(hole) = missed.holes.first() {
        return none(format!("the archive has not all of the log behind its offset: {hole}"));
    }
    match (decoded(version, begins.anchor.as_ref(), conflicts), &begins.backup) {
        (Ok(why), _) => Chosen { way: Way::Standby, why, hint: "" },
        (Err(why), Ok(backup)) => {
            let why = format!(
                "{why}: the tables are compared at both ends, from the base backup {backup}; a key that was changed several times comes once"
            );
            Chosen { way: Way::Net, why, hint: "" }
        }
        (Err(why), Err(no_backup)) => {
            none(format!("{why}, and the tables cannot be restored as they were at its offset: {no_backup}"))
        }
    }
}

/// How a standby decodes what was missed, or why none does for certain.
fn decoded(version: u32, anchor: Option<&Anchor>, conflicts: &Conflicts) -> Result<String, String> {
    if version < DECODES {
        let major = version / 10_000;
        return Err(format!("PostgreSQL {major} does not decode on a standby, as 16 and newer do"));
    }
    let Some(anchor) = anchor else {
        return Err("no base backup lies so far before its offset that a slot decodes from there".to_owned());
    };
    if let Some(first) = &conflicts.first_real {
        let after = first.after.as_deref().unwrap_or("an unknown time");
        return Err(format!(
            "{} clean-ups of catalogs would take the slot of a standby away, the first at {} after {after}, of the catalog with the file {}",
            conflicts.real, first.lsn, first.relation
        ));
    }
    let harmless = match conflicts.harmless {
        0 => "no clean-up of a catalog takes its slot away".to_owned(),
        count => format!(
            "{count} clean-ups of the planner's statistics are made harmless in its copy of the log, and there are no others"
        ),
    };
    Ok(format!("a standby out of the base backup {} decodes from {}: {harmless}", anchor.backup, anchor.decodes_from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recover::repair::lost::Conflict;
    use crate::stream::Lsn;

    #[test]
    fn only_a_way_that_is_certain_is_taken() {
        let nothing = Missed { from: Lsn(1), to: Lsn(2), commits: 0, first: None, last: None, holes: Vec::new() };
        let anchor =
            Anchor { backup: "b".into(), backup_end: Lsn(1), gate: Lsn(2), decodes_from: Lsn(3), least_xid: 4 };
        let lost = Missed { holes: vec!["x".to_owned()], ..nothing.clone() };
        let first = Some(Conflict { lsn: Lsn(9), after: None, relation: 1259 });
        let taken = Conflicts { real: 1, first_real: first, ..Conflicts::default() };
        let harmless = Conflicts { harmless: 3, ..Conflicts::default() };
        let none = Conflicts::default();
        let begins = |anchor: Option<&Anchor>, backup: bool| Begins {
            anchor: anchor.cloned(),
            backup: if backup { Ok("b".to_owned()) } else { Err("no backup ends before it".to_owned()) },
        };
        let chosen = |version: u32, slot: SlotState, missed: &Missed, begins: &Begins, conflicts: &Conflicts| {
            choose(version, &slot, (missed, None), begins, conflicts).way
        };
        let way = |version: u32, slot: SlotState, missed: &Missed, anchor: Option<&Anchor>, conflicts: &Conflicts| {
            chosen(version, slot, missed, &begins(anchor, false), conflicts)
        };
        let net = |version: u32, missed: &Missed, anchor: Option<&Anchor>, conflicts: &Conflicts| {
            chosen(version, SlotState::Missing, missed, &begins(anchor, true), conflicts)
        };
        assert_eq!(net(170_000, &nothing, Some(&anchor), &none), Way::Standby, "in order, where that is certain");
        assert_eq!(net(170_000, &nothing, None, &none), Way::Net);
        assert_eq!(net(170_000, &nothing, Some(&anchor), &taken), Way::Net);
        assert_eq!(net(130_000, &nothing, None, &none), Way::Net);
        assert_eq!(net(130_000, &lost, None, &none), Way::None);
        assert_eq!(way(150_000, SlotState::Sound, &lost, None, &none), Way::Nothing);
        assert_eq!(way(170_000, SlotState::Missing, &nothing, Some(&anchor), &none), Way::Standby);
        assert_eq!(way(160_000, SlotState::Lost, &nothing, Some(&anchor), &harmless), Way::Standby);
        assert_eq!(way(160_000, SlotState::Lost, &nothing, Some(&anchor), &taken), Way::None);
        assert_eq!(way(170_000, SlotState::Missing, &lost, Some(&anchor), &none), Way::None);
        assert_eq!(way(170_000, SlotState::Missing, &nothing, None, &none), Way::None);
        assert_eq!(way(150_018, SlotState::Missing, &nothing, Some(&anchor), &none), Way::None);
        let elsewhere =
            choose(170_000, &SlotState::Missing, (&nothing, Some("elsewhere")), &begins(Some(&anchor), true), &none);
        let refusal = elsewhere.refusal().expect("there is no way");
        assert!(refusal.to_string().contains("elsewhere") && refusal.exit_code() == 1, "{refusal}");
        let standby = choose(170_000, &SlotState::Missing, (&nothing, None), &begins(Some(&anchor), true), &none);
        assert!(standby.refusal().is_none());
        let net = choose(150_000, &SlotState::Lost, (&nothing, None), &begins(None, true), &none);
        assert_eq!((net.clone().of_plugin("pgoutput").way, net.of_plugin("decoderbufs").way), (Way::Net, Way::None));
        assert_eq!(standby.of_plugin("decoderbufs").way, Way::Standby);
    }
}

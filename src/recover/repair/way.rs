//! Which way brings back what was missed, and why: only one that is certain is taken.

use serde::Serialize;

use super::lost::{Anchor, Conflicts, Missed};
use super::primary::SlotState;
use crate::error::{Error, Kind};

/// The first version whose standbys decode.
pub(in crate::recover) const DECODES: u32 = 160_000;

/// How what was missed comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Nothing was missed.
    Nothing,
    /// The connector reads it from a scratch standby.
    Standby,
    /// There is none that is certain.
    None,
}

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
    pub(super) fn going_on() -> Self {
        let why = "it was begun, and goes on".to_owned();
        Self { way: Way::Standby, why, hint: "" }
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
    anchor: Option<&Anchor>,
    conflicts: &Conflicts,
) -> Chosen {
    let none = |why: String, hint: &'static str| Chosen { way: Way::None, why, hint };
    const ANEW: &str = "let the connector begin with a snapshot: what was deleted meanwhile stays in the topics";
    if *slot == SlotState::Sound {
        let why = "its slot is there, with all that it wants: it goes on by itself".to_owned();
        return Chosen { way: Way::Nothing, why, hint: "" };
    }
    if let Some(why) = elsewhere {
        return none(why.to_owned(), ANEW);
    }
    if let Some(hole) = missed.holes.first() {
        return none(format!("the archive has not all of the log behind its offset: {hole}"), ANEW);
    }
    if version < DECODES {
        let major = version / 10_000;
        return none(format!("PostgreSQL {major} does not decode on a standby, as 16 and newer do"), ANEW);
    }
    let Some(anchor) = anchor else {
        let why = "no base backup lies so far before its offset that a slot decodes from there".to_owned();
        return none(why, ANEW);
    };
    if let Some(first) = &conflicts.first_real {
        let after = first.after.as_deref().unwrap_or("an unknown time");
        let why = format!(
            "{} clean-ups of catalogs would take the slot of a standby away, the first at {} after {after}, of the catalog with the file {}",
            conflicts.real, first.lsn, first.relation
        );
        return none(why, ANEW);
    }
    let harmless = match conflicts.harmless {
        0 => "no clean-up of a catalog takes its slot away".to_owned(),
        count => format!(
            "{count} clean-ups of the planner's statistics are made harmless in its copy of the log, and there are no others"
        ),
    };
    let why =
        format!("a standby out of the base backup {} decodes from {}: {harmless}", anchor.backup, anchor.decodes_from);
    Chosen { way: Way::Standby, why, hint: "" }
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
        let way = |version: u32, slot: SlotState, missed: &Missed, anchor: Option<&Anchor>, conflicts: &Conflicts| {
            choose(version, &slot, (missed, None), anchor, conflicts).way
        };
        assert_eq!(way(150_000, SlotState::Sound, &lost, None, &none), Way::Nothing);
        assert_eq!(way(170_000, SlotState::Missing, &nothing, Some(&anchor), &none), Way::Standby);
        assert_eq!(way(160_000, SlotState::Lost, &nothing, Some(&anchor), &harmless), Way::Standby);
        assert_eq!(way(160_000, SlotState::Lost, &nothing, Some(&anchor), &taken), Way::None);
        assert_eq!(way(170_000, SlotState::Missing, &lost, Some(&anchor), &none), Way::None);
        assert_eq!(way(170_000, SlotState::Missing, &nothing, None, &none), Way::None);
        assert_eq!(way(150_018, SlotState::Missing, &nothing, Some(&anchor), &none), Way::None);
        let elsewhere = choose(170_000, &SlotState::Missing, (&nothing, Some("elsewhere")), Some(&anchor), &none);
        let refusal = elsewhere.refusal().expect("there is no way");
        assert!(refusal.to_string().contains("elsewhere") && refusal.exit_code() == 1, "{refusal}");
        let standby = choose(170_000, &SlotState::Missing, (&nothing, None), Some(&anchor), &none);
        assert!(standby.refusal().is_none());
    }
}

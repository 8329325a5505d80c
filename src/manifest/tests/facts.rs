//! What the paths of a few backups and switches are, each case by itself.

use super::*;
use crate::manifest::path::{Facts, Taken};
use crate::segment::wal::Switch;
use crate::stream::Lsn;

#[test]
fn a_damaged_backup_is_chosen_last_and_takes_no_sound_one_away() {
    let taken = |name: &str, start, end, is_damaged| Taken {
        name: name.to_owned(),
        timeline: 1,
        start: Lsn(start),
        end_timeline: 1,
        end: Lsn(end),
        finished: at(0),
        is_damaged,
        is_abandoned: false,
        parent: None,
    };
    let sound = taken("sound", 10, 20, false);
    let facts = |backups| Facts {
        file: 10,
        archived: [(1, Lsn(0)..Lsn(200))].into(),
        histories: [(1, vec![])].into(),
        backups,
        ..Facts::default()
    };
    let both = facts(vec![sound, taken("damaged", 50, 60, true)]);
    let way = both.way(1).expect("it is archived");
    assert_eq!(both.path(&way, Lsn(100), None).expect("a path").backup, 0, "a sound one, however old");
    assert_eq!(both.path(&way, Lsn(100), Some("damaged")).expect("a path").backup, 1, "unless it is asked for");
    let expirable = both.expirable(|_| Some(Lsn(100)));
    assert_eq!((expirable.backups, expirable.before.get(&1).copied()), (vec![], Some(Lsn(10))), "the sound one stays");
    let alone = facts(vec![taken("damaged", 50, 60, true)]);
    assert_eq!(alone.path(&way, Lsn(100), None).expect("a path").backup, 0, "better than none");
    let newer = facts(vec![taken("damaged", 10, 20, true), taken("sound", 50, 60, false)]);
    assert_eq!(newer.expirable(|_| Some(Lsn(100))).backups, [0]);
}

#[test]
fn a_backup_stays_as_long_as_one_that_builds_on_it() {
    let taken = |name: &str, start, end, parent: Option<&str>| Taken {
        name: name.to_owned(),
        timeline: 1,
        start: Lsn(start),
        end_timeline: 1,
        end: Lsn(end),
        finished: at(0),
        is_damaged: false,
        is_abandoned: false,
        parent: parent.map(str::to_owned),
    };
    // The last two come in the wrong order: a clock was set back.
    let all = [
        taken("full", 10, 20, None),
        taken("second", 50, 60, Some("first")),
        taken("first", 30, 40, Some("full")),
        taken("lone", 70, 80, Some("gone")),
    ];
    let facts = |start, backups: &[Taken]| Facts {
        file: 10,
        archived: [(1, Lsn(start)..Lsn(200))].into(),
        histories: [(1, vec![])].into(),
        backups: backups.to_vec(),
        ..Facts::default()
    };
    let whole = facts(0, &all);
    let way = whole.way(1).expect("it is archived");
    assert_eq!(whole.line(1), Ok(vec![0, 2, 1]), "the full one first");
    assert_eq!(whole.on(&way).iter().map(|reach| reach.backup).collect::<Vec<_>>(), [0, 2, 1]);
    let lack = path::Lack::Parent { backup: "lone".into(), parent: "gone".into() };
    assert_eq!((whole.path(&way, Lsn(90), Some("lone")), whole.base()), (Err(lack), Some(1)));
    // The WAL of those before the last one goes, and they stay.
    let expirable = whole.expirable(|_| Some(Lsn(100)));
    assert_eq!((expirable.backups, expirable.before.get(&1).copied()), (vec![], Some(Lsn(50))));
    let later = facts(50, &all);
    assert_eq!(later.path(&way, Lsn(100), None).expect("a path").backup, 1);
    assert!(!later.is_usable(0) && !later.is_usable(2) && later.is_usable(1));
    let newer = facts(50, &[&all[..], &[taken("newer", 110, 120, None)]].concat());
    assert_eq!(newer.expirable(|_| Some(Lsn(150))).backups, [0, 1, 2, 3], "all of it at once");
    // One that is lost takes those away that build on it.
    let lost = facts(0, &[all[0].clone(), all[1].clone()]);
    assert_eq!(lost.path(&way, Lsn(100), None).expect("a path").backup, 0);
    let round = facts(0, &[taken("a", 10, 20, Some("b")), taken("b", 30, 40, Some("a"))]);
    assert!(round.on(&way).is_empty() && round.expirable(|_| Some(Lsn(100))).backups.is_empty(), "it ends");
}

#[test]
fn a_hold_behind_the_end_of_an_old_timeline_keeps_nothing_of_it_and_holds_up_no_other() {
    let taken = |timeline, start, parent: Option<&str>| Taken {
        name: format!("{timeline}-{start}"),
        timeline,
        start: Lsn(start),
        end_timeline: timeline,
        end: Lsn(start + 10),
        finished: at(0),
        is_damaged: false,
        is_abandoned: false,
        parent: parent.map(str::to_owned),
    };
    let facts = |held| Facts {
        file: 10,
        archived: [(1, Lsn(0)..Lsn(105)), (2, Lsn(100)..Lsn(300))].into(),
        histories: [(1, vec![]), (2, vec![Switch { timeline: 1, at: Lsn(105) }])].into(),
        backups: vec![taken(1, 10, None), taken(1, 50, None), taken(2, 150, Some("1-50")), taken(2, 250, None)],
        held,
        ..Facts::default()
    };
    // Nothing was committed on the old one since.
    let horizon = |way: &path::Way| (way.timeline() == 2).then_some(Lsn(280));
    let before = |held| facts(held).expirable(horizon).before.into_iter().collect::<Vec<_>>();
    assert_eq!(before(None), [(1, Lsn(105)), (2, Lsn(250))]);
    assert_eq!(before(Some(Lsn(150))), [(1, Lsn(105)), (2, Lsn(150))], "no further than it is archived");
    assert_eq!(before(Some(Lsn(50))), [(1, Lsn(50))]);
    let expirable = facts(Some(Lsn(150))).expirable(horizon);
    assert_eq!(expirable.backups, [0], "what is held stays, with what it builds on");
}

#[test]
fn a_backup_beyond_the_switch_leads_nowhere() {
    let taken = |timeline, start, end| Taken {
        name: format!("{timeline}-{start}"),
        timeline,
        start: Lsn(start),
        end_timeline: timeline,
        end: Lsn(end),
        finished: at(0),
        is_damaged: false,
        is_abandoned: false,
        parent: None,
    };
    let facts = Facts {
        file: 10,
        archived: [(1, Lsn(0)..Lsn(120)), (3, Lsn(100)..Lsn(200))].into(),
        histories: [(1, vec![]), (3, vec![Switch { timeline: 1, at: Lsn(100) }])].into(),
        backups: vec![taken(1, 10, 100), taken(1, 90, 101), taken(2, 10, 20), taken(3, 150, 250), taken(3, 50, 60)],
        ..Facts::default()
    };
    let way = facts.way(3).expect("it is archived");
    let on: Vec<usize> = facts.on(&way).iter().map(|reach| reach.backup).collect();
    assert_eq!(on, [0, 3], "one ends after the switch, one is of another timeline, one began before its own");
    assert_eq!(facts.on(&way).iter().map(path::Reach::is_usable).collect::<Vec<_>>(), [true, false]);
    assert!(facts.on(&way)[1].is_pending(), "its WAL may still come");
}

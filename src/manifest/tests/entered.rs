//! Base backups in the chain: what is not entered does not count, what is another than was entered is damage, and archives of
//! before stay as they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::TryStreamExt as _;

use super::*;
use crate::error::Kind;
use crate::manifest::backups::{self, Backup, Parent, Part};
use crate::manifest::found;
use crate::manifest::holds::Held;
use crate::manifest::known::Known;
use crate::manifest::{abandon, leftovers, recoverable, repair};
use crate::store::layout;
use crate::stream::{BackupRef, Body, Entered, Lsn, Progress, Snapshot, System, Totals, invariants};
use crate::verify::{DamageKind, Seen, verify};

const SYSTEM: System = System { system_id: 7, wal_segment_size: 16 << 20, server_version: 15 };

fn postgres() -> StreamId {
    StreamId::Postgres { system_id: 7 }
}

async fn archive(store: &Store) -> Chain {
    Chain::begin(store, &postgres(), Begin::Postgres(SYSTEM), "w", at(0)).await.unwrap()
}

/// A backup whose `backup.json` is there; gives its hash.
async fn stored(store: &Store, name: &str, timeline: u32) -> (Backup, String) {
    let bytes = zstd::bulk::compress(b"a manifest", 1).unwrap();
    let key = layout::backup_part(7, name, "backup_manifest.zst");
    store.put(&key, bytes.clone().into()).await.unwrap();
    let manifest =
        Part { object: key.to_string(), bytes: 10, stored_bytes: bytes.len() as u64, sha256: sha256(&bytes) };
    let backup = Backup {
        format: 1,
        name: name.to_owned(),
        label: String::new(),
        system: SYSTEM,
        timeline,
        start: Lsn(10),
        end: Lsn(20),
        end_timeline: timeline,
        started: at(0),
        finished: at(0),
        is_read_back: true,
        damaged: Vec::new(),
        checksums: None,
        parent: None,
        archives: Vec::new(),
        manifest,
    };
    let hash = backups::commit(store, &backup).await.unwrap();
    (backup, hash)
}

async fn counts(store: &Store, chain: &Chain) -> Vec<String> {
    let found = found::backups(store, 7, chain.backups()).await.unwrap();
    found.sound.into_iter().map(|backup| backup.taken.name).collect()
}

async fn errors(store: &Store) -> Vec<(DamageKind, String)> {
    let report = verify(store, false, &Arc::new(Seen::default())).await.unwrap();
    report.errors.into_iter().map(|damage| (damage.kind, damage.object)).collect()
}

fn by() -> (&'static str, DateTime<Utc>) {
    ("b", at(1))
}

#[tokio::test]
async fn the_first_entry_takes_along_what_counted_before_and_later_ones_count_by_their_entry() {
    let store = faultless().store();
    let mut chain = archive(&store).await;
    for name in ["old-1", "old-2"] {
        stored(&store, name, 1).await;
    }
    assert_eq!(counts(&store, &chain).await, ["old-1", "old-2"], "an archive of before");
    let (backup, hash) = stored(&store, "new", 1).await;
    chain.enter(&backup, &hash, [0, 0], by()).await.unwrap();
    chain.enter(&backup, &hash, [0, 0], by()).await.unwrap();
    assert_eq!((counts(&store, &chain).await.len(), chain.head()), (3, 1), "once");
    stored(&store, "killed", 1).await;
    assert_eq!(counts(&store, &chain).await.len(), 3, "a process was killed before it was entered");
    assert_eq!(errors(&store).await, []);
    let left = leftovers::leftovers(&store, (7, chain.backups())).try_collect::<Vec<_>>().await.unwrap();
    assert_eq!(left.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["killed"]);
    let (held, later) = (Held::default(), crate::time::now() + leftovers::LEFT_AFTER + TimeDelta::seconds(1));
    let early = later - TimeDelta::hours(1);
    let remove = async |now| leftovers::remove(&store, (7, chain.backups()), &held, now).await.unwrap();
    assert_eq!((remove(early).await, remove(later).await), (0, 2));
    assert_eq!(counts(&store, &chain).await.len(), 3);
    chain.expire_backups(&["old-1".into(), "nobody".into()], "e", at(2)).await.unwrap();
    chain.expire_backups(&["old-1".into()], "e", at(2)).await.unwrap();
    assert_eq!((counts(&store, &chain).await.len(), chain.head()), (2, 2));
    assert_eq!(errors(&store).await, [], "its objects may still be there");
    let left = leftovers::leftovers(&store, (7, chain.backups())).try_collect::<Vec<_>>().await.unwrap();
    assert_eq!(left[0].name, "old-1", "a process was killed before it had removed them (wal-g/wal-g#1903)");
}

#[tokio::test]
async fn what_builds_on_one_that_is_expired_meanwhile_never_counts() {
    let store = faultless().store();
    let mut chain = archive(&store).await;
    let (full, full_hash) = stored(&store, "full", 1).await;
    chain.enter(&full, &full_hash, [0, 0], by()).await.unwrap();
    let child = async |name: &str, sha256: &str| {
        let parent = Some(Parent { name: "full".into(), sha256: sha256.to_owned() });
        let backup = Backup { parent, name: name.into(), format: 3, ..full.clone() };
        (backup, sha256.to_owned())
    };
    let (own, hash) = child("own", &full_hash).await;
    chain.enter(&own, &hash, [0, 0], by()).await.unwrap();
    let (other, hash) = child("other", "of another one").await;
    let refused = chain.enter(&other, &hash, [0, 0], by()).await.expect_err("it builds on another one");
    assert_eq!(refused.kind(), Kind::Fenced);
    // Retention is before it, in a chain of its own.
    let (late, hash) = child("late", &full_hash).await;
    let mut retention = Chain::open(&store, &postgres()).await.unwrap().unwrap();
    retention.expire_backups(&["full".into(), "own".into()], "e", at(2)).await.unwrap();
    let refused = chain.enter(&late, &hash, [0, 0], by()).await.expect_err("it builds on nothing");
    assert!(refused.kind() == Kind::Fenced && refused.to_string().contains("full"), "{refused}");
    assert_eq!(chain.backups().unwrap().len(), 0);
}

#[tokio::test]
async fn what_was_entered_meanwhile_keeps_what_it_builds_on() {
    let store = faultless().store();
    let mut chain = archive(&store).await;
    let (full, full_hash) = stored(&store, "full", 1).await;
    chain.enter(&full, &full_hash, [0, 0], by()).await.unwrap();
    // Retention has decided, and a writer enters what builds on one that is to go.
    let mut retention = Chain::open(&store, &postgres()).await.unwrap().unwrap();
    for (name, on, hash) in [("first", "full", &full_hash), ("second", "first", &sha256(b"first"))] {
        let parent = Some(Parent { name: on.into(), sha256: hash.clone() });
        let backup = Backup { parent, name: name.into(), format: 3, ..full.clone() };
        chain.enter(&backup, &sha256(name.as_bytes()), [0, 0], by()).await.unwrap();
    }
    let (lone, hash) = stored(&store, "lone", 1).await;
    chain.enter(&lone, &hash, [0, 0], by()).await.unwrap();
    let names = ["lone", "full", "first"].map(str::to_owned);
    let gone = retention.expire_backups(&names, "e", at(2)).await.unwrap();
    assert_eq!(gone, ["lone"]);
    assert_eq!(retention.backups().unwrap().keys().collect::<Vec<_>>(), ["first", "full", "second"]);
    let removed =
        |name: &str| Body::Backups(Entered { added: Vec::new(), removed: vec![name.to_owned()], decided: at(1) });
    assert_eq!(retention.progress.accepts(&removed("first")).unwrap_err().rule, "backups_fit");
    // A snapshot says what builds on what, too.
    let mut end = 0;
    while retention.head() < 70 {
        let segment = of_wal(&format!("s{end}"), 1, end, end + 10);
        committed(&mut retention, &Change { segments: vec![segment], ..Change::default() }, "w").await;
        end += 10;
    }
    let mut opened = Chain::open(&store, &postgres()).await.unwrap().unwrap();
    assert_eq!(opened.backups(), retention.backups());
    let line = ["full", "second", "first"].map(str::to_owned);
    assert_eq!(opened.expire_backups(&line, "e", at(2)).await.unwrap(), line, "all of it at once");
    assert_eq!(opened.backups().unwrap().len(), 0);
}

#[tokio::test]
async fn what_one_that_cannot_be_read_builds_on_stays_as_long_as_something_of_that_is_there() {
    let store = faultless().store();
    let mut chain = archive(&store).await;
    let (full, full_hash) = stored(&store, "full", 1).await;
    chain.enter(&full, &full_hash, [0, 0], by()).await.unwrap();
    let parent = Some(Parent { name: "full".into(), sha256: full_hash });
    let (child, _) = stored(&store, "child", 1).await;
    let child = Backup { parent, format: 3, ..child };
    let commit = layout::backup_commit(7, "child");
    store.delete(&commit).await.unwrap();
    let hash = backups::commit(&store, &child).await.unwrap();
    chain.enter(&child, &hash, [0, 0], by()).await.unwrap();
    let (other, hash) = stored(&store, "other", 1).await;
    chain.enter(&other, &hash, [0, 0], by()).await.unwrap();
    let wal = of_wal("s", 1, 0, 50);
    committed(&mut chain, &Change { segments: vec![wal], ..Change::default() }, "w").await;
    let lsns = BTreeMap::from([(1, 30)]);
    chain.expire(&lsns, "e", at(2)).await.unwrap();
    let lost = async |chain: &Chain| {
        let read = Known::read(&store, chain).await.unwrap();
        recoverable::expirable(&store, chain, read, at(9), &Held::default()).await.unwrap().backups
    };
    assert_eq!(lost(&chain).await, ["child", "full", "other"], "all of them begin before what is archived");
    for damage in [&b"{"[..], b"{\"format\":99}"] {
        store.put(&commit, damage.to_vec().into()).await.unwrap();
        assert_eq!(lost(&chain).await, ["other"], "nobody knows whether it needs it");
    }
    store.delete(&commit).await.unwrap();
    assert_eq!(lost(&chain).await, ["other"], "its parts are there");
    let found = found::backups(&store, 7, chain.backups()).await.unwrap();
    assert_eq!(found.missing, ["child"]);
    store.delete(&layout::backup_part(7, "child", "backup_manifest.zst")).await.unwrap();
    assert_eq!(lost(&chain).await, ["full", "other"], "an operator has removed it");
}

#[tokio::test]
async fn what_went_with_an_abandoned_timeline_and_cannot_be_read_keeps_what_it_builds_on() {
    let store = faultless().store();
    let mut chain = archive(&store).await;
    let (full, full_hash) = stored(&store, "full", 2).await;
    chain.enter(&full, &full_hash, [0, 0], by()).await.unwrap();
    let (child, _) = stored(&store, "child", 2).await;
    let child = Backup { parent: Some(Parent { name: "full".into(), sha256: full_hash }), format: 3, ..child };
    let commit = layout::backup_commit(7, "child");
    store.delete(&commit).await.unwrap();
    let hash = backups::commit(&store, &child).await.unwrap();
    chain.enter(&child, &hash, [0, 0], by()).await.unwrap();
    let wal = of_wal("s", 2, 0, 50);
    committed(&mut chain, &Change { segments: vec![wal], ..Change::default() }, "w").await;
    store.put(&commit, b"{".to_vec().into()).await.unwrap();
    abandon::abandon(&store, &mut chain, (2, false), "a").await.unwrap();
    let later = crate::time::now() + TimeDelta::days(1);
    let lost = async || {
        let read = Known::read(&store, &chain).await.unwrap();
        recoverable::expirable(&store, &chain, read, later, &Held::default()).await.unwrap().backups
    };
    assert_eq!(lost().await, Vec::<String>::new(), "once it is mended it needs that");
    store.delete(&commit).await.unwrap();
    backups::commit(&store, &child).await.unwrap();
    assert_eq!(lost().await, ["child", "full"]);
}

#[tokio::test]
async fn what_an_operator_has_removed_is_let_go_of_by_a_repair_and_not_before() {
    let store = faultless().store();
    let mut chain = archive(&store).await;
    let mut hashes = Vec::new();
    for (name, on) in [("full", None), ("child", Some(0)), ("lone", None)] {
        let (backup, _) = stored(&store, name, 1).await;
        let parent = on.map(|on: usize| Parent { name: "full".into(), sha256: String::clone(&hashes[on]) });
        let commit = layout::backup_commit(7, name);
        store.delete(&commit).await.unwrap();
        let hash = backups::commit(&store, &Backup { parent, format: 3, ..backup.clone() }).await.unwrap();
        let backup = backups::read(&store, 7, name, Some(&hash)).await.unwrap().unwrap();
        chain.enter(&backup, &hash, [0, 0], by()).await.unwrap();
        hashes.push(hash);
    }
    let remove = async |name: &str| {
        for object in store.list(&layout::backup(7, name)).await.unwrap() {
            store.delete(&object.location).await.unwrap();
        }
    };
    let let_go = async || repair(&store, &postgres(), ("r", at(3))).await.unwrap().let_go;
    store.delete(&layout::backup_commit(7, "lone")).await.unwrap();
    assert_eq!(let_go().await, Vec::<String>::new(), "something of it is there");
    remove("lone").await;
    assert_eq!(errors(&store).await.len(), 1, "it is told, and nobody lets go of it but who is asked to");
    assert_eq!((let_go().await, errors(&store).await), (vec!["lone".to_owned()], vec![]));
    remove("full").await;
    assert_eq!(let_go().await, Vec::<String>::new(), "another one builds on it");
    remove("child").await;
    assert_eq!(let_go().await, Vec::<String>::new(), "the folder of all of them may be somewhere else");
    chain.refresh().await.unwrap();
    let (backup, hash) = stored(&store, "new", 1).await;
    chain.enter(&backup, &hash, [0, 0], by()).await.unwrap();
    assert_eq!((let_go().await, let_go().await), (vec!["child".to_owned(), "full".to_owned()], vec![]));
    assert_eq!(errors(&store).await, []);
}

#[tokio::test]
async fn a_backup_that_was_exchanged_or_is_gone_is_found() {
    let store = faultless().store();
    let mut chain = archive(&store).await;
    let mut names = Vec::new();
    for name in ["a", "b", "c"] {
        let (backup, hash) = stored(&store, name, 1).await;
        chain.enter(&backup, &hash, [0, 0], by()).await.unwrap();
        names.push(layout::backup_commit(7, name));
    }
    // Sound by itself, with a manifest that is there: nothing but the chain tells.
    let text = String::from_utf8(store.get(&names[0]).await.unwrap().unwrap().to_vec()).unwrap();
    let forged = text.replace("\"0/14\"", "\"0/15\"");
    assert_ne!(forged, text);
    store.put(&names[0], forged.into_bytes().into()).await.unwrap();
    store.delete(&names[1]).await.unwrap();
    assert_eq!(
        errors(&store).await,
        [(DamageKind::Unreadable, names[0].to_string()), (DamageKind::Missing, names[1].to_string())]
    );
    assert_eq!(counts(&store, &chain).await, ["c"]);
    // A snapshot says so, too.
    let mut end = 0;
    while chain.head() < 70 {
        let segment = of_wal(&format!("s{end}"), 1, end, end + 10);
        committed(&mut chain, &Change { segments: vec![segment], ..Change::default() }, "w").await;
        end += 10;
    }
    let opened = Chain::open(&store, &postgres()).await.unwrap().unwrap();
    assert_eq!((counts(&store, &opened).await, opened.backups()), (vec!["c".to_owned()], chain.backups()));
}

#[tokio::test]
async fn a_backup_of_a_timeline_that_was_abandoned_meanwhile_is_none() {
    let store = faultless().store();
    let mut chain = archive(&store).await;
    let wal = of_wal("s", 2, 0, 50);
    committed(&mut chain, &Change { segments: vec![wal], ..Change::default() }, "w").await;
    let (backup, hash) = stored(&store, "late", 2).await;
    let mut other = Chain::open(&store, &postgres()).await.unwrap().unwrap();
    abandon::abandon(&store, &mut other, (2, false), "x").await.unwrap();
    chain.refresh().await.unwrap();
    let error = chain.enter(&backup, &hash, [0, 0], by()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Fenced);
    chain.enter(&backup, &hash, [1, 1], by()).await.unwrap();
}

#[tokio::test]
async fn what_does_not_fit_is_refused() {
    let store = faultless().store();
    let mut chain = archive(&store).await;
    let (backup, hash) = stored(&store, "a", 1).await;
    chain.enter(&backup, &hash, [0, 0], by()).await.unwrap();
    let one = |name: &str| BackupRef { name: name.to_owned(), sha256: sha256(b"x"), parent: None };
    let body = |added: &[&str], removed: &[&str]| {
        let added = added.iter().map(|name| one(name)).collect();
        let removed = removed.iter().map(|name| (*name).to_owned()).collect();
        Body::Backups(Entered { added, removed, decided: at(1) })
    };
    for (body, rule) in [
        (body(&["a"], &[]), "backups_fit"),
        (body(&["b", "b"], &[]), "backups_fit"),
        (body(&[], &["b"]), "backups_fit"),
        (body(&[], &["a", "a"]), "backups_fit"),
        (body(&[], &[]), "moves_something"),
    ] {
        assert_eq!(chain.progress.accepts(&body).unwrap_err().rule, rule, "{body:?}");
    }
    chain.progress.accepts(&body(&["b"], &["a"])).unwrap();
    assert_eq!(body(&["b"], &[]).format(), 2);
}

/// Replicas of two builds: the older one writes no parents into its snapshots.
#[test]
fn a_snapshot_of_a_writer_that_knows_no_parents_says_nothing_else() {
    let backup = |hash: &str, parent: Option<&str>| {
        let backup = BackupRef { name: "b".into(), sha256: hash.into(), parent: parent.map(str::to_owned) };
        let begin = Begin::Postgres(SYSTEM);
        let (positions, pages, last, abandoned) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let totals = Totals::default();
        Snapshot {
            begin,
            positions,
            totals,
            pages,
            closed: None,
            last,
            abandoned,
            backups: Some(vec![backup]),
            minimal: Vec::new(),
            packed: 0,
        }
    };
    let none = Snapshot { backups: None, ..backup("h", None) };
    let repeats = |sum: &Snapshot, written: &Snapshot| {
        invariants::snapshot_repeats_progress(&Progress::from_snapshot(sum), written).is_ok()
    };
    let (known, unknown) = (backup("h", Some("a")), backup("h", None));
    assert!(repeats(&known, &known) && repeats(&known, &unknown) && repeats(&unknown, &known));
    assert!(!repeats(&known, &backup("h", Some("x"))) && !repeats(&known, &backup("x", Some("a"))));
    assert!(!repeats(&known, &none) && !repeats(&none, &known));
    assert!(!repeats(&known, &Snapshot { backups: Some(Vec::new()), ..none.clone() }));
}

//! Base backups by the hundreds and thousands, as whoever may write to the bucket can make them: what is known of them takes little
//! memory, few of those that cannot be read are named, and the others are counted.
//!
//! ```text
//!   60 sound ones of 8 MB of JSON each   ─► every reader within 512 MiB of addresses
//!   3,000 that are none                  ─► ten by name, "2990 more"; all of them in `verify --json`
//! ```

use std::fs;

use tidelog::manifest::backups::Backup;
use tidelog::store::layout;

use crate::bombs::{Shelf, Target};

/// Twice what the program needs for an ordinary archive, most of that for threads, and less than the forged objects have.
const LIMIT_KIB: u64 = 512 << 10;

fn put(target: &Target, name: &str, bytes: &[u8]) {
    let path = target.path(&layout::backup_commit(7, name));
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(path, bytes).expect("written");
}

/// As a backup of that name would say, with its parts in a folder of its own.
fn forged(shelf: &Shelf, name: &str) -> Backup {
    let mut backup = Backup { name: name.to_owned(), ..shelf.backup.clone() };
    let own = |object: &str| object.replace("/b/", &format!("/{name}/"));
    for part in backup.archives.iter_mut().flat_map(|archive| &mut archive.parts).chain([&mut backup.manifest]) {
        let object = own(&part.object);
        let (from, to) = (part.object.as_str().into(), object.as_str().into());
        let to = shelf.target.path(&to);
        fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        fs::hard_link(shelf.target.path(&from), to).expect("the same part");
        part.object = object;
    }
    backup
}

#[test]
fn what_is_known_of_base_backups_does_not_grow_with_what_they_say() {
    let shelf = Shelf::new();
    for number in 0..60 {
        let name = format!("f{number}");
        // Something that the server found bad, of megabytes.
        let backup = Backup { format: 2, damaged: vec!["x".repeat(8 << 20)], ..forged(&shelf, &name) };
        put(&shelf.target, &name, &serde_json::to_vec(&backup).expect("JSON"));
    }
    for args in [&["ls"][..], &["verify"], &["restore-postgres", "--list"]] {
        let output = shelf.target.run_within(LIMIT_KIB, args).expect(0);
        assert!(output.stdout.len() + output.stderr.len() < 100_000, "{args:?}: {}", output.stdout.len());
    }
    let listed = shelf.target.run_within(LIMIT_KIB, &["restore-postgres", "--list", "--json"]).expect(0);
    assert_eq!(listed.json()["backups"].as_array().map(Vec::len), Some(61));
}

#[test]
fn thousands_of_unreadable_backups_are_named_ten_at_a_time() {
    let shelf = Shelf::new();
    for number in 0..3_000 {
        put(&shelf.target, &format!("f{number:04}"), b"{}");
    }
    for number in 0..30 {
        put(&shelf.target, &format!("none of ours {number}"), b"{}");
    }
    let output = shelf.target.run(&["ls"]).expect(3);
    assert!(output.stdout.contains("kafka/main/sound"), "{}", output.stdout);
    assert!(output.stderr.contains("3030 base backups cannot be read and are passed over"), "{}", output.stderr);
    assert!(output.stderr.contains("and 3020 more"), "{}", output.stderr);
    assert!(output.stderr.len() < 4_000, "{}", output.stderr);
    let verified = shelf.target.run(&["verify"]).expect(3);
    assert_eq!(verified.stdout.matches("error: ").count(), 11, "{}", verified.stdout);
    // Ten of the folders with names of others stand for all of them.
    assert!(verified.stdout.contains("3,001 more errors of base backups"), "{}", verified.stdout);
    let json = shelf.target.run(&["verify", "--json"]).expect(3).json();
    let errors = json["errors"].as_array().expect("errors");
    let named = errors.iter().filter(|error| error["object"].as_str().is_some_and(|key| key.contains("/f")));
    assert_eq!((named.count(), errors.len()), (3_000, 3_011));
    let listed = shelf.target.run(&["restore-postgres", "--list"]).expect(3);
    assert!(listed.stderr.contains("and 3020 more") && listed.stderr.len() < 4_000, "{}", listed.stderr);
    let dir = shelf.target.home.path().join("data").display().to_string();
    let restored = shelf.target.run(&["restore-postgres", "--into", &dir]);
    assert!(restored.stderr.contains("\"more\":3020"), "{}", restored.stderr);
    assert_eq!(restored.stderr.matches("a base backup is passed over").count(), 10, "{}", restored.stderr);
}

/// On a disk anything can have a backup's name.
#[test]
fn a_pipe_where_a_backup_should_be_is_told_and_in_nobody_s_way() {
    let shelf = Shelf::new();
    let pipe = shelf.target.path(&layout::backup_commit(7, "pipe"));
    fs::create_dir_all(pipe.parent().expect("a folder")).expect("a folder");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    for args in [&["ls"][..], &["verify"], &["restore-postgres", "--list"]] {
        let output = shelf.target.run(args).expect(3);
        let told = format!("{}{}", output.stdout, output.stderr);
        assert!(
            told.contains("pipe/backup.json") && told.contains("is a pipe, a socket or a device"),
            "{args:?}: {told}"
        );
    }
    let verified = shelf.target.run(&["verify"]).expect(3).stdout;
    assert!(
        verified.contains("a base backup cannot be read") && verified.contains("1 base backup: every part is there"),
        "{verified}"
    );
}

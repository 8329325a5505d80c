//! Very many files, and very many parts: a backup of them that is called one can be restored, and nobody needs more memory for it
//! than a small machine has.

use futures::executor::block_on;
use std::fs::File;
use std::process::Command;
use tempfile::TempDir;
use tidelog::manifest::backups::{self, Part};
use tidelog::store::layout;

use crate::archive::on_disk;
use crate::postgres_restore::{PATIENCE, Place};
use crate::rig::http::Server;
use crate::rig::kafka::free_port;
use crate::rig::postgres::Version;
use crate::rig::program::{self, Output};
use crate::rig::{python, wait_until};

/// How much memory a command may have.
const MIB: u64 = 400;

/// Runs a command, and tells on the last line of its errors how much memory it has had, in KiB.
const MEASURED: &str = "import resource, subprocess, sys
ended = subprocess.run(sys.argv[1:]).returncode
sys.stderr.write(f'\\n{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}')
sys.exit(ended)";

/// Files enough for a manifest of 45 MiB: it is sent in many pieces.
const FILES: usize = 200_000;

/// A directory in memory, where there is such a place: a disk takes a minute for so many files.
fn in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// Runs a command of the program within [`MIB`].
fn within(place: &Place, args: &[&str]) -> Output {
    let tidelog = place.home.command(&[&["-c", "tidelog.toml"], args].concat());
    let mut measured = python::command();
    measured.args(["-c", MEASURED]).arg(tidelog.get_program()).args(tidelog.get_args()).current_dir(place.home.path());
    let output = program::run(measured);
    let kib: u64 = output.stderr.lines().last().and_then(|kib| kib.parse().ok()).expect("its memory");
    eprintln!("{args:?} has had {} MiB", kib >> 10);
    assert!(kib < MIB << 10, "{args:?} has had {} MiB", kib >> 10);
    output
}

#[test]
fn a_backup_of_two_hundred_thousand_files_is_restored() {
    let place = Place::new(Version::Debian);
    let (old, new) = (in_memory(), in_memory());
    place.postgres.psql(&format!("CREATE TABLESPACE many LOCATION '{}'", old.path().display()));
    let versions = std::fs::read_dir(old.path()).expect("a tablespace").next().expect("a version").expect("a folder");
    let folder = versions.path().join("filler");
    std::fs::create_dir(&folder).expect("a folder");
    for n in 0..FILES {
        File::create(folder.join(format!("{n:060}"))).expect("a file");
    }
    place.mark(1);
    let backup = within(&place, &["backup", "--json"]).expect(0).json();
    assert_eq!(backup["usable"], true, "{backup}");
    let report = within(&place, &["verify", "--json"]).expect(0).json();
    assert_eq!((&report["errors"], &report["backups"]), (&serde_json::json!([]), &1.into()), "{report}");
    let moved = format!("{}={}", old.path().display(), new.path().display());
    within(&place, &["restore-postgres", "--into", "restored", "--tablespace", &moved]).expect(0);
    let restored = new.path().join(versions.file_name()).join("filler");
    assert_eq!(std::fs::read_dir(restored).expect("a folder").count(), FILES);
}

/// Parts of 24 MiB of a database of 3 TB.
const PARTS: u32 = 125_000;

#[test]
fn what_a_backup_of_three_terabytes_says_of_itself_is_read_in_little_memory() {
    let place = Place::new(Version::Debian);
    place.mark(1);
    let small = place.back_up();
    place.mark(2);
    place.wait_archived();
    place.stop_archiving();

    // The same backup under another name, that says it has so many parts more.
    let (id, name) = (small["system_id"].as_str().expect("an id").parse().expect("a number"), "20300101T000000Z-large");
    let archive = place.home.path().join("archive");
    let store = on_disk(&archive);
    let small = small["name"].as_str().expect("a name");
    let mut large = block_on(backups::read(&store, id, small, None)).expect("read").expect("a backup");
    let folder = |name: &str| archive.join(layout::backups(id).as_ref()).join(name);
    let mut copy = Command::new("cp");
    copy.arg("-r").args([folder(small), folder(name)]);
    program::run(copy).expect(0);
    std::fs::remove_file(folder(name).join("backup.json")).expect("removed");
    let moved = |object: &str| object.replace(small, name);
    large.name = name.to_owned();
    large.manifest.object = moved(&large.manifest.object);
    large.finished += chrono::TimeDelta::seconds(1);
    let own = &mut large.archives[0].parts;
    own.iter_mut().for_each(|part| part.object = moved(&part.object));
    let more = u32::try_from(own.len()).expect("a few")..PARTS;
    own.extend(more.map(|number| Part {
        object: layout::backup_part(id, name, &format!("base.tar.{number:07}.zst")).to_string(),
        bytes: 24 << 20,
        stored_bytes: 9 << 20,
        sha256: "0".repeat(64),
    }));
    let hash = block_on(backups::commit(&store, &large)).expect("committed");
    let mut chain = place.chain().expect("a chain");
    block_on(chain.enter(&large, &hash, [0, 0], ("t", tidelog::time::now()))).expect("entered");

    let listed = within(&place, &["restore-postgres", "--list", "--json"]).expect(0).json();
    assert!(listed.to_string().contains(name), "{listed}");
    within(&place, &["ls"]).expect(0);
    let restored = within(&place, &["restore-postgres", "--into", "restored"]);
    assert!(restored.status != Some(0) && restored.stderr.contains("is missing"), "{}", restored.stderr);

    let server = Server::new(format!("127.0.0.1:{}", free_port()));
    let more = format!("[retention]\npostgres = \"1s\"\n[http]\nlisten = \"{}\"\n", server.address);
    place.archive(&place.postgres, &more);
    wait_until("the service to know of it", PATIENCE, || {
        place.program().as_mut().expect("it archives").assert_running();
        server.is_up() && server.json("/api/status")["postgres"]["last_backup"].is_string()
    });
    let peak = place.program().as_ref().expect("it archives").peak_kib();
    assert!(peak < MIB << 10, "{peak} KiB");
}

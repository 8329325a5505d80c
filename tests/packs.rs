//! Old entries that are in packs, where the objects that they had may not be deleted.

use std::path::Path;
use std::process::Command;

use tidelog::manifest::packing::{self, Known};
use tidelog::manifest::{Chain, Change, Outcome};
use tidelog::stream::{Begin, Gap, GapReason, TopicGeneration};

use crate::archive::on_disk;
use crate::rig::program::{self, Home};
use crate::wal::may_mount;

/// Makes all of a directory three hours older than now.
fn age(directory: &Path) {
    let mut touch = Command::new("find");
    touch.arg(directory).args(["-type", "f", "-exec", "touch", "-d", "3 hours ago", "{}", "+"]);
    program::run(touch).expect(0);
}

async fn grow(chain: &mut Chain, head: u64) {
    while chain.head() < head {
        let (start, found) = (chain.position(0).map_or(0, |at| at.end), tidelog::time::now());
        let gap =
            Gap { partition: 0, start, end: start + 10, reason: GapReason::BrokerRetention, found, generation: 0 };
        let change = Change { gaps: vec![gap], ..Change::default() };
        match chain.commit(&change, "test", found).await.expect("it is committed") {
            Outcome::Committed { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn where_packed_entries_may_not_be_deleted_expire_says_so_and_goes_on() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    let archive = home.path().join("archive");
    std::fs::create_dir(&archive).expect("a directory");
    let (url, spool) = (format!("file://{}", archive.display()), home.path().join("spool"));
    let config = format!("[archive]\nurl = {url:?}\nspool_dir = {spool:?}\n[retention]\nkafka = \"1d\"\n");
    home.write("tidelog.toml", &config);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let store = on_disk(&archive);
    let entries = || std::fs::read_dir(archive.join("manifest/kafka/main/orders.0")).expect("a chain").count();
    runtime.block_on(async {
        let stream = TopicGeneration::new("main", "orders", 0).stream();
        let begin = Begin::topic(None, vec![Some(0)]);
        let mut chain = Chain::begin(&store, &stream, begin, "test", tidelog::time::now()).await.expect("it begins");
        grow(&mut chain, 900).await;
        age(&archive);
        let packing = packing::pack(&store, &chain, tidelog::time::now(), &mut Known::default()).await;
        assert_eq!(packing.expect("it is packed").made, 1);
        grow(&mut chain, 970).await;
        age(&archive);
    });
    let before = entries();
    let mount = "mount --bind archive/manifest archive/manifest && mount -o remount,bind,ro archive/manifest";
    let refused = program::run(home.shell(&format!("{mount} && exec \"$0\" -c tidelog.toml expire"))).expect(0);
    assert!(refused.stderr.contains("note: kafka/main/orders.0: entries that are in packs keep"), "{refused:?}");
    assert_eq!(entries(), before);
    home.run(&["-c", "tidelog.toml", "expire"]).expect(0);
    assert!(entries() < before - 500, "{} of {before}", entries());
    home.run(&["-c", "tidelog.toml", "verify"]).expect(0);
}

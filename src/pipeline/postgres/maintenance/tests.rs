use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use super::*;
use crate::maintenance::wal::tests::made_up::*;
use crate::store::Store;
use crate::stream::{Change, System};

/// The maintenance of a service, whose archive keeps a day.
fn service(store: &Store, spool: &std::path::Path) -> Maintenance {
    let system = System { system_id: 7, wal_segment_size: 16 << 20, server_version: 15 };
    let shared = Shared {
        store: store.clone(),
        spool: crate::pipeline::postgres::WalSpool::open(spool, 7, None).expect("a spool"),
        buffers: Arc::default(),
        writer: "w".to_owned(),
        segments: AtomicU64::new(0),
        zstd_level: 1,
        system,
        status: Arc::default(),
        archived: tokio::sync::watch::Sender::new(Vec::new()),
        generations: Mutex::default(),
        look_again: tokio::sync::Notify::new(),
        backups: mpsc::channel(1).0,
    };
    Maintenance::new(Arc::new(shared), Some(Duration::from_secs(86_400)))
}

#[tokio::test]
async fn a_server_on_an_older_timeline_costs_no_request_until_it_has_come_to_the_newest() {
    let (counting, store) = counted();
    let mut chain = begun(&store).await;
    append(&store, &mut chain, 0, ends(0..4, &[])).await;
    let mut newer = segment(&store, 0, 3 * BLOCK..4 * BLOCK, "w").await;
    newer.partitions[0].partition = 2;
    chain.commit(&Change { segments: vec![newer], ..Change::default() }, "w", now()).await.expect("committed");
    let spool = tempfile::tempdir().expect("a directory");
    let mut maintenance = service(&store, spool.path());
    maintenance.shared.status.note(|now| (now.connected, now.timeline) = (true, Some(1)));
    maintenance.round().await.expect("the first round");
    assert!(
        counting.take().0 > 0 && maintenance.expired.is_none(),
        "it was looked, and the server is on an older timeline"
    );
    counting.log.lock().expect("a log").clear();
    for _ in 0..20 {
        maintenance.round().await.expect("a round");
    }
    let log = counting.log.lock().expect("a log").clone();
    assert_eq!((counting.take().0, log), (0, Vec::<String>::new()));
    // The server is promoted, and the archive follows.
    maintenance.shared.status.note(|now| now.timeline = Some(2));
    maintenance.round().await.expect("a round");
    assert!(maintenance.expired.is_some(), "at once, and not after ten minutes");
}

use super::super::buffers::MOST;
use super::*;

const M: u64 = MOST_BYTES;

/// The end of the log of a server that has nothing more than what it sends.
const NOWHERE: Lsn = Lsn(0);

fn opened(root: &Path) -> Result<WalSpool> {
    WalSpool::open(root, 7, None)
}

fn append(spool: &WalSpool, bytes: &[u8]) {
    assert_eq!(take(spool, bytes, NOWHERE), bytes.len());
}

/// Appends what comes next; gives how much there was room for.
fn take(spool: &WalSpool, bytes: &[u8], server_end: Lsn) -> usize {
    let end = spool.end().expect("it has begun");
    spool.append(end, bytes, server_end).expect("a disk")
}

fn read(spool: &WalSpool, timeline: u32, start: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length];
    spool.read(timeline, Lsn(start), &mut buffer).expect("it is there");
    buffer
}

#[test]
fn what_was_synced_is_found_again_and_what_is_archived_goes() {
    let root = tempfile::tempdir().expect("a directory");
    let bytes: Vec<u8> = (0..M + 5_000).map(|n| (n % 251) as u8).collect();
    {
        let spool = opened(root.path()).expect("a spool");
        assert!(opened(root.path()).is_err_and(|error| error.kind() == Kind::Config), "it is in use");
        assert!(spool.begin(1, Lsn(M - 1_000), false, NOWHERE).expect("a file"));
        bytes.chunks(70_000).for_each(|piece| append(&spool, piece));
        assert_eq!(spool.sync().expect("a disk"), Lsn(2 * M + 4_000));
        assert_eq!(spool.extents().len(), 3);
    }
    let spool = opened(root.path()).expect("a spool");
    assert_eq!((spool.end(), spool.bytes()), (Some((1, Lsn(2 * M + 4_000))), M + 5_000));
    assert_eq!(read(&spool, 1, M - 1_000, bytes.len()), bytes);
    append(&spool, &[9; 10]);
    assert_eq!(read(&spool, 1, 2 * M + 3_999, 11)[1..], [9; 10]);
    spool.release(BTreeMap::from([(1, Lsn(2 * M - 1))]));
    assert_eq!(spool.extents()[0].start, Lsn(M));
    spool.release(BTreeMap::from([(1, Lsn(3 * M))]));
    assert_eq!(spool.extents().len(), 1, "the last file says where to go on");
}

#[test]
fn a_file_that_was_made_ready_ends_where_its_bytes_end() {
    let root = tempfile::tempdir().expect("a directory");
    let bytes: Vec<u8> = (0..M + 3_000).map(|n| (n % 250) as u8 + 1).collect();
    let length = |name: &str| std::fs::metadata(root.path().join("postgres-7").join(name)).map(|facts| facts.len());
    {
        let spool = opened(root.path()).expect("a spool");
        spool.prepare().expect("room");
        assert!(!spool.wants_spare());
        assert!(spool.begin(1, Lsn(M), false, NOWHERE).expect("a file"));
        assert!(spool.wants_spare());
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| spool.prepare().expect("room"));
            }
        });
        append(&spool, &bytes[..1_993]);
        append(&spool, &[0; 7]);
        spool.sync().expect("a disk");
    }
    {
        let spool = opened(root.path()).expect("a spool");
        assert_eq!(length("00000001-0000000001000000.wal").ok(), Some(M));
        assert_eq!((spool.end(), spool.wants_spare()), (Some((1, Lsn(M + 2_000))), true));
        assert!(length("spare").is_err(), "it may be half made");
        // Zeros to the end of the block, as behind a switch of files: nothing says that they come again.
        let mut bytes = bytes[2_000..].to_vec();
        bytes[1_000_000..M as usize - 2_000].fill(0);
        append(&spool, &bytes[..M as usize - 2_000]);
    }
    {
        let spool = opened(root.path()).expect("a spool");
        assert_eq!(spool.end(), Some((1, Lsn(2 * M))));
        spool.prepare().expect("room");
        append(&spool, &bytes[..M as usize + 10]);
        spool.prepare().expect("room");
        append(&spool, &bytes[..M as usize]);
        spool.sync().expect("a disk");
        assert_eq!(length("00000001-0000000004000000.wal").ok(), Some(M));
        append(&spool, &[7; 100]);
        spool.cut_to_safe().expect("a disk");
        // Another timeline: the file that was left has the length of what it holds.
        assert!(spool.begin(2, Lsn(4 * M + 10), false, NOWHERE).expect("a file"));
        assert_eq!(length("00000001-0000000004000000.wal").ok(), Some(10));
    }
    let spool = opened(root.path()).expect("a spool");
    let ends: Vec<_> = spool.extents().iter().map(|extent| (extent.timeline, extent.end.0)).collect();
    assert_eq!(ends, [(1, 2 * M), (1, 3 * M), (1, 4 * M), (1, 4 * M + 10), (2, 4 * M + 10)]);
}

#[test]
fn a_hole_needs_a_reason() {
    let root = tempfile::tempdir().expect("a directory");
    {
        let spool = opened(root.path()).expect("a spool");
        for (start, gap) in [(0, false), (M, true), (3 * M, false)] {
            assert!(spool.begin(1, Lsn(start), gap, NOWHERE).expect("a file"));
            append(&spool, &[1; 100]);
            spool.sync().expect("a disk");
        }
        assert!(spool.begin(2, Lsn(2 * M), false, NOWHERE).expect("a file"));
    }
    let spool = opened(root.path()).expect("a spool");
    let kept: Vec<_> =
        spool.extents().iter().map(|extent| (extent.timeline, extent.start.0, extent.after_gap)).collect();
    assert_eq!(kept, [(1, 0, false), (1, M, true), (2, 2 * M, false)]);
    assert!(root.path().join("postgres-7/00000001-0000000003000000.stray").exists());
    spool.cut(1, Lsn(M + 40)).expect("a disk");
    assert_eq!(spool.end(), Some((1, Lsn(M + 40))));
}

#[tokio::test]
async fn a_later_timeline_in_the_archive_says_nothing_of_an_earlier_one() {
    let root = tempfile::tempdir().expect("a directory");
    let spool = WalSpool::open(root.path(), 7, Some(Arc::default())).expect("a spool");
    // The server went from timeline 1 to 3, and 2 is one that was given up.
    let archived = |end| BTreeMap::from([(1, Lsn(end)), (2, Lsn(8 * M))]);
    spool.release(archived(M));
    assert!(spool.begin(1, Lsn(M), false, Lsn(3 * M)).expect("room"));
    assert_eq!(take(&spool, &bytes_at(M, 2 * M), Lsn(3 * M)), 2 * M as usize);
    assert_eq!(take(&spool, &[1; 10], Lsn(3 * M)), 0, "no file behind what is only in memory");
    spool.release(archived(M));
    assert_eq!(read(&spool, 1, M, 20), bytes_at(M, 20));
    spool.release(archived(3 * M));
    assert_eq!(take(&spool, &[1; 10], Lsn(3 * M)), 10);
}

/// The bytes at `start`, of which each is its place modulo a prime number.
fn bytes_at(start: u64, length: u64) -> Vec<u8> {
    (start..start + length).map(|at| (at % 251) as u8).collect()
}

#[tokio::test]
async fn what_the_server_has_whole_stays_in_memory_until_it_is_archived() {
    let root = tempfile::tempdir().expect("a directory");
    let folder = root.path().join("postgres-7");
    let files = || std::fs::read_dir(&folder).expect("a folder").count() - 1;
    {
        let spool = WalSpool::open(root.path(), 7, Some(Arc::default())).expect("a spool");
        let (start, server_end) = (M - 1_000, Lsn(2 * M + 500));
        assert!(spool.begin(1, Lsn(start), false, server_end).expect("room"));
        let bytes = bytes_at(start, M + 1_500);
        assert_eq!(take(&spool, &bytes, server_end), 1_000 + M as usize, "the third is not whole");
        spool.full().await;
        assert_eq!((spool.sync().expect("nothing to do"), files(), spool.bytes()), (Lsn(2 * M), 0, 0));
        assert_eq!(read(&spool, 1, M - 10, 20), bytes_at(M - 10, 20));
        assert!(spool.take(1, Lsn(start), Lsn(M - 1)).is_none(), "it is given away whole");
        let block = spool.take(1, Lsn(start), Lsn(M)).expect("it is full");
        assert_eq!(block[..], bytes[..1_000]);
        assert!(spool.take(1, Lsn(start), Lsn(M)).is_none(), "it is given away once");
        drop(block);
        spool.room().await;
        assert_eq!(take(&spool, &bytes[1_000 + M as usize..], server_end), 0);
        // Not before the archive has it may anything behind it be on the disk.
        spool.release(BTreeMap::from([(1, Lsn(2 * M - 8))]));
        assert_eq!(take(&spool, &bytes[1_000 + M as usize..], server_end), 0);
        spool.release(BTreeMap::from([(1, Lsn(2 * M))]));
        spool.room().await;
        assert_eq!(take(&spool, &bytes[1_000 + M as usize..], server_end), 500);
        spool.sync().expect("a disk");
        assert_eq!((files(), spool.bytes()), (1, 500));
        spool.release(BTreeMap::from([(1, Lsn(2 * M))]));
        assert_eq!(spool.extents().len(), 1);
        assert!(!spool.forget(), "nothing is in memory any more");
        // The next one is whole again; the process ends before it is archived.
        assert_eq!(take(&spool, &bytes_at(2 * M + 500, M), Lsn(5 * M)), M as usize);
        assert_eq!(spool.end(), Some((1, Lsn(3 * M + 500))));
    }
    let spool = opened(root.path()).expect("a spool");
    assert_eq!(spool.end(), Some((1, Lsn(3 * M))), "what was in memory comes again");
}

#[tokio::test]
async fn memory_is_bounded_and_what_was_in_it_can_be_forgotten() {
    let root = tempfile::tempdir().expect("a directory");
    let buffers = Arc::<Buffers>::default();
    let (spool, server_end) =
        (WalSpool::open(root.path(), 7, Some(Arc::clone(&buffers))).expect("a spool"), Lsn(9 * M));
    assert!(spool.begin(1, Lsn(0), false, Lsn(10)).expect("room"), "the server has only begun it");
    append(&spool, &bytes_at(0, M - 10));
    let rest = bytes_at(M - 10, 7 * M);
    let room = 10 + MOST * M as usize;
    assert_eq!(take(&spool, &rest, server_end), room);
    assert_eq!(take(&spool, &rest[room..], server_end), 0);
    assert!(!spool.begin(2, Lsn(5 * M), false, NOWHERE).expect("it waits"), "nor is there room for a timeline");
    drop(spool.take(1, Lsn(M), Lsn(2 * M)));
    spool.room().await;
    assert_eq!(take(&spool, &rest[room..], server_end), M as usize);
    // Bytes that turn out to be no WAL: what memory held has to come again, too.
    spool.cut(1, Lsn(3 * M)).expect("a disk");
    assert_eq!((spool.end(), spool.extents().len()), (Some((1, Lsn(M))), 1));
    assert!(buffers.try_take().is_some());
    // Who has not heard of it goes on with what came behind that.
    assert!(spool.append((1, Lsn(5 * M)), &[1; 10], NOWHERE).is_err_and(|error| error.kind() == Kind::Unavailable));
    assert_eq!(spool.end(), Some((1, Lsn(M))));
}

#[test]
fn what_came_of_a_timeline_before_it_was_abandoned_is_put_aside_once() {
    let root = tempfile::tempdir().expect("a directory");
    let aside = || {
        let files = std::fs::read_dir(root.path().join("postgres-7")).expect("a folder").flatten();
        files.filter(|file| file.path().extension().is_some_and(|end| end == "abandoned")).count()
    };
    let generations = BTreeMap::from([(2, 1)]);
    {
        let spool = opened(root.path()).expect("a spool");
        spool.follow(&BTreeMap::new()).expect("a disk");
        for timeline in [1, 2] {
            assert!(spool.begin(timeline, Lsn(0), false, NOWHERE).expect("a file"));
            append(&spool, &[7; 100]);
            spool.sync().expect("a disk");
        }
    }
    {
        let spool = opened(root.path()).expect("a spool");
        spool.follow(&generations).expect("a disk");
        assert_eq!((spool.end(), aside()), (Some((1, Lsn(100))), 1));
        assert!(spool.begin(2, Lsn(0), false, NOWHERE).expect("a file"));
        append(&spool, &[8; 50]);
        spool.sync().expect("a disk");
    }
    let spool = opened(root.path()).expect("a spool");
    spool.follow(&generations).expect("a disk");
    assert_eq!((spool.end(), aside()), (Some((2, Lsn(50))), 1), "what came since is kept, by the next process, too");
}

//! Whatever stands where WAL should be: pages and records, a segment's object, a timeline's history.
#![no_main]

use tidelog::segment::wal::{WalReader, WalScanner, check_pages, parse_history};
use tidelog::stream::{Lsn, System};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(parse_history(3, bytes));
    if let Ok(reader) = WalReader::decode(bytes.to_vec().into()) {
        drop(reader.all());
    }
    let [size, at, pieces, wal @ ..] = bytes else { return };
    let system = System { system_id: 1, wal_segment_size: 1 << (20 + size % 11), server_version: 13 + u32::from(size % 6) };
    // On a page, at the front of a file, in the middle of a page.
    let at = Lsn(u64::from(at / 3) * 8192 + [0, 1, 4096][usize::from(at % 3)]);
    drop(check_pages(system.server_version, at, wal));
    let Ok(mut scanner) = WalScanner::new(system, 2, at, Lsn(u64::from(*pieces) * 100)) else { return };
    for piece in wal.chunks(usize::from(*pieces) + 1) {
        if scanner.feed(piece).is_err() {
            return;
        }
    }
});

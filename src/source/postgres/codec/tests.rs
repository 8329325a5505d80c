//! Known messages are read as they were written, and no bytes at all make the codec panic.

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::error::Kind;
use crate::source::postgres::error::ServerError;
use crate::source::postgres::fuzzing::server_bytes;
use crate::stream::Lsn;

fn parse(tag: u8, body: &[u8]) -> Backend<'_> {
    Backend::parse(tag, body).expect("a message")
}

#[test]
fn a_frame_is_as_long_as_it_says() {
    assert_eq!(frame(b"").expect("nothing yet"), None);
    assert_eq!(frame(b"Z\0\0\0").expect("not all of it"), None);
    assert_eq!(frame(b"Z\0\0\0\x05").expect("a header"), Some(6));
    for noise in [&b"Z\0\0\0\x03"[..], b"H\xff\xff\xff\xff", b"HTTP/1.1 400", b"S\x7f\xff\xff\xff"] {
        assert_eq!(frame(noise).expect_err("no length").kind(), Kind::Corrupt, "{noise:?}");
    }
}

#[test]
fn the_messages_of_a_log_in_are_read() {
    assert_eq!(parse(b'R', &[0, 0, 0, 0]), Backend::Authentication(Authentication::Ok));
    assert_eq!(
        parse(b'R', &[0, 0, 0, 5, 1, 2, 3, 4]),
        Backend::Authentication(Authentication::Md5 { salt: [1, 2, 3, 4] })
    );
    assert_eq!(
        parse(b'R', b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"),
        Backend::Authentication(Authentication::Sasl(vec![b"SCRAM-SHA-256-PLUS", b"SCRAM-SHA-256"]))
    );
    assert_eq!(parse(b'R', &[0, 0, 0, 7]), Backend::Authentication(Authentication::Other(7)));
    assert_eq!(
        parse(b'S', b"server_version\x0015.18\0"),
        Backend::ParameterStatus { name: b"server_version", value: b"15.18" }
    );
    assert!(Backend::parse(b'R', b"\0\0\0\x0aSCRAM").is_err(), "cut off");
    assert!(Backend::parse(b'?', b"").is_err(), "no such message");
}

#[test]
fn rows_keep_null_apart_from_empty() {
    let Backend::DataRow(row) = parse(b'D', b"\0\x03\xff\xff\xff\xff\0\0\0\0\0\0\0\x02ab") else { panic!("a row") };
    assert_eq!(row.texts(), [None, Some(String::new()), Some("ab".to_owned())]);
    assert_eq!((row.bytes(2), row.bytes(3)), (Some(&b"ab"[..]), None));
    assert!(Backend::parse(b'D', b"\0\x01\0\0\0\x05ab").is_err(), "a column longer than its row");
    assert!(Backend::parse(b'D', b"\0\x01\xff\xff\xff\xfe").is_err(), "a length below null");
}

#[test]
fn an_error_is_read_field_by_field() {
    let body = b"SFEHLER\0VERROR\0C55000\0Mno slot\0Dwhy\0Hdo\0Fslot.c\0\0";
    let expected = ServerError {
        severity: "ERROR".into(),
        sqlstate: "55000".into(),
        message: "no slot".into(),
        detail: Some("why".into()),
        hint: Some("do".into()),
    };
    assert_eq!(parse(b'E', body), Backend::Error(expected));
    assert!(Backend::parse(b'E', b"VERROR").is_err(), "cut off");
}

#[test]
fn the_messages_of_a_wal_stream_are_read() {
    let mut wal = vec![b'w'];
    wal.extend([0, 0, 0, 1, 0, 0, 0, 2]);
    wal.extend([0, 0, 0, 1, 0, 0, 0, 9]);
    wal.extend(0i64.to_be_bytes());
    wal.extend(b"bytes");
    let start = "1/2".parse().expect("an LSN");
    let server_end = "1/9".parse().expect("an LSN");
    assert_eq!(
        Stream::parse(&wal).expect("WAL"),
        Stream::Wal { start, server_end, sent_us: 946_684_800_000_000, bytes: b"bytes" }
    );
    let keepalive = [&[b'k'][..], &[0, 0, 0, 1, 0, 0, 0, 9], &1i64.to_be_bytes(), &[1]].concat();
    assert_eq!(
        Stream::parse(&keepalive).expect("a keepalive"),
        Stream::Keepalive { server_end, sent_us: 946_684_800_000_001, reply_requested: true }
    );
    assert!(Stream::parse(&wal[..24]).is_err() && Stream::parse(b"").is_err() && Stream::parse(b"x").is_err());
}

#[test]
fn the_messages_of_a_base_backup_are_read() {
    assert_eq!(
        Archive::parse(b"nbase.tar\0\0").expect("an archive"),
        Archive::New { name: "base.tar".into(), tablespace: None }
    );
    assert_eq!(
        Archive::parse(b"n16384.tar\0/fast\0").expect("an archive"),
        Archive::New { name: "16384.tar".into(), tablespace: Some("/fast".into()) }
    );
    assert_eq!(Archive::parse(b"dxyz").expect("data"), Archive::Data(b"xyz"));
    assert_eq!(Archive::parse(b"m").expect("the manifest"), Archive::Manifest);
    assert_eq!(Archive::parse(b"p\0\0\0\0\0\0\x01\0").expect("progress"), Archive::Progress(256));
    assert!(Archive::parse(b"nbase.tar").is_err());
}

#[test]
fn a_report_is_written_as_the_server_reads_it() {
    let mut out = BytesMut::new();
    standby_status(&mut out, [Lsn(3), Lsn(2), Lsn(1)], 946_684_800_000_007, true);
    let positions = [3u64, 2, 1].map(u64::to_be_bytes).concat();
    assert_eq!(out, [&b"d\0\0\0\x26r"[..], &positions, &7i64.to_be_bytes(), &[1]].concat());
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        server_bytes(&bytes);
        drop((Stream::parse(&bytes), Archive::parse(&bytes)));
    }

    #[test]
    fn no_body_of_a_known_message_makes_it_panic(
        messages in proptest::collection::vec(
            (proptest::sample::select(&b"RSZTDCIWHGdcENKAv"[..]), proptest::collection::vec(any::<u8>(), 0..60)), 0..8)
    ) {
        let mut bytes = Vec::new();
        for (tag, body) in &messages {
            bytes.push(*tag);
            bytes.extend((body.len() as i32 + 4).to_be_bytes());
            bytes.extend(body);
        }
        server_bytes(&bytes);
    }

    #[test]
    fn a_known_message_that_is_cut_anywhere_is_refused_or_shorter(cut in 0usize..40) {
        let body = b"\0\x03\xff\xff\xff\xff\0\0\0\0\0\0\0\x02ab";
        let cut = cut.min(body.len());
        prop_assert_eq!(Backend::parse(b'D', &body[..cut]).is_ok(), cut == body.len());
    }
}

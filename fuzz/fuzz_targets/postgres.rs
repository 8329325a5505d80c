//! Whatever a server sends: frames, messages, what lies inside copied data.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidelog::source::postgres::fuzzing::server_bytes(bytes));

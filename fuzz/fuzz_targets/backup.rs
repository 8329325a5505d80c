//! Whatever a base backup holds: the server's manifest, archives of files.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidelog::restore::fuzzing::backup_bytes(bytes));

//! Whatever stands where an object should be that describes an archive: entries, pages, coverage, base backups.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidelog::manifest::fuzzing::object_bytes(bytes));

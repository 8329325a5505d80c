//! Whatever a topic holds: change events as JSON and as Avro, and the schemas of a registry.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidelog::recover::cut::fuzzing::event_bytes(bytes));

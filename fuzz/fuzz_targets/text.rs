//! Whatever people and other programs write: configuration, times, positions, names of files and streams.
#![no_main]

use std::collections::BTreeMap;

use tidelog::config::Config;
use tidelog::restore::wal_fetch::Name;
use tidelog::stream::{Lsn, StreamId};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let now = chrono::DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
    drop((tidelog::time::parse(text, now), text.parse::<Lsn>(), text.parse::<Name>(), text.parse::<StreamId>()));
    drop(Config::parse(text, "fuzz", &BTreeMap::new()));
    // As a value of its own: a URL, a duration, a size.
    for key in ["postgres]\nurl", "postgres]\nurl = 'host=a'\nmax_age", "memory]\nbudget", "archive]\nurl"] {
        drop(Config::parse(&format!("[{key} = {text:?}\n"), "fuzz", &BTreeMap::new()));
    }
});

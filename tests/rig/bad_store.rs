//! Whole suites with an S3 server in the place of the disk, behind a proxy that disturbs one request of eight.
//!
//! ```text
//!   RIG_STORE=bad-s3     Home::write: url = "file://<home>/archive" becomes s3://archive and its options
//!
//!   tidelog ──► Proxy (draws from RIG_SEED) ──► s3s-fs ──► <home>/archive, where tests look and break things as ever
//! ```
//!
//! s3s-fs keeps the objects as files below their keys, so that the tests need not know. Those that are about a disk itself are left
//! out, by name: `bad_store.sh`.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use super::records::Random;
use super::s3::{Bucket, s3s_fs_in};
use super::s3_proxy::{Fault, Proxy};

/// Drawn where `RIG_SEED` says nothing else.
const SEED: u64 = 13;

/// The servers of one home's archives, by the first of which was asked for.
#[derive(Default)]
pub(crate) struct BadStore {
    served: Mutex<Option<(Bucket, Proxy)>>,
}

/// Whether archives on the disk are to be put behind a bad store.
pub(crate) fn is_wanted() -> bool {
    match std::env::var("RIG_STORE").as_deref() {
        Err(_) | Ok("") => false,
        Ok("bad-s3") => true,
        Ok(other) => panic!("RIG_STORE={other}: only bad-s3 is known"),
    }
}

impl BadStore {
    /// The text of a configuration with each archive in a directory right below `home` as a bucket of that name.
    pub(crate) fn put_behind(&self, home: &Path, config: &str) -> String {
        let before = format!("url = \"file://{}/", home.display());
        let Some((above, rest)) = config.split_once(&before) else { return config.to_owned() };
        let (name, below) = rest.split_once('"').expect("a string ends");
        std::fs::create_dir_all(home.join(name)).expect("a bucket can be made");
        let mut served = self.served.lock().expect("no test panics within");
        let (bucket, _) = served.get_or_insert_with(|| serve(home, name));
        let options: Vec<String> = bucket.options().iter().map(|(key, value)| format!("{key} = {value:?}")).collect();
        format!("{above}url = \"s3://{name}\"\noptions = {{ {} }}{below}", options.join(", "))
    }

    /// How many requests were disturbed.
    pub(crate) fn disturbed(&self) -> u64 {
        self.served.lock().expect("no test panics within").as_ref().map_or(0, |(_, proxy)| proxy.disturbed())
    }
}

impl Drop for BadStore {
    fn drop(&mut self) {
        // The harness shows it with a failure: was the store to blame at all?
        if let Ok(Some((_, proxy))) = self.served.get_mut() {
            println!("{} of {} requests to the bad store were disturbed", proxy.disturbed(), proxy.came(""));
        }
    }
}

fn serve(home: &Path, name: &str) -> (Bucket, Proxy) {
    let seed = std::env::var("RIG_SEED").ok().filter(|seed| !seed.is_empty());
    let seed = seed.map_or(SEED, |seed| seed.parse().expect("RIG_SEED is a number"));
    println!("archives below {} are in a bad S3 store: RIG_SEED={seed}", home.display());
    let mut bucket = s3s_fs_in(home, name);
    let proxy = Proxy::before(&mut bucket);
    proxy.disturb(seed);
    (bucket, proxy)
}

/// What happens to a request; nothing to most.
pub(crate) fn draw(random: &mut Random, method: &str, creates: bool) -> Option<Fault> {
    let writes = matches!(method, "PUT" | "POST");
    Some(match random.below(100) {
        0..2 => Fault::Answer(503, "SlowDown"),
        2..4 => Fault::Answer(400, "RequestTimeout"),
        4..6 => Fault::Delay(Duration::from_millis(random.below(400))),
        6 => Fault::BytesPerSecond(100_000),
        7..10 => Fault::LoseAnswer,
        10..12 if writes => Fault::AnswerAfter(500, "InternalError"),
        10..13 if method == "GET" => Fault::CutAnswer(usize::try_from(random.below(2_000)).expect("small")),
        13..19 if creates => Fault::Answer(409, "ConditionalRequestConflict"),
        _ => return None,
    })
}

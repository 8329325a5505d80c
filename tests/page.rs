//! The status page in a real browser: Debian's Chromium without a screen, driven by playwright-core, judged by axe-core.
//! What is looked at stands in `tests/page/check.mjs`.

use std::path::Path;
use std::process::Command;

use crate::http::Service;
use crate::rig::kafka::shared;
use crate::rig::topics::{Codec, Message};
use crate::rig::{parts, program, unique};
use crate::site::{STOP, Settings};

#[test]
fn the_page_is_sound_in_a_browser() {
    let (kafka, topic) = (shared(), unique("page"));
    kafka.create_topic(&topic, 2, &[]);
    let messages: Vec<Message> = (0..100).map(|n| Message::new(n % 2, "key", &format!("record {n}"))).collect();
    kafka.produce(&topic, Codec::Lz4, &messages);
    let service = Service::start(kafka, &Settings { topics: &[&topic], ..Settings::default() }, "");
    let mut node = Command::new("node");
    node.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page/check.mjs"))
        .args([&format!("http://{}", service.server.address), &topic])
        .env("RIG_PAGE", &parts().page);
    let checked = program::run(node).expect(0);
    assert_eq!(checked.stdout, "the page is sound\n", "{}", checked.stderr);
    service.program.terminate(STOP);
}

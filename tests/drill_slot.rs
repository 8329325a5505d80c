//! `tidelog drill slot`: a slot that was lost in the middle of a load comes back on a scratch standby, and gives what the topics have.

use std::fs;

use serde_json::json;

use crate::drill::programs;
use crate::recover::{Lost, as_postgres};
use crate::rig::program::{self, Output};

fn drill(lost: &Lost, more: &[&str]) -> Output {
    fs::create_dir_all(lost.service.site.home().path().join("scratch")).expect("a directory");
    let bin_dir = programs(lost.version);
    let args = ["-c", "tidelog.toml", "drill", "slot", "--scratch", "scratch", "--bin-dir", &bin_dir, "--json"];
    program::run(as_postgres(&lost.service.site, &[&args[..], more].concat()))
}

/// Drills with what was archived of a pipeline.
pub(crate) fn drills(lost: &Lost) {
    let report = drill(lost, &["--at", &lost.to]).expect(0).json();
    assert_eq!((&report["ok"], &report["findings"]), (&json!(true), &json!([])), "{report}");
    let [slot] = report["slots"].as_array().expect("slots").as_slice() else { panic!("{report}") };
    assert_eq!((&slot["connector"], &slot["slot"]), (&json!(lost.name), &json!(lost.slot)), "{report}");
    let count = |key: &str| slot[key].as_u64().expect("a number");
    assert!(count("decoded") > 30 && count("commits") >= count("decoded"), "{report}");
    // All that the connector wrote of it is in the topics, and it wrote all.
    assert_eq!(count("in_topics"), count("decoded"), "{report}");
    let home = lost.service.site.home().path();
    assert!(fs::read_dir(home.join("scratch")).expect("a directory").next().is_none(), "the directory is still there");
    let kept = fs::read(home.join("archive/drills/slot.json")).expect("the result is kept");
    assert!(String::from_utf8_lossy(&kept).contains("\"outcome\":\"passed\""));

    // Where no base backup leads to, it does not pass, and says why.
    let from = slot["decodes_from"].as_str().expect("a position");
    let report = drill(lost, &["--at", from]).json();
    let said = report.to_string();
    assert!(report["ok"] == false, "{report}");
    assert!(said.contains("no base backup lies so far before") || said.contains("no slot could be tried"), "{report}");
}

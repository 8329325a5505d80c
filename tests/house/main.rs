//! The rules of the house, held against the code: which module may use which, no two files that use each other, and how
//! long things are. It needs no server: `cargo test --test house` takes seconds, and `-- --nocapture` prints the table.

mod measure;
mod picture;
mod selftest;
mod source;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use measure::{Sizes, Table};
use picture::Picture;

/// The sizes that nothing may exceed, at width 100. Whoever makes one smaller writes the smaller number here.
const LIMITS: Sizes = Sizes {
    longest_function: 119,
    long_functions: 13,
    longest_file: 670,
    long_files: 11,
    most_parameters: 7,
    wide_functions: 8,
};

/// Rooms whose files use what their own door defines, while the door uses them: what is left to be untangled. This list
/// only gets shorter; what several files of a room share belongs into a file of its own.
const DOORS: &[&str] = &["cli/replay/mod.rs", "verify/mod.rs"];

/// Arrows between files beside each other that close a circle: what is left to be untangled. This list only gets shorter.
const ARROWS: &[(&str, &str)] = &[
    ("stream/abandon.rs", "stream/checkpoint.rs"),
    ("stream/entered.rs", "stream/checkpoint.rs"),
    ("stream/invariants.rs", "stream/progress.rs"),
];

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn design() -> &'static str {
    include_str!("../../docs/DESIGN.md")
}

/// Returns the picture of `src` without what is excepted.
fn without(doors: &[&str], arrows: &[(&str, &str)]) -> Picture {
    static WHOLE: LazyLock<Picture> = LazyLock::new(|| Picture::read(&src()));
    let mut picture = WHOLE.clone();
    picture.without_doors(|door| doors.iter().any(|known| Path::new(known) == door));
    picture.without_arrows(arrows);
    picture
}

#[test]
fn nothing_points_upward() {
    let upward = without(&[], &[]).upward(&picture::layers(design()));
    assert!(upward.is_empty(), "a module may use those above it in docs/DESIGN.md alone:\n{}", upward.join("\n"));
}

#[test]
fn the_crates_page_tours_the_modules_in_the_order_of_the_design() {
    let page: Vec<String> = include_str!("../../src/lib.rs")
        .lines()
        .filter_map(|line| Some(line.strip_prefix("//! | [`")?.split_once("`]")?.0.to_owned()))
        .collect();
    assert_eq!(page, picture::layers(design()));
}

#[test]
fn no_two_files_use_each_other() {
    let picture = without(DOORS, ARROWS);
    let circles: Vec<String> = picture.circles().iter().map(|circle| picture.describe(circle)).collect();
    assert!(circles.is_empty(), "these files use each other:\n{}", circles.join("\n\n"));
}

#[test]
fn every_exception_is_still_needed() {
    for door in DOORS {
        let others: Vec<&str> = DOORS.iter().copied().filter(|other| other != door).collect();
        assert!(!without(&others, ARROWS).circles().is_empty(), "{door} has no circle any more: take it off the list");
    }
    for arrow in ARROWS {
        let others: Vec<_> = ARROWS.iter().copied().filter(|other| other != arrow).collect();
        assert!(!without(DOORS, &others).circles().is_empty(), "{arrow:?} closes no circle: take it off the list");
    }
}

#[test]
fn nothing_grows() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let table = Table::of(&src(), &scratch.path().join("src"));
    println!("{}", table.text());
    let sizes = table.sizes();
    println!("{sizes:#?}");
    assert!(sizes.within(&LIMITS), "{sizes:#?}\nexceeds\n{LIMITS:#?}\n{}", table.text());
}

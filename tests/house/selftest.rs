//! The rules are tried on small crates that break them.

use std::path::Path;

use super::picture::{self, Picture};
use super::source;

/// Writes the files of a crate.
fn crate_of(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a scratch directory");
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("it has a folder")).expect("the folder");
        std::fs::write(path, text).expect("the file");
    }
    dir
}

fn circles(files: &[(&str, &str)], doors: bool) -> Vec<String> {
    let dir = crate_of(files);
    let mut picture = Picture::read(dir.path());
    picture.without_doors(|_| doors);
    picture.circles().iter().map(|circle| picture.describe(circle)).collect()
}

const LIB: (&str, &str) = ("lib.rs", "pub mod a;\npub mod b;\n");

#[test]
fn two_files_that_use_each_other_are_found_however_they_name_each_other() {
    for back in [
        "use crate::a::one;",
        "use super::a;\nfn two() { a::one() }",
        "use super::{a::{one, self}};",
        "fn two() { crate::a::one() }",
        "fn two() { super::a::one() }",
        "use crate::a as other;\nfn two() { other::one() }",
        "use crate::a::*;",
    ] {
        let found = circles(&[LIB, ("a.rs", "use crate::b::two;\npub fn one() {}"), ("b.rs", back)], false);
        assert_eq!(found.len(), 1, "{back}");
        assert!(found[0].contains("b.rs -> a.rs"), "{}", found[0]);
    }
}

#[test]
fn what_is_a_comment_a_string_or_a_test_is_no_use() {
    for back in [
        "// use crate::a::one;",
        "/* use crate::a::one; */ fn two() {}",
        "fn two() -> &'static str { \"crate::a::one\" }",
        "fn two<'a>(x: &'a str) -> char { '\"' } // crate::a::one \"",
        "fn two() -> &'static str { r#\"say \"crate::a::one\" \"# }",
        "#[cfg(test)]\nmod tests { use crate::a::one; }",
        "#[cfg(test)]\nuse crate::a::one;",
    ] {
        let found = circles(&[LIB, ("a.rs", "use crate::b::two;\npub fn one() {}"), ("b.rs", back)], false);
        assert!(found.is_empty(), "{back}: {found:?}");
    }
}

#[test]
fn a_name_that_is_handed_on_is_used_where_it_is_defined() {
    let files = [
        ("lib.rs", "pub mod room;"),
        ("room/mod.rs", "mod inner;\nmod user;\npub use inner::Thing;\npub fn all() {}"),
        ("room/inner.rs", "pub struct Thing;\nuse super::user::help;"),
        ("room/user.rs", "use super::Thing;\npub fn help() {}"),
    ];
    let found = circles(&files, false);
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("room/user.rs -> room/inner.rs: Thing"), "{}", found[0]);
}

#[test]
fn a_door_that_is_on_the_list_may_use_its_own_room_and_its_room_may_not_go_round() {
    let door = [
        ("lib.rs", "pub mod room;"),
        ("room/mod.rs", "mod inner;\nuse inner::go;\npub struct Shared;\npub fn all() { go() }"),
        ("room/inner.rs", "use super::Shared;\npub fn go() {}"),
    ];
    assert_eq!(circles(&door, false).len(), 1);
    assert_eq!(circles(&door, true).len(), 0);
}

#[test]
fn three_files_that_go_round_are_found() {
    let files = [
        ("lib.rs", "pub mod a;\npub mod b;\npub mod c;"),
        ("a.rs", "use crate::b::two;\npub fn one() {}"),
        ("b.rs", "use crate::c::three;\npub fn two() {}"),
        ("c.rs", "use crate::a::one;\npub fn three() {}"),
    ];
    assert_eq!(circles(&files, false).len(), 1);
}

#[test]
fn an_arrow_that_points_upward_is_found_and_a_module_that_the_design_lacks() {
    let dir = crate_of(&[LIB, ("a.rs", "pub fn one() {}"), ("b.rs", "pub fn two() { crate::a::one() }")]);
    let table =
        |rows: &str| picture::layers(&format!("## Modules\n\n| module | owns |\n|---|---|\n{rows}\n\n# Next\n"));
    let picture = Picture::read(dir.path());
    assert!(picture.upward(&table("| `a` | x |\n| `b` | y |")).is_empty());
    let upward = picture.upward(&table("| `b` | y |\n| `a` | x |"));
    assert_eq!(upward, ["b.rs uses one of a.rs, which stands below it"]);
    assert_eq!(picture.upward(&table("| `a` | x |")), ["b.rs is of no module that the table names"]);
}

#[test]
fn functions_are_measured() {
    let text = "impl X {\n fn one(&mut self, a: (u8, u8), f: impl Fn(u8, u8) -> u8) -> [u8; 2] {\n  '}';\n  \"}\";\n }\n}\n\
                trait T { fn none(a: u8); }\nfn two<A, B>(a: Map<A, B>, b: &dyn Fn() -> u8, c: [u8; 3]) {}\nfn no() {}";
    let found: Vec<_> =
        source::functions(&source::tokens(text)).iter().map(|f| (f.name.clone(), f.lines, f.parameters)).collect();
    assert_eq!(found, [("one".to_owned(), 4, 2), ("two".to_owned(), 1, 3), ("no".to_owned(), 1, 0)]);
}

#[test]
fn every_file_of_the_tree_is_read_to_its_end() {
    for file in source::files(&super::src()) {
        let open = file.tokens.iter().filter(|token| token.is("{")).count();
        let closed = file.tokens.iter().filter(|token| token.is("}")).count();
        assert_eq!(open, closed, "{}", file.path.display());
    }
    assert!(Path::new(&super::src()).join("lib.rs").exists());
}

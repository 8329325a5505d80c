//! The section `[state]`.

use std::time::Duration;

use super::raw::Section;
use super::{State, TopicPattern};

/// Keys of `[state]` that belong to the file's final shape but that this version cannot honour: ignoring one would let its user
/// believe that it works.
const NOT_YET: [(&str, &str); 4] = [
    ("connect_url", "Connect"),
    ("connect", "Connect"),
    ("schema_registry_url", "a schema registry"),
    ("schema_registry", "a schema registry"),
];

/// Reads the section.
pub(super) fn read(mut section: Section<'_>) -> State {
    let every = section.duration("every", Duration::from_secs(30), Duration::from_secs(1));
    let mut patterns = |key: &'static str, default: &[&str]| {
        let texts = section.list(key).unwrap_or_else(|| default.iter().map(|text| (*text).to_owned()).collect());
        for problem in texts.iter().filter_map(|text| TopicPattern::parse(text).err()) {
            section.problem(key, problem);
        }
        texts
    };
    let (groups, exclude_groups) = (patterns("groups", &["^.*"]), patterns("exclude_groups", &[]));
    if groups.is_empty() {
        section.problem("groups", "is empty; name at least one group, or leave the key out for all of them");
    }
    for (name, what) in NOT_YET {
        if section.is_set(name) {
            section
                .problem(name, format!("is not supported by this version, which keeps no state of {what}; remove it"));
        }
    }
    section.finish();
    State { every, groups, exclude_groups }
}

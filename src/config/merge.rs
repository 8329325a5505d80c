//! The section `[kafka.merge]`.

use std::time::Duration;

use super::raw::Section;

/// `[kafka.merge]`: how small segments become large ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    /// `after`: segments that were sealed within such a span are merged once it is over for as long.
    pub after: Duration,
    /// `cpu_percent`: how much of one core it takes at the most.
    pub cpu_percent: u64,
    /// `bytes_per_second`: how much it reads and writes at the most.
    pub bytes_per_second: u64,
}

impl Default for Merge {
    fn default() -> Self {
        Self { after: Duration::from_secs(3_600), cpu_percent: 25, bytes_per_second: 16 << 20 }
    }
}

/// Reads the section, which may not be there; none where `enabled` is false.
pub(super) fn read(section: Option<Section<'_>>) -> Option<Merge> {
    let default = Merge::default();
    let Some(mut section) = section else { return Some(default) };
    let merge = Merge {
        after: section.duration("after", default.after, Duration::from_secs(1)),
        cpu_percent: section.count("cpu_percent", default.cpu_percent),
        bytes_per_second: section.size("bytes_per_second", default.bytes_per_second, (64 << 10, 1 << 40)),
    };
    if merge.cpu_percent > 100 {
        section.problem("cpu_percent", format!("{} is not allowed, use 100 or less", merge.cpu_percent));
    }
    let enabled = section.truth("enabled", true);
    section.finish();
    enabled.then_some(merge)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::Config;

    fn parse(text: &str) -> Result<Option<Merge>, String> {
        let least = "[archive]\nurl = \"file:///a\"\n[kafka]\nbootstrap_servers = \"a:9092\"\ntopics = [\"^.*\"]\n";
        let config = Config::parse(&format!("{least}{text}"), "test", &BTreeMap::new());
        config.map(|config| config.kafka.expect("it has Kafka").merge).map_err(|error| error.to_string())
    }

    #[test]
    fn segments_are_merged_unless_it_is_switched_off() {
        assert_eq!(parse(""), Ok(Some(Merge::default())));
        assert_eq!(parse("[kafka.merge]\nenabled = false\n"), Ok(None));
        let own = parse("[kafka.merge]\nafter = \"2h\"\ncpu_percent = 50\nbytes_per_second = \"1MiB\"\n");
        let wanted = Merge { after: Duration::from_secs(7_200), cpu_percent: 50, bytes_per_second: 1 << 20 };
        assert_eq!(own, Ok(Some(wanted)));
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_way_out() {
        for (text, told) in [
            ("after = \"0s\"", "kafka.merge.after: 0s is not allowed"),
            ("cpu_percent = 101", "kafka.merge.cpu_percent: 101 is not allowed, use 100 or less"),
            ("bytes_per_second = \"1KiB\"", "kafka.merge.bytes_per_second:"),
            ("every = \"1h\"", "kafka.merge.every"),
        ] {
            let problems = parse(&format!("[kafka.merge]\n{text}\n")).expect_err(text);
            assert!(problems.contains(told), "{text}: {problems}");
        }
    }
}

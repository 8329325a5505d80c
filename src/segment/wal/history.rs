//! The history of a timeline: which timelines it comes from, and where it left each of them.
//!
//! ```text
//! 1<tab>0/5000148<tab>no recovery target specified
//! 2<tab>0/70000A0<tab>…                                   `timeline.c`, `readTimeLineHistory`
//! ```

use crate::error::{Error, Kind, Result};
use crate::stream::Lsn;

/// Where a timeline was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// The timeline that was left.
    pub timeline: u32,
    /// The first position that is not of it any more.
    pub at: Lsn,
}

/// The timelines that `timeline` comes from, oldest first.
///
/// # Errors
/// [`Kind::Corrupt`] for a text that is no history of `timeline`.
pub fn parse_history(timeline: u32, text: &[u8]) -> Result<Vec<Switch>> {
    let wrong = |what: String| Error::new(Kind::Corrupt, format!("the history of timeline {timeline} is none: {what}"));
    let mut switches: Vec<Switch> = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(line);
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.split_ascii_whitespace();
        let parent = words.next().and_then(|word| word.parse::<u32>().ok());
        let at = words.next().and_then(|word| word.parse::<Lsn>().ok());
        let (Some(parent), Some(at)) = (parent, at) else { return Err(wrong(format!("{line:?} names no switch"))) };
        if parent >= timeline || switches.last().is_some_and(|last| last.timeline >= parent || last.at > at) {
            return Err(wrong(format!("{line:?} is out of order")));
        }
        switches.push(Switch { timeline: parent, at });
    }
    if switches.is_empty() {
        return Err(wrong("it names no timeline".to_owned()));
    }
    Ok(switches)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_history_names_its_ancestors_in_order() {
        let text = b"1\t0/5000148\tno recovery target specified\n\n2\t0/70000A0\treason\n";
        let expected = [Switch { timeline: 1, at: Lsn(0x500_0148) }, Switch { timeline: 2, at: Lsn(0x700_00a0) }];
        assert_eq!(parse_history(3, text).expect("a history"), expected);
        for wrong in ["", "x\t0/1\n", "1\t5\n", "2\t0/1\n1\t0/2\n", "1\t0/2\n2\t0/1\n", "3\t0/1\n"] {
            assert_eq!(parse_history(3, wrong.as_bytes()).expect_err(wrong).kind(), Kind::Corrupt);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(parse_history(3, &text));
        }
    }
}

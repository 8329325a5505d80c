//! Text from outside as a terminal, a log and a line of JSON get it: every character shows itself, and none does anything.
//!
//! Names of objects and topics, messages of servers and stores, paths in tar files and records are written by others. A terminal
//! takes some of their characters for orders: it clears lines, sets its title, sends text as if it were typed (ESC and the
//! C1 controls: ECMA-48, section 5.4), or shows what follows in another order than it stands (UAX #9, section 2: "Trojan
//! Source", CVE-2021-42574). A line feed begins a line that looks like one of ours.
//!
//! ```text
//!   one_line     a name, a message          every such character as \u{1b}, line feeds and tabs too
//!   name         a name in a message        the same, and what is too long without its middle
//!   lines        text that we put together  the same, but line feeds and tabs stand
//!   json         JSON                       DEL, C1 and the marks of direction as \u009b: a parser reads the same value
//! ```

use std::borrow::Cow;

/// Returns whether a terminal or a viewer may do something else with a character than show it in its place: controls (C0, DEL, C1), marks
/// that change the direction of text, separators of lines and paragraphs.
pub fn is_unsafe(c: char) -> bool {
    c.is_control() || is_mark(c)
}

fn is_mark(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A name or a message, on one line.
pub fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, is_unsafe)
}

/// The most bytes that a name in a message keeps. A key of S3 has 1,024 at the most.
pub const MOST_OF_NAME: usize = 1200;

/// A name that others gave, as a message has it: on one line, and no longer than any that is meant to be read.
pub fn name(name: &str) -> Cow<'_, str> {
    shortened(one_line(name), MOST_OF_NAME)
}

/// Text of `most` bytes at the most, and of what stands in the place of its middle where it has more. Both ends stay: a message
/// says at its end what is wrong.
pub fn shortened(text: Cow<'_, str>, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text;
    }
    let (head, tail) = (text.floor_char_boundary(most / 2), text.ceil_char_boundary(text.len() - most / 2));
    Cow::Owned(format!("{} [… {} bytes …] {}", &text[..head], tail - head, &text[tail..]))
}

/// Text of several lines. What of it comes from outside and has to stay on its line was given to [`one_line`] before.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_unsafe(c) && !matches!(c, '\n' | '\t'))
}

/// JSON that means the same. A writer of JSON escapes the controls below U+0020 by itself; the rest that is unsafe can stand in
/// strings alone.
pub fn json(text: &str) -> Cow<'_, str> {
    replaced(text, is_unsafe_in_json, |c, out| {
        // None of them lies beyond the 16 bits that the escape has.
        out.push_str(&format!("\\u{:04x}", u32::from(c)));
    })
}

/// Returns whether JSON allows a character in a string that is unsafe all the same.
pub fn is_unsafe_in_json(c: char) -> bool {
    c >= '\u{7f}' && is_unsafe(c)
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    replaced(text, is_escaped, |c, out| match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c => out.extend(c.escape_unicode()),
    })
}

fn replaced(text: &str, is_replaced: impl Fn(char) -> bool, replace: impl Fn(char, &mut String)) -> Cow<'_, str> {
    let Some(first) = text.find(&is_replaced) else { return Cow::Borrowed(text) };
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(&text[..first]);
    for c in text[first..].chars() {
        if is_replaced(c) { replace(c, &mut out) } else { out.push(c) }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Characters of every kind that matters, so that random text is full of them.
    fn text() -> impl Strategy<Value = String> {
        let unsafe_ones = "[\u{0}-\u{1f}\u{7f}-\u{9f}\u{61c}\u{200b}-\u{200f}\u{2026}-\u{2030}\u{2064}-\u{206b}]";
        proptest::collection::vec(prop_oneof![unsafe_ones, "[a-z\"\\\\]", any::<char>().prop_map(String::from)], 0..24)
            .prop_map(|parts| parts.concat())
    }

    #[test]
    fn what_a_terminal_obeys_is_shown() {
        assert_eq!(one_line("a\u{1b}]0;x\u{7}\n\u{9b}2J\u{202e}b"), "a\\u{1b}]0;x\\u{7}\\n\\u{9b}2J\\u{202e}b");
        assert_eq!(lines("a\n\tb\r\u{7f}\n"), "a\n\tb\\r\\u{7f}\n");
        assert_eq!(json("{\"\u{202e}\":\"\u{7f}\u{9b}\"}\n"), "{\"\\u202e\":\"\\u007f\\u009b\"}\n");
        for plain in ["", "zażółć 日本語 →", "\u{200d}\u{feff}", "a b"] {
            assert!(matches!(one_line(plain), Cow::Borrowed(_)), "{plain:?}");
        }
        let listed = [
            '\u{1b}', '\u{7}', '\u{8}', '\r', '\u{7f}', '\u{80}', '\u{9b}', '\u{9f}', '\u{200e}', '\u{200f}', '\u{61c}',
        ];
        for c in listed.into_iter().chain('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}') {
            assert!(is_unsafe(c), "{c:?}");
        }
    }

    #[test]
    fn what_is_long_keeps_its_ends() {
        assert_eq!(name("short\u{1b}"), "short\\u{1b}");
        let long = format!("begin{}end", "é\u{1b}".repeat(4 << 20));
        let cut = name(&long);
        assert!(cut.starts_with("beginé\\u{1b}é") && cut.ends_with("é\\u{1b}end") && cut.len() < 1300, "{cut}");
        for most in 0..20 {
            assert!(shortened("ééééééé日本語".into(), most).contains("bytes …]"), "{most}");
        }
        assert_eq!(shortened("abcdefgh".into(), 4), "ab [… 4 bytes …] gh");
    }

    proptest! {
        #[test]
        fn nothing_that_is_unsafe_is_left_and_nothing_else_changes(text in text()) {
            prop_assert!(!one_line(&text).contains(is_unsafe));
            prop_assert!(!lines(&text).contains(|c| is_unsafe(c) && c != '\n' && c != '\t'));
            let safe = |text: &str| text.chars().filter(|c| !is_unsafe(*c)).collect::<String>();
            let kept = safe(&text);
            let mut left = kept.chars().peekable();
            // What was safe is there in its order.
            one_line(&text).chars().for_each(|c| { left.next_if_eq(&c); });
            prop_assert_eq!(left.next(), None);
            prop_assert_eq!(&*one_line(&kept), &*kept);
            let once = one_line(&text).into_owned();
            prop_assert_eq!(&*one_line(&once), &*once);
        }

        #[test]
        fn json_keeps_its_value(text in text()) {
            let written = serde_json::to_string(&serde_json::json!({ text.clone(): [text] })).expect("JSON");
            let escaped = json(&written);
            prop_assert!(!escaped.contains(is_unsafe));
            let value: serde_json::Value = serde_json::from_str(&escaped).expect("valid JSON");
            prop_assert_eq!(value, serde_json::from_str::<serde_json::Value>(&written).expect("valid JSON"));
        }
    }
}

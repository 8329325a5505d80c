//! One record as one line of JSON, for `cat` and `replay --to-stdout`.
//!
//! ```json
//! {"topic":"orders","partition":3,"offset":17,"timestamp":"2026-11-22T08:05:12.000Z","timestamp_type":"CreateTime",
//!  "key":"42","value":{"base64":"AAECAw=="},"headers":[["source","pg"],["empty",null]]}
//! ```
//! What a terminal would obey (controls, marks of direction: see [`crate::escape`]) is written as `\u001b`, which is the same value.
//! Text stands as text, other bytes as `{"base64":"…"}`, null as null, so that a line loses nothing of the record. A
//! record without a timestamp (-1 in Kafka) has null.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::escape::is_unsafe_in_json;
use crate::record::Record;
use crate::time::write_rfc3339;

/// What every line of one topic begins with, escaped once.
pub(super) struct Line {
    head: Vec<u8>,
}

impl Line {
    /// The lines of `topic`.
    pub(super) fn of_topic(topic: &str) -> Self {
        let mut head = br#"{"topic":"#.to_vec();
        text_or_base64(topic.as_bytes(), &mut head);
        head.extend_from_slice(br#","partition":"#);
        Self { head }
    }

    /// Appends the line of `record`, its line feed included.
    pub(super) fn write(&self, partition: i32, record: &Record<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        integer(i64::from(partition), out);
        out.extend_from_slice(br#","offset":"#);
        integer(record.offset, out);
        out.extend_from_slice(br#","timestamp":"#);
        if record.timestamp == -1 {
            out.extend_from_slice(b"null");
        } else {
            out.push(b'"');
            write_rfc3339(record.timestamp, out);
            out.push(b'"');
        }
        out.extend_from_slice(br#","timestamp_type":""#);
        out.extend_from_slice(record.timestamp_type.name().as_bytes());
        out.extend_from_slice(br#"","key":"#);
        nullable(record.key, out);
        out.extend_from_slice(br#","value":"#);
        nullable(record.value, out);
        out.extend_from_slice(br#","headers":["#);
        for (index, header) in record.headers().enumerate() {
            out.extend_from_slice(if index == 0 { b"[" } else { b",[" });
            text_or_base64(header.name, out);
            out.push(b',');
            nullable(header.value, out);
            out.push(b']');
        }
        out.extend_from_slice(b"]}\n");
    }
}

fn nullable(bytes: Option<&[u8]>, out: &mut Vec<u8>) {
    match bytes {
        Some(bytes) => text_or_base64(bytes, out),
        None => out.extend_from_slice(b"null"),
    }
}

fn text_or_base64(bytes: &[u8], out: &mut Vec<u8>) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return base64(bytes, out);
    };
    out.push(b'"');
    let mut copied = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte < 0x20 || byte == b'"' || byte == b'\\' {
            out.extend_from_slice(&text.as_bytes()[copied..at]);
            copied = at + 1;
            escaped(byte, out);
            continue;
        }
        // What begins with another byte is safe; so most text is only looked at once.
        if !matches!(byte, 0x7f | 0xc2 | 0xd8 | 0xe2) {
            continue;
        }
        let Some(c) = text[at..].chars().next().filter(|c| is_unsafe_in_json(*c)) else { continue };
        out.extend_from_slice(&text.as_bytes()[copied..at]);
        copied = at + c.len_utf8();
        out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes());
    }
    out.extend_from_slice(&bytes[copied..]);
    out.push(b'"');
}

/// RFC 8259, section 7: the two-character escapes where there is one, `\u00XX` for the other control characters.
fn escaped(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        _ => {
            out.extend_from_slice(b"\\u00");
            out.push(HEX[usize::from(byte >> 4)]);
            return out.push(HEX[usize::from(byte & 0xf)]);
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"base64":""#);
    out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
    out.extend_from_slice(br#""}"#);
}

fn integer(number: i64, out: &mut Vec<u8>) {
    let mut text = [0; 20];
    let mut at = text.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        text[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&text[at..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::record::{Block, Header, TimestampType};

    type Bytes = Option<Vec<u8>>;

    fn line(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[(Vec<u8>, Bytes)], timestamp: i64) -> Value {
        let mut block = Block::new(3, 64);
        let headers = headers.iter().map(|(name, value)| Header { name, value: value.as_deref() });
        block.push(17, timestamp, TimestampType::Create, -1, key, value, headers);
        let mut out = Vec::new();
        Line::of_topic("a \"topic\"\u{202e}").write(3, &block.get(0).expect("a record"), &mut out);
        let text = std::str::from_utf8(&out).expect("text").strip_suffix('\n').expect("one line a record");
        assert!(!text.contains(crate::escape::is_unsafe), "{text:?}");
        serde_json::from_slice(&out).expect("valid JSON")
    }

    /// Returns what a reader of the line gets back.
    fn bytes_of(value: &Value) -> Bytes {
        match value {
            Value::Null => None,
            Value::String(text) => Some(text.clone().into_bytes()),
            other => Some(STANDARD.decode(other["base64"].as_str().expect("base64")).expect("valid base64")),
        }
    }

    #[test]
    fn a_line_has_the_named_fields() {
        let headers = [(b"h".to_vec(), Some(b"1".to_vec())), (b"h".to_vec(), None), (vec![0xff], Some(vec![]))];
        assert_eq!(
            line(None, Some(b"caf\xc3\xa9\n"), &headers, 1_500),
            json!({"topic": "a \"topic\"\u{202e}", "partition": 3, "offset": 17, "timestamp": "1970-01-01T00:00:01.500Z",
                   "timestamp_type": "CreateTime", "key": null, "value": "café\n",
                   "headers": [["h", "1"], ["h", null], [{"base64": "/w=="}, ""]]})
        );
        assert_eq!(line(None, None, &[], -1)["timestamp"], Value::Null);
        assert_eq!(line(None, None, &[], i64::MIN)["timestamp"], json!("-292275055-05-16T16:47:04.192Z"));
    }

    proptest! {
        #[test]
        fn a_line_loses_nothing(
            key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)),
            text in prop_oneof![any::<String>(), "[a\"\u{0}-\u{1f}\u{7f}-\u{9f}\u{600}-\u{61f}\u{200c}-\u{202f}\u{2064}-\u{206b}]*"],
            headers in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 0..5), proptest::option::of(proptest::collection::vec(any::<u8>(), 0..5))), 0..4),
        ) {
            let line = line(key.as_deref(), Some(text.as_bytes()), &headers, 0);
            prop_assert_eq!(bytes_of(&line["key"]), key);
            prop_assert_eq!(bytes_of(&line["value"]), Some(text.into_bytes()));
            let read: Vec<(Vec<u8>, Bytes)> = line["headers"].as_array().expect("list").iter()
                .map(|pair| (bytes_of(&pair[0]).expect("a name"), bytes_of(&pair[1]))).collect();
            prop_assert_eq!(read, headers);
        }

        #[test]
        fn integers_are_written_as_the_standard_library_does(number in any::<i64>()) {
            let mut out = Vec::new();
            integer(number, &mut out);
            prop_assert_eq!(String::from_utf8(out).expect("digits"), number.to_string());
        }
    }
}

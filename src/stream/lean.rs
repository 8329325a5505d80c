//! JSON that somebody else may have written, into little memory: a list of nothing costs its reader ten times what it costs its
//! writer.
//!
//! What is read here takes ten times its own size at the most, and 32 MiB: everything that a structure does not know is passed over,
//! and what it knows has names and values that are about as long as what they become. The exceptions are lists of numbers and of
//! texts (`0,` becomes 16 bytes, `"",` becomes 24), and structures that say nothing (`"a":{},` becomes 150). So there are bounds
//! for how many of them there may be.

use serde::de::{DeserializeOwned, Error as _};

/// So many items of lists that are no structures may any document have: four for each of 250,000 partitions.
const MOST_ITEMS: usize = 1 << 20;

/// Beyond that, an item has so many bytes: it is the key of an object.
const BYTES_OF_ITEM: usize = 16;

/// A structure has so many bytes: the shortest that is written, where an entry of a tar file begins, has more.
const BYTES_OF_STRUCTURE: usize = 16;

/// So many are nothing that counts.
const FEW: usize = 64;

/// Reads a document.
///
/// # Errors
/// It is no such JSON, or has longer lists than it can have.
pub fn parse<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<T> {
    let Counts { items, structures } = Counts::of(json);
    if items > MOST_ITEMS + json.len() / BYTES_OF_ITEM || structures > FEW + json.len() / BYTES_OF_STRUCTURE {
        return Err(serde_json::Error::custom(
            "it has more items in lists, or structures, than its length has room for",
        ));
    }
    serde_json::from_slice(json)
}

/// What stands in a document. Of what is no JSON, any numbers.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    /// Items of lists that are no structures.
    items: usize,
    structures: usize,
}

impl Counts {
    fn of(json: &[u8]) -> Self {
        // Whether each of what is open is a list: serde_json goes no deeper than 128.
        let (mut lists, mut items, mut structures) = (0_u128, 0_usize, 0_usize);
        let (mut in_text, mut escaped) = (false, false);
        for byte in json {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_text => escaped = true,
                b'"' => in_text = !in_text,
                _ if in_text => {}
                b'[' => {
                    lists = lists << 1 | 1;
                    items += 1;
                }
                b'{' => {
                    // The comma or the bracket before it was counted.
                    items = items.saturating_sub((lists & 1) as usize);
                    structures += 1;
                    lists <<= 1;
                }
                b']' | b'}' => lists >>= 1,
                b',' => items += (lists & 1) as usize,
                _ => {}
            }
        }
        Self { items, structures }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_of_lists_are_counted_and_structures_are_not() {
        for (json, items, structures) in [
            (r#"{"a":1,"b":[1,2,3],"c":"[,,,"}"#, 3, 1),
            (r#"[[],[],[[0]]]"#, 7, 0),
            (r#"[{"a":[0,0]},{"a":1,"b":2},{}]"#, 2, 3),
            (r#"["a\\",",\",",""]"#, 3, 0),
            (r#"{"a":{},"b":{"{":0}}"#, 0, 3),
            ("", 0, 0),
            ("]]]}}}{{{[", 1, 3),
        ] {
            assert_eq!(Counts::of(json.as_bytes()), Counts { items, structures }, "{json}");
        }
    }

    #[test]
    fn a_list_of_nothing_is_refused_and_one_of_keys_is_not() {
        let list = |item: &str, count| format!("[{}{item}]", format!("{item},").repeat(count));
        assert!(parse::<Vec<Option<u8>>>(list("0", MOST_ITEMS).as_bytes()).is_ok());
        for item in ["0", "null", "\"\"", "[]"] {
            let error = parse::<Vec<serde_json::Value>>(list(item, 2 * MOST_ITEMS).as_bytes()).expect_err("too many");
            assert!(error.to_string().contains("more items"), "{error}");
        }
        let key = "\"segments/kafka/cluster=main/topic=orders/generation=0/date=1970-01-01/000000-w-0.parquet\"";
        assert!(parse::<Vec<String>>(list(key, 3 * MOST_ITEMS).as_bytes()).is_ok());
        let structures = |each: &str| list(each, 10_000);
        assert!(parse::<Vec<serde_json::Value>>(structures("{\"partition\":0,\"offset\":0}").as_bytes()).is_ok());
        assert!(parse::<Vec<serde_json::Value>>(structures("{\"a\":1}").as_bytes()).is_err());
        assert!(parse::<serde_json::Value>(b"{}").is_ok());
    }
}

//! `--groups`: what becomes of consumer groups, as it is printed.

use crate::escape::one_line;
use crate::replay::groups::{Answer, GroupShown, GroupsShown, Moved, State};

/// What became of groups, or would, for people: a line for each partition.
pub(super) fn text(shown: &GroupsShown) -> String {
    let mut text = format!("groups as of {}, found so at {}\n", shown.as_of, shown.found);
    for GroupShown { result, positions } in &shown.groups {
        let why = result.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
        text.push_str(&format!("  {}\n", one_line(&format!("{} {}{why}", result.group, words(result.state)))));
        for position in positions {
            text.push_str(&format!("    {}\n", one_line(&line(position))));
        }
    }
    text
}

fn words(state: State) -> &'static str {
    match state {
        State::Planned => "will be put where it was",
        State::Set => "is where it was",
        State::AlreadySet => "was put where it was by an earlier run, and is left alone",
        State::Nothing => "has no position in what is replayed",
        State::Refused => "is left alone",
        State::Moved => "was moved by somebody meanwhile, and is left alone",
        State::Failed => "is not set",
    }
}

fn line(position: &Moved) -> String {
    let Moved { topic, partition, old, record, new, answer, .. } = position;
    let to = position.target_topic.as_deref().unwrap_or(topic);
    let place = match (new, record) {
        _ if matches!(answer, Answer::NotReplayed | Answer::Unknown) => String::new(),
        (Some(new), _) => format!(" -> {new} of {to}"),
        (None, Some(record)) => format!(" -> the record {record}, whose offset in {to} is known once it is sent"),
        (None, None) => format!(" -> after all that is sent to {to}"),
    };
    let words = answer.words();
    let words = if words.is_empty() { String::new() } else { format!(" ({words})") };
    format!("{topic} {partition}: {old}{place}{words}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(new: Option<i64>, record: Option<i64>, answer: Answer) -> Moved {
        Moved {
            group: "g".to_owned(),
            topic: "orders".to_owned(),
            partition: 3,
            target_topic: Some("copy".to_owned()),
            old: 120,
            record,
            new,
            answer,
            metadata: None,
        }
    }

    #[test]
    fn a_line_says_from_where_to_where_or_why_not() {
        for (position, told) in [
            (moved(Some(9), Some(121), Answer::Exact), "orders 3: 120 -> 9 of copy"),
            (
                moved(None, Some(121), Answer::Exact),
                "orders 3: 120 -> the record 121, whose offset in copy is known once it is sent",
            ),
            (
                moved(None, None, Answer::End),
                "orders 3: 120 -> after all that is sent to copy (it had read everything)",
            ),
            (moved(None, None, Answer::NotReplayed), "orders 3: 120 (not in this replay: left alone)"),
        ] {
            assert_eq!(line(&position), told);
        }
    }
}

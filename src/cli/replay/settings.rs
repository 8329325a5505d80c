//! What a replay says about the settings of the topics that it creates.

use serde::Serialize;

use crate::cli::shell::quoted;
use crate::escape::one_line;
use crate::replay::journal::{Changes, Made, MadeTopic, Settings};
use crate::replay::kafka::{Afterwards, Create, command};
use crate::time;

/// The settings of a topic that the replay has created, at its end.
#[derive(Debug, Serialize)]
pub(super) struct TopicSettings {
    topic: String,
    /// What it was given; null is a setting that was taken back.
    given: Changes,
    /// What is left to the user.
    left: Changes,
    /// What stays otherwise, each with the reason.
    told: Vec<String>,
    /// What does what is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
}

impl TopicSettings {
    pub(super) fn new(settled: &Afterwards, bootstrap: &str) -> Self {
        Self {
            topic: settled.topic.clone(),
            given: settled.given.clone(),
            left: settled.left.clone(),
            told: settled.told.clone(),
            command: (!settled.left.is_empty()).then(|| typed(bootstrap, &settled.topic, &settled.left)),
        }
    }

    pub(super) fn text(&self) -> String {
        let topic = one_line(&self.topic);
        let mut text = String::new();
        if !self.given.is_empty() {
            text.push_str(&format!("{topic} is set as archived: {}\n", one_line(&words(&self.given))));
        }
        for told in &self.told {
            text.push_str(&format!("warning: {topic}: {}\n", one_line(told)));
        }
        if let Some(command) = &self.command {
            text.push_str(&format!(
                "{topic} still has the replay's settings; as archived it is after\n  {}\n",
                one_line(command)
            ));
        }
        text
    }
}

/// The line of a plan that says how a topic will be set; none where the archive does not know.
pub(super) fn planned(create: &Create, settings: Settings, bootstrap: &str) -> Option<String> {
    let at = time::utc(create.given.as_of?);
    let (topic, later) = (&create.topic, &create.given.afterwards);
    if later.is_empty() {
        return Some(format!("{topic} as archived at {at}"));
    }
    Some(match settings {
        Settings::Archived => format!("{topic} as archived at {at}; at the end {}", words(later)),
        Settings::Safe => format!(
            "{topic} as archived at {at}, but for what could cost a record: that is left to you (--settings archived does it at the \
             end): {}",
            typed(bootstrap, topic, later)
        ),
    })
}

/// The lines of a plan that say what is left to do for topics that an earlier run has created.
pub(super) fn pending(made: Option<&Made>, settings: Settings, bootstrap: &str) -> Vec<String> {
    let waits = |topic: &&MadeTopic| !topic.settled && !topic.afterwards.is_empty();
    let topics = made.iter().flat_map(|made| &made.topics).filter(waits);
    let line = |topic: &MadeTopic| match settings {
        Settings::Archived => format!("{} at the end {}", topic.topic, words(&topic.afterwards)),
        Settings::Safe => {
            format!("{} is left to you: {}", topic.topic, typed(bootstrap, &topic.topic, &topic.afterwards))
        }
    };
    topics.map(line).collect()
}

fn typed(bootstrap: &str, topic: &str, changes: &Changes) -> String {
    let words: Vec<String> = command(bootstrap, topic, changes).iter().map(|word| quoted(word)).collect();
    words.join(" ")
}

fn words(changes: &Changes) -> String {
    let one = |(name, value): (&String, &Option<String>)| match value {
        Some(value) => format!("{name}={value}"),
        None => format!("{name} as its cluster"),
    };
    changes.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(left: &[(&str, Option<&str>)]) -> Afterwards {
        let left = left.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect();
        Afterwards { topic: "orders".to_owned(), left, ..Afterwards::default() }
    }

    #[test]
    fn what_is_left_is_a_command_that_a_shell_takes() {
        let shown =
            TopicSettings::new(&settled(&[("cleanup.policy", Some("compact,delete")), ("retention.ms", None)]), "k:1");
        let command = shown.command.as_deref().expect("there is something left");
        assert!(
            command.contains("--add-config 'cleanup.policy=[compact,delete]' --delete-config retention.ms"),
            "{command}"
        );
        assert!(shown.text().contains(command));
        assert!(TopicSettings::new(&settled(&[]), "k:1").text().is_empty());
    }
}

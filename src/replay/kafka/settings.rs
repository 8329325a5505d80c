//! How a topic that a replay creates is set: what it needs while records are sent, what the archive says of it, and what of that
//! has to wait until they are.
//!
//! A setting waits if it could delete, refuse or change what is sent ([`waits`]). All others are given at once. What the replay
//! needed and the source's topic had not is taken back, so that in the end the topic is set as the archive says, and follows its
//! cluster in everything else.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::replay::archived::Archived;
use crate::replay::journal::Changes;

/// Settings by name.
pub(super) type Config = BTreeMap<String, String>;

/// How a topic is set, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// When the archive found it to be so; none where it does not know.
    pub as_of: Option<DateTime<Utc>>,
    /// What keeps the records while they are sent.
    pub(super) needed: Config,
    /// What the archive says beside, and no record minds.
    pub(super) more: Config,
    /// What is left to do once the records may go.
    pub afterwards: Changes,
    /// What the archive says and the topic does not get, with the reason.
    pub(super) left_out: Vec<String>,
}

/// Returns how a topic is set that needs `needed` while records are sent, the largest batch of which may have `largest` bytes.
pub(super) fn given(needed: Config, archived: Option<&Archived>, largest: u64) -> Given {
    let mut given = Given { needed, ..Given::default() };
    let Some((archived, settings)) = archived.and_then(|known| Some((known, known.settings.as_ref()?))) else {
        return given;
    };
    given.as_of = Some(archived.at);
    let followed = given.needed.keys().filter(|name| !settings.contains_key(*name));
    given.afterwards = followed.map(|name| (name.clone(), None)).collect();
    for (name, value) in settings {
        let Some(value) = value else {
            given.left_out.push(format!("{name}, a secret that brokers do not tell"));
            continue;
        };
        let room = room(name, value, largest);
        match given.needed.get_mut(name) {
            Some(now) if now == value => {}
            Some(now) if room == Some(true) => now.clone_from(value),
            None if is_of_brokers(name) => {
                given.left_out.push(format!("{name}={value}, which names the source's brokers"));
            }
            None if !waits(name) && room != Some(false) => drop(given.more.insert(name.clone(), value.clone())),
            _ => drop(given.afterwards.insert(name.clone(), Some(value.clone()))),
        }
    }
    given
}

/// Returns whether a setting could delete, refuse or change what is sent.
fn waits(name: &str) -> bool {
    const WAITS: [&str; 17] = [
        "cleanup.policy",
        "compression.type",
        "delete.retention.ms",
        "local.retention.bytes",
        "local.retention.ms",
        "max.compaction.lag.ms",
        // Brokers before 3.0 convert what is sent, and older formats have no headers.
        "message.format.version",
        "message.timestamp.type",
        "min.cleanable.dirty.ratio",
        // With fewer replicas in step than that, no record is taken.
        "min.insync.replicas",
        // Of Redpanda: they make a topic of what lies in a bucket.
        "redpanda.remote.readreplica",
        "redpanda.remote.recovery",
        "remote.log.delete.on.disable",
        "retention.bytes",
        "retention.ms",
        // An election that takes acknowledged records.
        "unclean.leader.election.enable",
        "write.caching",
    ];
    WAITS.contains(&name) || name.starts_with("message.timestamp.") || name.ends_with(".schema.validation")
}

/// Returns whether the largest batch fits; none for what limits no size.
fn room(name: &str, value: &str, largest: u64) -> Option<bool> {
    const LIMITS: [&str; 2] = ["max.message.bytes", "segment.bytes"];
    LIMITS.contains(&name).then(|| value.parse().is_ok_and(|bytes: u64| bytes >= largest))
}

/// Lists of partitions and brokers of the cluster that was. `*`, which means all of them, throttles here, too, what nobody means to.
fn is_of_brokers(name: &str) -> bool {
    name.ends_with(".replication.throttled.replicas")
}

impl Given {
    /// Returns what the topic is created with.
    pub(super) fn created(&self) -> Config {
        self.needed.iter().chain(&self.more).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Returns what the archive says and the replay does not need.
    pub(super) fn wished(&self) -> Config {
        let later = self.afterwards.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
        self.more.clone().into_iter().chain(later).collect()
    }

    /// Leaves out what of [`wished`](Self::wished) the target does not take.
    pub(super) fn without(&mut self, refused: &[String]) {
        for name in refused {
            let later = self.afterwards.get(name).cloned().flatten();
            let Some(value) = self.more.remove(name).or(later) else { continue };
            self.left_out.push(format!("{name}={value}, which the target does not take"));
            match self.needed.contains_key(name) {
                true => drop(self.afterwards.insert(name.clone(), None)),
                false => drop(self.afterwards.remove(name)),
            }
        }
    }
}

/// Returns how a topic that exists differs from what the archive says of it; none where it does not.
pub(super) fn difference(topic: &str, has: (i32, &Config, &Config), archived: &Archived) -> Option<String> {
    let (partitions, config, own) = has;
    let settings = archived.settings.as_ref()?;
    let mut all = Vec::new();
    if partitions != archived.partitions {
        all.push(format!("{partitions} partitions ({} archived)", archived.partitions));
    }
    for (name, value) in settings {
        let (Some(value), Some(now)) = (value, config.get(name)) else { continue };
        if value != now {
            all.push(format!("{name}={now} ({value} archived)"));
        }
    }
    let unset = own.iter().filter(|(name, _)| !settings.contains_key(*name));
    all.extend(unset.map(|(name, now)| format!("{name}={now} (not set)")));
    let at = crate::time::utc(archived.at);
    (!all.is_empty()).then(|| format!("{topic} is not set as it was archived at {at}: {}", all.join(", ")))
}

/// Returns what one types to do `changes`, word by word.
pub fn command(bootstrap: &str, topic: &str, changes: &Changes) -> Vec<String> {
    // A comma ends a setting, unless it stands in brackets.
    let bracketed = |value: &str| if value.contains(',') { format!("[{value}]") } else { value.to_owned() };
    let set: Vec<String> =
        changes.iter().filter_map(|(name, value)| Some(format!("{name}={}", bracketed(value.as_ref()?)))).collect();
    let back: Vec<&str> = changes.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| name.as_str()).collect();
    let mut words: Vec<String> =
        ["kafka-configs.sh", "--bootstrap-server", bootstrap, "--alter", "--topic", topic].map(str::to_owned).into();
    for (option, list) in [("--add-config", set.join(",")), ("--delete-config", back.join(","))] {
        if !list.is_empty() {
            words.extend([option.to_owned(), list]);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn archived(settings: &[(&str, &str)]) -> Archived {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned())));
        Archived::new(chrono::DateTime::UNIX_EPOCH, 6, Some(settings.collect()))
    }

    fn config(settings: &[(&str, &str)]) -> Config {
        settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn needed() -> Config {
        config(&[("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")])
    }

    #[test]
    fn what_could_cost_a_record_waits_and_the_rest_is_given_at_once() {
        let archived = archived(&[
            ("retention.ms", "86400000"),
            ("cleanup.policy", "delete"),
            ("segment.ms", "3600000"),
            ("max.message.bytes", "100"),
            ("min.insync.replicas", "2"),
            ("leader.replication.throttled.replicas", "0:1"),
        ]);
        let given = given(needed(), Some(&archived), 1_000);
        assert_eq!(given.needed, needed());
        assert_eq!(given.more, config(&[("segment.ms", "3600000")]));
        let afterwards: Vec<(&str, Option<&str>)> =
            given.afterwards.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        assert_eq!(
            afterwards,
            [
                ("max.message.bytes", Some("100")),
                ("min.insync.replicas", Some("2")),
                ("retention.bytes", None),
                ("retention.ms", Some("86400000")),
            ]
        );
        assert!(given.left_out[0].starts_with("leader.replication.throttled.replicas=0:1"), "{:?}", given.left_out);
    }

    #[test]
    fn a_limit_with_room_takes_the_place_of_the_replay_s_own() {
        let needed = config(&[("max.message.bytes", "5000")]);
        let given = given(needed, Some(&archived(&[("max.message.bytes", "9000")])), 5_000);
        assert_eq!(given.created(), config(&[("max.message.bytes", "9000")]));
        assert!(given.afterwards.is_empty());
    }

    #[test]
    fn without_the_archive_nothing_but_the_need_is_given() {
        let unknown = Archived::new(chrono::DateTime::UNIX_EPOCH, 6, None);
        for archived in [None, Some(&unknown)] {
            let given = given(needed(), archived, 1);
            assert_eq!((given.created(), given.afterwards.len(), given.left_out.len()), (needed(), 0, 0));
        }
    }

    #[test]
    fn what_the_target_does_not_take_is_left_out_and_what_the_replay_needed_is_still_taken_back() {
        let mut given = given(needed(), Some(&archived(&[("retention.ms", "7"), ("flush.ms", "1"), ("x.y", "z")])), 1);
        given.without(&["retention.ms".to_owned(), "x.y".to_owned()]);
        assert_eq!(given.wished(), config(&[("flush.ms", "1")]));
        assert_eq!(given.afterwards.get("retention.ms"), Some(&None));
        assert_eq!(given.left_out.len(), 2);
    }

    #[test]
    fn the_command_sets_and_takes_back() {
        let changes: Changes =
            [("cleanup.policy", Some("compact,delete")), ("retention.bytes", None), ("retention.ms", Some("5"))]
                .map(|(name, value)| (name.to_owned(), value.map(str::to_owned)))
                .into();
        assert_eq!(
            command("k:9092", "orders", &changes).join(" "),
            "kafka-configs.sh --bootstrap-server k:9092 --alter --topic orders \
             --add-config cleanup.policy=[compact,delete],retention.ms=5 --delete-config retention.bytes"
        );
    }

    #[test]
    fn a_difference_names_what_is_otherwise_on_either_side() {
        let archived = archived(&[("retention.ms", "7"), ("flush.ms", "1")]);
        let has = config(&[("retention.ms", "9"), ("flush.ms", "1"), ("segment.ms", "3")]);
        let own = config(&[("retention.ms", "9"), ("segment.ms", "3")]);
        let told = difference("orders", (3, &has, &own), &archived).expect("it differs");
        for part in ["3 partitions (6 archived)", "retention.ms=9 (7 archived)", "segment.ms=3 (not set)"] {
            assert!(told.contains(part), "{part} in {told}");
        }
        assert!(!told.contains("flush.ms"));
        let same = config(&[("retention.ms", "7"), ("flush.ms", "1")]);
        assert_eq!(difference("orders", (6, &same, &same), &archived), None);
    }

    proptest! {
        /// Whatever the archive says: nothing that the replay needs is given otherwise while records are sent, and in the end the
        /// topic is set as the archive says, but for what is told.
        #[test]
        fn in_the_end_a_topic_is_set_as_archived(
            settings in proptest::collection::btree_map(
                prop::sample::select(vec![
                    "retention.ms", "retention.bytes", "cleanup.policy", "segment.bytes", "segment.ms", "flush.ms",
                    "max.message.bytes", "min.insync.replicas", "message.timestamp.type", "compression.type",
                ]),
                prop::sample::select(vec!["-1", "10", "1000", "2000", "compact"]),
                0..8,
            ),
            large in any::<bool>(),
        ) {
            let mut needed = needed();
            if large {
                needed.insert("max.message.bytes".to_owned(), "1500".to_owned());
            }
            let said: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, *value)).collect();
            let given = given(needed.clone(), Some(&archived(&said)), 1_500);
            let mut config = given.created();
            for (name, value) in &needed {
                let enough = room(name, &config[name], 1_500) == Some(true);
                prop_assert!(&config[name] == value || enough, "{name} is {}", config[name]);
            }
            prop_assert!(given.more.keys().all(|name| !waits(name)));
            for (name, change) in &given.afterwards {
                match change {
                    Some(value) => drop(config.insert(name.clone(), value.clone())),
                    None => drop(config.remove(name)),
                }
            }
            prop_assert_eq!(config, self::config(&said));
        }
    }
}

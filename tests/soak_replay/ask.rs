//! What a round asks for, and what that is by brute force over the list of what was produced.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat};
use rdkafka::Timestamp;

use super::origin::{Generation, Origin, Produced};
use crate::replay::Shape;
use crate::rig::records::Random;

/// Which records.
#[derive(Clone, Debug)]
enum Which {
    All,
    /// `from <= timestamp < to`; no `to` is now.
    Times(Option<i64>, Option<i64>),
    /// Of one partition of one topic.
    Offsets(Option<i64>, Option<i64>),
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    topics: Vec<String>,
    /// Said as a regex, or not at all where all topics are meant.
    by_name: bool,
    partitions: Option<Vec<i32>>,
    which: Which,
    generation: Option<usize>,
    /// What the target topics' names begin with.
    prefix: String,
}

impl Ask {
    /// Draws one, of topics that go to `prefix` and their own names.
    pub(super) fn draw(random: &mut Random, origin: &Origin, prefix: String) -> Ask {
        let all: Vec<&String> = origin.topics.keys().collect();
        let mut topics: Vec<String> = all.iter().filter(|_| random.below(2) == 0).map(|name| (*name).clone()).collect();
        if topics.is_empty() {
            topics = all.into_iter().cloned().collect();
        }
        let mut ask =
            Ask { topics, by_name: random.below(4) > 0, partitions: None, which: Which::All, generation: None, prefix };
        if random.below(4) == 0 {
            ask.partitions =
                Some((0..5).filter(|_| random.below(2) == 0).collect::<Vec<_>>()).filter(|some| !some.is_empty());
        }
        if random.below(5) == 0 {
            let generations = origin.topics[&ask.topics[0]].len() as u64;
            ask.generation = Some(usize::try_from(random.below(generations)).expect("small"));
        }
        match random.below(10) {
            0..4 => {}
            4..8 => ask.which = ask.times(random, origin),
            _ => ask.offsets(random, origin),
        }
        ask
    }

    fn times(&self, random: &mut Random, origin: &Origin) -> Which {
        let mut times: Vec<i64> = self.records(origin).filter_map(|(_, _, one)| one.message.timestamp).collect();
        times.sort_unstable();
        let mut pick = || match random.below(5) {
            0 => None,
            _ if times.is_empty() => Some(0),
            _ => times.get(usize::try_from(random.below(times.len() as u64)).expect("small")).copied(),
        };
        match (pick(), pick()) {
            (Some(one), Some(other)) if one != other => Which::Times(Some(one.min(other)), Some(one.max(other))),
            // Without an end it ends now, and has to begin before.
            (Some(one), _) if one >= tidelog::time::now().timestamp_millis() => Which::Times(Some(one), Some(one + 1)),
            (one, _) => Which::Times(one, None),
        }
    }

    /// One topic, one partition.
    fn offsets(&mut self, random: &mut Random, origin: &Origin) {
        self.topics.truncate(1);
        self.by_name = true;
        let generations = &origin.topics[&self.topics[0]];
        let generation =
            self.generation.map_or(generations.last(), |number| generations.get(number)).expect("a generation");
        let partition = i32::try_from(random.below(generation.partitions.unsigned_abs().into())).expect("small");
        let last =
            generation.records.iter().filter(|one| one.partition == partition).map(|one| one.offset).max().unwrap_or(0);
        let start = random.below(last.unsigned_abs() + 1).cast_signed();
        let end = start + 1 + random.below(last.unsigned_abs() + 2).cast_signed();
        self.partitions = Some(vec![partition]);
        self.which = match random.below(3) {
            0 => Which::Offsets(Some(start), None),
            1 => Which::Offsets(None, Some(end)),
            _ => Which::Offsets(Some(start), Some(end)),
        };
    }

    /// What one types for it.
    pub(super) fn args(&self, origin: &Origin) -> Vec<String> {
        let mut args = Vec::new();
        if self.by_name {
            args.extend(["--topics".to_owned(), self.topics.join(",")]);
        } else if self.topics.len() < origin.topics.len() {
            args.extend(["--topics".to_owned(), format!("^({})$", self.topics.join("|"))]);
        }
        if let Some(partitions) = &self.partitions {
            let list: Vec<String> = partitions.iter().map(ToString::to_string).collect();
            args.extend(["--partitions".to_owned(), list.join(",")]);
        }
        if let Some(generation) = self.generation {
            args.extend(["--generation".to_owned(), generation.to_string()]);
        }
        let text = |offset: Option<i64>| offset.map_or(String::new(), |offset| offset.to_string());
        match &self.which {
            Which::All => args.push("--all".to_owned()),
            Which::Times(from, to) => {
                // With neither end there would be no range at all.
                args.push(format!("--from={}", time(from.unwrap_or(0))));
                args.extend(to.map(|to| format!("--to={}", time(to))));
            }
            Which::Offsets(start, end) => args.push(format!("--offsets={}..{}", text(*start), text(*end))),
        }
        args.extend(["--rename".to_owned(), format!("^(.*)$={}$1", self.prefix)]);
        args
    }

    /// The generations of a topic that are asked for.
    fn generations<'a>(&self, origin: &'a Origin, topic: &str) -> &'a [Generation] {
        let generations = origin.topics[topic].as_slice();
        match (self.generation, &self.which) {
            (Some(number), _) => generations.get(number..=number).unwrap_or_default(),
            (None, Which::Offsets(..)) => &generations[generations.len() - 1..],
            (None, _) => generations,
        }
    }

    fn records<'a>(&'a self, origin: &'a Origin) -> impl Iterator<Item = (&'a String, usize, &'a Produced)> {
        let of = move |topic: &'a String| {
            let generations = self.generations(origin, topic).iter().enumerate();
            generations.flat_map(move |(generation, all)| all.records.iter().map(move |one| (topic, generation, one)))
        };
        let chosen = |one: &Produced| self.partitions.as_ref().is_none_or(|some| some.contains(&one.partition));
        self.topics.iter().flat_map(of).filter(move |(_, _, one)| chosen(one))
    }

    /// Whether a record is asked for at the time `now`.
    fn wants(&self, one: &Produced, now: i64) -> bool {
        let (within, time) = (
            |value: i64, start: Option<i64>, end: Option<i64>| {
                start.is_none_or(|start| value >= start) && end.is_none_or(|end| value < end)
            },
            one.message.timestamp.expect("every record has one"),
        );
        match &self.which {
            Which::All => true,
            Which::Times(from, to) => within(time, Some(from.unwrap_or(0)), Some(to.unwrap_or(now))),
            Which::Offsets(start, end) => within(one.offset, *start, *end),
        }
    }

    /// What the target topics have to hold, by partition in order; a topic of which nothing is wanted is there, too.
    pub(super) fn expected(&self, origin: &Origin, now: i64) -> BTreeMap<String, Vec<Shape>> {
        let name = |topic: &String| format!("{}{topic}", self.prefix);
        let mut all: BTreeMap<String, Vec<(i32, usize, i64, Shape)>> =
            self.topics.iter().map(|topic| (name(topic), Vec::new())).collect();
        for (topic, generation, one) in self.records(origin).filter(|(_, _, one)| self.wants(one, now)) {
            let to = all.get_mut(&name(topic)).expect("it is there");
            to.push((one.partition, generation, one.offset, shape(one)));
        }
        let in_order = |mut records: Vec<(i32, usize, i64, Shape)>| {
            records.sort_by_key(|(partition, generation, offset, _)| (*partition, *generation, *offset));
            records.into_iter().map(|(.., shape)| shape).collect()
        };
        all.into_iter().map(|(topic, records)| (topic, in_order(records))).collect()
    }

    /// By target topic: how many partitions its source has had at most, and everything that a bound may take for wanted.
    pub(super) fn bounds(&self, origin: &Origin) -> BTreeMap<String, (i32, Vec<Shape>)> {
        let of = |topic: &String| {
            let generations = &origin.topics[topic];
            let partitions = generations.iter().map(|generation| generation.partitions).max().unwrap_or(1);
            let shapes = generations.iter().flat_map(|generation| &generation.records).map(shape).collect();
            (format!("{}{topic}", self.prefix), (partitions, shapes))
        };
        self.topics.iter().map(of).collect()
    }
}

fn shape(one: &Produced) -> Shape {
    let Produced { partition, message, .. } = one;
    let time = Timestamp::CreateTime(message.timestamp.expect("every record has one"));
    (*partition, time, message.key.clone(), message.value.clone(), message.headers.clone())
}

fn time(ms: i64) -> String {
    DateTime::from_timestamp_millis(ms).expect("a time").to_rfc3339_opts(SecondsFormat::Millis, true)
}

//! One round: something is asked for, something happens on the way, and the target is compared with brute force.

use std::collections::BTreeMap;

use super::accident::{Accident, Running};
use super::ask::Ask;
use super::origin::Origin;
use super::target::{Cluster, Fate, Target};
use crate::replay::Shape;
use crate::rig::program::Output;
use crate::rig::records::Random;

/// How often a run that ended by an accident is typed again. More would hide one that gets nowhere.
const ATTEMPTS: usize = 3;

/// What is known of a round, for a message that can be worked with.
struct Round<'a> {
    running: Running<'a>,
    accident: Accident,
    yes: bool,
    expected: BTreeMap<String, Vec<Shape>>,
    fates: Vec<Fate>,
    described: String,
}

/// Plays a round.
pub(super) fn play(number: u64, mut random: Random, origin: &Origin, cluster: &Cluster) {
    let prefix = format!("r{number}-{}-", random.below(1_000_000));
    let ask = ask_for_something(&mut random, origin, &prefix);
    let bounds = ask.bounds(origin);
    // One that loses or refuses records is enough for a round.
    let mut kind = random.below(3) > 0;
    let mut targets: Vec<Target> = Vec::new();
    for (topic, (partitions, _)) in &bounds {
        let target = Target::draw(&mut random, cluster, (topic, *partitions), kind);
        kind |= !target.is_kind();
        targets.push(target);
    }
    let (accident, yes) = (Accident::draw(&mut random), random.below(2) == 0);
    let expected = ask.expected(origin, tidelog::time::now().timestamp_millis());
    let fates = targets.iter().map(|one| one.fate(&expected[&one.topic], &bounds[&one.topic].1, yes)).collect();
    let id = format!("soak-{number}-{}", random.below(1_000_000));
    let wanted: usize = expected.values().map(Vec::len).sum();
    let args = arguments(&ask.args(origin), &id, cluster, (accident, wanted, yes), &mut random);
    let described = format!("round {number}: {accident:?}, {wanted} records wanted, {}\n  {targets:?}", args.join(" "));
    eprintln!("soak-replay: {described}");
    let running = Running { home: origin.site.home(), args, id: &id, cluster, targets: &targets };
    let round = Round { running, accident, yes, expected, fates, described };
    if let Accident::Quota(bytes) = accident {
        cluster.quota(Some(bytes));
    }
    round.play(&mut random);
    if let Accident::Quota(_) = accident {
        cluster.quota(None);
    }
    for target in &targets {
        if cluster.kafka.partitions(&target.topic).is_some() {
            cluster.kafka.delete_topic(&target.topic);
        }
    }
}

/// Draws what is asked for, once more where that is nothing: a replay of nothing is soon judged, and rarely of interest.
fn ask_for_something(random: &mut Random, origin: &Origin, prefix: &str) -> Ask {
    let now = tidelog::time::now().timestamp_millis();
    let is_something = |ask: &Ask| ask.expected(origin, now).values().any(|wanted| !wanted.is_empty());
    let first = Ask::draw(random, origin, prefix.to_owned());
    if is_something(&first) { first } else { Ask::draw(random, origin, prefix.to_owned()) }
}

fn arguments(
    asked: &[String],
    id: &str,
    cluster: &Cluster,
    (accident, wanted, yes): (Accident, usize, bool),
    random: &mut Random,
) -> Vec<String> {
    let mut args: Vec<String> = ["-c", "tidelog.toml", "replay", "--into"].map(str::to_owned).to_vec();
    args.push(cluster.kafka.bootstrap());
    args.extend(asked.iter().cloned());
    args.extend(["--id".to_owned(), id.to_owned(), "--json".to_owned()]);
    if yes {
        args.push("--yes".to_owned());
    }
    if accident.takes_time() {
        // Some seconds for a run that nothing happens to.
        args.push(format!("--rate={}/s", (wanted / 4).max(20)));
    } else if random.below(4) == 0 {
        // By time instead of by segment; timestamps are days apart.
        args.push("--speed=1000000x".to_owned());
    }
    args
}

impl Round<'_> {
    fn play(&self, random: &mut Random) {
        let replaced = self.running.happen(self.accident, random);
        let output = self.to_its_end();
        match output.status {
            // A topic that was replaced before the replay had looked at it has everything.
            Some(code) if replaced && code != 0 => self.must(
                output.stderr.contains("was deleted and created again"),
                &output,
                "a topic was replaced on the way, and nobody says so",
            ),
            Some(0) => self.taken(&output),
            _ if self.accident == Accident::Recreated && output.stderr.contains("was deleted and created again") => {}
            _ if self.accident == Accident::Forgotten && output.stderr.contains("could send some twice") => {}
            _ => self.refused(&output),
        }
    }

    /// Runs the command until it succeeds or is refused.
    fn to_its_end(&self) -> Output {
        let args: Vec<&str> = self.running.args.iter().map(String::as_str).collect();
        let mut output = self.running.home.run(&args);
        for _ in 1..ATTEMPTS {
            if self.accident != Accident::Restarted || output.status != Some(1) {
                break;
            }
            output = self.running.home.run(&args);
        }
        output
    }

    fn taken(&self, output: &Output) {
        let refusal = self.fates.iter().find(|fate| matches!(fate, Fate::Refused(_)));
        self.must(refusal.is_none(), output, &format!("{refusal:?} was to be"));
        for target in self.running.targets {
            let found = self.running.cluster.holds(&target.topic);
            let wrong = target.wrong(&found, &self.expected[&target.topic]);
            self.must(wrong.is_none(), output, &wrong.unwrap_or_default());
        }
        // Typed once more, it sends nothing.
        if self.accident == Accident::Nothing && self.expected.values().any(|wanted| !wanted.is_empty()) {
            let args: Vec<&str> = self.running.args.iter().map(String::as_str).collect();
            let again = self.running.home.run(&args);
            let is_done = again.status == Some(0) && again.json()["records"] == 0 && again.json()["finished"] == true;
            self.must(is_done, &again, "typed again, it was not found to be finished");
        }
    }

    fn refused(&self, output: &Output) {
        let words = |fate: &Fate| match fate {
            Fate::Taken => None,
            Fate::Refused(words) | Fate::Either(words) => Some(*words),
        };
        let known = self.fates.iter().filter_map(words).any(|words| output.stderr.contains(words));
        self.must(known, output, &format!("it was not to be refused, or for another reason: {:?}", self.fates));
        self.must(output.stderr.contains("nothing was sent"), output, "it is not said that nothing was sent");
        for target in self.running.targets {
            let found = self.running.cluster.holds(&target.topic);
            self.must(found.is_empty(), output, &format!("{} records were sent to {}", found.len(), target.topic));
        }
    }

    fn must(&self, holds: bool, output: &Output, what: &str) {
        assert!(holds, "{}\nFAULT: {what}\n  --yes: {}, fates {:?}\n{output:#?}", self.described, self.yes, self.fates);
    }
}

//! What happens to a replay on its way.

use std::time::{Duration, Instant};

use super::target::{Cluster, FOREIGN, Target};
use crate::rig::program::{Home, Program};
use crate::rig::records::Random;
use crate::rig::topics::{Codec, Message};

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accident {
    Nothing,
    /// SIGKILL, so many times.
    Killed(u64),
    /// SIGINT, as an operator does it.
    Stopped,
    /// The broker is killed and comes back.
    Restarted,
    /// The target topics are deleted and made again.
    Recreated,
    /// Another process with the same id.
    Twin,
    /// Another producer writes into the target.
    Foreign,
    /// A quota of so many bytes a second.
    Quota(u64),
    /// It is killed, and the group with its progress is deleted.
    Forgotten,
}

impl Accident {
    pub(super) fn draw(random: &mut Random) -> Accident {
        match random.below(20) {
            0..5 => Accident::Nothing,
            5..10 => Accident::Killed(1 + random.below(4)),
            10 => Accident::Stopped,
            11 | 12 => Accident::Restarted,
            13 => Accident::Recreated,
            14..16 => Accident::Twin,
            16 | 17 => Accident::Foreign,
            18 => Accident::Quota(100_000 + random.below(400_000)),
            _ => Accident::Forgotten,
        }
    }

    /// Whether a run has to last for some seconds for it to have a middle.
    pub(super) fn takes_time(self) -> bool {
        !matches!(self, Accident::Nothing | Accident::Quota(_))
    }
}

/// A round under way.
pub(super) struct Running<'a> {
    pub(super) home: &'a Home,
    pub(super) args: Vec<String>,
    pub(super) id: &'a str,
    pub(super) cluster: &'a Cluster,
    pub(super) targets: &'a [Target],
}

/// How long a run may take in all: the pace of a round is a few seconds, a broker's restart some more.
const RUN: Duration = Duration::from_secs(150);

impl Running<'_> {
    /// Starts the command.
    pub(super) fn start(&self) -> Program {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        self.home.start(&args)
    }

    /// Lets the accident happen to one run or several, and says whether target topics were replaced while one ran.
    pub(super) fn happen(&self, accident: Accident, random: &mut Random) -> bool {
        match accident {
            Accident::Nothing | Accident::Quota(_) => {}
            Accident::Killed(times) => (0..times).for_each(|_| drop(self.run_for(random))),
            Accident::Forgotten => {
                drop(self.run_for(random));
                // It may not have come to exist.
                self.cluster.forget(self.id);
            }
            Accident::Stopped => {
                let mut program = self.run_for(random);
                program.interrupt();
                self.end(program);
            }
            Accident::Restarted => {
                let program = self.run_for(random);
                self.cluster.kafka.kill(1);
                self.cluster.kafka.restart(1);
                self.end(program);
            }
            Accident::Recreated => return self.recreate(random),
            Accident::Twin => {
                let first = self.run_for(random);
                let second = self.start();
                self.end(first);
                self.end(second);
            }
            Accident::Foreign => self.write_along(random),
        }
        false
    }

    /// A run that has lasted for a random while. Dropping it kills it.
    fn run_for(&self, random: &mut Random) -> Program {
        let program = self.start();
        std::thread::sleep(Duration::from_millis(100 + random.below(4_000)));
        program
    }

    /// Waits until a run has ended, however.
    fn end(&self, program: Program) {
        let mut program = program;
        let start = Instant::now();
        while program.is_running() {
            assert!(start.elapsed() < RUN, "a replay did not end; it said:\n{}", program.output());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn recreate(&self, random: &mut Random) -> bool {
        let mut program = self.run_for(random);
        let mut replaced = false;
        for target in self.targets {
            if self.cluster.kafka.partitions(&target.topic).is_some() {
                self.cluster.kafka.delete_topic(&target.topic);
                target.make_again(self.cluster);
                replaced = true;
            }
        }
        let running = program.is_running();
        self.end(program);
        replaced && running
    }

    fn write_along(&self, random: &mut Random) {
        let mut program = self.run_for(random);
        // Others would not take what is written.
        let kind = self.targets.iter().filter(|target| target.is_kind());
        let there = kind.filter(|target| self.cluster.kafka.partitions(&target.topic).is_some());
        let there: Vec<&Target> = there.collect();
        while program.is_running() && !there.is_empty() {
            for target in &there {
                let message = |n: i32| Message::new(n, FOREIGN, "not of the replay");
                self.cluster.kafka.produce(&target.topic, Codec::Lz4, &[message(0), message(0)]);
            }
        }
        self.end(program);
    }
}

impl Cluster {
    /// Deletes the group of a replay, if there is one.
    fn forget(&self, id: &str) {
        let group = format!("tidelog-replay-{id}");
        let options = rdkafka::admin::AdminOptions::new();
        let answer = futures::executor::block_on(self.kafka.admin().delete_groups(&[&group], &options));
        drop(answer);
    }
}

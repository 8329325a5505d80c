//! What happens when: drawn from the seed, one thing after the other, each begun before the one before has healed.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use tidelog::config::Isolation;
use tidelog::source::kafka::OffsetAt;

use super::archivers::PLACES;
use super::elections::{self, Around, a_leader, is_whole, wait_whole};
use super::topics::{Character, Topic};
use super::variable;
use super::world::{World, index};
use crate::rig::records::Random;

/// A topic gets no more partitions than this: each costs the machine something.
const MOST_PARTITIONS: i32 = 6;

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// An archiver is killed, and started later.
    Kill,
    /// An archiver is stopped as an operator does it.
    Stop,
    /// An archiver stands still, mostly for longer than its session, and goes on.
    Freeze,
    /// All archivers are killed or stand still, and something happens to a topic meanwhile.
    Blackout,
    /// A broker that leads is killed.
    Leader,
    /// A topic is deleted and created again.
    Recreate,
    /// A topic gets partitions.
    Grow,
    /// Records are removed, archived or not.
    Remove,
    /// A replica leads that lacks records.
    Unclean,
}

/// Names, as `SOAK_KINDS` has them, and how often each is drawn.
const KINDS: [(Kind, &str, u64); 9] = [
    (Kind::Kill, "kill", 14),
    (Kind::Stop, "stop", 6),
    (Kind::Freeze, "freeze", 12),
    (Kind::Blackout, "blackout", 8),
    (Kind::Leader, "leader", 8),
    (Kind::Recreate, "recreate", 14),
    (Kind::Grow, "grow", 12),
    (Kind::Remove, "remove", 12),
    (Kind::Unclean, "unclean", 8),
];

/// What has to happen later.
#[derive(Clone, Copy, Debug)]
enum Later {
    Archiver(usize),
    Broker(usize),
}

struct Schedule<'a> {
    world: &'a World,
    random: RefCell<Random>,
    later: RefCell<Vec<(Instant, Later)>>,
    kinds: Vec<(Kind, u64)>,
}

/// Lets things happen for this time, and heals everything then.
pub(super) fn run(world: &World, time: Duration) {
    let schedule = Schedule::new(world);
    let start = Instant::now();
    while start.elapsed() < time && !world.is_over() {
        world.rest(Duration::from_millis(1000 + schedule.below(4000)));
        schedule.heal(Instant::now());
        let kind = schedule.draw();
        schedule.happen(kind);
    }
    schedule.heal(Instant::now() + Duration::from_secs(3600));
    world.archivers.start_all(world);
    wait_whole(world);
}

impl Schedule<'_> {
    fn new(world: &World) -> Schedule<'_> {
        let wanted = variable("SOAK_KINDS");
        let is_wanted = |name: &str| wanted.as_ref().is_none_or(|wanted| wanted.split(',').any(|kind| kind == name));
        // What has no weight happens only to who asks for it by name.
        let kinds = KINDS.iter().filter(|(_, name, weight)| (*weight > 0 || wanted.is_some()) && is_wanted(name));
        let kinds: Vec<(Kind, u64)> = kinds.map(|(kind, _, weight)| (*kind, (*weight).max(8))).collect();
        assert!(
            !kinds.is_empty(),
            "SOAK_KINDS: nothing of {:?} is one of {:?}",
            wanted,
            KINDS.map(|(_, name, _)| name)
        );
        Schedule { world, random: RefCell::new(Random::new(world.journal.seed)), later: RefCell::default(), kinds }
    }

    fn below(&self, bound: u64) -> u64 {
        self.random.borrow_mut().below(bound)
    }

    fn index(&self, length: usize) -> usize {
        index(&mut self.random.borrow_mut(), length)
    }

    fn draw(&self) -> Kind {
        let mut at = self.below(self.kinds.iter().map(|(_, weight)| weight).sum());
        for (kind, weight) in &self.kinds {
            match at.checked_sub(*weight) {
                Some(rest) => at = rest,
                None => return *kind,
            }
        }
        unreachable!("the number is below the sum of all weights")
    }

    fn later(&self, millis: u64, what: Later) {
        self.later.borrow_mut().push((Instant::now() + Duration::from_millis(millis), what));
    }

    /// Does what is due by a time.
    fn heal(&self, by: Instant) {
        let due: Vec<(Instant, Later)> = self.later.borrow_mut().extract_if(.., |(at, _)| *at <= by).collect();
        for (_, what) in due {
            match what {
                Later::Archiver(at) => self.world.archivers.start(self.world, at),
                Later::Broker(id) => {
                    self.world.kafka.restart(id);
                    self.world.journal.note(format!("broker {id} is back"));
                }
            }
        }
    }

    fn happen(&self, kind: Kind) {
        let at = self.index(PLACES);
        match kind {
            Kind::Kill => self.take_away(at, "killed", self.world.archivers.kill(at)),
            Kind::Stop => self.take_away(at, "stopped", self.world.archivers.stop(at)),
            Kind::Freeze => self.freeze(at, 2_000 + self.below(13_000)),
            Kind::Blackout => self.blackout(),
            Kind::Leader => self.kill_leader(),
            Kind::Recreate | Kind::Grow | Kind::Remove => self.change_topic(kind),
            Kind::Unclean => self.unclean(),
        }
    }

    fn take_away(&self, at: usize, how: &str, done: bool) {
        if done {
            self.world.journal.note(format!("archiver {at} {how}"));
            self.later(500 + self.below(9_000), Later::Archiver(at));
        }
    }

    fn freeze(&self, at: usize, millis: u64) {
        if self.world.archivers.freeze(at) {
            self.world.journal.note(format!("archiver {at} stands still for {millis} ms"));
            self.later(millis, Later::Archiver(at));
        }
    }

    /// All archivers are away, the same way, until `while_away` has happened and some seconds more.
    fn all_away(&self, while_away: &dyn Fn()) {
        let frozen = self.below(2) == 0;
        for at in 0..PLACES {
            if frozen {
                self.freeze(at, 3_000 + self.below(9_000));
            } else {
                self.take_away(at, "killed", self.world.archivers.kill(at));
            }
        }
        self.world.rest(Duration::from_millis(500 + self.below(3_000)));
        while_away();
    }

    fn blackout(&self) {
        const WHAT: [Kind; 4] = [Kind::Recreate, Kind::Grow, Kind::Remove, Kind::Remove];
        let allowed: Vec<Kind> =
            WHAT.into_iter().filter(|kind| self.kinds.iter().any(|(known, _)| known == kind)).collect();
        self.all_away(&|| {
            if !allowed.is_empty() {
                self.change_topic(allowed[self.index(allowed.len())]);
            }
        });
    }

    fn topic(&self, of: &[Character]) -> &Topic {
        let wanted = of[self.index(of.len())];
        let found = self.world.topics.iter().find(|topic| topic.character == wanted);
        found.expect("there is one of each character")
    }

    /// Changes of a topic are of a cluster that is whole: with a broker away they would be refused.
    fn change_topic(&self, kind: Kind) {
        if !is_whole(self.world) {
            return;
        }
        match kind {
            Kind::Recreate => self.recreate(),
            Kind::Grow => self.grow(),
            _ => self.remove(),
        }
    }

    fn recreate(&self) {
        let topic = self.topic(&[Character::Recreated, Character::Recreated, Character::Brief]);
        let partitions = 1 + i32::try_from(self.below(5)).expect("a count");
        topic.recreate(self.world, partitions);
    }

    fn grow(&self) {
        let topic = self.topic(&[Character::Grown, Character::Recreated, Character::Brief]);
        let (_, partitions) = topic.present();
        let more = 1 + i32::try_from(self.below(2)).expect("a count");
        if partitions + more <= MOST_PARTITIONS {
            topic.grow(self.world, partitions + more);
        }
    }

    /// Removes the records of a partition: all that are there now, or some.
    fn remove(&self) {
        let topic = self.topic(&[Character::Grown, Character::Recreated, Character::Brief]);
        let (_, partitions) = topic.present();
        let ends = self.world.offsets(topic.name, partitions, OffsetAt::Latest, Isolation::ReadCommitted);
        if ends.is_empty() {
            return;
        }
        let (partition, end) = ends[self.index(ends.len())];
        let before = if self.below(3) > 0 { end } else { self.below(end.unsigned_abs() + 1).cast_signed() };
        topic.delete_records(self.world, partition, before);
    }

    fn kill_leader(&self) {
        let topic = &self.world.topics[self.index(self.world.topics.len())];
        if !is_whole(self.world) {
            return;
        }
        let leader = a_leader(self.world, topic, &mut self.random.borrow_mut());
        let Some(leader) = leader else { return };
        self.world.kafka.kill(leader);
        self.world.journal.note(format!("broker {leader} killed; it leads partitions of {}", topic.name));
        self.later(1_000 + self.below(8_000), Later::Broker(leader));
    }

    fn unclean(&self) {
        if !is_whole(self.world) {
            return;
        }
        let topic = self.topic(&[Character::Unclean]);
        let (archived_before, archivers) = (self.below(3) > 0, self.below(4));
        let meanwhile = || match archivers {
            0 => self.all_away(&|| {}),
            1 => self.freeze(self.index(PLACES), 8_000),
            2 => {
                let at = self.index(PLACES);
                self.take_away(at, "killed", self.world.archivers.kill(at));
            }
            _ => {}
        };
        let around = Around { archived_before, meanwhile: &meanwhile };
        let mut random = Random::new(self.random.borrow_mut().next());
        elections::unclean(self.world, topic, &mut random, &around);
    }
}

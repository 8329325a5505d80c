//! Brokers that go and come back, and elections of a replica that was not in sync.
//!
//! ```text
//!   in sync: a, b     stop b     records come: only a has them     kill a, start b     b leads: they are lost     start a
//! ```
//!
//! Three brokers are their own controllers, so two at least must run for anything to be decided: b starts when a is gone.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use tidelog::config;
use tidelog::source::kafka::OffsetAt;

use super::feed::id_of;
use super::ledger::RecordId;
use super::topics::{PAIRS, Topic};
use super::watch;
use super::world::{World, index};
use crate::rig::records::Random;
use crate::rig::topics::{Isolation, Record};
use crate::rig::wait_for;

/// How long a broker that starts may take to have all its logs in sync.
const IN_SYNC: Duration = Duration::from_secs(120);

/// A partition as the brokers see it: its topic, number, leader, replicas and those in sync.
struct Led {
    topic: String,
    partition: i32,
    leader: i32,
    replicas: usize,
    in_sync: BTreeSet<i32>,
}

/// All partitions of all topics; none when nobody answers.
fn led(world: &World) -> Option<Vec<Led>> {
    let metadata = world.kafka.admin().inner().fetch_metadata(None, Duration::from_secs(5)).ok()?;
    let mut all = Vec::new();
    for topic in metadata.topics() {
        all.extend(topic.partitions().iter().map(|partition| Led {
            topic: topic.name().to_owned(),
            partition: partition.id(),
            leader: partition.leader(),
            replicas: partition.replicas().len(),
            in_sync: partition.isr().iter().copied().collect(),
        }));
    }
    Some(all)
}

/// Whether every broker runs and every replica is in sync.
pub(super) fn is_whole(world: &World) -> bool {
    (1..=world.kafka.brokers()).all(|broker| world.kafka.is_running(broker))
        && led(world).is_some_and(|all| {
            !all.is_empty() && all.iter().all(|one| one.leader >= 0 && one.in_sync.len() == one.replicas)
        })
}

/// Waits until it is.
pub(super) fn wait_whole(world: &World) -> bool {
    world.wait("all replicas to be in sync", IN_SYNC, || is_whole(world))
}

/// A broker that leads something of a topic.
pub(super) fn a_leader(world: &World, topic: &Topic, random: &mut Random) -> Option<usize> {
    let leaders: BTreeSet<i32> =
        led(world)?.iter().filter(|one| one.topic == topic.name && one.leader > 0).map(|one| one.leader).collect();
    let leaders: Vec<i32> = leaders.into_iter().collect();
    (!leaders.is_empty()).then(|| leaders[index(random, leaders.len())].unsigned_abs() as usize)
}

/// What an unclean election does beside.
pub(super) struct Around<'a> {
    /// Wait until the records that get lost are archived.
    pub(super) archived_before: bool,
    /// What happens to archivers when the leader has gone.
    pub(super) meanwhile: &'a dyn Fn(),
}

/// Lets a replica lead that lacks the last records of two partitions.
pub(super) fn unclean(world: &World, topic: &Topic, random: &mut Random, around: &Around<'_>) {
    let cut = index(random, PAIRS.len() / 2) * 2;
    let cut = [cut, cut + 1].map(|partition| i32::try_from(partition).expect("a partition"));
    let [mut last, mut behind] = PAIRS[cut[0].unsigned_abs() as usize];
    if random.below(2) == 0 {
        std::mem::swap(&mut last, &mut behind);
    }
    let [leader, follower] = [last, behind].map(|broker| broker.unsigned_abs() as usize);
    world.journal.note(format!("{}: broker {follower} stops, broker {leader} alone has what comes now", topic.name));
    world.kafka.stop(follower);
    let is_of = |one: &Led| one.topic == topic.name && cut.contains(&one.partition);
    let alone = |one: &Led| one.leader == last && one.in_sync == [last].into();
    world.wait("one replica to be left", IN_SYNC, || {
        led(world).is_some_and(|all| all.iter().filter(|one| is_of(one)).all(alone))
    });
    world.rest(Duration::from_millis(500 + random.below(4000)));
    let changing = topic.changing();
    topic.pause();
    if around.archived_before {
        wait_archived(world, topic);
    }
    world.kafka.kill(leader);
    world.journal.note(format!("{}: broker {leader} killed", topic.name));
    (around.meanwhile)();
    world.kafka.restart(follower);
    let leads = |one: &Led| one.leader == behind;
    world.wait("an unclean election", IN_SYNC, || {
        led(world).is_some_and(|all| all.iter().filter(|one| is_of(one)).all(leads))
    });
    reckon(world, topic, [leader, follower]);
    topic.resume(world);
    drop(changing);
    world.rest(Duration::from_millis(random.below(4000)));
    world.kafka.restart(leader);
    world.journal.note(format!("{}: broker {leader} is back", topic.name));
}

/// Waits until the archive reaches the ends of the logs, or does not after all: what is lost then was not archived.
fn wait_archived(world: &World, topic: &Topic) {
    let (_, partitions) = topic.present();
    let ends = world.offsets(topic.name, partitions, OffsetAt::Latest, config::Isolation::ReadUncommitted);
    for _ in 0..100 {
        // Only this thread changes the topic, and it is halfway: what the archive reaches is of the log that is now.
        if watch::keep(world, topic).is_some_and(|reached| {
            ends.iter().all(|(partition, end)| reached.get(partition).is_some_and(|reached| reached >= end))
        }) {
            return;
        }
        world.rest(Duration::from_millis(200));
    }
    world.journal.note(format!("{}: it is not archived to its ends yet", topic.name));
}

/// Reads the logs as they are after an election, and notes what is lost, and from where the logs of the two brokers differ.
fn reckon(world: &World, topic: &Topic, brokers: [usize; 2]) {
    let (incarnation, partitions) = topic.present();
    wait_for("all partitions to be led", IN_SYNC, || world.kafka.partitions(topic.name));
    let held: Vec<(i32, i64, RecordId)> =
        world.kafka.consume(topic.name, Isolation::Uncommitted).iter().filter_map(placed).collect();
    world.ledger.books().incarnations[incarnation].elections += 1;
    for partition in 0..partitions {
        let of: BTreeSet<(i64, RecordId)> =
            held.iter().filter(|(at, ..)| *at == partition).map(|&(_, offset, id)| (offset, id)).collect();
        let end = of.last().map_or(0, |(offset, _)| offset + 1);
        let lost = world.ledger.elected(incarnation, partition, &of);
        let parted = parted(world, topic, partition, brokers);
        if let Some(parted) = parted {
            world.ledger.parted(incarnation, partition, parted);
        }
        if lost > 0 || parted.is_some() {
            let name = topic.name;
            world.journal.note(format!(
                "{name} partition {partition}: {lost} records are lost, the log ends at {end}, and is another one from {parted:?} on"
            ));
        }
    }
}

/// The first offset that two brokers wrote in different epochs of the leader, by their own notes: from there on their logs are
/// two. What one of them did not acknowledge was sent again to the other, so that a record may be in both, even at one offset.
fn parted(world: &World, topic: &Topic, partition: i32, brokers: [usize; 2]) -> Option<i64> {
    let [mine, others] = brokers.map(|broker| epochs(&world.kafka.epochs_file(broker, topic.name, partition)));
    let (mine, others) = (mine?, others?);
    let same = mine.iter().zip(&others).take_while(|(one, other)| one == other).count();
    [mine.get(same), others.get(same)].into_iter().flatten().map(|(_, start)| *start).min()
}

/// `leader-epoch-checkpoint` of a log: a version, how many, and each epoch with the offset at which it begins
/// (`CheckpointFile`, org.apache.kafka.server.common).
fn epochs(file: &Path) -> Option<Vec<(i32, i64)>> {
    let text = std::fs::read_to_string(file).ok()?;
    let all = text.lines().skip(2).map(|line| {
        let (epoch, start) = line.split_once(' ')?;
        Some((epoch.parse().ok()?, start.parse().ok()?))
    });
    all.collect()
}

/// Where a record is, and its number.
pub(super) fn placed(record: &Record) -> Option<(i32, i64, RecordId)> {
    let value = std::str::from_utf8(record.value.as_deref()?).ok()?;
    Some((record.partition, record.offset, id_of(value)?))
}

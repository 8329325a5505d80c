//! Transactions over the topics that are not cut: committed, aborted, and left open until the broker ends them.

use std::sync::RwLockReadGuard;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use rdkafka::producer::{Producer as _, ThreadedProducer};

use super::feed::{Reports, send};
use super::ledger::Outcome;
use super::topics::{Character, Feeding, Topic};
use super::world::{World, index};
use crate::rig::records::Random;
use crate::rig::unique;

/// How long a request of a transaction may take before it is asked again.
const REQUEST: Duration = Duration::from_secs(10);

/// How long an end of a transaction is asked for.
const END: Duration = Duration::from_secs(60);

/// One that is left open ends after this time.
const LEFT_OPEN: &str = "8000";

type Transactional = ThreadedProducer<Reports>;

/// Runs one transaction after the other until the run is over or quiet.
pub(super) fn run(world: &World) {
    let mut random = Random::new(world.journal.seed ^ 0x7a);
    let mut producer = None;
    while !world.is_over() && !world.is_quiet() {
        if producer.is_none() {
            producer = begin(world);
        }
        if let Some(ready) = producer.take() {
            producer = one(world, ready, &mut random);
        }
        world.rest(Duration::from_millis(200 + random.below(1200)));
    }
}

/// A producer whose transactions can begin; none if no coordinator answers now.
fn begin(world: &World) -> Option<Transactional> {
    let producer: Transactional = world
        .kafka
        .config()
        .set("transactional.id", unique("soak"))
        .set("transaction.timeout.ms", LEFT_OPEN)
        .set("linger.ms", "5")
        .set("topic.metadata.refresh.interval.ms", "1000")
        .create_with_context(Reports::new(&world.ledger))
        .expect("a producer");
    producer.init_transactions(REQUEST).ok().map(|()| producer)
}

/// One transaction. Gives the producer back if it can go on.
fn one(world: &World, producer: Transactional, random: &mut Random) -> Option<Transactional> {
    producer.begin_transaction().ok()?;
    let transaction = world.ledger.transaction();
    // Who wants to delete or create a topic waits for the end; only one that is left open lives on.
    let held: Vec<(&Topic, RwLockReadGuard<'_, Feeding>)> = world
        .topics
        .iter()
        .filter(|topic| topic.character != Character::Unclean && random.below(2) == 0)
        .filter_map(|topic| Some((topic, topic.feeding.try_read().ok()?)))
        .filter(|(_, feeding)| feeding.producer.is_some())
        .collect();
    for _ in 0..3 + random.below(20) {
        for (topic, feeding) in &held {
            let partition = i32::try_from(index(random, feeding.partitions.unsigned_abs() as usize));
            send(world, &producer, topic.name, feeding, (partition.expect("a partition"), Some(transaction)));
        }
    }
    let flushed = producer.flush(REQUEST).is_ok();
    world.rest(Duration::from_millis(random.below(600)));
    match random.below(100) {
        0..4 => {
            // The broker can only abort it.
            world.journal.note(format!("a transaction is left open, over {:?}", names(&held)));
            world.ledger.outcome(transaction, Outcome::Aborted);
            None
        }
        4..60 if flushed => end(world, producer, transaction, Outcome::Committed),
        _ => end(world, producer, transaction, Outcome::Aborted),
    }
}

fn names(held: &[(&Topic, RwLockReadGuard<'_, Feeding>)]) -> Vec<&'static str> {
    held.iter().map(|(topic, _)| topic.name).collect()
}

/// Ends a transaction as wanted, or finds out how it ended, or that nobody knows.
fn end(world: &World, producer: Transactional, transaction: usize, wanted: Outcome) -> Option<Transactional> {
    let ask = |outcome| match outcome {
        Outcome::Committed => producer.commit_transaction(REQUEST),
        _ => producer.abort_transaction(REQUEST),
    };
    let (start, mut outcome) = (Instant::now(), wanted);
    let known = loop {
        let error = match ask(outcome) {
            Ok(()) => break Some(outcome),
            Err(error) => error,
        };
        match error {
            KafkaError::Transaction(error) if error.is_retriable() && start.elapsed() < END => {}
            KafkaError::Transaction(error) if error.txn_requires_abort() => outcome = Outcome::Aborted,
            // Whoever asked for an abort can only have it.
            _ if outcome == Outcome::Aborted => break None,
            error => {
                world.journal.note(format!("a transaction ended nobody knows how: {error}"));
                world.ledger.outcome(transaction, Outcome::Unknown);
                return None;
            }
        }
    };
    world.ledger.outcome(transaction, known.unwrap_or(Outcome::Aborted));
    known.map(|_| producer)
}

//! Records that go on coming, a few hundred a second, each with its number; and the brokers' reports about them.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};

use super::ledger::{Ledger, RecordId};
use super::topics::Feeding;
use super::world::{World, index};
use crate::rig::records::Random;

/// Records for each topic every tenth of a second.
const AT_ONCE: usize = 8;

/// Tells the ledger what the brokers acknowledge.
pub(super) struct Reports {
    ledger: Arc<Ledger>,
}

impl Reports {
    pub(super) fn new(ledger: &Arc<Ledger>) -> Reports {
        Reports { ledger: Arc::clone(ledger) }
    }
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, id: RecordId) {
        // A record without an offset was written, and found to be by its sequence number: the log tells where.
        if let Ok(message) = result
            && message.offset() >= 0
        {
            self.ledger.acknowledged(id, message.offset());
        }
    }
}

/// Sends a record, if the queue takes it.
pub(super) fn send(
    world: &World,
    producer: &ThreadedProducer<Reports>,
    topic: &str,
    feeding: &Feeding,
    (partition, transaction): (i32, Option<usize>),
) {
    let id = world.ledger.send(feeding.incarnation, partition, transaction);
    let value = format!("{id} {:0>120}", id.wrapping_mul(7_919));
    let record = BaseRecord::<(), str, _>::with_opaque_to(topic, id).partition(partition).payload(&value);
    // One that is not taken was never sent.
    drop(producer.send(record));
}

/// The number in a record's value.
pub(super) fn id_of(value: &str) -> Option<RecordId> {
    value.split(' ').next()?.parse().ok()
}

/// Feeds all topics until the run is over or quiet.
pub(super) fn run(world: &World) {
    let mut random = Random::new(world.journal.seed ^ 0xfeed);
    while !world.is_over() && !world.is_quiet() {
        for topic in &world.topics {
            // Who changes the topic holds it; the others are fed on.
            let Ok(feeding) = topic.feeding.try_read() else { continue };
            let Some(producer) = &feeding.producer else { continue };
            for _ in 0..AT_ONCE {
                let partition = i32::try_from(index(&mut random, feeding.partitions.unsigned_abs() as usize));
                send(world, producer, topic.name, &feeding, (partition.expect("a partition"), None));
            }
            let gave_up = producer.client().fatal_error().map(|(_, why)| why);
            drop(feeding);
            if let Some(why) = gave_up {
                world.journal.note(format!("the producer of {} gave up, another one goes on: {why}", topic.name));
                topic.pause();
                topic.resume(world);
            }
        }
        world.rest(Duration::from_millis(100));
    }
}

//! Replays: whichever step one ends at, the same id goes on, and the target has every record once.

use super::{Fault, Plan, live};
use crate::rig::kafka::shared;
use crate::rig::records::Random;
use crate::rig::topics::{Codec, Message, Record};
use crate::rig::unique;
use crate::site::{Settings, Site};

/// What a replay passes.
pub(super) const STEPS: &[&str] = &[
    "hold.put",
    "hold.answer",
    "hold.delete",
    "journal.put",
    "journal.answer",
    "replay.produce",
    "replay.commit",
    "replay.committed",
];

const RECORDS: i32 = 900;

fn contents(records: Vec<Record>) -> Vec<(i32, Option<Vec<u8>>, Option<Vec<u8>>)> {
    let mut all: Vec<_> = records.into_iter().map(|record| (record.partition, record.key, record.value)).collect();
    all.sort_unstable();
    all
}

#[test]
fn whichever_step_a_replay_ends_at_its_id_goes_on_and_every_record_is_sent_once() {
    let plan = Plan::from_environment();
    plan.run(STEPS, |seed, met| {
        println!("crashes of replays: seed {seed}");
        let (kafka, mut random, topic) = (shared(), Random::new(seed), unique("crash-replayed"));
        kafka.create_topic(&topic, 3, &[]);
        let message = |n: i32| Message::new(n % 3, &format!("key-{}", n % 7), &format!("record {n}"));
        kafka.produce(&topic, Codec::None, &(0..RECORDS).map(message).collect::<Vec<_>>());
        let settings = Settings { topics: &[&topic], max_records: 200, ..Settings::default() };
        let site = Site::new(&kafka.bootstrap(), &settings);
        site.archive(kafka, &[&topic]);
        let held = contents(kafka.consume_all(&topic));
        for step in STEPS {
            let (id, target) = (unique("crashed"), unique(&format!("{topic}.copy")));
            let rename = format!("^.*$={target}");
            let from = "2000-01-01T00:00:00Z";
            let args = ["replay", "--topics", &topic, "--rename", &rename, "--from", from, "--id", &id, "--yes"];
            // Slow enough for two transactions.
            let command = [&["-c", "tidelog.toml"], &args[..], &["--rate", "600/s"]].concat();
            // One that was through before it could meet its fault is through.
            for _ in 0..if plan.is_long { 1 + random.below(3) } else { 1 } {
                let fault = match plan.is_long {
                    true => Fault::draw(step, &mut random),
                    false => Fault::kill(step),
                };
                live(site.home(), &command, &fault, met, || false);
            }
            site.tidelog(&args).expect(0);
            let sent = contents(kafka.consume_all(&target));
            assert_eq!(sent.len(), held.len(), "records in the target and in the source after {step}");
            assert!(sent == held, "the same records in the same partitions after {step}");
        }
        site.assert_sound();
    });
}

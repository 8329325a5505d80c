//! Two clusters that stand in configurations under one name, and archive into one place, never mix.

use crate::http::site_at;
use crate::isolation::{checked, cluster, numbered, readiness, refused};
use crate::rig::kafka::Kafka;
use crate::rig::topics::Codec;
use crate::rig::{unique, wait_for, wait_until};
use crate::site::{STOP, Settings, Site};
use crate::stalls::SOON;

fn fill(kafka: &Kafka, topic: &str, records: i64) {
    kafka.create_topic(topic, 1, &[]);
    kafka.produce(topic, Codec::None, &numbered(0..records));
}

/// What `verify` counts in a topic, by generation.
fn records(site: &Site, topic: &str) -> Vec<i64> {
    site.ls(topic).iter().map(|stream| stream["records"].as_i64().expect("records")).collect()
}

#[test]
fn a_replica_of_another_cluster_is_refused_while_the_first_one_goes_on() {
    let (a, b, topic) = (cluster(), cluster(), unique("replica"));
    fill(&a, &topic, 300);
    fill(&b, &topic, 700);
    let settings = Settings { topics: &[&topic], ..Settings::default() };
    let (first, second) = (Site::new(&a.bootstrap(), &settings), Site::new(&b.bootstrap(), &settings));
    second.shares_archive_of(&first);
    let mut program = first.start();
    first.wait_archived(&a, &[&topic], &mut [&mut program]);
    for round in 1..=2 {
        refused(&second, "is the Kafka cluster");
        let said = checked(&second);
        assert!(said["detail"].as_str().is_some_and(|detail| detail.contains(&b.bootstrap())), "{said}");
        a.produce(&topic, Codec::None, &numbered(0..50));
        first.wait_archived(&a, &[&topic], &mut [&mut program]);
        assert_eq!(records(&first, &topic), [300 + 50 * round], "nothing of the other cluster, nothing twice");
    }
    program.terminate(STOP);
    first.assert_sound();
    first.assert_holds(&topic, 0, &a.consume_all(&topic));
}

/// Neither finds an archive that says whose it is when it begins.
#[test]
fn of_two_clusters_that_begin_at_once_one_is_archived_and_the_other_one_is_named() {
    let (clusters, topic) = ([cluster(), cluster()], unique("at-once"));
    fill(&clusters[0], &topic, 300);
    fill(&clusters[1], &topic, 700);
    let settings = Settings { topics: &[&topic], ..Settings::default() };
    let sites = clusters.each_ref().map(|kafka| site_at(&kafka.bootstrap(), &settings, ""));
    sites[1].0.shares_archive_of(&sites[0].0);
    let mut programs = sites.each_ref().map(|(site, _)| site.start());
    let winner = wait_for("one of them to have begun", SOON, || match records(&sites[0].0, &topic)[..] {
        [300] => Some(0),
        [700] => Some(1),
        _ => None,
    });
    let (kafka, loser) = (&clusters[winner], 1 - winner);
    wait_until("the other one to be named", SOON, || {
        let said = if programs[loser].is_running() {
            if !sites[loser].1.is_up() {
                return false;
            }
            let (status, ready) = readiness(&sites[loser].1);
            assert_ne!(status, 200, "{ready}");
            ready
        } else {
            programs[loser].output()
        };
        said.contains("is the Kafka cluster") && said.contains("kafka.cluster_id = ")
    });
    kafka.produce(&topic, Codec::None, &numbered(0..50));
    let site = &sites[winner].0;
    site.wait_archived(kafka, &[&topic], &mut [&mut programs[winner]]);
    assert_eq!(records(site, &topic), [[350, 750][winner]], "nothing of the other cluster, nothing twice");
    for mut program in programs {
        if program.is_running() {
            program.terminate(STOP);
        }
    }
    refused(&sites[loser].0, "is the Kafka cluster");
    site.assert_sound();
    site.assert_holds(&topic, 0, &kafka.consume_all(&topic));
}

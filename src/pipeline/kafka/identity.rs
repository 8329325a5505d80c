//! Whether the brokers are those of the cluster that the archive holds under `kafka.cluster`.
//!
//! Each chain says in its first entry of which cluster it is. A cluster that was rebuilt on purpose is another one, too, and
//! nothing tells it from a wrong address: `kafka.cluster_id` confirms it, and its topics begin new generations.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt, stream};

use crate::config::Kafka;
use crate::error::{Error, Kind, Result};
use crate::manifest;
use crate::source::kafka::Cluster;
use crate::store::Store;
use crate::stream::{Begin, TopicGeneration};

/// How many first entries are read at once.
const READS_AT_ONCE: usize = 16;

/// How long the id may take of brokers that have just answered: librdkafka knows it by then, if they tell one.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// The id that brokers tell which have just answered another question; none if they tell none.
pub(super) async fn told(cluster: &Cluster) -> Option<String> {
    cluster.within(TOLD_WITHIN).id().await.ok()
}

/// Refuses brokers of a cluster that the archive does not know, where it knows the id of one, and of another than
/// `kafka.cluster_id`. Usually one first entry is read; all of them only where none is of this cluster.
///
/// # Errors
/// [`Kind::Config`] for another cluster; [`Kind::Unavailable`] while no broker tells an id that is needed.
pub async fn admit(store: &Store, kafka: &Kafka, cluster: &Cluster) -> Result<()> {
    cluster.ping().await?;
    let found = told(cluster).await;
    if let Some(configured) = &kafka.cluster_id {
        return match &found {
            Some(found) if found == configured => Ok(()),
            Some(found) => Err(other_than_configured(kafka, configured, found)),
            None => Err(untold(kafka, configured)),
        };
    }
    let mut generations = manifest::generations_named(store, &kafka.cluster).await?;
    // What was begun last tells most: a cluster that was confirmed once has the newest generations.
    generations.sort_unstable_by(|a, b| (b.number, &a.topic).cmp(&(a.number, &b.topic)));
    let begins = stream::iter(generations)
        .map(|generation| async move { (manifest::begin_of(store, &generation.stream()).await, generation) });
    let mut begins = begins.buffered(READS_AT_ONCE);
    let mut others: BTreeMap<String, TopicGeneration> = BTreeMap::new();
    while let Some((begin, generation)) = begins.next().await {
        // A damaged chain says nothing of the cluster, and is its own topic's trouble.
        let Ok(Some(begin)) = begin else { continue };
        match begin.cluster_id() {
            Some(archived) if Some(archived) == found.as_deref() => return Ok(()),
            Some(archived) => drop(others.entry(archived.to_owned()).or_insert(generation)),
            None => {}
        }
    }
    match others.first_key_value() {
        Some((archived, generation)) => Err(another(kafka, generation, archived, found.as_deref())),
        None => Ok(()),
    }
}

/// Returns whether the chain of `generation` is of another cluster than the one that was found, and that one was confirmed.
///
/// # Errors
/// As [`admit`].
pub(super) fn is_another(
    kafka: &Kafka,
    generation: &TopicGeneration,
    begin: &Begin,
    found: Option<&str>,
) -> Result<bool> {
    match (begin.cluster_id(), found) {
        (None, _) => Ok(false),
        (Some(archived), Some(found)) if archived == found => Ok(false),
        (Some(_), Some(found)) if kafka.cluster_id.as_deref() == Some(found) => Ok(true),
        (Some(archived), found) => Err(another(kafka, generation, archived, found)),
    }
}

fn another(kafka: &Kafka, generation: &TopicGeneration, archived: &str, found: Option<&str>) -> Error {
    let Some(found) = found else { return untold(kafka, archived) };
    let message = format!(
        "{} is the Kafka cluster {found}, and the archive holds the cluster {archived} under kafka.cluster = {:?} ({})",
        kafka.bootstrap_servers,
        kafka.cluster,
        generation.stream()
    );
    Error::new(Kind::Config, message).hint(format!(
        "mend kafka.bootstrap_servers, or give this cluster another kafka.cluster; if it was rebuilt and takes the place of \
         the old one, set kafka.cluster_id = {found:?}: its topics begin new generations"
    ))
}

fn other_than_configured(kafka: &Kafka, configured: &str, found: &str) -> Error {
    let message =
        format!("{} is the Kafka cluster {found}, and kafka.cluster_id says {configured}", kafka.bootstrap_servers);
    Error::new(Kind::Config, message).hint(
        "mend kafka.bootstrap_servers; if the cluster was rebuilt and takes the place of the old one, set kafka.cluster_id to \
         its id",
    )
}

fn untold(kafka: &Kafka, wanted: &str) -> Error {
    let message =
        format!("{} tells no cluster id, and only the cluster {wanted} may be archived here", kafka.bootstrap_servers);
    Error::new(Kind::Unavailable, message)
        .hint("give a cluster without an id another kafka.cluster, and leave kafka.cluster_id out")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_of_its_own_cluster_or_of_a_confirmed_one() {
        let mut kafka = crate::source::kafka::tests::config("localhost:9092", &["orders"], &[]);
        let generation = TopicGeneration::new("main", "orders", 0);
        let of = |id: Option<&str>| Begin::topic(None, vec![Some(0)]).on_cluster(id.map(str::to_owned));
        let judged = |kafka: &Kafka, archived, found| is_another(kafka, &generation, &of(archived), found);
        for (archived, found) in [(None, None), (None, Some("b")), (Some("a"), Some("a"))] {
            assert!(!judged(&kafka, archived, found).expect("admitted"), "{archived:?} {found:?}");
        }
        let refused = judged(&kafka, Some("a"), Some("b")).expect_err("another cluster");
        assert_eq!(refused.kind(), Kind::Config);
        let said = refused.to_string();
        for words in ["localhost:9092 is the Kafka cluster b", "holds the cluster a", "kafka/main/orders.0"] {
            assert!(said.contains(words), "{said}");
        }
        let hint = refused.hint_text().expect("a way out");
        assert!(hint.contains("kafka.cluster_id = \"b\"") && hint.contains("another kafka.cluster"), "{hint}");
        assert!(judged(&kafka, Some("a"), None).expect_err("no id is told").is_transient());
        kafka.cluster_id = Some("b".to_owned());
        assert!(judged(&kafka, Some("a"), Some("b")).expect("confirmed"));
        assert_eq!(judged(&kafka, Some("a"), Some("c")).expect_err("not confirmed").kind(), Kind::Config);
    }
}

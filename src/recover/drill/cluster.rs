//! A scratch Kafka cluster: which one it is, what it holds, and what is taken away again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::replay::kafka::Connection;

/// How long an answer of the cluster may take.
const ANSWER: Duration = Duration::from_secs(20);

/// How long a topic that was deleted may still be told.
const GOES: Duration = Duration::from_secs(60);

/// A cluster.
#[derive(Clone)]
pub(super) struct Cluster(Arc<AdminClient<DefaultClientContext>>);

impl Cluster {
    /// # Errors
    /// [`Kind::Config`] for properties that cannot be.
    pub(super) fn of(to: &Connection) -> Result<Self> {
        let client = to.client().create().or_err(Kind::Config, || "cannot reach the scratch cluster".to_owned())?;
        Ok(Self(Arc::new(client)))
    }

    /// The id that no other cluster has.
    ///
    /// # Errors
    /// A cluster that does not answer, or tells none.
    pub(super) async fn id(&self) -> Result<String> {
        let id = self.ask(|client| Ok(client.inner().fetch_cluster_id(ANSWER))).await?;
        id.ok_or_else(|| {
            Error::new(Kind::Unavailable, "the scratch cluster does not say which one it is")
                .hint("check that it runs and that kafka.bootstrap_servers reaches it")
        })
    }

    /// Its topics.
    ///
    /// # Errors
    /// A cluster that does not answer.
    pub(super) async fn topics(&self) -> Result<BTreeSet<String>> {
        let doing = || "the scratch cluster does not tell its topics".to_owned();
        self.ask(move |client| {
            let metadata = client.inner().fetch_metadata(None, ANSWER).or_err(Kind::Unavailable, doing)?;
            Ok(metadata.topics().iter().map(|topic| topic.name().to_owned()).collect())
        })
        .await
    }

    /// Its consumer groups.
    ///
    /// # Errors
    /// A cluster that does not answer.
    pub(super) async fn groups(&self) -> Result<BTreeSet<String>> {
        let doing = || "the scratch cluster does not tell its groups".to_owned();
        self.ask(move |client| {
            let groups = client.inner().fetch_group_list(None, ANSWER).or_err(Kind::Unavailable, doing)?;
            Ok(groups.groups().iter().map(|group| group.name().to_owned()).collect())
        })
        .await
    }

    /// Deletes topics and groups, and waits until the topics are gone.
    ///
    /// # Errors
    /// What the cluster refuses.
    pub(super) async fn remove(&self, topics: impl Fn(&str) -> bool, groups: impl Fn(&str) -> bool) -> Result<()> {
        let options = AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(ANSWER));
        let found = self.groups().await?;
        let there: Vec<&str> = found.iter().map(String::as_str).filter(|group| groups(group)).collect();
        if !there.is_empty() {
            let doing = || "cannot delete the groups of the drill".to_owned();
            let deleted = self.0.delete_groups(&there, &options).await.or_err(Kind::Unavailable, doing)?;
            refused(deleted, Code::GroupIdNotFound, "the group")?;
        }
        let begun = Instant::now();
        loop {
            let found = self.topics().await?;
            let there: Vec<&str> = found.iter().map(String::as_str).filter(|topic| topics(topic)).collect();
            if there.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > GOES {
                let message = format!("topics of the drill are still there: {}", there.join(", "));
                return Err(Error::new(Kind::Unavailable, message).hint("delete them by hand, or run the drill again"));
            }
            let doing = || "cannot delete the topics of the drill".to_owned();
            let deleted = self.0.delete_topics(&there, &options).await.or_err(Kind::Unavailable, doing)?;
            refused(deleted, Code::UnknownTopicOrPartition, "the topic")?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&AdminClient<DefaultClientContext>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let client = Arc::clone(&self.0);
        let asked = tokio::task::spawn_blocking(move || ask(&client)).await;
        asked.or_err(Kind::Internal, || "asking the scratch cluster was aborted".to_owned())?
    }
}

fn refused(answers: Vec<std::result::Result<String, (String, Code)>>, gone: Code, what: &str) -> Result<()> {
    match answers.into_iter().filter_map(std::result::Result::err).find(|(_, code)| *code != gone) {
        None => Ok(()),
        Some((name, code)) => {
            let error = Error::new(Kind::Denied, format!("{what} {name}, which the drill has made, cannot be deleted"));
            Err(error.source(KafkaError::AdminOp(code)).hint("delete it by hand: the scratch cluster has to allow it"))
        }
    }
}

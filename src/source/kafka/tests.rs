//! The consumer and the cluster view against librdkafka's own mock cluster.

use std::time::Duration;

use crate::config::{Isolation, Kafka, Segment, Start};
use crate::stream::Format;

/// A configuration as the parser would give it.
pub(super) fn config(bootstrap: &str, topics: &[&str], properties: &[(&str, &str)]) -> Kafka {
    Kafka {
        cluster: "main".into(),
        bootstrap_servers: bootstrap.into(),
        group_id: "tidelog".into(),
        topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
        exclude: Vec::new(),
        start: Start::Earliest,
        isolation: Isolation::ReadCommitted,
        properties: properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        segment: Segment {
            format: Format::Parquet,
            zstd_level: 3,
            max_bytes: 1 << 26,
            max_records: 1_000_000,
            max_age: Duration::from_secs(60),
        },
        overrides: Vec::new(),
    }
}

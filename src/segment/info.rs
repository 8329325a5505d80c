//! What a segment is part of.

use chrono::{DateTime, Utc};

use crate::stream::TopicGeneration;

/// What a segment is part of, for its file metadata.
#[derive(Debug, Clone)]
pub struct SegmentInfo {
    /// The stream.
    pub stream: TopicGeneration,
    /// The topic's id on the cluster, if the broker has one.
    pub topic_id: Option<String>,
    /// The id of the process that writes.
    pub writer: String,
    /// When it begins to.
    pub created: DateTime<Utc>,
}

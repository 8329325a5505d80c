//! What the two connectors and their classes are called.

/// The name of the connector that archives Kafka's topics.
pub(super) const KAFKA: &str = "kafka";

/// The name of the connector that archives Postgres' write-ahead log.
pub(super) const POSTGRES: &str = "postgres";

/// What stands as their classes.
pub(super) const KAFKA_CLASS: &str = "tidelog.Kafka";
pub(super) const POSTGRES_CLASS: &str = "tidelog.Postgres";

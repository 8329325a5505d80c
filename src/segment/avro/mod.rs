//! Avro segments: ordinary object container files, as
//! <https://avro.apache.org/docs/1.11.1/specification/#object-container-files> has them.
mod read;
mod write;
pub(super) use read::AvroReader;
pub(super) use write::AvroWriter;

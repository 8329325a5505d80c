use std::path::Path;
use crate::error::Result;
use crate::record::Block;
use crate::segment::facts::SegmentFacts;
use crate::segment::spool::Spool;
pub(in crate::segment) struct AvroWriter;
impl AvroWriter {
    pub(in crate::segment) fn create(_p: &Path, _l: i32) -> Result<Self> { Err(crate::error::Error::new(crate::error::Kind::Unsupported,"not yet")) }
    pub(in crate::segment) fn write(&mut self, _b: &[Block]) -> Result<()> { Ok(()) }
    pub(in crate::segment) fn bytes_written(&self) -> u64 { 0 }
    pub(in crate::segment) fn finish(self, _f: &SegmentFacts) -> Result<Spool> { Err(crate::error::Error::new(crate::error::Kind::Unsupported,"not yet")) }
}

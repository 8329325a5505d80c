use crate::error::Result;
use crate::record::Block;
use crate::segment::facts::SegmentFacts;
use crate::segment::fetch::Object;
use crate::segment::filter::Filter;
pub(in crate::segment) struct AvroReader {f:SegmentFacts}
impl AvroReader {
    pub(in crate::segment) async fn open(_o: Object, _f: Filter) -> Result<Self> { Err(crate::error::Error::new(crate::error::Kind::Unsupported,"not yet")) }
    pub(in crate::segment) async fn next(&mut self) -> Result<Option<Block>> { Ok(None) }
    pub(in crate::segment) fn facts(&self) -> &SegmentFacts { &self.f }
}

//! Writing a segment: documents in seqno order, then the fences; and the death marks of a flush.
//!
//! Does not know: where the documents come from.

use std::io;
use std::rc::Rc;

use super::Segment;
use crate::extent::{ExtentWriter, Extents, Space};
use crate::format::block::{BlockIdentity, BlockType};
use crate::format::index::{DeathMark, SegmentTotals, SeqlogFence, encode_marks, encode_seqlog_index};
use crate::format::manifest_record::{MarksDesc, SegmentDesc};
use crate::format::seqlog_block::{SeqlogBlockBuilder, seqlog_record_len};
use crate::io::BLOCK_BYTES;
use crate::item::Item;
use crate::run::{join, write_object_block};

/// See the module.
pub struct SegmentWriter {
    space: Rc<Space>,
    identity: BlockIdentity,
    writer: ExtentWriter,
    builder: SeqlogBlockBuilder,
    fences: Vec<SeqlogFence>,
    totals: SegmentTotals,
    expected_blocks: u32,
}

impl SegmentWriter {
    /// A writer of segment `id`; `expected_bytes` of records are expected in all.
    #[must_use]
    pub fn new(space: Rc<Space>, identity: BlockIdentity, id: u64, expected_bytes: usize) -> SegmentWriter {
        SegmentWriter {
            writer: ExtentWriter::new(space.clone()),
            space,
            identity: BlockIdentity { object: id, kind: BlockType::Seqlog, ..identity },
            builder: SeqlogBlockBuilder::default(),
            fences: Vec::new(),
            totals: SegmentTotals::default(),
            expected_blocks: (expected_bytes / BLOCK_BYTES) as u32 + 2,
        }
    }

    /// Appends a document, whose seqno is above all before.
    ///
    /// # Errors
    /// Of allocation or writing.
    pub async fn push(&mut self, item: &Item) -> io::Result<()> {
        let record_len = seqlog_record_len(item);
        if !self.builder.fits(record_len) {
            self.seal_block().await?;
        }
        self.totals.record_bytes += record_len as u64;
        self.builder.push(self.identity.vb, item);
        Ok(())
    }

    async fn seal_block(&mut self) -> io::Result<()> {
        let blocks = self.builder.blocks();
        let (records, first, last) = self.builder.content();
        self.expected_blocks = self.expected_blocks.saturating_sub(blocks).max(1);
        let (place, out) = self.writer.room(blocks, self.expected_blocks.max(blocks)).await?;
        self.builder.seal(&self.identity, place, out);
        self.fences.push(SeqlogFence { first, last, place, blocks, records });
        Ok(())
    }

    /// Writes what is left, and the index. The segment is not durable yet, and no manifest names it.
    ///
    /// # Errors
    /// Of allocation or writing; the blocks are given back.
    ///
    /// # Panics
    /// If nothing was pushed.
    pub async fn finish(mut self) -> io::Result<Rc<Segment>> {
        if !self.builder.is_empty() {
            self.seal_block().await?;
        }
        let blocks = self.writer.finish().await?;
        let payload = encode_seqlog_index(&self.fences, Some(self.totals));
        let identity = BlockIdentity { kind: BlockType::SeqlogIndex, ..self.identity };
        let index = write_object_block(&self.space, &identity, self.fences.len() as u32, &payload).await?;
        let desc = SegmentDesc {
            id: self.identity.object,
            first: self.fences.first().expect("a segment has documents").first,
            last: self.fences.last().expect("a segment has documents").last,
            records: self.fences.iter().map(|fence| u64::from(fence.records)).sum(),
            index: index.list()[0],
            extents: blocks.list().to_vec(),
        };
        let extents = join(&self.space, blocks, index);
        Ok(Rc::new(Segment::new(desc, self.identity, self.fences, self.totals, extents)))
    }
}

/// Writes the marks of a flush, if there are any.
///
/// # Errors
/// Of allocation or writing; the block is given back.
pub async fn write_marks(
    space: &Rc<Space>,
    identity: BlockIdentity,
    id: u64,
    marks: &[DeathMark],
) -> io::Result<Option<(MarksDesc, Extents)>> {
    if marks.is_empty() {
        return Ok(None);
    }
    let identity = BlockIdentity { object: id, kind: BlockType::Marks, ..identity };
    let extents = write_object_block(space, &identity, marks.len() as u32, &encode_marks(marks)).await?;
    let desc = MarksDesc { id, marks: marks.len() as u64, block: extents.list()[0] };
    Ok(Some((desc, extents)))
}

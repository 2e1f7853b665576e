//! Writing a segment: documents in seqno order, then the fences.
//!
//! Does not know: where the documents come from.

use std::io;
use std::rc::Rc;

use super::Segment;
use crate::extent::{ExtentWriter, Purpose, Space};
use crate::format::block::{BlockIdentity, BlockType};
use crate::format::index::{SegmentTotals, SeqlogFence, encode_seqlog_index};
use crate::format::manifest_record::SegmentDesc;
use crate::format::seqlog_block::{SeqlogBlockBuilder, SeqlogRecord, seqlog_record_len};
use crate::io::BLOCK_BYTES;
use crate::item::Item;
use crate::run::{join, write_object_block};
use crate::types::Seqno;

/// See the module.
pub struct SegmentWriter {
    space: Rc<Space>,
    purpose: Purpose,
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
    pub fn new(
        space: Rc<Space>,
        purpose: Purpose,
        identity: BlockIdentity,
        id: u64,
        expected_bytes: usize,
    ) -> SegmentWriter {
        SegmentWriter {
            writer: ExtentWriter::new(space.clone(), purpose),
            space,
            purpose,
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
        self.make_room(seqlog_record_len(item)).await?;
        self.builder.push(self.identity.vb, item);
        Ok(())
    }

    /// Appends a document as it is stored in another segment; its seqno is above all before.
    ///
    /// # Errors
    /// Of allocation or writing.
    pub async fn push_record(&mut self, record: &SeqlogRecord<'_>) -> io::Result<()> {
        self.make_room(record.stored_len()).await?;
        self.builder.push_record(record);
        Ok(())
    }

    /// A record of so many bytes comes.
    async fn make_room(&mut self, record_len: usize) -> io::Result<()> {
        if !self.builder.fits(record_len) {
            self.seal_block().await?;
        }
        self.totals.record_bytes += record_len as u64;
        Ok(())
    }

    /// The segment lacks every record that a version up to `settled` has replaced: marks of those are of no use to it.
    pub fn set_settled(&mut self, settled: Seqno) {
        self.totals.settled = settled;
    }

    /// Gives up: the blocks are given back once no write to them is under way.
    pub async fn abort(self) {
        self.writer.abort().await;
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
        let index =
            write_object_block(&self.space, self.purpose, &identity, self.fences.len() as u32, &payload)
                .await?;
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

//! Writing a run: key and metadata parts as they fill, then fences and filter.
//!
//! Does not know: where the versions come from.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use super::filter::filter_hash;
use super::{Filter, Run};
use crate::extent::{ExtentWriter, Extents, Purpose, Space};
use crate::format::block::{
    BLOCK_HEADER_BYTES, BlockHeader, BlockIdentity, BlockType, blocks_for, seal_block,
};
use crate::format::index::{KeyFence, encode_run_index};
use crate::format::key_block::{KeyBlockBuilder, Meta};
use crate::format::manifest_record::RunDesc;
use crate::io::BLOCK_BYTES;
use crate::types::Seqno;

/// See the module.
pub struct RunWriter {
    space: Rc<Space>,
    purpose: Purpose,
    identity: BlockIdentity,
    writer: ExtentWriter,
    builder: KeyBlockBuilder,
    first_key: Box<[u8]>,
    fences: Vec<KeyFence>,
    hashes: Vec<u64>,
    expected_blocks: u32,
    next_expiry: u32,
    desc: RunDesc,
}

impl RunWriter {
    /// A writer of run `id`. `expected_bytes` of key and metadata parts are expected in all.
    #[must_use]
    pub fn new(
        space: Rc<Space>,
        purpose: Purpose,
        identity: BlockIdentity,
        id: u64,
        expected_bytes: usize,
    ) -> RunWriter {
        let desc = RunDesc {
            id,
            records: 0,
            tombstones: 0,
            key_bytes: 0,
            last: Seqno(0),
            index: crate::format::manifest_record::Extent { start: 0, blocks: 1 },
            extents: Vec::new(),
        };
        RunWriter {
            writer: ExtentWriter::new(space.clone(), purpose),
            space,
            purpose,
            identity: BlockIdentity { object: id, kind: BlockType::Keys, ..identity },
            builder: KeyBlockBuilder::default(),
            first_key: Box::default(),
            fences: Vec::new(),
            hashes: Vec::new(),
            expected_blocks: (expected_bytes / BLOCK_BYTES) as u32 + 2,
            next_expiry: u32::MAX,
            desc,
        }
    }

    /// Appends a version, whose key (with prefix) is above all before.
    ///
    /// # Errors
    /// Of allocation or writing.
    pub async fn push(&mut self, key: &[u8], meta: &Meta) -> io::Result<()> {
        if !self.builder.fits(key) {
            self.seal_part().await?;
        }
        if self.builder.is_empty() {
            self.first_key = key.into();
        }
        self.builder.push(key, meta);
        self.hashes.push(filter_hash(key));
        if !meta.item.kind.is_deleted() && meta.item.expiry != 0 {
            self.next_expiry = self.next_expiry.min(meta.item.expiry);
        }
        self.desc.records += 1;
        self.desc.tombstones += u64::from(meta.item.kind.is_deleted());
        self.desc.key_bytes += key.len() as u64;
        self.desc.last = self.desc.last.max(meta.item.seqno);
        Ok(())
    }

    /// Gives up: the blocks are given back once no write to them is under way.
    pub async fn abort(self) {
        self.writer.abort().await;
    }

    async fn seal_part(&mut self) -> io::Result<()> {
        let (key_blocks, meta_blocks) = self.builder.blocks();
        let records_before: u64 = self.fences.iter().map(|fence| u64::from(fence.records)).sum();
        let total = key_blocks + meta_blocks;
        self.expected_blocks = self.expected_blocks.saturating_sub(total).max(1);
        let (place, out) = self.writer.room(total, self.expected_blocks.max(total)).await?;
        self.builder.seal(&self.identity, place, records_before, out);
        self.fences.push(KeyFence {
            first_key: std::mem::take(&mut self.first_key),
            place,
            key_blocks: key_blocks as u16,
            meta_blocks: meta_blocks as u16,
            records: (self.desc.records - records_before) as u32,
        });
        Ok(())
    }

    /// Writes what is left, and the index. The run is not durable yet, and no manifest names it.
    ///
    /// # Errors
    /// Of allocation or writing; the blocks are given back.
    pub async fn finish(mut self) -> io::Result<Rc<Run>> {
        if !self.builder.is_empty() {
            self.seal_part().await?;
        }
        let parts = self.writer.finish().await?;
        self.desc.extents = parts.list().to_vec();
        let filter = Filter::build(&self.hashes);
        let payload = encode_run_index(&self.fences, &filter.encode());
        let identity = BlockIdentity { kind: BlockType::RunIndex, ..self.identity };
        let index =
            write_object_block(&self.space, self.purpose, &identity, self.fences.len() as u32, &payload)
                .await?;
        self.desc.index = index.list()[0];
        let extents = join(&self.space, parts, index);
        let (desc, space, fences) = (self.desc, self.space, self.fences);
        let (next_expiry, is_unreadable) = (Cell::new(Some(self.next_expiry)), Cell::new(false));
        let identity = self.identity;
        Ok(Rc::new(Run { desc, identity, space, fences, filter, extents, next_expiry, is_unreadable }))
    }
}

/// Writes one block that is an extent of its own: an index or marks.
///
/// # Errors
/// Of allocation or writing; the block is given back.
pub(crate) async fn write_object_block(
    space: &Rc<Space>,
    purpose: Purpose,
    identity: &BlockIdentity,
    records: u32,
    payload: &[u8],
) -> io::Result<Extents> {
    let blocks = blocks_for(payload.len());
    let mut writer = ExtentWriter::new(space.clone(), purpose);
    let (place, out) = writer.room(blocks, blocks).await?;
    out[BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + payload.len()].copy_from_slice(payload);
    let header =
        BlockHeader { place, blocks, first: 0, records, payload_len: payload.len() as u32, extra: 0 };
    seal_block(identity, &header, out);
    writer.finish().await
}

/// One owner for what two owned, both not named yet.
pub(crate) fn join(space: &Rc<Space>, first: Extents, second: Extents) -> Extents {
    let list = [first.list(), second.list()].concat();
    first.set_named(true);
    second.set_named(true);
    Extents::fresh(space.clone(), list)
}

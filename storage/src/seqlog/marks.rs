//! Death marks on disk: what a flush found, or the marks of all segments written again.
//!
//! Does not know: segments, views.

use std::io;
use std::rc::Rc;

use crate::extent::{Extents, Purpose, Space};
use crate::format::block::{BlockIdentity, BlockType};
use crate::format::index::{DeathMark, decode_marks, encode_marks};
use crate::format::manifest_record::MarksDesc;
use crate::reader::{BlockAt, ReadError, damaged, read_uncached};
use crate::run::write_object_block;

/// A block of death marks. It is owned as long as a manifest names it.
#[derive(Debug)]
pub struct Marks {
    desc: MarksDesc,
    identity: BlockIdentity,
    extents: Extents,
}

impl Marks {
    /// Reads the marks of a block that the manifest names; it is claimed already.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub async fn open(
        space: &Rc<Space>,
        identity: BlockIdentity,
        desc: &MarksDesc,
    ) -> Result<(Marks, Vec<DeathMark>), ReadError> {
        let identity = BlockIdentity { object: desc.id, kind: BlockType::Marks, ..identity };
        let extents = Extents::named(space.clone(), vec![desc.block]);
        let marks = Marks { desc: desc.clone(), identity, extents };
        let at = marks.block_at();
        let (bytes, payload) = read_uncached(space, &at).await?;
        let decoded = decode_marks(&bytes[payload]).map_err(|source| damaged(space, at.place, source))?;
        Ok((marks, decoded))
    }

    /// Writes marks, if there are any, under the id `id`. They are not durable yet, and no manifest names them.
    ///
    /// # Errors
    /// Of allocation or writing; the block is given back.
    pub async fn write(
        space: &Rc<Space>,
        purpose: Purpose,
        identity: BlockIdentity,
        id: u64,
        marks: &[DeathMark],
    ) -> io::Result<Option<Marks>> {
        if marks.is_empty() {
            return Ok(None);
        }
        let identity = BlockIdentity { object: id, kind: BlockType::Marks, ..identity };
        let extents =
            write_object_block(space, purpose, &identity, marks.len() as u32, &encode_marks(marks)).await?;
        let desc = MarksDesc { id, marks: marks.len() as u64, block: extents.list()[0] };
        Ok(Some(Marks { desc, identity, extents }))
    }

    /// What the manifest says of them.
    #[must_use]
    pub fn desc(&self) -> &MarksDesc {
        &self.desc
    }

    /// Where they lie.
    #[must_use]
    pub fn block_at(&self) -> BlockAt {
        BlockAt { identity: self.identity, place: self.desc.block.start, blocks: self.desc.block.blocks }
    }

    /// Whether a durable manifest names them.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.extents.is_named()
    }

    /// A durable manifest names them from now on, or no longer does.
    pub fn set_named(&self, named: bool) {
        self.extents.set_named(named);
    }
}

//! The messages about documents: DCP_MUTATION, DCP_DELETION, DCP_EXPIRATION, and those of durable writes.
//!
//! Keys are as on the wire: with the LEB128 collection prefix iff the connection has Collections
//! ([`DocumentKey::decode`](super::super::DocumentKey::decode) takes it apart).
//!
//! Invariants
//! - `decode(encode(message)) == message`; a frame whose reserved fields are not 0 is refused, not rewritten.
//!
//! Cost: no allocation; key and value are copied once, into the caller's buffer.
//!
//! Does not know: which parts of a value a connection takes; where documents come from (`stored`).

use bytes::BufMut;
use ringbase_storage::types::{Cas, Seqno};

use super::super::error_context::Refusal;
use super::super::extras::{ILLEGAL_LENGTH, take, take_u16, take_u32, take_u64, whole};
use super::super::framing::DurabilityLevel;
use super::super::{Datatype, Frame, Opcode};
use super::envelope::{Envelope, Shape, need_key, no_value};

pub(super) const MUTATION_EXTRAS_BYTES: usize = 31;
pub(super) const DELETION_V1_EXTRAS_BYTES: usize = 18;
pub(super) const DELETION_V2_EXTRAS_BYTES: usize = 21;
pub(super) const EXPIRATION_EXTRAS_BYTES: usize = 20;
const PREPARE_EXTRAS_BYTES: usize = 31;
const OUTCOME_EXTRAS_BYTES: usize = 16;

const NOT_ZERO: Refusal = Refusal::einval("A reserved field of the message is not 0");

/// A version of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mutation<'a> {
    /// Its place in the vbucket.
    pub by_seqno: Seqno,
    /// Number of changes to this key.
    pub rev_seqno: u64,
    /// The client's opaque 32 bits.
    pub flags: u32,
    /// Absolute expiry in epoch seconds, 0 for none.
    pub expiry: u32,
    /// Seconds it stays locked; producers send 0.
    pub lock_time: u32,
    /// A hint how often it is used; producers send 0.
    pub nru: u8,
    /// Its version.
    pub cas: Cas,
    /// How the value is encoded.
    pub datatype: Datatype,
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

impl<'a> Mutation<'a> {
    pub(super) fn decode(frame: &Frame<'a>) -> Result<Mutation<'a>, Refusal> {
        let key = need_key(frame)?;
        let decode = |mut rest| {
            let by_seqno = Seqno(take_u64(&mut rest)?);
            let rev_seqno = take_u64(&mut rest)?;
            let [flags, expiry, lock_time] =
                [take_u32(&mut rest)?, take_u32(&mut rest)?, take_u32(&mut rest)?];
            let nmeta = take_u16(&mut rest)?;
            let [nru] = take(&mut rest)?;
            let (cas, datatype) = (frame.cas(), frame.datatype());
            let message = Mutation {
                by_seqno,
                rev_seqno,
                flags,
                expiry,
                lock_time,
                nru,
                cas,
                datatype,
                key,
                value: frame.value,
            };
            whole((message, nmeta), rest)
        };
        match decode(frame.extras).ok_or(ILLEGAL_LENGTH)? {
            (message, 0) => Ok(message),
            (_, _) => Err(NOT_ZERO),
        }
    }

    /// Appends the message to `out`.
    ///
    /// # Panics
    /// If the key is longer than 65535 bytes (255 with a stream id), or the body than 32 bits can say.
    #[inline]
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) {
        let shape = Shape {
            opcode: Opcode::DCP_MUTATION,
            datatype: self.datatype,
            cas: self.cas,
            extras_bytes: MUTATION_EXTRAS_BYTES,
            key_bytes: self.key.len(),
            value_bytes: self.value.len(),
        };
        envelope.put(shape, out);
        out.put_u64(self.by_seqno.0);
        out.put_u64(self.rev_seqno);
        out.put_u32(self.flags);
        out.put_u32(self.expiry);
        out.put_u32(self.lock_time);
        out.put_u16(0);
        out.put_u8(self.nru);
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.value);
    }
}

/// How a key became absent, and what the message tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeletionForm {
    /// DCP_DELETION, version 1.
    V1,
    /// DCP_DELETION, version 2.
    V2 {
        /// When it was deleted, in epoch seconds.
        delete_time: u32,
    },
    /// DCP_EXPIRATION.
    Expiration {
        /// When it expired, in epoch seconds.
        delete_time: u32,
    },
}

impl DeletionForm {
    pub(super) fn opcode(self) -> Opcode {
        match self {
            DeletionForm::V1 | DeletionForm::V2 { .. } => Opcode::DCP_DELETION,
            DeletionForm::Expiration { .. } => Opcode::DCP_EXPIRATION,
        }
    }

    pub(super) fn extras_bytes(self) -> usize {
        match self {
            DeletionForm::V1 => DELETION_V1_EXTRAS_BYTES,
            DeletionForm::V2 { .. } => DELETION_V2_EXTRAS_BYTES,
            DeletionForm::Expiration { .. } => EXPIRATION_EXTRAS_BYTES,
        }
    }
}

/// The end of a document: DCP_DELETION or DCP_EXPIRATION.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion<'a> {
    /// Its place in the vbucket.
    pub by_seqno: Seqno,
    /// Number of changes to this key.
    pub rev_seqno: u64,
    /// Which message.
    pub form: DeletionForm,
    /// Version of the tombstone.
    pub cas: Cas,
    /// How the value is encoded.
    pub datatype: Datatype,
    /// The key.
    pub key: &'a [u8],
    /// An xattr section or nothing.
    pub value: &'a [u8],
}

impl<'a> Deletion<'a> {
    pub(super) fn decode(frame: &Frame<'a>) -> Result<Deletion<'a>, Refusal> {
        let key = need_key(frame)?;
        let decode = |mut rest| {
            let by_seqno = Seqno(take_u64(&mut rest)?);
            let rev_seqno = take_u64(&mut rest)?;
            let (form, reserved) = match frame.opcode() {
                Opcode::DCP_EXPIRATION => (DeletionForm::Expiration { delete_time: take_u32(&mut rest)? }, 0),
                _ if rest.len() == 2 => (DeletionForm::V1, take_u16(&mut rest)?),
                _ => {
                    let delete_time = take_u32(&mut rest)?;
                    let [reserved] = take(&mut rest)?;
                    (DeletionForm::V2 { delete_time }, u16::from(reserved))
                }
            };
            let (cas, datatype) = (frame.cas(), frame.datatype());
            let message = Deletion { by_seqno, rev_seqno, form, cas, datatype, key, value: frame.value };
            whole((message, reserved), rest)
        };
        match decode(frame.extras).ok_or(ILLEGAL_LENGTH)? {
            (message, 0) => Ok(message),
            (_, _) => Err(NOT_ZERO),
        }
    }

    /// Appends the message to `out`.
    ///
    /// # Panics
    /// As [`Mutation::encode`].
    #[inline]
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) {
        let shape = Shape {
            opcode: self.form.opcode(),
            datatype: self.datatype,
            cas: self.cas,
            extras_bytes: self.form.extras_bytes(),
            key_bytes: self.key.len(),
            value_bytes: self.value.len(),
        };
        envelope.put(shape, out);
        out.put_u64(self.by_seqno.0);
        out.put_u64(self.rev_seqno);
        match self.form {
            DeletionForm::V1 => out.put_u16(0),
            DeletionForm::V2 { delete_time } => {
                out.put_u32(delete_time);
                out.put_u8(0);
            }
            DeletionForm::Expiration { delete_time } => out.put_u32(delete_time),
        }
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.value);
    }
}

/// A durable write that waits for its copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepare<'a> {
    /// Its place in the vbucket.
    pub by_seqno: Seqno,
    /// Number of changes to this key.
    pub rev_seqno: u64,
    /// The client's opaque 32 bits.
    pub flags: u32,
    /// Absolute expiry in epoch seconds, 0 for none.
    pub expiry: u32,
    /// Seconds it stays locked; producers send 0.
    pub lock_time: u32,
    /// A hint how often it is used.
    pub nru: u8,
    /// Whether the write is a delete.
    pub deleted: bool,
    /// Where copies must be.
    pub level: DurabilityLevel,
    /// Its version.
    pub cas: Cas,
    /// How the value is encoded.
    pub datatype: Datatype,
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

impl<'a> Prepare<'a> {
    pub(super) fn decode(frame: &Frame<'a>) -> Result<Prepare<'a>, Refusal> {
        let key = need_key(frame)?;
        let mut rest = frame.extras;
        let mut decode = || {
            let (by_seqno, rev_seqno) = (Seqno(take_u64(&mut rest)?), take_u64(&mut rest)?);
            let [flags, expiry, lock_time] =
                [take_u32(&mut rest)?, take_u32(&mut rest)?, take_u32(&mut rest)?];
            let [nru, deleted, level] = take(&mut rest)?;
            whole((by_seqno, rev_seqno, flags, expiry, lock_time, nru, deleted, level), rest)
        };
        let (by_seqno, rev_seqno, flags, expiry, lock_time, nru, deleted, level) =
            decode().ok_or(ILLEGAL_LENGTH)?;
        Ok(Prepare {
            by_seqno,
            rev_seqno,
            flags,
            expiry,
            lock_time,
            nru,
            deleted: match deleted {
                0 => false,
                1 => true,
                _ => return Err(Refusal::einval("A prepare is deleted or not, 1 or 0")),
            },
            level: DurabilityLevel::from_u8(level).ok_or(Refusal::einval("Invalid durability level"))?,
            cas: frame.cas(),
            datatype: frame.datatype(),
            key,
            value: frame.value,
        })
    }

    /// Appends the message to `out`.
    ///
    /// # Panics
    /// As [`Mutation::encode`].
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) {
        let shape = Shape {
            opcode: Opcode::DCP_PREPARE,
            datatype: self.datatype,
            cas: self.cas,
            extras_bytes: PREPARE_EXTRAS_BYTES,
            key_bytes: self.key.len(),
            value_bytes: self.value.len(),
        };
        envelope.put(shape, out);
        out.put_u64(self.by_seqno.0);
        out.put_u64(self.rev_seqno);
        out.put_u32(self.flags);
        out.put_u32(self.expiry);
        out.put_u32(self.lock_time);
        out.extend_from_slice(&[self.nru, u8::from(self.deleted), self.level as u8]);
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.value);
    }
}

/// What became of a durable write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome<'a> {
    /// Its prepare.
    pub prepared: Seqno,
    /// The place of commit or abort in the vbucket.
    pub seqno: Seqno,
    /// Whether it was committed.
    pub committed: bool,
    /// The key.
    pub key: &'a [u8],
}

impl<'a> Outcome<'a> {
    pub(super) fn decode(frame: &Frame<'a>) -> Result<Outcome<'a>, Refusal> {
        no_value(frame)?;
        let key = need_key(frame)?;
        let committed = frame.opcode() == Opcode::DCP_COMMIT;
        let decode = |mut rest| {
            let (prepared, seqno) = (Seqno(take_u64(&mut rest)?), Seqno(take_u64(&mut rest)?));
            whole(Outcome { prepared, seqno, committed, key }, rest)
        };
        decode(frame.extras).ok_or(ILLEGAL_LENGTH)
    }

    /// Appends the message to `out`.
    ///
    /// # Panics
    /// As [`Mutation::encode`].
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) {
        let opcode = if self.committed { Opcode::DCP_COMMIT } else { Opcode::DCP_ABORT };
        let shape = Shape { key_bytes: self.key.len(), ..Shape::of_extras(opcode, OUTCOME_EXTRAS_BYTES) };
        envelope.put(shape, out);
        out.put_u64(self.prepared.0);
        out.put_u64(self.seqno.0);
        out.extend_from_slice(self.key);
    }
}

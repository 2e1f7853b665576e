//! From stored documents to messages: what a backfill reads from disk and a stream reads from memory.
//!
//! A document lies on disk as the frame of a DCP_MUTATION or a DCP_DELETION (version 2) with opaque 0 and its key with
//! the collection prefix. A connection that takes it so gets the bytes as they are, with its own opaque; for another
//! one the head is written anew and the rest copied. Either way every byte is copied once.
//!
//! Invariants
//! - From disk or from memory, the same document gives the same bytes.
//! - Bytes that are no stored document are refused; nothing is appended then.
//!
//! - Xattrs are sent if the connection asks for them; those of the user, in a tombstone, if it asks for these, too.
//!
//! Cost: one copy into the caller's buffer, no allocation beyond its growth; a tombstone of which only some xattrs are sent is copied once more.
//!
//! Does not know: Snappy: a value that a connection cannot take compressed, or that would have to be looked into, gives
//! [`StoredError::NeedsTransform`]; blocks, records, which documents a stream wants.

use std::borrow::Cow;

use ringbase_storage::types::{Cas, ItemMeta, Kind, Seqno};

use super::super::extras::{take, take_u32, take_u64};
use super::super::hello::{Feature, Features};
use super::super::leb128;
use super::super::xattr::{Section, XattrError};
use super::super::{
    CollectionId, Datatype, Decoded, Frame, FrameLimits, HEADER_BYTES, Magic, Opcode, decode_frame,
};
use super::document::{DELETION_V2_EXTRAS_BYTES, Deletion, DeletionForm, MUTATION_EXTRAS_BYTES, Mutation};
use super::envelope::Envelope;
use super::open::OpenFlags;

/// What becomes of the bodies of documents.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum ValueForm {
    /// They are sent.
    #[default]
    Whole,
    /// They are left out; the datatype is RAW.
    Omitted,
    /// They are left out; the datatype is that of the stored value.
    OmittedWithDatatype,
}

/// How a connection takes documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DocumentForm {
    /// Whether keys keep their collection prefix: Collections is on.
    pub prefixed_keys: bool,
    /// Whether deletions tell their time (version 2).
    pub delete_times: bool,
    /// Whether expirations are messages of their own; needs `delete_times`.
    pub expirations: bool,
    /// What becomes of bodies.
    pub values: ValueForm,
    /// Whether tombstones keep the user's xattrs; needs XATTR among `datatypes`.
    pub deleted_user_xattrs: bool,
    /// Which bits of a stored datatype the connection takes: SNAPPY if negotiated, XATTR if asked for, JSON always.
    pub datatypes: Datatype,
}

impl DocumentForm {
    /// The form of a connection with `features` and these flags of DCP_OPEN.
    #[must_use]
    pub fn of(flags: OpenFlags, features: Features, expiry_opcode: bool) -> DocumentForm {
        let delete_times = flags.contains(OpenFlags::INCLUDE_DELETE_TIMES);
        let mut datatypes = Datatype::JSON;
        if features.has(Feature::Snappy) || features.has(Feature::SnappyEverywhere) {
            datatypes = datatypes | Datatype::SNAPPY;
        }
        if flags.contains(OpenFlags::INCLUDE_XATTRS) {
            datatypes = datatypes | Datatype::XATTR;
        }
        DocumentForm {
            datatypes,
            deleted_user_xattrs: flags.contains(OpenFlags::INCLUDE_DELETED_USER_XATTRS),
            prefixed_keys: features.has(Feature::Collections),
            delete_times,
            expirations: expiry_opcode && delete_times,
            values: if flags.contains(OpenFlags::NO_VALUE) {
                ValueForm::Omitted
            } else if flags.contains(OpenFlags::NO_VALUE_WITH_UNDERLYING_DATATYPE) {
                ValueForm::OmittedWithDatatype
            } else {
                ValueForm::Whole
            },
        }
    }

    /// Whether a stored frame of this kind is a message as it lies.
    fn is_stored_form(&self, kind: Kind, datatype: Datatype, envelope: &Envelope) -> bool {
        let takes_value = self.datatypes.contains(datatype.without(Datatype::JSON));
        let keeps_xattrs =
            !kind.is_deleted() || self.deleted_user_xattrs || !datatype.contains(Datatype::XATTR);
        let is_whole = self.prefixed_keys && self.values == ValueForm::Whole && takes_value && keeps_xattrs;
        let is_right = match kind {
            Kind::Mutation => true,
            Kind::Deletion => self.delete_times,
            Kind::Expiration => self.delete_times && !self.expirations,
            Kind::SystemEvent | Kind::Prepare | Kind::Commit | Kind::Abort => false,
        };
        is_whole && is_right && envelope.stream_id.is_none()
    }

    fn key<'k>(&self, stored: &'k [u8]) -> Result<&'k [u8], StoredError> {
        if self.prefixed_keys {
            return Ok(stored);
        }
        match leb128::decode(stored) {
            Ok((0, logical)) => Ok(logical),
            Ok((id, _)) => Err(StoredError::ForeignCollection { collection: CollectionId(id) }),
            Err(source) => Err(StoredError::Prefix { source }),
        }
    }

    /// What is sent of a stored value.
    #[inline]
    fn value<'v>(
        &self,
        kind: Kind,
        stored: Datatype,
        value: &'v [u8],
    ) -> Result<(Datatype, Cow<'v, [u8]>), StoredError> {
        let (has_xattrs, is_compressed) =
            (stored.contains(Datatype::XATTR), stored.contains(Datatype::SNAPPY));
        let sends_body = self.values == ValueForm::Whole;
        let sends_xattrs = has_xattrs && self.datatypes.contains(Datatype::XATTR);
        if !sends_body && !sends_xattrs {
            let is_told = self.values == ValueForm::OmittedWithDatatype;
            let datatype = if is_told { stored.without(Datatype::XATTR) } else { Datatype::RAW };
            return Ok((datatype, Cow::Borrowed(&[])));
        }
        let prunes = sends_xattrs && kind.is_deleted() && !self.deleted_user_xattrs;
        let is_as_stored = sends_body && sends_xattrs == has_xattrs && !prunes;
        if is_compressed && !(is_as_stored && self.datatypes.contains(Datatype::SNAPPY)) {
            return Err(StoredError::NeedsTransform { datatype: stored });
        }
        if is_as_stored {
            return Ok((stored, Cow::Borrowed(value)));
        }
        let (section, body) = Section::split(value).map_err(StoredError::xattrs)?;
        let body = if sends_body { body } else { &[] };
        if !sends_xattrs {
            return Ok((stored.without(Datatype::XATTR), Cow::Borrowed(body)));
        }
        let section = match prunes {
            true => section.system_only().map_err(StoredError::xattrs)?,
            false => Cow::Borrowed(section.bytes()),
        };
        let datatype = if self.values == ValueForm::Omitted { Datatype::XATTR } else { stored };
        Ok(match (section.is_empty(), body.is_empty()) {
            (true, _) => (datatype.without(Datatype::XATTR), Cow::Borrowed(body)),
            (false, true) => (datatype, section),
            (false, false) => (datatype, Cow::Owned([&section, body].concat())),
        })
    }

    fn deletion(&self, kind: Kind, delete_time: u32) -> DeletionForm {
        match kind {
            Kind::Expiration if self.expirations => DeletionForm::Expiration { delete_time },
            _ if self.delete_times => DeletionForm::V2 { delete_time },
            _ => DeletionForm::V1,
        }
    }
}

/// Why a stored document has no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoredError {
    /// It is no mutation, deletion or expiration.
    #[error("a stored record of kind {kind:?} is no document")]
    NotADocument {
        /// What it is.
        kind: Kind,
    },
    /// The bytes are not a whole frame as storage writes them.
    #[error("{have} bytes are not the stored frame of a document of kind {kind:?}")]
    Frame {
        /// How many there are.
        have: usize,
        /// What they should be.
        kind: Kind,
    },
    /// The key has no collection prefix to take off.
    #[error("a stored key has no collection prefix")]
    Prefix {
        /// What is wrong with it.
        #[source]
        source: leb128::Leb128Error,
    },
    /// The value has to be inflated first; send it as [`Mutation`] or [`Deletion`].
    #[error("a stored value of datatype {datatype} is not what the connection takes")]
    NeedsTransform {
        /// How it is stored.
        datatype: Datatype,
    },
    /// The xattrs of the value cannot be told from its body.
    #[error("a stored value has no xattr section although its datatype says so")]
    Xattrs {
        /// What is wrong.
        #[source]
        source: XattrError,
    },
    /// The document is not in the default collection, which is all that the connection takes.
    #[error("a document of collection {collection:?} for a connection without collections")]
    ForeignCollection {
        /// Where it is.
        collection: CollectionId,
    },
}

impl StoredError {
    fn xattrs(source: XattrError) -> StoredError {
        StoredError::Xattrs { source }
    }
}

/// Appends the message of the document whose stored frame is `frame`; returns its length in bytes, which is also what
/// it weighs in flow control.
///
/// # Errors
/// The document cannot be sent so; nothing was appended.
#[inline]
pub fn append_stored(
    frame: &[u8],
    kind: Kind,
    form: &DocumentForm,
    envelope: Envelope,
    out: &mut Vec<u8>,
) -> Result<usize, StoredError> {
    let stored = decode_stored(frame, kind)?;
    let begin = out.len();
    if form.is_stored_form(kind, stored.datatype(), &envelope) {
        out.extend_from_slice(frame);
        out[begin + 6..begin + 8].copy_from_slice(&envelope.vbucket.0.to_be_bytes());
        out[begin + 12..begin + 16].copy_from_slice(&envelope.opaque.to_be_bytes());
        return Ok(frame.len());
    }
    let meta = decode_meta(&stored, kind).ok_or(StoredError::Frame { have: frame.len(), kind })?;
    append_document(&meta, stored.key, stored.value, form, envelope, out)
}

/// Appends the message of a document in memory: its metadata, its key with collection prefix, its value; returns as
/// [`append_stored`].
///
/// # Errors
/// As [`append_stored`].
///
/// # Panics
/// As [`Mutation::encode`].
#[inline]
pub fn append_document(
    meta: &ItemMeta,
    key: &[u8],
    value: &[u8],
    form: &DocumentForm,
    envelope: Envelope,
    out: &mut Vec<u8>,
) -> Result<usize, StoredError> {
    let begin = out.len();
    let (by_seqno, rev_seqno, cas) = (meta.seqno, meta.revid, meta.cas);
    let (datatype, value) = form.value(meta.kind, Datatype(meta.datatype), value)?;
    let value = &*value;
    match meta.kind {
        Kind::Mutation => {
            let key = form.key(key)?;
            let (flags, expiry) = (meta.flags, meta.expiry);
            let (lock_time, nru) = (0, 0);
            Mutation { by_seqno, rev_seqno, flags, expiry, lock_time, nru, cas, datatype, key, value }
                .encode(envelope, out);
        }
        Kind::Deletion | Kind::Expiration => {
            let key = form.key(key)?;
            let deletion = form.deletion(meta.kind, meta.expiry);
            Deletion { by_seqno, rev_seqno, form: deletion, cas, datatype, key, value }.encode(envelope, out);
        }
        kind @ (Kind::SystemEvent | Kind::Prepare | Kind::Commit | Kind::Abort) => {
            return Err(StoredError::NotADocument { kind });
        }
    }
    Ok(out.len() - begin)
}

/// The parts of a stored frame, if it is one of this kind and nothing else.
#[inline]
fn decode_stored(bytes: &[u8], kind: Kind) -> Result<Frame<'_>, StoredError> {
    let (opcode, extras_bytes) = match kind {
        Kind::Mutation => (Opcode::DCP_MUTATION, MUTATION_EXTRAS_BYTES),
        Kind::Deletion | Kind::Expiration => (Opcode::DCP_DELETION, DELETION_V2_EXTRAS_BYTES),
        Kind::SystemEvent | Kind::Prepare | Kind::Commit | Kind::Abort => {
            return Err(StoredError::NotADocument { kind });
        }
    };
    let limits = FrameLimits { frame_bytes_max: bytes.len().max(HEADER_BYTES) };
    match decode_frame(bytes, limits) {
        Ok(Decoded::Frame(frame))
            if frame.frame_bytes() == bytes.len()
                && frame.header.magic == Magic::ClientRequest
                && frame.opcode() == opcode
                && frame.extras.len() == extras_bytes
                && (1..=usize::from(u8::MAX)).contains(&frame.key.len()) =>
        {
            Ok(frame)
        }
        _ => Err(StoredError::Frame { have: bytes.len(), kind }),
    }
}

fn decode_meta(frame: &Frame<'_>, kind: Kind) -> Option<ItemMeta> {
    let mut rest = frame.extras;
    let (seqno, revid) = (Seqno(take_u64(&mut rest)?), take_u64(&mut rest)?);
    let [first, second] = if kind.is_deleted() {
        [0, take_u32(&mut rest)?]
    } else {
        [take_u32(&mut rest)?, u32::from_be_bytes(take(&mut rest)?)]
    };
    let (cas, datatype): (Cas, u8) = (frame.cas(), frame.datatype().0);
    Some(ItemMeta { seqno, cas, revid, flags: first, expiry: second, datatype, kind })
}

#[cfg(test)]
mod tests {
    use ringbase_storage::format::seqlog_block::{RECORD_PREFIX_BYTES, SeqlogBlock, SeqlogBlockBuilder};
    use ringbase_storage::item::Item;
    use ringbase_storage::types::VbId;

    use super::super::super::xattr::build_section;
    use super::super::envelope::StreamId;
    use super::super::message::{DcpMessage, flow_control_bytes};
    use super::super::testing::frame;
    use super::*;

    const VB: VbId = VbId(5);
    const COLLECTIONS: Features = Features::of(&[Feature::Collections]);
    const PLAIN: Envelope = Envelope { vbucket: VB, opaque: 0xcafe_0007, stream_id: None };

    fn meta(kind: Kind) -> ItemMeta {
        let flags = if kind.is_deleted() { 0 } else { 0x0200_0000 };
        ItemMeta { seqno: Seqno(9), cas: Cas(77), revid: 3, flags, expiry: 1_700_000_000, datatype: 1, kind }
    }

    /// The frame of one document as the real block writer lays it out.
    fn stored(meta: ItemMeta, key: &[u8], value: &[u8]) -> Vec<u8> {
        use ringbase_storage::format::block::{BlockIdentity, BlockType};
        use ringbase_storage::types::BucketId;

        let mut builder = SeqlogBlockBuilder::default();
        builder.push(VB, &Item::new(meta, key, value));
        let mut block = vec![0; builder.blocks() as usize * ringbase_storage::io::BLOCK_BYTES];
        let identity =
            BlockIdentity { shard_uuid: 1, bucket: BucketId(1), vb: VB, object: 8, kind: BlockType::Seqlog };
        builder.seal(&identity, 20, &mut block);
        let opened = SeqlogBlock::open(&identity, 20, &block).unwrap();
        assert_eq!(RECORD_PREFIX_BYTES, 8);
        opened.record(&block, 0).unwrap().frame.to_vec()
    }

    fn forms() -> impl Iterator<Item = (DocumentForm, Envelope)> {
        let values = [ValueForm::Whole, ValueForm::Omitted, ValueForm::OmittedWithDatatype];
        (0..48usize).map(move |n| {
            let delete_times = n & 2 != 0;
            let form = DocumentForm {
                prefixed_keys: n & 1 != 0,
                delete_times,
                expirations: delete_times && n & 4 != 0,
                values: values[(n >> 4) % 3],
                deleted_user_xattrs: false,
                datatypes: Datatype::JSON,
            };
            (form, Envelope { stream_id: StreamId::new(if n & 8 == 0 { 0 } else { 300 }), ..PLAIN })
        })
    }

    #[test]
    fn from_disk_and_from_memory_a_document_gives_the_same_message_in_every_form() {
        for kind in [Kind::Mutation, Kind::Deletion, Kind::Expiration] {
            for value in [&b""[..], b"{\"a\":1}", &[7; 5000]] {
                for (form, envelope) in forms() {
                    let frame_bytes = stored(meta(kind), b"\0key", value);
                    let (mut disk, mut memory) = (b"before".to_vec(), b"before".to_vec());
                    let length = append_stored(&frame_bytes, kind, &form, envelope, &mut disk).unwrap();
                    append_document(&meta(kind), b"\0key", value, &form, envelope, &mut memory).unwrap();
                    assert_eq!(disk, memory, "{kind:?} {form:?}");
                    assert_eq!(length, disk.len() - 6);
                    let sent = frame(&disk[6..]);
                    let (found, message) = DcpMessage::decode(&sent).unwrap();
                    assert_eq!(found, envelope);
                    assert_eq!(flow_control_bytes(sent.opcode(), sent.frame_bytes()), length);
                    check(&message, kind, &form, value);
                }
            }
        }
    }

    fn check(message: &DcpMessage<'_>, kind: Kind, form: &DocumentForm, stored_value: &[u8]) {
        let expected_key = if form.prefixed_keys { &b"\0key"[..] } else { b"key" };
        let expected_value = if form.values == ValueForm::Whole { stored_value } else { b"" };
        let expected_datatype = Datatype(u8::from(form.values != ValueForm::Omitted));
        let delete_time = 1_700_000_000;
        match *message {
            DcpMessage::Mutation(mutation) => {
                assert_eq!(kind, Kind::Mutation);
                assert_eq!((mutation.key, mutation.value), (expected_key, expected_value));
                assert_eq!((mutation.by_seqno, mutation.rev_seqno, mutation.cas), (Seqno(9), 3, Cas(77)));
                assert_eq!((mutation.flags, mutation.expiry), (0x0200_0000, delete_time));
                assert_eq!(mutation.datatype, expected_datatype);
            }
            DcpMessage::Deletion(deletion) => {
                let expected = match (kind, form.delete_times, form.expirations) {
                    (Kind::Expiration, _, true) => DeletionForm::Expiration { delete_time },
                    (_, true, _) => DeletionForm::V2 { delete_time },
                    _ => DeletionForm::V1,
                };
                assert_eq!(deletion.form, expected);
                assert_eq!((deletion.key, deletion.value), (expected_key, expected_value));
                assert_eq!((deletion.by_seqno, deletion.rev_seqno, deletion.cas), (Seqno(9), 3, Cas(77)));
                assert_eq!(deletion.datatype, expected_datatype);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_usual_connection_gets_the_stored_bytes_with_its_opaque() {
        let flags = OpenFlags::PRODUCER | OpenFlags::INCLUDE_DELETE_TIMES;
        let form = DocumentForm::of(flags, COLLECTIONS, false);
        for kind in [Kind::Mutation, Kind::Deletion, Kind::Expiration] {
            let mut expected = stored(meta(kind), b"\x08key", b"v");
            let mut out = Vec::new();
            append_stored(&expected, kind, &form, PLAIN, &mut out).unwrap();
            expected[12..16].copy_from_slice(&PLAIN.opaque.to_be_bytes());
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn flags_and_controls_give_the_form() {
        let form = |flags, collections, expiry| {
            let features = if collections { COLLECTIONS } else { Features::NONE };
            DocumentForm::of(flags, features, expiry)
        };
        let times = OpenFlags::PRODUCER | OpenFlags::INCLUDE_DELETE_TIMES;
        assert!(!form(OpenFlags::PRODUCER, true, true).expirations, "the control needs the flag");
        assert!(form(times, true, true).expirations && !form(times, true, false).expirations);
        assert_eq!(form(OpenFlags::NO_VALUE, true, false).values, ValueForm::Omitted);
        let underlying = OpenFlags::NO_VALUE_WITH_UNDERLYING_DATATYPE;
        assert_eq!(form(underlying, true, false).values, ValueForm::OmittedWithDatatype);
        assert!(!form(times, false, false).prefixed_keys);
    }

    #[test]
    fn a_document_outside_the_default_collection_never_loses_its_prefix() {
        let form = DocumentForm::of(OpenFlags::PRODUCER, Features::NONE, false);
        let bytes = stored(meta(Kind::Mutation), b"\x08key", b"v");
        let mut out = Vec::new();
        let error = append_stored(&bytes, Kind::Mutation, &form, PLAIN, &mut out).unwrap_err();
        assert_eq!(error, StoredError::ForeignCollection { collection: CollectionId(8) });
        let bytes = stored(meta(Kind::Deletion), b"\x80", b"");
        assert!(append_stored(&bytes, Kind::Deletion, &form, PLAIN, &mut out).is_err());
        assert_eq!(out, b"");
    }

    #[test]
    fn a_value_that_the_connection_cannot_take_as_it_lies_is_never_sent_so() {
        let all = Features::of(&[Feature::Collections, Feature::Snappy]);
        let (plain, xattrs) = (OpenFlags::PRODUCER, OpenFlags::PRODUCER | OpenFlags::INCLUDE_XATTRS);
        let no_value = OpenFlags::NO_VALUE_WITH_UNDERLYING_DATATYPE;
        let value = [&build_section([("a", "1")])[..], b"value"].concat();
        let sent = |stored_datatype: u8, flags, features| {
            let meta = ItemMeta { datatype: stored_datatype, ..meta(Kind::Mutation) };
            let form = DocumentForm::of(flags, features, false);
            let (mut disk, mut memory) = (Vec::new(), Vec::new());
            let bytes = stored(meta, b"\0key", &value);
            let from_disk = append_stored(&bytes, Kind::Mutation, &form, PLAIN, &mut disk);
            assert_eq!(from_disk, append_document(&meta, b"\0key", &value, &form, PLAIN, &mut memory));
            assert_eq!(disk, memory);
            from_disk.ok().map(|_| frame(&disk).datatype().0)
        };
        for datatype in 0..8 {
            let (snappy, xattr) = (datatype & 2 != 0, datatype & 4 != 0);
            let unless = |refused: bool, datatype| (!refused).then_some(datatype);
            assert_eq!(sent(datatype, plain, COLLECTIONS), unless(snappy, datatype & 1), "{datatype}");
            assert_eq!(sent(datatype, plain, all), unless(snappy && xattr, datatype & 3), "{datatype}");
            assert_eq!(sent(datatype, xattrs, all), Some(datatype));
            assert_eq!(sent(datatype, plain | no_value, COLLECTIONS), Some(datatype & 3), "{datatype}");
            assert_eq!(
                sent(datatype, xattrs | no_value, all),
                unless(snappy && xattr, datatype),
                "{datatype}"
            );
            assert_eq!(sent(datatype, plain | OpenFlags::NO_VALUE, COLLECTIONS), Some(0), "{datatype}");
        }
    }

    /// DCP, "Datatype/value": with and without IncludeXattrs, NoValue and IncludeDeletedUserXattrs.
    #[test]
    fn xattrs_are_sent_as_the_flags_of_the_connection_say() {
        let system = build_section([("_s", "[2]")]);
        let both = build_section([("a", "1"), ("_s", "[2]")]);
        let user = build_section([("a", "1")]);
        let whole = [&both[..], b"{}"].concat();
        let plain = OpenFlags::PRODUCER | OpenFlags::INCLUDE_DELETE_TIMES;
        let xattrs = plain | OpenFlags::INCLUDE_XATTRS;
        let all = xattrs | OpenFlags::INCLUDE_DELETED_USER_XATTRS;
        let (omitted, told) = (OpenFlags::NO_VALUE, OpenFlags::NO_VALUE_WITH_UNDERLYING_DATATYPE);
        let (document, deleted) = (Kind::Mutation, Kind::Deletion);
        type Value<'v> = &'v [u8];
        let cases: [(Kind, Value<'_>, OpenFlags, u8, Value<'_>); 17] = [
            (document, &whole, plain, 1, b"{}"),
            (document, &whole, xattrs, 5, &whole),
            (document, &whole, all, 5, &whole),
            (document, &whole, plain | omitted, 0, b""),
            (document, &whole, xattrs | omitted, 4, &both),
            (document, &whole, plain | told, 1, b""),
            (document, &whole, xattrs | told, 5, &both),
            (deleted, &both, plain, 0, b""),
            (deleted, &both, xattrs, 4, &system),
            (deleted, &both, all, 4, &both),
            (deleted, &user, plain, 0, b""),
            (deleted, &user, xattrs, 0, b""),
            (deleted, &user, all, 4, &user),
            (deleted, &system, xattrs, 4, &system),
            (deleted, &both, xattrs | omitted, 4, &system),
            (deleted, &user, xattrs | told, 0, b""),
            (Kind::Expiration, &both, xattrs, 4, &system),
        ];
        for (kind, value, flags, datatype, expected) in cases {
            let meta = ItemMeta { datatype: if kind == document { 5 } else { 4 }, ..meta(kind) };
            for features in [COLLECTIONS, Features::NONE] {
                let form = DocumentForm::of(flags, features, true);
                let (mut disk, mut memory) = (Vec::new(), Vec::new());
                let bytes = stored(meta, b"\0key", value);
                append_stored(&bytes, kind, &form, PLAIN, &mut disk).unwrap();
                append_document(&meta, b"\0key", value, &form, PLAIN, &mut memory).unwrap();
                assert_eq!(disk, memory);
                let sent = frame(&disk);
                let what = format!("{kind:?} {flags:?} {features:?}");
                assert_eq!((sent.datatype().0, sent.value), (datatype, expected), "{what}");
                assert!(DcpMessage::decode(&sent).is_ok());
            }
        }
    }

    #[test]
    fn a_value_whose_section_is_broken_is_not_sent_in_parts() {
        let meta = ItemMeta { datatype: 4, ..meta(Kind::Mutation) };
        let form = DocumentForm::of(OpenFlags::PRODUCER, COLLECTIONS, false);
        let mut out = Vec::new();
        let refused = append_document(&meta, b"\0key", &[0, 0, 0, 9], &form, PLAIN, &mut out);
        assert!(matches!(refused, Err(StoredError::Xattrs { .. })), "{refused:?}");
        assert_eq!(out, b"");
    }

    #[test]
    fn truncated_and_mangled_frames_are_refused_or_sent_whole_and_never_panic() {
        let all: Vec<_> = forms().collect();
        for kind in [Kind::Mutation, Kind::Deletion, Kind::Expiration] {
            let whole = stored(meta(kind), b"\0key", b"value");
            for (form, envelope) in &all {
                for len in 0..whole.len() {
                    let mut out = Vec::new();
                    assert!(append_stored(&whole[..len], kind, form, *envelope, &mut out).is_err());
                    assert_eq!(out, b"", "cut at {len}");
                }
                for at in 0..whole.len() * 8 {
                    let mut bad = whole.clone();
                    bad[at / 8] ^= 1 << (at % 8);
                    let mut out = Vec::new();
                    match append_stored(&bad, kind, form, *envelope, &mut out) {
                        Ok(length) => assert_eq!(length, out.len()),
                        Err(_) => assert_eq!(out, b""),
                    }
                }
            }
            for other in [Kind::SystemEvent, Kind::Prepare, Kind::Commit, Kind::Abort] {
                let refused = append_stored(&whole, other, &all[0].0, PLAIN, &mut Vec::new());
                assert_eq!(refused, Err(StoredError::NotADocument { kind: other }));
            }
        }
    }
}

//! DCP_SYSTEM_EVENT: collections and scopes come and go, in versions 0 and 1.
//!
//! Invariants
//! - Version 1 is a created collection with a greatest expiry; everything else is version 0.
//! - Version 2 (FlatBuffers) is refused by name: this build neither writes nor reads it.
//!
//! Cost: no allocation.
//!
//! Does not know: manifests, which stream wants which event (`crate::dcp`).

use bytes::BufMut;
use ringbase_storage::types::Seqno;

use super::super::error_context::Refusal;
use super::super::extras::{ILLEGAL_LENGTH, take, take_u32, take_u64, whole};
use super::super::key::CollectionId;
use super::super::{Frame, Opcode, Status};
use super::envelope::{Envelope, Shape, no_key};
use super::stream_filter::ScopeId;

const EXTRAS_BYTES: usize = 13;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemEventKind<'a> {
    /// A collection was created.
    CreateCollection {
        /// Its scope.
        scope: ScopeId,
        /// Its id.
        collection: CollectionId,
        /// Expiry of its documents unless they have their own, in seconds.
        max_ttl: Option<u32>,
        /// Its name.
        name: &'a str,
    },
    /// A collection was dropped, with all its documents.
    DropCollection {
        /// Its scope.
        scope: ScopeId,
        /// Its id.
        collection: CollectionId,
    },
    /// A scope was created.
    CreateScope {
        /// Its id.
        scope: ScopeId,
        /// Its name.
        name: &'a str,
    },
    /// A scope was dropped; its collections were before.
    DropScope {
        /// Its id.
        scope: ScopeId,
    },
}

/// One event, at its place in the vbucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemEvent<'a> {
    /// The place.
    pub by_seqno: Seqno,
    /// The manifest that brought it.
    pub manifest_uid: u64,
    /// What happened.
    pub kind: SystemEventKind<'a>,
}

const CREATE_COLLECTION: u32 = 0;
const DROP_COLLECTION: u32 = 1;
const CREATE_SCOPE: u32 = 3;
const DROP_SCOPE: u32 = 4;

impl<'a> SystemEvent<'a> {
    pub(super) fn decode(frame: &Frame<'a>) -> Result<SystemEvent<'a>, Refusal> {
        let head = |mut rest| {
            let (by_seqno, event) = (Seqno(take_u64(&mut rest)?), take_u32(&mut rest)?);
            let [version] = take(&mut rest)?;
            whole((by_seqno, event, version), rest)
        };
        let (by_seqno, event, version) = head(frame.extras).ok_or(ILLEGAL_LENGTH)?;
        match (event, version) {
            (CREATE_COLLECTION, 0 | 1) | (DROP_COLLECTION | CREATE_SCOPE | DROP_SCOPE, 0) => {}
            (_, 2) => {
                return Err(Refusal::new(Status::NOT_SUPPORTED, "FlatBuffers events are not supported"));
            }
            _ => return Err(Refusal::einval("Unknown system event or version")),
        }
        let name = match event {
            CREATE_COLLECTION | CREATE_SCOPE => decode_name(frame.key)?,
            _ => {
                no_key(frame)?;
                ""
            }
        };
        let mut rest = frame.value;
        let mut decode = || {
            let manifest_uid = take_u64(&mut rest)?;
            let scope = ScopeId(take_u32(&mut rest)?);
            let mut collection = || take_u32(&mut rest).map(CollectionId);
            let kind = match event {
                CREATE_COLLECTION => {
                    let collection = collection()?;
                    let max_ttl = if version == 1 { Some(take_u32(&mut rest)?) } else { None };
                    SystemEventKind::CreateCollection { scope, collection, max_ttl, name }
                }
                DROP_COLLECTION => SystemEventKind::DropCollection { scope, collection: collection()? },
                CREATE_SCOPE => SystemEventKind::CreateScope { scope, name },
                _ => SystemEventKind::DropScope { scope },
            };
            whole(SystemEvent { by_seqno, manifest_uid, kind }, rest)
        };
        decode().ok_or(Refusal::einval("A system event has an illegal length"))
    }

    /// Appends the message to `out`.
    ///
    /// # Panics
    /// If the name is longer than 65535 bytes, 255 with a stream id.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) {
        let (event, version, name, value_bytes) = match self.kind {
            SystemEventKind::CreateCollection { max_ttl: None, name, .. } => (CREATE_COLLECTION, 0, name, 16),
            SystemEventKind::CreateCollection { max_ttl: Some(_), name, .. } => {
                (CREATE_COLLECTION, 1, name, 20)
            }
            SystemEventKind::DropCollection { .. } => (DROP_COLLECTION, 0, "", 16),
            SystemEventKind::CreateScope { name, .. } => (CREATE_SCOPE, 0, name, 12),
            SystemEventKind::DropScope { .. } => (DROP_SCOPE, 0, "", 12),
        };
        let shape = Shape {
            key_bytes: name.len(),
            value_bytes,
            ..Shape::of_extras(Opcode::DCP_SYSTEM_EVENT, EXTRAS_BYTES)
        };
        envelope.put(shape, out);
        out.put_u64(self.by_seqno.0);
        out.put_u32(event);
        out.put_u8(version);
        out.extend_from_slice(name.as_bytes());
        out.put_u64(self.manifest_uid);
        match self.kind {
            SystemEventKind::CreateCollection { scope, collection, max_ttl, .. } => {
                out.put_u32(scope.0);
                out.put_u32(collection.0);
                if let Some(seconds) = max_ttl {
                    out.put_u32(seconds);
                }
            }
            SystemEventKind::DropCollection { scope, collection } => {
                out.put_u32(scope.0);
                out.put_u32(collection.0);
            }
            SystemEventKind::CreateScope { scope, .. } | SystemEventKind::DropScope { scope } => {
                out.put_u32(scope.0);
            }
        }
    }
}

fn decode_name(key: &[u8]) -> Result<&str, Refusal> {
    match std::str::from_utf8(key) {
        Ok(name) if !name.is_empty() => Ok(name),
        _ => Err(Refusal::einval("The event needs a name")),
    }
}

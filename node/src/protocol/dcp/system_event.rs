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
        let head = |mut rest: &'a [u8]| {
            let (by_seqno, event) = (Seqno(take_u64(&mut rest)?), take_u32(&mut rest)?);
            let [version] = take(&mut rest)?;
            whole((by_seqno, event, version), rest)
        };
        let (by_seqno, event, version) = head(frame.extras).ok_or(ILLEGAL_LENGTH)?;
        let event = Form::of(event, version)?;
        let name = if event.has_name() {
            decode_name(frame.key)?
        } else {
            no_key(frame)?;
            ""
        };
        let (manifest_uid, kind, rest) = event.decode_payload(frame.value, name).ok_or(BAD_PAYLOAD)?;
        whole(SystemEvent { by_seqno, manifest_uid, kind }, rest).ok_or(BAD_PAYLOAD)
    }

    /// Reads the form in which an event is stored as the value of an item with the seqno `by_seqno`.
    ///
    /// # Errors
    /// EINVAL: it is no such form.
    pub fn decode_stored(by_seqno: Seqno, value: &'a [u8]) -> Result<SystemEvent<'a>, Refusal> {
        let [event, version, rest @ ..] = value else { return Err(BAD_PAYLOAD) };
        let event = Form::of(u32::from(*event), *version)?;
        let payload_bytes = event.payload_bytes().min(rest.len());
        let (payload, name) = rest.split_at(payload_bytes);
        let name = if event.has_name() { decode_name(name)? } else { "" };
        let (manifest_uid, kind, _) = event.decode_payload(payload, name).ok_or(BAD_PAYLOAD)?;
        Ok(SystemEvent { by_seqno, manifest_uid, kind })
    }

    /// Appends the message to `out`.
    ///
    /// # Panics
    /// If the name is longer than 65535 bytes, 255 with a stream id.
    pub fn encode(&self, envelope: Envelope, out: &mut Vec<u8>) {
        let (form, name) = self.kind.form();
        let shape = Shape {
            key_bytes: name.len(),
            value_bytes: form.payload_bytes(),
            ..Shape::of_extras(Opcode::DCP_SYSTEM_EVENT, EXTRAS_BYTES)
        };
        envelope.put(shape, out);
        out.put_u64(self.by_seqno.0);
        out.put_u32(form.event);
        out.put_u8(form.version);
        out.extend_from_slice(name.as_bytes());
        self.kind.encode_payload(self.manifest_uid, out);
    }
}

/// Event and version, of those that this build knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    event: u32,
    version: u8,
}

const BAD_PAYLOAD: Refusal = Refusal::einval("A system event has an illegal length");

impl Form {
    fn of(event: u32, version: u8) -> Result<Form, Refusal> {
        match (event, version) {
            (CREATE_COLLECTION, 0 | 1) | (DROP_COLLECTION | CREATE_SCOPE | DROP_SCOPE, 0) => {
                Ok(Form { event, version })
            }
            (_, 2) => Err(Refusal::new(Status::NOT_SUPPORTED, "FlatBuffers events are not supported")),
            _ => Err(Refusal::einval("Unknown system event or version")),
        }
    }

    fn has_name(self) -> bool {
        matches!(self.event, CREATE_COLLECTION | CREATE_SCOPE)
    }

    fn payload_bytes(self) -> usize {
        match (self.event, self.version) {
            (CREATE_COLLECTION, 1) => 20,
            (CREATE_COLLECTION | DROP_COLLECTION, _) => 16,
            _ => 12,
        }
    }

    /// The manifest's uid, what happened, and what is left of `payload`.
    fn decode_payload<'a>(
        self,
        payload: &'a [u8],
        name: &'a str,
    ) -> Option<(u64, SystemEventKind<'a>, &'a [u8])> {
        let mut rest = payload;
        let manifest_uid = take_u64(&mut rest)?;
        let scope = ScopeId(take_u32(&mut rest)?);
        let mut collection = || take_u32(&mut rest).map(CollectionId);
        let kind = match self.event {
            CREATE_COLLECTION => {
                let collection = collection()?;
                let max_ttl = if self.version == 1 { Some(take_u32(&mut rest)?) } else { None };
                SystemEventKind::CreateCollection { scope, collection, max_ttl, name }
            }
            DROP_COLLECTION => SystemEventKind::DropCollection { scope, collection: collection()? },
            CREATE_SCOPE => SystemEventKind::CreateScope { scope, name },
            _ => SystemEventKind::DropScope { scope },
        };
        Some((manifest_uid, kind, rest))
    }
}

impl<'a> SystemEventKind<'a> {
    fn form(&self) -> (Form, &'a str) {
        let (event, version, name) = match *self {
            SystemEventKind::CreateCollection { max_ttl: None, name, .. } => (CREATE_COLLECTION, 0, name),
            SystemEventKind::CreateCollection { max_ttl: Some(_), name, .. } => (CREATE_COLLECTION, 1, name),
            SystemEventKind::DropCollection { .. } => (DROP_COLLECTION, 0, ""),
            SystemEventKind::CreateScope { name, .. } => (CREATE_SCOPE, 0, name),
            SystemEventKind::DropScope { .. } => (DROP_SCOPE, 0, ""),
        };
        (Form { event, version }, name)
    }

    fn encode_payload(&self, manifest_uid: u64, out: &mut Vec<u8>) {
        out.put_u64(manifest_uid);
        match *self {
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

    /// The form in which the event is stored: event and version, a byte each, the payload of its message, and its name.
    #[must_use]
    pub fn to_stored(&self, manifest_uid: u64) -> Vec<u8> {
        let (form, name) = self.form();
        let mut value = vec![form.event as u8, form.version];
        self.encode_payload(manifest_uid, &mut value);
        value.extend_from_slice(name.as_bytes());
        value
    }
}

fn decode_name(key: &[u8]) -> Result<&str, Refusal> {
    match std::str::from_utf8(key) {
        Ok(name) if !name.is_empty() => Ok(name),
        _ => Err(Refusal::einval("The event needs a name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_event_reads_back_and_no_cut_of_it_is_another_one() {
        let (scope, collection) = (ScopeId(8), CollectionId(0xcafe_f00d));
        for kind in [
            SystemEventKind::CreateCollection { scope, collection, max_ttl: None, name: "orders" },
            SystemEventKind::CreateCollection { scope, collection, max_ttl: Some(60), name: "o" },
            SystemEventKind::DropCollection { scope, collection },
            SystemEventKind::CreateScope { scope, name: "shop" },
            SystemEventKind::DropScope { scope },
        ] {
            let stored = kind.to_stored(31);
            let event = SystemEvent { by_seqno: Seqno(7), manifest_uid: 31, kind };
            assert_eq!(SystemEvent::decode_stored(Seqno(7), &stored), Ok(event));
            for len in 0..stored.len() {
                assert_ne!(SystemEvent::decode_stored(Seqno(7), &stored[..len]), Ok(event), "cut at {len}");
            }
        }
        assert!(SystemEvent::decode_stored(Seqno(1), b"\x02\x00").is_err());
        assert!(SystemEvent::decode_stored(Seqno(1), b"\x00\x02").is_err());
    }
}

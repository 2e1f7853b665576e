//! Fixed-size arguments and results: the extras of requests and responses, and two short fixed bodies.
//!
//! Each type is the whole field, decoded and encoded; integers are big-endian on the wire. A request's type
//! refuses a wrong length with EINVAL (after `validate` that cannot happen); a response's type is `None`.
//!
//! Cost: no allocation.
//!
//! Does not know: what expiry, delta or seqno do to a document.

use ringbase_storage::types::{Seqno, VbId, VbUuid};

use super::error_context::Refusal;
use super::key::CollectionId;

pub(super) const ILLEGAL_LENGTH: Refusal = Refusal::einval("Request has an illegal extras length");

/// Splits the first `N` bytes off; `None` if there are fewer.
#[inline]
pub(super) fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

#[inline]
pub(super) fn take_u16(bytes: &mut &[u8]) -> Option<u16> {
    take(bytes).map(u16::from_be_bytes)
}

#[inline]
pub(super) fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    take(bytes).map(u32::from_be_bytes)
}

#[inline]
pub(super) fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    take(bytes).map(u64::from_be_bytes)
}

/// `decoded`, unless bytes are left over.
#[inline]
pub(super) fn whole<T>(decoded: T, rest: &[u8]) -> Option<T> {
    rest.is_empty().then_some(decoded)
}

/// Extras of Set, Add and Replace.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct StoreExtras {
    /// The client's opaque 32 bits.
    pub flags: u32,
    /// 0 for none, up to 30 days relative, above absolute epoch seconds.
    pub expiry: u32,
}

impl StoreExtras {
    /// Decodes 8 bytes: flags, expiry.
    ///
    /// # Errors
    /// EINVAL for another length.
    #[inline]
    pub fn decode(extras: &[u8]) -> Result<StoreExtras, Refusal> {
        let decode =
            |mut rest| whole(StoreExtras { flags: take_u32(&mut rest)?, expiry: take_u32(&mut rest)? }, rest);
        decode(extras).ok_or(ILLEGAL_LENGTH)
    }

    /// Encodes 8 bytes.
    #[must_use]
    #[inline]
    pub fn encode(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.flags.to_be_bytes());
        bytes[4..].copy_from_slice(&self.expiry.to_be_bytes());
        bytes
    }
}

/// Extras of Increment and Decrement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArithmeticExtras {
    /// What is added or taken away.
    pub delta: u64,
    /// Value of a counter that does not exist yet.
    pub initial: u64,
    /// Its expiry, or [`ArithmeticExtras::DO_NOT_CREATE`].
    pub expiry: u32,
}

impl ArithmeticExtras {
    /// The expiry that says: a counter that does not exist is KEY_ENOENT.
    pub const DO_NOT_CREATE: u32 = u32::MAX;

    /// Decodes 20 bytes: delta, initial, expiry.
    ///
    /// # Errors
    /// EINVAL for another length.
    pub fn decode(extras: &[u8]) -> Result<ArithmeticExtras, Refusal> {
        let decode = |mut rest| {
            let delta = take_u64(&mut rest)?;
            let initial = take_u64(&mut rest)?;
            whole(ArithmeticExtras { delta, initial, expiry: take_u32(&mut rest)? }, rest)
        };
        decode(extras).ok_or(ILLEGAL_LENGTH)
    }

    /// Encodes 20 bytes.
    #[must_use]
    pub fn encode(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&self.delta.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.initial.to_be_bytes());
        bytes[16..].copy_from_slice(&self.expiry.to_be_bytes());
        bytes
    }
}

/// Extras of Touch, Gat and GatQ: an expiry. GetLocked has the same form with a lock time in seconds.
///
/// # Errors
/// EINVAL for another length than 4.
#[inline]
pub fn decode_u32(extras: &[u8]) -> Result<u32, Refusal> {
    extras.try_into().map(u32::from_be_bytes).map_err(|_| ILLEGAL_LENGTH)
}

/// Extras of a successful mutation on a connection with MutationSeqno.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MutationToken {
    /// The branch of history the mutation is on.
    pub uuid: VbUuid,
    /// Its place there.
    pub seqno: Seqno,
}

impl MutationToken {
    /// Decodes 16 bytes: uuid, seqno.
    #[must_use]
    pub fn decode(extras: &[u8]) -> Option<MutationToken> {
        let mut rest = extras;
        let uuid = VbUuid(take_u64(&mut rest)?);
        whole(MutationToken { uuid, seqno: Seqno(take_u64(&mut rest)?) }, rest)
    }

    /// Encodes 16 bytes.
    #[must_use]
    #[inline]
    pub fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.uuid.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.seqno.0.to_be_bytes());
        bytes
    }
}

/// The value of an OBSERVE_SEQNO response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedSeqno {
    /// The vbucket asked about.
    pub vbucket: VbId,
    /// Its newest branch.
    pub uuid: VbUuid,
    /// Everything up to here is durable.
    pub persisted_seqno: Seqno,
    /// The greatest assigned.
    pub high_seqno: Seqno,
    /// If the uuid asked for is an older branch: that branch and the last seqno of it that this one shares.
    pub older_branch: Option<(VbUuid, Seqno)>,
}

impl ObservedSeqno {
    /// Longest form, in bytes.
    pub const BYTES_MAX: usize = 43;

    /// Decodes 27 bytes of format 0 or 43 of format 1.
    #[must_use]
    pub fn decode(value: &[u8]) -> Option<ObservedSeqno> {
        let mut rest = value;
        let [format] = take(&mut rest)?;
        let mut observed = ObservedSeqno {
            vbucket: VbId(take_u16(&mut rest)?),
            uuid: VbUuid(take_u64(&mut rest)?),
            persisted_seqno: Seqno(take_u64(&mut rest)?),
            high_seqno: Seqno(take_u64(&mut rest)?),
            older_branch: None,
        };
        match format {
            0 => {}
            1 => observed.older_branch = Some((VbUuid(take_u64(&mut rest)?), Seqno(take_u64(&mut rest)?))),
            _ => return None,
        }
        whole(observed, rest)
    }

    /// Encodes 27 or 43 bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(ObservedSeqno::BYTES_MAX);
        value.push(u8::from(self.older_branch.is_some()));
        value.extend_from_slice(&self.vbucket.0.to_be_bytes());
        for number in [self.uuid.0, self.persisted_seqno.0, self.high_seqno.0] {
            value.extend_from_slice(&number.to_be_bytes());
        }
        if let Some((uuid, seqno)) = self.older_branch {
            value.extend_from_slice(&uuid.0.to_be_bytes());
            value.extend_from_slice(&seqno.0.to_be_bytes());
        }
        value
    }
}

/// Extras of a COLLECTIONS_GET_ID response; of COLLECTIONS_GET_SCOPE_ID with a scope id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectionFound {
    /// The manifest in which the name was found.
    pub manifest_uid: u64,
    /// Its id there.
    pub id: CollectionId,
}

impl CollectionFound {
    /// Decodes 12 bytes: manifest uid, id.
    #[must_use]
    pub fn decode(extras: &[u8]) -> Option<CollectionFound> {
        let mut rest = extras;
        let manifest_uid = take_u64(&mut rest)?;
        whole(CollectionFound { manifest_uid, id: CollectionId(take_u32(&mut rest)?) }, rest)
    }

    /// Encodes 12 bytes.
    #[must_use]
    pub fn encode(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.manifest_uid.to_be_bytes());
        bytes[8..].copy_from_slice(&self.id.0.to_be_bytes());
        bytes
    }
}

/// A collection's path as COLLECTIONS_GET_ID names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectionPath<'a> {
    /// The scope; `_default` if the path leaves it empty.
    pub scope: &'a str,
    /// The collection; `_default` if the path leaves it empty.
    pub collection: &'a str,
}

/// Name of the scope and of the collection that always exist.
pub const DEFAULT_NAME: &str = "_default";

impl<'a> CollectionPath<'a> {
    /// Decodes `scope.collection`.
    ///
    /// # Errors
    /// EINVAL unless it is UTF-8 with exactly one dot.
    pub fn decode(path: &'a [u8]) -> Result<CollectionPath<'a>, Refusal> {
        let text = std::str::from_utf8(path).map_err(|_| Refusal::einval("The path is not UTF-8"))?;
        match text.split_once('.') {
            Some((scope, collection)) if !collection.contains('.') => {
                let or_default = |name: &'a str| if name.is_empty() { DEFAULT_NAME } else { name };
                Ok(CollectionPath { scope: or_default(scope), collection: or_default(collection) })
            }
            _ => Err(Refusal::einval("The path must be scope.collection")),
        }
    }

    /// Whether it names the default collection.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.scope == DEFAULT_NAME && self.collection == DEFAULT_NAME
    }
}

/// Version of a cluster configuration: extras of GET_CLUSTER_CONFIG. Ordered by epoch, then revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigVersion {
    /// From 1; -1 if the client knows none.
    pub epoch: i64,
    /// From 1.
    pub rev: i64,
}

impl ConfigVersion {
    /// Decodes 16 bytes, or none at all.
    ///
    /// # Errors
    /// EINVAL for another length or an illegal number.
    pub fn decode(extras: &[u8]) -> Result<Option<ConfigVersion>, Refusal> {
        if extras.is_empty() {
            return Ok(None);
        }
        let decode = |mut rest| {
            let epoch = take_u64(&mut rest)? as i64;
            whole(ConfigVersion { epoch, rev: take_u64(&mut rest)? as i64 }, rest)
        };
        let version = decode(extras).ok_or(ILLEGAL_LENGTH)?;
        if version.rev < 1 {
            return Err(Refusal::einval("The revision must be at least 1"));
        }
        if version.epoch < 1 && version.epoch != -1 {
            return Err(Refusal::einval("The epoch must be at least 1, or -1"));
        }
        Ok(Some(version))
    }

    /// Encodes 16 bytes.
    #[must_use]
    pub fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.epoch.to_be_bytes());
        bytes[8..].copy_from_slice(&self.rev.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_fields_survive_a_round_trip_and_other_lengths_are_refused() {
        let store = StoreExtras { flags: 0xdead_beef, expiry: 3600 };
        assert_eq!(store.encode(), [0xde, 0xad, 0xbe, 0xef, 0, 0, 0x0e, 0x10]);
        assert_eq!(StoreExtras::decode(&store.encode()), Ok(store));
        let arithmetic = ArithmeticExtras { delta: 1, initial: u64::MAX, expiry: 7 };
        assert_eq!(ArithmeticExtras::decode(&arithmetic.encode()), Ok(arithmetic));
        let token = MutationToken { uuid: VbUuid(0xfeed), seqno: Seqno(5) };
        assert_eq!(MutationToken::decode(&token.encode()), Some(token));
        let found = CollectionFound { manifest_uid: 3, id: CollectionId(8) };
        assert_eq!(CollectionFound::decode(&found.encode()), Some(found));
        assert_eq!(decode_u32(&[0, 0, 1, 0]), Ok(256));
        for len in (0..40).filter(|len| *len != 8) {
            assert!(StoreExtras::decode(&[0; 40][..len]).is_err());
        }
        for len in [0, 3, 5, 11, 13, 15, 17, 19, 21] {
            let bytes = &[0; 40][..len];
            assert!(ArithmeticExtras::decode(bytes).is_err() && decode_u32(bytes).is_err());
            assert!(MutationToken::decode(bytes).is_none() && CollectionFound::decode(bytes).is_none());
        }
    }

    #[test]
    fn both_formats_of_an_observed_seqno_survive_a_round_trip() {
        for older_branch in [None, Some((VbUuid(9), Seqno(64)))] {
            let observed = ObservedSeqno {
                vbucket: VbId(3),
                uuid: VbUuid(0xdead_beef_feed_cafe),
                persisted_seqno: Seqno(126),
                high_seqno: Seqno(149),
                older_branch,
            };
            let value = observed.encode();
            assert_eq!(value.len(), if older_branch.is_some() { 43 } else { 27 });
            assert_eq!(ObservedSeqno::decode(&value), Some(observed));
            for len in 0..value.len() {
                assert_eq!(ObservedSeqno::decode(&value[..len]), None);
            }
        }
        assert_eq!(ObservedSeqno::decode(&[2; 43]), None);
    }

    #[test]
    fn a_collection_path_has_exactly_one_dot_and_empty_parts_mean_default() {
        let path =
            |text: &'static str| CollectionPath::decode(text.as_bytes()).map(|p| (p.scope, p.collection));
        assert_eq!(path("shop.orders"), Ok(("shop", "orders")));
        assert_eq!(path("."), Ok(("_default", "_default")));
        assert_eq!(path(".c"), Ok(("_default", "c")));
        assert_eq!(path("s."), Ok(("s", "_default")));
        assert!(path("").is_err() && path("a").is_err() && path("a.b.c").is_err());
        assert!(CollectionPath::decode(b"\xff.a").is_err());
        assert!(CollectionPath::decode(b"_default.").unwrap().is_default());
    }

    #[test]
    fn a_known_config_version_has_legal_numbers_and_orders_by_epoch_first() {
        let version = |epoch, rev| ConfigVersion { epoch, rev };
        let decode = |version: ConfigVersion| ConfigVersion::decode(&version.encode());
        assert_eq!(ConfigVersion::decode(&[]), Ok(None));
        assert_eq!(decode(version(1, 12)), Ok(Some(version(1, 12))));
        assert_eq!(decode(version(-1, 1)), Ok(Some(version(-1, 1))));
        for (epoch, rev) in [(0, 1), (-2, 1), (1, 0), (1, -5), (i64::MIN, 1)] {
            assert!(decode(version(epoch, rev)).is_err(), "{epoch} {rev}");
        }
        assert!(version(2, 1) > version(1, 99) && version(1, 2) > version(1, 1));
    }
}

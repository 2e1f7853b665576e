//! Document keys: the collection prefix, its limits, and the vbucket a key hashes to.
//!
//! With Collections on, a key on the wire is the LEB128 form of a collection id and then the logical key;
//! without, it is the logical key in the default collection.
//!
//! Invariants
//! - A [`DocumentKey`] has a usable collection id and 1..=250 (246 outside the default collection) bytes.
//! - The hash sees the logical key only.
//!
//! Cost: no allocation; the hash uses the CPU's carry-less multiplication where there is one.
//!
//! Does not know: which collections exist.

use ringbase_storage::types::{KEY_BYTES_MAX, VbId};

use super::error_context::Refusal;
use super::leb128::{self, Leb128};

/// Longest key of a connection without Collections, and of the default collection, in bytes.
pub const LOGICAL_KEY_BYTES_MAX: usize = 250;

/// Longest logical key outside the default collection, in bytes.
pub const COLLECTION_KEY_BYTES_MAX: usize = 246;

/// Longest key on the wire with Collections on, prefix included, in bytes.
pub const PREFIXED_KEY_BYTES_MAX: usize = 251;

/// A collection of a bucket; 0 is the default one, 1 to 7 are reserved.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CollectionId(pub u32);

impl CollectionId {
    /// The collection of clients that know no collections.
    pub const DEFAULT: CollectionId = CollectionId(0);

    /// Whether a document may live there.
    #[must_use]
    #[inline]
    pub fn is_usable(self) -> bool {
        !matches!(self.0, 1..=7)
    }
}

/// Room for a key with its collection prefix.
pub type KeyBuffer = [u8; KEY_BYTES_MAX];

/// A document's key, borrowed from its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DocumentKey<'a> {
    /// Where the document lives.
    pub collection: CollectionId,
    /// The key without prefix; this is what is hashed.
    pub logical: &'a [u8],
    /// The key as it came.
    wire: &'a [u8],
}

impl<'a> DocumentKey<'a> {
    /// Decodes the key of a request.
    ///
    /// # Errors
    /// EINVAL with a text for each rule: lengths, LEB128 form, reserved ids.
    #[inline]
    pub fn decode(wire: &'a [u8], collections: bool) -> Result<DocumentKey<'a>, Refusal> {
        if !collections {
            if wire.is_empty() {
                return Err(Refusal::einval("Request must include key"));
            }
            if wire.len() > LOGICAL_KEY_BYTES_MAX {
                return Err(Refusal::einval("Key length exceeds 250"));
            }
            return Ok(DocumentKey { collection: CollectionId::DEFAULT, logical: wire, wire });
        }
        if wire.len() > PREFIXED_KEY_BYTES_MAX {
            return Err(Refusal::einval("Key length exceeds 251"));
        }
        if wire.len() < 2 {
            return Err(Refusal::einval("Key is too short for a collection prefix and a key"));
        }
        let (id, logical) = leb128::decode(wire)
            .map_err(|_| Refusal::einval("Collection prefix is not a canonical LEB128"))?;
        let collection = CollectionId(id);
        if !collection.is_usable() {
            return Err(Refusal::einval("Collection id is reserved"));
        }
        if logical.is_empty() {
            return Err(Refusal::einval("Key is empty after its collection prefix"));
        }
        if collection == CollectionId::DEFAULT && logical.len() > LOGICAL_KEY_BYTES_MAX {
            return Err(Refusal::einval("Logical key exceeds 250"));
        }
        if collection != CollectionId::DEFAULT && logical.len() > COLLECTION_KEY_BYTES_MAX {
            return Err(Refusal::einval("Logical key exceeds 246"));
        }
        Ok(DocumentKey { collection, logical, wire })
    }

    /// The key with its collection prefix, the form in which documents are stored. Copied into `buffer` only
    /// if the wire form had no prefix.
    #[must_use]
    #[inline]
    pub fn with_prefix<'b>(&self, buffer: &'b mut KeyBuffer) -> &'b [u8]
    where
        'a: 'b,
    {
        if self.wire.len() > self.logical.len() {
            return self.wire;
        }
        let prefix = Leb128::encode(self.collection.0);
        let prefix = prefix.as_bytes();
        let len = prefix.len() + self.logical.len();
        buffer[..prefix.len()].copy_from_slice(prefix);
        buffer[prefix.len()..len].copy_from_slice(self.logical);
        &buffer[..len]
    }

    /// The key as it came from the wire.
    #[must_use]
    pub fn as_received(&self) -> &'a [u8] {
        self.wire
    }

    /// The vbucket this key hashes to among `vbucket_count`.
    #[must_use]
    pub fn vbucket(&self, vbucket_count: u16) -> VbId {
        vbucket_of(self.logical, vbucket_count)
    }
}

/// The vbucket that a logical key hashes to among `vbucket_count`, which is not 0.
///
/// CRC-32 (IEEE 802.3), upper half without its top bit, modulo the count.
///
/// # Panics
/// If `vbucket_count` is 0.
#[must_use]
#[inline]
pub fn vbucket_of(logical: &[u8], vbucket_count: u16) -> VbId {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, logical) as u32;
    VbId(((crc >> 16) & 0x7fff) as u16 % vbucket_count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(wire: &[u8], collections: bool) -> &'static str {
        DocumentKey::decode(wire, collections).unwrap_err().context
    }

    #[test]
    fn without_collections_a_key_is_1_to_250_bytes_of_the_default_collection() {
        assert_eq!(refused(b"", false), "Request must include key");
        assert_eq!(refused(&[b'k'; 251], false), "Key length exceeds 250");
        let key = [b'k'; 250];
        let decoded = DocumentKey::decode(&key, false).unwrap();
        assert_eq!((decoded.collection, decoded.logical), (CollectionId::DEFAULT, &key[..]));
        let mut buffer = [0; KEY_BYTES_MAX];
        assert_eq!(decoded.with_prefix(&mut buffer), [&[0][..], &key].concat());
    }

    #[test]
    fn with_collections_the_wire_form_is_the_stored_form() {
        let wire = b"\xab\x04HelloWorld";
        let decoded = DocumentKey::decode(wire, true).unwrap();
        assert_eq!((decoded.collection, decoded.logical), (CollectionId(555), &b"HelloWorld"[..]));
        let mut buffer = [0; KEY_BYTES_MAX];
        assert_eq!(decoded.with_prefix(&mut buffer), wire);
        assert_eq!(decoded.as_received(), wire);
    }

    #[test]
    fn every_rule_about_a_prefixed_key_is_checked() {
        for (wire, context) in [
            (&b""[..], "Key is too short for a collection prefix and a key"),
            (b"\x00", "Key is too short for a collection prefix and a key"),
            (b"\x80\x80\x80\x80\x80x", "Collection prefix is not a canonical LEB128"),
            (b"\x80\x00x", "Collection prefix is not a canonical LEB128"),
            (b"\xff\xff", "Collection prefix is not a canonical LEB128"),
            (b"\x01x", "Collection id is reserved"),
            (b"\x07x", "Collection id is reserved"),
            (b"\x88\x01", "Key is empty after its collection prefix"),
        ] {
            assert_eq!(refused(wire, true), context, "{wire:x?}");
        }
        assert!(DocumentKey::decode(b"\x08x", true).is_ok());
    }

    #[test]
    fn lengths_count_the_prefix_on_the_wire_and_not_in_the_logical_key() {
        let key = |prefix: &[u8], len| [prefix, &vec![b'k'; len]].concat();
        assert!(DocumentKey::decode(&key(&[0], 250), true).is_ok());
        assert_eq!(refused(&key(&[0], 251), true), "Key length exceeds 251");
        assert!(DocumentKey::decode(&key(&[8], 246), true).is_ok());
        assert_eq!(refused(&key(&[8], 247), true), "Logical key exceeds 246");
        let longest = Leb128::encode(u32::MAX);
        assert!(DocumentKey::decode(&key(longest.as_bytes(), 246), true).is_ok());
        assert_eq!(refused(&key(longest.as_bytes(), 247), true), "Key length exceeds 251");
    }

    #[test]
    fn worked_keys_hash_to_their_vbuckets() {
        for (key, of_1024, of_128, of_64) in [
            ("hello", 528, 16, 16),
            ("foo", 115, 115, 51),
            ("key", 656, 16, 16),
            ("user::1234", 495, 111, 47),
            ("airline_10", 361, 105, 41),
            ("a", 183, 55, 55),
            ("beer-sample", 723, 83, 19),
            ("mykey", 102, 102, 38),
            ("€", 1010, 114, 50),
            ("", 0, 0, 0),
        ] {
            let hash = |count| vbucket_of(key.as_bytes(), count).0;
            assert_eq!((hash(1024), hash(128), hash(64)), (of_1024, of_128, of_64), "{key}");
        }
        let prefixed = DocumentKey::decode(b"\xab\x04hello", true).unwrap();
        assert_eq!(prefixed.vbucket(1024), VbId(528));
    }
}

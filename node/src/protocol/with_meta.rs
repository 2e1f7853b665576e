//! Arguments of the commands that store a version as it was made elsewhere: SET, ADD and DELETE "with meta".
//!
//! Extras, big-endian:
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0 | 4 | flags |
//! | 4 | 4 | expiry, absolute; of a deletion its time |
//! | 8 | 8 | revision: number of changes to the key |
//! | 16 | 8 | CAS |
//! | 24 | 0 or 4 | options |
//! | | 0 or 2 | bytes of metadata behind the value, which nobody reads |
//!
//! Invariants
//! - Decoded options are known ones, and none lacks what it needs; what a bucket's way of conflict resolution asks of them is checked there.
//!
//! Cost: no allocation.
//!
//! Does not know: which version wins, vbuckets.

use ringbase_storage::types::Cas;

use super::error_context::Refusal;
use super::extras::{ILLEGAL_LENGTH, take_u16, take_u32, take_u64, whole};

/// What a command with metadata asks for beside its version.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct MetaOptions(u32);

impl MetaOptions {
    /// Nothing.
    pub const NONE: MetaOptions = MetaOptions(0);
    /// The older name of [`MetaOptions::SKIP_CONFLICT_RESOLUTION`].
    pub const FORCE_WITH_META: MetaOptions = MetaOptions(0x01);
    /// The client knows that the bucket resolves conflicts by time.
    pub const FORCE_ACCEPT: MetaOptions = MetaOptions(0x02);
    /// The version gets a CAS of here.
    pub const REGENERATE_CAS: MetaOptions = MetaOptions(0x04);
    /// The version is stored whatever is there.
    pub const SKIP_CONFLICT_RESOLUTION: MetaOptions = MetaOptions(0x08);
    /// A deletion is that of an expired document.
    pub const IS_EXPIRATION: MetaOptions = MetaOptions(0x10);

    const KNOWN: u32 = 0x1f;

    /// Decodes the options of a request.
    ///
    /// # Errors
    /// EINVAL for an unknown bit, and for a CAS of here that may lose against what is there.
    pub fn decode(bits: u32) -> Result<MetaOptions, Refusal> {
        let options = MetaOptions(bits);
        if bits & !MetaOptions::KNOWN != 0 {
            return Err(Refusal::einval("Unknown option of a command with metadata"));
        }
        if options.has(MetaOptions::REGENERATE_CAS) && !options.skips_resolution() {
            return Err(Refusal::einval("REGENERATE_CAS needs SKIP_CONFLICT_RESOLUTION"));
        }
        Ok(options)
    }

    /// Whether every bit of `other` is set.
    #[must_use]
    pub fn has(self, other: MetaOptions) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the version is stored whatever is there.
    #[must_use]
    pub fn skips_resolution(self) -> bool {
        self.has(MetaOptions::SKIP_CONFLICT_RESOLUTION) || self.has(MetaOptions::FORCE_WITH_META)
    }

    /// The wire form.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl std::ops::BitOr for MetaOptions {
    type Output = MetaOptions;

    fn bitor(self, other: MetaOptions) -> MetaOptions {
        MetaOptions(self.0 | other.0)
    }
}

/// Extras of a command with metadata. See the module.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct WithMetaExtras {
    /// The client's opaque 32 bits.
    pub flags: u32,
    /// Absolute, in epoch seconds, 0 for none; of a deletion its time.
    pub expiry: u32,
    /// Number of changes to the key.
    pub revid: u64,
    /// The version's CAS.
    pub cas: Cas,
    /// What else is asked for; `None`: the field is not there, which is as good as no option.
    pub options: Option<MetaOptions>,
    /// Bytes behind the value that do not belong to it; `None`: the field is not there.
    pub meta_bytes: Option<u16>,
}

impl WithMetaExtras {
    /// Longest form, in bytes.
    pub const BYTES_MAX: usize = 30;

    /// Decodes 24, 26, 28 or 30 bytes.
    ///
    /// # Errors
    /// EINVAL for another length, and as [`MetaOptions::decode`].
    pub fn decode(extras: &[u8]) -> Result<WithMetaExtras, Refusal> {
        let (has_options, has_meta) = (matches!(extras.len(), 28 | 30), matches!(extras.len(), 26 | 30));
        let decode = |mut rest| {
            let [flags, expiry] = [take_u32(&mut rest)?, take_u32(&mut rest)?];
            let (revid, cas) = (take_u64(&mut rest)?, Cas(take_u64(&mut rest)?));
            let options = if has_options { Some(take_u32(&mut rest)?) } else { None };
            let meta_bytes = if has_meta { Some(take_u16(&mut rest)?) } else { None };
            let extras = WithMetaExtras { flags, expiry, revid, cas, options: None, meta_bytes };
            whole((extras, options), rest)
        };
        let (extras, options) = decode(extras).ok_or(ILLEGAL_LENGTH)?;
        Ok(WithMetaExtras { options: options.map(MetaOptions::decode).transpose()?, ..extras })
    }

    /// Appends 24 to 30 bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&self.expiry.to_be_bytes());
        out.extend_from_slice(&self.revid.to_be_bytes());
        out.extend_from_slice(&self.cas.0.to_be_bytes());
        if let Some(options) = self.options {
            out.extend_from_slice(&options.bits().to_be_bytes());
        }
        if let Some(bytes) = self.meta_bytes {
            out.extend_from_slice(&bytes.to_be_bytes());
        }
    }

    /// The options, none if the field is not there.
    #[must_use]
    pub fn options(&self) -> MetaOptions {
        self.options.unwrap_or_default()
    }

    /// `value` without the metadata behind it; `None` if it is shorter than that.
    #[must_use]
    pub fn value_of<'v>(&self, value: &'v [u8]) -> Option<&'v [u8]> {
        let end = value.len().checked_sub(usize::from(self.meta_bytes.unwrap_or_default()))?;
        Some(&value[..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_four_lengths_survive_a_round_trip_and_no_other_is_taken() {
        let plain =
            WithMetaExtras { flags: 7, expiry: 10, revid: 20, cas: Cas(30), options: None, meta_bytes: None };
        let options = Some(MetaOptions::REGENERATE_CAS | MetaOptions::SKIP_CONFLICT_RESOLUTION);
        for (extras, len) in [
            (plain, 24),
            (WithMetaExtras { meta_bytes: Some(5), ..plain }, 26),
            (WithMetaExtras { options, ..plain }, 28),
            (WithMetaExtras { options, meta_bytes: Some(0), ..plain }, WithMetaExtras::BYTES_MAX),
        ] {
            let mut bytes = Vec::new();
            extras.encode(&mut bytes);
            assert_eq!(bytes.len(), len);
            assert_eq!(WithMetaExtras::decode(&bytes), Ok(extras));
        }
        for len in (0..40).filter(|len| ![24, 26, 28, 30].contains(len)) {
            assert!(WithMetaExtras::decode(&[0; 40][..len]).is_err(), "{len}");
        }
    }

    /// `set_with_meta_request_30` of the vectors.
    #[test]
    fn the_extras_of_the_vectors_are_understood() {
        let bytes =
            [0, 0, 0, 7, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 30, 0, 0, 0, 2, 0, 0];
        let extras = WithMetaExtras::decode(&bytes).unwrap();
        assert_eq!((extras.flags, extras.expiry, extras.revid, extras.cas), (7, 10, 20, Cas(30)));
        assert_eq!((extras.options(), extras.meta_bytes), (MetaOptions::FORCE_ACCEPT, Some(0)));
    }

    #[test]
    fn unknown_options_and_a_fresh_cas_that_could_lose_are_refused() {
        for bits in 0..64 {
            let needs = bits & 4 != 0 && bits & 9 == 0;
            assert_eq!(MetaOptions::decode(bits).is_ok(), bits < 0x20 && !needs, "{bits:#x}");
        }
        assert!(MetaOptions::decode(0x01).unwrap().skips_resolution());
        assert!(MetaOptions::decode(0x08).unwrap().skips_resolution());
        assert!(!MetaOptions::decode(0x12).unwrap().skips_resolution());
    }

    #[test]
    fn the_metadata_behind_a_value_must_be_there() {
        let with = |meta_bytes| WithMetaExtras { meta_bytes, ..WithMetaExtras::default() };
        assert_eq!(with(None).value_of(b"abc"), Some(&b"abc"[..]));
        assert_eq!(with(Some(2)).value_of(b"abc"), Some(&b"a"[..]));
        assert_eq!(with(Some(3)).value_of(b"abc"), Some(&b""[..]));
        assert_eq!(with(Some(4)).value_of(b"abc"), None);
    }
}

//! The xattr section: named JSON values in front of a document's body, there if the datatype says XATTR.
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0 | 4 | bytes of all pairs, big-endian |
//! | 4 | … | pairs |
//! | … | … | body |
//!
//! A pair:
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0 | 4 | bytes of the rest of the pair, big-endian |
//! | 4 | 1 to 15 | key, UTF-8, no control characters |
//! | … | 1 | 0 |
//! | … | … | value, JSON text |
//! | … | 1 | 0 |
//!
//! The first character of a key says whose it is ([`Owner`]).
//!
//! Invariants
//! - Whatever the bytes are, nothing here panics or looks past their end.
//! - What [`Section::validate`] has passed, every other function here takes without an error.
//!
//! Cost: splitting reads four bytes; the rest is one pass over the keys, and over the values in [`Section::validate`]. Only a section of more than
//! a few pairs, and one that loses some of its pairs but not all, allocates.
//!
//! Does not know: compression (the value is inflated), which commands change which pairs.
//! Source: KV data operations, xattr section.

use std::borrow::Cow;

use super::{Datatype, Refusal, Status};

/// Longest key, in bytes.
pub const XATTR_KEY_BYTES_MAX: usize = 15;

/// Most bytes of the system pairs of a document.
pub const SYSTEM_XATTR_BYTES_MAX: usize = 1 << 20;

/// Bytes of a length.
const LENGTH_BYTES: usize = 4;

/// Up to this many pairs are compared each with each.
const PAIRS_COMPARED: usize = 16;

/// Why bytes are no xattr section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XattrError {
    /// The section does not fit the value.
    #[error("an xattr section of {need} bytes in a value of {have}")]
    Section {
        /// Its length, its own four bytes included.
        need: u64,
        /// Bytes of the value.
        have: usize,
    },
    /// A pair does not fit the section.
    #[error("the xattr pair at byte {at} of the section does not fit")]
    Pair {
        /// Where it begins.
        at: usize,
    },
    /// A key or a value does not end where it must.
    #[error("the xattr pair at byte {at} of the section lacks a zero byte")]
    Unterminated {
        /// Where it begins.
        at: usize,
    },
    /// A key is too short, too long, or not one that can be stored.
    #[error("the xattr pair at byte {at} of the section has an illegal key")]
    Key {
        /// Where it begins.
        at: usize,
    },
    /// A value is not JSON.
    #[error("the xattr pair at byte {at} of the section has a value that is not JSON")]
    Value {
        /// Where it begins.
        at: usize,
    },
    /// A key is there twice.
    #[error("a key occurs twice in the xattr section")]
    Duplicate,
}

impl From<XattrError> for Refusal {
    fn from(error: XattrError) -> Refusal {
        let context = match error {
            XattrError::Section { .. } => "The xattr section does not fit the value",
            XattrError::Pair { .. } => "An xattr pair does not fit its section",
            XattrError::Unterminated { .. } => "An xattr pair lacks a zero byte",
            XattrError::Key { .. } => "An xattr key is illegal",
            XattrError::Value { .. } => "An xattr value is not JSON",
            XattrError::Duplicate => "An xattr key occurs twice",
        };
        Refusal::new(Status::XATTR_EINVAL, context)
    }
}

/// Whose an attribute is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The application's; goes with the document.
    User,
    /// Of the system: the key begins with `_`; outlives the document in its tombstone.
    System,
    /// Made up when it is asked for: the key begins with `$`; never stored.
    Virtual,
}

impl Owner {
    /// Whose a key is; `None` if no attribute may be called so.
    #[must_use]
    pub fn of(key: &[u8]) -> Option<Owner> {
        let owner = match key.first()? {
            b'_' => Owner::System,
            b'$' => Owner::Virtual,
            other if other.is_ascii_punctuation() => return None,
            _ => Owner::User,
        };
        let text = std::str::from_utf8(key).ok()?;
        let is_legal = key.len() <= XATTR_KEY_BYTES_MAX && !text.chars().any(char::is_control);
        is_legal.then_some(owner)
    }
}

/// One attribute, as it lies in a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair<'a> {
    /// Its name.
    pub key: &'a [u8],
    /// Its value: JSON text, in a section that is valid.
    pub value: &'a [u8],
    /// All of it, its length in front.
    bytes: &'a [u8],
}

impl Pair<'_> {
    /// Whether it is the system's.
    #[must_use]
    pub fn is_system(&self) -> bool {
        self.key.first() == Some(&b'_')
    }
}

/// What the pairs of a section take, their lengths included.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PairBytes {
    /// The system's.
    pub system: usize,
    /// All others.
    pub user: usize,
}

/// The section of a value, its length in front. See the module.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Section<'a>(&'a [u8]);

impl<'a> Section<'a> {
    /// Splits a value into section and body, by the section's length alone.
    ///
    /// # Errors
    /// `Section`.
    #[inline]
    pub fn split(value: &'a [u8]) -> Result<(Section<'a>, &'a [u8]), XattrError> {
        let have = value.len();
        let Some((length, _)) = value.split_first_chunk::<LENGTH_BYTES>() else {
            return Err(XattrError::Section { need: LENGTH_BYTES as u64, have });
        };
        let need = u64::from(u32::from_be_bytes(*length)) + LENGTH_BYTES as u64;
        let end = usize::try_from(need).unwrap_or(usize::MAX);
        let parts = value.split_at_checked(end).ok_or(XattrError::Section { need, have })?;
        Ok((Section(parts.0), parts.1))
    }

    /// Its bytes, the length in front; none at all if there is no section.
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// Whether it has no pair.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0.len() <= LENGTH_BYTES
    }

    /// Its pairs; none after an error.
    #[must_use]
    pub fn pairs(self) -> Pairs<'a> {
        Pairs { rest: self.0.get(LENGTH_BYTES..).unwrap_or_default(), at: LENGTH_BYTES }
    }

    /// Whether it may be stored: lengths, keys, values, and no key twice.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn validate(self) -> Result<(), XattrError> {
        let mut at = LENGTH_BYTES;
        let mut count = 0;
        for pair in self.pairs() {
            let pair = pair?;
            match Owner::of(pair.key) {
                Some(Owner::User | Owner::System) => {}
                Some(Owner::Virtual) | None => return Err(XattrError::Key { at }),
            }
            if Datatype::of_body(pair.value) != Datatype::JSON {
                return Err(XattrError::Value { at });
            }
            at += pair.bytes.len();
            count += 1;
        }
        if self.has_duplicate(count) { Err(XattrError::Duplicate) } else { Ok(()) }
    }

    fn keys(self) -> impl Iterator<Item = &'a [u8]> {
        self.pairs().map_while(|pair| Some(pair.ok()?.key))
    }

    fn has_duplicate(self, count: usize) -> bool {
        if count <= PAIRS_COMPARED {
            return self.keys().enumerate().any(|(index, key)| self.keys().take(index).any(|one| one == key));
        }
        let mut keys: Vec<&[u8]> = self.keys().collect();
        keys.sort_unstable();
        keys.windows(2).any(|two| two[0] == two[1])
    }

    /// What its pairs take.
    ///
    /// # Errors
    /// `Pair`, `Unterminated`.
    pub fn pair_bytes(self) -> Result<PairBytes, XattrError> {
        let mut bytes = PairBytes::default();
        for pair in self.pairs() {
            let pair = pair?;
            *if pair.is_system() { &mut bytes.system } else { &mut bytes.user } += pair.bytes.len();
        }
        Ok(bytes)
    }

    /// A section of its system pairs; no bytes at all if there are none.
    ///
    /// # Errors
    /// `Pair`, `Unterminated`.
    pub fn system_only(self) -> Result<Cow<'a, [u8]>, XattrError> {
        let PairBytes { system, user } = self.pair_bytes()?;
        if user == 0 || system == 0 {
            return Ok(Cow::Borrowed(if system == 0 { &[] } else { self.0 }));
        }
        let mut kept = Vec::with_capacity(LENGTH_BYTES + system);
        kept.extend_from_slice(&(system as u32).to_be_bytes());
        for pair in self.pairs() {
            let pair = pair?;
            if pair.is_system() {
                kept.extend_from_slice(pair.bytes);
            }
        }
        Ok(Cow::Owned(kept))
    }
}

/// The pairs of a section, in the order in which they lie.
#[derive(Debug, Clone)]
pub struct Pairs<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Result<Pair<'a>, XattrError>;

    fn next(&mut self) -> Option<Result<Pair<'a>, XattrError>> {
        if self.rest.is_empty() {
            return None;
        }
        let pair = split_pair(self.rest, self.at);
        match &pair {
            Ok(pair) => {
                self.rest = self.rest.get(pair.bytes.len()..).unwrap_or_default();
                self.at += pair.bytes.len();
            }
            Err(_) => self.rest = &[],
        }
        Some(pair)
    }
}

/// The pair at the front of `rest`, which begins at byte `at` of its section.
fn split_pair(rest: &[u8], at: usize) -> Result<Pair<'_>, XattrError> {
    let no_room = XattrError::Pair { at };
    let (length, tail) = rest.split_first_chunk::<LENGTH_BYTES>().ok_or(no_room)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| no_room)?;
    let content = tail.get(..length).ok_or(no_room)?;
    let unterminated = XattrError::Unterminated { at };
    let key_len = content.iter().position(|byte| *byte == 0).ok_or(unterminated)?;
    let (key, value) = (&content[..key_len], &content[key_len + 1..]);
    let Some((0, value)) = value.split_last() else { return Err(unterminated) };
    Ok(Pair { key, value, bytes: &rest[..LENGTH_BYTES + length] })
}

/// Section and body of a value that was validated when it came, or made here; no section if the datatype has none.
#[must_use]
#[inline]
pub fn split_stored(datatype: Datatype, value: &[u8]) -> (Section<'_>, &[u8]) {
    if !datatype.contains(Datatype::XATTR) {
        return (Section::default(), value);
    }
    Section::split(value).unwrap_or((Section::default(), value))
}

/// A section of these pairs, in this order; they are not checked.
///
/// # Panics
/// If a pair or all of them are longer than 32 bits can say.
#[must_use]
pub fn build_section<'p>(pairs: impl IntoIterator<Item = (&'p str, &'p str)>) -> Vec<u8> {
    let mut section = vec![0; LENGTH_BYTES];
    for (key, value) in pairs {
        let length = u32::try_from(key.len() + value.len() + 2).expect("a pair fits a message");
        section.extend_from_slice(&length.to_be_bytes());
        for part in [key, value] {
            section.extend_from_slice(part.as_bytes());
            section.push(0);
        }
    }
    let length = u32::try_from(section.len() - LENGTH_BYTES).expect("a section fits a message");
    section[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    section
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn parse(value: &[u8]) -> Result<(Section<'_>, &[u8]), XattrError> {
        let (section, body) = Section::split(value)?;
        section.validate().map(|()| (section, body))
    }

    /// Of the vectors: `set_with_meta_request_24_xattr`.
    #[test]
    fn a_section_is_split_into_its_pairs_and_the_body() {
        let pairs = [("_sync", r#"{"cas":"deadbeefcafefeed"}"#), ("meta", r#"{"author":"x"}"#)];
        let value = [&build_section(pairs)[..], b"{}"].concat();
        assert_eq!(value[..8], [0, 0, 0, 0x21 + 20 + 8, 0, 0, 0, 0x21]);
        let (section, body) = parse(&value).unwrap();
        assert_eq!(body, b"{}");
        let found: Vec<_> = section.pairs().map(|pair| pair.map(|pair| (pair.key, pair.value))).collect();
        assert_eq!(found, pairs.map(|(key, value)| Ok((key.as_bytes(), value.as_bytes()))));
        assert_eq!(section.pair_bytes(), Ok(PairBytes { system: 37, user: 24 }));
        assert_eq!(section.system_only().unwrap(), build_section(pairs[..1].to_vec()));
    }

    #[test]
    fn the_first_character_says_whose_a_key_is() {
        for (key, owner) in [
            ("a", Some(Owner::User)),
            ("7", Some(Owner::User)),
            ("\u{e9}t\u{e9}", Some(Owner::User)),
            ("_sync", Some(Owner::System)),
            ("$document", Some(Owner::Virtual)),
            ("123456789012345", Some(Owner::User)),
            ("1234567890123456", None),
            ("", None),
            (".a", None),
            ("~", None),
            ("a\u{7f}", None),
            ("a\nb", None),
            ("a\u{85}", None),
        ] {
            assert_eq!(Owner::of(key.as_bytes()), owner, "{key:?}");
        }
        assert_eq!(Owner::of(b"a\xff"), None);
    }

    #[test]
    fn what_is_wrong_with_a_section_is_named() {
        let error = |value: &[u8]| parse(value).unwrap_err();
        assert_eq!(error(&[0, 0, 0]), XattrError::Section { need: 4, have: 3 });
        assert_eq!(error(&[0, 0, 0, 1]), XattrError::Section { need: 5, have: 4 });
        assert_eq!(error(&[0xff; 9]), XattrError::Section { need: (1 << 32) + 3, have: 9 });
        assert_eq!(error(&[0, 0, 0, 3, 1, 1, 1]), XattrError::Pair { at: 4 });
        assert_eq!(error(&[0, 0, 0, 5, 0, 0, 0, 2, b'a']), XattrError::Pair { at: 4 });
        let pair = |content: &[u8]| {
            let length = content.len() as u8;
            [&[0, 0, 0, length + 4, 0, 0, 0, length], content].concat()
        };
        assert_eq!(error(&pair(b"")), XattrError::Unterminated { at: 4 });
        assert_eq!(error(&pair(b"a1")), XattrError::Unterminated { at: 4 });
        assert_eq!(error(&pair(b"a\x001")), XattrError::Unterminated { at: 4 });
        assert_eq!(error(&pair(b"a\0")), XattrError::Unterminated { at: 4 });
        assert_eq!(error(&pair(b"\x001\0")), XattrError::Key { at: 4 });
        assert_eq!(error(&pair(b"$a\x001\0")), XattrError::Key { at: 4 });
        assert_eq!(error(&pair(b"a\0\0")), XattrError::Value { at: 4 });
        assert_eq!(error(&pair(b"a\0{\0")), XattrError::Value { at: 4 });
        assert_eq!(error(&pair(b"a\x001\x001\0")), XattrError::Value { at: 4 });
        assert_eq!(error(&build_section([("a", "1"), ("b", "x")])), XattrError::Value { at: 12 });
        assert_eq!(error(&build_section([("a", "1"), ("b", "2"), ("a", "3")])), XattrError::Duplicate);
        assert_eq!(Refusal::from(XattrError::Duplicate).status, Status::XATTR_EINVAL);
    }

    #[test]
    fn a_key_that_is_there_twice_is_found_among_few_and_among_many() {
        for count in [2, PAIRS_COMPARED, PAIRS_COMPARED + 1, 500] {
            let mut keys: Vec<String> = (0..count).map(|n| format!("k{n}")).collect();
            let section = build_section(keys.iter().map(|key| (key.as_str(), "1")));
            assert!(parse(&section).is_ok(), "{count}");
            keys[count - 1] = "k0".to_owned();
            let section = build_section(keys.iter().map(|key| (key.as_str(), "1")));
            assert_eq!(parse(&section), Err(XattrError::Duplicate), "{count}");
        }
    }

    #[test]
    fn a_section_without_pairs_is_valid_and_empty() {
        let (section, body) = parse(&[0, 0, 0, 0, b'b']).unwrap();
        assert!(section.is_empty() && body == b"b");
        assert_eq!(section.system_only().unwrap(), Cow::<[u8]>::Borrowed(&[]));
        assert_eq!(split_stored(Datatype::JSON, b"1"), (Section::default(), &b"1"[..]));
        assert_eq!(split_stored(Datatype::XATTR, &[0, 0, 0, 0, b'b']).1, b"b");
    }

    fn key() -> impl Strategy<Value = String> {
        prop_oneof![Just("_".to_owned()), Just("_s".to_owned()), Just(String::new())]
            .prop_flat_map(|prefix| "[a-zé0-9]{1,4}".prop_map(move |rest| format!("{prefix}{rest}")))
    }

    fn json() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<i64>().prop_map(|number| number.to_string()),
            Just("{\"a\":[1,null]}".to_owned()),
            "\"[ -!#-\\[\\]-~]{0,40}\"",
        ]
    }

    proptest! {
        #[test]
        fn what_was_built_is_found_again_and_loses_its_user_pairs_only(
            model in prop::collection::btree_map(key(), json(), 0..40),
            body in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let texts = |model: &BTreeMap<String, String>| {
                build_section(model.iter().map(|(key, value)| (key.as_str(), value.as_str())))
            };
            let section = texts(&model);
            let value = [&section[..], &body].concat();
            let (found, rest) = parse(&value).unwrap();
            prop_assert_eq!(rest, &body[..]);
            prop_assert_eq!(found.bytes(), &section[..]);
            let pairs: BTreeMap<String, String> = found
                .pairs()
                .map(|pair| pair.unwrap())
                .map(|pair| [pair.key, pair.value].map(|part| String::from_utf8(part.to_vec()).unwrap()).into())
                .collect();
            prop_assert_eq!(&pairs, &model);
            let mut system = model;
            system.retain(|key, _| key.starts_with('_'));
            let kept = found.system_only().unwrap();
            match system.is_empty() {
                true => prop_assert!(kept.is_empty()),
                false => prop_assert_eq!(&kept[..], &texts(&system)[..]),
            }
            let bytes = found.pair_bytes().unwrap();
            prop_assert_eq!(bytes.system + bytes.user + LENGTH_BYTES, section.len());
            prop_assert_eq!(bytes.system, kept.len().saturating_sub(LENGTH_BYTES));
        }

        /// Bytes that pass are those that the builder makes of the pairs found in them.
        #[test]
        fn mangled_sections_are_refused_or_mean_what_they_say(
            model in prop::collection::vec((key(), json()), 0..6),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = build_section(model.iter().map(|(key, value)| (key.as_str(), value.as_str())));
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            for value in [&bytes[..], &bytes[..cut.index(bytes.len())]] {
                let Ok((section, body)) = Section::split(value) else { continue };
                prop_assert_eq!([section.bytes(), body].concat(), value);
                let (sizes, system) = (section.pair_bytes(), section.system_only());
                prop_assert_eq!(sizes.is_ok(), system.is_ok());
                if section.validate().is_ok() {
                    let pairs: Vec<Pair<'_>> = section.pairs().map(|pair| pair.unwrap()).collect();
                    let text = |part| std::str::from_utf8(part).unwrap();
                    let again = build_section(pairs.iter().map(|pair| (text(pair.key), text(pair.value))));
                    prop_assert_eq!(again, section.bytes());
                    prop_assert!(system.is_ok());
                }
            }
        }
    }
}

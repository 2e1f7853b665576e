//! The model: one vbucket's versions since its beginning, its locks, and what the protocol says to a command.
//!
//! Does not know: buckets, scans.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use ringbase_storage::types::{Cas, ItemMeta, Kind, Seqno};

use crate::protocol::with_meta::{MetaOptions, WithMetaExtras};
use crate::protocol::xattr::build_section;
use crate::protocol::{Opcode, Status};

/// 300 bytes that are no number.
const LONG: &[u8] = &[b'x'; 300];
/// Xattrs of versions made elsewhere: none, the user's, the system's, both.
const XATTRS: [&[(&str, &str)]; 4] =
    [&[], &[("a", "[1]")], &[("_s", "{\"b\":2}")], &[("a", "[1]"), ("_s", "{\"b\":2}")]];

/// The section of `XATTRS[index]`.
pub(super) fn section_of(index: usize) -> Vec<u8> {
    if index == 0 { Vec::new() } else { build_section(XATTRS[index].iter().copied()) }
}

/// What a removal leaves of a section.
fn outlives(section: &[u8]) -> Vec<u8> {
    let index = (0..XATTRS.len()).find(|index| section_of(*index) == section).expect("no other was stored");
    section_of(index & 2)
}

const VALUES: [&[u8]; 7] = [b"0", b"7", b"{}", b"abc", b"18446744073709551615", b"", LONG];

/// Which CAS a command has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CasChoice {
    None,
    /// The lock's, or the document's if it is not locked.
    Right,
    /// The document's, also if it is locked.
    Documents,
    Wrong,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Verb {
    Get,
    GetMeta,
    Lock { seconds: u32 },
    Unlock { cas: CasChoice },
    Store { opcode: Opcode, value: &'static [u8], flags: u32, expiry: u32, keep: bool, cas: CasChoice },
    Delete { cas: CasChoice },
    Join { opcode: Opcode, value: &'static [u8], cas: CasChoice },
    Count { opcode: Opcode, delta: u64, initial: u64, expiry: u32 },
    Touch { opcode: Opcode, expiry: u32 },
    Bring(Bring),
}

/// A version made elsewhere, as it is to the newest one here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bring {
    pub(super) opcode: Opcode,
    /// Index of [`XATTRS`].
    pub(super) xattrs: usize,
    pub(super) body: &'static [u8],
    flags: u32,
    expiry: u32,
    revid: i64,
    /// `None` for far ahead of all.
    cas_step: Option<i64>,
    options: u32,
    cas: CasChoice,
}

impl Bring {
    fn random(random: &mut Xoshiro256PlusPlus, body: &'static [u8], cas: CasChoice) -> Bring {
        let opcodes =
            [Opcode::SET_WITH_META, Opcode::SET_WITH_META, Opcode::ADD_WITH_META, Opcode::DEL_WITH_META];
        let opcode = opcodes[random.random_range(0..opcodes.len())];
        Bring {
            opcode,
            xattrs: random.random_range(0..XATTRS.len()),
            body: if opcode == Opcode::DEL_WITH_META { b"" } else { body },
            flags: random.random_range(0..3),
            expiry: [0, 0, 2_000_000_000, 2_000_000_001][random.random_range(0..4)],
            revid: random.random_range(-1..3),
            cas_step: if random.random_bool(0.3) { None } else { Some(random.random_range(-1..2)) },
            options: [0, 0, 0, 0x08, 0x0c, 0x10][random.random_range(0..6)],
            cas,
        }
    }

    /// The same, stored whatever is there.
    pub(super) fn in_any_case(self) -> Bring {
        Bring { options: self.options | 0x08, ..self }
    }

    fn kind(self) -> Kind {
        match (self.opcode, self.options & 0x10) {
            (Opcode::DEL_WITH_META, 0) => Kind::Deletion,
            (Opcode::DEL_WITH_META, _) => Kind::Expiration,
            _ => Kind::Mutation,
        }
    }
}

impl Verb {
    pub(super) fn random(random: &mut Xoshiro256PlusPlus) -> Verb {
        let of = |random: &mut Xoshiro256PlusPlus, list: &[Opcode]| list[random.random_range(0..list.len())];
        let value = VALUES[random.random_range(0..VALUES.len())];
        let cas = match random.random_range(0..10) {
            0..5 => CasChoice::None,
            5..8 => CasChoice::Right,
            8 => CasChoice::Documents,
            _ => CasChoice::Wrong,
        };
        let expiry = match random.random_range(0..20) {
            0..9 => 0,
            9..18 => random.random_range(1..20),
            18 => 2_592_001,
            _ => 2_000_000_000,
        };
        match random.random_range(0..112) {
            100.. => Verb::Bring(Bring::random(random, value, cas)),
            0..8 => Verb::Get,
            8..12 => Verb::GetMeta,
            12..24 => Verb::Lock { seconds: [0, 1, 5, 30, 31][random.random_range(0..5)] },
            24..30 => Verb::Unlock { cas: if cas == CasChoice::None { CasChoice::Right } else { cas } },
            30..58 => {
                let opcode = of(random, &[Opcode::SET, Opcode::SET, Opcode::ADD, Opcode::REPLACE]);
                let cas = if opcode == Opcode::ADD { CasChoice::None } else { cas };
                let keep = opcode != Opcode::ADD && random.random_bool(0.2);
                let flags = random.random();
                Verb::Store { opcode, value, flags, expiry, keep, cas }
            }
            58..72 => Verb::Delete { cas },
            72..80 => Verb::Join { opcode: of(random, &[Opcode::APPEND, Opcode::PREPEND]), value, cas },
            80..90 => {
                let opcode = of(random, &[Opcode::INCREMENT, Opcode::DECREMENT]);
                let expiry = if random.random_bool(0.3) { u32::MAX } else { expiry };
                Verb::Count { opcode, delta: random.random_range(0..5), initial: 3, expiry }
            }
            _ => Verb::Touch { opcode: of(random, &[Opcode::TOUCH, Opcode::GAT]), expiry },
        }
    }

    fn cas_choice(self) -> CasChoice {
        match self {
            Verb::Unlock { cas }
            | Verb::Store { cas, .. }
            | Verb::Delete { cas }
            | Verb::Join { cas, .. }
            | Verb::Bring(Bring { cas, .. }) => cas,
            Verb::Get | Verb::GetMeta | Verb::Lock { .. } | Verb::Count { .. } | Verb::Touch { .. } => {
                CasChoice::None
            }
        }
    }
}

/// A version of a key, which is without its collection prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) key: Vec<u8>,
    /// Xattrs and body.
    pub(super) value: Vec<u8>,
    pub(super) has_xattrs: bool,
    pub(super) flags: u32,
    pub(super) expiry: u32,
    pub(super) kind: Kind,
    pub(super) cas: Cas,
}

impl Version {
    pub(super) fn of(meta: &ItemMeta, key: &[u8], value: &[u8]) -> Version {
        let (flags, expiry, kind, cas) = (meta.flags, meta.expiry, meta.kind, meta.cas);
        let has_xattrs = meta.datatype & 4 != 0;
        Version { key: key.to_vec(), value: value.to_vec(), flags, expiry, kind, cas, has_xattrs }
    }

    fn parts(&self) -> (&[u8], &[u8]) {
        if !self.has_xattrs {
            return (&[], &self.value);
        }
        let length = u32::from_be_bytes(self.value[..4].try_into().expect("four bytes"));
        self.value.split_at(length as usize + 4)
    }

    pub(super) fn body(&self) -> &[u8] {
        self.parts().1
    }

    /// The next version with this body, which keeps all else.
    fn with_body(&self, body: &[u8]) -> Version {
        Version { value: [self.parts().0, body].concat(), cas: Cas(0), ..self.clone() }
    }
}

/// What a command writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Mutation,
    Deletion,
    Expiration,
    /// One that was made elsewhere.
    Foreign,
}

/// What its answer says beside the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    Unlocked,
    Written,
    Number(u64),
    Touched,
    Document { is_locked: bool },
    Lock,
    Metadata,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) status: Status,
    pub(super) told: Told,
    pub(super) change: Change,
    pub(super) is_cas_mismatch: bool,
}

impl Expected {
    fn refused(status: Status) -> Expected {
        Expected { status, told: Told::Nothing, change: Change::None, is_cas_mismatch: false }
    }

    fn told(told: Told) -> Expected {
        Expected { status: Status::SUCCESS, told, change: Change::None, is_cas_mismatch: false }
    }
}

#[derive(Debug, Clone, Copy)]
struct Lock {
    cas: Cas,
    end_ns: u64,
}

/// See the module. Version `n` has seqno `n + 1`.
#[derive(Debug, Default)]
pub(super) struct Vbucket {
    versions: Vec<Version>,
    /// The revision of each, as long as no tombstone is forgotten.
    revids: Vec<u64>,
    locks: BTreeMap<Vec<u8>, Lock>,
    greatest_cas: Cas,
}

fn absolute(given: u32, now: u32) -> u32 {
    if (1..=2_592_000).contains(&given) { now + given } else { given }
}

impl Vbucket {
    pub(super) fn high(&self) -> Seqno {
        Seqno(self.versions.len() as u64)
    }

    /// The newest version of a key, also a tombstone.
    pub(super) fn newest(&self, key: &[u8]) -> Option<(Seqno, &Version)> {
        let at = self.versions.iter().rposition(|version| version.key == key)?;
        Some((Seqno(at as u64 + 1), &self.versions[at]))
    }

    /// What a scan in seqno order shows that is opened now: each key at its newest version, tombstones included.
    pub(super) fn in_seqno_order(&self, from: Seqno) -> Vec<(Seqno, Version)> {
        let numbered = (1..).map(Seqno).zip(&self.versions);
        let newest =
            numbered.filter(|(seqno, version)| self.newest(&version.key).map(|(at, _)| at) == Some(*seqno));
        newest.filter(|(seqno, _)| *seqno >= from).map(|(seqno, version)| (seqno, version.clone())).collect()
    }

    /// What a scan in key order shows that is opened now: documents without tombstones.
    pub(super) fn in_key_order(&self) -> Vec<(Seqno, Version)> {
        let mut documents = self.in_seqno_order(Seqno(0));
        documents.retain(|(_, version)| !version.kind.is_deleted());
        documents.sort_by(|(_, one), (_, other)| one.key.cmp(&other.key));
        documents
    }

    fn lock(&self, key: &[u8], now_ns: u64) -> Option<Lock> {
        self.locks.get(key).copied().filter(|lock| now_ns < lock.end_ns)
    }

    /// The CAS that a command has.
    pub(super) fn cas_of(&self, key: &[u8], verb: Verb, now_ns: u64) -> Cas {
        const WRONG: Cas = Cas(12345);
        let documents = self.newest(key).map_or(WRONG, |(_, version)| version.cas);
        match verb.cas_choice() {
            CasChoice::None => Cas(0),
            CasChoice::Right => self.lock(key, now_ns).map_or(documents, |lock| lock.cas),
            CasChoice::Documents => documents,
            CasChoice::Wrong => WRONG,
        }
    }

    /// Forgets locks whose time is up; how many.
    pub(super) fn forget_locks(&mut self, now_ns: u64) -> u64 {
        let before = self.locks.len();
        self.locks.retain(|_, lock| now_ns < lock.end_ns);
        (before - self.locks.len()) as u64
    }

    /// The lock that was just taken has this CAS.
    pub(super) fn locked(&mut self, key: &[u8], cas: Cas) {
        assert!(cas > self.greatest_cas, "a lock's CAS is above all before it");
        self.greatest_cas = cas;
        self.locks.get_mut(key).expect("it was just locked").cas = cas;
    }

    /// The version that was just written has this CAS.
    pub(super) fn written(&mut self, seqno: Seqno, version: Version, what: &str) {
        assert_eq!(seqno, self.high(), "{what}");
        let newest = self.versions.last_mut().expect("it was just written");
        match newest.cas {
            Cas(0) => assert!(version.cas > self.greatest_cas, "{what}"),
            brought => assert_eq!(version.cas, brought, "{what}"),
        }
        self.greatest_cas = self.greatest_cas.max(version.cas);
        newest.cas = version.cas;
        assert_eq!(*newest, version, "{what}");
    }

    /// The revision of the newest version of a key, 0 if there is none.
    pub(super) fn revid(&self, key: &[u8]) -> u64 {
        self.newest(key).map_or(0, |(seqno, _)| self.revids[seqno.0 as usize - 1])
    }

    /// The extras of a command that brings a version.
    pub(super) fn extras_of(&self, key: &[u8], bring: Bring) -> WithMetaExtras {
        let (near, far) = (self.newest(key).map_or(1000, |(_, version)| version.cas.0), self.greatest_cas.0);
        let cas = bring.cas_step.map_or(far + (1 << 30), |step| near.saturating_add_signed(step).max(1));
        WithMetaExtras {
            flags: bring.flags,
            expiry: bring.expiry,
            revid: self.revid(key).saturating_add_signed(bring.revid),
            cas: Cas(cas),
            options: Some(MetaOptions::decode(bring.options).expect("they are legal")),
            meta_bytes: None,
        }
    }

    fn push(&mut self, version: Version) {
        self.push_foreign(Version { cas: Cas(0), ..version }, None);
    }

    fn push_foreign(&mut self, version: Version, revid: Option<u64>) {
        self.locks.remove(&version.key);
        self.revids.push(revid.unwrap_or(self.revid(&version.key) + 1));
        self.versions.push(version);
    }

    fn bury(&mut self, old: &Version, kind: Kind, now: u32) {
        let (key, value) = (old.key.clone(), outlives(old.parts().0));
        let has_xattrs = !value.is_empty();
        self.push(Version { key, value, has_xattrs, flags: 0, expiry: now, kind, cas: Cas(0) });
    }

    /// A version made elsewhere; `refused` is what a document that is there says to the CAS of the request.
    fn bring(
        &mut self,
        key: &[u8],
        bring: Bring,
        now: u32,
        is_live: bool,
        refused: Option<Expected>,
    ) -> Expected {
        if bring.opcode == Opcode::ADD_WITH_META && is_live {
            return Expected::refused(Status::KEY_EEXISTS);
        }
        let extras = self.extras_of(key, bring);
        let kind = bring.kind();
        let section = section_of(bring.xattrs);
        if let Some((_, old)) = self.newest(key).filter(|_| bring.options & 0x08 == 0) {
            let old_expiry = if old.kind.is_deleted() { 0 } else { old.expiry };
            let old_numbers = [self.revid(key), old.cas.0, old_expiry.into(), old.flags.into()];
            let numbers = [extras.revid, extras.cas.0, extras.expiry.into(), extras.flags.into()];
            let compared = if kind.is_deleted() { 2 } else { 4 };
            let is_better = match numbers[..compared].cmp(&old_numbers[..compared]) {
                std::cmp::Ordering::Less => false,
                std::cmp::Ordering::Equal => !section.is_empty() && !old.has_xattrs,
                std::cmp::Ordering::Greater => true,
            };
            if !is_better {
                return Expected::refused(Status::KEY_EEXISTS);
            }
        }
        if let Some(refused) = refused {
            return refused;
        }
        let is_deletion = kind.is_deleted();
        let version = Version {
            key: key.to_vec(),
            value: [&section[..], bring.body].concat(),
            has_xattrs: !section.is_empty(),
            flags: if is_deletion { 0 } else { extras.flags },
            expiry: if is_deletion && extras.expiry == 0 { now } else { extras.expiry },
            kind,
            cas: if bring.options & 0x04 != 0 { Cas(0) } else { extras.cas },
        };
        self.push_foreign(version, Some(extras.revid));
        Expected { change: Change::Foreign, ..Expected::told(Told::Written) }
    }

    /// Makes the version that `verb` makes, if any, and says what is answered. CAS are filled in by what the stores say.
    pub(super) fn apply(&mut self, key: &[u8], verb: Verb, cas: Cas, now: u32, now_ns: u64) -> Expected {
        let is_over = |version: &Version| version.expiry != 0 && version.expiry < now;
        let newest = self.newest(key).map(|(_, version)| version.clone());
        let there = newest.clone().filter(|version| !version.kind.is_deleted());
        let due = there.clone().filter(is_over);
        let Some(live) = there.filter(|version| !is_over(version)) else {
            return self.apply_to_nothing(key, verb, cas, now, newest.is_some(), due);
        };
        let lock = self.lock(key, now_ns);
        // What every change that must fit a CAS meets first.
        let refused = match lock {
            Some(lock) if lock.cas != cas => Some(Expected::refused(Status::LOCKED)),
            None if cas != Cas(0) && cas != live.cas => {
                Some(Expected { is_cas_mismatch: true, ..Expected::refused(Status::KEY_EEXISTS) })
            }
            _ => None,
        };
        let mutation = |told| Expected { change: Change::Mutation, ..Expected::told(told) };
        match verb {
            Verb::Get => Expected::told(Told::Document { is_locked: lock.is_some() }),
            Verb::GetMeta => Expected::told(Told::Metadata),
            Verb::Lock { .. } | Verb::Count { .. } | Verb::Touch { .. } if lock.is_some() => {
                Expected::refused(Status::LOCKED)
            }
            Verb::Lock { seconds } => {
                let seconds = if (1..=30).contains(&seconds) { seconds } else { 15 };
                let end_ns = now_ns + u64::from(seconds) * 1_000_000_000;
                self.locks.insert(key.to_vec(), Lock { cas: Cas(0), end_ns });
                Expected::told(Told::Lock)
            }
            Verb::Unlock { .. } => match lock {
                None => Expected::refused(Status::NOT_LOCKED),
                Some(lock) if lock.cas != cas => Expected::refused(Status::LOCKED),
                Some(_) => {
                    self.locks.remove(key);
                    Expected::told(Told::Unlocked)
                }
            },
            Verb::Store { opcode: Opcode::ADD, .. } => Expected::refused(Status::KEY_EEXISTS),
            Verb::Store { value, flags, expiry, keep, .. } => refused.unwrap_or_else(|| {
                let expiry = if keep { live.expiry } else { absolute(expiry, now) };
                self.push(Version { flags, expiry, ..live.with_body(value) });
                mutation(Told::Written)
            }),
            Verb::Delete { .. } => refused.unwrap_or_else(|| {
                self.bury(&live, Kind::Deletion, now);
                Expected { change: Change::Deletion, ..Expected::told(Told::Written) }
            }),
            Verb::Join { opcode, value, .. } => refused.unwrap_or_else(|| {
                let old = live.body();
                let parts = if opcode == Opcode::APPEND { [old, value] } else { [value, old] };
                self.push(live.with_body(&parts.concat()));
                mutation(Told::Written)
            }),
            Verb::Count { opcode, delta, .. } => {
                let text = std::str::from_utf8(live.body()).expect("values are text");
                let is_number =
                    (1..=20).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
                let Some(old) = text.parse::<u64>().ok().filter(|_| is_number) else {
                    return Expected::refused(Status::DELTA_BADVAL);
                };
                let number = match opcode {
                    Opcode::INCREMENT => old.wrapping_add(delta),
                    _ => old.saturating_sub(delta),
                };
                self.push(live.with_body(number.to_string().as_bytes()));
                mutation(Told::Number(number))
            }
            Verb::Touch { opcode, expiry } => {
                let (expiry, old) = (absolute(expiry, now), live.expiry);
                let told =
                    if opcode == Opcode::GAT { Told::Document { is_locked: false } } else { Told::Touched };
                if expiry == old {
                    return Expected::told(told);
                }
                self.push(Version { expiry, ..live });
                mutation(told)
            }
            Verb::Bring(bring) => self.bring(key, bring, now, true, refused),
        }
    }

    /// The same if there is no document; `due`: one that has expired, which gets its tombstone when a change meets it.
    fn apply_to_nothing(
        &mut self,
        key: &[u8],
        verb: Verb,
        cas: Cas,
        now: u32,
        is_known: bool,
        due: Option<Version>,
    ) -> Expected {
        let create = |vbucket: &mut Vbucket, value: &[u8], flags, expiry, told| {
            let (key, value, expiry) = (key.to_vec(), value.to_vec(), absolute(expiry, now));
            let (kind, cas, has_xattrs) = (Kind::Mutation, Cas(0), false);
            vbucket.push(Version { key, value, has_xattrs, flags, expiry, kind, cas });
            Expected { change: Change::Mutation, ..Expected::told(told) }
        };
        let status = match verb {
            Verb::GetMeta if is_known => return Expected::told(Told::Metadata),
            Verb::Get | Verb::GetMeta | Verb::Lock { .. } | Verb::Unlock { .. } => {
                return Expected::refused(Status::KEY_ENOENT);
            }
            Verb::Store { opcode: Opcode::SET, value, flags, expiry, .. } if cas == Cas(0) => {
                return create(self, value, flags, expiry, Told::Written);
            }
            Verb::Store { opcode: Opcode::ADD, value, flags, expiry, .. } => {
                return create(self, value, flags, expiry, Told::Written);
            }
            Verb::Count { initial, expiry, .. } if expiry != u32::MAX => {
                return create(self, initial.to_string().as_bytes(), 0, expiry, Told::Number(initial));
            }
            Verb::Bring(bring) => {
                let refused = (cas != Cas(0)).then(|| Expected::refused(Status::KEY_ENOENT));
                let done = self.bring(key, bring, now, false, refused);
                if done.status != Status::KEY_ENOENT {
                    return done;
                }
                Status::KEY_ENOENT
            }
            Verb::Join { .. } => Status::NOT_STORED,
            Verb::Store { .. } | Verb::Delete { .. } | Verb::Count { .. } | Verb::Touch { .. } => {
                Status::KEY_ENOENT
            }
        };
        if let Some(due) = &due {
            self.bury(due, Kind::Expiration, now);
        }
        let change = if due.is_some() { Change::Expiration } else { Change::None };
        Expected { change, ..Expected::refused(status) }
    }
}

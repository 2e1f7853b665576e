//! The model: one vbucket's versions since its beginning, its locks, and what the protocol says to a command.
//!
//! Does not know: buckets, scans.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use ringbase_storage::types::{Cas, ItemMeta, Kind, Seqno};

use crate::protocol::{Opcode, Status};

/// 300 bytes that are no number.
const LONG: &[u8] = &[b'x'; 300];
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
        match random.random_range(0..100) {
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
            | Verb::Join { cas, .. } => cas,
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
    pub(super) value: Vec<u8>,
    pub(super) flags: u32,
    pub(super) expiry: u32,
    pub(super) kind: Kind,
    pub(super) cas: Cas,
}

impl Version {
    pub(super) fn of(meta: &ItemMeta, key: &[u8], value: &[u8]) -> Version {
        let (flags, expiry, kind, cas) = (meta.flags, meta.expiry, meta.kind, meta.cas);
        Version { key: key.to_vec(), value: value.to_vec(), flags, expiry, kind, cas }
    }
}

/// What a command writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Mutation,
    Deletion,
    Expiration,
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
        assert!(version.cas > self.greatest_cas, "{what}");
        self.greatest_cas = version.cas;
        assert_eq!(seqno, self.high(), "{what}");
        let newest = self.versions.last_mut().expect("it was just written");
        newest.cas = version.cas;
        assert_eq!(*newest, version, "{what}");
    }

    fn push(&mut self, version: Version) {
        self.locks.remove(&version.key);
        self.versions.push(version);
    }

    fn bury(&mut self, key: &[u8], kind: Kind, now: u32) {
        self.push(Version { key: key.to_vec(), value: Vec::new(), flags: 0, expiry: now, kind, cas: Cas(0) });
    }

    /// Makes the version that `verb` makes, if any, and says what is answered. CAS are filled in by what the stores say.
    pub(super) fn apply(&mut self, key: &[u8], verb: Verb, cas: Cas, now: u32, now_ns: u64) -> Expected {
        let is_over = |version: &Version| version.expiry != 0 && version.expiry < now;
        let newest = self.newest(key).map(|(_, version)| version.clone());
        let there = newest.clone().filter(|version| !version.kind.is_deleted());
        let is_due = there.as_ref().is_some_and(is_over);
        let Some(live) = there.filter(|version| !is_over(version)) else {
            return self.apply_to_nothing(key, verb, cas, now, newest.is_some(), is_due);
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
                self.push(Version { value: value.to_vec(), flags, expiry, ..live });
                mutation(Told::Written)
            }),
            Verb::Delete { .. } => refused.unwrap_or_else(|| {
                self.bury(key, Kind::Deletion, now);
                Expected { change: Change::Deletion, ..Expected::told(Told::Written) }
            }),
            Verb::Join { opcode, value, .. } => refused.unwrap_or_else(|| {
                let parts =
                    if opcode == Opcode::APPEND { [&live.value[..], value] } else { [value, &live.value] };
                self.push(Version { value: parts.concat(), ..live });
                mutation(Told::Written)
            }),
            Verb::Count { opcode, delta, .. } => {
                let text = std::str::from_utf8(&live.value).expect("values are text");
                let is_number =
                    (1..=20).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
                let Some(old) = text.parse::<u64>().ok().filter(|_| is_number) else {
                    return Expected::refused(Status::DELTA_BADVAL);
                };
                let number = match opcode {
                    Opcode::INCREMENT => old.wrapping_add(delta),
                    _ => old.saturating_sub(delta),
                };
                self.push(Version { value: number.to_string().into_bytes(), ..live });
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
        }
    }

    /// The same if there is no document; `is_due`: one that has expired, which gets its tombstone when a change meets it.
    fn apply_to_nothing(
        &mut self,
        key: &[u8],
        verb: Verb,
        cas: Cas,
        now: u32,
        is_known: bool,
        is_due: bool,
    ) -> Expected {
        let create = |vbucket: &mut Vbucket, value: &[u8], flags, expiry, told| {
            let (key, value, expiry) = (key.to_vec(), value.to_vec(), absolute(expiry, now));
            vbucket.push(Version { key, value, flags, expiry, kind: Kind::Mutation, cas: Cas(0) });
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
            Verb::Join { .. } => Status::NOT_STORED,
            Verb::Store { .. } | Verb::Delete { .. } | Verb::Count { .. } | Verb::Touch { .. } => {
                Status::KEY_ENOENT
            }
        };
        if is_due {
            self.bury(key, Kind::Expiration, now);
        }
        let change = if is_due { Change::Expiration } else { Change::None };
        Expected { change, ..Expected::refused(status) }
    }
}

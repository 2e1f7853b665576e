//! Single operations: documents, statistics, and what a client must know before it starts.
//!
//! Invariants
//! - A document goes to the vbucket its key hashes to among the number that the cluster map tells.
//!
//! Cost: one round trip each.
//!
//! Does not know: several things at a time (`pipeline`), scans.

use std::time::{Duration, Instant};

use ringbase_storage::types::{Cas, VbId, VbUuid};

use super::connection::{Connection, unexpected};
use super::error::ClientError;
use crate::protocol::cluster_map::ClusterMap;
use crate::protocol::extras::{ArithmeticExtras, MutationToken, ObservedSeqno, StoreExtras};
use crate::protocol::stat::StatEntry;
use crate::protocol::with_meta::WithMetaExtras;
use crate::protocol::{Datatype, Frame, Opcode, Request, vbucket_of};

/// A document as the node returned it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The client's opaque 32 bits.
    pub flags: u32,
    /// Version.
    pub cas: Cas,
    /// How the value is encoded.
    pub datatype: Datatype,
    /// The value.
    pub value: Vec<u8>,
}

/// What a successful mutation answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mutated {
    /// The document's new version.
    pub cas: Cas,
    /// Where the mutation is in the history of its vbucket, if the node told.
    pub token: Option<MutationToken>,
}

/// What to do with a value in case of an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreMode {
    /// Store in any case.
    Set,
    /// Only if there is none.
    Add,
    /// Only if there is one.
    Replace,
}

impl StoreMode {
    fn opcode(self) -> Opcode {
        match self {
            StoreMode::Set => Opcode::SET,
            StoreMode::Add => Opcode::ADD,
            StoreMode::Replace => Opcode::REPLACE,
        }
    }
}

/// A version that was made elsewhere, as a command with metadata brings it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Brought<'a> {
    /// Xattrs, if the datatype says so, and body.
    pub value: &'a [u8],
    /// How the value is encoded.
    pub datatype: Datatype,
    /// All else.
    pub extras: WithMetaExtras,
}

/// What GET_META tells of a document or its tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DocumentMeta {
    /// Whether it is gone.
    pub is_deleted: bool,
    /// The client's opaque 32 bits.
    pub flags: u32,
    /// Absolute, in epoch seconds, 0 for none; of a tombstone its time.
    pub expiry: u32,
    /// Number of changes to the key.
    pub revid: u64,
    /// How the value is encoded.
    pub datatype: Datatype,
    /// Version.
    pub cas: Cas,
}

fn mutated(frame: &Frame<'_>) -> Mutated {
    Mutated { cas: frame.cas(), token: MutationToken::decode(frame.extras) }
}

/// Documents of the default collection of one bucket.
#[derive(Debug)]
pub struct Bucket<'c> {
    connection: &'c mut Connection,
    vbucket_count: u16,
}

impl<'c> Bucket<'c> {
    /// The bucket that the connection has selected.
    ///
    /// # Errors
    /// As [`Connection::vbucket_count`].
    pub fn new(connection: &'c mut Connection) -> Result<Bucket<'c>, ClientError> {
        let vbucket_count = connection.vbucket_count()?;
        Ok(Bucket { connection, vbucket_count })
    }

    /// The vbucket of a key.
    #[must_use]
    pub fn vbucket_of(&self, key: &[u8]) -> VbId {
        vbucket_of(key, self.vbucket_count)
    }

    fn request<'a>(&self, opcode: Opcode, key: &'a [u8]) -> Request<'a> {
        Request::new(opcode).vbucket(self.vbucket_of(key)).key(key)
    }

    /// Reads a document.
    ///
    /// # Errors
    /// `Refused`: KEY_ENOENT if there is none.
    pub fn get(&mut self, key: &[u8]) -> Result<Document, ClientError> {
        self.read(Opcode::GET, key, &[])
    }

    fn read(&mut self, opcode: Opcode, key: &[u8], extras: &[u8]) -> Result<Document, ClientError> {
        let request = self.request(opcode, key).extras(extras);
        let document = self.connection.call(request, |frame| {
            let flags = frame.extras_array::<4>().map(|bytes| u32::from_be_bytes(*bytes));
            let (cas, datatype) = (frame.cas(), frame.datatype());
            flags.map(|flags| Document { flags, cas, datatype, value: frame.value.to_vec() })
        })?;
        document.ok_or_else(|| unexpected(opcode, "no flags"))
    }

    /// Writes a document; `cas` 0 means any version.
    ///
    /// # Errors
    /// `Refused`: KEY_EEXISTS, KEY_ENOENT, E2BIG and others, as the protocol says.
    pub fn store(
        &mut self,
        mode: StoreMode,
        key: &[u8],
        value: &[u8],
        extras: StoreExtras,
        cas: Cas,
    ) -> Result<Mutated, ClientError> {
        let extras = extras.encode();
        let request = self.request(mode.opcode(), key).cas(cas).extras(&extras).value(value);
        self.connection.call(request, mutated)
    }

    /// Deletes a document; `cas` 0 means any version.
    ///
    /// # Errors
    /// `Refused`: KEY_ENOENT if there is none, KEY_EEXISTS for another version.
    pub fn delete(&mut self, key: &[u8], cas: Cas) -> Result<Mutated, ClientError> {
        let request = self.request(Opcode::DELETE, key).cas(cas);
        self.connection.call(request, mutated)
    }

    /// Stores a version that was made elsewhere; `cas` is what the document must have, 0 for any version.
    ///
    /// # Errors
    /// `Refused`: KEY_EEXISTS if what is there stays, CAS_VALUE_INVALID, XATTR_EINVAL and others, as the protocol says.
    pub fn store_with_meta(
        &mut self,
        mode: StoreMode,
        key: &[u8],
        brought: &Brought<'_>,
        cas: Cas,
    ) -> Result<Mutated, ClientError> {
        let opcode = if mode == StoreMode::Add { Opcode::ADD_WITH_META } else { Opcode::SET_WITH_META };
        self.bring(opcode, key, brought, cas)
    }

    /// Stores a deletion that was made elsewhere.
    ///
    /// # Errors
    /// As [`Bucket::store_with_meta`].
    pub fn delete_with_meta(
        &mut self,
        key: &[u8],
        brought: &Brought<'_>,
        cas: Cas,
    ) -> Result<Mutated, ClientError> {
        self.bring(Opcode::DEL_WITH_META, key, brought, cas)
    }

    fn bring(
        &mut self,
        opcode: Opcode,
        key: &[u8],
        brought: &Brought<'_>,
        cas: Cas,
    ) -> Result<Mutated, ClientError> {
        let mut extras = Vec::with_capacity(WithMetaExtras::BYTES_MAX);
        brought.extras.encode(&mut extras);
        let request = self.request(opcode, key).cas(cas).extras(&extras);
        self.connection.call(request.datatype(brought.datatype).value(brought.value), mutated)
    }

    /// Reads what is known of a document beside its value, also if it is gone.
    ///
    /// # Errors
    /// `Refused`: KEY_ENOENT if there never was one, or its tombstone is gone.
    pub fn get_meta(&mut self, key: &[u8]) -> Result<DocumentMeta, ClientError> {
        let request = self.request(Opcode::GET_META, key).extras(&[2]);
        let meta = self.connection.call(request, |frame| {
            let extras = frame.extras_array::<21>()?;
            let number = |at: usize| u32::from_be_bytes(std::array::from_fn(|index| extras[at + index]));
            Some(DocumentMeta {
                is_deleted: number(0) != 0,
                flags: number(4),
                expiry: number(8),
                revid: u64::from(number(12)) << 32 | u64::from(number(16)),
                datatype: Datatype(extras[20]),
                cas: frame.cas(),
            })
        })?;
        meta.ok_or_else(|| unexpected(Opcode::GET_META, "no metadata"))
    }

    /// Changes the expiry: 0 never, up to 30 days relative seconds, above absolute epoch seconds.
    ///
    /// # Errors
    /// `Refused`: KEY_ENOENT if there is no such document.
    pub fn touch(&mut self, key: &[u8], expiry: u32) -> Result<Cas, ClientError> {
        let extras = expiry.to_be_bytes();
        let request = self.request(Opcode::TOUCH, key).extras(&extras);
        self.connection.call(request, |frame| frame.cas())
    }

    /// Locks a document for so many seconds, 0 for the bucket's default, and reads it; its CAS is the lock's. A write with that CAS unlocks it.
    ///
    /// # Errors
    /// `Refused`: KEY_ENOENT if there is none, LOCKED if it is locked.
    pub fn get_and_lock(&mut self, key: &[u8], seconds: u32) -> Result<Document, ClientError> {
        let extras = seconds.to_be_bytes();
        self.read(Opcode::GET_LOCKED, key, &extras)
    }

    /// Ends the lock that has this CAS.
    ///
    /// # Errors
    /// `Refused`: KEY_ENOENT if there is no such document, LOCKED for another lock's CAS, NOT_LOCKED if it is not locked.
    pub fn unlock(&mut self, key: &[u8], cas: Cas) -> Result<(), ClientError> {
        let request = self.request(Opcode::UNLOCK_KEY, key).cas(cas);
        self.connection.call(request, |_| ())
    }

    /// Adds to a counter, or takes away from it, and returns its new value.
    ///
    /// # Errors
    /// `Refused`: KEY_ENOENT if it must exist and does not, DELTA_BADVAL if it is no number.
    pub fn count(
        &mut self,
        key: &[u8],
        decrement: bool,
        extras: ArithmeticExtras,
    ) -> Result<u64, ClientError> {
        let opcode = if decrement { Opcode::DECREMENT } else { Opcode::INCREMENT };
        let extras = extras.encode();
        let request = self.request(opcode, key).extras(&extras);
        let value = self.connection.call(request, |frame| frame.value.try_into().map(u64::from_be_bytes))?;
        value.map_err(|_| unexpected(opcode, "a value that has not 8 bytes"))
    }
}

impl Connection {
    /// Asks whether the node answers at all; returns how long that took.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn ping(&mut self) -> Result<Duration, ClientError> {
        let started = Instant::now();
        self.call(Request::new(Opcode::NOOP), |_| started.elapsed())
    }

    /// The node's version text.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn version(&mut self) -> Result<String, ClientError> {
        let request = Request::new(Opcode::VERSION);
        self.call(request, |frame| String::from_utf8_lossy(frame.value).into_owned())
    }

    /// The cluster map of the selected bucket.
    ///
    /// # Errors
    /// `ClusterMap` if it cannot be read, and as [`Connection::call`].
    pub fn cluster_map(&mut self) -> Result<ClusterMap, ClientError> {
        let request = Request::new(Opcode::GET_CLUSTER_CONFIG);
        let map = self.call(request, |frame| ClusterMap::decode(frame.value))?;
        map.ok_or_else(|| ClientError::ClusterMap { found: "it is not the JSON of a map".to_owned() })
    }

    /// How many vbuckets the selected bucket has; never 0.
    ///
    /// # Errors
    /// As [`Connection::cluster_map`].
    pub fn vbucket_count(&mut self) -> Result<u16, ClientError> {
        match self.cluster_map()?.vbucket_count {
            0 => {
                Err(ClientError::ClusterMap { found: "it has no vbuckets; is a bucket selected?".to_owned() })
            }
            count => Ok(count),
        }
    }

    /// Reads a group of statistics, `group` or `group argument`, empty for the general one.
    ///
    /// # Errors
    /// `Refused`: KEY_ENOENT for an unknown group.
    pub fn stats(&mut self, group: &str, on_entry: impl FnMut(&[u8], &[u8])) -> Result<(), ClientError> {
        self.stats_with(group.as_bytes(), b"", on_entry)
    }

    /// The same with arguments in JSON, which `dcp` takes; empty for none.
    ///
    /// # Errors
    /// As [`Connection::stats`]; EINVAL for arguments that the group does not take.
    pub fn stats_with(
        &mut self,
        group: &[u8],
        arguments: &[u8],
        mut on_entry: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), ClientError> {
        let tag = self.send(Request::new(Opcode::STAT).key(group).value(arguments))?;
        loop {
            let more = self.receive_answer(tag, |frame| match StatEntry::of(frame) {
                StatEntry::Pair { key, value } => {
                    on_entry(key, value);
                    Ok(true)
                }
                StatEntry::End => Ok(false),
                StatEntry::Failed(_) => super::connection::refused(frame).map(|()| false),
            })??;
            if !more {
                return Ok(());
            }
        }
    }

    /// The same as text, in the order in which it came.
    ///
    /// # Errors
    /// As [`Connection::stats_with`].
    pub fn stat_texts(
        &mut self,
        group: &str,
        arguments: &[u8],
    ) -> Result<Vec<(String, String)>, ClientError> {
        let mut entries = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        self.stats_with(group.as_bytes(), arguments, |name, value| entries.push((text(name), text(value))))?;
        Ok(entries)
    }

    /// How far a vbucket of history `uuid` is assigned and persisted.
    ///
    /// # Errors
    /// `Refused`: KEY_ENOENT if the vbucket never had that history.
    pub fn observe(&mut self, vbucket: VbId, uuid: VbUuid) -> Result<ObservedSeqno, ClientError> {
        let uuid = uuid.0.to_be_bytes();
        let request = Request::new(Opcode::OBSERVE_SEQNO).vbucket(vbucket).value(&uuid);
        let observed = self.call(request, |frame| ObservedSeqno::decode(frame.value))?;
        observed.ok_or_else(|| unexpected(Opcode::OBSERVE_SEQNO, "a value of another form"))
    }

    /// Waits until these mutations survive a crash.
    ///
    /// # Errors
    /// `Timeout` if they are not persisted within `patience`, and as [`Connection::observe`].
    pub fn wait_persisted(
        &mut self,
        tokens: &[(VbId, MutationToken)],
        patience: Duration,
    ) -> Result<(), ClientError> {
        let deadline = Instant::now() + patience;
        for (vbucket, token) in tokens {
            let mut pause = Duration::from_micros(200);
            while self.observe(*vbucket, token.uuid)?.persisted_seqno < token.seqno {
                if Instant::now() >= deadline {
                    let during = format!("waiting until {vbucket} has persisted {}", token.seqno);
                    let address = self.address().to_owned();
                    return Err(ClientError::Timeout { address, during, waited: patience });
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
        }
        Ok(())
    }
}

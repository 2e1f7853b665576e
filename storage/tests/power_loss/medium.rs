//! A disk in memory that knows which of its writes are durable, and what a power cut may leave of it.
//!
//! Invariants
//! - What a successful sync covers is durable; what a failed one covers is decided by lot, and no later sync changes that.
//! - `durable` with `pending` written over it in order is what reads see, but for failed syncs.
//!
//! Cost: copies share their pieces until one of them is written to.
//!
//! Does not know: who asks (`daemon`), what the bytes mean.

use std::sync::Arc;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use ringbase_storage::types::Seqno;

/// What a power cut leaves whole, in bytes.
const SECTOR: usize = 512;

/// Bytes that copies of a medium share or not.
const PIECE: usize = 64 << 10;

/// Captures a disk keeps at most.
const CAPTURES_MAX: usize = 1000;

/// The bytes of a disk.
#[derive(Clone)]
pub(crate) struct Medium(Vec<Arc<Vec<u8>>>);

impl Medium {
    /// An empty one of whole pieces.
    pub(crate) fn zeroed(len: usize) -> Medium {
        assert!(len.is_multiple_of(PIECE));
        let zeroes = Arc::new(vec![0; PIECE]);
        Medium(vec![zeroes; len / PIECE])
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len() * PIECE
    }

    /// Up to `len` bytes at `offset`, fewer at the end.
    fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let end = offset.saturating_add(len).min(self.len());
        let mut bytes = Vec::with_capacity(end.saturating_sub(offset));
        let mut at = offset;
        while at < end {
            let take = (PIECE - at % PIECE).min(end - at);
            bytes.extend_from_slice(&self.0[at / PIECE][at % PIECE..][..take]);
            at += take;
        }
        bytes
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let take = (PIECE - at % PIECE).min(rest.len());
            Arc::make_mut(&mut self.0[at / PIECE])[at % PIECE..][..take].copy_from_slice(&rest[..take]);
            (at, rest) = (at + take, &rest[take..]);
        }
    }
}

/// A write that no sync has covered yet.
struct Write {
    offset: usize,
    bytes: Vec<u8>,
}

impl Write {
    /// Brings what a power cut left of it onto a medium: each sector with this chance.
    fn tear(&self, medium: &mut Medium, keep: f64, random: &mut Xoshiro256PlusPlus) {
        let mut at = 0;
        while at < self.bytes.len() {
            let take = (SECTOR - (self.offset + at) % SECTOR).min(self.bytes.len() - at);
            if random.random_bool(keep) {
                medium.write(self.offset + at, &self.bytes[at..at + take]);
            }
            at += take;
        }
    }
}

/// A disk at one moment, and what its user had been promised by then.
#[derive(Clone)]
pub(crate) struct Capture {
    durable: Medium,
    pending: Vec<Arc<Write>>,
    /// What the store had reported persisted.
    pub(crate) reported: Vec<Seqno>,
}

impl Capture {
    /// What a power cut at that moment leaves: any subset of the writes, whole or torn.
    pub(crate) fn cut(&self, random: &mut Xoshiro256PlusPlus) -> Medium {
        let mut medium = self.durable.clone();
        let keep = [0.0, 0.1, 0.5, 0.9, 1.0][random.random_range(0..5)];
        let tears = random.random_bool(0.5);
        for write in &self.pending {
            if tears {
                write.tear(&mut medium, keep, random);
            } else if random.random_bool(keep) {
                medium.write(write.offset, &write.bytes);
            }
        }
        medium
    }

    /// What is there when all of it has become durable.
    pub(crate) fn settled(&self) -> Medium {
        let mut medium = self.durable.clone();
        self.pending.iter().for_each(|write| medium.write(write.offset, &write.bytes));
        medium
    }

    /// Writes of which any subset may survive.
    pub(crate) fn pending_count(&self) -> usize {
        self.pending.len()
    }
}

/// What a disk is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
    Sync,
}

/// What goes wrong, and from which operation of its kind on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) operation: Operation,
    /// Counted from 1 since the disk was laid in.
    pub(crate) nth: u64,
    /// All later ones, too.
    pub(crate) sticky: bool,
    /// A bit of what is read is flipped; else the operation fails.
    pub(crate) flips: bool,
}

/// The operation failed.
#[derive(Debug)]
pub(crate) struct Failed;

/// A disk that is in use.
pub(crate) struct Disk {
    view: Medium,
    durable: Medium,
    pending: Vec<Arc<Write>>,
    random: Xoshiro256PlusPlus,
    /// Reads, writes and syncs so far.
    counts: [u64; 3],
    fault: Option<Fault>,
    struck: u64,
    /// Writes and syncs between two captures at most; 0 while none is wanted.
    capture_every: u64,
    capture_in: u64,
    captures: Vec<Capture>,
    /// What its user has been promised.
    pub(crate) reported: Vec<Seqno>,
}

impl Disk {
    /// A disk that holds `medium`, all of it durable.
    pub(crate) fn holding(medium: Medium, seed: u64) -> Disk {
        Disk {
            view: medium.clone(),
            durable: medium,
            pending: Vec::new(),
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            counts: [0; 3],
            fault: None,
            struck: 0,
            capture_every: 0,
            capture_in: 0,
            captures: Vec::new(),
            reported: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.view.len()
    }

    /// Goes wrong like this from now on.
    pub(crate) fn inject(&mut self, fault: Fault) {
        self.fault = Some(fault);
    }

    /// Is well again.
    pub(crate) fn heal(&mut self) {
        self.fault = None;
    }

    /// Operations that went wrong.
    pub(crate) fn struck(&self) -> u64 {
        self.struck
    }

    /// Operations so far.
    pub(crate) fn count(&self, operation: Operation) -> u64 {
        self.counts[operation as usize]
    }

    /// Captures itself at random moments, this many writes and syncs apart at most.
    pub(crate) fn capture_every(&mut self, operations: u64) {
        self.capture_every = operations;
        self.capture_in = self.random.random_range(1..=operations);
    }

    /// Itself, now.
    pub(crate) fn capture(&self) -> Capture {
        let (durable, pending) = (self.durable.clone(), self.pending.clone());
        Capture { durable, pending, reported: self.reported.clone() }
    }

    /// What was captured so far.
    pub(crate) fn take_captures(&mut self) -> Vec<Capture> {
        std::mem::take(&mut self.captures)
    }

    fn note_moment(&mut self) {
        if self.capture_every > 0 && self.captures.len() < CAPTURES_MAX {
            self.capture_in -= 1;
            if self.capture_in == 0 {
                self.captures.push(self.capture());
                self.capture_in = self.random.random_range(1..=self.capture_every);
            }
        }
    }

    /// Counts an operation and says whether it goes wrong.
    fn strikes(&mut self, operation: Operation) -> Option<Fault> {
        let count = &mut self.counts[operation as usize];
        *count += 1;
        let fault = self.fault.filter(|fault| fault.operation == operation);
        let fault = fault.filter(|fault| *count == fault.nth || (fault.sticky && *count > fault.nth));
        self.struck += u64::from(fault.is_some());
        fault
    }

    pub(crate) fn read(&mut self, offset: usize, len: usize) -> Result<Vec<u8>, Failed> {
        let fault = self.strikes(Operation::Read);
        let mut bytes = self.view.read(offset, len);
        match fault {
            Some(Fault { flips: true, .. }) if !bytes.is_empty() => {
                let at = self.random.random_range(0..bytes.len());
                bytes[at] ^= 1 << self.random.random_range(0..8);
                Ok(bytes)
            }
            Some(Fault { flips: false, .. }) => Err(Failed),
            _ => Ok(bytes),
        }
    }

    /// A write; of one that fails any sector may arrive.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Failed> {
        let write = Arc::new(Write { offset, bytes: bytes.to_vec() });
        if self.strikes(Operation::Write).is_some() {
            for medium in [&mut self.view, &mut self.durable] {
                let mut same = self.random.clone();
                write.tear(medium, 0.5, &mut same);
            }
            self.random.random::<u64>();
            return Err(Failed);
        }
        self.view.write(offset, bytes);
        self.pending.push(write);
        self.note_moment();
        Ok(())
    }

    pub(crate) fn sync(&mut self) -> Result<(), Failed> {
        self.note_moment();
        let fails = self.strikes(Operation::Sync).is_some();
        let keep = if fails { 0.5 } else { 1.0 };
        for write in self.pending.drain(..) {
            write.tear(&mut self.durable, keep, &mut self.random);
        }
        if fails { Err(Failed) } else { Ok(()) }
    }
}

//! The documents of a bucket that clients have locked for a while, on one core.
//!
//! A lock makes no version: it is not a mutation, is told to no stream, and takes no seqno. It has a CAS of its own, drawn from the vbucket's
//! clock, which no version has and below every later version's; who knows it holds the lock. The document keeps the CAS it had, so that
//! unlocking it leaves everything as it was.
//!
//! Invariants
//! - A lock ends when its time is up, when it is unlocked, when its document gets a new version or a tombstone, and with its bucket. Nothing of
//!   it is on disk.
//! - At most [`LOCKS_MAX`] locks of [`LOCK_BYTES_MAX`] bytes; those whose time is up make room first.
//!
//! Cost: while nothing is locked, one emptiness check for a request; otherwise a look-up. When the time of all is up, the next look-up lets all go.
//!
//! Does not know: documents, statuses, how long a lock may last.

use std::cell::{Cell, OnceCell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::{Equivalent, HashMap};
use ringbase_storage::types::{Cas, VbId};

/// Most locks of a bucket on a core.
pub const LOCKS_MAX: usize = 16 << 10;

/// Most bytes that they take.
pub const LOCK_BYTES_MAX: usize = 4 << 20;

/// What a lock takes beside its key, in bytes, with the room that the table keeps free.
const OVERHEAD_BYTES: usize = 96;

/// There is no room for another lock now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{locks} documents are locked, which is as many as can be at once")]
pub struct TooManyLocks {
    /// How many there are.
    pub locks: usize,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Name {
    vb: VbId,
    key: Box<[u8]>,
}

/// A key (with prefix) in its vbucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LockName<'a> {
    /// The vbucket.
    pub vb: VbId,
    /// The key with its collection prefix.
    pub key: &'a [u8],
}

impl Equivalent<Name> for LockName<'_> {
    fn equivalent(&self, name: &Name) -> bool {
        self.vb == name.vb && *self.key == *name.key
    }
}

#[derive(Debug, Clone, Copy)]
struct Lock {
    cas: Cas,
    end_ns: u64,
}

/// See the module. Times are those of the core's monotonic clock.
#[derive(Debug, Default)]
pub struct Locks {
    held: RefCell<HashMap<Name, Lock, ahash::RandomState>>,
    bytes: Cell<usize>,
    /// No lock ends before.
    earliest_end_ns: Cell<u64>,
    /// No lock ends after.
    latest_end_ns: Cell<u64>,
    /// How many there are on all cores, for those who look from elsewhere.
    everywhere: OnceCell<Arc<AtomicUsize>>,
    told: Cell<usize>,
}

impl Locks {
    /// From now on `everywhere` counts these locks, too.
    pub(super) fn tell(&self, everywhere: Arc<AtomicUsize>) {
        let _ = self.everywhere.set(everywhere);
    }

    /// Brings the count up to date; before whoever has changed it is answered.
    fn count(&self) {
        let (told, now) = (self.told.replace(self.len()), self.len());
        if let Some(everywhere) = self.everywhere.get() {
            everywhere.fetch_add(now.wrapping_sub(told), Ordering::AcqRel);
        }
    }

    /// Whether nothing is locked.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.held.borrow().is_empty()
    }

    /// Locks that are remembered, also those whose time is up.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.borrow().len()
    }

    /// Bytes that they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// The CAS that ends the lock of a document, if it is locked at `now_ns`.
    #[must_use]
    pub fn find(&self, name: LockName<'_>, now_ns: u64) -> Option<Cas> {
        if now_ns >= self.latest_end_ns.get() {
            *self.held.borrow_mut() = HashMap::default();
            self.bytes.set(0);
            self.count();
            return None;
        }
        let held = self.held.borrow();
        held.get(&name).filter(|lock| now_ns < lock.end_ns).map(|lock| lock.cas)
    }

    /// Locks a document until `end_ns`, which is not locked at `now_ns`.
    ///
    /// # Errors
    /// There is no room.
    pub fn add(&self, name: LockName<'_>, cas: Cas, now_ns: u64, end_ns: u64) -> Result<(), TooManyLocks> {
        self.remove(name);
        let bytes = OVERHEAD_BYTES + name.key.len();
        let has_room = || self.len() < LOCKS_MAX && self.bytes.get() + bytes <= LOCK_BYTES_MAX;
        if !has_room() && now_ns >= self.earliest_end_ns.get() {
            self.sweep(now_ns);
        }
        if !has_room() {
            return Err(TooManyLocks { locks: self.len() });
        }
        if self.is_empty() {
            self.earliest_end_ns.set(end_ns);
            self.latest_end_ns.set(end_ns);
        }
        self.earliest_end_ns.set(self.earliest_end_ns.get().min(end_ns));
        self.latest_end_ns.set(self.latest_end_ns.get().max(end_ns));
        self.bytes.set(self.bytes.get() + bytes);
        let name = Name { vb: name.vb, key: name.key.into() };
        self.held.borrow_mut().insert(name, Lock { cas, end_ns });
        self.count();
        Ok(())
    }

    /// Ends the lock of a document, if there is one.
    pub fn remove(&self, name: LockName<'_>) {
        if self.held.borrow_mut().remove(&name).is_some() {
            self.bytes.set(self.bytes.get() - OVERHEAD_BYTES - name.key.len());
            self.count();
        }
    }

    /// Ends the locks of a vbucket: it is active no more.
    pub fn forget(&self, vb: VbId) {
        if !self.is_empty() {
            self.keep(|name, _| name.vb != vb);
        }
    }

    /// Lets go of locks whose time is up.
    fn sweep(&self, now_ns: u64) {
        self.keep(|_, lock| now_ns < lock.end_ns);
    }

    fn keep(&self, wanted: impl Fn(&Name, &Lock) -> bool) {
        {
            let held = &mut *self.held.borrow_mut();
            held.retain(|name, lock| wanted(name, lock));
            self.bytes.set(held.keys().map(|name| OVERHEAD_BYTES + name.key.len()).sum());
            self.earliest_end_ns.set(held.values().map(|lock| lock.end_ns).min().unwrap_or(u64::MAX));
        }
        self.count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(key: &[u8]) -> LockName<'_> {
        LockName { vb: VbId(1), key }
    }

    #[test]
    fn a_lock_belongs_to_a_key_of_a_vbucket_until_its_time_is_up() {
        let (locks, everywhere) = (Locks::default(), Arc::new(AtomicUsize::new(10)));
        locks.tell(everywhere.clone());
        locks.add(name(b"k"), Cas(7), 100, 200).unwrap();
        assert_eq!(locks.find(name(b"k"), 199), Some(Cas(7)));
        assert_eq!(locks.find(name(b"other"), 199), None);
        assert_eq!(locks.find(LockName { vb: VbId(2), key: b"k" }, 199), None);
        locks.add(name(b"longer"), Cas(8), 100, 300).unwrap();
        assert_eq!(locks.find(name(b"k"), 200), None, "its time is up");
        locks.add(name(b"k"), Cas(9), 200, 250).unwrap();
        assert_eq!((locks.find(name(b"k"), 200), locks.len()), (Some(Cas(9)), 2));
        assert_eq!(everywhere.load(Ordering::Relaxed), 12, "ten of other cores");
        locks.remove(name(b"k"));
        locks.remove(name(b"never"));
        assert_eq!((locks.find(name(b"k"), 200), locks.len()), (None, 1));
        assert_eq!(locks.find(name(b"k"), 300), None);
        assert_eq!(everywhere.load(Ordering::Relaxed), 10);
    }

    #[test]
    fn the_locks_of_a_vbucket_end_together_and_those_of_others_stay() {
        let locks = Locks::default();
        locks.forget(VbId(1));
        for (vb, key) in [(1, b"a"), (1, b"b"), (2, b"a")] {
            locks.add(LockName { vb: VbId(vb), key }, Cas(3), 0, 100).unwrap();
        }
        let bytes = locks.bytes();
        locks.forget(VbId(1));
        assert_eq!((locks.len(), locks.bytes(), locks.find(name(b"a"), 1)), (1, bytes / 3, None));
        assert_eq!(locks.find(LockName { vb: VbId(2), key: b"a" }, 1), Some(Cas(3)));
    }

    #[test]
    fn when_the_time_of_all_is_up_the_next_look_lets_all_go() {
        let locks = Locks::default();
        for n in 0..100u8 {
            locks.add(name(&[n]), Cas(1), 0, 50 + u64::from(n)).unwrap();
        }
        assert_eq!(locks.find(name(b"none"), 148), None);
        assert_eq!((locks.len(), locks.bytes() > 0), (100, true));
        assert_eq!(locks.find(name(b"none"), 149), None);
        assert!(locks.is_empty() && locks.bytes() == 0);
        locks.add(name(b"k"), Cas(1), 149, 160).unwrap();
        assert_eq!(locks.find(name(b"k"), 159), Some(Cas(1)));
    }

    #[test]
    fn locks_are_bounded_by_count_and_bytes_and_old_ones_make_room() {
        let locks = Locks::default();
        for n in 0..LOCKS_MAX as u64 {
            locks.add(name(&n.to_be_bytes()), Cas(1), 0, 100 + n % 2).unwrap();
        }
        assert_eq!(locks.add(name(b"more"), Cas(2), 99, 500), Err(TooManyLocks { locks: LOCKS_MAX }));
        locks.remove(name(&7u64.to_be_bytes()));
        locks.add(name(b"more"), Cas(2), 99, 500).unwrap();
        assert!(locks.add(name(b"another"), Cas(3), 99, 500).is_err());
        locks.add(name(b"another"), Cas(3), 100, 500).unwrap();
        assert_eq!(locks.len(), LOCKS_MAX / 2 + 1, "one of those that end at 101 was removed");
        assert_eq!(locks.find(name(&1u64.to_be_bytes()), 100), Some(Cas(1)));

        let locks = Locks::default();
        let long = |n: u64| [&n.to_be_bytes()[..], &[b'x'; 240]].concat();
        let refused = (0..).find(|n| locks.add(name(&long(*n)), Cas(1), 0, 100).is_err()).unwrap();
        assert!(locks.bytes() <= LOCK_BYTES_MAX && locks.bytes() > LOCK_BYTES_MAX - 1000);
        assert_eq!(refused as usize, locks.len());
        assert!(locks.len() < LOCKS_MAX);
    }
}

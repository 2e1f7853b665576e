//! The side of [`Versions`] in key order: the key index, and versions kept for readers in key order.
//!
//! Does not know: who scans, when the index is idle.

use std::collections::VecDeque;
use std::ops::Bound;

use super::{Index, KeyReaderHandle, SLICE, Versions};
use crate::item::Item;
use crate::keyindex::KeyIndex;
use crate::registry::KeyReader;
use crate::types::Seqno;

impl Versions {
    /// Opens a reader in key order, which sees the newest versions as they are now. `now_ns` is when.
    pub fn open_by_key(&mut self, now_ns: u64) -> KeyReaderHandle {
        self.index_used_ns = now_ns;
        self.registry.open_by_key(self.list.last())
    }

    /// Goes on building the key index, a slice; true when it is complete.
    pub fn build_index(&mut self) -> bool {
        let (next, mut index) = match std::mem::take(&mut self.index) {
            Index::Absent => (Seqno(0), KeyIndex::default()),
            Index::Building(next, index) => (next, index),
            Index::Complete(index) => {
                self.index = Index::Complete(index);
                return true;
            }
        };
        let next = self.list.visit(next, SLICE, |item| index.put_if_absent(item.clone()));
        self.index = match next {
            Some(next) => Index::Building(next, index),
            None => Index::Complete(index),
        };
        next.is_none()
    }

    /// Drops the key index if no reader in key order has been opened since `before_ns` and none is there. Returns whether there is one left.
    pub fn drop_idle_index(&mut self, before_ns: u64) -> bool {
        if self.registry.has_no_key_readers() && self.index_used_ns < before_ns {
            self.index = Index::Absent;
        }
        !matches!(self.index, Index::Absent)
    }

    /// The version of a key that is visible at `end`, given its newest one.
    #[must_use]
    pub fn visible(&self, key: &[u8], newest: Option<&Item>, end: Seqno) -> Option<Item> {
        newest.filter(|item| item.seqno() <= end).cloned().or_else(|| {
            let mut versions = self.kept_by_key.get(key)?.iter().filter_map(|born| self.kept.get(born));
            let found = versions.find(|kept| kept.item.seqno() <= end && end < kept.superseded);
            found.map(|kept| kept.item.clone())
        })
    }

    /// Appends the versions that are visible at `end` of the next keys at or above (or, if `exclusive`, above) `from` to `out`, tombstones included, and
    /// returns the last key it looked at; `None` at the end. A call looks at no more than `keys` keys.
    ///
    /// # Panics
    /// If the index is not complete: whoever reads has waited for it, and it stays while somebody reads.
    pub fn next_keys(
        &self,
        end: Seqno,
        from: &[u8],
        exclusive: bool,
        keys: usize,
        out: &mut VecDeque<Item>,
    ) -> Option<Vec<u8>> {
        let Index::Complete(index) = &self.index else { panic!("read in key order without an index") };
        let start = if exclusive { Bound::Excluded(from) } else { Bound::Included(from) };
        let mut newest = index.range(from, exclusive).peekable();
        let mut kept =
            self.kept_by_key.range::<[u8], _>((start, Bound::Unbounded)).map(|(key, _)| key).peekable();
        let mut last: Option<&[u8]> = None;
        for _ in 0..keys {
            let key = match (newest.peek(), kept.peek()) {
                (None, None) => return None,
                (Some(item), None) => item.key(),
                (None, Some(key)) => key,
                (Some(item), Some(key)) => item.key().min(key),
            };
            let item = newest.next_if(|item| item.key() == key);
            kept.next_if(|kept| &kept[..] == key);
            out.extend(self.visible(key, item, end));
            last = Some(key);
        }
        last.map(<[u8]>::to_vec)
    }

    /// The reader is past all keys below `key`: gives up what only it needed there. Returns the bytes.
    pub fn key_reader_passed(&mut self, reader: &KeyReader, key: &[u8]) -> usize {
        let (mut from, mut exclusive, mut freed) = (reader.move_to(key), false, 0);
        loop {
            let (bytes, last) = self.settle_keys(&from, exclusive, Some(key));
            freed += bytes;
            let Some(last) = last else { return freed };
            (from, exclusive) = (last, true);
        }
    }

    /// Gives up what is kept under keys from `from` (or, with `exclusive`, behind it) on, at most a slice of keys and none at or above `to`, unless
    /// a reader needs it. Returns the bytes and, if the slice ended early, the last key it looked at.
    pub fn settle_keys(
        &mut self,
        from: &[u8],
        exclusive: bool,
        to: Option<&[u8]>,
    ) -> (usize, Option<Vec<u8>>) {
        let start = if exclusive { Bound::Excluded(from) } else { Bound::Included(from) };
        let end = to.map_or(Bound::Unbounded, Bound::Excluded);
        if to.is_some_and(|to| to < from || to == from && exclusive) {
            return (0, None);
        }
        let keys = self.kept_by_key.range::<[u8], _>((start, end)).take(SLICE);
        let slice: Vec<(Box<[u8]>, Vec<Seqno>)> =
            keys.map(|(key, versions)| (key.clone(), versions.clone())).collect();
        let freed = slice.iter().flat_map(|(_, versions)| versions).map(|born| self.release(*born)).sum();
        let last = (slice.len() == SLICE).then(|| slice.last().map(|(key, _)| key.to_vec())).flatten();
        (freed, last)
    }
}

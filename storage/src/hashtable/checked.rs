//! What the tests under a model checker share. Tables are small there: buckets of two slots, one more in each group behind, two items a bucket.
//!
//! Does not know: which checker runs.

use super::shared::hasher;
use super::*;
use crate::item::test_item;
use crate::types::Kind;

/// Keys whose hashes end in these bits, the lowest two of them.
pub(super) fn keys<const N: usize>(bits: [u64; N]) -> [Vec<u8>; N] {
    let hasher = hasher(0);
    let mut candidates = 0u32..;
    bits.map(|bits| {
        let key = candidates
            .by_ref()
            .map(|n| n.to_be_bytes().to_vec())
            .find(|key| hasher.hash_one(key.as_slice()) & 3 == bits);
        key.expect("one in four")
    })
}

pub(super) fn item(key: &[u8], seqno: u64) -> Item {
    test_item(key, seqno, Kind::Mutation, b"")
}

/// A table with these keys, whose seqnos count from 1.
pub(super) fn table_of(keys: &[&[u8]]) -> HashTable {
    let mut table = HashTable::default();
    for (key, seqno) in keys.iter().zip(1..) {
        table.insert(item(key, seqno));
    }
    table
}

/// The seqno that a reader finds, by way of a handle of its own.
pub(super) fn look(reader: &TableReader, key: &[u8]) -> Option<u64> {
    let pin = pin();
    let handle = reader.get(key, &pin)?.clone();
    drop(pin);
    assert_eq!(handle.key(), key);
    Some(handle.seqno().0)
}

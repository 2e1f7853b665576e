//! Which records of a segment are dead, and for whom.
//!
//! Most marks are of the first kind: dead for everyone. They are bits, in a row over the segment's seqnos if its records lie close together, else by
//! words of 64 seqnos: a segment that was rewritten often has few records in a long stretch.
//!
//! Invariants
//! - A record is marked at most once.
//!
//! Cost: a question is one word, and a look-up of the recent marks if there are any. A bit costs at most 16 bytes a dead record, or 8 a record.
//! Does not know: which records there are, views.

use std::collections::BTreeMap;

use crate::types::Seqno;

/// Seqnos a record up to which the bits stand in a row.
const SEQNOS_PER_RECORD_MAX: u64 = 64;

/// Records and their bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub records: u64,
    /// Bytes of them in the seqlog.
    pub bytes: u64,
}

impl Amount {
    /// One record more, of so many bytes.
    pub fn add(&mut self, bytes: u32) {
        self.records += 1;
        self.bytes += u64::from(bytes);
    }

    /// One record less, of so many bytes; 0 if nobody knows.
    pub fn take_off(&mut self, bytes: u32) {
        let mean = self.bytes.checked_div(self.records).unwrap_or_default();
        let bytes = if bytes == 0 { mean } else { u64::from(bytes) };
        self.records = self.records.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    fn sub(&mut self, bytes: u32) {
        self.records -= 1;
        self.bytes -= u64::from(bytes);
    }
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Amount) {
        self.records += other.records;
        self.bytes += other.bytes;
    }
}

#[derive(Debug, Clone)]
enum Bits {
    Row(Vec<u64>),
    Words(hashbrown::HashMap<u64, u64, ahash::RandomState>),
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Deaths {
    first: Seqno,
    bits: Bits,
    /// Of those that are dead for everyone.
    dead: Amount,
    /// Dead only for those who end at or after the superseding seqno; with the record's bytes.
    recent: BTreeMap<Seqno, (Seqno, u32)>,
    recent_amount: Amount,
}

impl Deaths {
    /// None, of a segment with so many records from `first` to `last`.
    pub(super) fn new(first: Seqno, last: Seqno, records: u64) -> Deaths {
        let is_close = last.0 - first.0 <= records.saturating_mul(SEQNOS_PER_RECORD_MAX);
        let bits = if is_close { Bits::Row(Vec::new()) } else { Bits::Words(hashbrown::HashMap::default()) };
        let recent = BTreeMap::new();
        Deaths { first, bits, dead: Amount::default(), recent, recent_amount: Amount::default() }
    }

    /// The record is dead for everyone.
    pub(super) fn add(&mut self, seqno: Seqno, bytes: u32) {
        let bit = seqno.0 - self.first.0;
        let word = match &mut self.bits {
            Bits::Row(row) => {
                let index = (bit / 64) as usize;
                if row.len() <= index {
                    row.resize(index + 1, 0);
                }
                &mut row[index]
            }
            Bits::Words(words) => words.entry(bit / 64).or_default(),
        };
        if *word & 1 << (bit % 64) == 0 {
            *word |= 1 << (bit % 64);
            self.dead.add(bytes);
        }
    }

    /// The record is dead for those who end at or after `by`.
    pub(super) fn add_recent(&mut self, seqno: Seqno, by: Seqno, bytes: u32) {
        if !self.has_bit(seqno) && self.recent.insert(seqno, (by, bytes)).is_none() {
            self.recent_amount.add(bytes);
        }
    }

    /// What is dead for those who end at `lowest_end` is dead for everyone.
    pub(super) fn settle(&mut self, lowest_end: Seqno) {
        let settled: Vec<(Seqno, u32)> = self
            .recent
            .iter()
            .filter(|(_, (by, _))| *by <= lowest_end)
            .map(|(seqno, (_, bytes))| (*seqno, *bytes))
            .collect();
        for (seqno, bytes) in settled {
            self.recent.remove(&seqno);
            self.recent_amount.sub(bytes);
            self.add(seqno, bytes);
        }
    }

    #[inline]
    fn has_bit(&self, seqno: Seqno) -> bool {
        let bit = seqno.0 - self.first.0;
        let word = match &self.bits {
            Bits::Row(row) => row.get((bit / 64) as usize),
            Bits::Words(words) => words.get(&(bit / 64)),
        };
        word.is_some_and(|word| word & 1 << (bit % 64) != 0)
    }

    /// Whether the record is dead for a reader that ends at `end`.
    #[inline]
    pub(super) fn is_dead(&self, seqno: Seqno, end: Seqno) -> bool {
        self.has_bit(seqno)
            || !self.recent.is_empty() && self.recent.get(&seqno).is_some_and(|(by, _)| *by <= end)
    }

    /// The greatest superseding seqno of those that are not dead for everyone; 0 if there are none.
    pub(super) fn recent_by_max(&self) -> Seqno {
        self.recent.values().map(|(by, _)| *by).max().unwrap_or_default()
    }

    /// What is dead for everyone, and what is dead for some.
    pub(super) fn amounts(&self) -> (Amount, Amount) {
        (self.dead, self.recent_amount)
    }

    /// Shows every marked record in the order of seqnos, with the superseding seqno and the bytes of those that are not dead for everyone.
    pub(super) fn each(&self) -> Vec<(Seqno, Option<(Seqno, u32)>)> {
        let mut all: Vec<(Seqno, Option<(Seqno, u32)>)> =
            self.recent.iter().map(|(seqno, mark)| (*seqno, Some(*mark))).collect();
        let first = self.first.0;
        let mut show = |index: u64, word: u64| {
            let bits = (0..64).filter(|bit| word & 1 << bit != 0);
            all.extend(bits.map(|bit| (Seqno(first + index * 64 + bit), None)));
        };
        match &self.bits {
            Bits::Row(row) => row.iter().zip(0..).for_each(|(word, index)| show(index, *word)),
            Bits::Words(words) => words.iter().for_each(|(index, word)| show(*index, *word)),
        }
        all.sort_unstable_by_key(|(seqno, _)| *seqno);
        all
    }

    pub(super) fn resident_bytes(&self) -> usize {
        let bits = match &self.bits {
            Bits::Row(row) => row.len() * 8,
            Bits::Words(words) => words.capacity() * 17,
        };
        bits + self.recent.len() * 40
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Close together or far apart, settled or not: the answers are those of a list of marks.
        #[test]
        fn marks_answer_as_a_list_of_them_would(
            is_close in any::<bool>(),
            marks in prop::collection::btree_map(10u64..2000, (1u64..50, 0u32..300), 0..60),
            settled in 10u64..2100,
        ) {
            let (first, last) = (Seqno(10), Seqno(2000));
            let mut deaths = Deaths::new(first, last, if is_close { 100 } else { 2 });
            for (seqno, (later, bytes)) in &marks {
                let by = Seqno(seqno + later);
                if later % 2 == 0 {
                    deaths.add_recent(Seqno(*seqno), by, *bytes);
                } else {
                    deaths.add(Seqno(*seqno), *bytes);
                }
                deaths.add_recent(Seqno(*seqno), by, *bytes);
            }
            deaths.settle(Seqno(settled));
            let is_for_all = |seqno: u64, later: u64| later % 2 == 1 || seqno + later <= settled;
            for seqno in 10..2000 {
                for end in [seqno, seqno + 20, seqno + 60] {
                    let expected = marks.get(&seqno).is_some_and(|(later, _)| is_for_all(seqno, *later) || seqno + later <= end);
                    prop_assert_eq!(deaths.is_dead(Seqno(seqno), Seqno(end)), expected);
                }
            }
            let sum = |for_all: bool| marks.iter().filter(|(seqno, (later, _))| is_for_all(**seqno, *later) == for_all)
                .fold(Amount::default(), |mut sum, (_, (_, bytes))| { sum.add(*bytes); sum });
            prop_assert_eq!(deaths.amounts(), (sum(true), sum(false)));
            let each: Vec<(u64, bool)> = deaths.each().iter().map(|(seqno, recent)| (seqno.0, recent.is_none())).collect();
            let expected: Vec<(u64, bool)> = marks.iter().map(|(seqno, (later, _))| (*seqno, is_for_all(*seqno, *later))).collect();
            prop_assert_eq!(each, expected);
        }
    }
}

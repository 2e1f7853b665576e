//! A bounds-checked reader and a writer of little-endian fields, for the pure codecs of this folder.
//!
//! Does not know: what the fields mean.

use super::{BLOCKS_MAX, FormatError, NUMBERS_MAX};

/// Reads fields from the front of a slice; every read is checked.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    what: &'static str,
    all: &'a [u8],
    at: usize,
}

macro_rules! read_int {
    ($name:ident, $int:ty) => {
        /// The next field.
        ///
        /// # Errors
        /// `Short` if the bytes end before it does.
        #[inline]
        pub fn $name(&mut self, field: &'static str) -> Result<$int, FormatError> {
            let bytes = self.bytes(std::mem::size_of::<$int>(), field)?;
            let mut array = [0; std::mem::size_of::<$int>()];
            array.copy_from_slice(bytes);
            Ok(<$int>::from_le_bytes(array))
        }
    };
}

impl<'a> Reader<'a> {
    /// A reader of `all`; `what` names the structure in errors.
    #[must_use]
    pub fn new(what: &'static str, all: &'a [u8]) -> Reader<'a> {
        Reader { what, all, at: 0 }
    }

    read_int!(u8, u8);
    read_int!(u16, u16);
    read_int!(u32, u32);
    read_int!(u64, u64);

    /// The next `len` bytes.
    ///
    /// # Errors
    /// `Short` if there are fewer.
    #[inline]
    pub fn bytes(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], FormatError> {
        let have = self.all.len() - self.at;
        if len > have {
            return Err(FormatError::Short {
                what: self.what,
                field,
                have: self.all.len(),
                need: len - have,
            });
        }
        let bytes = &self.all[self.at..self.at + len];
        self.at += len;
        Ok(bytes)
    }

    /// The next number, which is below `end`.
    ///
    /// # Errors
    /// `Short`, `Invalid`.
    pub fn below(&mut self, end: u64, field: &'static str) -> Result<u64, FormatError> {
        let number = self.u64(field)?;
        if number >= end {
            return Err(self.invalid(field, number, "above all that this build writes"));
        }
        Ok(number)
    }

    /// The next seqno or counter.
    ///
    /// # Errors
    /// `Short`, `Invalid`.
    pub fn number(&mut self, field: &'static str) -> Result<u64, FormatError> {
        self.below(NUMBERS_MAX, field)
    }

    /// The next place of a block, with room behind it for any extent.
    ///
    /// # Errors
    /// `Short`, `Invalid`.
    pub fn place(&mut self, field: &'static str) -> Result<u64, FormatError> {
        self.below(BLOCKS_MAX, field)
    }

    /// A list length that claims `each` bytes an entry at least: refused if the rest cannot hold it.
    ///
    /// # Errors
    /// `Short`, `Invalid`.
    pub fn count(&mut self, each: usize, field: &'static str) -> Result<usize, FormatError> {
        let count = self.u32(field)? as usize;
        if count.saturating_mul(each) > self.remaining() {
            return Err(self.invalid(field, count as u64, "more entries than the bytes can hold"));
        }
        Ok(count)
    }

    /// Bytes not read yet.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.all.len() - self.at
    }

    /// Bytes read so far.
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }

    /// An `Invalid` error of this structure.
    #[must_use]
    pub fn invalid(&self, field: &'static str, found: u64, rule: &'static str) -> FormatError {
        FormatError::Invalid { what: self.what, field, found, rule }
    }
}

/// Appends little-endian fields to a vector.
pub trait WriteLe {
    /// One byte.
    fn put_u8(&mut self, value: u8);
    /// Two bytes.
    fn put_u16(&mut self, value: u16);
    /// Four bytes.
    fn put_u32(&mut self, value: u32);
    /// Eight bytes.
    fn put_u64(&mut self, value: u64);
    /// The bytes as they are.
    fn put_bytes(&mut self, bytes: &[u8]);
}

impl WriteLe for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }
    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// The little-endian `u16` at `at`; the caller has checked that it is there.
#[inline]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The little-endian `u32` at `at`; the caller has checked that it is there.
#[inline]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut array = [0; 4];
    array.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(array)
}

/// The little-endian `u64` at `at`; the caller has checked that it is there.
#[inline]
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut array = [0; 8];
    array.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(array)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_past_the_end_is_an_error_that_names_the_field() {
        let mut reader = Reader::new("thing", &[1, 2, 3]);
        assert_eq!(reader.u16("a"), Ok(0x0201));
        assert_eq!(reader.u32("b"), Err(FormatError::Short { what: "thing", field: "b", have: 3, need: 3 }));
        assert_eq!(reader.u8("c"), Ok(3));
    }

    #[test]
    fn a_count_beyond_the_bytes_is_refused_before_anything_is_allocated() {
        let mut reader = Reader::new("thing", &[0xff, 0xff, 0xff, 0xff, 0, 0]);
        assert!(matches!(reader.count(8, "entries"), Err(FormatError::Invalid { field: "entries", .. })));
    }
}

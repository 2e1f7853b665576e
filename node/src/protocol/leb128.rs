//! Unsigned LEB128 of a `u32`: collection ids before keys, lengths before range-scan records.
//!
//! Seven bits per byte, least significant group first, the high bit set on all bytes but the last. At most
//! five bytes, and only the shortest form is accepted.
//!
//! Does not know: what the number means.

/// Longest encoding, in bytes.
pub const LEB128_BYTES_MAX: usize = 5;

/// Why bytes are not the LEB128 form of a `u32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Leb128Error {
    /// The bytes end before the number does.
    #[error("the number does not end within {available} bytes")]
    Truncated {
        /// Bytes that were there.
        available: usize,
    },
    /// Five bytes and still no end, or more than 32 bits.
    #[error("the number has more than 32 bits")]
    TooLarge,
    /// The same number has a shorter form.
    #[error("the number is not in its shortest form")]
    NotCanonical,
}

/// An encoded number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leb128 {
    bytes: [u8; LEB128_BYTES_MAX],
    len: u8,
}

impl Leb128 {
    /// Encodes `number`.
    #[must_use]
    #[inline]
    pub fn encode(number: u32) -> Leb128 {
        let mut bytes = [0; LEB128_BYTES_MAX];
        let mut rest = number;
        let mut len = 0;
        loop {
            let group = (rest & 0x7f) as u8;
            rest >>= 7;
            if rest == 0 {
                bytes[len] = group;
                return Leb128 { bytes, len: len as u8 + 1 };
            }
            bytes[len] = group | 0x80;
            len += 1;
        }
    }

    /// The bytes, 1 to 5.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Bytes that `number` takes, 1 to 5.
#[must_use]
#[inline]
pub fn encoded_len(number: u32) -> usize {
    (32 - number.leading_zeros()).div_ceil(7).max(1) as usize
}

/// Decodes the number at the beginning of `bytes`; returns it and the bytes after it.
///
/// # Errors
/// `Truncated` if more bytes could complete it, the other two never.
#[inline]
pub fn decode(bytes: &[u8]) -> Result<(u32, &[u8]), Leb128Error> {
    let mut number = 0u64;
    for (index, &byte) in bytes.iter().take(LEB128_BYTES_MAX).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            if byte == 0 && index > 0 {
                return Err(Leb128Error::NotCanonical);
            }
            let number = u32::try_from(number).map_err(|_| Leb128Error::TooLarge)?;
            return Ok((number, &bytes[index + 1..]));
        }
    }
    if bytes.len() < LEB128_BYTES_MAX {
        Err(Leb128Error::Truncated { available: bytes.len() })
    } else {
        Err(Leb128Error::TooLarge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worked_values_hold_both_ways() {
        for (number, bytes) in [
            (0, &[0x00][..]),
            (1, &[0x01]),
            (0x7f, &[0x7f]),
            (0x80, &[0x80, 0x01]),
            (0x22b, &[0xab, 0x04]),
            (0x555, &[0xd5, 0x0a]),
            (0x7fff, &[0xff, 0xff, 0x01]),
            (0xcafe_f00d, &[0x8d, 0xe0, 0xfb, 0xd7, 0x0c]),
            (u32::MAX, &[0xff, 0xff, 0xff, 0xff, 0x0f]),
        ] {
            assert_eq!(Leb128::encode(number).as_bytes(), bytes);
            assert_eq!(encoded_len(number), bytes.len());
            let followed = [bytes, b"rest"].concat();
            assert_eq!(decode(&followed), Ok((number, &b"rest"[..])));
        }
    }

    #[test]
    fn numbers_around_every_power_of_two_survive_a_round_trip() {
        for shift in 0..32 {
            for number in [(1u32 << shift) - 1, 1 << shift, (1 << shift) + 1] {
                let encoded = Leb128::encode(number);
                assert_eq!(decode(encoded.as_bytes()), Ok((number, &[][..])));
                assert_eq!(encoded_len(number), encoded.as_bytes().len());
            }
        }
    }

    #[test]
    fn truncated_long_and_padded_forms_are_refused() {
        assert_eq!(decode(&[]), Err(Leb128Error::Truncated { available: 0 }));
        assert_eq!(decode(&[0x80, 0x80]), Err(Leb128Error::Truncated { available: 2 }));
        assert_eq!(decode(&[0xff; 5]), Err(Leb128Error::TooLarge));
        assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff, 0x10]), Err(Leb128Error::TooLarge));
        assert_eq!(decode(&[0x80, 0x00]), Err(Leb128Error::NotCanonical));
        assert_eq!(decode(&[0x81, 0x80, 0x00]), Err(Leb128Error::NotCanonical));
    }
}

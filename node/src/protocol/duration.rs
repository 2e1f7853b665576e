//! The 16-bit code for a server's processing time.
//!
//! `code = round((2 · microseconds) ^ (1 / 1.74))`: fine for short times, coarse for long ones, up to two
//! minutes.
//!
//! Does not know: what was timed.

use std::time::Duration;

/// Longest time with a code of its own, in microseconds; longer ones get the same code.
pub const MICROS_MAX: u64 = 120_125_042;

/// A duration as it travels in response framing extras.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EncodedDuration(pub u16);

impl EncodedDuration {
    /// Encodes a number of microseconds.
    #[must_use]
    #[inline]
    pub fn from_micros(micros: u64) -> EncodedDuration {
        let doubled = 2.0 * micros.min(MICROS_MAX) as f64;
        EncodedDuration(doubled.powf(1.0 / 1.74).round() as u16)
    }

    /// Encodes a duration.
    #[must_use]
    #[inline]
    pub fn from_duration(duration: Duration) -> EncodedDuration {
        EncodedDuration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
    }

    /// The microseconds this code stands for.
    #[must_use]
    pub fn micros(self) -> u64 {
        (f64::from(self.0).powf(1.74) / 2.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worked_values_hold_both_ways() {
        for (micros, code, decoded) in [
            (0, 0, 0),
            (1, 1, 0),
            (10, 6, 11),
            (100, 21, 99),
            (1_000, 79, 1_001),
            (10_000, 296, 9_977),
            (100_000, 1_113, 99_970),
            (1_000_000, 4_181, 999_994),
            (MICROS_MAX, 65_535, MICROS_MAX),
        ] {
            assert_eq!(EncodedDuration::from_micros(micros), EncodedDuration(code), "{micros} us");
            assert_eq!(EncodedDuration(code).micros(), decoded, "code {code}");
        }
    }

    #[test]
    fn longer_times_never_get_a_smaller_code_and_never_overflow() {
        let mut last = EncodedDuration(0);
        for exponent in 0..64 {
            let code = EncodedDuration::from_micros(1 << exponent);
            assert!(code >= last);
            last = code;
        }
        assert_eq!(EncodedDuration::from_duration(Duration::MAX), EncodedDuration(u16::MAX));
    }
}
